"""The audit log page: filters, exports, and the check of the chain."""

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
from wardkey.domain.times import DAY_MS, iso
from wardkey.web.context import AppContext, CurrentContext
from wardkey.web.exports import LONGEST_S, Chunks

router = page_router()

_ROUTE = f"/o/{{slug}}/{{environment}}/{AUDIT}"
_PAGE = 50
_LONGEST = 254
_LONGEST_SEQ = 15
_COLUMNS = (
    *("seq", "id", "at", "environment", "actor_kind", "actor_id", "actor_label", "action"),
    *("target_kind", "target_id", "address", "user_agent", "details", "mac"),
)


@dataclass(frozen=True, slots=True)
class ListFilters:
    """The log's filters from the URL; invalid values are ignored."""

    action: str
    actor: str
    target: str
    first: str
    last: str
    before: int | None

    @classmethod
    def of(cls, request: Request) -> ListFilters:
        """Read the filters from the query; `from` and `to` are inclusive days (UTC)."""
        query = request.query_params
        before = query.get("before", "")
        return cls(
            action=query.get("action", "")[:_LONGEST],
            actor=query.get("actor", "").strip()[:_LONGEST],
            target=query.get("target", "").strip()[:_LONGEST],
            first=query.get("from", "") if _start_of_day(query.get("from", "")) is not None else "",
            last=query.get("to", "") if _start_of_day(query.get("to", "")) is not None else "",
            before=int(before)
            if before.isascii() and before.isdecimal() and len(before) <= _LONGEST_SEQ
            else None,
        )

    @property
    def filtered(self) -> bool:
        """Return whether any filter is set."""
        return bool(self.action or self.actor or self.target or self.first or self.last)

    def query(self) -> AuditQuery:
        """Return the filters as the action's query."""
        last = _start_of_day(self.last)
        return AuditQuery(
            action=self.action,
            actor=self.actor,
            target_id=self.target,
            since=_start_of_day(self.first),
            until=None if last is None else last + DAY_MS,
            before_seq=self.before,
            limit=_PAGE + 1,
        )

    def link(self, path: str) -> Callable[..., str]:
        """Return a function that builds links to this log with some parameters changed."""
        current = {
            "action": self.action,
            "actor": self.actor,
            "target": self.target,
            "from": self.first,
            "to": self.last,
        }
        return links(path, current)


@dataclass(frozen=True, slots=True)
class ChainCheck:
    """The result of a check of the chain."""

    count: int
    breaks: list[Break]


@router.get(_ROUTE)
def show_log(request: Request, current: Visiting, ctx: CurrentContext) -> Response:
    """Show the organization's events, newest first."""
    return _page(request, current, ctx)


@router.get(f"{_ROUTE}/check")
def back_to_log(current: Visiting) -> Response:
    """Redirect to the log from the URL of a check, for example after a reload."""
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
        check = audit_walks.verify_chain(ctx.runner.database, by, by.org_id, within_s=LONGEST_S)
    return _page(request, current, ctx, ChainCheck(*check))


@router.get(f"{_ROUTE}/export.jsonl")
def export_lines(request: Request, current: Visiting, ctx: CurrentContext) -> Response:
    """Export the filtered events, oldest first, as one JSON object per line."""

    def format_line(event: AuditEvent) -> str:
        return json.dumps(_fields(event), ensure_ascii=False) + "\n"

    return _export(request, current, ctx, "jsonl", "application/x-ndjson", "", format_line)


@router.get(f"{_ROUTE}/export.csv")
def export_table(request: Request, current: Visiting, ctx: CurrentContext) -> Response:
    """Export the filtered events, oldest first, as CSV for spreadsheets."""

    def format_line(event: AuditEvent) -> str:
        details = json.dumps(event.details, ensure_ascii=False, sort_keys=True)
        values = {**_fields(event), "details": details}.values()
        return _csv_row(escape_cell(str(value)) for value in values)

    return _export(request, current, ctx, "csv", "text/csv", _csv_row(_COLUMNS), format_line)


def _page(
    request: Request, current: MemberContext, ctx: AppContext, check: ChainCheck | None = None
) -> Response:
    filters = ListFilters.of(request)
    events = ctx.runner.read(audit.list_events, current.by, filters.query())
    url = current.url(AUDIT)
    return render(
        request,
        "audit_log.html",
        current=current,
        events=events[:_PAGE],
        older=events[_PAGE - 1].seq if len(events) > _PAGE else None,
        filters=filters,
        link=filters.link(url),
        url=url,
        check=check,
        now=ctx.runner.database.clock(),
        pretty=lambda details: json.dumps(details, indent=2, ensure_ascii=False, sort_keys=True),
    )


def _export(  # noqa: PLR0917 - the parameters of a format
    request: Request,
    current: MemberContext,
    ctx: AppContext,
    suffix: str,
    media_type: str,
    header: str,
    format_line: Callable[[AuditEvent], str],
) -> Response:
    query = replace(ListFilters.of(request).query(), before_seq=None)
    with ctx.runner.audit_refusals("export_events", current.by):
        current.by.require(Permission.AUDIT_READ)

    def chunks() -> Chunks:
        yield header
        for events in audit_walks.export_events(ctx.runner.database, current.by, query):
            yield "".join(map(format_line, events))

    today = datetime.fromtimestamp(ctx.runner.database.clock() / 1000, UTC)
    name = f"audit-{current.membership.slug}-{today:%Y-%m-%d}.{suffix}"
    headers = {"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"}
    return ctx.exports.begin(current.by.org_id, chunks(), media_type, headers)


def _fields(event: AuditEvent) -> dict[str, object]:
    values = {**asdict(event), "at": iso(event.at)}
    return {name: values[name] for name in _COLUMNS}


def _csv_row(values: Iterator[str] | tuple[str, ...]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, quoting=csv.QUOTE_ALL).writerow(values)
    return buffer.getvalue()


def _start_of_day(day: str) -> int | None:
    """Return the start of a day such as `2026-11-21` in ms, or None for any other text."""
    try:
        return int(datetime.strptime(day, "%Y-%m-%d").replace(tzinfo=UTC).timestamp() * 1000)
    except ValueError:
        return None
