"""Settings > API keys: the list of keys, and the form that creates one."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from fastapi import Request, Response

from wardkey.actions.keys import insights, keys, scopes, usage
from wardkey.actions.keys.keys import Issued, KeyOrder, KeyQuery
from wardkey.dashboard.pages.keys.key import ALL_SCOPES, PATH, FormResult, Status, key_page
from wardkey.dashboard.pages.keys.key_form import (
    PERIODS,
    PermissionRow,
    permission_rows,
    read_new_scopes,
    read_spec,
)
from wardkey.dashboard.shell import charts, strings
from wardkey.dashboard.shell.auth import (
    NOTHING_SENT,
    Fields,
    MemberContext,
    VerifiedForm,
    Visiting,
    require_recent_sign_in,
)
from wardkey.dashboard.shell.navigation import SCOPES, SETTINGS
from wardkey.dashboard.shell.once import write_once
from wardkey.dashboard.shell.pagination import PAGE, links, page_number
from wardkey.dashboard.shell.rendering import fault_of, page_router, render, see_other
from wardkey.db.engine import Transaction
from wardkey.domain.errors import Conflict, FormSentBefore, Invalid, WardkeyError
from wardkey.domain.keys import KeyRecord, KeyStatus
from wardkey.domain.permissions import KeyType, Permission
from wardkey.domain.principal import Principal
from wardkey.domain.times import DAY_MS
from wardkey.web.context import AppContext, CurrentContext
from wardkey.web.problems import status_of

router = page_router()
ROUTE = f"/o/{{slug}}/{{environment}}/{PATH}"

# Options of the status filter besides the statuses themselves.
_ALERTS = {
    "rotation_due": "Due for rotation",
    "expiring": "Expiring soon",
    "unused": "Unused for 90 days",
}
STATUS_FILTERS = {status.value: status.value.capitalize() for status in KeyStatus} | _ALERTS

# The first is the default.
SORTS = {
    KeyOrder.CREATED_DOWN: "Newest first",
    KeyOrder.CREATED: "Oldest first",
    KeyOrder.NAME: "By name",
    KeyOrder.NAME_DOWN: "By name, reversed",
    KeyOrder.USED_DOWN: "Recently used first",
    KeyOrder.USED: "Least recently used first",
}


@dataclass(frozen=True, slots=True)
class ListFilters:
    """The list's filters, sorting and page from the URL; invalid values are ignored."""

    search: str
    type: str
    status: str
    sort: KeyOrder
    number: int

    @classmethod
    def of(cls, request: Request) -> ListFilters:
        """Read the filters from the query."""
        query = request.query_params
        sort = query.get("sort", "")
        return cls(
            search=query.get("q", "")[:200],
            type=query.get("type", "") if query.get("type") in set(KeyType) else "",
            status=query.get("status", "") if query.get("status") in STATUS_FILTERS else "",
            sort=KeyOrder(sort) if sort in set(KeyOrder) else KeyOrder.CREATED_DOWN,
            number=page_number(query),
        )

    @property
    def filtered(self) -> bool:
        """Return whether any filter is set."""
        return bool(self.search or self.type or self.status)

    def query(self) -> KeyQuery:
        """Return the filters as the action's query."""
        return KeyQuery(
            search=self.search,
            type=KeyType(self.type) if self.type else None,
            status=KeyStatus(self.status) if self.status in set(KeyStatus) else None,
            unused_days=insights.UNUSED_DAYS if self.status == "unused" else None,
            rotation_due=self.status == "rotation_due",
            expiring=self.status == "expiring",
            limit=PAGE,
            order=self.sort,
            offset=(self.number - 1) * PAGE,
        )

    def link(self, path: str) -> Callable[..., str]:
        """Return a function that builds links to this list with some parameters changed."""
        current = {
            "q": self.search,
            "type": self.type,
            "status": self.status,
            "sort": "" if self.sort is KeyOrder.CREATED_DOWN else self.sort,
            "page": self.number,
        }
        return links(path, current)


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the table."""

    key: KeyRecord
    url: str
    prefix: str
    creator: str
    used_at: int | None
    used_address: str
    spark: charts.Chart
    status: Status


@router.get(ROUTE)
def list_keys(request: Request, current: Visiting, ctx: CurrentContext) -> Response:
    """List the keys of the organization's environment."""
    open_dialog = request.query_params.get("dialog") == "create"
    return _list(request, current, ctx, open_dialog=open_dialog)


@router.post(ROUTE)
def issue_key(
    request: Request, current: Visiting, fields: VerifiedForm, ctx: CurrentContext
) -> Response:
    """Create a key and show its secret in this response only."""
    current.by.require(Permission.KEYS_WRITE)
    require_recent_sign_in(ctx, current.person, fields)
    try:
        spec = read_spec(fields, current.by, ctx.runner.database.clock())
        new_scopes = read_new_scopes(fields)

        def issue(tx: Transaction, by: Principal) -> tuple[str, Issued]:
            issued = keys.issue(tx, by, spec, new_scopes)
            return issued.key.id, issued

        issued, _ = write_once(ctx, current, fields, issue)
    except FormSentBefore as before:
        return see_other(current.url(f"{PATH}/{before.made}"), done="sent-before")
    except (Invalid, Conflict) as failure:
        return _list(request, current, ctx, open_dialog=True, failure=failure, sent=fields)
    return key_page(request, current, ctx, issued.key.id, FormResult(issued=issued))


def _list(
    request: Request,
    current: MemberContext,
    ctx: AppContext,
    *,
    open_dialog: bool,
    failure: WardkeyError | None = None,
    sent: Fields | None = None,
) -> Response:
    filters = ListFilters.of(request)
    now = ctx.runner.database.clock()
    ctx.usage.catch_up()

    def look(tx: Transaction, by: Principal) -> dict[str, Any]:
        query = filters.query()
        records = keys.list_keys(tx, by, query)[:PAGE]
        days = usage.days_by_key(tx, by, [key.id for key in records])
        creators = insights.creator_names(tx, by, [key.created_by for key in records])
        return {
            "rows": [_row(current, key, days[key.id], creators, now) for key in records],
            "total": keys.count_keys(tx, by, query),
            "chart": charts.bars(usage.days_in_all(tx, by)),
            "alerts": insights.list_alerts(tx, by),
            "catalogue": scopes.list_scopes(tx, by, ALL_SCOPES),
        }

    values = ctx.runner.read(look, current.by)
    path = current.url(PATH)
    return render(
        request,
        "keys/list.html",
        status_of(type(failure)) if failure else 200,
        current=current,
        tabs=SETTINGS,
        **values,
        filters=filters,
        link=filters.link(path),
        list_url=path,
        scopes_url=current.url(SCOPES),
        size=PAGE,
        now=now,
        why_not=current.why_not(Permission.KEYS_WRITE),
        status_filters=STATUS_FILTERS,
        sorts=SORTS,
        open_dialog=open_dialog,
        fault=fault_of(failure) if failure else None,
        sent=sent.texts_by_name() if sent else NOTHING_SENT,
        ticked=frozenset(sent.texts("permissions")) if sent else frozenset(),
        permission_rows=_permission_rows(current),
        once=secrets.token_hex(16),
        expiries=_expiries(now),
        periods=PERIODS,
        tomorrow=f"{datetime.fromtimestamp((now + DAY_MS) / 1000, UTC):%Y-%m-%d}",
    )


def _row(
    current: MemberContext,
    key: KeyRecord,
    days: tuple[usage.DayCounts, ...],
    creators: Mapping[str, str],
    now: int,
) -> Row:
    last_used = max(
        (secret for secret in key.secrets if secret.last_used_at is not None),
        key=lambda secret: secret.last_used_at or 0,
        default=None,
    )
    return Row(
        key=key,
        url=current.url(f"{PATH}/{key.id}"),
        prefix=key.secrets[0].prefix if key.secrets else "",
        creator=creators.get(key.created_by, "a former member"),
        used_at=last_used.last_used_at if last_used else None,
        used_address=(last_used.last_used_address or "") if last_used else "",
        spark=charts.spark(days),
        status=Status.of(key, now),
    )


def _permission_rows(current: MemberContext) -> dict[KeyType, list[PermissionRow]]:
    return {key_type: permission_rows(current.by, key_type) for key_type in KeyType}


def _expiries(now: int) -> list[tuple[str, str]]:
    def add_date(value: str, label: str) -> str:
        if not value.isdecimal():
            return label
        at = datetime.fromtimestamp((now + int(value) * DAY_MS) / 1000, UTC)
        return f"{label} ({at:%b} {at.day}, {at.year})"

    return [(value, add_date(value, label)) for value, label in strings.EXPIRIES]
