"""Messaging > Clients: the list of who may log in on MQTT, and the form that makes a client."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import Request, Response

from wardkey.actions.accounts import browser_sessions
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
# The first is how the list is sorted unless somebody says otherwise.
SORTS = {
    ClientOrder.CREATED_DOWN: "Newest first",
    ClientOrder.CREATED: "Oldest first",
    ClientOrder.USERNAME: "By name",
    ClientOrder.USERNAME_DOWN: "By name, backwards",
    ClientOrder.CONNECTED_DOWN: "Connected last first",
    ClientOrder.CONNECTED: "Not connected longest first",
}


@dataclass(frozen=True, slots=True)
class ListFilters:
    """What the address asks of the list; what it cannot mean is left out."""

    search: str
    state: str
    connected: bool
    sort: ClientOrder
    number: int

    @classmethod
    def of(cls, request: Request) -> ListFilters:
        """Read it from the query."""
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
        """Tell whether this is less than the whole list."""
        return bool(self.search or self.state or self.connected)

    def query(self, live: Mapping[str, int] | None) -> ClientQuery:
        """Return it as the action takes it; `live` are the sessions by user name on the wire."""
        enabled = {"enabled": True, "disabled": False}.get(self.state)
        names = None
        if self.connected:
            parsed = map(parse_username, live or ())
            names = frozenset(one.name for one in parsed if one is not None)
        return ClientQuery(
            self.search,
            enabled,
            limit=PAGE,
            offset=(self.number - 1) * PAGE,
            usernames=names,
            order=self.sort,
        )

    def link(self, path: str) -> Callable[..., str]:
        """Return a function that writes this list's address with some parameters changed."""
        now = {
            "q": self.search,
            "state": self.state,
            "connected": "now" if self.connected else "",
            "sort": "" if self.sort is ClientOrder.CREATED_DOWN else self.sort,
            "page": self.number,
        }
        return links(path, now)


@router.get(ROUTE)
def list_clients(request: Request, current: Visiting, ctx: CurrentContext) -> Response:
    """List the clients of the organization's environment."""
    open_dialog = request.query_params.get("dialog") == "create"
    return _list(request, current, ctx, open_dialog=open_dialog)


@router.post(ROUTE)
def create_client(
    request: Request, current: Visiting, fields: VerifiedForm, ctx: CurrentContext
) -> Response:
    """Make a client; a generated password is shown in this answer, and never again."""
    current.by.require(Permission.CLIENTS_WRITE)
    try:
        once = fields.nonce()
        spec = ClientSpec(
            fields.text("username").strip(),
            current.by.environment,
            fields.text("display_name"),
            tags=tags_of(fields),
        )
        password_hash = hashed_of(fields, current, ctx)

        def create(tx: Transaction, by: Principal) -> ClientWithPassword:
            def make() -> tuple[str, ClientWithPassword]:
                made = clients.create(tx, by, spec, password_hash)
                return made.client.id, made

            done: ClientWithPassword = browser_sessions.consume_form_nonce(
                tx, current.person.session.id, once, make
            )
            return done

        made = ctx.runner.write(create, current.by)
    except FormSentBefore as before:
        return see_other(current.url(f"{PATH}/{before.made}"), done="client-sent-before")
    except (Invalid, Conflict) as failure:
        return _list(request, current, ctx, open_dialog=True, failure=failure, sent=fields)
    if made.password is None:
        return see_other(current.url(f"{PATH}/{made.client.id}"), done="client-created")
    return client_page(request, current, ctx, made.client.id, FormResult(made=made))


def _list(
    request: Request,
    current: MemberContext,
    ctx: AppContext,
    *,
    open_dialog: bool,
    failure: WardkeyError | None = None,
    sent: Fields | None = None,
) -> Response:
    asked, live = ListFilters.of(request), _live(current, ctx)

    def look(tx: Transaction, by: Principal) -> dict[str, Any]:
        query = asked.query(live)
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
        asked=asked,
        link=asked.link(path),
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


def _live(current: MemberContext, ctx: AppContext) -> Mapping[str, int] | None:
    """Return how many sessions each user name has now; None while nobody can tell."""
    try:
        found = list_sessions(ctx.runner, ctx.broker, current.by, subscribed=False)
    except (MessagingOff, BrokerUnreachable):
        return None
    return Counter(one.username for one in found)
