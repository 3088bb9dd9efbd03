"""Details for lists of keys: the names of their creators, and alerts."""

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
_MAX_NAMES = 200


@dataclass(frozen=True, slots=True)
class KeyAlert:
    """An alert about keys of one kind: the first such key, and the number of them."""

    kind: str
    key: KeyRecord
    count: int


def creator_names(tx: Transaction, by: Principal, ids: Sequence[str]) -> Mapping[str, str]:
    """Return the names of keys' creators by id: a user's e-mail address, or a key's name.

    `ids` must come from records in the caller's tenant scope.
    """
    by.require(Permission.KEYS_READ)
    unique_ids = list(dict.fromkeys(ids))
    user_names = select(users.c.id, users.c.email).where(users.c.id.in_(unique_ids))
    key_names = select(keys.c.id, keys.c.name).where(
        keys.c.id.in_(unique_ids), in_scope(keys, by.scope)
    )
    return {
        row[0]: row[1]
        for statement in (user_names, key_names)
        for row in tx.connection.execute(statement)
    }


def list_alerts(tx: Transaction, by: Principal) -> list[KeyAlert]:
    """Return the alerts about the keys in the caller's tenant scope, the most urgent first."""
    by.require(Permission.KEYS_READ)
    kinds = {
        "expiring": KeyQuery(expiring=True, limit=1),
        "rotation_due": KeyQuery(rotation_due=True, limit=1),
        "unused": KeyQuery(unused_days=UNUSED_DAYS, limit=1),
    }
    counts = count_each(tx, by, list(kinds.values()))
    alerts = [
        KeyAlert(kind, list_keys(tx, by, query)[0], count)
        for (kind, query), count in zip(kinds.items(), counts, strict=True)
        if count
    ]
    return alerts + _find_unclear_names(tx, by)


def _find_unclear_names(tx: Transaction, by: Principal) -> list[KeyAlert]:
    """Return an alert about those of the newest 200 live keys whose names explain nothing."""
    rows = tx.connection.execute(
        select(keys.c.id, keys.c.name)
        .where(
            in_scope(keys, by.scope),
            keys.c.revoked_at.is_(None),
            or_(keys.c.expires_at.is_(None), keys.c.expires_at > tx.now),
        )
        .order_by(keys.c.created_at.desc(), keys.c.id.desc())
        .limit(_MAX_NAMES)
    )
    ids = [row.id for row in rows if name_warnings(row.name, by.environment)]
    if not ids:
        return []
    first = list_keys(tx, by, KeyQuery(search=ids[0], limit=1))
    return [KeyAlert("unnamed", first[0], len(ids))] if first else []
