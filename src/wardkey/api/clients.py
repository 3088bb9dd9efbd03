"""Routes of MQTT clients: create, list, change, set passwords and delete."""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, ConfigDict, Field, StrictBool

from wardkey.actions.messaging import clients
from wardkey.api.idempotency import IdempotencyKey, RawBody, build_retry, write_idempotently
from wardkey.api.schemas import Id, Input, WithSessions, iso_or_none, render_ended_sessions
from wardkey.db.engine import Transaction
from wardkey.domain import errors
from wardkey.domain.clients import (
    LONGEST_PASSWORD,
    MOST_TAGS,
    SHORTEST_PASSWORD,
    ClientRecord,
    ClientSpec,
)
from wardkey.domain.permissions import Permission
from wardkey.domain.principal import Principal
from wardkey.domain.secret import Environment
from wardkey.domain.times import iso
from wardkey.web.caller import CurrentCaller
from wardkey.web.context import CurrentContext
from wardkey.web.pagination import Cursor, read_cursor, write_cursor
from wardkey.web.problems import problem_responses, require_json

router = APIRouter(tags=["clients"], dependencies=[Depends(require_json)])

Username = Annotated[
    str,
    Field(
        description="1 to 64 characters of a-z, A-Z, 0-9, _, . and -; unique in its environment.",
        json_schema_extra={"pattern": "^[A-Za-z0-9_.-]{1,64}$"},
    ),
]
DisplayName = Annotated[
    str,
    Field(
        description="At most 100 visible characters; may be empty.",
        json_schema_extra={"format": "name", "maxLength": 100},
    ),
]
Tag = Annotated[str, Field(json_schema_extra={"pattern": "^[A-Za-z0-9_.:-]{1,32}$"})]
GivenPassword = Annotated[
    str,
    Field(
        max_length=1024,
        description=f"{SHORTEST_PASSWORD} to {LONGEST_PASSWORD} printable characters, five of them "
        "different; generated if omitted.",
        json_schema_extra={
            "format": "password",
            "minLength": SHORTEST_PASSWORD,
            "maxLength": LONGEST_PASSWORD,
        },
    ),
]


class NewClient(Input):
    """A client to create."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "example": {"username": "agent-01", "display_name": "Agent 1", "tags": ["agents"]}
        },
    )

    username: Username
    password: GivenPassword | None = None
    display_name: DisplayName = ""
    enabled: StrictBool = True
    tags: list[Tag] = Field(default=[], max_length=MOST_TAGS)
    environment: Environment | None = Field(
        default=None,
        description="Keys create clients in their own environment; users choose, live by default.",
    )


class ClientChanges(Input):
    """The fields to change; omitted or null fields stay."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"example": {"display_name": "Agent 1, hall B"}}
    )

    display_name: DisplayName | None = None
    enabled: StrictBool | None = None
    tags: list[Tag] | None = Field(default=None, max_length=MOST_TAGS)


class PasswordChange(Input):
    """The new password; if omitted, one is generated."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"example": {"password": "correct horse battery"}}
    )

    password: GivenPassword | None = None


class ClientShape(BaseModel):
    """A client as its organization sees it."""

    id: str
    username: str
    mqtt_username: str = Field(description="The user name to send in MQTT CONNECT.")
    environment: Environment
    display_name: str
    enabled: bool
    tags: list[str]
    created_at: str
    created_by: str
    updated_at: str
    password_set_at: str
    last_connected_at: str | None = Field(description="Up to a minute old.")


class ChangedClientShape(ClientShape, WithSessions):
    """The changed client, and the live sessions that were ended."""


class DeletedClientShape(WithSessions):
    """The deleted client, and the live sessions that were ended."""

    id: str


class ClientWithPasswordShape(BaseModel):
    """A client whose password was just set."""

    client: ClientShape
    password: str | None = Field(
        description="The generated password, shown only once; null if you set one."
    )


class ClientWithNewPasswordShape(ClientWithPasswordShape, WithSessions):
    """A client with a new password; a repeated response lists no sessions."""


class ClientPage(BaseModel):
    """A page of clients, newest first; `next_cursor` is null on the last."""

    clients: list[ClientShape]
    next_cursor: str | None
    total: int


@router.post(
    "/v2/clients",
    status_code=201,
    responses=problem_responses(
        errors.InvalidUsername,
        errors.InvalidName,
        errors.InvalidTag,
        errors.WeakPassword,
        errors.Overloaded,
        errors.UsernameTaken,
        errors.WeakIdempotencyKey,
        errors.IdempotencyKeyReused,
        body=True,
    ),
)
def create_client(  # noqa: PLR0917 - FastAPI's parameters
    request: Request,
    body: NewClient,
    caller: CurrentCaller,
    ctx: CurrentContext,
    raw_body: RawBody,
    idempotency_key: IdempotencyKey = None,
) -> ClientWithPasswordShape:
    """Create a client.

    A generated password is shown only in this response.
    """
    by = caller.acting_in(body.environment)
    environment = body.environment or by.environment
    spec = ClientSpec(body.username, environment, body.display_name, body.enabled, tuple(body.tags))
    password_hash = _hash_password(ctx, by, body.password)

    def create_client(tx: Transaction, by: Principal) -> dict[str, Any]:
        return _render_with_password(clients.create(tx, by, spec, password_hash))

    retry = build_retry(request, caller, raw_body, idempotency_key)
    return ClientWithPasswordShape.model_validate(
        write_idempotently(ctx, by, create_client, retry, needs=Permission.CLIENTS_WRITE)[0]
    )


@router.get("/v2/clients", responses=problem_responses(errors.InvalidCursor))
def list_clients(  # noqa: PLR0917 - FastAPI's parameters
    caller: CurrentCaller,
    ctx: CurrentContext,
    search: Annotated[
        str,
        Query(
            max_length=200, description="Part of the user or display name, or a whole tag or id."
        ),
    ] = "",
    environment: Environment | None = None,
    enabled: bool | None = None,  # noqa: FBT001 - a query parameter
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Cursor = "",
) -> ClientPage:
    """List the clients of the organization's environment, newest first."""
    by = caller.acting_in(environment)
    if environment is not None and environment is not by.environment:
        raise errors.WrongEnvironment
    vault = ctx.runner.database.vault
    binding = json.dumps(["clients", *by.scope, search, enabled])
    after = None
    if cursor:
        created_at, client_id = read_cursor(vault, binding, cursor)
        after = (created_at, client_id)
    query = clients.ClientQuery(search, enabled, after, limit)

    def read_page(tx: Transaction, by: Principal) -> ClientPage:
        records = clients.list_clients(tx, by, query)
        page = records[:limit]
        next_cursor = None
        if len(records) > limit:
            next_cursor = write_cursor(vault, binding, [page[-1].created_at, page[-1].id])
        return ClientPage(
            clients=[_render_client(client) for client in page],
            next_cursor=next_cursor,
            total=clients.count_clients(tx, by, query),
        )

    read_page.__name__ = "list_clients"
    return ctx.runner.read(read_page, by)


@router.get("/v2/clients/{client_id:id}", responses=problem_responses(errors.ClientNotFound))
def get_client(client_id: Id, caller: CurrentCaller, ctx: CurrentContext) -> ClientShape:
    """Get a client; its password is never returned."""
    return _render_client(ctx.runner.read(clients.get, caller.by, client_id))


@router.patch(
    "/v2/clients/{client_id:id}",
    responses=problem_responses(
        errors.ClientNotFound, errors.InvalidName, errors.InvalidTag, body=True
    ),
)
def change_client(
    client_id: Id, body: ClientChanges, caller: CurrentCaller, ctx: CurrentContext
) -> ChangedClientShape:
    """Change a client's display name or tags, or enable or disable it.

    Disabling it ends its live sessions before the call returns.
    """
    return _change_client(ctx, caller.by, client_id, body.model_dump(exclude_none=True))


@router.post(
    "/v2/clients/{client_id:id}/disable", responses=problem_responses(errors.ClientNotFound)
)
def disable_client(client_id: Id, caller: CurrentCaller, ctx: CurrentContext) -> ChangedClientShape:
    """Disable a client and end its live sessions.

    It can't log in until it is enabled again.
    """
    return _change_client(ctx, caller.by, client_id, {"enabled": False})


@router.post(
    "/v2/clients/{client_id:id}/enable", responses=problem_responses(errors.ClientNotFound)
)
def enable_client(client_id: Id, caller: CurrentCaller, ctx: CurrentContext) -> ChangedClientShape:
    """Enable a disabled client."""
    return _change_client(ctx, caller.by, client_id, {"enabled": True})


@router.post(
    "/v2/clients/{client_id:id}/password",
    responses=problem_responses(
        errors.ClientNotFound,
        errors.WeakPassword,
        errors.Overloaded,
        errors.WeakIdempotencyKey,
        errors.IdempotencyKeyReused,
        body=True,
    ),
)
def set_client_password(  # noqa: PLR0917 - FastAPI's parameters
    request: Request,
    client_id: Id,
    caller: CurrentCaller,
    ctx: CurrentContext,
    raw_body: RawBody,
    body: PasswordChange | None = None,
    idempotency_key: IdempotencyKey = None,
) -> ClientWithNewPasswordShape:
    """Set or generate a client's password.

    The old password stops working at once, and sessions that it opened are ended.
    """
    password_hash = _hash_password(ctx, caller.by, body.password if body else None)

    def set_password(tx: Transaction, by: Principal) -> dict[str, Any]:
        return _render_with_password(clients.set_password(tx, by, client_id, password_hash))

    retry = build_retry(request, caller, raw_body, idempotency_key)
    result, confirmed = write_idempotently(
        ctx, caller.by, set_password, retry, needs=Permission.CLIENTS_WRITE
    )
    sessions = render_ended_sessions(confirmed.sessions)
    return ClientWithNewPasswordShape.model_validate({**result, "sessions": sessions})


@router.delete("/v2/clients/{client_id:id}", responses=problem_responses(errors.ClientNotFound))
def delete_client(client_id: Id, caller: CurrentCaller, ctx: CurrentContext) -> DeletedClientShape:
    """Delete a client and end its live sessions.

    Its user name can be taken again.
    """
    _, confirmed = ctx.runner.write_confirmed(clients.remove, caller.by, client_id)
    return DeletedClientShape(id=client_id, sessions=render_ended_sessions(confirmed.sessions))


def _change_client(
    ctx: CurrentContext, by: Principal, client_id: str, changes: dict[str, Any]
) -> ChangedClientShape:
    client, confirmed = ctx.runner.write_confirmed(clients.change, by, client_id, changes)
    return ChangedClientShape(
        **dict(_render_client(client)), sessions=render_ended_sessions(confirmed.sessions)
    )


def _hash_password(ctx: CurrentContext, by: Principal, password: str | None) -> str | None:
    """Hash a password that the caller chose; a refusal is audited like an action's."""
    if password is None:
        return None
    with ctx.runner.audit_refusals("hash_password", by):
        return clients.hash_password(by, password)


def _render_with_password(created: clients.ClientWithPassword) -> dict[str, Any]:
    shape = ClientWithPasswordShape(
        client=_render_client(created.client), password=created.password
    )
    return shape.model_dump(mode="json")


def _render_client(client: ClientRecord) -> ClientShape:
    return ClientShape(
        id=client.id,
        username=client.username,
        mqtt_username=client.mqtt_username,
        environment=client.environment,
        display_name=client.display_name,
        enabled=client.enabled,
        tags=list(client.tags),
        created_at=iso(client.created_at),
        created_by=client.created_by,
        updated_at=iso(client.updated_at),
        password_set_at=iso(client.password_set_at),
        last_connected_at=iso_or_none(client.last_connected_at),
    )
