"""The catalogue of an organization's scopes, shared by live and test."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Row,
    Select,
    TableValuedAlias,
    and_,
    delete,
    func,
    insert,
    or_,
    select,
    update,
)

from wardkey.actions.core.audit import Target, record
from wardkey.db.engine import Transaction
from wardkey.db.schema import keys, scopes
from wardkey.domain.errors import (
    DuplicateScope,
    InvalidScopeName,
    InvalidText,
    ScopeInUse,
    ScopeNotFound,
    TooManyScopes,
    UnknownScope,
)
from wardkey.domain.ids import new_id
from wardkey.domain.names import clean_text
from wardkey.domain.permissions import (
    Permission,
    is_permission,
    is_scope,
    near_misses,
    respell,
    suggest,
)
from wardkey.domain.principal import Principal

LONGEST_DESCRIPTION = 200
MOST_SCOPES = 1000


@dataclass(frozen=True, slots=True)
class Scope:
    """A scope of the organization's own services; `created_at` in epoch milliseconds.

    `keys` is the number of keys in both environments that hold it and are not revoked.
    """

    id: str
    name: str
    description: str
    created_at: int
    created_by: str
    keys: int = 0


@dataclass(frozen=True, slots=True)
class ScopeQuery:
    """Search and page for a list of scopes by name, after the name `after` or `offset` scopes.

    `counts_keys` can be turned off because counting the keys with each scope reads every key.
    """

    search: str = ""
    after: str = ""
    limit: int = 50
    offset: int = 0
    counts_keys: bool = True


def create(tx: Transaction, by: Principal, name: str, description: str = "") -> Scope:
    """Add a scope to the catalogue.

    Raises `InvalidScopeName`, `InvalidText`, `DuplicateScope`, `TooManyScopes`.
    """
    by.require(Permission.SCOPES_GRANT)
    by.require_live()
    if not is_scope(name):
        raise _invalid_name(name)
    description = _clean_description(description)
    if _find_known(tx, by, [name]):
        raise DuplicateScope(field="name")
    return _add(tx, by, name, description)


def list_scopes(tx: Transaction, by: Principal, query: ScopeQuery) -> list[Scope]:
    """Return the scopes that match `query` by name, one more than `limit` if there are more."""
    by.require(Permission.KEYS_READ)
    rows = tx.connection.execute(
        _select_matching(by, query.search)
        .where(scopes.c.name > query.after)
        .order_by(scopes.c.name)
        .limit(query.limit + 1)
        .offset(query.offset)
    ).all()
    holders = _count_holders(tx, by, [row.name for row in rows]) if query.counts_keys else {}
    return [_scope(row, holders.get(row.name, 0)) for row in rows]


def count_scopes(tx: Transaction, by: Principal, search: str = "") -> int:
    """Return the number of scopes that match `search`."""
    by.require(Permission.KEYS_READ)
    matches = _select_matching(by, search).subquery()
    return int(tx.connection.execute(select(func.count()).select_from(matches)).scalar_one())


def get(tx: Transaction, by: Principal, name: str) -> Scope:
    """Return one scope; raises `ScopeNotFound`."""
    by.require(Permission.KEYS_READ)
    return _get(tx, by, name)


def change(tx: Transaction, by: Principal, name: str, description: str) -> Scope:
    """Change a scope's description; raises `ScopeNotFound`, `InvalidText`."""
    by.require(Permission.SCOPES_GRANT)
    by.require_live()
    before = _get(tx, by, name)
    description = _clean_description(description)
    tx.connection.execute(
        update(scopes)
        .where(scopes.c.org_id == by.org_id, scopes.c.name == name)
        .values(description=description)
    )
    details = {"name": name, "description": description, "old_description": before.description}
    record(tx, by, "scope.updated", Target("scope", before.id), details)
    return _get(tx, by, name)


def remove(tx: Transaction, by: Principal, name: str) -> None:
    """Delete a scope that no key holds; raises `ScopeNotFound`, `ScopeInUse`."""
    by.require(Permission.SCOPES_GRANT)
    by.require_live()
    scope = _get(tx, by, name)
    if scope.keys:
        holders = "1 key holds" if scope.keys == 1 else f"{scope.keys} keys hold"
        pronoun = "it" if scope.keys == 1 else "them"
        raise ScopeInUse(
            f"{holders} {name}. Remove it from {pronoun} or revoke {pronoun}, then delete "
            "the scope."
        )
    tx.connection.execute(delete(scopes).where(scopes.c.org_id == by.org_id, scopes.c.name == name))
    record(tx, by, "scope.deleted", Target("scope", scope.id), {"name": name})


def require_known(
    tx: Transaction, by: Principal, permissions: Collection[str], create_scopes: Collection[str]
) -> None:
    """Require each scope among `permissions` to be in the catalogue, adding any in `create_scopes`.

    Raises `UnknownScope`, and if scopes are to be added, `TooManyScopes`, `NotPermitted` and
    `LiveKeyRequired`.
    """
    names = sorted(name for name in permissions if is_scope(name))
    known = _find_known(tx, by, names)
    missing = [name for name in names if name not in known]
    unknown = tuple(name for name in missing if name not in create_scopes)
    if unknown:
        raise _unknown_scope(tx, by, unknown)
    if missing:
        by.require(Permission.SCOPES_GRANT)
        by.require_live()
    for name in missing:
        _add(tx, by, name, "")


def _clean_description(text: str) -> str:
    try:
        return clean_text(text, LONGEST_DESCRIPTION)
    except ValueError as error:
        raise InvalidText(str(error), field="description") from None


def _add(tx: Transaction, by: Principal, name: str, description: str) -> Scope:
    own = select(func.count()).where(scopes.c.org_id == by.org_id)
    if tx.connection.execute(own).scalar_one() >= MOST_SCOPES:
        raise TooManyScopes
    scope = Scope(new_id("scope", tx.now), name, description, tx.now, by.id)
    tx.connection.execute(
        insert(scopes).values(
            id=scope.id,
            org_id=by.org_id,
            name=name,
            description=description,
            created_at=tx.now,
            created_by=by.id,
        )
    )
    record(tx, by, "scope.created", Target("scope", scope.id), {"name": name})
    return scope


def _find_known(tx: Transaction, by: Principal, names: Sequence[str]) -> set[str]:
    if not names:
        return set()
    statement = select(scopes.c.name).where(scopes.c.org_id == by.org_id, scopes.c.name.in_(names))
    return set(tx.connection.execute(statement).scalars())


def _unknown_scope(tx: Transaction, by: Principal, unknown: tuple[str, ...]) -> UnknownScope:
    catalogue: Sequence[str] = ()
    # Suggest names only to a caller who may read the catalogue.
    if by.holds(Permission.KEYS_READ):
        statement = select(scopes.c.name).where(scopes.c.org_id == by.org_id)
        catalogue = tx.connection.execute(statement).scalars().all()
    is_single = len(unknown) == 1
    return UnknownScope(
        f"{', '.join(unknown)} {'is' if is_single else 'are'} not in the organization's scope "
        f"catalogue.{suggest(unknown[0], catalogue)} To add {'it' if is_single else 'them'}, call "
        'POST /v2/scopes, or send "create_scopes": true with this request.',
        field="permissions",
        scopes=unknown,
        similar=tuple(near_misses(unknown[0], catalogue)),
    )


def _invalid_name(name: str) -> InvalidScopeName:
    if is_permission(name):
        return InvalidScopeName(
            f"{name} is a permission of Wardkey; use it without adding it to the catalogue.",
            field="name",
        )
    resource = name.partition(":")[0]
    is_reserved = is_scope(f"{resource}x:read") and not is_scope(f"{resource}:read")
    hint = f" Wardkey reserves the resource {resource}; choose another." if is_reserved else ""
    if spelling := respell(name):
        hint = f" Did you mean {spelling}?"
    return InvalidScopeName(
        "A scope is resource:action in lower case, such as invoices:read, with up to 32 "
        f"characters of a-z, 0-9, _, . and - in each part.{hint}",
        field="name",
    )


def _select_matching(by: Principal, search: str) -> Select[Any]:
    text = search.strip()
    conditions: list[ColumnElement[bool]] = [scopes.c.org_id == by.org_id]
    if text:
        conditions.append(
            or_(
                scopes.c.name.icontains(text, autoescape=True),
                scopes.c.description.icontains(text, autoescape=True),
            )
        )
    return select(scopes).where(*conditions)


def _get(tx: Transaction, by: Principal, name: str) -> Scope:
    row = tx.connection.execute(
        select(scopes).where(scopes.c.org_id == by.org_id, scopes.c.name == name)
    ).one_or_none()
    if row is None:
        raise ScopeNotFound
    return _scope(row, _count_holders(tx, by, [name]).get(name, 0))


def _count_holders(tx: Transaction, by: Principal, names: Sequence[str]) -> dict[str, int]:
    """Return the number of keys in both environments, unless revoked, that hold each scope."""
    if not names:
        return {}
    permissions = _permissions_of_keys(tx)
    rows = tx.connection.execute(
        select(permissions.c.value, func.count())
        .select_from(keys)
        .where(
            and_(keys.c.org_id == by.org_id, keys.c.revoked_at.is_(None)),
            permissions.c.value.in_(names),
        )
        .group_by(permissions.c.value)
    )
    return {name: int(count) for name, count in rows}


def _permissions_of_keys(tx: Transaction) -> TableValuedAlias:
    """Return a lateral table with a `value` for each permission of a row of `keys`."""
    if tx.connection.dialect.name == "postgresql":
        elements = func.jsonb_array_elements_text(keys.c.permissions)
    else:
        elements = func.json_each(keys.c.permissions)
    return elements.table_valued("value", joins_implicitly=True)


def _scope(row: Row[Any], holders: int) -> Scope:
    return Scope(row.id, row.name, row.description, row.created_at, row.created_by, holders)
