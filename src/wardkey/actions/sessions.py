"""MQTT sessions: whose client id it is, what changes for them, the audit of what is ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, delete, insert, select, update

from wardkey.actions.audit import Target, record
from wardkey.db.engine import Database, Transaction, telling
from wardkey.db.schema import changes, clients, feed, mqtt_ids, organizations, session_receipts
from wardkey.domain.permissions import Permission
from wardkey.domain.principal import Principal
from wardkey.domain.secret import Environment

# A client id is its first user's until nobody has shown it for so long.
KEPT_MS = 7 * 86_400_000
_MOST_EACH = 100
# A row that is as new needs no writing for the same session once more.
_FRESH_MS = 3_600_000

Room = tuple[str, Environment]


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose an MQTT client id is, as he is now; `rights` marks what his session was allowed."""

    subject_id: str
    username: str
    enabled: bool
    password_set_at: int
    rights: bytes


@dataclass(frozen=True, slots=True)
class Changed:
    """What the change feed says since a revision: rooms whose sessions to look at."""

    epoch: str
    revision: int
    rooms: frozenset[Room]
    organizations: bool


def note_ended(tx: Transaction, by: Principal, mqtt_id: str, username: str) -> None:
    """Say in the audit that a live session was ended."""
    by.require(Permission.CLIENTS_WRITE)
    record(tx, by, "session.ended", Target("session", mqtt_id[:64]), {"username": username})


def note_cleared(tx: Transaction, by: Principal, pattern: str, count: int) -> None:
    """Say in the audit that retained messages are cleared."""
    by.require(Permission.RETAINED_WRITE)
    details = {"filter": pattern, "count": count}
    record(tx, by, "retained.cleared", Target("retained", pattern[:64]), details)


def take_mqtt_id(
    database: Database, room: Room, mqtt_id: str, subject_id: str, rights: bytes
) -> bool:
    """Tell whether a session with this client id is for `subject_id` to have; it is then its own.

    Of each subject the hundred that were seen last are kept: ids may be drawn anew each time.
    """
    now = database.clock()
    this = _in(room) & (mqtt_ids.c.mqtt_id == mqtt_id)
    values = {"subject_id": subject_id, "rights": rights, "seen_at": now}
    with telling(), database.reader.connect() as reading:
        row = reading.execute(select(mqtt_ids).where(this)).one_or_none()
    same = row is not None and (row.subject_id, bytes(row.rights)) == (subject_id, rights)
    if row is not None and same and 0 <= now - row.seen_at < _FRESH_MS:
        return True
    with telling(), database.counting() as connection:
        row = connection.execute(select(mqtt_ids).where(this)).one_or_none()
        if row is not None:
            if row.subject_id != subject_id and now - row.seen_at < KEPT_MS:
                return False
            connection.execute(update(mqtt_ids).where(this).values(values))
            return True
        names = {"org_id": room[0], "environment": room[1], "mqtt_id": mqtt_id}
        connection.execute(insert(mqtt_ids).values(names | values))
        mine = _in(room) & (mqtt_ids.c.subject_id == subject_id)
        last = (
            select(mqtt_ids.c.seen_at)
            .where(mine)
            .order_by(mqtt_ids.c.seen_at.desc())
            .offset(_MOST_EACH)
            .limit(1)
        )
        oldest = connection.execute(last).scalar_one_or_none()
        if oldest is not None:
            connection.execute(delete(mqtt_ids).where(mine & (mqtt_ids.c.seen_at <= oldest)))
    return True


def find_owners(tx: Transaction, room: Room, ids: Sequence[str]) -> Mapping[str, Owner]:
    """Return whose MQTT client ids these are; an owner that was deleted is not enabled."""
    found = {}
    for start in range(0, len(ids), 500):
        some = ids[start : start + 500]
        for row in tx.connection.execute(
            select(mqtt_ids, clients.c.username, clients.c.enabled, clients.c.password_set_at)
            .select_from(
                mqtt_ids.outerjoin(
                    clients,
                    (clients.c.id == mqtt_ids.c.subject_id)
                    & (clients.c.org_id == room[0])
                    & (clients.c.environment == room[1]),
                )
            )
            .where(_in(room), mqtt_ids.c.mqtt_id.in_(some))
        ):
            found[row.mqtt_id] = Owner(
                row.subject_id,
                row.username or "",
                bool(row.enabled),
                row.password_set_at or 0,
                bytes(row.rights),
            )
    return found


def feed_state(tx: Transaction) -> tuple[str, int]:
    """Return the change feed's epoch and revision."""
    row = tx.connection.execute(select(feed.c.epoch, feed.c.revision)).one()
    return row.epoch, row.revision


def changes_since(
    database: Database, revision: int, known: frozenset[int] = frozenset()
) -> Changed:
    """Return what changed for sessions since `revision`, but for revisions that are `known`.

    Where the feed was cut or rewound, and for a negative `revision`, which stands for a process
    that has seen nothing, every room with a known client id, or an open receipt, has changed.
    """
    with database.read() as tx:
        epoch, now = feed_state(tx)
        if now == revision:
            return Changed(epoch, now, frozenset(), organizations=False)
        rows = tx.connection.execute(
            select(changes.c.subject, changes.c.org_id, changes.c.revision).where(
                changes.c.revision > (now if revision < 0 else revision)
            )
        ).all()
        if now < revision or len({row.revision for row in rows}) < now - revision:
            rooms = tx.connection.execute(
                select(mqtt_ids.c.org_id, mqtt_ids.c.environment).union(
                    select(session_receipts.c.org_id, session_receipts.c.environment).where(
                        session_receipts.c.ended.is_(None)
                    )
                )
            )
            every = frozenset((row.org_id, Environment(row.environment)) for row in rooms)
            return Changed(epoch, now, every, organizations=True)
    touched = {
        row.org_id for row in rows if row.subject in ("client", "acl") and row.revision not in known
    }
    return Changed(
        epoch,
        now,
        frozenset((org_id, environment) for org_id in touched for environment in Environment),
        organizations=any(row.subject == "organization" for row in rows),
    )


def stopped_organizations(database: Database) -> frozenset[str]:
    """Return the ids of organizations that are suspended or deleted."""
    with database.read() as tx:
        found = tx.connection.execute(
            select(organizations.c.id).where(
                organizations.c.suspended_at.is_not(None) | organizations.c.deleted_at.is_not(None)
            )
        )
        return frozenset(found.scalars())


def _in(room: Room) -> ColumnElement[bool]:
    return (mqtt_ids.c.org_id == room[0]) & (mqtt_ids.c.environment == room[1])
