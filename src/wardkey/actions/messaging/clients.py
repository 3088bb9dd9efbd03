"""Clients: make, list, change and delete who may log in on MQTT, in one organization's room."""

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

_GENERATED = 32
_CHANGEABLE = frozenset({"display_name", "tags", "enabled"})
_NAME = func.lower(clients.c.username)
# Those that never connected come first, whatever a storage thinks of NULL.
_CONNECTED = func.coalesce(clients.c.last_connected_at, 0)


@dataclass(frozen=True, slots=True)
class ClientWithPassword:
    """A client whose password was set; its text is here, and nowhere else, if it was generated."""

    client: ClientRecord
    password: str | None = field(default=None, repr=False)


class ClientOrder(StrEnum):
    """How a list of clients is sorted; `-` is downwards."""

    CREATED = "created"
    CREATED_DOWN = "-created"
    USERNAME = "username"
    USERNAME_DOWN = "-username"
    CONNECTED = "connected"
    CONNECTED_DOWN = "-connected"


@dataclass(frozen=True, slots=True)
class ClientQuery:
    """Which clients to list, after the first `offset`.

    `after` (created_at, id) goes on behind that client and fits CREATED_DOWN alone. `usernames`
    are those of whom some are wanted, without the organization; None is everybody.
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
    ClientOrder.USERNAME: (_NAME, clients.c.id),
    ClientOrder.USERNAME_DOWN: (_NAME.desc(), clients.c.id.desc()),
    ClientOrder.CONNECTED: (_CONNECTED, clients.c.id),
    ClientOrder.CONNECTED_DOWN: (_CONNECTED.desc(), clients.c.id.desc()),
}


def hash_password(by: Principal, password: str) -> str:
    """Return the Argon2id hash of a password that somebody chose; raises `WeakPassword`.

    It takes tens of milliseconds, so it is called before a transaction is opened.
    """
    by.require(Permission.CLIENTS_WRITE)
    check_client_password(password)
    return people.hash_password(password, by.address)


def create(
    tx: Transaction, by: Principal, spec: ClientSpec, password_hash: str | None = None
) -> ClientWithPassword:
    """Make a client; without a password's hash it gets a generated one, which the answer holds.

    Raises what `clean_client` raises, `UsernameTaken`, `OrganizationSuspended`.
    """
    by.require(Permission.CLIENTS_WRITE)
    if spec.environment is not by.environment:
        raise WrongEnvironment(
            f"You act in {by.environment}; a {spec.environment} client is made in "
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
    return ClientWithPassword(_client(row), password)


def list_clients(tx: Transaction, by: Principal, query: ClientQuery) -> list[ClientRecord]:
    """Return the clients that fit `query`, one more than `limit` if there are."""
    by.require(Permission.CLIENTS_READ)
    conditions = [in_scope(clients, by.scope), *_fitting(query)]
    if query.after is not None:
        conditions.append(tuple_(clients.c.created_at, clients.c.id) < query.after)
    rows = tx.connection.execute(
        select(clients)
        .where(*conditions)
        .order_by(*_ORDER[query.order])
        .limit(query.limit + 1)
        .offset(query.offset)
    )
    return [_client(row) for row in rows]


def count_clients(tx: Transaction, by: Principal, query: ClientQuery) -> int:
    """Return how many clients fit `query` in all."""
    by.require(Permission.CLIENTS_READ)
    statement = (
        select(func.count())
        .select_from(clients)
        .where(in_scope(clients, by.scope), *_fitting(query))
    )
    return int(tx.connection.execute(statement).scalar_one())


def get(tx: Transaction, by: Principal, client_id: str) -> ClientRecord:
    """Return one client; raises `ClientNotFound`."""
    by.require(Permission.CLIENTS_READ)
    return _get(tx, by, client_id)


def change(
    tx: Transaction, by: Principal, client_id: str, changes: Mapping[str, Any]
) -> ClientRecord:
    """Change the named ones of `display_name`, `tags` and `enabled`.

    Raises `ClientNotFound`, `InvalidName`, `InvalidTag`, `TooManyItems`.
    """
    by.require(Permission.CLIENTS_WRITE)
    before = _get(tx, by, client_id)
    if changes.get("enabled") is False:
        tx.affected_subjects.add(client_id)
    unknown = sorted(set(changes) - _CHANGEABLE)
    if unknown:
        raise InvalidRequest(f"{unknown[0]} of a client cannot be changed.")
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
    """Give a client the password of that hash, or a generated one, which the answer holds.

    The old one ends at once. Raises `ClientNotFound`, `OrganizationSuspended`.
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
    """Delete a client, whose user name is free from then on; raises `ClientNotFound`."""
    by.require(Permission.CLIENTS_WRITE)
    gone = tx.connection.execute(
        delete(clients)
        .where(clients.c.id == client_id, in_scope(clients, by.scope))
        .returning(clients.c.username)
    ).one_or_none()
    if gone is None:
        raise ClientNotFound
    tx.affected_subjects.add(client_id)
    details = {"username": gone.username}
    record(tx, by, "client.deleted", Target("client", client_id), details)


def _fitting(query: ClientQuery) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    text = query.search.strip()
    if text:
        # A user name is searched for as it stands on the wire, too.
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
        # Written into the statement, because databases bound how many parameters it has.
        names: BindParameter[list[str]] = bindparam(
            "names", sorted(query.usernames), expanding=True, literal_execute=True
        )
        conditions.append(clients.c.username.in_(names))
    return conditions


def _password(tx: Transaction, password_hash: str | None) -> tuple[str | None, dict[str, Any]]:
    """Return the text of a generated password, if one was, and the columns of either kind."""
    if password_hash is not None:
        columns = {"password_hash": password_hash, "digest": None, "pepper_version": None}
        return None, {**columns, "password_set_at": tx.now}
    text = random_text(_GENERATED)
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
    return _client(row)


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
    return _client(row)


def _client(row: Row[Any]) -> ClientRecord:
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
