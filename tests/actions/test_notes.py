"""Aggregated events reach the audit despite failed writes and odd input from callers."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import pytest
from sqlalchemy import event, select

from wardkey.actions.core.runner import Runner
from wardkey.db.schema import audit_events
from wardkey.domain.errors import StorageFull
from wardkey.domain.principal import Principal, PrincipalKind
from wardkey.domain.times import MINUTE_MS

BY = Principal(PrincipalKind.KEY, "key_1", "live-billing-export", org_id="org_1")


def aggregated_events(runner: Runner) -> list[tuple[str, str, int]]:
    with runner.database.read() as tx:
        rows = tx.connection.execute(select(audit_events).order_by(audit_events.c.seq)).all()
    events = [(row.address, json.loads(row.details)) for row in rows]
    return [(address, details["what"], details["count"]) for address, details in events]


def test_aggregated_events_survive_a_failed_write(runner: Runner) -> None:
    full = [True]

    def fill(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if full[0] and statement.startswith("INSERT INTO audit_events"):
            raise OSError(28, "No space left on device")

    event.listen(runner.database.writer, "before_cursor_execute", fill)
    for _ in range(2):
        runner.aggregator.aggregate(BY, "attempt.refused", "issue: not_permitted")
        with pytest.raises(StorageFull):
            runner.write_aggregated_events()
    full[0] = False
    runner.write_aggregated_events()
    assert aggregated_events(runner) == [("", "issue: not_permitted", 2)]
    runner.write_aggregated_events()
    assert len(aggregated_events(runner)) == 1


def test_equal_events_within_a_minute_become_one(runner: Runner) -> None:
    start = runner.database.clock()
    for later, expected in ((0, 1), (1, 1), (MINUTE_MS - 1, 1), (MINUTE_MS, 2)):
        runner.database.clock = partial(int, start + later)
        runner.aggregator.aggregate(BY, "attempt.refused", "issue: not_permitted")
        runner.write_aggregated_events()
        assert len(aggregated_events(runner)) == expected
    assert [count for _, _, count in aggregated_events(runner)] == [1, 3]


def test_odd_text_from_a_caller_does_not_block_the_events_of_others(runner: Runner) -> None:
    odd = replace(BY, address="192.0.2.1\0" + "9" * 100, user_agent="\0" * 300)
    runner.aggregator.aggregate(odd, "key.exposed", "first")
    runner.aggregator.aggregate(BY, "key.exposed", "second")
    runner.write_aggregated_events()
    assert [what for _, what, _ in aggregated_events(runner)] == ["first", "second"]
    assert aggregated_events(runner)[0][0] == "192.0.2.1�" + "9" * 54
