"""Routes of the audit log: list, filter, export and verify the organization's chain."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel

from wardkey.actions.core import audit, audit_walks
from wardkey.api.schemas import Time, read_time
from wardkey.domain import errors
from wardkey.domain.permissions import Permission
from wardkey.domain.times import iso
from wardkey.web.caller import CurrentCaller
from wardkey.web.context import CurrentContext
from wardkey.web.exports import LONGEST_S, Chunks
from wardkey.web.pagination import Cursor, read_cursor, write_cursor
from wardkey.web.problems import problem_responses

router = APIRouter(tags=["audit"])

TextFilter = Annotated[str, Query(max_length=64)]
TimeFilter = Annotated[Time | None, Query(description="RFC 3339 with an offset.")]


class AuditEventShape(BaseModel):
    """An audit event; `mac` links it to the previous one."""

    id: str
    seq: int
    at: str
    environment: str
    actor_kind: str
    actor_id: str
    actor_label: str
    action: str
    target_kind: str
    target_id: str
    address: str
    user_agent: str
    details: dict[str, Any]
    mac: str


class AuditPage(BaseModel):
    """A page of events, newest first; `next_cursor` is null on the last."""

    events: list[AuditEventShape]
    next_cursor: str | None


class BreakShape(BaseModel):
    """A break in the chain."""

    seq: int
    what: str


class ChainState(BaseModel):
    """Whether the chain is intact, and its signed head, to be stored elsewhere."""

    holds: bool
    events: int
    breaks: list[BreakShape]
    head: str


@router.get(
    "/v2/audit-events", responses=problem_responses(errors.InvalidCursor, errors.InvalidTime)
)
def list_events(  # noqa: PLR0917 - FastAPI's parameters
    caller: CurrentCaller,
    ctx: CurrentContext,
    action: TextFilter = "",
    actor_id: TextFilter = "",
    target_id: TextFilter = "",
    since: TimeFilter = None,
    until: TimeFilter = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Cursor = "",
) -> AuditPage:
    """List the organization's audit events, newest first."""
    vault = ctx.runner.database.vault
    binding = json.dumps(["audit", caller.by.org_id, action, actor_id, target_id, since, until])
    before = read_cursor(vault, binding, cursor)[0] if cursor else None
    query = audit.AuditQuery(
        action,
        actor_id,
        target_id,
        read_time(since, "since"),
        read_time(until, "until"),
        before,
        limit + 1,
    )
    events = ctx.runner.read(audit.list_events, caller.by, query)
    page = events[:limit]
    next_cursor = write_cursor(vault, binding, [page[-1].seq]) if len(events) > limit else None
    return AuditPage(events=[_render_event(event) for event in page], next_cursor=next_cursor)


@router.get(
    "/v2/audit-events/export",
    responses={
        **problem_responses(errors.InvalidTime, errors.Overloaded),
        200: {"content": {"application/x-ndjson": {"schema": {"type": "string"}}}},
    },
    response_class=Response,
)
def export_events(  # noqa: PLR0917 - FastAPI's parameters
    caller: CurrentCaller,
    ctx: CurrentContext,
    action: TextFilter = "",
    actor_id: TextFilter = "",
    target_id: TextFilter = "",
    since: TimeFilter = None,
    until: TimeFilter = None,
) -> Response:
    """Export events as NDJSON, oldest first, one JSON object a line.

    The export contains every event up to its start and runs for at most ten minutes. An
    organization can run two exports at once.
    """
    query = audit.AuditQuery(
        action, actor_id, target_id, read_time(since, "since"), read_time(until, "until")
    )
    with ctx.runner.audit_refusals("export_events", caller.by):
        caller.by.require(Permission.AUDIT_READ)

    def chunks() -> Chunks:
        for events in audit_walks.export_events(ctx.runner.database, caller.by, query):
            yield "".join(map(_render_line, events))

    return ctx.exports.begin(caller.by.org_id, chunks(), "application/x-ndjson")


@router.get(
    "/v2/audit-events/verify",
    responses=problem_responses(errors.LiveKeyRequired, errors.Overloaded),
)
def verify_chain(caller: CurrentCaller, ctx: CurrentContext) -> ChainState:
    """Verify the organization's audit chain and list every edit, gap and reordering."""
    by, org_id = caller.by, caller.by.org_id
    with ctx.runner.audit_refusals("verify_chain", by):
        by.require(Permission.AUDIT_READ)
        by.require_live()
    with ctx.checks.reserve(org_id):
        count, breaks = audit_walks.verify_chain(
            ctx.runner.database, by, org_id, within_s=LONGEST_S
        )
    head = ctx.runner.read(audit.export_head, by, org_id)
    return ChainState(
        holds=not breaks,
        events=count,
        breaks=[BreakShape(seq=item.seq, what=item.what) for item in breaks],
        head=head,
    )


def _render_line(event: audit.AuditEvent) -> str:
    return json.dumps(_render_event(event).model_dump(), ensure_ascii=False) + "\n"


def _render_event(event: audit.AuditEvent) -> AuditEventShape:
    values = asdict(event)
    del values["org_id"]
    return AuditEventShape(**{**values, "at": iso(event.at)})
