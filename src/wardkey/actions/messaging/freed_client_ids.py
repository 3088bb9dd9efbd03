"""MQTT client ids that are free for another, once the broker has no session under them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, and_, bindparam, delete, func, or_, select, update

from wardkey.actions.grants.grants import MAY_RETURN
from wardkey.actions.messaging.client_ids import Connected, Holder, IdClaim
from wardkey.db.engine import Database
from wardkey.db.schema import clients, grants, mqtt_ids
from wardkey.db.scoped import in_scope
from wardkey.domain.secret import Environment
from wardkey.domain.tenants import TenantScope

# A client id is its first user's until it was not shown for so long.
KEPT_MS = 7 * 86_400_000
# Without any login for so long it is freed, whether another wants it or not.
UNUSED_MS = 90 * 86_400_000
# Of one client or user; those that were shown longest ago are freed first.
MOST_EACH = 1_000
# How long a process may be at removing a session; its credential for that ends before.
LEASE_MS = 5_000
# By when a login that was in flight when its client id was freed is there or never, and was ended
# and counted by those who follow changes.
SETTLED_MS = 3_000
_AT_ONCE = 500
# How old the last look at live sessions may be when client ids are freed by it.
_LOOKED_MS = 60_000

# The holder will not come back: a client that was deleted, or a user without any grant that logs
# in or can be refreshed. What a foreign broker has under the client id we cannot remove, so there
# it stays held.
_HOLDER_GONE = and_(
    mqtt_ids.c.server != "",
    ~select(clients.c.id)
    .where(
        clients.c.id == mqtt_ids.c.subject_id,
        clients.c.org_id == mqtt_ids.c.org_id,
        clients.c.environment == mqtt_ids.c.environment,
    )
    .exists(),
    ~MAY_RETURN.where(
        grants.c.org_id == mqtt_ids.c.org_id,
        grants.c.environment == mqtt_ids.c.environment,
        grants.c.user_key == mqtt_ids.c.subject_id,
    ).exists(),
)


@dataclass(frozen=True, slots=True)
class FreedId:
    """A client id that was freed, and when to remove the session that the broker may have."""

    scope: TenantScope
    mqtt_id: str
    due_at: int


def free_if_over(database: Database, claim: IdClaim, holder: Holder) -> bool:
    """Free a client id whose holder is gone or has not shown it for a week; return whether so."""
    if holder.freed_at is not None:
        return True
    now = database.clock()
    if now - holder.seen_at < KEPT_MS:
        with database.read() as tx:
            gone = select(mqtt_ids.c.mqtt_id).where(
                in_scope(mqtt_ids, claim.scope), mqtt_ids.c.mqtt_id == claim.mqtt_id, _HOLDER_GONE
            )
            if tx.connection.execute(gone, {"now": now}).first() is None:
                return False
    with database.counting() as connection:
        return bool(_free(connection, [(claim.scope, claim.mqtt_id, holder.seen_at)], now))


def free_gone(
    database: Database, scope: TenantScope | None = None, subjects: Collection[str] | None = None
) -> int:
    """Free the client ids of deleted clients and of users whose grants are over; return how many.

    Of one room or of all; of some clients and users or of all.
    """
    now = database.clock()
    wanted = select(
        mqtt_ids.c.org_id, mqtt_ids.c.environment, mqtt_ids.c.mqtt_id, mqtt_ids.c.seen_at
    ).where(mqtt_ids.c.freed_at.is_(None), _HOLDER_GONE)
    if scope is not None:
        wanted = wanted.where(in_scope(mqtt_ids, scope))
    if subjects is not None and len(subjects) <= _AT_ONCE:
        wanted = wanted.where(mqtt_ids.c.subject_id.in_(subjects))
    with database.read() as tx:
        found = [
            (TenantScope(row.org_id, Environment(row.environment)), row.mqtt_id, row.seen_at)
            for row in tx.connection.execute(wanted, {"now": now})
        ]
    count = 0
    for start in range(0, len(found), _AT_ONCE):
        with database.counting() as connection:
            count += _free(connection, found[start : start + _AT_ONCE], now)
    return count


def free_unused(database: Database) -> None:
    """Free client ids that were not shown for 90 days, and the oldest of each that has too many."""
    now = database.clock()
    held = mqtt_ids.c.freed_at.is_(None)
    free = update(mqtt_ids).values(freed_at=now, leased_until=None)
    names = (mqtt_ids.c.org_id, mqtt_ids.c.environment, mqtt_ids.c.subject_id)
    with database.counting() as connection:
        connection.execute(free.where(held, mqtt_ids.c.seen_at < now - UNUSED_MS))
        many = select(*names).where(held).group_by(*names).having(func.count() > MOST_EACH)
        for row in connection.execute(many).all():
            mine = and_(held, *(n == v for n, v in zip(names, row, strict=True)))
            seen = mqtt_ids.c.seen_at
            last = select(seen).where(mine).order_by(seen.desc()).offset(MOST_EACH).limit(1)
            oldest = connection.execute(last).scalar_one_or_none()
            if oldest is not None:
                # What was shown a moment ago may be connected.
                until = min(oldest, now - _LOOKED_MS)
                connection.execute(free.where(mine, seen <= until))


def rooms_to_look_at(database: Database) -> list[TenantScope]:
    """Return rooms where some client id might be freed though a session under it lives."""
    names = (mqtt_ids.c.org_id, mqtt_ids.c.environment)
    held = mqtt_ids.c.freed_at.is_(None)
    old = select(*names).where(held, mqtt_ids.c.seen_at < database.clock() - KEPT_MS // 7)
    many = (
        select(*names)
        .where(held)
        .group_by(*names, mqtt_ids.c.subject_id)
        .having(func.count() > MOST_EACH)
    )
    with database.read() as tx:
        return [
            TenantScope(org, Environment(kind))
            for org, kind in tx.connection.execute(old.union(many))
        ]


def note_live(
    database: Database, scope: TenantScope, live: Iterable[tuple[str, Connected]]
) -> None:
    """Note that these client ids are connected now, each by the connection that has it."""
    now = database.clock()
    rows = [
        {"wanted": mqtt_id, "of_server": server, "of_cid": cid}
        for mqtt_id, (server, cid) in sorted(live)
    ]
    if not rows:
        return
    with database.counting() as connection:
        connection.execute(
            update(mqtt_ids)
            .where(
                in_scope(mqtt_ids, scope),
                mqtt_ids.c.mqtt_id == bindparam("wanted"),
                mqtt_ids.c.server == bindparam("of_server"),
                mqtt_ids.c.cid == bindparam("of_cid"),
                mqtt_ids.c.freed_at.is_(None),
            )
            .values(seen_at=now),
            rows,
        )


def free_by_hand(database: Database, scope: TenantScope, mqtt_id: str) -> None:
    """Free a client id, whether its holder may return or not."""
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
    """Return freed client ids, the oldest first.

    A session is removed once logins in flight are settled, and no other process is at it.
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
    """Take the removal of a freed client id's session; None if another process has it."""
    now = database.clock()
    with database.counting() as connection:
        took = connection.execute(
            update(mqtt_ids)
            .where(
                in_scope(mqtt_ids, scope),
                mqtt_ids.c.mqtt_id == mqtt_id,
                mqtt_ids.c.freed_at.is_not(None),
                _unleased(now),
            )
            .values(leased_until=now + LEASE_MS)
        )
    return now + LEASE_MS if took.rowcount else None


def end_lease(
    database: Database, scope: TenantScope, mqtt_id: str, until: int, *, forget: bool
) -> None:
    """Give a lease back; `forget` deletes the row, whose session is gone for good."""
    mine = (
        in_scope(mqtt_ids, scope),
        mqtt_ids.c.mqtt_id == mqtt_id,
        mqtt_ids.c.freed_at.is_not(None),
        mqtt_ids.c.leased_until == until,
    )
    with database.counting() as connection:
        if forget:
            connection.execute(delete(mqtt_ids).where(*mine))
        else:
            connection.execute(update(mqtt_ids).where(*mine).values(leased_until=None))


def forget_freed(database: Database) -> None:
    """Delete the rows of freed client ids, where no broker of ours has sessions under them."""
    with database.counting() as connection:
        connection.execute(delete(mqtt_ids).where(mqtt_ids.c.freed_at.is_not(None)))


def _free(connection: Connection, found: Sequence[tuple[TenantScope, str, int]], now: int) -> int:
    """Free client ids unless they were shown since they were read; return how many."""
    count = 0
    for scope, mqtt_id, seen_at in found:
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
