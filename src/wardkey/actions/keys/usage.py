"""How much an organization's keys were used: by day and verdict, and by key."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
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
SHOWN_DAYS = 30
# One expression: PostgreSQL groups by what it selects, and takes two parameters for two values.
_IS_VALID = hours.c.code == "valid"


@dataclass(frozen=True, slots=True)
class DayCounts:
    """Verdicts of the day (UTC) that began at `at`: the valid ones, and all others."""

    at: int
    allowed: int
    denied: int


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


def days_by_key(
    tx: Transaction, by: Principal, key_ids: Sequence[str]
) -> Mapping[str, tuple[DayCounts, ...]]:
    """Return the last 30 days of each of the caller's keys."""
    by.require(Permission.KEYS_READ)
    kids = select(secrets.c.kid).where(
        secrets.c.key_id.in_(key_ids),
        in_scope(secrets, by.scope),
    )
    day = hours.c.hour // _HOURS_A_DAY
    rows = tx.connection.execute(
        select(hours.c.key_id, day, _IS_VALID, func.sum(hours.c["count"]))
        .where(hours.c.kid.in_(kids), hours.c.hour >= _first_day(tx.now, SHOWN_DAYS) * _HOURS_A_DAY)
        .group_by(hours.c.key_id, day, _IS_VALID)
    )
    counts: dict[str, dict[tuple[int, bool], int]] = {}
    for key_id, at, valid, count in rows:
        counts.setdefault(key_id, {})[int(at), bool(valid)] = int(count)
    none = _days({}, tx.now)
    return {
        key_id: _days(counts[key_id], tx.now) if key_id in counts else none for key_id in key_ids
    }


def days_in_all(tx: Transaction, by: Principal) -> tuple[DayCounts, ...]:
    """Return the last 30 days of all of the caller's keys together."""
    by.require(Permission.KEYS_READ)
    kids = select(secrets.c.kid).where(in_scope(secrets, by.scope))
    day = hours.c.hour // _HOURS_A_DAY
    rows = tx.connection.execute(
        select(day, _IS_VALID, func.sum(hours.c["count"]))
        .where(hours.c.kid.in_(kids), hours.c.hour >= _first_day(tx.now, SHOWN_DAYS) * _HOURS_A_DAY)
        .group_by(day, _IS_VALID)
    )
    return _days({(int(at), bool(valid)): int(count) for at, valid, count in rows}, tx.now)


def verdicts_by_day(
    tx: Transaction, by: Principal, days: int, key_id: str = ""
) -> tuple[DayVerdicts, ...]:
    """Return each of the last `days`, of one key or of all in the caller's tenant scope."""
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
        # A clock that was set back leaves hours in the future.
        if int(at) in counted:
            counted[int(at)][code] = int(count)
    return tuple(DayVerdicts(at * _HOURS_A_DAY * HOUR_MS, counts) for at, counts in counted.items())


def use_by_key(tx: Transaction, by: Principal, days: int) -> list[KeyUse]:
    """Return the 100 keys of the caller's tenant scope that were used most in the last `days`."""
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


def _days(counts: Mapping[tuple[int, bool], int], now: int) -> tuple[DayCounts, ...]:
    first = _first_day(now, SHOWN_DAYS)
    return tuple(
        DayCounts(
            day * _HOURS_A_DAY * HOUR_MS, counts.get((day, True), 0), counts.get((day, False), 0)
        )
        for day in range(first, first + SHOWN_DAYS)
    )
