"""No request that begins after a narrowing call returned is accepted, whatever happens."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.support.deployments import Deployment, Key
from tests.support.postgres import Postgres
from tests.support.proxy import Proxy
from tests.support.server import Server, running, wait_until

PICK = st.integers(0, 999)
WHY = st.sampled_from(["disabled", "narrowed"])
# A restore stops everything, so it runs once in a long run, after many other steps.
BEFORE_RESTORE = 15


class Promise(RuleBasedStateMachine):
    """Calls and faults in any order; the askers report accepted secrets."""

    def __init__(self, deployment: Deployment) -> None:
        super().__init__()
        self.deployment = deployment
        # Hypothesis needs the same rules enabled when it repeats a run, so preconditions read
        # these and never the state of the deployment.
        self.steps = 0
        self.disturbed = False
        self.backed_up_at: int | None = None
        if len(deployment.keys) < 3:
            for _ in range(3):
                deployment.issue()

    def key(self, pick: int) -> Key:
        """Pick one of the newest keys that are not revoked; at least one always exists."""
        while not (usable := [key for key in self.deployment.keys[-12:] if key.living]):
            self.deployment.issue()
        return usable[pick % len(usable)]

    @rule()
    def issue(self) -> None:
        self.deployment.note("issue")
        self.deployment.issue()

    @rule(pick=PICK)
    def edit(self, pick: int) -> None:
        self.deployment.note("edit")
        self.deployment.describe(self.key(pick))

    @rule(pick=PICK, grace=st.sampled_from(["now", "1h"]))
    def rotate(self, pick: int, grace: str) -> None:
        self.deployment.note(f"rotate {grace}")
        self.deployment.rotate(self.key(pick), grace)

    @rule(pick=PICK)
    def revoke(self, pick: int) -> None:
        self.deployment.note("revoke")
        self.deployment.revoke(self.key(pick))

    @rule(pick=PICK, which=PICK)
    def revoke_one_secret(self, pick: int, which: int) -> None:
        self.deployment.note("revoke_one_secret")
        self.deployment.revoke_secret(self.key(pick), which)

    @rule(pick=PICK, why=WHY)
    def hold(self, pick: int, why: str) -> None:
        self.deployment.note(f"hold {why}")
        self.deployment.hold(self.key(pick), why)

    @rule(pick=PICK, why=WHY)
    def let(self, pick: int, why: str) -> None:
        self.deployment.note(f"let {why}")
        self.deployment.let(self.key(pick), why)

    @rule()
    def suspend(self) -> None:
        self.deployment.note("suspend")
        self.deployment.suspend()

    @rule(pick=PICK)
    def pause(self, pick: int) -> None:
        self.disturbed = True
        self.deployment.note(f"pause {pick}")
        self.deployment.pause(pick)

    @rule(pick=PICK)
    def kill(self, pick: int) -> None:
        self.disturbed = True
        self.deployment.note(f"kill {pick}")
        self.deployment.kill(pick)

    @precondition(lambda self: self.disturbed)
    @rule()
    def go_on(self) -> None:
        self.disturbed = False
        self.deployment.note("go_on")
        self.deployment.go_on()

    @precondition(lambda self: self.backed_up_at is None)
    @rule()
    def back_up(self) -> None:
        self.backed_up_at = self.steps
        self.deployment.note("back_up")
        self.deployment.back_up()

    @precondition(lambda self: self.since_backup > BEFORE_RESTORE)
    @rule()
    def restore(self) -> None:
        self.backed_up_at = self.steps
        self.deployment.note("restore")
        self.deployment.restore()

    @property
    def since_backup(self) -> int:
        """Return how many steps ago the backup was taken or restored; 0 without a backup."""
        return 0 if self.backed_up_at is None else self.steps - self.backed_up_at

    @invariant()
    def nothing_dead_is_accepted(self) -> None:
        self.steps += 1
        accepted = self.deployment.accepted_dead()
        assert not accepted, (accepted, self.deployment.history[-60:])

    def teardown(self) -> None:
        self.deployment.go_on()


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


def test_the_askers_see_accepted_and_refused_secrets(deployment: Deployment) -> None:
    """Without this, the tests below could pass because no request was sent."""
    deployment.issue()

    def seen(verdict: str) -> int:
        return sum(asker.verdicts[verdict] for asker in deployment.askers)

    wait_until(lambda: seen("valid") > 50)
    deployment.revoke(deployment.keys[-1])
    wait_until(lambda: seen("revoked") > 20)

    def asked_while_paused(turns: Iterator[int] = itertools.count()) -> bool:  # noqa: B008
        deployment.issue()
        before = seen("valid")
        wait_until(lambda: seen("valid") > before + 60)
        deployment.pause(next(turns))
        deployment.revoke(deployment.keys[-1])
        time.sleep(0.6)
        deployment.go_on()
        return sum(asker.judged_dead_late for asker in deployment.askers) > 20

    # Requests sent to a paused process are answered once it resumes.
    wait_until(asked_while_paused, 30)
    assert not deployment.accepted_dead()


# Hypothesis begins with the simplest steps, which here are issues only: one run proves nothing.
@pytest.mark.parametrize(
    ("runs", "steps"),
    [(4, 12), pytest.param(50, 50, marks=[pytest.mark.soak, pytest.mark.timeout(7200)])],
)
def test_no_verifier_accepts_a_secret_after_the_call_that_ended_it(
    deployment: Deployment, request: pytest.FixtureRequest, runs: int, steps: int
) -> None:
    chosen = request.config.getoption("--hypothesis-seed")
    number = random.randrange(2**32) if chosen in {None, "random"} else int(chosen)
    print(f"--hypothesis-seed={number} repeats these steps")  # noqa: T201 - shown on failure

    @seed(number)
    class OfDeployment(Promise):
        def __init__(self) -> None:
            super().__init__(deployment)

    # The deployment is shared between runs, so a shorter run proves nothing.
    bounds = settings(
        max_examples=runs,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    try:
        run_state_machine_as_test(OfDeployment, settings=bounds)
    finally:
        # Shown with -s.
        judged = sum(asker.judged_dead for asker in deployment.askers)
        late = sum(asker.judged_dead_late for asker in deployment.askers)
        print(sum(deployment.done.values()), dict(deployment.done))  # noqa: T201
        print(f"{judged} answers on dead secrets, {late} of them late")  # noqa: T201
    assert not deployment.accepted_dead()


def node_of(start: Callable[..., Server], first: Server, folder: Path, url: str) -> Server:
    """Start another node of a deployment on PostgreSQL, with the same master key."""
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


@pytest.fixture(scope="module")
def pair(
    postgres: Postgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Server, Server]]:
    """Run two nodes on PostgreSQL."""
    folder, url = tmp_path_factory.mktemp("pair"), postgres.create_database()
    with running(folder / "here", database_url=url) as here:
        (folder / "there").mkdir(mode=0o700)
        shutil.copy(here.data_dir / "master.key", folder / "there" / "master.key")
        with running(folder / "there", database_url=url) as there:
            yield here, there


def test_a_node_paused_beyond_its_lease_accepts_no_revoked_secret(
    pair: tuple[Server, Server],
) -> None:
    here, there = pair
    first_id, first = issue(here, "live-paused")
    second_id, second = issue(here, "live-paused-too")
    assert [verdict(there, text) for text in (first, second)] == ["valid", "valid"]
    assert there.process is not None
    os.kill(there.process.pid, signal.SIGSTOP)
    receipt = revoke(here, first_id)
    # The revocation waited until its lease expired, so it cannot accept the key on resuming.
    assert receipt["reach"] == "everywhere"
    assert receipt["took_ms"] > 500
    assert revoke(here, second_id)["took_ms"] < 1000
    os.kill(there.process.pid, signal.SIGCONT)
    assert [verdict(there, text) for text in (first, second)] == ["revoked", "revoked"]


@pytest.mark.parametrize(
    "edit",
    [
        "DELETE FROM usage.verifiers",
        "UPDATE usage.verifiers SET lease_seq = 1, applied_revision = 1000000",
        "UPDATE usage.verifiers SET released_at = 1",
    ],
)
def test_a_lease_row_edited_by_hand_is_rewritten(pair: tuple[Server, Server], edit: str) -> None:
    here, there = pair
    with psycopg.connect(str(here.settings["database_url"]), autocommit=True) as connection:
        connection.execute(edit)

        def whole() -> bool:
            rows = connection.execute(
                "SELECT count(*) FROM usage.verifiers WHERE released_at IS NULL "
                "AND applied_revision = (SELECT revision FROM feed)"
            ).fetchone()
            return rows is not None and rows[0] == 2

        wait_until(whole, 10)
    key_id, text = issue(here, f"live-edited-{time.monotonic_ns()}")
    assert verdict(there, text) == "valid"
    assert revoke(here, key_id)["verifiers"] == 2
    assert verdict(there, text) == "revoked"


@pytest.mark.parametrize("storage_url", ["postgresql"], indirect=True)
def test_a_node_that_registers_during_revocations_accepts_no_revoked_secret(
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
def test_a_partitioned_node_fails_closed_or_reports_its_staleness(
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
        assert [verdict(there, secret) for secret in (text, kept)] == ["valid", "valid"]
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
            assert {verdict(there, secret) for secret in (text, kept)} == {"verifier_unavailable"}
            # No request hangs while the network is down.
            assert time.monotonic() - began < 5
            with there.client() as client:
                assert client.get("/healthz").status_code == 200
        proxy.reconnect()
        wait_until(lambda: verdict(there, kept) == "valid", 20)
        wait_until(lambda: verdict(there, text) == "revoked", 20 if max_staleness else 0.5)
    finally:
        proxy.close()
