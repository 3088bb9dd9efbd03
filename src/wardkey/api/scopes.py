"""Routes of the catalogue of scopes for the organization's own services."""

from __future__ import annotations

import json
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query
from pydantic import BaseModel, ConfigDict, Field

from wardkey.actions.keys import scopes
from wardkey.api.schemas import SCOPE, Input
from wardkey.db.engine import Transaction
from wardkey.domain import errors
from wardkey.domain.principal import Principal
from wardkey.domain.times import iso
from wardkey.web.caller import CurrentCaller
from wardkey.web.context import CurrentContext
from wardkey.web.pagination import Cursor, read_cursor, write_cursor
from wardkey.web.problems import problem_responses, require_json

router = APIRouter(tags=["scopes"], dependencies=[Depends(require_json)])

ScopeName = Annotated[str, Path(pattern=SCOPE, max_length=98, examples=["invoices:read"])]
Description = Annotated[
    str,
    Field(
        description="At most 200 characters, for the people who issue keys.",
        json_schema_extra={"format": "text", "maxLength": scopes.LONGEST_DESCRIPTION},
    ),
]


class NewScope(Input):
    """A scope to add to the catalogue."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "example": {"name": "invoices:read", "description": "Read all invoices"}
        },
    )

    name: str = Field(
        description="`resource:action` in lower case; the resource is not one of Wardkey's own.",
        json_schema_extra={"format": "scope", "pattern": SCOPE, "maxLength": 98},
    )
    description: Description = ""


class ScopeChanges(Input):
    """The new description; a scope's name never changes."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"example": {"description": "Read all invoices"}}
    )

    description: Description


class ScopeShape(BaseModel):
    """A scope of the catalogue, which live and test share."""

    id: str
    name: str
    description: str
    keys: int = Field(
        description="How many keys that are not revoked hold it, in both environments."
    )
    created_at: str
    created_by: str


class ScopePage(BaseModel):
    """A page of scopes by name; `next_cursor` is null on the last."""

    scopes: list[ScopeShape]
    next_cursor: str | None
    total: int


@router.get("/v2/scopes", responses=problem_responses(errors.InvalidCursor))
def list_scopes(
    caller: CurrentCaller,
    ctx: CurrentContext,
    search: Annotated[
        str, Query(max_length=200, description="Part of the name or the description.")
    ] = "",
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Cursor = "",
) -> ScopePage:
    """List the organization's scopes by name."""
    vault = ctx.runner.database.vault
    binding = json.dumps(["scopes", caller.by.org_id, search])
    after = read_cursor(vault, binding, cursor)[0] if cursor else ""

    def look(tx: Transaction, by: Principal) -> ScopePage:
        records = scopes.list_scopes(tx, by, scopes.ScopeQuery(search, after, limit))
        page = records[:limit]
        has_more = len(records) > limit
        return ScopePage(
            scopes=[_render_scope(scope) for scope in page],
            next_cursor=write_cursor(vault, binding, [page[-1].name]) if has_more else None,
            total=scopes.count_scopes(tx, by, search),
        )

    return ctx.runner.read(look, caller.by)


@router.post(
    "/v2/scopes",
    status_code=201,
    responses=problem_responses(
        errors.LiveKeyRequired,
        errors.InvalidScopeName,
        errors.InvalidText,
        errors.DuplicateScope,
        errors.TooManyScopes,
        body=True,
    ),
)
def create_scope(body: NewScope, caller: CurrentCaller, ctx: CurrentContext) -> ScopeShape:
    """Add a scope to the catalogue, so keys can be issued with it."""
    return _render_scope(ctx.runner.write(scopes.create, caller.by, body.name, body.description))


@router.patch(
    "/v2/scopes/{name}",
    responses=problem_responses(
        errors.LiveKeyRequired, errors.ScopeNotFound, errors.InvalidText, body=True
    ),
)
def change_scope(
    name: ScopeName, body: ScopeChanges, caller: CurrentCaller, ctx: CurrentContext
) -> ScopeShape:
    """Change a scope's description."""
    return _render_scope(ctx.runner.write(scopes.change, caller.by, name, body.description))


@router.delete(
    "/v2/scopes/{name}",
    status_code=204,
    responses=problem_responses(errors.LiveKeyRequired, errors.ScopeNotFound, errors.ScopeInUse),
)
def delete_scope(name: ScopeName, caller: CurrentCaller, ctx: CurrentContext) -> None:
    """Delete a scope, unless a key that is not revoked holds it."""
    ctx.runner.write(scopes.remove, caller.by, name)


def _render_scope(scope: scopes.Scope) -> ScopeShape:
    return ScopeShape(
        id=scope.id,
        name=scope.name,
        description=scope.description,
        keys=scope.keys,
        created_at=iso(scope.created_at),
        created_by=scope.created_by,
    )
