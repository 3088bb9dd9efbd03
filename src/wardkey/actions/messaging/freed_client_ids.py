"""Frees MQTT client ids, which others can take once the broker has removed their sessions."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, and_, bindparam, delete, func, or_, select, update

from wardkey.actions.grants.grants import SELECT_RETURNABLE
from wardkey.actions.messaging.client_ids import ConnectionId, Holder, IdClaim
from wardkey.db.engine import Database
from wardkey.db.schema import clients, grants, mqtt_ids
from wardkey.db.scoped import in_scope
from wardkey.domain.secret import Environment
from wardkey.domain.tenants import TenantScope
from wardkey.domain.times import DAY_MS, MINUTE_MS

# A holder keeps its client id for this long after its last use, even if another wants it.
KEPT_MS = 7 * DAY_MS
# After this long without a login, it is freed whether another wants it or not.
UNUSED_MS = 90 * DAY_MS
# Client ids of one client or user; the least recently used are freed first.
MAX_PER_HOLDER = 1_000
# How long a process can take to remove a session; its credential for that expires earlier.
LEASE_MS = 5_000
# After this time, a login in flight when its client id was freed has connected or failed, and the
# session enforcer has ended and counted it.
SETTLED_MS = 3_000
_BATCH_SIZE = 500
# The maximum age of the scan of live sessions by which client ids are freed.
_SCAN_AGE_MS = MINUTE_MS

# The holder can't return: a deleted client, or a user without a grant that can log in or be
# refreshed. A foreign broker's client ids stay held, because we can't remove its sessions.
_ORPHANED = and_(
    mqtt_ids.c.server != "",
    ~select(clients.c.id)
    .where(
        clients.c.id == mqtt_ids.c.subject_id,
        clients.c.org_id == mqtt_ids.c.org_id,
        clients.c.environment == mqtt_ids.c.environment,
    )
    .exists(),
    ~SELECT_RETURNABLE.where(
        grants.c.org_id == mqtt_ids.c.org_id,
        grants.c.environment == mqtt_ids.c.environment,
        grants.c.user_key == mqtt_ids.c.subject_id,
    ).exists(),
)


@dataclass(frozen=True, slots=True)
class FreedId:
    """A freed client id, and when to remove the session that the broker may still have."""

    scope: TenantScope
    mqtt_id: str
    due_at: int


def free_if_abandoned(database: Database, claim: IdClaim, holder: Holder) -> bool:
    """Free a client id if its holder is gone or hasn't used it for a week; return whether freed."""
    if holder.freed_at is not None:
        return True
    now = database.clock()
    if now - holder.seen_at < KEPT_MS:
        with database.read() as tx:
            abandoned = select(mqtt_ids.c.mqtt_id).where(
                in_scope(mqtt_ids, claim.scope), mqtt_ids.c.mqtt_id == claim.mqtt_id, _ORPHANED
            )
            if tx.connection.execute(abandoned, {"now": now}).first() is None:
                return False
    with database.counting() as connection:
        return bool(_free(connection, [(claim.scope, claim.mqtt_id, holder.seen_at)], now))


def free_orphaned(
    database: Database, scope: TenantScope | None = None, subjects: Collection[str] | None = None
) -> int:
    """Free the client ids whose holders can't return; return how many.

    `scope` and `subjects` limit this to a tenant scope and to some clients and users.
    """
    now = database.clock()
    query = select(
        mqtt_ids.c.org_id, mqtt_ids.c.environment, mqtt_ids.c.mqtt_id, mqtt_ids.c.seen_at
    ).where(mqtt_ids.c.freed_at.is_(None), _ORPHANED)
    if scope is not None:
        query = query.where(in_scope(mqtt_ids, scope))
    if subjects is not None and len(subjects) <= _BATCH_SIZE:
        query = query.where(mqtt_ids.c.subject_id.in_(subjects))
    with database.read() as tx:
        rows = [
            (TenantScope(row.org_id, Environment(row.environment)), row.mqtt_id, row.seen_at)
            for row in tx.connection.execute(query, {"now": now})
        ]
    count = 0
    for start in range(0, len(rows), _BATCH_SIZE):
        with database.counting() as connection:
            count += _free(connection, rows[start : start + _BATCH_SIZE], now)
    return count


def free_unused(database: Database) -> None:
    """Free client ids unused for 90 days, and the oldest ones of holders with too many."""
    now = database.clock()
    is_held = mqtt_ids.c.freed_at.is_(None)
    free = update(mqtt_ids).values(freed_at=now, leased_until=None)
    names = (mqtt_ids.c.org_id, mqtt_ids.c.environment, mqtt_ids.c.subject_id)
    with database.counting() as connection:
        connection.execute(free.where(is_held, mqtt_ids.c.seen_at < now - UNUSED_MS))
        over_limit = (
            select(*names).where(is_held).group_by(*names).having(func.count() > MAX_PER_HOLDER)
        )
        for row in connection.execute(over_limit).all():
            of_holder = and_(is_held, *(n == v for n, v in zip(names, row, strict=True)))
            seen = mqtt_ids.c.seen_at
            ordered = select(seen).where(of_holder).order_by(seen.desc())
            first_excess = ordered.offset(MAX_PER_HOLDER).limit(1)
            oldest = connection.execute(first_excess).scalar_one_or_none()
            if oldest is not None:
                # A client id used a moment ago may be connected.
                until = min(oldest, now - _SCAN_AGE_MS)
                connection.execute(free.where(of_holder, seen <= until))


def scopes_to_scan(database: Database) -> list[TenantScope]:
    """Return the tenant scopes where a client id with a live session might be freed."""
    names = (mqtt_ids.c.org_id, mqtt_ids.c.environment)
    is_held = mqtt_ids.c.freed_at.is_(None)
    old = select(*names).where(is_held, mqtt_ids.c.seen_at < database.clock() - KEPT_MS // 7)
    over_limit = (
        select(*names)
        .where(is_held)
        .group_by(*names, mqtt_ids.c.subject_id)
        .having(func.count() > MAX_PER_HOLDER)
    )
    with database.read() as tx:
        return [
            TenantScope(org, Environment(kind))
            for org, kind in tx.connection.execute(old.union(over_limit))
        ]


def mark_live(
    database: Database, scope: TenantScope, live: Iterable[tuple[str, ConnectionId]]
) -> None:
    """Record that these client ids are connected now, each with its connection."""
    now = database.clock()
    rows = [
        {"of_mqtt_id": mqtt_id, "of_server": server, "of_cid": cid}
        for mqtt_id, (server, cid) in sorted(live)
    ]
    if not rows:
        return
    with database.counting() as connection:
        connection.execute(
            update(mqtt_ids)
            .where(
                in_scope(mqtt_ids, scope),
                mqtt_ids.c.mqtt_id == bindparam("of_mqtt_id"),
                mqtt_ids.c.server == bindparam("of_server"),
                mqtt_ids.c.cid == bindparam("of_cid"),
                mqtt_ids.c.freed_at.is_(None),
            )
            .values(seen_at=now),
            rows,
        )


def force_free(database: Database, scope: TenantScope, mqtt_id: str) -> None:
    """Free a client id, even if its holder could return."""
    now = database.clock()
    with database.counting() as connection:
        connection.execute(
            update(mqtt_ids)
            .where(
                in_scope(mqtt_ids, scope),
                mqtt_ids.c.mqtt_id == mqtt_id,
                mqtt_ids.c.freed_at.is_(None),
            )
            .values(freed_at=now, leased_until=None)
        )


def list_freed(database: Database, limit: int) -> list[FreedId]:
    """Return freed client ids, oldest first.

    A session is due once logins in flight have settled and no other process is removing it.
    """
    statement = (
        select(mqtt_ids)
        .where(mqtt_ids.c.freed_at.is_not(None))
        .order_by(mqtt_ids.c.freed_at)
        .limit(limit)
    )
    with database.read() as tx:
        return [
            FreedId(
                TenantScope(row.org_id, Environment(row.environment)),
                row.mqtt_id,
                max(row.freed_at + SETTLED_MS, row.leased_until or 0),
            )
            for row in tx.connection.execute(statement)
        ]


def lease(database: Database, scope: TenantScope, mqtt_id: str) -> int | None:
    """Lease the removal of a freed client id's session; return the lease's end (epoch ms).

    Returns None if another process has it.
    """
    now = database.clock()
    with database.counting() as connection:
        leased = connection.execute(
            update(mqtt_ids)
            .where(
                in_scope(mqtt_ids, scope),
                mqtt_ids.c.mqtt_id == mqtt_id,
                mqtt_ids.c.freed_at.is_not(None),
                _unleased(now),
            )
            .values(leased_until=now + LEASE_MS)
        )
    return now + LEASE_MS if leased.rowcount else None


def end_lease(
    database: Database, scope: TenantScope, mqtt_id: str, until: int, *, forget: bool
) -> None:
    """Release a lease; `forget` deletes the row, because its session has been removed."""
    own_row = (
        in_scope(mqtt_ids, scope),
        mqtt_ids.c.mqtt_id == mqtt_id,
        mqtt_ids.c.freed_at.is_not(None),
        mqtt_ids.c.leased_until == until,
    )
    with database.counting() as connection:
        if forget:
            connection.execute(delete(mqtt_ids).where(*own_row))
        else:
            connection.execute(update(mqtt_ids).where(*own_row).values(leased_until=None))


def forget_freed(database: Database) -> None:
    """Delete the rows of freed client ids, if no broker of ours can have their sessions."""
    with database.counting() as connection:
        connection.execute(delete(mqtt_ids).where(mqtt_ids.c.freed_at.is_not(None)))


def _free(connection: Connection, ids: Sequence[tuple[TenantScope, str, int]], now: int) -> int:
    """Free client ids unless they were used since they were read; return how many."""
    count = 0
    for scope, mqtt_id, seen_at in ids:
        changed = connection.execute(
            update(mqtt_ids)
            .where(
                in_scope(mqtt_ids, scope),
                mqtt_ids.c.mqtt_id == mqtt_id,
                mqtt_ids.c.seen_at == seen_at,
                mqtt_ids.c.freed_at.is_(None),
            )
            .values(freed_at=now, leased_until=None)
        )
        count += changed.rowcount
    return count


def _unleased(now: int) -> ColumnElement[bool]:
    return or_(mqtt_ids.c.leased_until.is_(None), mqtt_ids.c.leased_until <= now)
