"""Walks along an audit chain return it as of one moment, and hold no connection between pages."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any, cast

import pytest
from sqlalchemy import Table, delete, insert, select, update
from sqlalchemy.pool import QueuePool

from wardkey.actions.accounts import members
from wardkey.actions.core.audit import PAGE, AuditQuery, Target, export_head, record
from wardkey.actions.core.audit_walks import export_events, verify_chain
from wardkey.actions.core.runner import Runner
from wardkey.db.engine import Transaction
from wardkey.db.schema import audit_events, audit_heads
from wardkey.domain.errors import NotPermitted, OrganizationNotFound, Overloaded
from wardkey.domain.permissions import Role
from wardkey.domain.principal import Principal, PrincipalKind

FAR = 2**40


def note(tx: Transaction, by: Principal, count: int, action: str = "test.noted") -> None:
    for number in range(count):
        record(tx, by, action, Target("test", str(number)))


@pytest.fixture
def long(runner: Runner, owner: Principal) -> int:
    """Make the organization's chain longer than two pages; return its length."""
    runner.write(note, owner, 2 * PAGE)
    return 2 * PAGE + 1


def numbers(pages: list[list[Any]]) -> list[int]:
    return [event.seq for page in pages for event in page]


def edit(runner: Runner, statement: Any) -> None:  # noqa: ANN401 - any change
    with runner.database.writer.begin() as connection:
        connection.execute(statement)


def at(table: Table, owner: Principal, seq: int) -> Any:  # noqa: ANN401 - SQLAlchemy's condition
    return (table.c.org_id == owner.org_id) & (table.c.seq == seq)


def test_an_export_has_every_event_up_to_its_start_and_no_later_one(
    runner: Runner, owner: Principal, long: int
) -> None:
    walk = export_events(runner.database, owner, AuditQuery())
    pages = [next(walk)]
    runner.write(note, owner, 10)
    pages += walk
    assert numbers(pages) == list(range(1, long + 1))
    assert max(map(len, pages)) <= PAGE
    assert numbers(list(export_events(runner.database, owner, AuditQuery())))[-1] == long + 10


@pytest.mark.usefixtures("long")
def test_an_export_ends_when_its_member_is_removed(runner: Runner, owner: Principal) -> None:
    _, link = runner.write(members.invite, owner, "ada@acme.example", Role.ADMIN)
    stranger = Principal(PrincipalKind.USER, "", "")
    joined = runner.write(members.accept, stranger, link, "a hash")
    admin = replace(owner, id=joined.user_id, label=joined.email, role=Role.ADMIN)
    walk = export_events(runner.database, admin, AuditQuery())
    assert len(next(walk)) == PAGE
    runner.write(members.remove, owner, joined.user_id)
    with pytest.raises(OrganizationNotFound):
        next(walk)


def test_no_connection_is_held_between_pages_or_by_an_abandoned_walk(
    runner: Runner, owner: Principal, long: int
) -> None:
    pool = cast("QueuePool", runner.database.reader.pool)
    # PostgreSQL has one pool, of which the deployment's own lock holds a connection.
    idle = pool.checkedout()
    # More than there are connections.
    walks = [export_events(runner.database, owner, AuditQuery()) for _ in range(40)]
    for walk in walks:
        assert len(next(walk)) == PAGE
        assert pool.checkedout() == idle
    runner.write(note, owner, 1)
    assert long == sum(map(len, walks[0])) + PAGE


def test_an_export_finds_rare_matching_events_and_skips_missing_numbers(
    runner: Runner, owner: Principal, long: int
) -> None:
    runner.write(note, owner, 1, "test.rare")
    runner.write(note, owner, PAGE)
    rare = AuditQuery(action="test.rare")
    assert numbers(list(export_events(runner.database, owner, rare))) == [long + 1]
    moved = update(audit_events).where(at(audit_events, owner, 5)).values(seq=FAR)
    edit(runner, moved)
    walk = export_events(runner.database, owner, AuditQuery())
    for before, after in pairwise(numbers(list(walk))):
        assert before < after
    assert numbers(list(export_events(runner.database, owner, AuditQuery())))[-1] == FAR
    assert numbers(list(export_events(runner.database, owner, rare))) == [long + 1]


def test_a_growing_chain_is_verified_up_to_its_end_at_the_start(
    runner: Runner, owner: Principal, long: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = runner.database.read
    pages = []

    def read_and_note(*_: object) -> Any:  # noqa: ANN401 - the transaction
        pages.append(1)
        runner.write(note, owner, 1)
        return read()

    monkeypatch.setattr(type(runner.database), "read", read_and_note)
    count, breaks = verify_chain(runner.database, owner, owner.org_id)
    assert (count, breaks) == (long + 1, [])
    assert len(pages) == 4


def test_edited_deleted_added_and_truncated_events_are_found_on_every_page(
    runner: Runner, owner: Principal, long: int
) -> None:
    database, org_id = runner.database, owner.org_id
    head = runner.read(export_head, owner, org_id)
    edit(runner, update(audit_events).where(at(audit_events, owner, 3)).values(action="edited"))
    edit(runner, delete(audit_events).where(at(audit_events, owner, PAGE)))
    edit(runner, delete(audit_events).where(at(audit_events, owner, PAGE + 1)))
    with database.read() as tx:
        last = tx.connection.execute(select(audit_events).where(at(audit_events, owner, long)))
        forged = dict(last.one()._mapping) | {"seq": long + 1}
    edit(runner, insert(audit_events).values(forged))
    count, breaks = verify_chain(database, owner, org_id, head)
    assert count == long
    assert [item.seq for item in breaks] == [3, PAGE + 2, long + 1, long + 1]
    edit(runner, delete(audit_events).where(audit_events.c.seq > 4))
    edit(runner, update(audit_heads).where(audit_heads.c.org_id == org_id).values(seq=4))
    assert [item.seq for item in verify_chain(database, owner, org_id, head)[1]] == [3, 4, long]
    edit(runner, delete(audit_events).where(audit_events.c.org_id == org_id))
    edit(runner, delete(audit_heads).where(audit_heads.c.org_id == org_id))
    assert verify_chain(database, owner, org_id) == (0, [])


def test_verification_stops_at_its_deadline_and_needs_permission_to_read_the_audit(
    runner: Runner, owner: Principal, long: int
) -> None:
    assert verify_chain(runner.database, owner, owner.org_id, within_s=60)[0] == long
    with pytest.raises(Overloaded):
        verify_chain(runner.database, owner, owner.org_id, within_s=-1)
    unprivileged = Principal(owner.kind, owner.id, owner.label, owner.org_id)
    with pytest.raises(NotPermitted):
        verify_chain(runner.database, unprivileged, owner.org_id)
    with pytest.raises(NotPermitted):
        list(export_events(runner.database, unprivileged, AuditQuery()))
