"""How much an organization's keys were used: by day and verdict, and by key."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import ColumnElement, case, func, select

from wardkey.db.engine import Transaction
from wardkey.db.schema import hours, keys, secrets
from wardkey.db.scoped import in_scope
from wardkey.domain.callers import HOUR_MS
from wardkey.domain.permissions import Permission
from wardkey.domain.principal import Principal

# For as long as the hours are kept.
MOST_DAYS = 90
MOST_KEYS = 100
_HOURS_A_DAY = 24


@dataclass(frozen=True, slots=True)
class DayVerdicts:
    """How often each verdict was given on the day (UTC) that began at `at`."""

    at: int
    counts: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class KeyUse:
    """How much one key was used: the valid verdicts, and all others."""

    key_id: str
    name: str
    allowed: int
    denied: int


def verdicts_by_day(
    tx: Transaction, by: Principal, days: int, key_id: str = ""
) -> tuple[DayVerdicts, ...]:
    """Return each of the last `days`, of all keys of the caller's room or of one of them."""
    by.require(Permission.USAGE_READ)
    first = _first_day(tx.now, days)
    day = hours.c.hour // _HOURS_A_DAY
    rows = tx.connection.execute(
        select(day, hours.c.code, func.sum(hours.c["count"]))
        .where(_secret_of_scope(by, key_id), hours.c.hour >= first * _HOURS_A_DAY)
        .group_by(day, hours.c.code)
    )
    counted: dict[int, Counter[str]] = {at: Counter() for at in range(first, first + days)}
    for at, code, count in rows:
        # An hour that the clock has not reached yet is of no day that is shown.
        if int(at) in counted:
            counted[int(at)][code] = int(count)
    return tuple(DayVerdicts(at * _HOURS_A_DAY * HOUR_MS, counts) for at, counts in counted.items())


def use_by_key(tx: Transaction, by: Principal, days: int) -> list[KeyUse]:
    """Return the 100 keys of the caller's room that were used most in the last `days`."""
    by.require(Permission.USAGE_READ)
    total = func.sum(hours.c["count"])
    allowed = func.sum(case((hours.c.code == "valid", hours.c["count"]), else_=0))
    rows = tx.connection.execute(
        select(hours.c.key_id, total, allowed)
        .where(_secret_of_scope(by), hours.c.hour >= _first_day(tx.now, days) * _HOURS_A_DAY)
        .group_by(hours.c.key_id)
        .order_by(total.desc(), hours.c.key_id)
        .limit(MOST_KEYS)
    ).all()
    names = {
        row.id: row.name
        for row in tx.connection.execute(
            select(keys.c.id, keys.c.name).where(
                keys.c.id.in_([row[0] for row in rows]),
                in_scope(keys, by.scope),
            )
        )
    }
    return [
        KeyUse(key_id, names[key_id], int(valid), int(count) - int(valid))
        for key_id, count, valid in rows
        if key_id in names
    ]


def _secret_of_scope(by: Principal, key_id: str = "") -> ColumnElement[bool]:
    kids = select(secrets.c.kid).where(in_scope(secrets, by.scope))
    return hours.c.kid.in_(kids.where(secrets.c.key_id == key_id) if key_id else kids)


def _first_day(now: int, days: int) -> int:
    return now // HOUR_MS // _HOURS_A_DAY - days + 1
