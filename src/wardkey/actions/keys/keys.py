"""Issuing, listing, updating, disabling and rotating keys in one tenant scope."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Row,
    and_,
    bindparam,
    case,
    cast,
    exists,
    func,
    insert,
    or_,
    select,
    tuple_,
    update,
)

from wardkey.actions.core.audit import Target, record
from wardkey.actions.core.session_impact import end_grants_of_key, mark_affected_sessions
from wardkey.actions.core.tenancy import open_organization
from wardkey.actions.keys.limits import (
    find_disabler,
    require_changeable,
    require_enabling,
    require_within,
)
from wardkey.actions.keys.scopes import require_known
from wardkey.db.engine import Transaction
from wardkey.db.schema import keys, last_used, organizations, secrets
from wardkey.db.scoped import bind_scope, in_bound_scope, in_scope
from wardkey.domain.errors import (
    DuplicateName,
    ExpiryInPast,
    InvalidReason,
    InvalidRequest,
    InvalidText,
    KeyNotFound,
    KeyRevoked,
    TooManySecrets,
    WrongEnvironment,
)
from wardkey.domain.ids import new_id
from wardkey.domain.keys import (
    EXPIRING_MS,
    MOST_LIVE_SECRETS,
    ROTATION_DAYS,
    KeyRecord,
    KeySpec,
    KeyStatus,
    Rate,
    Reason,
    SecretRecord,
    clean_spec,
    grace_end,
    origin_warnings,
)
from wardkey.domain.limits import limits_of
from wardkey.domain.names import clean_text, fold_name, name_warnings
from wardkey.domain.permissions import (
    KeyType,
    Permission,
    clean_permissions,
    default_permissions,
)
from wardkey.domain.principal import Principal, PrincipalKind
from wardkey.domain.secret import Environment, SecretKind, SecretText, generate
from wardkey.domain.times import DAY_MS

_SECRET_KINDS = {KeyType.SECRET: SecretKind.SECRET, KeyType.PUBLISHABLE: SecretKind.PUBLISHABLE}


# Built once: constructing a statement costs more than running it.
_IN_SCOPE = in_bound_scope(keys)
_KEY = select(keys).where(keys.c.id == bindparam("of_key"), _IN_SCOPE)
_HOLDER = select(keys.c.id, keys.c.expires_at).where(
    keys.c.live_name == bindparam("of_name"), _IN_SCOPE
)
_SECRETS = (
    select(secrets)
    .where(secrets.c.key_id.in_(bindparam("of_keys", expanding=True)))
    .order_by(secrets.c.created_at.desc(), secrets.c.kid)
)
_ROTATION_DAYS = select(organizations.c.rotation_days).where(
    organizations.c.id == bindparam("of_org")
)
_POLICY = (
    select(organizations.c.rotation_days)
    .where(organizations.c.id == keys.c.org_id)
    .correlate(keys)
    .scalar_subquery()
)
_ADD_KEY = insert(keys).returning(keys)
_ADD_SECRET = insert(secrets).returning(secrets)


@dataclass(frozen=True, slots=True)
class Issued:
    """A key with a new secret, whose text is stored nowhere."""

    key: KeyRecord
    kid: str
    secret: SecretText
    organization_name: str
    warnings: tuple[str, ...] = ()


class KeyOrder(StrEnum):
    """The order of a list of keys; `-` means descending."""

    CREATED = "created"
    CREATED_DOWN = "-created"
    NAME = "name"
    NAME_DOWN = "-name"
    USED = "used"
    USED_DOWN = "-used"


@dataclass(frozen=True, slots=True)
class KeyQuery:
    """Filters, order and page for a list of keys.

    A page starts after `offset` keys or, only in the default order, after the key with the
    (created_at, id) in `after`.
    """

    search: str = ""
    type: KeyType | None = None
    status: KeyStatus | None = None
    unused_days: int | None = None
    rotation_due: bool = False
    expiring: bool = False
    after: tuple[int, str] | None = None
    limit: int = 50
    order: KeyOrder = KeyOrder.CREATED_DOWN
    offset: int = 0


def issue(
    tx: Transaction, by: Principal, spec: KeySpec, create_scopes: Collection[str] = ()
) -> Issued:
    """Issue a key with its first secret, whose text only the return value contains.

    If the spec has no permissions, the key gets the type's defaults, as far as the caller holds
    them. Missing scopes are added to the catalogue if they are in `create_scopes`. Raises what
    `clean_spec`, `clean_permissions`, `require_known` raise, `WrongEnvironment`,
    `ExceedsOwnPermissions`, `ExceedsOwnLimits`, `DuplicateName`.
    """
    by.require(Permission.KEYS_WRITE)
    if spec.environment is not by.environment:
        raise WrongEnvironment(
            f"You are working in {by.environment}; switch to {spec.environment}, or use a "
            f"{spec.environment} key, to create a {spec.environment} key.",
        )
    spec = clean_spec(spec, tx.now)
    organization_name = open_organization(tx, by)
    if spec.permissions is None:
        permissions = default_permissions(
            spec.type, frozenset(p for p in Permission if by.holds(p))
        )
    else:
        permissions = clean_permissions(spec.type, spec.permissions)
        require_known(tx, by, permissions, create_scopes)
        by.require_grantable(permissions)
    require_within(tx, by, limits_of(spec))
    key_id = new_id("key", tx.now)
    row = insert_key(tx, by, key_id, spec, permissions)
    secret, secret_row = _insert_secret(tx, by, key_id, spec.type, tx.now)
    record(
        tx,
        by,
        "key.issued",
        Target("key", key_id),
        {
            "name": spec.name,
            "type": spec.type,
            "kid": secret.kid,
            "permissions": sorted(permissions),
        },
    )
    warnings = (*name_warnings(spec.name, by.environment), *origin_warnings(spec))
    key = _key(row, (_secret(secret_row, None),))
    return Issued(key, secret.kid, secret, organization_name, warnings)


def insert_key(
    tx: Transaction, by: Principal, key_id: str, spec: KeySpec, permissions: frozenset[str]
) -> Row[Any]:
    """Insert the row of a validated `spec`; raises `DuplicateName`."""
    live_name = _claim_name(tx, by, spec.name)
    return tx.connection.execute(
        _ADD_KEY,
        {
            "id": key_id,
            "org_id": by.org_id,
            "environment": by.environment,
            "type": spec.type,
            "name": spec.name,
            "live_name": live_name,
            "description": spec.description,
            "permissions": sorted(permissions),
            "allowed_addresses": list(spec.allowed_addresses),
            "allowed_origins": list(spec.allowed_origins),
            "allow_native": spec.allow_native,
            "rate_limit": _rate_json(spec.rate_limit),
            "metadata": dict(spec.metadata),
            "created_at": tx.now,
            "created_by": by.id,
            "updated_at": tx.now,
            "rotated_at": tx.now,
            "expires_at": spec.expires_at,
        },
    ).one()


def list_keys(tx: Transaction, by: Principal, query: KeyQuery) -> list[KeyRecord]:
    """Return the keys that match `query`, one more than `limit` if there are more."""
    by.require(Permission.KEYS_READ)
    conditions = [in_scope(keys, by.scope), *_filter_conditions(query, tx.now)]
    if query.after is not None:
        conditions.append(tuple_(keys.c.created_at, keys.c.id) < query.after)
    rows = tx.connection.execute(
        select(keys)
        .where(*conditions)
        .order_by(*_ORDER[query.order])
        .limit(query.limit + 1)
        .offset(query.offset)
    ).all()
    return _records(tx, rows)


def get(tx: Transaction, by: Principal, key_id: str) -> KeyRecord:
    """Return one key with its secrets; raises `KeyNotFound`."""
    by.require(Permission.KEYS_READ)
    return _get(tx, by, key_id)


def change(
    tx: Transaction,
    by: Principal,
    key_id: str,
    changes: Mapping[str, Any],
    create_scopes: Collection[str] = (),
) -> tuple[KeyRecord, tuple[str, ...]]:
    """Change fields of a live key; return it with warnings about a new name or new origins.

    `changes` maps fields of `KeySpec`, except type and environment, to new values. The key can keep
    permissions that the caller lacks. Raises what `issue` and `require_changeable` raise,
    `InvalidRequest`, `KeyNotFound`, `KeyRevoked`.
    """
    by.require(Permission.KEYS_WRITE)
    before = _get_live(tx, by, key_id)
    spec = clean_spec(_spec_of(before, changes, tx.now), tx.now)
    expires_at: int | None = changes.get("expires_at", before.expires_at)
    values: dict[str, Any] = {
        "name": spec.name,
        "description": spec.description,
        "allowed_addresses": list(spec.allowed_addresses),
        "allowed_origins": list(spec.allowed_origins),
        "allow_native": spec.allow_native,
        "rate_limit": _rate_json(spec.rate_limit),
        "metadata": dict(spec.metadata),
        "expires_at": expires_at,
        "updated_at": tx.now,
    }
    if changes.get("permissions") is not None:
        permissions = clean_permissions(before.type, changes["permissions"])
        added = permissions - frozenset(before.permissions)
        require_known(tx, by, added, create_scopes)
        by.require_grantable(added)
        values["permissions"] = sorted(permissions)
    require_changeable(
        tx,
        by,
        before,
        replace(
            before,
            permissions=tuple(values.get("permissions", before.permissions)),
            allowed_addresses=spec.allowed_addresses,
            allowed_origins=spec.allowed_origins,
            allow_native=spec.allow_native,
            rate_limit=spec.rate_limit,
            metadata=spec.metadata,
            expires_at=expires_at,
        ),
    )
    if expires_at is None or expires_at > tx.now:
        values["live_name"] = _claim_name(tx, by, spec.name, key_id)
    tx.connection.execute(
        update(keys).where(keys.c.id == key_id, in_scope(keys, by.scope)).values(values)
    )
    after = _get(tx, by, key_id)
    changed = sorted(name for name in changes if getattr(before, name) != getattr(after, name))
    lost = frozenset(before.permissions) - frozenset(after.permissions)
    if lost & {Permission.TOKENS_CREATE, Permission.TOKENS_EXCHANGE}:
        end_grants_of_key(tx, by, key_id)
    elif after.expires_at != before.expires_at:
        mark_affected_sessions(tx, by.org_id, key_id)
    record(tx, by, "key.updated", Target("key", key_id), {"changed": changed})
    warnings = name_warnings(after.name, by.environment) if after.name != before.name else []
    if after.allowed_origins != before.allowed_origins:
        warnings += origin_warnings(spec)
    return after, tuple(warnings)


def disable(tx: Transaction, by: Principal, key_id: str) -> KeyRecord:
    """Disable a key until it is enabled again; raises `KeyNotFound`, `KeyRevoked`."""
    by.require(Permission.KEYS_WRITE)
    before = _get_live(tx, by, key_id)
    if before.disabled_at is not None and by.kind is not PrincipalKind.KEY:
        # Record that a person disabled it too, so the key that did so first can't enable it.
        if find_disabler(tx, by, key_id)[0] == PrincipalKind.KEY:
            record(tx, by, "key.disabled", Target("key", key_id))
        return before
    return _set_disabled(tx, by, key_id, disabled_at=tx.now)


def enable(tx: Transaction, by: Principal, key_id: str) -> KeyRecord:
    """Enable a disabled key; raises `KeyNotFound`, `KeyRevoked`, `ExceedsOwnLimits`."""
    by.require(Permission.KEYS_WRITE)
    if _get_live(tx, by, key_id).disabled_at is not None:
        require_enabling(tx, by, key_id)
    return _set_disabled(tx, by, key_id, disabled_at=None)


def rotate(tx: Transaction, by: Principal, key_id: str, grace: str) -> Issued:
    """Add a secret to a live key; the older secrets end after `grace` (see `grace_end`).

    A secret that would end earlier anyway still does. Raises `KeyNotFound`, `KeyRevoked`,
    `InvalidGrace`, `TooManySecrets`, `ExceedsOwnPermissions`, `ExceedsOwnLimits`, and
    `ExpiryInPast` for an expired key.
    """
    by.require(Permission.KEYS_WRITE)
    organization_name = open_organization(tx, by)
    before = _get_live(tx, by, key_id)
    by.require_grantable(frozenset(before.permissions))
    require_within(tx, by, limits_of(before))
    if before.status(tx.now) is KeyStatus.EXPIRED:
        raise ExpiryInPast("The key has expired; give it a later expiry before you rotate it.")
    end = grace_end(grace, tx.now)
    live = [secret for secret in before.secrets if secret.live(tx.now)]
    if end != tx.now and len(live) >= MOST_LIVE_SECRETS:
        raise TooManySecrets
    _end_secrets(tx, by, before, end)
    # The new secret must be the newest even if the clock stopped or was set back.
    newest = max((old.created_at for old in before.secrets), default=0)
    secret, _ = _insert_secret(tx, by, key_id, before.type, max(tx.now, newest + 1))
    tx.connection.execute(
        update(keys)
        .where(keys.c.id == key_id, in_scope(keys, by.scope))
        .values(rotated_at=tx.now, updated_at=tx.now)
    )
    record(
        tx,
        by,
        "key.rotated",
        Target("key", key_id),
        {
            "kid": secret.kid,
            "old_kids": [old.kid for old in live],
            "grace": grace,
            "old_end_at": end,
        },
    )
    return Issued(_get(tx, by, key_id), secret.kid, secret, organization_name)


def clean_reason(reason: str, comment: str) -> tuple[Reason, str]:
    """Validate a revocation's reason and comment; raises `InvalidReason`, `InvalidText`."""
    try:
        clean = Reason(reason)
    except ValueError:
        raise InvalidReason(
            f"The reason must be one of {', '.join(Reason)} (RFC 5280).", field="reason"
        ) from None
    try:
        return clean, clean_text(comment, 500)
    except ValueError as error:
        raise InvalidText(str(error), field="comment") from None


def _filter_conditions(query: KeyQuery, now: int) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if query.search:
        text = query.search.strip()
        conditions.append(
            or_(
                keys.c.name.icontains(text, autoescape=True),
                keys.c.description.icontains(text, autoescape=True),
                keys.c.id == text,
                exists().where(
                    secrets.c.key_id == keys.c.id,
                    secrets.c.prefix.startswith(text.rstrip("…"), autoescape=True),
                ),
            )
        )
    if query.type is not None:
        conditions.append(keys.c.type == query.type)
    if query.status is not None:
        conditions.append(_STATUS[query.status](now))
    if query.rotation_due:
        conditions += [
            keys.c.rotated_at <= now - cast(_POLICY, BigInteger) * DAY_MS,
            keys.c.type == KeyType.SECRET,
            keys.c.revoked_at.is_(None),
            or_(keys.c.expires_at.is_(None), keys.c.expires_at > now),
        ]
    if query.expiring:
        conditions += [
            keys.c.expires_at > now,
            keys.c.expires_at <= now + EXPIRING_MS,
            keys.c.revoked_at.is_(None),
        ]
    if query.unused_days is not None:
        since = now - query.unused_days * DAY_MS
        conditions += [
            keys.c.created_at <= since,
            keys.c.revoked_at.is_(None),
            ~exists().where(last_used.c.key_id == keys.c.id, last_used.c.at > since),
        ]
    return conditions


_USED = func.coalesce(
    select(func.max(last_used.c.at)).where(last_used.c.key_id == keys.c.id).scalar_subquery(), 0
)
_ORDER: Mapping[KeyOrder, tuple[ColumnElement[Any], ...]] = {
    KeyOrder.CREATED: (keys.c.created_at, keys.c.id),
    KeyOrder.CREATED_DOWN: (keys.c.created_at.desc(), keys.c.id.desc()),
    KeyOrder.NAME: (func.lower(keys.c.name), keys.c.id),
    KeyOrder.NAME_DOWN: (func.lower(keys.c.name).desc(), keys.c.id.desc()),
    KeyOrder.USED: (_USED, keys.c.id),
    KeyOrder.USED_DOWN: (_USED.desc(), keys.c.id.desc()),
}
_STATUS: Mapping[KeyStatus, Callable[[int], ColumnElement[bool]]] = {
    KeyStatus.REVOKED: lambda now: keys.c.revoked_at.is_not(None),  # noqa: ARG005 - same signature
    KeyStatus.EXPIRED: lambda now: and_(keys.c.revoked_at.is_(None), keys.c.expires_at <= now),
    KeyStatus.DISABLED: lambda now: and_(
        keys.c.revoked_at.is_(None),
        or_(keys.c.expires_at.is_(None), keys.c.expires_at > now),
        keys.c.disabled_at.is_not(None),
    ),
    KeyStatus.ACTIVE: lambda now: and_(
        keys.c.revoked_at.is_(None),
        or_(keys.c.expires_at.is_(None), keys.c.expires_at > now),
        keys.c.disabled_at.is_(None),
    ),
}


def _get(tx: Transaction, by: Principal, key_id: str) -> KeyRecord:
    rows = tx.connection.execute(_KEY, {"of_key": key_id, **bind_scope(by.scope)}).all()
    if not rows:
        raise KeyNotFound
    return _records(tx, rows)[0]


def _get_live(tx: Transaction, by: Principal, key_id: str) -> KeyRecord:
    key = _get(tx, by, key_id)
    if key.revoked_at is not None:
        raise KeyRevoked
    return key


def _set_disabled(
    tx: Transaction, by: Principal, key_id: str, *, disabled_at: int | None
) -> KeyRecord:
    before = _get_live(tx, by, key_id)
    if (before.disabled_at is None) == (disabled_at is None):
        return before
    tx.connection.execute(
        update(keys)
        .where(keys.c.id == key_id, in_scope(keys, by.scope))
        .values(disabled_at=disabled_at, updated_at=tx.now)
    )
    if disabled_at is not None:
        mark_affected_sessions(tx, by.org_id, key_id)
    action = "key.enabled" if disabled_at is None else "key.disabled"
    record(tx, by, action, Target("key", key_id))
    return _get(tx, by, key_id)


def _claim_name(tx: Transaction, by: Principal, name: str, key_id: str = "") -> str:
    """Claim `name` for a live key; an expired key that still has it loses it."""
    folded = fold_name(name)
    parameters = {"of_name": folded, **bind_scope(by.scope)}
    holder = tx.connection.execute(_HOLDER, parameters).one_or_none()
    if holder is not None and holder.id != key_id:
        if holder.expires_at is None or holder.expires_at > tx.now:
            raise DuplicateName(
                f"Another live key of {by.environment} is named “{name}”; choose another name, "
                "or revoke that key first.",
                field="name",
            )
        tx.connection.execute(
            update(keys)
            .where(keys.c.id == holder.id, in_scope(keys, by.scope))
            .values(live_name=None)
        )
    return folded


def _end_secrets(tx: Transaction, by: Principal, key: KeyRecord, end: int | None) -> None:
    if end is None:
        return
    is_unrevoked = and_(
        secrets.c.key_id == key.id, secrets.c.org_id == by.org_id, secrets.c.revoked_at.is_(None)
    )
    if end == tx.now:
        values = {"revoked_at": tx.now, "revoke_reason": Reason.SUPERSEDED, "revoke_comment": ""}
        tx.connection.execute(update(secrets).where(is_unrevoked).values(values))
        return
    ends_later = or_(secrets.c.expires_at.is_(None), secrets.c.expires_at > end)
    tx.connection.execute(update(secrets).where(is_unrevoked, ends_later).values(expires_at=end))


def _insert_secret(
    tx: Transaction, by: Principal, key_id: str, key_type: KeyType, created_at: int
) -> tuple[SecretText, Row[Any]]:
    secret = generate(_SECRET_KINDS[key_type], by.environment, brand=tx.brand)
    row = tx.connection.execute(
        _ADD_SECRET,
        {
            "kid": secret.kid,
            "key_id": key_id,
            "org_id": by.org_id,
            "environment": by.environment,
            "prefix": secret.prefix,
            "digest": tx.vault.digest(secret.text),
            "pepper_version": tx.vault.version,
            "imported": False,
            "created_at": created_at,
            "created_by": by.id,
        },
    ).one()
    return secret, row


def _spec_of(key: KeyRecord, changes: Mapping[str, Any], now: int) -> KeySpec:
    unknown = sorted(set(changes) - _CHANGEABLE)
    if unknown:
        raise InvalidRequest(f"The {unknown[0]} of a key can't be changed; leave it out.")
    # Leave out an expiry in the past, which `clean_spec` would reject although it didn't change.
    expires_at = key.expires_at if key.expires_at is not None and key.expires_at > now else None
    spec = KeySpec(
        name=key.name,
        type=key.type,
        environment=key.environment,
        expires_at=expires_at,
        description=key.description,
        allowed_addresses=key.allowed_addresses,
        allowed_origins=key.allowed_origins,
        allow_native=key.allow_native,
        rate_limit=key.rate_limit,
        metadata=key.metadata,
    )
    return replace(spec, **{k: v for k, v in changes.items() if k != "permissions"})


_CHANGEABLE = frozenset(KeySpec.__dataclass_fields__) - {"type", "environment"}


def _rate_json(rate: Rate | None) -> dict[str, int] | None:
    if rate is None:
        return None
    return {"limit": rate.limit, "period_s": rate.period_s, "burst": rate.burst}


def _records(tx: Transaction, rows: Sequence[Row[Any]]) -> list[KeyRecord]:
    secrets_by_key: dict[str, list[SecretRecord]] = {row.id: [] for row in rows}
    if not secrets_by_key:
        return []
    secret_rows = tx.connection.execute(_SECRETS, {"of_keys": list(secrets_by_key)}).all()
    # Write transactions on SQLite can't read the usage file, so they return no last use.
    uses = {} if tx.revision else _find_last_uses(tx, [row.kid for row in secret_rows])
    for row in secret_rows:
        secrets_by_key[row.key_id].append(_secret(row, uses.get(row.kid)))
    # All rows belong to one organization.
    days = tx.connection.execute(_ROTATION_DAYS, {"of_org": rows[0].org_id}).scalar_one()
    return [_key(row, tuple(secrets_by_key[row.id]), days) for row in rows]


def _secret(row: Row[Any], use: Row[Any] | None) -> SecretRecord:
    return SecretRecord(
        kid=row.kid,
        prefix=row.prefix,
        created_at=row.created_at,
        created_by=row.created_by,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        revoke_reason=row.revoke_reason,
        revoke_comment=row.revoke_comment,
        imported=row.imported,
        last_used_at=use.at if use else None,
        last_used_address=use.address if use else None,
        last_used_agent=use.user_agent if use else None,
    )


def _find_last_uses(tx: Transaction, kids: list[str]) -> dict[str, Row[Any]]:
    statement = select(last_used).where(last_used.c.kid.in_(kids))
    return {row.kid: row for row in tx.connection.execute(statement)}


def _key(
    row: Row[Any], key_secrets: tuple[SecretRecord, ...], rotation_days: int = ROTATION_DAYS
) -> KeyRecord:
    return KeyRecord(
        id=row.id,
        org_id=row.org_id,
        environment=Environment(row.environment),
        type=KeyType(row.type),
        name=row.name,
        description=row.description,
        permissions=tuple(row.permissions),
        allowed_addresses=tuple(row.allowed_addresses),
        allowed_origins=tuple(row.allowed_origins),
        allow_native=row.allow_native,
        rate_limit=Rate(**row.rate_limit) if row.rate_limit else None,
        metadata=row.metadata,
        created_at=row.created_at,
        created_by=row.created_by,
        updated_at=row.updated_at,
        rotated_at=row.rotated_at,
        expires_at=row.expires_at,
        disabled_at=row.disabled_at,
        revoked_at=row.revoked_at,
        revoke_reason=row.revoke_reason,
        revoke_comment=row.revoke_comment,
        secrets=key_secrets,
        rotation_days=rotation_days,
    )


def count_keys(tx: Transaction, by: Principal, query: KeyQuery) -> int:
    """Return the number of all keys that match `query`."""
    by.require(Permission.KEYS_READ)
    statement = (
        select(func.count())
        .select_from(keys)
        .where(in_scope(keys, by.scope), *_filter_conditions(query, tx.now))
    )
    return int(tx.connection.execute(statement).scalar_one())


def count_each(tx: Transaction, by: Principal, queries: Sequence[KeyQuery]) -> list[int]:
    """Return the number of keys that match each query, in one statement."""
    by.require(Permission.KEYS_READ)
    counts = (func.count(case((and_(*_filter_conditions(query, tx.now)), 1))) for query in queries)
    row = tx.connection.execute(
        select(*counts).select_from(keys).where(in_scope(keys, by.scope))
    ).one()
    return [int(count) for count in row]
