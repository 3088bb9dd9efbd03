"""One client: who it is, where it is connected now, and everything that can be done to it."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from fastapi import Request, Response

from wardkey.actions.accounts import browser_sessions
from wardkey.actions.core import audit
from wardkey.actions.keys import insights
from wardkey.actions.messaging import clients
from wardkey.actions.messaging.clients import ClientWithPassword
from wardkey.adapters.broker_link import Session
from wardkey.dashboard.pages.messaging.mqtt_snippets import mqtt_snippets
from wardkey.dashboard.shell.auth import NOTHING_SENT, Checked, Fields, Visiting, Visitor
from wardkey.dashboard.shell.rendering import fault_of, page, pages, see_other
from wardkey.dashboard.shell.session_notices import ended_sessions, receipt_query
from wardkey.db.engine import Transaction
from wardkey.domain.clients import ClientRecord
from wardkey.domain.errors import (
    BrokerUnreachable,
    Failure,
    FormSentBefore,
    Invalid,
    InvalidRequest,
    MessagingOff,
    SessionNotFound,
)
from wardkey.domain.permissions import Permission
from wardkey.domain.principal import Principal
from wardkey.domain.receipts import EndedSessions
from wardkey.domain.topics import filters_of
from wardkey.services.live_sessions import end_session, id_of, list_sessions
from wardkey.web.context import Context, Here
from wardkey.web.problems import status_of

router = pages()
PATH = "messaging/clients"
_ROUTE = f"/o/{{slug}}/{{environment}}/{PATH}/{{client_id}}"

_DIALOGS = frozenset({"edit", "password", "delete"})
_EVENTS = 15


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
class Outcome:
    """What an action left to show on the client's page: a password, or a failure's form."""

    made: ClientWithPassword | None = None
    ended: EndedSessions | None = None
    dialog: str = ""
    failure: Failure | None = None
    sent: Fields | None = None


def tags_of(fields: Fields) -> tuple[str, ...]:
    """Return the tags of a form, which stand between commas or spaces."""
    return tuple(fields.text("tags").replace(",", " ").split())


def hashed_of(fields: Fields, visitor: Visitor, here: Context) -> str | None:
    """Return the hash of the password that a form gives; None where it is to be generated."""
    if fields.text("password_from") != "given":
        return None
    with here.runner.noting("hash_password", visitor.by):
        return clients.hash_password(visitor.by, fields.text("password"))


@router.get(_ROUTE)
def show_client(client_id: str, request: Request, visitor: Visiting, here: Here) -> Response:
    """Show the client; `?dialog=` opens one of its dialogs."""
    wanted = request.query_params.get("dialog", "")
    dialog = wanted if wanted in _DIALOGS and visitor.by.holds(Permission.CLIENTS_WRITE) else ""
    outcome = Outcome(dialog=dialog, ended=ended_sessions(request, visitor, here))
    return client_page(request, visitor, here, client_id, outcome)


@router.get(f"{_ROUTE}/{{verb}}")
def back_to_client(client_id: str, verb: str, visitor: Visiting) -> Response:  # noqa: ARG001 - any
    """Go to the client's page from the address of an action that was sent before."""
    return see_other(visitor.url(f"{PATH}/{client_id}"))


@router.post(f"{_ROUTE}/edit")
def edit_client(
    client_id: str, request: Request, visitor: Visiting, fields: Checked, here: Here
) -> Response:
    """Change what the form says."""
    changes = {"display_name": fields.text("display_name"), "tags": tags_of(fields)}
    try:
        here.runner.change(clients.change, visitor.by, client_id, changes)
    except Invalid as failure:
        outcome = Outcome(dialog="edit", failure=failure, sent=fields)
        return client_page(request, visitor, here, client_id, outcome)
    return see_other(visitor.url(f"{PATH}/{client_id}"), done="client-changed")


@router.post(f"{_ROUTE}/disable")
def disable_client(client_id: str, visitor: Visiting, _fields: Checked, here: Here) -> Response:
    """Let the client in no more; its live sessions are ended."""
    changes = {"enabled": False}
    _, confirmed = here.runner.change_confirmed(clients.change, visitor.by, client_id, changes)
    url = visitor.url(f"{PATH}/{client_id}")
    return see_other(url, done="client-disabled", **receipt_query(confirmed))


@router.post(f"{_ROUTE}/enable")
def enable_client(client_id: str, visitor: Visiting, _fields: Checked, here: Here) -> Response:
    """Let the client in again."""
    here.runner.change(clients.change, visitor.by, client_id, {"enabled": True})
    return see_other(visitor.url(f"{PATH}/{client_id}"), done="client-enabled")


@router.post(f"{_ROUTE}/password")
def set_password(
    client_id: str, request: Request, visitor: Visiting, fields: Checked, here: Here
) -> Response:
    """Give the client a new password; one that is generated is shown in this answer alone."""
    visitor.by.require(Permission.CLIENTS_WRITE)
    url = visitor.url(f"{PATH}/{client_id}")
    try:
        once = fields.once()
        password_hash = hashed_of(fields, visitor, here)

        def set_password(tx: Transaction, by: Principal) -> ClientWithPassword:
            def make() -> tuple[str, ClientWithPassword]:
                return client_id, clients.set_password(tx, by, client_id, password_hash)

            done: ClientWithPassword = browser_sessions.once(
                tx, visitor.person.session.id, once, make
            )
            return done

        made, confirmed = here.runner.change_confirmed(set_password, visitor.by)
    except FormSentBefore:
        return see_other(url, done="client-sent-before")
    except Invalid as failure:
        outcome = Outcome(dialog="password", failure=failure, sent=fields)
        return client_page(request, visitor, here, client_id, outcome)
    if made.password is None:
        return see_other(url, done="client-password", **receipt_query(confirmed))
    outcome = Outcome(made=made, ended=confirmed.sessions)
    return client_page(request, visitor, here, client_id, outcome)


@router.post(f"{_ROUTE}/delete")
def delete_client(
    client_id: str, request: Request, visitor: Visiting, fields: Checked, here: Here
) -> Response:
    """Delete the client, whose user name was typed, and end its live sessions."""
    visitor.by.require(Permission.CLIENTS_WRITE)
    try:
        name = here.runner.look(clients.get, visitor.by, client_id).username
        if fields.text("confirmation").strip() != name:
            told = "Type the user name as it stands there."
            raise InvalidRequest(told, errors=(("confirmation", told),))
        _, confirmed = here.runner.change_confirmed(clients.remove, visitor.by, client_id)
    except Invalid as failure:
        outcome = Outcome(dialog="delete", failure=failure, sent=fields)
        return client_page(request, visitor, here, client_id, outcome)
    return see_other(visitor.url(PATH), done="client-deleted", **receipt_query(confirmed))


@router.post(f"{_ROUTE}/end-session")
def end_live_session(
    client_id: str, request: Request, visitor: Visiting, fields: Checked, here: Here
) -> Response:
    """End one live session of the client."""
    try:
        end_session(here, visitor.by, fields.text("session"))
    except (SessionNotFound, MessagingOff, BrokerUnreachable) as failure:
        return client_page(request, visitor, here, client_id, Outcome(failure=failure))
    return see_other(visitor.url(f"{PATH}/{client_id}"), done="live-session-ended")


def client_page(
    request: Request, visitor: Visitor, here: Context, client_id: str, outcome: Outcome
) -> Response:
    """Return the client's page with what an action left to show."""

    def look(tx: Transaction, by: Principal) -> dict[str, Any]:
        client = clients.get(tx, by, client_id)
        events = []
        if by.holds(Permission.AUDIT_READ):
            query = audit.AuditQuery(target_id=client_id, limit=_EVENTS)
            events = audit.list_events(tx, by, query)
        return {
            "client": client,
            "maker": insights.makers(tx, by, [client.created_by]).get(client.created_by, ""),
            "events": events,
        }

    seen = here.runner.look(look, visitor.by)
    client: ClientRecord = seen["client"]
    failure, made = outcome.failure, outcome.made
    password = (made.password or "") if made else ""
    sent = outcome.sent.texts_by_name() if outcome.sent else NOTHING_SENT
    return page(
        request,
        "clients/client.html",
        status_of(type(failure)) if failure else 200,
        visitor=visitor,
        **seen,
        sessions=_sessions(visitor, here, client),
        url=visitor.url(f"{PATH}/{client_id}"),
        list_url=visitor.url(PATH),
        now=here.runner.database.clock(),
        why_not=visitor.why_not(Permission.CLIENTS_WRITE),
        once=secrets.token_hex(16),
        dialog=outcome.dialog,
        ended=outcome.ended,
        fault=fault_of(failure) if failure else None,
        sent=sent,
        password=password,
        snippets=mqtt_snippets(here, client.username, client.mqtt_username, password),
    )


def _sessions(visitor: Visitor, here: Context, client: ClientRecord) -> list[LiveSession] | None:
    """Return the client's live sessions; None while the broker cannot be asked."""
    try:
        found = list_sessions(here, visitor.by, client.mqtt_username)
    except (MessagingOff, BrokerUnreachable):
        return None
    return [LiveSession.of(one) for one in found]
