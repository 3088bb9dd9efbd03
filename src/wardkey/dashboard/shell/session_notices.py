"""The notice about ended MQTT sessions on the page after a change."""

from __future__ import annotations

from fastapi import Request

from wardkey.actions.messaging import session_receipts
from wardkey.dashboard.shell.auth import MemberContext
from wardkey.domain.errors import ReceiptNotFound
from wardkey.domain.receipts import Confirmation, EndedSessions
from wardkey.web.context import AppContext


def receipt_query(confirmed: Confirmation) -> dict[str, str]:
    """Return the query parameters that identify the sessions a change ended."""
    if confirmed.sessions is None or not confirmed.sessions.receipt_id:
        return {}
    return {"receipt": confirmed.sessions.receipt_id}


def ended_sessions(
    request: Request, current: MemberContext, ctx: AppContext
) -> EndedSessions | None:
    """Return the ended sessions of the receipt in the URL, or None."""
    receipt_id = request.query_params.get("receipt", "")
    if not receipt_id:
        return None
    try:
        return ctx.runner.read(session_receipts.get, current.by, receipt_id)
    except ReceiptNotFound:
        return None
