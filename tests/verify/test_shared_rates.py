from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import httpx2 as httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.postgres import Postgres
from tests.support.server import Server, running, wait_until
from wardkey.domain.rate import RateLimit, admit
from wardkey.verify import shared_rates
from wardkey.verify.shared_rates import SharedRates

LONG = RateLimit(limit=1, period_ms=3_600_000, burst=5)


def admitted(file: Path, attempts: int) -> int:
    rates = SharedRates(file)
    return sum(rates.admit(LONG, "key_one", 1_000, 1).admitted for _ in range(attempts))


def test_processes_together_admit_exactly_the_limit(tmp_path: Path) -> None:
    files = [tmp_path / "rates"] * 4
    with get_context("fork").Pool(4) as pool:
        counts = pool.starmap(admitted, [(file, 500) for file in files])
    assert sum(counts) == LONG.burst


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 900), st.integers(0, 3)), max_size=60))
@settings(deadline=None, max_examples=50)
def test_shared_counts_decide_like_those_of_one_process(
    tmp_path_factory: pytest.TempPathFactory, asked: list[tuple[int, int, int]]
) -> None:
    file = tmp_path_factory.mktemp("rates") / "rates"
    several = [SharedRates(file), SharedRates(file)]
    limit, tats, now = RateLimit(limit=3, period_ms=1_000, burst=4), dict[int, float](), 0
    for turn, (key, wait, cost) in enumerate(asked):
        now += wait
        expected = admit(limit, tats.get(key, 0.0), now, cost)
        tats[key] = expected.tat
        shared = several[turn % 2].admit(limit, f"key_{key}", now, cost)
        assert shared[2:] == expected[2:]
        assert shared.admitted == expected.admitted
    for rates in several:
        rates.close()


def test_keys_in_the_same_slot_are_counted_separately(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_rates, "_SLOTS", 64)
    rates = SharedRates(tmp_path / "rates")
    limit = RateLimit(limit=1, period_ms=10_000, burst=1)
    assert all(rates.admit(limit, f"key_{n}", 1_000, 1).admitted for n in range(60))
    assert not any(rates.admit(limit, f"key_{n}", 1_000, 1).admitted for n in range(60))
    # Expired entries free their slots.
    assert all(rates.admit(limit, f"other_{n}", 20_000, 1).admitted for n in range(60))


def test_a_file_from_another_boot_starts_from_zero(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, boot = tmp_path / "rates", tmp_path / "boot"
    monkeypatch.setattr(shared_rates, "_BOOT_ID", boot)
    boot.write_text("one\n")
    assert admitted(file, 9) == 5
    assert admitted(file, 9) == 0
    boot.write_text("two\n")
    assert admitted(file, 9) == 5


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("server") / "data", workers=4) as up:
        yield up


def test_four_workers_admit_one_request_if_the_limit_is_one(server: Server) -> None:
    with server.owner() as owner:
        rate = {"limit": 1, "period_s": 3600, "burst": 1}
        key = {"name": "live-rates-one", "type": "secret", "rate_limit": rate}
        text = owner.post("/v2/keys", json=key).json()["secret"]

    def ask(_: int) -> int:
        # Each on a new connection, so all workers are used.
        with server.client(text) as client:
            return client.get("/v2/auth").status_code

    with ThreadPoolExecutor(12) as pool:
        codes = list(pool.map(ask, range(24)))
    assert sorted(codes) == [200] + [429] * 23


def test_a_client_with_one_connection_gets_the_whole_limit(server: Server) -> None:
    with server.owner() as owner:
        rate = {"limit": 1, "period_s": 3600, "burst": 10}
        key = {"name": "live-rates-ten", "type": "secret", "rate_limit": rate}
        text = owner.post("/v2/keys", json=key).json()["secret"]
    with server.client(text) as client:
        codes = [client.get("/v2/auth").status_code for _ in range(12)]
    assert codes == [200] * 10 + [429] * 2


@pytest.mark.parametrize("batch", ["", "-batch"])
def test_a_key_that_verifies_itself_is_charged_once_per_call(server: Server, batch: str) -> None:
    with server.owner() as owner:
        rate = {"limit": 1, "period_s": 3600, "burst": 10}
        key = {"name": f"live-rates-self{batch}", "type": "secret", "rate_limit": rate}
        text = owner.post("/v2/keys", json=key).json()["secret"]
    body: dict[str, object] = {"key": text} if not batch else {"items": [{"key": text}]}
    with server.client(text) as client:
        answers = [client.post(f"/v2/keys/verify{batch}", json=body) for _ in range(11)]
    assert [answer.status_code for answer in answers] == [200] * 10 + [429]
    tells = [a.json() if not batch else a.json()["items"][0] for a in answers[:10]]
    assert [told["limits"]["remaining"] for told in tells] == list(range(9, -1, -1))


def test_a_batch_about_the_caller_is_charged_per_item(server: Server) -> None:
    with server.owner() as owner:
        rate = {"limit": 1, "period_s": 3600, "burst": 10}
        key = {"name": "live-rates-many", "type": "secret", "rate_limit": rate}
        text = owner.post("/v2/keys", json=key).json()["secret"]
    items = [{"key": text}, {"key": text, "cost": 3}, {"key": "x"}, {"key": text, "cost": 0}]
    with server.client(text) as client:
        results = client.post("/v2/keys/verify-batch", json={"items": items}).json()["items"]
    remaining = [item["limits"]["remaining"] if "limits" in item else None for item in results]
    assert remaining == [9, 6, None, 6]


def key_with_burst(server: Server, burst: int) -> str:
    with server.owner() as owner:
        rate = {"limit": 1, "period_s": 3600, "burst": burst}
        key = {"name": f"live-rates-burst-{burst}", "type": "secret", "rate_limit": rate}
        return str(owner.post("/v2/keys", json=key).json()["secret"])


def admitted_by(servers: list[Server], text: str) -> int:
    """Return how many of 24 calls to each server are admitted, each on a new connection."""

    def ask(server: Server) -> int:
        with server.client(text) as client:
            return client.get("/v2/auth").status_code

    with ThreadPoolExecutor(8) as pool:
        codes = list(pool.map(ask, servers * 24))
    assert set(codes) <= {200, 429}
    return codes.count(200)


def parts_counted(server: Server) -> list[str]:
    """Return into how many parts each verifier known to the server divides limits."""
    answer = httpx.get(f"{server.url}/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
    lines = answer.text.splitlines()
    return [line.split()[-1] for line in lines if line.startswith("wardkey_rate_limit_parts{")]


TOKEN = "scraped-by-the-test-only"


def test_workers_of_one_machine_count_together_on_postgresql(
    start: Callable[..., Server], postgres: Postgres
) -> None:
    server = start(database_url=postgres.create_database(), workers=4, metrics_token=TOKEN)
    wait_until(lambda: [float(parts) for parts in parts_counted(server)] == [4] * 4)
    assert admitted_by([server], key_with_burst(server, 1)) == 1
    assert admitted_by([server], key_with_burst(server, 5)) == 5


def test_two_machines_on_postgresql_together_admit_the_burst(
    tmp_path: Path, postgres: Postgres
) -> None:
    url, one, two = postgres.create_database(), tmp_path / "one", tmp_path / "two"
    settings = {"database_url": url, "workers": 2, "metrics_token": TOKEN}
    with running(one, **settings) as first:
        two.mkdir()
        shutil.copy(one / "master.key", two / "master.key")
        with running(two, **settings) as second:
            wait_until(lambda: [float(parts) for parts in parts_counted(first)] == [4] * 4)
            assert admitted_by([first, second], key_with_burst(first, 10)) == 10
            # A machine's share is at least one request.
            assert admitted_by([first, second], key_with_burst(first, 1)) <= 2
