"""Routes of live MQTT sessions: list them, and end one."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel

from wardkey.actions.messaging import session_receipts
from wardkey.adapters.broker_link import Session
from wardkey.api.schemas import EndedSessionsShape, Id
from wardkey.domain import errors
from wardkey.domain.topics import filters_of
from wardkey.domain.usernames import with_organization
from wardkey.services import live_sessions
from wardkey.web.caller import CurrentCaller
from wardkey.web.context import CurrentContext
from wardkey.web.problems import problem_responses

router = APIRouter(tags=["sessions"])

_MAX_LENGTH = 128
SessionId = Annotated[str, Path(pattern=r"^ses_[A-Z0-9]{56}_[0-9]{1,20}$", max_length=_MAX_LENGTH)]


class SessionShape(BaseModel):
    """A live MQTT session; `received` and `sent` count messages from the broker's side."""

    id: str
    client_id: str
    username: str
    address: str
    started_at: str
    subscriptions: list[str]
    received: int
    sent: int


class SessionPage(BaseModel):
    """Live sessions, latest first; `total` counts all that match the filter."""

    sessions: list[SessionShape]
    total: int


@router.get(
    "/v2/sessions", responses=problem_responses(errors.MessagingOff, errors.BrokerUnreachable)
)
def list_sessions(
    caller: CurrentCaller,
    ctx: CurrentContext,
    username: Annotated[
        str,
        Query(
            max_length=_MAX_LENGTH,
            description="A user name, with or without the @ part.",
        ),
    ] = "",
    search: Annotated[str, Query(max_length=_MAX_LENGTH)] = "",
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> SessionPage:
    """List the organization's live MQTT sessions on all nodes of the broker."""
    mqtt_username = with_organization(username, *caller.by.scope)
    matches = [
        session
        for session in live_sessions.list_sessions(ctx.runner, ctx.broker, caller.by, mqtt_username)
        if search in session.client_id or search in session.username
    ]
    return SessionPage(
        sessions=[_render_session(session) for session in matches[:limit]], total=len(matches)
    )


@router.get(
    "/v2/sessions/receipts/{receipt_id:id}",
    responses=problem_responses(errors.ReceiptNotFound),
)
def get_session_receipt(
    receipt_id: Id, caller: CurrentCaller, ctx: CurrentContext
) -> EndedSessionsShape:
    """Get the number of live sessions that a change ended; it is final once not pending."""
    return EndedSessionsShape.of(ctx.runner.read(session_receipts.get, caller.by, receipt_id))


@router.delete(
    "/v2/sessions/{session_id}",
    status_code=204,
    responses=problem_responses(
        errors.SessionNotFound, errors.MessagingOff, errors.BrokerUnreachable
    ),
)
def end_session(session_id: SessionId, caller: CurrentCaller, ctx: CurrentContext) -> None:
    """End a live session; its client can log in again unless it is disabled."""
    live_sessions.end_session(ctx.runner, ctx.broker, caller.by, session_id)


def _render_session(session: Session) -> SessionShape:
    return SessionShape(
        id=live_sessions.id_of(session),
        client_id=session.client_id,
        username=session.username,
        address=session.address,
        started_at=session.started_at,
        subscriptions=filters_of(session.subscriptions),
        received=session.received,
        sent=session.sent,
    )
