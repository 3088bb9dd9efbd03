"""Routes of live MQTT sessions: who is connected, and ending one."""

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

_LONGEST = 128
SessionId = Annotated[str, Path(pattern=r"^ses_[A-Z0-9]{56}_[0-9]{1,20}$", max_length=_LONGEST)]


class SessionShape(BaseModel):
    """A live MQTT session; `received` and `sent` count messages as the broker sees them."""

    id: str
    client_id: str
    username: str
    address: str
    started_at: str
    subscriptions: list[str]
    received: int
    sent: int


class SessionPage(BaseModel):
    """Live sessions, latest first; `total` counts those that fit the filter."""

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
            max_length=_LONGEST,
            description="A user name, with or without what follows @.",
        ),
    ] = "",
    search: Annotated[str, Query(max_length=_LONGEST)] = "",
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> SessionPage:
    """List the organization's live MQTT sessions, as every node of the broker tells them."""
    on_wire = with_organization(username, *caller.by.scope)
    found = live_sessions.list_sessions(ctx.runner, ctx.broker, caller.by, on_wire)
    wanted = [one for one in found if search in one.client_id or search in one.username]
    return SessionPage(sessions=[_shape(one) for one in wanted[:limit]], total=len(wanted))


@router.get(
    "/v2/sessions/receipts/{receipt_id:id}",
    responses=problem_responses(errors.ReceiptNotFound),
)
def get_session_receipt(
    receipt_id: Id, caller: CurrentCaller, ctx: CurrentContext
) -> EndedSessionsShape:
    """Show how many live sessions a change has ended by now, or in all once it is not pending."""
    return EndedSessionsShape.of(ctx.runner.read(session_receipts.get, caller.by, receipt_id))


@router.delete(
    "/v2/sessions/{session_id}",
    status_code=204,
    responses=problem_responses(
        errors.SessionNotFound, errors.MessagingOff, errors.BrokerUnreachable
    ),
)
def end_session(session_id: SessionId, caller: CurrentCaller, ctx: CurrentContext) -> None:
    """End a live session; its client may log in again unless it is disabled."""
    live_sessions.end_session(ctx.runner, ctx.broker, caller.by, session_id)


def _shape(one: Session) -> SessionShape:
    return SessionShape(
        id=live_sessions.id_of(one),
        client_id=one.client_id,
        username=one.username,
        address=one.address,
        started_at=one.started_at,
        subscriptions=filters_of(one.subscriptions),
        received=one.received,
        sent=one.sent,
    )
