from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2 as httpx
import pytest

from tests.server import OWNER, PASSWORD, Server, running
from wardkey.domain.errors import InvalidLink, Overloaded, TooManyAttempts, WrongPassword
from wardkey.web.throttle import (
    Counter,
    Throttle,
    counter_of_account,
    counters_of_address,
    for_workers,
)

NOW = 1_800_000_000_000


def fail(throttle: Throttle, *counters: Counter, now: int = NOW) -> bool:
    """Make a wrong attempt; return whether it was checked."""
    attempt = throttle.attempt(now, *counters)
    try:
        attempt.__enter__()
    except TooManyAttempts:
        return False
    attempt.__exit__(WrongPassword, WrongPassword(), None)
    return True


def test_attempts_that_are_still_being_checked_count() -> None:
    throttle, counter = Throttle(), Counter("name a@b.example")
    attempts = [throttle.attempt(NOW, counter) for _ in range(11)]
    for attempt in attempts[:10]:
        attempt.__enter__()
    with pytest.raises(TooManyAttempts):
        attempts[10].__enter__()
    for attempt in attempts[:10]:
        attempt.__exit__(None, None, None)
    assert [fail(throttle, counter) for _ in range(11)] == [True] * 10 + [False]


@pytest.mark.parametrize("outcome", [None, Overloaded(), OSError(), KeyboardInterrupt()])
def test_what_is_no_wrong_guess_gives_its_attempt_back(outcome: BaseException | None) -> None:
    throttle, counter = Throttle(), Counter("name a@b.example")
    for _ in range(50):
        attempt = throttle.attempt(NOW, counter)
        attempt.__enter__()
        attempt.__exit__(type(outcome) if outcome else None, outcome, None)
    assert [fail(throttle, counter) for _ in range(11)] == [True] * 10 + [False]


def test_only_the_errors_named_are_wrong_guesses() -> None:
    throttle, counter = Throttle(), Counter("address 192.0.2.1")
    for _ in range(50):
        with pytest.raises(InvalidLink), throttle.attempt(NOW, counter, wrong=(WrongPassword,)):
            raise InvalidLink


def test_the_same_guess_in_parallel_counts_once_and_counts_when_one_was_wrong() -> None:
    throttle, counter = Throttle(), Counter("192.0.2.1 device")
    for n in range(10):
        attempts = [throttle.attempt(NOW, counter, guess=b"%d" % n) for _ in range(30)]
        for attempt in attempts:
            attempt.__enter__()
        attempts[0].__exit__(WrongPassword, WrongPassword(), None)
        for attempt in attempts[1:]:
            attempt.__exit__(None, None, None)
    assert not fail(throttle, counter)


def test_a_refused_attempt_counts_against_none_of_its_counters() -> None:
    throttle, full, other = Throttle(), Counter("name full"), Counter("address 192.0.2.1")
    for _ in range(20):
        fail(throttle, other, full)
    for _ in range(10):
        fail(throttle, full)
    assert not fail(throttle, other, full)
    assert len(throttle.tats) == 2
    fresh = Counter("address 192.0.2.2")
    assert not fail(throttle, fresh, full)
    assert fresh.name not in throttle.tats


def test_addresses_of_one_ipv6_network_count_together() -> None:
    throttle = Throttle()
    checked = [
        fail(throttle, *counters_of_address("address", f"2001:db8:1:2::{n:x}")) for n in range(25)
    ]
    assert checked == [True] * 10 + [False] * 15


def test_networks_of_one_ipv6_site_count_together_at_four_times_the_bound() -> None:
    throttle = Throttle()
    checked = [
        fail(throttle, *counters_of_address("address", f"2001:db8:1:{n:x}::1")) for n in range(60)
    ]
    assert checked == [True] * 40 + [False] * 20
    assert fail(throttle, *counters_of_address("address", "2001:db8:2::1"))


def test_an_ipv4_address_in_ipv6_form_counts_as_itself() -> None:
    assert counters_of_address("link", "::ffff:192.0.2.1") == counters_of_address(
        "link", "192.0.2.1"
    )


def test_an_account_has_one_counter_in_every_case() -> None:
    assert counter_of_account(" Owner@Acme.example ") == counter_of_account("owner@acme.example")


@pytest.mark.parametrize(("workers", "burst"), [(1, 10), (2, 5), (4, 2), (64, 1)])
def test_workers_share_the_burst(workers: int, burst: int) -> None:
    throttle = for_workers(workers)
    checked = [fail(throttle, Counter("name a@b.example")) for _ in range(burst + 1)]
    assert checked == [True] * burst + [False]


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder: Path = tmp_path_factory.mktemp("throttle") / "data"
    with running(folder, behind_proxy=1) as server:
        server.owner().close()
        yield server


Guess = Callable[[httpx.Client, str, int], httpx.Response]


def at_api(client: httpx.Client, email: str, n: int) -> httpx.Response:
    return client.post("/v2/user-tokens", json={"email": email, "password": f"a wrong guess {n}"})


def at_dashboard(client: httpx.Client, email: str, n: int) -> httpx.Response:
    return client.post("/sign-in", data={"email": email, "password": f"a wrong guess {n}"})


def at_setup(client: httpx.Client, _email: str, n: int) -> httpx.Response:
    return client.post("/v2/setup", json={"token": f"{n:043}", "password": PASSWORD})


def at_setup_page(client: httpx.Client, _email: str, n: int) -> httpx.Response:
    return client.post(f"/setup/{n:043}", data={"password": PASSWORD})


def at_invitation(client: httpx.Client, _email: str, n: int) -> httpx.Response:
    return client.post("/v2/invitations/accept", json={"token": f"{n:043}", "password": PASSWORD})


def at_invitation_page(client: httpx.Client, _email: str, n: int) -> httpx.Response:
    return client.post(f"/invitations/{n:043}", data={"password": PASSWORD})


ENTRIES: list[Guess] = [
    at_api,
    at_dashboard,
    at_setup,
    at_setup_page,
    at_invitation,
    at_invitation_page,
]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.__name__)
def test_of_forty_guesses_at_once_ten_are_checked(proxied: Server, entry: Guess) -> None:
    address = f"198.51.100.{ENTRIES.index(entry)}"
    email = f"{entry.__name__}@acme.example"
    with (
        proxied.client("", **{"X-Forwarded-For": address}) as client,
        ThreadPoolExecutor(40) as pool,
    ):
        statuses = list(pool.map(lambda n: entry(client, email, n).status_code, range(40)))
    # The gate of password hashes may refuse some too, which gives their attempts back.
    assert set(statuses) <= {401, 429, 503}
    assert 0 < statuses.count(401) <= 10
    assert statuses.count(429)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.__name__)
def test_of_25_addresses_of_one_network_ten_are_checked(proxied: Server, entry: Guess) -> None:
    statuses = []
    for n in range(25):
        address = f"2001:db8:{ENTRIES.index(entry) + 1:x}::{n + 1:x}"
        with proxied.client("", **{"X-Forwarded-For": address}) as client:
            # Another account each time, so that only the address is counted twice.
            statuses.append(entry(client, f"{entry.__name__}{n}@acme.example", n).status_code)
    assert statuses == [401] * 10 + [429] * 15


def test_signing_in_often_is_never_slowed_down(proxied: Server) -> None:
    with proxied.client("", **{"X-Forwarded-For": "203.0.113.1"}) as client:
        for _ in range(12):
            answer = client.post("/v2/user-tokens", json={"email": OWNER, "password": PASSWORD})
            assert answer.status_code == 201, answer.text
