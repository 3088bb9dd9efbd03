"""One client: who it is, where it is connected now, and everything that can be done to it."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from fastapi import Request, Response

from wardkey.actions.core import audit
from wardkey.actions.keys import insights
from wardkey.actions.messaging import clients, held_client_ids
from wardkey.actions.messaging.clients import ClientWithPassword
from wardkey.actions.messaging.held_client_ids import HeldQuery
from wardkey.adapters.broker_link import Session
from wardkey.dashboard.pages.messaging.mqtt_snippets import mqtt_snippets
from wardkey.dashboard.shell.auth import NOTHING_SENT, Fields, MemberContext, VerifiedForm, Visiting
from wardkey.dashboard.shell.once import write_once
from wardkey.dashboard.shell.rendering import fault_of, page_router, render, see_other
from wardkey.dashboard.shell.session_notices import ended_sessions, receipt_query
from wardkey.db.engine import Transaction
from wardkey.domain.clients import ClientRecord
from wardkey.domain.errors import (
    BrokerUnreachable,
    ClientIdNotFound,
    FormSentBefore,
    Invalid,
    MessagingOff,
    SessionNotFound,
    WardkeyError,
)
from wardkey.domain.permissions import Permission
from wardkey.domain.principal import Principal
from wardkey.domain.receipts import EndedSessions
from wardkey.domain.topics import filters_of
from wardkey.services.live_sessions import end_session, free_client_id, id_of, list_sessions
from wardkey.web.context import AppContext, CurrentContext
from wardkey.web.problems import status_of

router = page_router()
PATH = "messaging/clients"
_ROUTE = f"/o/{{slug}}/{{environment}}/{PATH}/{{client_id}}"

_DIALOGS = frozenset({"edit", "password", "delete"})
_EVENTS = 15
_HELD = 100


@dataclass(frozen=True, slots=True)
class LiveSession:
    """A line of the table of live sessions."""

    id: str
    session: Session
    filters: Sequence[str]

    @classmethod
    def of(cls, session: Session) -> LiveSession:
        """Return the line of a session."""
        return cls(id_of(session), session, filters_of(session.subscriptions))

    @property
    def since(self) -> int:
        """When it began, in epoch milliseconds."""
        return int(datetime.fromisoformat(self.session.started_at).timestamp() * 1000)


@dataclass(frozen=True, slots=True)
class FormResult:
    """What an action left to show on the client's page: a password, or a failure's form."""

    made: ClientWithPassword | None = None
    ended: EndedSessions | None = None
    dialog: str = ""
    failure: WardkeyError | None = None
    sent: Fields | None = None


def tags_of(fields: Fields) -> tuple[str, ...]:
    """Return the tags of a form, which stand between commas or spaces."""
    return tuple(fields.text("tags").replace(",", " ").split())


def hashed_of(fields: Fields, current: MemberContext, ctx: AppContext) -> str | None:
    """Return the hash of the password that a form gives; None where it is to be generated."""
    if fields.text("password_from") != "given":
        return None
    with ctx.runner.audit_refusals("hash_password", current.by):
        return clients.hash_password(current.by, fields.text("password"))


@router.get(_ROUTE)
def show_client(
    client_id: str, request: Request, current: Visiting, ctx: CurrentContext
) -> Response:
    """Show the client; `?dialog=` opens one of its dialogs."""
    wanted = request.query_params.get("dialog", "")
    dialog = wanted if wanted in _DIALOGS and current.by.holds(Permission.CLIENTS_WRITE) else ""
    outcome = FormResult(dialog=dialog, ended=ended_sessions(request, current, ctx))
    return client_page(request, current, ctx, client_id, outcome)


@router.get(f"{_ROUTE}/{{verb}}")
def back_to_client(client_id: str, verb: str, current: Visiting) -> Response:  # noqa: ARG001 - any
    """Go to the client's page from the address of an action that was sent before."""
    return see_other(current.url(f"{PATH}/{client_id}"))


@router.post(f"{_ROUTE}/edit")
def edit_client(
    client_id: str, request: Request, current: Visiting, fields: VerifiedForm, ctx: CurrentContext
) -> Response:
    """Change what the form says."""
    changes = {"display_name": fields.text("display_name"), "tags": tags_of(fields)}
    try:
        ctx.runner.write(clients.change, current.by, client_id, changes)
    except Invalid as failure:
        outcome = FormResult(dialog="edit", failure=failure, sent=fields)
        return client_page(request, current, ctx, client_id, outcome)
    return see_other(current.url(f"{PATH}/{client_id}"), done="client-changed")


@router.post(f"{_ROUTE}/disable")
def disable_client(
    client_id: str, current: Visiting, _fields: VerifiedForm, ctx: CurrentContext
) -> Response:
    """Let the client in no more; its live sessions are ended."""
    changes = {"enabled": False}
    _, confirmed = ctx.runner.write_confirmed(clients.change, current.by, client_id, changes)
    url = current.url(f"{PATH}/{client_id}")
    return see_other(url, done="client-disabled", **receipt_query(confirmed))


@router.post(f"{_ROUTE}/enable")
def enable_client(
    client_id: str, current: Visiting, _fields: VerifiedForm, ctx: CurrentContext
) -> Response:
    """Let the client in again."""
    ctx.runner.write(clients.change, current.by, client_id, {"enabled": True})
    return see_other(current.url(f"{PATH}/{client_id}"), done="client-enabled")


@router.post(f"{_ROUTE}/password")
def set_password(
    client_id: str, request: Request, current: Visiting, fields: VerifiedForm, ctx: CurrentContext
) -> Response:
    """Give the client a new password; a generated one is shown in this response only."""
    current.by.require(Permission.CLIENTS_WRITE)
    url = current.url(f"{PATH}/{client_id}")
    try:
        password_hash = hashed_of(fields, current, ctx)

        def set_password(tx: Transaction, by: Principal) -> tuple[str, ClientWithPassword]:
            return client_id, clients.set_password(tx, by, client_id, password_hash)

        made, confirmed = write_once(ctx, current, fields, set_password)
    except FormSentBefore:
        return see_other(url, done="client-sent-before")
    except Invalid as failure:
        outcome = FormResult(dialog="password", failure=failure, sent=fields)
        return client_page(request, current, ctx, client_id, outcome)
    if made.password is None:
        return see_other(url, done="client-password", **receipt_query(confirmed))
    outcome = FormResult(made=made, ended=confirmed.sessions)
    return client_page(request, current, ctx, client_id, outcome)


@router.post(f"{_ROUTE}/delete")
def delete_client(
    client_id: str, request: Request, current: Visiting, fields: VerifiedForm, ctx: CurrentContext
) -> Response:
    """Delete the client after its user name was typed, and end its live sessions."""
    current.by.require(Permission.CLIENTS_WRITE)
    try:
        name = ctx.runner.read(clients.get, current.by, client_id).username
        fields.require_typed(name, "client's user name")
        _, confirmed = ctx.runner.write_confirmed(clients.remove, current.by, client_id)
    except Invalid as failure:
        outcome = FormResult(dialog="delete", failure=failure, sent=fields)
        return client_page(request, current, ctx, client_id, outcome)
    return see_other(current.url(PATH), done="client-deleted", **receipt_query(confirmed))


@router.post(f"{_ROUTE}/end-session")
def end_live_session(
    client_id: str, request: Request, current: Visiting, fields: VerifiedForm, ctx: CurrentContext
) -> Response:
    """End one live session of the client."""
    try:
        end_session(ctx.runner, ctx.broker, current.by, fields.text("session"))
    except (SessionNotFound, MessagingOff, BrokerUnreachable) as failure:
        return client_page(request, current, ctx, client_id, FormResult(failure=failure))
    return see_other(current.url(f"{PATH}/{client_id}"), done="live-session-ended")


@router.post(f"{_ROUTE}/free-client-id")
def free_held_id(
    client_id: str, request: Request, current: Visiting, fields: VerifiedForm, ctx: CurrentContext
) -> Response:
    """Free one client id of the client."""
    try:
        free_client_id(ctx.runner, ctx.session_remover, current.by, fields.text("client_id"))
    except ClientIdNotFound as failure:
        return client_page(request, current, ctx, client_id, FormResult(failure=failure))
    return see_other(current.url(f"{PATH}/{client_id}"), done="client-id-freed")


def client_page(
    request: Request, current: MemberContext, ctx: AppContext, client_id: str, outcome: FormResult
) -> Response:
    """Render the client's page with the result of an action."""

    def look(tx: Transaction, by: Principal) -> dict[str, Any]:
        client = clients.get(tx, by, client_id)
        events = []
        if by.holds(Permission.AUDIT_READ):
            query = audit.AuditQuery(target_id=client_id, limit=_EVENTS)
            events = audit.list_events(tx, by, query)
        return {
            "client": client,
            "maker": insights.creator_names(tx, by, [client.created_by]).get(client.created_by, ""),
            "events": events,
            "held": held_client_ids.list_held(
                tx, by, HeldQuery(username=client.username, limit=_HELD)
            ),
        }

    values = ctx.runner.read(look, current.by)
    client: ClientRecord = values["client"]
    held = [item for item in values.pop("held") if item.holder_id == client_id]
    failure, made = outcome.failure, outcome.made
    password = (made.password or "") if made else ""
    sent = outcome.sent.texts_by_name() if outcome.sent else NOTHING_SENT
    return render(
        request,
        "clients/client.html",
        status_of(type(failure)) if failure else 200,
        current=current,
        **values,
        sessions=(live := _sessions(current, ctx, client)),
        held=held[:_HELD],
        holds_more=len(held) > _HELD,
        connected={(one.session.server, one.session.cid) for one in live or ()},
        url=current.url(f"{PATH}/{client_id}"),
        list_url=current.url(PATH),
        now=ctx.runner.database.clock(),
        why_not=current.why_not(Permission.CLIENTS_WRITE),
        once=secrets.token_hex(16),
        dialog=outcome.dialog,
        ended=outcome.ended,
        fault=fault_of(failure) if failure else None,
        sent=sent,
        password=password,
        snippets=mqtt_snippets(ctx, client.username, client.mqtt_username, password),
    )


def _sessions(
    current: MemberContext, ctx: AppContext, client: ClientRecord
) -> list[LiveSession] | None:
    """Return the client's live sessions; None while the broker can't be reached."""
    try:
        found = list_sessions(ctx.runner, ctx.broker, current.by, client.mqtt_username)
    except (MessagingOff, BrokerUnreachable):
        return None
    return [LiveSession.of(one) for one in found]
