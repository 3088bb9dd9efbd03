"""Actions on the auth providers whose tokens an organization accepts, and their secrets."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
from sqlalchemy import Row, delete, func, insert, select, update

from wardkey.actions.core.audit import Target, record
from wardkey.actions.core.session_impact import cut_off
from wardkey.actions.core.tenancy import open_organization
from wardkey.db.engine import Database, Transaction
from wardkey.db.schema import auth_providers, changes, feed
from wardkey.db.scoped import in_scope
from wardkey.db.vault import derive, seal, unseal
from wardkey.domain.errors import (
    DuplicateProvider,
    InvalidProvider,
    ProviderChanged,
    ProviderDisabled,
    ProviderNotFound,
    TooManyProviders,
)
from wardkey.domain.grants import CutoffKind
from wardkey.domain.ids import new_id
from wardkey.domain.permissions import Permission
from wardkey.domain.principal import Principal
from wardkey.domain.providers import (
    ProviderSpec,
    TokenRules,
    clean_provider,
    clean_shared_secret,
    token_rules,
)
from wardkey.domain.receipts import ALL_SUBJECTS
from wardkey.domain.secret import Environment
from wardkey.domain.tenants import TenantScope

MAX_PROVIDERS = 50
_MAX_SCOPES = 1_000
_SEALING_PURPOSE = "provider secrets"
_SUBJECT = "provider"


@dataclass(frozen=True, slots=True)
class ProviderRecord:
    """A provider without its shared secret; times in epoch milliseconds."""

    id: str
    environment: Environment
    spec: ProviderSpec
    enabled: bool
    has_secret: bool
    created_at: int
    created_by: str
    updated_at: int


@dataclass(frozen=True, slots=True)
class TrustedProvider:
    """A provider with what token verification needs; `secret` is empty if keys are fetched."""

    id: str
    enabled: bool
    spec: ProviderSpec
    rules: TokenRules
    secret: bytes = field(repr=False)
    updated_at: int

    @property
    def key_set(self) -> str:
        """The name of its key set; each update changes it, so the keys are fetched again."""
        return f"{self.id} {self.updated_at}"


def create(
    tx: Transaction,
    by: Principal,
    spec: ProviderSpec,
    secret: str = "",
    *,
    http_allowed: bool = False,
) -> ProviderRecord:
    """Add a provider.

    Raises what `clean_provider` raises, `InvalidProvider`, `DuplicateProvider`,
    `TooManyProviders`, `OrganizationSuspended`.
    """
    by.require(Permission.PROVIDERS_WRITE)
    spec = clean_provider(spec, http_allowed=http_allowed)
    secret = _clean_secret(spec, secret, has_secret=False) or ""
    open_organization(tx, by)
    count = (
        select(func.count()).select_from(auth_providers).where(in_scope(auth_providers, by.scope))
    )
    if tx.connection.execute(count).scalar_one() >= MAX_PROVIDERS:
        raise TooManyProviders
    _check_name(tx, by, spec.name, "")
    provider_id = new_id("prv", tx.now)
    row = tx.connection.execute(
        insert(auth_providers).returning(auth_providers),
        {
            "id": provider_id,
            "org_id": by.org_id,
            "environment": by.environment,
            "name": spec.name,
            "kind": spec.kind,
            "enabled": True,
            "settings": _settings(spec),
            **_sealed_columns(tx, provider_id, secret),
            "created_at": tx.now,
            "created_by": by.id,
            "updated_at": tx.now,
        },
    ).one()
    record(tx, by, "provider.created", Target(_SUBJECT, provider_id), _settings(spec))
    return _record(row)


def list_providers(tx: Transaction, by: Principal) -> list[ProviderRecord]:
    """Return the providers, oldest first."""
    by.require(Permission.PROVIDERS_READ)
    rows = tx.connection.execute(
        select(auth_providers)
        .where(in_scope(auth_providers, by.scope))
        .order_by(auth_providers.c.created_at, auth_providers.c.id)
    )
    return [_record(row) for row in rows]


def get(tx: Transaction, by: Principal, provider_id: str) -> ProviderRecord:
    """Return one provider; raises `ProviderNotFound`."""
    by.require(Permission.PROVIDERS_READ)
    return _record(_get(tx, by, provider_id))


def change(
    tx: Transaction,
    by: Principal,
    provider_id: str,
    new_values: Mapping[str, Any],
    secret: str | None = None,
    *,
    http_allowed: bool = False,
) -> ProviderRecord:
    """Change a provider's settings, and its shared secret unless that is None.

    `new_values` has fields of `ProviderSpec` except `kind`; missing ones don't change. The
    provider's grants continue. Raises what `create` raises, `ProviderNotFound`.
    """
    by.require(Permission.PROVIDERS_WRITE)
    row = _get(tx, by, provider_id)
    spec = _record(row).spec
    before = _settings(spec)
    spec = clean_provider(replace(spec, **new_values), http_allowed=http_allowed)
    secret = _clean_secret(spec, secret, has_secret=row.sealed is not None)
    after = _settings(spec)
    if after == before and secret is None:
        return _record(row)
    _check_name(tx, by, spec.name, provider_id)
    values: dict[str, Any] = {"name": spec.name, "settings": after}
    if not spec.legacy_secret:
        values |= _sealed_columns(tx, provider_id, "")
    elif secret is not None:
        values |= _sealed_columns(tx, provider_id, secret)
    _update(tx, by, row, values)
    changed = sorted(name for name in after if after[name] != before.get(name))
    details = {"changed": changed, "secret": secret is not None, "settings": after}
    record(tx, by, "provider.updated", Target(_SUBJECT, provider_id), details)
    return _record(_get(tx, by, provider_id))


def enable(tx: Transaction, by: Principal, provider_id: str, *, enabled: bool) -> ProviderRecord:
    """Enable or disable exchanges of a provider's tokens; its grants continue either way.

    Raises `ProviderNotFound`.
    """
    by.require(Permission.PROVIDERS_WRITE)
    row = _get(tx, by, provider_id)
    if row.enabled is not enabled:
        _update(tx, by, row, {"enabled": enabled})
        action = "provider.enabled" if enabled else "provider.disabled"
        record(tx, by, action, Target(_SUBJECT, provider_id))
    return _record(_get(tx, by, provider_id))


def remove(tx: Transaction, by: Principal, provider_id: str) -> None:
    """Delete a provider and end all its grants; raises `ProviderNotFound`."""
    by.require(Permission.PROVIDERS_WRITE)
    row = _get(tx, by, provider_id)
    tx.connection.execute(
        delete(auth_providers).where(
            auth_providers.c.id == provider_id, in_scope(auth_providers, by.scope)
        )
    )
    cut_off(tx, by, CutoffKind.PROVIDER, provider_id, tx.revision)
    tx.affected_subjects.add(ALL_SUBJECTS)
    details = {"name": row.name, "kind": row.kind}
    record(tx, by, "provider.deleted", Target(_SUBJECT, provider_id), details)


def purge_keys(tx: Transaction, by: Principal, provider_id: str) -> None:
    """Make every process fetch a provider's keys again; raises `ProviderNotFound`."""
    by.require(Permission.PROVIDERS_WRITE)
    row = _get(tx, by, provider_id)
    _update(tx, by, row, {})
    record(tx, by, "provider.keys_purged", Target(_SUBJECT, provider_id))


def trusted(tx: Transaction, by: Principal, provider_id: str) -> TrustedProvider:
    """Return a provider with its secret, to verify a token; raises `ProviderNotFound`."""
    by.require(Permission.PROVIDERS_WRITE)
    return _trusted_provider(tx, _get(tx, by, provider_id))


def require_unchanged(tx: Transaction, by: Principal, verified_with: TrustedProvider) -> None:
    """Raise if a provider changed since a token was verified with it.

    Raises `ProviderNotFound`, `ProviderDisabled`, `ProviderChanged`.
    """
    row = _get(tx, by, verified_with.id)
    if not row.enabled:
        raise ProviderDisabled(f"The auth provider {row.name} is disabled; an admin can enable it.")
    if row.updated_at != verified_with.updated_at:
        raise ProviderChanged(retry_after_s=1)


def reseal(tx: Transaction) -> None:
    """Reseal every shared secret under the current pepper."""
    query = select(auth_providers).where(auth_providers.c.sealed.is_not(None))
    for row in tx.connection.execute(query).all():
        tx.connection.execute(
            update(auth_providers)
            .where(auth_providers.c.id == row.id)
            .values(_sealed_columns(tx, row.id, _secret(tx, row).decode()))
        )


@dataclass(slots=True)
class TrustedProviders:
    """A cache of each tenant scope's providers, reloaded when one of them changes."""

    _cache: dict[TenantScope, tuple[int, Sequence[TrustedProvider]]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def get(
        self, database: Database, scope: TenantScope, revision: int
    ) -> Sequence[TrustedProvider]:
        """Return a tenant scope's providers as of `revision` or later; raises storage errors."""
        with self._lock:
            cached = self._cache.get(scope)
        if cached is not None and cached[0] >= revision:
            return cached[1]
        with database.read() as tx:
            now = int(tx.connection.execute(select(feed.c.revision)).scalar_one())
            if cached is not None and not _has_changed(tx, scope, cached[0], now):
                providers = cached[1]
            else:
                rows = tx.connection.execute(
                    select(auth_providers)
                    .where(in_scope(auth_providers, scope))
                    .order_by(auth_providers.c.created_at, auth_providers.c.id)
                ).all()
                providers = tuple(_trusted_provider(tx, row) for row in rows)
        with self._lock:
            if len(self._cache) >= _MAX_SCOPES:
                self._cache.clear()
            self._cache[scope] = (now, providers)
        return providers

    def skip_revision(self, revision: int) -> None:
        """Mark the cache as fresh at a commit of this process that only created grants."""
        with self._lock:
            for scope, (cached_at, providers) in self._cache.items():
                if cached_at == revision - 1:
                    self._cache[scope] = (revision, providers)


def _has_changed(tx: Transaction, scope: TenantScope, since: int, now: int) -> bool:
    """Return whether a provider may have changed; true if the feed was truncated or rewound."""
    if now < since:
        return True
    rows = tx.connection.execute(
        select(changes.c.revision, changes.c.subject, changes.c.org_id).where(
            changes.c.revision > since
        )
    ).all()
    if len({row.revision for row in rows}) < now - since:
        return True
    return any(row.subject == _SUBJECT and row.org_id == scope.org_id for row in rows)


def _settings(spec: ProviderSpec) -> dict[str, Any]:
    settings: dict[str, Any] = msgspec.to_builtins(spec)
    return settings


def _record(row: Row[Any]) -> ProviderRecord:
    return ProviderRecord(
        id=row.id,
        environment=Environment(row.environment),
        spec=msgspec.convert(row.settings, ProviderSpec),
        enabled=row.enabled,
        has_secret=row.sealed is not None,
        created_at=row.created_at,
        created_by=row.created_by,
        updated_at=row.updated_at,
    )


def _trusted_provider(tx: Transaction, row: Row[Any]) -> TrustedProvider:
    spec = msgspec.convert(row.settings, ProviderSpec)
    rules = token_rules(spec)
    return TrustedProvider(row.id, row.enabled, spec, rules, _secret(tx, row), row.updated_at)


def _sealed_columns(tx: Transaction, provider_id: str, secret: str) -> dict[str, Any]:
    """Return the columns for a shared secret; NULL for an empty one."""
    if not secret:
        return {"sealed": None, "pepper_version": None}
    key = derive(tx.vault.peppers[tx.vault.version], _SEALING_PURPOSE)
    sealed = seal(key, secret.encode(), provider_id.encode())
    return {"sealed": sealed, "pepper_version": tx.vault.version}


def _secret(tx: Transaction, row: Row[Any]) -> bytes:
    if row.sealed is None:
        return b""
    key = derive(tx.vault.peppers[row.pepper_version], _SEALING_PURPOSE)
    return unseal(key, bytes(row.sealed), row.id.encode())


def _clean_secret(spec: ProviderSpec, secret: str | None, *, has_secret: bool) -> str | None:
    """Return a shared secret in canonical form; None keeps the current one."""
    if secret and not spec.legacy_secret:
        raise InvalidProvider(
            "Only a Supabase project with legacy_secret: true has a shared secret; omit secret.",
            field="secret",
        )
    if not spec.legacy_secret or (secret is None and has_secret):
        return secret
    return clean_shared_secret(secret or "").decode("ascii")


def _check_name(tx: Transaction, by: Principal, name: str, own_id: str) -> None:
    taken = select(auth_providers.c.id).where(
        auth_providers.c.name == name,
        auth_providers.c.id != own_id,
        in_scope(auth_providers, by.scope),
    )
    if tx.connection.execute(taken).first() is not None:
        raise DuplicateProvider(
            f"Another auth provider of {by.environment} is named {name}; give this one another "
            "name.",
            field="name",
        )


def _update(tx: Transaction, by: Principal, row: Row[Any], values: dict[str, Any]) -> None:
    # It identifies a version, so it must grow even with two changes in a millisecond.
    updated_at = max(tx.now, row.updated_at + 1)
    tx.connection.execute(
        update(auth_providers)
        .where(auth_providers.c.id == row.id, in_scope(auth_providers, by.scope))
        .values(**values, updated_at=updated_at)
    )


def _get(tx: Transaction, by: Principal, provider_id: str) -> Row[Any]:
    row = tx.connection.execute(
        select(auth_providers).where(
            auth_providers.c.id == provider_id, in_scope(auth_providers, by.scope)
        )
    ).one_or_none()
    if row is None:
        raise ProviderNotFound
    return row
