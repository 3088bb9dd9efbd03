"""The audit log: who did what, filtered, exported, and its chain checked when somebody asks."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime

from fastapi import Request, Response

from wardkey.actions.core import audit, audit_walks
from wardkey.actions.core.audit import AuditEvent, AuditQuery
from wardkey.dashboard.shell.auth import MemberContext, VerifiedForm, Visiting
from wardkey.dashboard.shell.navigation import AUDIT
from wardkey.dashboard.shell.pagination import links
from wardkey.dashboard.shell.rendering import page_router, render, see_other
from wardkey.domain.audit_chain import Break
from wardkey.domain.permissions import Permission
from wardkey.domain.spreadsheets import escape_cell
from wardkey.domain.times import iso
from wardkey.web.context import AppContext, CurrentContext
from wardkey.web.exports import LONGEST_S, Chunks

router = page_router()

_ROUTE = f"/o/{{slug}}/{{environment}}/{AUDIT}"
_PAGE = 50
_DAY = 86_400_000
_LONGEST = 254
_LONGEST_SEQ = 15
_COLUMNS = (
    *("seq", "id", "at", "environment", "actor_kind", "actor_id", "actor_label", "action"),
    *("target_kind", "target_id", "address", "user_agent", "details", "mac"),
)


@dataclass(frozen=True, slots=True)
class ListFilters:
    """What the address asks of the log; what it cannot mean is left out."""

    action: str
    actor: str
    target: str
    first: str
    last: str
    before: int | None

    @classmethod
    def of(cls, request: Request) -> ListFilters:
        """Read it from the query; `from` and `to` are days (UTC), both of them included."""
        query = request.query_params
        before = query.get("before", "")
        return cls(
            action=query.get("action", "")[:_LONGEST],
            actor=query.get("actor", "").strip()[:_LONGEST],
            target=query.get("target", "").strip()[:_LONGEST],
            first=query.get("from", "") if _began(query.get("from", "")) is not None else "",
            last=query.get("to", "") if _began(query.get("to", "")) is not None else "",
            before=int(before)
            if before.isascii() and before.isdecimal() and len(before) <= _LONGEST_SEQ
            else None,
        )

    @property
    def filtered(self) -> bool:
        """Tell whether this is less than the whole log."""
        return bool(self.action or self.actor or self.target or self.first or self.last)

    def query(self) -> AuditQuery:
        """Return it as the action takes it."""
        last = _began(self.last)
        return AuditQuery(
            action=self.action,
            actor=self.actor,
            target_id=self.target,
            since=_began(self.first),
            until=None if last is None else last + _DAY,
            before_seq=self.before,
            limit=_PAGE + 1,
        )

    def link(self, path: str) -> Callable[..., str]:
        """Return a function that writes this log's address with some parameters changed."""
        now = {
            "action": self.action,
            "actor": self.actor,
            "target": self.target,
            "from": self.first,
            "to": self.last,
        }
        return links(path, now)


@dataclass(frozen=True, slots=True)
class Checking:
    """What a check of the chain found."""

    count: int
    breaks: list[Break]


@router.get(_ROUTE)
def show_log(request: Request, current: Visiting, ctx: CurrentContext) -> Response:
    """Show the organization's events, newest first."""
    return _log(request, current, ctx)


@router.get(f"{_ROUTE}/check")
def back_to_log(current: Visiting) -> Response:
    """Go to the log from the address of a check that was sent before."""
    return see_other(current.url(AUDIT))


@router.post(f"{_ROUTE}/check")
def check_chain(
    request: Request, current: Visiting, _fields: VerifiedForm, ctx: CurrentContext
) -> Response:
    """Check every link of the organization's chain."""
    by = current.by
    with ctx.runner.audit_refusals("verify_chain", by):
        by.require(Permission.AUDIT_READ)
    with ctx.checks.reserve(by.org_id):
        found = audit_walks.verify_chain(ctx.runner.database, by, by.org_id, within_s=LONGEST_S)
    return _log(request, current, ctx, Checking(*found))


@router.get(f"{_ROUTE}/export.jsonl")
def export_lines(request: Request, current: Visiting, ctx: CurrentContext) -> Response:
    """Export what fits the filters, oldest first, one JSON object a line."""

    def line(event: AuditEvent) -> str:
        return json.dumps(_fields(event), ensure_ascii=False) + "\n"

    return _export(request, current, ctx, "jsonl", "application/x-ndjson", "", line)


@router.get(f"{_ROUTE}/export.csv")
def export_table(request: Request, current: Visiting, ctx: CurrentContext) -> Response:
    """Export what fits the filters, oldest first, as a table for spreadsheets."""

    def line(event: AuditEvent) -> str:
        details = json.dumps(event.details, ensure_ascii=False, sort_keys=True)
        values = {**_fields(event), "details": details}.values()
        return _row(escape_cell(str(value)) for value in values)

    return _export(request, current, ctx, "csv", "text/csv", _row(_COLUMNS), line)


def _log(
    request: Request, current: MemberContext, ctx: AppContext, checking: Checking | None = None
) -> Response:
    asked = ListFilters.of(request)
    found = ctx.runner.read(audit.list_events, current.by, asked.query())
    url = current.url(AUDIT)
    return render(
        request,
        "audit_log.html",
        current=current,
        events=found[:_PAGE],
        older=found[_PAGE - 1].seq if len(found) > _PAGE else None,
        asked=asked,
        link=asked.link(url),
        url=url,
        checking=checking,
        now=ctx.runner.database.clock(),
        pretty=lambda details: json.dumps(details, indent=2, ensure_ascii=False, sort_keys=True),
    )


def _export(  # noqa: PLR0917 - what differs between the formats
    request: Request,
    current: MemberContext,
    ctx: AppContext,
    suffix: str,
    media_type: str,
    head: str,
    line: Callable[[AuditEvent], str],
) -> Response:
    query = replace(ListFilters.of(request).query(), before_seq=None)
    with ctx.runner.audit_refusals("export_events", current.by):
        current.by.require(Permission.AUDIT_READ)

    def chunks() -> Chunks:
        yield head
        for events in audit_walks.export_events(ctx.runner.database, current.by, query):
            yield "".join(map(line, events))

    today = datetime.fromtimestamp(ctx.runner.database.clock() / 1000, UTC)
    name = f"audit-{current.membership.slug}-{today:%Y-%m-%d}.{suffix}"
    headers = {"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"}
    return ctx.exports.begin(current.by.org_id, chunks(), media_type, headers)


def _fields(event: AuditEvent) -> dict[str, object]:
    values = {**asdict(event), "at": iso(event.at)}
    return {name: values[name] for name in _COLUMNS}


def _row(values: Iterator[str] | tuple[str, ...]) -> str:
    into = io.StringIO()
    csv.writer(into, quoting=csv.QUOTE_ALL).writerow(values)
    return into.getvalue()


def _began(day: str) -> int | None:
    """Return when a day such as `2026-11-21` began; None for any other text."""
    try:
        return int(datetime.strptime(day, "%Y-%m-%d").replace(tzinfo=UTC).timestamp() * 1000)
    except ValueError:
        return None
