"""Actions that list held MQTT client ids, and record that one was freed manually."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Row, func, select

from wardkey.actions.core.audit import Target, record
from wardkey.actions.messaging.client_ids import ConnectionId
from wardkey.db.engine import Transaction
from wardkey.db.schema import clients, grants, mqtt_ids
from wardkey.db.scoped import in_scope
from wardkey.domain.acl import ActorKind
from wardkey.domain.errors import ClientIdNotFound
from wardkey.domain.permissions import Permission
from wardkey.domain.principal import Principal
from wardkey.domain.usernames import on_the_wire, parse_username

_TARGET_LENGTH = 64


@dataclass(frozen=True, slots=True)
class HeldId:
    """A client id and its holder, a client or a user with grants; times in epoch milliseconds.

    `holder_id` is the client's or user's id; `holder_id` and `username` are empty for a user
    without any grant left.
    """

    mqtt_id: str
    kind: ActorKind
    holder_id: str
    username: str
    taken_at: int
    seen_at: int
    connection: ConnectionId


@dataclass(frozen=True, slots=True)
class HeldQuery:
    """Which client ids to list, sorted, after `after`; `username` is short or as in CONNECT."""

    search: str = ""
    username: str = ""
    after: str = ""
    limit: int = 50


def list_held(tx: Transaction, by: Principal, query: HeldQuery) -> list[HeldId]:
    """Return the held client ids that match `query`, and one more if there are more."""
    by.require(Permission.CLIENTS_READ)
    conditions = _conditions(tx, by, query)
    if query.after:
        conditions.append(mqtt_ids.c.mqtt_id > query.after)
    rows = tx.connection.execute(
        select(mqtt_ids).where(*conditions).order_by(mqtt_ids.c.mqtt_id).limit(query.limit + 1)
    ).all()
    return _held_ids(tx, by, rows)


def count_held(tx: Transaction, by: Principal, query: HeldQuery) -> int:
    """Return the total number of held client ids that match `query`."""
    by.require(Permission.CLIENTS_READ)
    statement = select(func.count()).select_from(mqtt_ids).where(*_conditions(tx, by, query))
    return int(tx.connection.execute(statement).scalar_one())


def get_held(tx: Transaction, by: Principal, mqtt_id: str) -> HeldId:
    """Return one held client id; raises `ClientIdNotFound`."""
    by.require(Permission.CLIENTS_READ)
    row = tx.connection.execute(
        select(mqtt_ids).where(*_held_in_scope(by), mqtt_ids.c.mqtt_id == mqtt_id)
    ).one_or_none()
    if row is None:
        raise ClientIdNotFound
    return _held_ids(tx, by, [row])[0]


def note_freed(tx: Transaction, by: Principal, held: HeldId) -> None:
    """Record in the audit log that a client id was freed manually."""
    by.require(Permission.CLIENTS_WRITE)
    details = {"client_id": held.mqtt_id, "username": held.username}
    record(tx, by, "client_id.freed", Target("client_id", held.mqtt_id[:_TARGET_LENGTH]), details)


def _held_in_scope(by: Principal) -> list[ColumnElement[bool]]:
    return [in_scope(mqtt_ids, by.scope), mqtt_ids.c.freed_at.is_(None)]


def _conditions(tx: Transaction, by: Principal, query: HeldQuery) -> list[ColumnElement[bool]]:
    conditions = _held_in_scope(by)
    if query.search:
        conditions.append(mqtt_ids.c.mqtt_id.contains(query.search, autoescape=True))
    if query.username:
        conditions.append(mqtt_ids.c.subject_id.in_(_find_subjects(tx, by, query.username)))
    return conditions


def _find_subjects(tx: Transaction, by: Principal, username: str) -> list[str]:
    name = username
    if "@" in username:
        parsed = parse_username(username)
        if parsed is None or parsed.scope != by.scope:
            return []
        name = parsed.name
    subject_ids: list[str] = []
    for table, column in ((clients, clients.c.id), (grants, grants.c.user_key)):
        subject_ids += tx.connection.execute(
            select(column)
            .where(
                table.c.username == name,
                in_scope(table, by.scope),
            )
            .distinct()
        ).scalars()
    return subject_ids


def _held_ids(tx: Transaction, by: Principal, rows: Iterable[Row[Any]]) -> list[HeldId]:
    rows = list(rows)
    names = _holders(tx, by, {row.subject_id for row in rows})
    held_ids = []
    for row in rows:
        kind, holder_id, username = names.get(row.subject_id, (ActorKind.GRANT, "", ""))
        held_ids.append(
            HeldId(
                mqtt_id=row.mqtt_id,
                kind=kind,
                holder_id=holder_id,
                username=username and on_the_wire(username, *by.scope),
                taken_at=row.seen_at if row.taken_at is None else row.taken_at,
                seen_at=row.seen_at,
                connection=(row.server or "", row.cid or 0),
            )
        )
    return held_ids


def _holders(
    tx: Transaction, by: Principal, subjects: Iterable[str]
) -> Mapping[str, tuple[ActorKind, str, str]]:
    """Return each holder's kind, id and user name."""
    subject_ids = sorted(subjects)
    holders = {
        row.id: (ActorKind.CLIENT, row.id, row.username)
        for row in tx.connection.execute(
            select(clients.c.id, clients.c.username).where(
                clients.c.id.in_(subject_ids),
                in_scope(clients, by.scope),
            )
        )
    }
    users = (
        select(grants.c.user_key, grants.c.user_id, grants.c.username)
        .where(
            grants.c.user_key.in_(subject_ids),
            in_scope(grants, by.scope),
        )
        .distinct()
    )
    for row in tx.connection.execute(users):
        holders[row.user_key] = ActorKind.GRANT, row.user_id, row.username
    return holders
