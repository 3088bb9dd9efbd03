"""Usage of an organization's keys by day, by verdict and by key."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, case, func, select

from wardkey.db.engine import Transaction
from wardkey.db.schema import hours, keys, secrets
from wardkey.db.scoped import in_scope
from wardkey.domain.permissions import Permission
from wardkey.domain.principal import Principal
from wardkey.domain.times import HOUR_MS

# The number of days for which hourly counts are kept.
MOST_DAYS = 90
MOST_KEYS = 100
_HOURS_PER_DAY = 24
_CHART_DAYS = 30
# One shared expression: PostgreSQL would treat two with separate parameters as different and reject
# the GROUP BY.
_IS_VALID = hours.c.code == "valid"


@dataclass(frozen=True, slots=True)
class DayCounts:
    """Numbers of valid and other verdicts on the day (UTC) that began at `at` (epoch ms)."""

    at: int
    allowed: int
    denied: int


@dataclass(frozen=True, slots=True)
class DayVerdicts:
    """Numbers of verdicts by code on the day (UTC) that began at `at` (epoch ms)."""

    at: int
    counts: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class KeyUse:
    """Numbers of valid and other verdicts of one key."""

    key_id: str
    name: str
    allowed: int
    denied: int


def days_by_key(
    tx: Transaction, by: Principal, key_ids: Sequence[str]
) -> Mapping[str, tuple[DayCounts, ...]]:
    """Return the counts of the last 30 days for each of these keys in the caller's tenant scope."""
    by.require(Permission.KEYS_READ)
    kids = select(secrets.c.kid).where(
        secrets.c.key_id.in_(key_ids),
        in_scope(secrets, by.scope),
    )
    day = hours.c.hour // _HOURS_PER_DAY
    rows = tx.connection.execute(
        select(hours.c.key_id, day, _IS_VALID, func.sum(hours.c["count"]))
        .where(
            hours.c.kid.in_(kids), hours.c.hour >= _first_day(tx.now, _CHART_DAYS) * _HOURS_PER_DAY
        )
        .group_by(hours.c.key_id, day, _IS_VALID)
    )
    counts: dict[str, dict[tuple[int, bool], int]] = {}
    for key_id, at, valid, count in rows:
        counts.setdefault(key_id, {})[int(at), bool(valid)] = int(count)
    no_use = _days({}, tx.now)
    return {
        key_id: _days(counts[key_id], tx.now) if key_id in counts else no_use for key_id in key_ids
    }


def days_in_all(tx: Transaction, by: Principal) -> tuple[DayCounts, ...]:
    """Return the counts of the last 30 days for all keys in the caller's tenant scope."""
    by.require(Permission.KEYS_READ)
    kids = select(secrets.c.kid).where(in_scope(secrets, by.scope))
    day = hours.c.hour // _HOURS_PER_DAY
    rows = tx.connection.execute(
        select(day, _IS_VALID, func.sum(hours.c["count"]))
        .where(
            hours.c.kid.in_(kids), hours.c.hour >= _first_day(tx.now, _CHART_DAYS) * _HOURS_PER_DAY
        )
        .group_by(day, _IS_VALID)
    )
    return _days({(int(at), bool(valid)): int(count) for at, valid, count in rows}, tx.now)


def verdicts_by_day(
    tx: Transaction, by: Principal, days: int, key_id: str = ""
) -> tuple[DayVerdicts, ...]:
    """Return the verdicts of the last `days` days, of one key or of the caller's tenant scope."""
    by.require(Permission.USAGE_READ)
    first = _first_day(tx.now, days)
    day = hours.c.hour // _HOURS_PER_DAY
    rows = tx.connection.execute(
        select(day, hours.c.code, func.sum(hours.c["count"]))
        .where(_secret_condition(by, key_id), hours.c.hour >= first * _HOURS_PER_DAY)
        .group_by(day, hours.c.code)
    )
    by_day: dict[int, Counter[str]] = {at: Counter() for at in range(first, first + days)}
    for at, code, count in rows:
        # After the clock was set back, some hours are in the future.
        if int(at) in by_day:
            by_day[int(at)][code] = int(count)
    return tuple(
        DayVerdicts(at * _HOURS_PER_DAY * HOUR_MS, counts) for at, counts in by_day.items()
    )


def use_by_key(tx: Transaction, by: Principal, days: int) -> list[KeyUse]:
    """Return the 100 most used keys of the caller's tenant scope in the last `days` days."""
    by.require(Permission.USAGE_READ)
    total = func.sum(hours.c["count"])
    allowed = func.sum(case((hours.c.code == "valid", hours.c["count"]), else_=0))
    rows = tx.connection.execute(
        select(hours.c.key_id, total, allowed)
        .where(_secret_condition(by), hours.c.hour >= _first_day(tx.now, days) * _HOURS_PER_DAY)
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


def _secret_condition(by: Principal, key_id: str = "") -> ColumnElement[bool]:
    kids = select(secrets.c.kid).where(in_scope(secrets, by.scope))
    return hours.c.kid.in_(kids.where(secrets.c.key_id == key_id) if key_id else kids)


def _first_day(now: int, days: int) -> int:
    return now // HOUR_MS // _HOURS_PER_DAY - days + 1


def _days(counts: Mapping[tuple[int, bool], int], now: int) -> tuple[DayCounts, ...]:
    first = _first_day(now, _CHART_DAYS)
    return tuple(
        DayCounts(
            day * _HOURS_PER_DAY * HOUR_MS, counts.get((day, True), 0), counts.get((day, False), 0)
        )
        for day in range(first, first + _CHART_DAYS)
    )
