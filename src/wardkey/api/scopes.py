"""Routes of the catalogue of scopes of the organization's own services."""

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
    """Another description; a scope's name never changes."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"example": {"description": "Read all invoices"}}
    )

    description: Description


class ScopeShape(BaseModel):
    """A scope of the catalogue, which live and test share."""

    id: str
    name: str
    description: str
    keys: int = Field(description="How many keys of both environments hold it and are not revoked.")
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
    bound = json.dumps(["scopes", caller.by.org_id, search])
    after = read_cursor(vault, bound, cursor)[0] if cursor else ""

    def look(tx: Transaction, by: Principal) -> ScopePage:
        found = scopes.list_scopes(tx, by, scopes.ScopeQuery(search, after, limit))
        shown = found[:limit]
        more = len(found) > limit
        return ScopePage(
            scopes=[_scope_shape(item) for item in shown],
            next_cursor=write_cursor(vault, bound, [shown[-1].name]) if more else None,
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
def create_scope(wanted: NewScope, caller: CurrentCaller, ctx: CurrentContext) -> ScopeShape:
    """Add a scope to the catalogue, so that keys can be issued with it."""
    return _scope_shape(ctx.runner.write(scopes.create, caller.by, wanted.name, wanted.description))


@router.patch(
    "/v2/scopes/{name}",
    responses=problem_responses(
        errors.LiveKeyRequired, errors.ScopeNotFound, errors.InvalidText, body=True
    ),
)
def change_scope(
    name: ScopeName, wanted: ScopeChanges, caller: CurrentCaller, ctx: CurrentContext
) -> ScopeShape:
    """Change the description of a scope."""
    return _scope_shape(ctx.runner.write(scopes.change, caller.by, name, wanted.description))


@router.delete(
    "/v2/scopes/{name}",
    status_code=204,
    responses=problem_responses(errors.LiveKeyRequired, errors.ScopeNotFound, errors.ScopeInUse),
)
def delete_scope(name: ScopeName, caller: CurrentCaller, ctx: CurrentContext) -> None:
    """Delete a scope from the catalogue, unless a key that is not revoked holds it."""
    ctx.runner.write(scopes.remove, caller.by, name)


def _scope_shape(item: scopes.Scope) -> ScopeShape:
    return ScopeShape(
        id=item.id,
        name=item.name,
        description=item.description,
        keys=item.keys,
        created_at=iso(item.created_at),
        created_by=item.created_by,
    )
