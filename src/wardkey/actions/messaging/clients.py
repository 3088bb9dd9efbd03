"""Actions that create, list, change and delete the MQTT clients of a tenant scope."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Row,
    Text,
    bindparam,
    cast,
    delete,
    func,
    insert,
    or_,
    select,
    tuple_,
    update,
)

from wardkey.actions.accounts import people
from wardkey.actions.core.audit import Target, record
from wardkey.actions.core.tenancy import open_organization
from wardkey.db.engine import Transaction
from wardkey.db.schema import clients
from wardkey.db.scoped import in_scope
from wardkey.domain.clients import (
    ClientRecord,
    ClientSpec,
    check_client_password,
    clean_client,
    clean_display_name,
    clean_tags,
)
from wardkey.domain.errors import (
    ClientNotFound,
    InvalidRequest,
    UsernameTaken,
    WrongEnvironment,
)
from wardkey.domain.ids import new_id
from wardkey.domain.permissions import Permission
from wardkey.domain.principal import Principal
from wardkey.domain.secret import Environment, random_text

_PASSWORD_LENGTH = 32
_CHANGEABLE = frozenset({"display_name", "tags", "enabled"})
_USERNAME_KEY = func.lower(clients.c.username)
# Clients that never connected sort first, however a database orders NULL.
_LAST_CONNECTED = func.coalesce(clients.c.last_connected_at, 0)


@dataclass(frozen=True, slots=True)
class ClientWithPassword:
    """A client whose password was set; a generated password is returned only here."""

    client: ClientRecord
    password: str | None = field(default=None, repr=False)


class ClientOrder(StrEnum):
    """How a list of clients is sorted; `-` means descending."""

    CREATED = "created"
    CREATED_DOWN = "-created"
    USERNAME = "username"
    USERNAME_DOWN = "-username"
    CONNECTED = "connected"
    CONNECTED_DOWN = "-connected"


@dataclass(frozen=True, slots=True)
class ClientQuery:
    """Which clients to list, after the first `offset`.

    `after` is the (created_at, id) of the last client seen, for CREATED_DOWN only. `usernames` are
    user names without the organization; None means all.
    """

    search: str = ""
    enabled: bool | None = None
    after: tuple[int, str] | None = None
    limit: int = 50
    offset: int = 0
    usernames: frozenset[str] | None = None
    order: ClientOrder = ClientOrder.CREATED_DOWN


_ORDER: Mapping[ClientOrder, tuple[ColumnElement[Any], ...]] = {
    ClientOrder.CREATED: (clients.c.created_at, clients.c.id),
    ClientOrder.CREATED_DOWN: (clients.c.created_at.desc(), clients.c.id.desc()),
    ClientOrder.USERNAME: (_USERNAME_KEY, clients.c.id),
    ClientOrder.USERNAME_DOWN: (_USERNAME_KEY.desc(), clients.c.id.desc()),
    ClientOrder.CONNECTED: (_LAST_CONNECTED, clients.c.id),
    ClientOrder.CONNECTED_DOWN: (_LAST_CONNECTED.desc(), clients.c.id.desc()),
}


def hash_password(by: Principal, password: str) -> str:
    """Return the Argon2id hash of a chosen password; raises `WeakPassword`.

    It takes tens of milliseconds, so call it before opening a transaction.
    """
    by.require(Permission.CLIENTS_WRITE)
    check_client_password(password)
    return people.hash_password(password, by.address)


def create(
    tx: Transaction, by: Principal, spec: ClientSpec, password_hash: str | None = None
) -> ClientWithPassword:
    """Create a client; without a password hash, a password is generated and returned.

    Raises what `clean_client` raises, `UsernameTaken`, `OrganizationSuspended`.
    """
    by.require(Permission.CLIENTS_WRITE)
    if spec.environment is not by.environment:
        raise WrongEnvironment(
            f"This request acts in {by.environment}; create {spec.environment} clients in "
            f"{spec.environment}.",
        )
    spec = clean_client(spec)
    open_organization(tx, by)
    taken = select(clients.c.id).where(
        clients.c.username == spec.username, in_scope(clients, by.scope)
    )
    if tx.connection.execute(taken).first() is not None:
        raise UsernameTaken(
            f"Another client of {by.environment} is named {spec.username}; choose another user "
            "name, or delete that client first.",
            field="username",
        )
    password, columns = _password(tx, password_hash)
    client_id = new_id("cli", tx.now)
    row = tx.connection.execute(
        insert(clients).returning(clients),
        {
            "id": client_id,
            "org_id": by.org_id,
            "environment": by.environment,
            "username": spec.username,
            "display_name": spec.display_name,
            "enabled": spec.enabled,
            "tags": list(spec.tags),
            "created_at": tx.now,
            "created_by": by.id,
            "updated_at": tx.now,
            **columns,
        },
    ).one()
    details = {
        "username": spec.username,
        "enabled": spec.enabled,
        "generated": password is not None,
    }
    record(tx, by, "client.created", Target("client", client_id), details)
    return ClientWithPassword(_client_record(row), password)


def list_clients(tx: Transaction, by: Principal, query: ClientQuery) -> list[ClientRecord]:
    """Return the clients that match `query`, and one more than `limit` if there are more."""
    by.require(Permission.CLIENTS_READ)
    conditions = [in_scope(clients, by.scope), *_conditions(query)]
    if query.after is not None:
        conditions.append(tuple_(clients.c.created_at, clients.c.id) < query.after)
    rows = tx.connection.execute(
        select(clients)
        .where(*conditions)
        .order_by(*_ORDER[query.order])
        .limit(query.limit + 1)
        .offset(query.offset)
    )
    return [_client_record(row) for row in rows]


def count_clients(tx: Transaction, by: Principal, query: ClientQuery) -> int:
    """Return the total number of clients that match `query`."""
    by.require(Permission.CLIENTS_READ)
    statement = (
        select(func.count())
        .select_from(clients)
        .where(in_scope(clients, by.scope), *_conditions(query))
    )
    return int(tx.connection.execute(statement).scalar_one())


def get(tx: Transaction, by: Principal, client_id: str) -> ClientRecord:
    """Return one client; raises `ClientNotFound`."""
    by.require(Permission.CLIENTS_READ)
    return _get(tx, by, client_id)


def change(
    tx: Transaction, by: Principal, client_id: str, changes: Mapping[str, Any]
) -> ClientRecord:
    """Change any of `display_name`, `tags` and `enabled`.

    Raises `ClientNotFound`, `InvalidName`, `InvalidTag`, `TooManyItems`.
    """
    by.require(Permission.CLIENTS_WRITE)
    before = _get(tx, by, client_id)
    if changes.get("enabled") is False:
        tx.affected_subjects.add(client_id)
    unknown = sorted(set(changes) - _CHANGEABLE)
    if unknown:
        raise InvalidRequest(
            f"A client's {unknown[0]} can't be changed; change display_name, tags or enabled."
        )
    values = dict(changes)
    if "display_name" in values:
        values["display_name"] = clean_display_name(values["display_name"])
    if "tags" in values:
        values["tags"] = clean_tags(tuple(values["tags"]))
    changed = sorted(name for name, value in values.items() if getattr(before, name) != value)
    if not changed:
        return before
    if "tags" in values:
        values["tags"] = list(values["tags"])
    after = _update(tx, by, client_id, values)
    target = Target("client", client_id)
    if "enabled" in changed:
        record(tx, by, "client.enabled" if after.enabled else "client.disabled", target)
        changed.remove("enabled")
    if changed:
        record(tx, by, "client.updated", target, {"changed": changed})
    return after


def set_password(
    tx: Transaction, by: Principal, client_id: str, password_hash: str | None = None
) -> ClientWithPassword:
    """Set a client's password by its hash, or generate one and return it.

    The old password stops working immediately. Raises `ClientNotFound`, `OrganizationSuspended`.
    """
    by.require(Permission.CLIENTS_WRITE)
    open_organization(tx, by)
    password, columns = _password(tx, password_hash)
    after = _update(tx, by, client_id, columns)
    tx.affected_subjects.add(client_id)
    details = {"generated": password is not None}
    record(tx, by, "client.password_set", Target("client", client_id), details)
    return ClientWithPassword(after, password)


def remove(tx: Transaction, by: Principal, client_id: str) -> None:
    """Delete a client, which frees its user name; raises `ClientNotFound`."""
    by.require(Permission.CLIENTS_WRITE)
    deleted = tx.connection.execute(
        delete(clients)
        .where(clients.c.id == client_id, in_scope(clients, by.scope))
        .returning(clients.c.username)
    ).one_or_none()
    if deleted is None:
        raise ClientNotFound
    tx.affected_subjects.add(client_id)
    details = {"username": deleted.username}
    record(tx, by, "client.deleted", Target("client", client_id), details)


def _conditions(query: ClientQuery) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    text = query.search.strip()
    if text:
        # The search also accepts a user name as sent in CONNECT (name@organization).
        name = text.partition("@")[0] or text
        conditions.append(
            or_(
                clients.c.username.icontains(name, autoescape=True),
                clients.c.display_name.icontains(text, autoescape=True),
                clients.c.id == text,
                cast(clients.c.tags, Text).contains(f'"{text}"', autoescape=True),
            )
        )
    if query.enabled is not None:
        conditions.append(clients.c.enabled.is_(query.enabled))
    if query.usernames is not None:
        # Literals, because databases limit the number of parameters.
        names: BindParameter[list[str]] = bindparam(
            "names", sorted(query.usernames), expanding=True, literal_execute=True
        )
        conditions.append(clients.c.username.in_(names))
    return conditions


def _password(tx: Transaction, password_hash: str | None) -> tuple[str | None, dict[str, Any]]:
    """Return the generated password, if any, and the columns to store."""
    if password_hash is not None:
        columns = {"password_hash": password_hash, "digest": None, "pepper_version": None}
        return None, {**columns, "password_set_at": tx.now}
    text = random_text(_PASSWORD_LENGTH)
    return text, {
        "password_hash": None,
        "digest": tx.vault.digest(text),
        "pepper_version": tx.vault.version,
        "password_set_at": tx.now,
    }


def _get(tx: Transaction, by: Principal, client_id: str) -> ClientRecord:
    row = tx.connection.execute(
        select(clients).where(clients.c.id == client_id, in_scope(clients, by.scope))
    ).one_or_none()
    if row is None:
        raise ClientNotFound
    return _client_record(row)


def _update(
    tx: Transaction, by: Principal, client_id: str, values: Mapping[str, Any]
) -> ClientRecord:
    row = tx.connection.execute(
        update(clients)
        .where(clients.c.id == client_id, in_scope(clients, by.scope))
        .values(**values, updated_at=tx.now)
        .returning(clients)
    ).one_or_none()
    if row is None:
        raise ClientNotFound
    return _client_record(row)


def _client_record(row: Row[Any]) -> ClientRecord:
    return ClientRecord(
        id=row.id,
        org_id=row.org_id,
        environment=Environment(row.environment),
        username=row.username,
        display_name=row.display_name,
        enabled=row.enabled,
        tags=tuple(row.tags),
        password_set_at=row.password_set_at,
        created_at=row.created_at,
        created_by=row.created_by,
        updated_at=row.updated_at,
        last_connected_at=row.last_connected_at,
    )
