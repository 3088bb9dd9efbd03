"""Routes of MQTT client ids: list them with their holders, and free them."""

from __future__ import annotations

import json
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from wardkey.actions.messaging import held_client_ids
from wardkey.actions.messaging.held_client_ids import HeldId, HeldQuery
from wardkey.db.engine import Transaction
from wardkey.domain import errors
from wardkey.domain.acl import ActorKind
from wardkey.domain.principal import Principal
from wardkey.domain.times import iso
from wardkey.services import live_sessions
from wardkey.web.caller import CurrentCaller
from wardkey.web.context import CurrentContext
from wardkey.web.pagination import Cursor, read_cursor, write_cursor
from wardkey.web.problems import problem_responses

router = APIRouter(tags=["sessions"])

_MAX_LENGTH = 256


class HolderShape(BaseModel):
    """The holder of a client id; `id` and `username` are empty for a user without grants."""

    kind: Literal["client", "user"]
    id: str
    username: str


class HeldIdShape(BaseModel):
    """A client id that only its holder can log in with."""

    client_id: str
    holder: HolderShape
    since: str
    last_seen_at: str = Field(
        description="The last login, or a later time at which it was connected."
    )
    connected: bool | None = Field(description="Null while the broker is unreachable.")


class HeldIdPage(BaseModel):
    """Held client ids in text order; `total` counts all that match the filter."""

    client_ids: list[HeldIdShape]
    next_cursor: str | None
    total: int


@router.get("/v2/client-ids", responses=problem_responses(errors.InvalidCursor))
def list_client_ids(  # noqa: PLR0917 - FastAPI's parameters
    caller: CurrentCaller,
    ctx: CurrentContext,
    search: Annotated[
        str, Query(max_length=_MAX_LENGTH, description="Part of the client id.")
    ] = "",
    username: Annotated[
        str,
        Query(max_length=128, description="The holder's user name, with or without the @ part."),
    ] = "",
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Cursor = "",
) -> HeldIdPage:
    """List the MQTT client ids held in the organization's environment."""
    vault = ctx.runner.database.vault
    binding = json.dumps(["client-ids", *caller.by.scope, search, username])
    after = read_cursor(vault, binding, cursor)[0] if cursor else ""
    query = HeldQuery(search, username, after, limit)

    def read_page(tx: Transaction, by: Principal) -> tuple[list[HeldId], int]:
        return held_client_ids.list_held(tx, by, query), held_client_ids.count_held(tx, by, query)

    read_page.__name__ = "list_client_ids"
    held_ids, total = ctx.runner.read(read_page, caller.by)
    page = held_ids[:limit]
    live = live_sessions.live_connections(ctx.runner, ctx.link, caller.by) if page else None
    more = len(held_ids) > limit
    return HeldIdPage(
        client_ids=[
            _render_held_id(held, None if live is None else held.connection in live)
            for held in page
        ],
        next_cursor=write_cursor(vault, binding, [page[-1].mqtt_id]) if more else None,
        total=total,
    )


@router.delete(
    "/v2/client-ids", status_code=204, responses=problem_responses(errors.ClientIdNotFound)
)
def free_client_id(
    caller: CurrentCaller,
    ctx: CurrentContext,
    client_id: Annotated[str, Query(min_length=1, max_length=_MAX_LENGTH)],
) -> None:
    """Free a client id.

    This ends its live session and removes the messages queued for it.
    """
    live_sessions.free_client_id(ctx.runner, ctx.session_remover, caller.by, client_id)


def _render_held_id(held: HeldId, connected: bool | None) -> HeldIdShape:  # noqa: FBT001 - has three values
    return HeldIdShape(
        client_id=held.mqtt_id,
        holder=HolderShape(
            kind="client" if held.kind is ActorKind.CLIENT else "user",
            id=held.holder_id,
            username=held.username,
        ),
        since=iso(held.taken_at),
        last_seen_at=iso(held.seen_at),
        connected=connected,
    )
