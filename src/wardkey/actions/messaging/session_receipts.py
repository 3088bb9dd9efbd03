"""Session receipts: the number of live sessions a change ended, across all processes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from wardkey.db.engine import Database, Transaction
from wardkey.db.schema import ended_sessions, session_receipts
from wardkey.db.scoped import in_scope
from wardkey.domain.errors import ReceiptNotFound
from wardkey.domain.ids import new_id
from wardkey.domain.permissions import Permission
from wardkey.domain.principal import Principal
from wardkey.domain.receipts import ALL_SUBJECTS, EndedSessions, SessionImpact
from wardkey.domain.tenants import TenantScope
from wardkey.domain.times import HOUR_MS

# After this time, a login in flight has connected or failed, and has been checked.
PENDING_MS = 2_100
KEPT_MS = HOUR_MS


@dataclass(frozen=True, slots=True)
class SessionToClose:
    """A live session to end; `subject_id` is empty if no client or user has its client id."""

    server: str
    cid: int
    subject_id: str


def note_ended(
    database: Database,
    scope: TenantScope,
    epoch: str,
    revision: int,
    sessions: Iterable[SessionToClose],
) -> None:
    """Store the sessions being ended because of changes up to `revision`; each counts once."""
    with database.counting() as connection:
        now = database.clock()
        connection.execute(delete(ended_sessions).where(ended_sessions.c.at <= now - KEPT_MS))
        for session in sessions:
            same = (ended_sessions.c.server == session.server) & (
                ended_sessions.c.cid == session.cid
            )
            if connection.execute(select(ended_sessions.c.at).where(same)).first() is None:
                connection.execute(
                    insert(ended_sessions).values(
                        server=session.server,
                        cid=session.cid,
                        org_id=scope.org_id,
                        environment=scope.environment,
                        epoch=epoch,
                        revision=revision,
                        subject_id=session.subject_id,
                        at=now,
                    )
                )


def issue(database: Database, impact: SessionImpact, *, reached: bool) -> EndedSessions:
    """Create a change's receipt; `reached` means its sessions have been checked once."""
    now = database.clock()
    row = {
        "id": new_id("srcp", now),
        "org_id": impact.scope.org_id,
        "environment": impact.scope.environment,
        "epoch": impact.epoch,
        "revision": impact.revision,
        "subjects": json.dumps(sorted(impact.subjects)),
        "at": now,
        "reached": reached,
    }
    with database.counting() as connection:
        inserted = connection.execute(
            insert(session_receipts).returning(session_receipts), row
        ).one()
        return _receipt(connection, inserted)


def settle(database: Database, scope: TenantScope, epoch: str, revision: int) -> None:
    """Finalize the counts of changes up to `revision`; their logins in flight have been checked."""
    due = (
        session_receipts.c.ended.is_(None),
        session_receipts.c.epoch == epoch,
        session_receipts.c.revision <= revision,
        in_scope(session_receipts, scope),
    )
    with database.counting() as connection:
        for row in connection.execute(select(session_receipts).where(*due)).all():
            connection.execute(
                update(session_receipts)
                .where(session_receipts.c.id == row.id)
                .values(ended=_count(connection, row))
            )


def get(tx: Transaction, by: Principal, receipt_id: str) -> EndedSessions:
    """Return a session receipt by its id; raises `ReceiptNotFound`."""
    by.require(Permission.CLIENTS_READ)
    row = tx.connection.execute(
        select(session_receipts).where(
            session_receipts.c.id == receipt_id,
            in_scope(session_receipts, by.scope),
        )
    ).one_or_none()
    if row is None:
        raise ReceiptNotFound
    return _receipt(tx.connection, row)


def of_revision(tx: Transaction, by: Principal, epoch: str, revision: int) -> EndedSessions:
    """Return how many sessions the change of a revision ended; 0 if it affected none."""
    by.require(Permission.KEYS_READ)
    row = tx.connection.execute(
        select(session_receipts).where(
            session_receipts.c.epoch == epoch,
            session_receipts.c.revision == revision,
            in_scope(session_receipts, by.scope),
        )
    ).first()
    return EndedSessions() if row is None else _receipt(tx.connection, row)


def _receipt(connection: Connection, row: Row[Any]) -> EndedSessions:
    if row.ended is not None:
        return EndedSessions(row.id, row.ended)
    if not row.reached:
        return EndedSessions(row.id, None, pending=True)
    return EndedSessions(
        row.id, _count(connection, row), pending=True, pending_until=row.at + PENDING_MS
    )


def _count(connection: Connection, row: Row[Any]) -> int:
    """Count the affected subjects' sessions that this change or a later one ended."""
    conditions = [
        ended_sessions.c.org_id == row.org_id,
        ended_sessions.c.environment == row.environment,
        ended_sessions.c.epoch == row.epoch,
        ended_sessions.c.revision >= row.revision,
    ]
    subjects = json.loads(row.subjects)
    if ALL_SUBJECTS not in subjects:
        conditions.append(ended_sessions.c.subject_id.in_(subjects))
    query = select(func.count()).select_from(ended_sessions).where(*conditions)
    return int(connection.execute(query).scalar_one())
