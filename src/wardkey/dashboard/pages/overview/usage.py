"""Usage: verification counts by day, verdict and key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastapi import Request, Response

from wardkey.actions.keys import keys, usage
from wardkey.actions.keys.usage import DayCounts, DayVerdicts
from wardkey.dashboard.pages.keys.key import PATH as KEYS
from wardkey.dashboard.shell import charts, strings
from wardkey.dashboard.shell.auth import Visiting
from wardkey.dashboard.shell.navigation import USAGE
from wardkey.dashboard.shell.pagination import links
from wardkey.dashboard.shell.rendering import page_router, render
from wardkey.db.engine import Transaction
from wardkey.domain.principal import Principal
from wardkey.domain.verdict import Verdict
from wardkey.web.context import CurrentContext

router = page_router()

_DAYS = (30, usage.MOST_DAYS)
_LONGEST_ID = 40


@dataclass(frozen=True, slots=True)
class Share:
    """One verdict: its count and its share in percent."""

    code: str
    meaning: str
    count: int
    percent: float


@router.get(f"/o/{{slug}}/{{environment}}/{USAGE}")
def show_usage(request: Request, current: Visiting, ctx: CurrentContext) -> Response:
    """Show the usage of all keys, or with `?key=` of one."""
    query = request.query_params
    days = next((choice for choice in _DAYS if str(choice) == query.get("days")), _DAYS[0])
    key_id = query.get("key", "")[:_LONGEST_ID]
    ctx.usage.catch_up()

    def look(tx: Transaction, by: Principal) -> dict[str, Any]:
        return {
            "key": keys.get(tx, by, key_id) if key_id else None,
            "by_day": usage.verdicts_by_day(tx, by, days, key_id),
            "by_key": [] if key_id else usage.use_by_key(tx, by, days),
        }

    values = ctx.runner.read(look, current.by)
    by_day: tuple[DayVerdicts, ...] = values["by_day"]
    shares = _shares(by_day)
    parameters = {"key": key_id, "days": "" if days == _DAYS[0] else days}
    return render(
        request,
        "usage.html",
        current=current,
        **values,
        days=days,
        choices=_DAYS,
        chart=charts.bars([_day_counts(item) for item in by_day]),
        shares=shares,
        codes=[share.code for share in shares],
        most_keys=usage.MOST_KEYS,
        link=links(current.url(USAGE), parameters),
        keys_url=current.url(KEYS),
    )


def _day_counts(item: DayVerdicts) -> DayCounts:
    allowed = item.counts.get(Verdict.VALID, 0)
    return DayCounts(item.at, allowed, sum(item.counts.values()) - allowed)


def _shares(by_day: tuple[DayVerdicts, ...]) -> list[Share]:
    """Return the verdicts by descending frequency."""
    counts: dict[str, int] = {}
    for item in by_day:
        for code, count in item.counts.items():
            counts[code] = counts.get(code, 0) + count
    total = sum(counts.values())
    return [
        Share(code, strings.VERDICTS.get(code, code), count, 100 * count / total)
        for code, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        if count
    ]
