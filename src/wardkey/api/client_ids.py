"""Routes of MQTT client ids: which are held and by whom, and freeing one."""

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

_LONGEST = 256


class HolderShape(BaseModel):
    """The holder of a client id: a client, or a user with grants; empty texts for one that left."""

    kind: Literal["client", "user"]
    id: str
    username: str


class HeldIdShape(BaseModel):
    """A client id that no other than its holder can log in with."""

    client_id: str
    holder: HolderShape
    since: str
    last_seen_at: str = Field(description="The last login, or a later time at which it was live.")
    connected: bool | None = Field(description="Null while the broker cannot be asked.")


class HeldIdPage(BaseModel):
    """Held client ids in their order as text; `total` counts those that fit the filter."""

    client_ids: list[HeldIdShape]
    next_cursor: str | None
    total: int


@router.get("/v2/client-ids", responses=problem_responses(errors.InvalidCursor))
def list_client_ids(  # noqa: PLR0917 - FastAPI's parameters
    caller: CurrentCaller,
    ctx: CurrentContext,
    search: Annotated[str, Query(max_length=_LONGEST, description="In the client id.")] = "",
    username: Annotated[
        str,
        Query(
            max_length=128, description="The holder's user name, with or without what follows @."
        ),
    ] = "",
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Cursor = "",
) -> HeldIdPage:
    """List the MQTT client ids that are held in the organization's environment."""
    vault = ctx.runner.database.vault
    bound = json.dumps(["client-ids", *caller.by.scope, search, username])
    after = read_cursor(vault, bound, cursor)[0] if cursor else ""
    query = HeldQuery(search, username, after, limit)

    def look(tx: Transaction, by: Principal) -> tuple[list[HeldId], int]:
        return held_client_ids.list_held(tx, by, query), held_client_ids.count_held(tx, by, query)

    look.__name__ = "list_client_ids"
    found, total = ctx.runner.read(look, caller.by)
    shown = found[:limit]
    live = live_sessions.live_connections(ctx.runner, ctx.link, caller.by) if shown else None
    more = len(found) > limit
    return HeldIdPage(
        client_ids=[_shape(one, None if live is None else one.connection in live) for one in shown],
        next_cursor=write_cursor(vault, bound, [shown[-1].mqtt_id]) if more else None,
        total=total,
    )


@router.delete(
    "/v2/client-ids", status_code=204, responses=problem_responses(errors.ClientIdNotFound)
)
def free_client_id(
    caller: CurrentCaller,
    ctx: CurrentContext,
    client_id: Annotated[str, Query(min_length=1, max_length=_LONGEST)],
) -> None:
    """Free a client id: end its live session and remove what is queued for it."""
    live_sessions.free_client_id(ctx.runner, ctx.session_remover, caller.by, client_id)


def _shape(one: HeldId, connected: bool | None) -> HeldIdShape:  # noqa: FBT001 - three answers
    return HeldIdShape(
        client_id=one.mqtt_id,
        holder=HolderShape(
            kind="client" if one.kind is ActorKind.CLIENT else "user",
            id=one.holder_id,
            username=one.username,
        ),
        since=iso(one.taken_at),
        last_seen_at=iso(one.seen_at),
        connected=connected,
    )
