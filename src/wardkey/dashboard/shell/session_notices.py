"""What became of live MQTT sessions, told again on the page that follows a change."""

from __future__ import annotations

from fastapi import Request

from wardkey.actions.messaging import session_receipts
from wardkey.dashboard.shell.auth import MemberContext
from wardkey.domain.errors import ReceiptNotFound
from wardkey.domain.receipts import Confirmation, EndedSessions
from wardkey.web.context import AppContext


def receipt_query(confirmed: Confirmation) -> dict[str, str]:
    """Return what the next page's address says of the sessions that a change ended."""
    if confirmed.sessions is None or not confirmed.sessions.receipt_id:
        return {}
    return {"receipt": confirmed.sessions.receipt_id}


def ended_sessions(
    request: Request, current: MemberContext, ctx: AppContext
) -> EndedSessions | None:
    """Return the receipt that the address names, if there is one."""
    named = request.query_params.get("receipt", "")
    if not named:
        return None
    try:
        return ctx.runner.read(session_receipts.get, current.by, named)
    except ReceiptNotFound:
        return None
