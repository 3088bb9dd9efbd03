"""No request that begins after a narrowing call returned is accepted, whatever happens."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2 as httpx
import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.postgres import Postgres
from tests.promise import Asker, Watched
from tests.proxy import Proxy
from tests.server import Server, wait_until

ACTIONS = ("issue", "rotate", "revoke", "revoke secret", "disable", "enable", "narrow")
FAULTS = ("pause", "kill")


@dataclass
class Key:
    """A key with its secrets in the order in which they were made."""

    id: str
    kids: list[str]
    texts: list[str]
    revoked: bool = False


class Deployment:
    """Three verifiers: workers of one server on SQLite, nodes of their own on PostgreSQL."""

    def __init__(self, folder: Path, url: str) -> None:
        self.nodes = [Server(folder / "node0", database_url=url, workers=1 if url else 3)]
        self.nodes[0].start()
        for number in (1, 2) if url else ():
            data = folder / f"node{number}"
            data.mkdir(mode=0o700)
            shutil.copy(folder / "node0" / "master.key", data / "master.key")
            node = Server(data, database_url=url, workers=1)
            node.start()
            self.nodes.append(node)
        self.watched = Watched()
        self.askers: list[Asker] = []
        self.keys: list[Key] = []
        self.paused: list[int] = []
        self.count = 0
        self.first_key = self.nodes[0].first_key
        for seed in range(6):
            asker = Asker(self.nodes[seed % len(self.nodes)].url, self.watched, seed)
            asker.start()
            self.askers.append(asker)

    def call(self, method: str, path: str, body: object = None) -> httpx.Response:
        """Call the first node, which is never paused or killed itself."""
        with httpx.Client(
            base_url=self.nodes[0].url,
            headers={"Authorization": f"Bearer {self.first_key}"},
            timeout=30,
        ) as client:
            return client.request(method, path, json=body)

    def others(self) -> list[int]:
        """Return the processes that may be paused or killed."""
        if len(self.nodes) > 1:
            return [node.process.pid for node in self.nodes[1:] if node.process is not None]
        return self.nodes[0].workers()

    def resume(self) -> None:
        """Let what is paused go on."""
        for pid in self.paused:
            os.kill(pid, signal.SIGCONT)
        self.paused.clear()

    def accepted_dead(self) -> list[str]:
        return [told for asker in self.askers for told in asker.accepted_dead]

    def close(self) -> None:
        self.resume()
        for asker in self.askers:
            asker.stopped.set()
        for node in self.nodes:
            node.kill()
        for asker in self.askers:
            asker.join(30)

    # --- steps ---

    def step(self, name: str, pick: int) -> None:
        """Do one thing, and note what it bound when its call returned well."""
        live = [key for key in self.keys if not key.revoked]
        if name == "issue" or not live:
            self.count += 1
            wanted = {"name": f"live-promise-{self.count}", "type": "secret"}
            made = self.call("POST", "/v2/keys", wanted)
            if made.status_code == 201:
                told = made.json()
                self.keys.append(Key(told["key"]["id"], [told["kid"]], [told["secret"]]))
                self.watched.texts.append(told["secret"])
        elif name == "suspend":
            self.suspend()
        elif name == "rotate":
            self.rotate(live[pick % len(live)], ("now", "1h")[pick % 2])
        elif name == "enable":
            key = live[pick % len(live)]
            self.watched.free(*key.texts)
            self.call("POST", f"/v2/keys/{key.id}/enable")
        else:
            self.end(name, live[pick % len(live)])

    def suspend(self) -> None:
        """Stop the organization from the command line, and let it go on."""
        assert self.nodes[0].cli("org", "suspend", "acme").returncode == 0
        self.watched.bind(*self.watched.texts)
        ended = [key.texts for key in self.keys if not key.revoked]
        self.watched.free(*(text for texts in ended for text in texts))
        assert self.nodes[0].cli("org", "resume", "acme").returncode == 0

    def rotate(self, key: Key, grace: str) -> None:
        """Give a key another secret."""
        made = self.call("POST", f"/v2/keys/{key.id}/rotate", {"grace": grace})
        if made.status_code == 200:
            if grace == "now":
                self.watched.bind(*key.texts)
            key.texts.append(made.json()["secret"])
            key.kids.append(made.json()["kid"])
            self.watched.texts.append(made.json()["secret"])

    def end(self, name: str, key: Key) -> None:
        """Narrow what a key may do to nothing, in one of four ways."""
        path = f"/v2/keys/{key.id}"
        elsewhere = {"allowed_addresses": ["192.0.2.1"]}
        done = {
            "revoke": ("POST", f"{path}/revoke", None),
            "revoke secret": ("POST", f"{path}/secrets/{key.kids[0]}/revoke", None),
            "disable": ("POST", f"{path}/disable", None),
            "narrow": ("PATCH", path, elsewhere),
        }
        if self.call(*done[name]).status_code == 200:
            self.watched.bind(*(key.texts[:1] if name == "revoke secret" else key.texts))
            key.revoked = key.revoked or name == "revoke"

    def fault(self, name: str, pick: int) -> None:
        self.resume()
        pids = self.others()
        pid = pids[pick % len(pids)]
        if len(self.nodes) == 1 and name == "pause":
            # A paused worker keeps its connections, and with them requests of these steps.
            return
        if name == "pause":
            os.kill(pid, signal.SIGSTOP)
            self.paused.append(pid)
        elif len(self.nodes) > 1:
            node = next(n for n in self.nodes if n.process is not None and n.process.pid == pid)
            node.kill()
            node.settings["listen"] = node.url.removeprefix("http://")
            node.start()
        else:
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: len(self.others()) == 3 and pid not in self.others(), 30)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def deployment(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    url = ""
    if request.param == "postgresql":
        postgres: Postgres = request.getfixturevalue("postgres")
        url = postgres.create_database()
    made = Deployment(tmp_path_factory.mktemp("promise"), url)
    yield made
    made.close()


STEPS = st.lists(
    st.tuples(st.sampled_from(ACTIONS * 3 + FAULTS + ("suspend",)), st.integers(0, 99)),
    min_size=20,
    max_size=20,
)


def live_through(deployment: Deployment, steps: list[tuple[str, int]]) -> None:
    for name, pick in steps:
        if name in FAULTS:
            deployment.fault(name, pick)
        else:
            deployment.step(name, pick)
        assert not deployment.accepted_dead()
    deployment.resume()


@given(steps=STEPS)
@settings(
    max_examples=1,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    # The deployment lives on between examples, so that smaller ones prove nothing.
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    print_blob=True,
)
def test_nothing_accepts_what_a_call_ended(
    deployment: Deployment, steps: list[tuple[str, int]]
) -> None:
    live_through(deployment, steps)


@pytest.mark.soak
@pytest.mark.timeout(7200)
@given(steps=STEPS)
@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    # The deployment lives on between examples, so that smaller ones prove nothing.
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    print_blob=True,
)
def test_nothing_accepts_what_a_call_ended_in_thousands_of_steps(
    deployment: Deployment, steps: list[tuple[str, int]]
) -> None:
    live_through(deployment, steps)


def test_the_askers_saw_both_sides(deployment: Deployment) -> None:
    """Without this the tests above could hold because nobody asked."""
    deployment.resume()
    deployment.step("issue", 0)

    def seen(verdict: str) -> int:
        return sum(asker.verdicts.get(verdict, 0) for asker in deployment.askers)

    wait_until(lambda: seen("valid") > 50)
    before = seen("revoked")
    deployment.step("revoke", 0)
    wait_until(lambda: seen("revoked") > before + 20)
    assert not deployment.accepted_dead()


def node_of(start: Callable[..., Server], first: Server, folder: Path, url: str) -> Server:
    """Start another node of a deployment on PostgreSQL: it has the same master key."""
    folder.mkdir(mode=0o700)
    shutil.copy(first.data_dir / "master.key", folder / "master.key")
    return start(folder, database_url=url)


def verdict(server: Server, text: str) -> str:
    with server.client(text) as client:
        return client.get("/v2/auth").headers["wardkey-verdict"]


def issue(server: Server, name: str) -> tuple[str, str]:
    """Return the id and the secret of a new key."""
    with server.client(server.first_key) as client:
        made = client.post("/v2/keys", json={"name": name, "type": "secret"}).json()
    return made["key"]["id"], made["secret"]


def revoke(server: Server, key_id: str) -> dict[str, Any]:
    """Revoke a key; return its receipt."""
    with server.client(server.first_key) as client:
        done = client.post(f"/v2/keys/{key_id}/revoke")
    assert done.status_code == 200, done.text
    receipt: dict[str, Any] = done.json()
    return receipt


@pytest.mark.parametrize("storage_url", ["postgresql"], indirect=True)
def test_a_node_that_was_paused_beyond_its_lease_accepts_nothing_old(
    start: Callable[..., Server], storage_url: str, tmp_path: Path
) -> None:
    here = start(database_url=storage_url)
    there = node_of(start, here, tmp_path / "there", storage_url)
    first_id, first = issue(here, "live-paused")
    second_id, second = issue(here, "live-paused-too")
    assert [verdict(there, text) for text in (first, second)] == ["valid", "valid"]
    assert there.process is not None
    os.kill(there.process.pid, signal.SIGSTOP)
    receipt = revoke(here, first_id)
    # Its lease was waited out, so that nothing can accept the key when it goes on.
    assert receipt["reach"] == "everywhere"
    assert receipt["took_ms"] > 500
    assert revoke(here, second_id)["took_ms"] < 1000
    os.kill(there.process.pid, signal.SIGCONT)
    assert [verdict(there, text) for text in (first, second)] == ["revoked", "revoked"]


@pytest.mark.parametrize("storage_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize(
    "edit",
    [
        "DELETE FROM usage.verifiers",
        "UPDATE usage.verifiers SET lease_seq = 1, applied_revision = 1000000",
        "UPDATE usage.verifiers SET released_at = 1",
    ],
)
def test_a_lease_row_edited_by_hand_is_written_anew(
    start: Callable[..., Server], storage_url: str, tmp_path: Path, edit: str
) -> None:
    here = start(database_url=storage_url)
    there = node_of(start, here, tmp_path / "there", storage_url)
    with psycopg.connect(storage_url, autocommit=True) as connection:
        connection.execute(edit)

        def whole() -> bool:
            rows = connection.execute(
                "SELECT count(*) FROM usage.verifiers WHERE released_at IS NULL "
                "AND applied_revision = (SELECT revision FROM feed)"
            ).fetchone()
            return rows is not None and rows[0] == 2

        wait_until(whole, 10)
    key_id, text = issue(here, "live-edited")
    assert verdict(there, text) == "valid"
    assert revoke(here, key_id)["verifiers"] == 2
    assert verdict(there, text) == "revoked"


@pytest.mark.parametrize("storage_url", ["postgresql"], indirect=True)
def test_a_node_that_registers_among_revocations_accepts_nothing_old(
    start: Callable[..., Server], storage_url: str, tmp_path: Path
) -> None:
    here = start(database_url=storage_url)
    done: list[str] = []
    stopped = threading.Event()

    def revoke_on() -> None:
        number = 0
        while not stopped.is_set():
            number += 1
            key_id, text = issue(here, f"live-storm-{number}")
            revoke(here, key_id)
            done.append(text)

    storm = threading.Thread(target=revoke_on)
    storm.start()
    try:
        there = node_of(start, here, tmp_path / "there", storage_url)
        for _ in range(50):
            assert verdict(there, done[-1]) == "revoked"
    finally:
        stopped.set()
        storm.join()


@pytest.mark.parametrize("storage_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("max_staleness", [0, 20])
def test_a_node_that_is_cut_off_fails_closed_or_says_how_stale_it_is(
    start: Callable[..., Server], storage_url: str, tmp_path: Path, max_staleness: int
) -> None:
    here = start(database_url=storage_url)
    parts = urlsplit(storage_url)
    proxy = Proxy(parts.port or 5432)
    try:
        login = f"{parts.username}:{parts.password}"
        through = f"postgresql://{login}@127.0.0.1:{proxy.port}{parts.path}"
        folder = tmp_path / "there"
        folder.mkdir(mode=0o700)
        shutil.copy(here.data_dir / "master.key", folder / "master.key")
        there = start(folder, database_url=through, max_staleness=max_staleness)
        key_id, text = issue(here, "live-cut-off")
        _, kept = issue(here, "live-kept")
        assert [verdict(there, one) for one in (text, kept)] == ["valid", "valid"]
        proxy.cut()
        receipt = revoke(here, key_id)
        if max_staleness:
            assert (receipt["reach"], receipt["staleness_s"]) == ("bounded", max_staleness)
            assert receipt["late_verifiers"] == 1
            with there.client(kept) as client:
                answer = client.post("/v2/keys/verify", json={"key": kept})
            assert answer.json()["stale_s"] > 0
        else:
            assert receipt["reach"] == "everywhere"
            began = time.monotonic()
            assert {verdict(there, one) for one in (text, kept)} == {"verifier_unavailable"}
            # Nobody hangs on a network that is gone.
            assert time.monotonic() - began < 5
            with there.client() as client:
                assert client.get("/healthz").status_code == 200
        proxy.mend()
        wait_until(lambda: verdict(there, kept) == "valid", 20)
        wait_until(lambda: verdict(there, text) == "revoked", 20 if max_staleness else 0.5)
    finally:
        proxy.close()
