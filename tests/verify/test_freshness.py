"""Verdicts reflect every earlier commit, and a gap in the change feed empties the directory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import delete, select, update

from tests.support.server import Server
from wardkey.actions.core.runner import Runner
from wardkey.actions.keys import keys, revocations
from wardkey.db.schema import changes, feed
from wardkey.domain.keys import KeySpec
from wardkey.domain.permissions import KeyType
from wardkey.domain.principal import Principal
from wardkey.domain.secret import Environment
from wardkey.domain.verdict import Verdict, VerificationRequest
from wardkey.verify.usage import Usage
from wardkey.verify.verifier import Verifier


@pytest.fixture
def verifier(runner: Runner) -> Iterator[Verifier]:
    made = Verifier(runner.database, Usage(runner.database))
    yield made
    made.directory.close()


def issue(runner: Runner, by: Principal, name: str) -> keys.Issued:
    spec = KeySpec(name, KeyType.SECRET, Environment.LIVE)
    return runner.write(keys.issue, by, spec)


def test_the_next_verdict_reflects_every_change(
    runner: Runner, owner: Principal, verifier: Verifier
) -> None:
    def verdict() -> Verdict:
        return verifier.verify(VerificationRequest(made.secret.text)).verdict

    for turn in range(20):
        made = issue(runner, owner, f"live-turn-{turn}")
        assert verdict() is Verdict.VALID
        runner.write(keys.disable, owner, made.key.id)
        assert verdict() is Verdict.DISABLED
        runner.write(keys.enable, owner, made.key.id)
        assert verdict() is Verdict.VALID
        runner.write(revocations.revoke, owner, made.key.id, "unspecified")
        assert verdict() is Verdict.REVOKED


@pytest.mark.parametrize("gap", ["pruned", "epoch"])
def test_a_gap_or_another_epoch_empties_the_directory(
    runner: Runner, owner: Principal, verifier: Verifier, gap: str
) -> None:
    made = issue(runner, owner, "live-billing-export")
    assert verifier.verify(VerificationRequest(made.secret.text)).verdict is Verdict.VALID
    with runner.database.write() as tx:
        revocations.revoke(tx, owner, made.key.id, "unspecified")
        tx.connection.execute(delete(changes))
        if gap == "epoch":
            tx.connection.execute(update(feed).values(epoch="another", revision=1))
    runner.confirm(*(("another", 1) if gap == "epoch" else (tx.epoch, tx.revision)))
    assert verifier.verify(VerificationRequest(made.secret.text)).verdict is Verdict.REVOKED


def test_revisions_have_no_gap_under_eight_writers(runner: Runner, owner: Principal) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: issue(runner, owner, f"live-writer-{n}"), range(40)))
    with runner.database.read() as tx:
        seen = tx.connection.scalars(select(changes.c.revision).distinct()).all()
        last = tx.connection.scalar(select(feed.c.revision))
    assert sorted(seen) == list(range(1, (last or 0) + 1))


def test_a_transaction_that_recorded_nothing_is_rolled_back(runner: Runner) -> None:
    with runner.database.write() as tx:
        tx.connection.execute(update(feed).values(epoch="unrecorded"))
    with runner.database.read() as tx:
        assert tx.connection.scalar(select(feed.c.epoch)) != "unrecorded"


def test_no_other_server_accepts_a_key_once_its_revocation_returned(
    start: Callable[..., Server], storage_url: str
) -> None:
    here = start(database_url=storage_url)
    there = start(here.data_dir, database_url=storage_url)
    assert here.process is not None
    assert there.process is not None
    assert here.process.pid != there.process.pid
    with here.client(here.first_key) as changing, there.client(here.first_key) as asking:
        for turn in range(120):
            made = changing.post("/v2/keys", json={"name": f"live-{turn}", "type": "secret"})
            assert made.status_code == 201, made.text
            request = {"key": made.json()["secret"]}
            assert asking.post("/v2/keys/verify", json=request).json()["code"] == "valid"
            receipt = changing.post(f"/v2/keys/{made.json()['key']['id']}/revoke")
            answer = asking.post("/v2/keys/verify", json=request).json()
            assert receipt.status_code == 200, receipt.text
            assert answer["code"] == "revoked", turn
            assert answer["as_of"] >= receipt.json()["revoked_at"]
