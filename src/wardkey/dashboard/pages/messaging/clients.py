"""Messaging > Clients: the list of MQTT clients, and the form that creates one."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import Request, Response

from wardkey.actions.messaging import clients
from wardkey.actions.messaging.clients import ClientOrder, ClientQuery, ClientWithPassword
from wardkey.dashboard.pages.messaging.client import (
    PATH,
    FormResult,
    client_page,
    hashed_of,
    tags_of,
)
from wardkey.dashboard.shell.auth import NOTHING_SENT, Fields, MemberContext, VerifiedForm, Visiting
from wardkey.dashboard.shell.once import write_once
from wardkey.dashboard.shell.pagination import PAGE, links, page_number
from wardkey.dashboard.shell.rendering import fault_of, page_router, render, see_other
from wardkey.dashboard.shell.session_notices import ended_sessions
from wardkey.db.engine import Transaction
from wardkey.domain.clients import ClientSpec
from wardkey.domain.errors import (
    BrokerUnreachable,
    Conflict,
    FormSentBefore,
    Invalid,
    MessagingOff,
    WardkeyError,
)
from wardkey.domain.permissions import Permission
from wardkey.domain.principal import Principal
from wardkey.domain.usernames import parse_username
from wardkey.services.live_sessions import list_sessions
from wardkey.web.context import AppContext, CurrentContext
from wardkey.web.problems import status_of

router = page_router()
ROUTE = f"/o/{{slug}}/{{environment}}/{PATH}"

STATE_FILTERS = {"enabled": "Enabled", "disabled": "Disabled"}
# The first is the default.
SORTS = {
    ClientOrder.CREATED_DOWN: "Newest first",
    ClientOrder.CREATED: "Oldest first",
    ClientOrder.USERNAME: "By name",
    ClientOrder.USERNAME_DOWN: "By name, reversed",
    ClientOrder.CONNECTED_DOWN: "Recently connected first",
    ClientOrder.CONNECTED: "Least recently connected first",
}


@dataclass(frozen=True, slots=True)
class ListFilters:
    """The list's filters, sorting and page from the URL; invalid values are ignored."""

    search: str
    state: str
    connected: bool
    sort: ClientOrder
    number: int

    @classmethod
    def of(cls, request: Request) -> ListFilters:
        """Read the filters from the query."""
        query = request.query_params
        sort = query.get("sort", "")
        return cls(
            search=query.get("q", "")[:200],
            state=query.get("state", "") if query.get("state") in STATE_FILTERS else "",
            connected=query.get("connected") == "now",
            sort=ClientOrder(sort) if sort in set(ClientOrder) else ClientOrder.CREATED_DOWN,
            number=page_number(query),
        )

    @property
    def filtered(self) -> bool:
        """Return whether any filter is set."""
        return bool(self.search or self.state or self.connected)

    def query(self, live: Mapping[str, int] | None) -> ClientQuery:
        """Return the filters as the action's query; `live` counts sessions by MQTT user name."""
        enabled = {"enabled": True, "disabled": False}.get(self.state)
        names = None
        if self.connected:
            parsed = map(parse_username, live or ())
            names = frozenset(username.name for username in parsed if username is not None)
        return ClientQuery(
            self.search,
            enabled,
            limit=PAGE,
            offset=(self.number - 1) * PAGE,
            usernames=names,
            order=self.sort,
        )

    def link(self, path: str) -> Callable[..., str]:
        """Return a function that builds links to this list with some parameters changed."""
        current = {
            "q": self.search,
            "state": self.state,
            "connected": "now" if self.connected else "",
            "sort": "" if self.sort is ClientOrder.CREATED_DOWN else self.sort,
            "page": self.number,
        }
        return links(path, current)


@router.get(ROUTE)
def list_clients(request: Request, current: Visiting, ctx: CurrentContext) -> Response:
    """List the clients of the organization's environment."""
    open_dialog = request.query_params.get("dialog") == "create"
    return _list(request, current, ctx, open_dialog=open_dialog)


@router.post(ROUTE)
def create_client(
    request: Request, current: Visiting, fields: VerifiedForm, ctx: CurrentContext
) -> Response:
    """Create a client; a generated password is shown in this response only."""
    current.by.require(Permission.CLIENTS_WRITE)
    try:
        spec = ClientSpec(
            fields.text("username").strip(),
            current.by.environment,
            fields.text("display_name"),
            tags=tags_of(fields),
        )
        password_hash = hashed_of(fields, current, ctx)

        def create(tx: Transaction, by: Principal) -> tuple[str, ClientWithPassword]:
            created = clients.create(tx, by, spec, password_hash)
            return created.client.id, created

        created, _ = write_once(ctx, current, fields, create)
    except FormSentBefore as before:
        return see_other(current.url(f"{PATH}/{before.made}"), done="client-sent-before")
    except (Invalid, Conflict) as failure:
        return _list(request, current, ctx, open_dialog=True, failure=failure, sent=fields)
    if created.password is None:
        return see_other(current.url(f"{PATH}/{created.client.id}"), done="client-created")
    return client_page(request, current, ctx, created.client.id, FormResult(made=created))


def _list(
    request: Request,
    current: MemberContext,
    ctx: AppContext,
    *,
    open_dialog: bool,
    failure: WardkeyError | None = None,
    sent: Fields | None = None,
) -> Response:
    filters, live = ListFilters.of(request), _count_sessions(current, ctx)

    def look(tx: Transaction, by: Principal) -> dict[str, Any]:
        query = filters.query(live)
        return {
            "rows": clients.list_clients(tx, by, query)[:PAGE],
            "total": clients.count_clients(tx, by, query),
        }

    path = current.url(PATH)
    return render(
        request,
        "clients/list.html",
        status_of(type(failure)) if failure else 200,
        current=current,
        **ctx.runner.read(look, current.by),
        live=live,
        messaging_off=ctx.link is None,
        ended=ended_sessions(request, current, ctx),
        filters=filters,
        link=filters.link(path),
        list_url=path,
        size=PAGE,
        now=ctx.runner.database.clock(),
        why_not=current.why_not(Permission.CLIENTS_WRITE),
        state_filters=STATE_FILTERS,
        sorts=SORTS,
        open_dialog=open_dialog,
        fault=fault_of(failure) if failure else None,
        sent=sent.texts_by_name() if sent else NOTHING_SENT,
        once=secrets.token_hex(16),
    )


def _count_sessions(current: MemberContext, ctx: AppContext) -> Mapping[str, int] | None:
    """Return the number of live sessions by MQTT user name; None if the broker doesn't respond."""
    try:
        sessions = list_sessions(ctx.runner, ctx.broker, current.by, subscribed=False)
    except (MessagingOff, BrokerUnreachable):
        return None
    return Counter(session.username for session in sessions)
