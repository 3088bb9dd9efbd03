"""Importing keys issued elsewhere, by the hash of their text, under a registered prefix."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Row, delete, exists, func, insert, select

from wardkey.actions.core.audit import Target, record
from wardkey.actions.core.tenancy import open_organization
from wardkey.actions.keys.keys import get, insert_key
from wardkey.actions.keys.limits import require_within
from wardkey.actions.keys.scopes import require_known
from wardkey.db.engine import Transaction
from wardkey.db.schema import import_prefixes, imported, keys, secrets
from wardkey.domain.errors import (
    DuplicateImport,
    DuplicatePrefix,
    InvalidImport,
    InvalidPrefix,
    PrefixInUse,
    PrefixNotFound,
    TooManyPrefixes,
    WeakImport,
    WrongEnvironment,
)
from wardkey.domain.ids import new_id
from wardkey.domain.keys import KeyRecord, KeySpec, clean_spec
from wardkey.domain.limits import limits_of
from wardkey.domain.permissions import (
    KeyType,
    Permission,
    clean_permissions,
    default_permissions,
)
from wardkey.domain.principal import Principal
from wardkey.domain.secret import KID_LENGTH, meets_our_heads, random_text

LEAST_BITS = 128
# Every malformed credential is compared with all prefixes, so an organization can have only a few.
MAX_PREFIXES = 20
_PREFIX = re.compile(r"[A-Za-z][A-Za-z0-9_-]{2,31}")
# Base64url of `{"`, `{ `, `{\n`, `{\r` and `{\t`. A text with an import prefix counts as a key, so
# a request with a JWT and another organization's key would have two keys.
_JWT_HEADS = ("eyJ", "eyA", "ewo", "ew0", "ewk")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class ImportPrefix:
    """The prefix of an organization's imported keys; `created_at` in epoch milliseconds."""

    prefix: str
    created_at: int
    created_by: str


@dataclass(frozen=True, slots=True)
class Import:
    """A key issued elsewhere: its spec, its prefix and the SHA-256 of its text in hex.

    `entropy_bits` is the randomness of the text; below 128, it could be guessed from the hash.
    """

    spec: KeySpec
    prefix: str
    sha256: str
    entropy_bits: int


def register_prefix(tx: Transaction, by: Principal, prefix: str) -> ImportPrefix:
    """Register a prefix, which must not overlap with any registered one, of any organization.

    Raises `InvalidPrefix`, `DuplicatePrefix`, `TooManyPrefixes`.
    """
    by.require(Permission.KEYS_WRITE)
    by.require_live()
    if not _PREFIX.fullmatch(prefix) or meets_our_heads(prefix, brand=tx.brand):
        raise InvalidPrefix(field="prefix")
    if prefix.startswith(_JWT_HEADS):
        raise InvalidPrefix(
            f"JSON Web Tokens begin like {prefix}, and requests may contain one beside a key; "
            "choose a prefix that only your keys have.",
            field="prefix",
        )
    own = select(func.count()).where(import_prefixes.c.org_id == by.org_id)
    if tx.connection.execute(own).scalar_one() >= MAX_PREFIXES:
        raise TooManyPrefixes
    for existing in tx.connection.execute(select(import_prefixes.c.prefix)).scalars():
        if existing.startswith(prefix) or prefix.startswith(existing):
            raise DuplicatePrefix(field="prefix")
    tx.connection.execute(
        insert(import_prefixes).values(
            prefix=prefix, org_id=by.org_id, created_at=tx.now, created_by=by.id
        )
    )
    record(tx, by, "import_prefix.registered", Target("import_prefix", prefix))
    return ImportPrefix(prefix, tx.now, by.id)


def list_prefixes(tx: Transaction, by: Principal) -> list[ImportPrefix]:
    """Return the organization's import prefixes, by name."""
    by.require(Permission.KEYS_READ)
    statement = (
        select(import_prefixes)
        .where(import_prefixes.c.org_id == by.org_id)
        .order_by(import_prefixes.c.prefix)
    )
    return [_prefix(row) for row in tx.connection.execute(statement)]


def release_prefix(tx: Transaction, by: Principal, prefix: str) -> None:
    """Release a prefix; raises `PrefixNotFound`, and `PrefixInUse` while live keys have it."""
    by.require(Permission.KEYS_WRITE)
    by.require_live()
    _require_prefix(tx, by, prefix)
    is_used = tx.connection.execute(
        select(
            exists().where(
                secrets.c.org_id == by.org_id,
                secrets.c.imported,
                secrets.c.prefix == f"{prefix}…",
                secrets.c.revoked_at.is_(None),
                keys.c.id == secrets.c.key_id,
                keys.c.revoked_at.is_(None),
            )
        )
    ).scalar_one()
    if is_used:
        raise PrefixInUse
    tx.connection.execute(
        delete(import_prefixes).where(
            import_prefixes.c.prefix == prefix, import_prefixes.c.org_id == by.org_id
        )
    )
    record(tx, by, "import_prefix.released", Target("import_prefix", prefix))


def import_key(
    tx: Transaction, by: Principal, item: Import, create_scopes: Collection[str] = ()
) -> KeyRecord:
    """Create a secret key whose only secret is the text behind `item.sha256`.

    Missing scopes are added to the catalogue if they are in `create_scopes`. Raises
    `InvalidImport`, `WeakImport`, `PrefixNotFound`, `DuplicateImport` and what `issue` raises.
    """
    by.require(Permission.KEYS_WRITE)
    open_organization(tx, by)
    if not _SHA256.fullmatch(item.sha256):
        raise InvalidImport(field="sha256")
    if item.entropy_bits < LEAST_BITS:
        raise WeakImport(field="entropy_bits")
    if item.spec.environment is not by.environment:
        raise WrongEnvironment
    _require_prefix(tx, by, item.prefix)
    spec = clean_spec(replace(item.spec, type=KeyType.SECRET), tx.now)
    permissions = (
        default_permissions(KeyType.SECRET, frozenset(p for p in Permission if by.holds(p)))
        if spec.permissions is None
        else clean_permissions(KeyType.SECRET, spec.permissions)
    )
    require_known(tx, by, permissions, create_scopes)
    by.require_grantable(permissions)
    require_within(tx, by, limits_of(spec))
    digests = {v: tx.vault.digest(item.sha256, v) for v in tx.vault.peppers}
    if tx.connection.execute(
        select(imported.c.kid).where(imported.c.digest.in_(digests.values()))
    ).one_or_none():
        raise DuplicateImport(field="sha256")
    key_id, kid = new_id("key", tx.now), random_text(KID_LENGTH)
    insert_key(tx, by, key_id, spec, permissions)
    digest = digests[tx.vault.version]
    tx.connection.execute(
        insert(secrets).values(
            kid=kid,
            key_id=key_id,
            org_id=by.org_id,
            environment=by.environment,
            prefix=f"{item.prefix}…",
            digest=digest,
            pepper_version=tx.vault.version,
            imported=True,
            created_at=tx.now,
            created_by=by.id,
        )
    )
    tx.connection.execute(
        insert(imported).values(digest=digest, pepper_version=tx.vault.version, kid=kid)
    )
    details = {
        "name": spec.name,
        "kid": kid,
        "prefix": item.prefix,
        "permissions": sorted(permissions),
    }
    record(tx, by, "key.imported", Target("key", key_id), details)
    return get(tx, by, key_id)


def _require_prefix(tx: Transaction, by: Principal, prefix: str) -> None:
    row = tx.connection.execute(
        select(import_prefixes.c.prefix).where(
            import_prefixes.c.prefix == prefix, import_prefixes.c.org_id == by.org_id
        )
    ).one_or_none()
    if row is None:
        raise PrefixNotFound


def _prefix(row: Row[Any]) -> ImportPrefix:
    return ImportPrefix(row.prefix, row.created_at, row.created_by)
