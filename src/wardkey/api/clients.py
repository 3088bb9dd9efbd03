"""Routes of clients, who log in on MQTT: create, list, change, set passwords and delete."""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, ConfigDict, Field, StrictBool

from wardkey.actions.messaging import clients
from wardkey.api.idempotency import IdempotencyKey, RawBody, change_once, retry_of
from wardkey.api.schemas import Id, Input, WithSessions, ended_shape, when
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
        "different. Without one a password is generated.",
        json_schema_extra={
            "format": "password",
            "minLength": SHORTEST_PASSWORD,
            "maxLength": LONGEST_PASSWORD,
        },
    ),
]


class NewClient(Input):
    """A client to be made."""

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
        description="A key makes clients in its own environment; people choose, live by default.",
    )


class ClientChanges(Input):
    """The fields to change; those left out, or null, stay."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"example": {"display_name": "Agent 1, hall B"}}
    )

    display_name: DisplayName | None = None
    enabled: StrictBool | None = None
    tags: list[Tag] | None = Field(default=None, max_length=MOST_TAGS)


class PasswordChange(Input):
    """The new password; without one it is generated."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"example": {"password": "correct horse battery"}}
    )

    password: GivenPassword | None = None


class ClientShape(BaseModel):
    """A client as its organization sees it."""

    id: str
    username: str
    mqtt_username: str = Field(description="What the client sends as its user name on MQTT.")
    environment: Environment
    display_name: str
    enabled: bool
    tags: list[str]
    created_at: str
    created_by: str
    updated_at: str
    password_set_at: str
    last_connected_at: str | None = Field(description="At most a minute late.")


class ChangedClientShape(ClientShape, WithSessions):
    """A client as it is now, and what became of its live sessions."""


class DeletedClientShape(WithSessions):
    """A client that is gone."""

    id: str


class ClientWithPasswordShape(BaseModel):
    """A client whose password was just set."""

    client: ClientShape
    password: str | None = Field(
        description="The generated password, shown this once; null where one was given."
    )


class ClientWithNewPasswordShape(ClientWithPasswordShape, WithSessions):
    """A client with another password; an answer that is given again tells no sessions."""


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
    wanted: NewClient,
    caller: CurrentCaller,
    ctx: CurrentContext,
    body: RawBody,
    idempotency_key: IdempotencyKey = None,
) -> ClientWithPasswordShape:
    """Make a client; a generated password is in this answer and nowhere else."""
    by = caller.acting_in(wanted.environment)
    environment = wanted.environment or by.environment
    spec = ClientSpec(
        wanted.username, environment, wanted.display_name, wanted.enabled, tuple(wanted.tags)
    )
    password_hash = _hashed(ctx, by, wanted.password)

    def create_client(tx: Transaction, by: Principal) -> dict[str, Any]:
        return _with_password(clients.create(tx, by, spec, password_hash))

    retry = retry_of(request, caller, body, idempotency_key)
    return ClientWithPasswordShape.model_validate(
        change_once(ctx, by, create_client, retry, needs=Permission.CLIENTS_WRITE)[0]
    )


@router.get("/v2/clients", responses=problem_responses(errors.InvalidCursor))
def list_clients(  # noqa: PLR0917 - FastAPI's parameters
    caller: CurrentCaller,
    ctx: CurrentContext,
    search: Annotated[
        str,
        Query(max_length=200, description="In user and display name; or a tag or an id, whole."),
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
    bound = json.dumps(["clients", *by.scope, search, enabled])
    after = None
    if cursor:
        created_at, client_id = read_cursor(vault, bound, cursor)
        after = (created_at, client_id)
    query = clients.ClientQuery(search, enabled, after, limit)

    def look(tx: Transaction, by: Principal) -> ClientPage:
        found = clients.list_clients(tx, by, query)
        shown = found[:limit]
        next_cursor = None
        if len(found) > limit:
            next_cursor = write_cursor(vault, bound, [shown[-1].created_at, shown[-1].id])
        return ClientPage(
            clients=[_shape(client) for client in shown],
            next_cursor=next_cursor,
            total=clients.count_clients(tx, by, query),
        )

    look.__name__ = "list_clients"
    return ctx.runner.read(look, by)


@router.get("/v2/clients/{client_id:id}", responses=problem_responses(errors.ClientNotFound))
def get_client(client_id: Id, caller: CurrentCaller, ctx: CurrentContext) -> ClientShape:
    """Show one client, never its password."""
    return _shape(ctx.runner.read(clients.get, caller.by, client_id))


@router.patch(
    "/v2/clients/{client_id:id}",
    responses=problem_responses(
        errors.ClientNotFound, errors.InvalidName, errors.InvalidTag, body=True
    ),
)
def change_client(
    client_id: Id, wanted: ClientChanges, caller: CurrentCaller, ctx: CurrentContext
) -> ChangedClientShape:
    """Change a client's display name and tags, or let it in and out.

    Disabling it ends its live sessions before this returns.
    """
    return _changed(ctx, caller.by, client_id, wanted.model_dump(exclude_none=True))


@router.post(
    "/v2/clients/{client_id:id}/disable", responses=problem_responses(errors.ClientNotFound)
)
def disable_client(client_id: Id, caller: CurrentCaller, ctx: CurrentContext) -> ChangedClientShape:
    """Let a client in no more until it is enabled again; its live sessions are ended."""
    return _changed(ctx, caller.by, client_id, {"enabled": False})


@router.post(
    "/v2/clients/{client_id:id}/enable", responses=problem_responses(errors.ClientNotFound)
)
def enable_client(client_id: Id, caller: CurrentCaller, ctx: CurrentContext) -> ChangedClientShape:
    """Let a disabled client in again."""
    return _changed(ctx, caller.by, client_id, {"enabled": True})


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
    body: RawBody,
    wanted: PasswordChange | None = None,
    idempotency_key: IdempotencyKey = None,
) -> ClientWithNewPasswordShape:
    """Give a client a new password; the old one opens nothing from then on, and keeps nothing."""
    password_hash = _hashed(ctx, caller.by, wanted.password if wanted else None)

    def set_password(tx: Transaction, by: Principal) -> dict[str, Any]:
        return _with_password(clients.set_password(tx, by, client_id, password_hash))

    retry = retry_of(request, caller, body, idempotency_key)
    made, confirmed = change_once(
        ctx, caller.by, set_password, retry, needs=Permission.CLIENTS_WRITE
    )
    sessions = ended_shape(confirmed.sessions)
    return ClientWithNewPasswordShape.model_validate({**made, "sessions": sessions})


@router.delete("/v2/clients/{client_id:id}", responses=problem_responses(errors.ClientNotFound))
def delete_client(client_id: Id, caller: CurrentCaller, ctx: CurrentContext) -> DeletedClientShape:
    """Delete a client and end its live sessions; its user name is free from then on."""
    _, confirmed = ctx.runner.write_confirmed(clients.remove, caller.by, client_id)
    return DeletedClientShape(id=client_id, sessions=ended_shape(confirmed.sessions))


def _changed(
    ctx: CurrentContext, by: Principal, client_id: str, changes: dict[str, Any]
) -> ChangedClientShape:
    client, confirmed = ctx.runner.write_confirmed(clients.change, by, client_id, changes)
    return ChangedClientShape(**dict(_shape(client)), sessions=ended_shape(confirmed.sessions))


def _hashed(ctx: CurrentContext, by: Principal, password: str | None) -> str | None:
    """Return the hash of a password that the caller chose, a refusal noted as an action's is."""
    if password is None:
        return None
    with ctx.runner.audit_refusals("hash_password", by):
        return clients.hash_password(by, password)


def _with_password(made: clients.ClientWithPassword) -> dict[str, Any]:
    shape = ClientWithPasswordShape(client=_shape(made.client), password=made.password)
    return shape.model_dump(mode="json")


def _shape(client: ClientRecord) -> ClientShape:
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
        last_connected_at=when(client.last_connected_at),
    )
