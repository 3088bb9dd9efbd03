"""What a person wants to see beside keys: their use by day, who made them, what asks for care."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import or_, select

from wardkey.actions.keys.keys import KeyQuery, count_each, list_keys
from wardkey.db.engine import Transaction
from wardkey.db.schema import keys, users
from wardkey.db.scoped import in_scope
from wardkey.domain.keys import KeyRecord
from wardkey.domain.names import name_warnings
from wardkey.domain.permissions import Permission
from wardkey.domain.principal import Principal

UNUSED_DAYS = 90
_MOST_NAMES = 200


@dataclass(frozen=True, slots=True)
class KeyAlert:
    """Keys of one kind that ask for somebody's care: the first one, and how many there are."""

    kind: str
    key: KeyRecord
    count: int


def creator_names(tx: Transaction, by: Principal, ids: Sequence[str]) -> Mapping[str, str]:
    """Return what people call those who made keys: an e-mail address, or a key's name.

    `ids` come from records of the caller's room.
    """
    by.require(Permission.KEYS_READ)
    wanted = list(dict.fromkeys(ids))
    people = select(users.c.id, users.c.email).where(users.c.id.in_(wanted))
    programs = select(keys.c.id, keys.c.name).where(keys.c.id.in_(wanted), in_scope(keys, by.scope))
    return {
        row[0]: row[1]
        for statement in (people, programs)
        for row in tx.connection.execute(statement)
    }


def list_alerts(tx: Transaction, by: Principal) -> list[KeyAlert]:
    """Return what of the caller's keys asks for care, the most urgent first."""
    by.require(Permission.KEYS_READ)
    kinds = {
        "expiring": KeyQuery(expiring=True, limit=1),
        "rotation_due": KeyQuery(rotation_due=True, limit=1),
        "unused": KeyQuery(unused_days=UNUSED_DAYS, limit=1),
    }
    counts = count_each(tx, by, list(kinds.values()))
    found = [
        KeyAlert(kind, list_keys(tx, by, query)[0], count)
        for (kind, query), count in zip(kinds.items(), counts, strict=True)
        if count
    ]
    return found + _unnamed(tx, by)


def _unnamed(tx: Transaction, by: Principal) -> list[KeyAlert]:
    """Return the live keys, of the newest 200, whose names tell nobody what they are for."""
    rows = tx.connection.execute(
        select(keys.c.id, keys.c.name)
        .where(
            in_scope(keys, by.scope),
            keys.c.revoked_at.is_(None),
            or_(keys.c.expires_at.is_(None), keys.c.expires_at > tx.now),
        )
        .order_by(keys.c.created_at.desc(), keys.c.id.desc())
        .limit(_MOST_NAMES)
    )
    ids = [row.id for row in rows if name_warnings(row.name, by.environment)]
    if not ids:
        return []
    first = list_keys(tx, by, KeyQuery(search=ids[0], limit=1))
    return [KeyAlert("unnamed", first[0], len(ids))] if first else []
