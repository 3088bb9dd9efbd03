"""Leases of killed verifiers: revocations wait for them once, until they expire."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import func, insert, select

from tests.support.server import wait_until
from wardkey.config import load_config
from wardkey.db.engine import Database
from wardkey.db.leases import CommitBarrier, VerifierIdentity, prune_dead
from wardkey.db.schema import verifiers
from wardkey.deployment import open_deployment
from wardkey.domain.receipts import Reach


@pytest.fixture
def database(postgres_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    settings = {"data_dir": tmp_path_factory.mktemp("data"), "database_url": postgres_url}
    with open_deployment(load_config({}, settings)) as runner:
        yield runner.database


def leave_behind(database: Database, *, max_staleness_ms: int = 0, seen_at: int = 0) -> None:
    """Write a lease that is never renewed."""
    me = VerifierIdentity.local_process(database.clock(), max_staleness_ms)
    with database.usage.begin() as connection:
        connection.execute(
            insert(verifiers).values(
                **me.values, started_at=0, seen_at=seen_at or database.clock(), lease_seq=1,
                epoch="", applied_revision=-1, metrics="",
            )
        )  # fmt: skip


def test_a_killed_verifier_is_waited_for_once(database: Database) -> None:
    leave_behind(database)
    confirm = CommitBarrier(database)
    first, second = confirm("e", 1), confirm("e", 2)
    assert first.took_ms > 2_000
    assert second.took_ms < 1_000
    assert (first.reach, second.reach) == (Reach.EVERYWHERE, Reach.EVERYWHERE)


def test_bounded_staleness_ends_once_a_killed_verifier_cannot_answer(
    database: Database,
) -> None:
    leave_behind(database, max_staleness_ms=1_000)
    confirm = CommitBarrier(database)
    receipt = confirm("e", 1)
    assert (receipt.reach, receipt.late, receipt.staleness_s) == (Reach.BOUNDED, 1, 1.0)
    wait_until(lambda: confirm("e", 1).reach is Reach.EVERYWHERE, 5)


def test_leases_silent_for_an_hour_are_deleted_unless_staleness_lasts(
    database: Database,
) -> None:
    now = database.clock()
    for silent_ms, max_staleness_ms in ((0, 0), (3_700_000, 0), (3_700_000, 3_600_000)):
        leave_behind(database, max_staleness_ms=max_staleness_ms, seen_at=now - silent_ms)
    prune_dead(database)
    with database.usage.connect() as connection:
        kept = connection.execute(
            select(func.count(), func.max(verifiers.c.max_staleness_ms))
        ).one()
    assert tuple(kept) == (2, 3_600_000)
