"""Routes of grants: list them, get one, and end one or many."""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, ConfigDict, Field

from wardkey.actions.grants import grants
from wardkey.api.schemas import Id, Input, WithSessions, render_ended_sessions
from wardkey.db.engine import Transaction
from wardkey.domain import errors
from wardkey.domain.grants import CutoffKind, GrantRecord, GrantStatus
from wardkey.domain.principal import Principal
from wardkey.domain.secret import Environment
from wardkey.domain.times import iso
from wardkey.web.caller import CurrentCaller
from wardkey.web.context import CurrentContext
from wardkey.web.pagination import Cursor, read_cursor, write_cursor
from wardkey.web.problems import problem_responses, require_json

router = APIRouter(tags=["tokens"], dependencies=[Depends(require_json)])

UserFilter = Annotated[str, Query(max_length=255)]
IdFilter = Annotated[str, Query(max_length=64)]


class GrantShape(BaseModel):
    """A grant as its organization sees it, without its password."""

    token_id: str
    mqtt_username: str
    environment: Environment
    status: GrantStatus
    provider_id: str | None = Field(description="Null if a server created the grant.")
    user_id: str
    user_email: str
    key_id: str | None = Field(description="The key that requested it, if any.")
    created_at: str
    expires_at: str
    refreshable_until: str
    replaced_by: str | None = Field(description="The grant that replaced it at its refresh.")


class GrantPage(BaseModel):
    """A page of grants, newest first; `next_cursor` is null on the last."""

    tokens: list[GrantShape]
    next_cursor: str | None


def _require_exactly_one(schema: dict[str, Any]) -> None:
    """Require exactly one of the fields, not null."""
    fields = schema["properties"]
    schema["properties"] = {name: part["anyOf"][0] for name, part in fields.items()}
    schema |= {"example": {"user_id": "user_abc"}, "minProperties": 1, "maxProperties": 1}


class RevokeMany(Input):
    """The grants to end, by exactly one of these fields."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=_require_exactly_one)

    user_id: Annotated[str, Field(min_length=1, max_length=255)] | None = None
    user_email: Annotated[str, Field(min_length=1, max_length=254)] | None = None
    provider_id: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    key_id: Annotated[str, Field(min_length=1, max_length=64)] | None = None


class RevokedGrantShape(GrantShape, WithSessions):
    """The ended grant, and its live sessions that were ended."""


class RevokedMany(WithSessions):
    """The number of active grants that were ended, and of their live sessions."""

    revoked: int


_KINDS = {
    "user_id": CutoffKind.USER,
    "user_email": CutoffKind.EMAIL,
    "provider_id": CutoffKind.PROVIDER,
    "key_id": CutoffKind.KEY,
}


@router.get("/v2/tokens", responses=problem_responses(errors.InvalidCursor))
def list_tokens(  # noqa: PLR0917 - FastAPI's parameters
    caller: CurrentCaller,
    ctx: CurrentContext,
    user_id: UserFilter = "",
    user_email: UserFilter = "",
    provider_id: IdFilter = "",
    key_id: IdFilter = "",
    active: bool | None = None,  # noqa: FBT001 - a query parameter
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Cursor = "",
) -> GrantPage:
    """List the grants of the environment that can still be refreshed, newest first."""
    vault = ctx.runner.database.vault
    filters = [user_id, user_email, provider_id, key_id, active]
    binding = json.dumps(["tokens", *caller.by.scope, *filters])
    after = None
    if cursor:
        created_at, kid = read_cursor(vault, binding, cursor)
        after = (created_at, kid)
    query = grants.GrantQuery(
        user_id, user_email.lower(), provider_id, key_id, active, after, limit
    )

    def list_grants(tx: Transaction, by: Principal) -> GrantPage:
        records = grants.list_grants(tx, by, query)
        page = records[:limit]
        next_cursor = None
        if len(records) > limit:
            next_cursor = write_cursor(vault, binding, [page[-1].created_at, page[-1].kid])
        return GrantPage(
            tokens=[_render_grant(grant, tx.now) for grant in page], next_cursor=next_cursor
        )

    return ctx.runner.read(list_grants, caller.by)


@router.get("/v2/tokens/{token_id:id}", responses=problem_responses(errors.GrantNotFound))
def get_token(token_id: Id, caller: CurrentCaller, ctx: CurrentContext) -> GrantShape:
    """Get a grant."""
    grant = ctx.runner.read(grants.get, caller.by, token_id)
    return _render_grant(grant, ctx.runner.database.clock())


@router.delete("/v2/tokens/{token_id:id}", responses=problem_responses(errors.GrantNotFound))
def revoke_token(token_id: Id, caller: CurrentCaller, ctx: CurrentContext) -> RevokedGrantShape:
    """End a grant permanently; live sessions that it opened end within 100 ms."""
    grant, confirmed = ctx.runner.write_confirmed(grants.revoke, caller.by, token_id)
    shape = _render_grant(grant, ctx.runner.database.clock())
    return RevokedGrantShape(**dict(shape), sessions=render_ended_sessions(confirmed.sessions))


@router.post(
    "/v2/tokens/revoke",
    responses=problem_responses(errors.ProviderNotFound, errors.KeyNotFound, body=True),
)
def revoke_tokens(body: RevokeMany, caller: CurrentCaller, ctx: CurrentContext) -> RevokedMany:
    """End all existing grants of a user, an e-mail address, a provider or a key."""
    fields = body.model_dump(exclude_none=True)
    if len(fields) != 1 or len(body.model_fields_set) != 1:
        raise errors.InvalidRequest(
            "Send exactly one of user_id, user_email, provider_id and key_id.",
            errors=tuple((name, "Send only one of these.") for name in fields),
        )
    ((name, subject),) = fields.items()
    kind = _KINDS[name]
    if kind is CutoffKind.EMAIL:
        subject = subject.lower()
    count, confirmed = ctx.runner.write_confirmed(grants.revoke_all, caller.by, kind, subject)
    return RevokedMany(revoked=count, sessions=render_ended_sessions(confirmed.sessions))


def _render_grant(grant: GrantRecord, now: int) -> GrantShape:
    return GrantShape(
        token_id=grant.token_id,
        mqtt_username=grant.mqtt_username,
        environment=grant.environment,
        status=grant.status(now),
        provider_id=grant.provider_id or None,
        user_id=grant.user_id,
        user_email=grant.user_email,
        key_id=grant.key_id or None,
        created_at=iso(grant.created_at),
        expires_at=iso(grant.expires_at),
        refreshable_until=iso(grant.refreshable_until),
        replaced_by=f"tok_{grant.replaced_by}" if grant.replaced_by else None,
    )
