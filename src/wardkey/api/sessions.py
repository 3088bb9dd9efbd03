"""Routes of live MQTT sessions: who is connected, and ending one."""

from __future__ import annotations

from typing import Annotated

from anyio.from_thread import run
from fastapi import APIRouter, Path, Query
from pydantic import BaseModel

from wardkey.actions import session_receipts, sessions
from wardkey.api.shapes import EndedSessionsShape, Id
from wardkey.domain import errors
from wardkey.domain.permissions import Permission
from wardkey.domain.topics import filters_of
from wardkey.outside.broker_link import Session
from wardkey.outside.publishers import BRIDGE
from wardkey.web.caller import Known
from wardkey.web.context import Here
from wardkey.web.problems import told

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


@router.get("/v2/sessions", responses=told(errors.MessagingOff, errors.BrokerUnreachable))
def list_sessions(
    caller: Known,
    here: Here,
    username: Annotated[str, Query(max_length=_LONGEST)] = "",
    search: Annotated[str, Query(max_length=_LONGEST)] = "",
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> SessionPage:
    """List the organization's live MQTT sessions, as every node of the broker tells them."""
    with here.runner.noting("list_sessions", caller.by):
        caller.by.require(Permission.CLIENTS_READ)
    found = run(here.broker.sessions, *caller.by.room, username)
    wanted = [
        one
        for one in found
        if one.username != BRIDGE and (search in one.client_id or search in one.username)
    ]
    wanted.sort(key=lambda one: one.started_at, reverse=True)
    return SessionPage(sessions=[_shape(one) for one in wanted[:limit]], total=len(wanted))


@router.get(
    "/v2/sessions/receipts/{receipt_id:id}",
    responses=told(errors.ReceiptNotFound),
)
def get_session_receipt(receipt_id: Id, caller: Known, here: Here) -> EndedSessionsShape:
    """Show how many live sessions a change has ended by now, or in all once it is not pending."""
    return EndedSessionsShape.of(here.runner.look(session_receipts.get, caller.by, receipt_id))


@router.delete(
    "/v2/sessions/{session_id}",
    status_code=204,
    responses=told(errors.SessionNotFound, errors.MessagingOff, errors.BrokerUnreachable),
)
def end_session(session_id: SessionId, caller: Known, here: Here) -> None:
    """End a live session; its client may log in again unless it is disabled."""
    link = here.broker
    with here.runner.noting("end_session", caller.by):
        caller.by.require(Permission.CLIENTS_WRITE)
    found = run(link.sessions, *caller.by.room, "")
    ended = next((one for one in found if _id(one) == session_id), None)
    if ended is None:
        raise errors.SessionNotFound
    here.runner.change(sessions.note_ended, caller.by, ended.client_id, ended.username)
    run(link.kick, ended.server, ended.cid)


def _id(one: Session) -> str:
    return f"ses_{one.server}_{one.cid}"


def _shape(one: Session) -> SessionShape:
    return SessionShape(
        id=_id(one),
        client_id=one.client_id,
        username=one.username,
        address=one.address,
        started_at=one.started_at,
        subscriptions=filters_of(one.subscriptions),
        received=one.received,
        sent=one.sent,
    )
