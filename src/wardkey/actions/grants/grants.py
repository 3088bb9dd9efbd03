"""Actions that mint, list and end grants, the temporary MQTT credentials of users."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Row, and_, bindparam, insert, or_, select, tuple_, update

from wardkey.actions.core.audit import Target, record
from wardkey.actions.core.session_impact import cut_off
from wardkey.actions.core.tenancy import open_organization
from wardkey.db.engine import Transaction
from wardkey.db.schema import auth_providers, grant_cutoffs, grants, keys, organizations, secrets
from wardkey.db.scoped import in_scope
from wardkey.domain.errors import GrantNotFound, KeyNotFound, ProviderNotFound
from wardkey.domain.grants import (
    CutoffKind,
    GrantRecord,
    NewGrant,
    kid_of_token,
    stamp_of,
    token_id_of,
)
from wardkey.domain.keys import Reason
from wardkey.domain.permissions import Permission
from wardkey.domain.principal import Principal, PrincipalKind
from wardkey.domain.receipts import ALL_SUBJECTS
from wardkey.domain.secret import (
    Environment,
    SecretKind,
    SecretText,
    generate,
)

# Change-feed subjects: ENDED may terminate sessions, MINTED never does.
ENDED, MINTED = "grant", "exchange"

EXPIRED = "it has expired"

# Built once: constructing a statement costs more than running it.
_INSERT = insert(grants)
_CUT_OFF = (
    select(grant_cutoffs.c.at)
    .where(
        grant_cutoffs.c.org_id == grants.c.org_id,
        grant_cutoffs.c.environment == grants.c.environment,
        grant_cutoffs.c.revision >= grants.c.revision,
        or_(
            and_(
                grant_cutoffs.c.kind == CutoffKind.USER,
                grant_cutoffs.c.subject == grants.c.user_id,
            ),
            and_(
                grant_cutoffs.c.kind == CutoffKind.EMAIL,
                grant_cutoffs.c.subject == grants.c.user_email,
                grants.c.user_email != "",
            ),
            and_(
                grant_cutoffs.c.kind == CutoffKind.PROVIDER,
                grant_cutoffs.c.subject == grants.c.provider_id,
            ),
            and_(
                grant_cutoffs.c.kind == CutoffKind.KEY,
                grant_cutoffs.c.subject == grants.c.key_id,
            ),
            and_(
                grant_cutoffs.c.kind == CutoffKind.FAMILY,
                grant_cutoffs.c.subject == grants.c.family,
            ),
        ),
    )
    .exists()
)
SELECT_GRANT = (
    select(
        grants,
        _CUT_OFF.label("cut_off"),
        auth_providers.c.id.label("provider"),
        auth_providers.c.enabled.label("provider_enabled"),
        keys.c.id.label("key"),
        keys.c.revoked_at.label("key_revoked_at"),
        keys.c.disabled_at.label("key_disabled_at"),
        keys.c.expires_at.label("key_expires_at"),
        secrets.c.revoked_at.label("secret_revoked_at"),
        secrets.c.revoke_reason.label("secret_revoke_reason"),
        organizations.c.suspended_at.label("suspended_at"),
        organizations.c.deleted_at.label("deleted_at"),
    )
    .select_from(grants)
    .join(organizations, organizations.c.id == grants.c.org_id)
    .outerjoin(
        auth_providers,
        (auth_providers.c.id == grants.c.provider_id)
        & (auth_providers.c.org_id == grants.c.org_id)
        & (auth_providers.c.environment == grants.c.environment),
    )
    .outerjoin(keys, (keys.c.id == grants.c.key_id) & (keys.c.org_id == grants.c.org_id))
    .outerjoin(secrets, (secrets.c.kid == grants.c.key_kid) & (secrets.c.org_id == grants.c.org_id))
)
SELECT_BY_KID = SELECT_GRANT.where(grants.c.kid == bindparam("of_kid"))
# Permanently ended: neither time nor enabling a key again changes this.
_PERMANENTLY_ENDED = or_(
    grants.c.revoked_at.is_not(None),
    _CUT_OFF,
    (grants.c.provider_id != "") & auth_providers.c.id.is_(None),
    (grants.c.key_id != "") & or_(keys.c.id.is_(None), keys.c.revoked_at.is_not(None)),
    secrets.c.revoked_at.is_not(None) & (secrets.c.revoke_reason != Reason.SUPERSEDED),
)
# Grants that can log in or be refreshed, now or once their key or provider is enabled again.
SELECT_RETURNABLE = SELECT_GRANT.with_only_columns(grants.c.kid).where(
    ~_PERMANENTLY_ENDED,
    or_(
        grants.c.expires_at > bindparam("now"),
        grants.c.replaced_by.is_(None) & (grants.c.refreshable_until > bindparam("now")),
    ),
    or_(keys.c.expires_at.is_(None), keys.c.expires_at > bindparam("now")),
)


@dataclass(frozen=True, slots=True)
class MintedGrant:
    """A new grant with its password, which is available only here."""

    grant: GrantRecord
    password: SecretText = field(repr=False)


@dataclass(frozen=True, slots=True)
class GrantQuery:
    """Which grants to list, newest first, after the grant at `after` (created_at, kid)."""

    user_id: str = ""
    user_email: str = ""
    provider_id: str = ""
    key_id: str = ""
    active: bool | None = None
    after: tuple[int, str] | None = None
    limit: int = 50
    offset: int = 0


def mint(
    tx: Transaction, by: Principal, requests: Sequence[tuple[NewGrant, str]], key_kid: str = ""
) -> list[MintedGrant]:
    """Create grants for users authenticated by a provider, with one audit event for all.

    Each request has the address it came from; `key_kid` is the kid of the caller's secret.
    Raises `OrganizationSuspended`.
    """
    by.require(Permission.TOKENS_EXCHANGE)
    return _mint(tx, by, requests, key_kid, "grant.exchanged")


def create(
    tx: Transaction,
    by: Principal,
    new_grant: NewGrant,
    key_kid: str = "",
    *,
    replace: bool = False,
) -> MintedGrant:
    """Create a grant for a user named by the caller; `replace` ends the user's earlier grants.

    Raises `OrganizationSuspended`, `ProviderNotFound`.
    """
    by.require(Permission.TOKENS_CREATE)
    if new_grant.provider_id:
        _require_provider(tx, by, new_grant.provider_id)
    if replace:
        cut_off(tx, by, CutoffKind.EMAIL, new_grant.user_email, tx.revision - 1)
        tx.affected_subjects.add(ALL_SUBJECTS)
        target = Target(ENDED, new_grant.user_key)
        record(tx, by, "grants.revoked", target, {"user_email": new_grant.user_email})
    return _mint(tx, by, [(new_grant, by.address)], key_kid, "grant.created")[0]


def create_own(tx: Transaction, by: Principal, new_grant: NewGrant) -> MintedGrant:
    """Create a grant for the caller, for a page that shows live messages.

    It requires no more than creating a client, with which the caller could log in as well. Raises
    `OrganizationSuspended`.
    """
    by.require(Permission.CLIENTS_WRITE)
    if new_grant.user_email != by.label.lower():
        by.require(Permission.TOKENS_CREATE)
    return _mint(tx, by, [(new_grant, by.address)], "", "grant.created")[0]


def list_grants(tx: Transaction, by: Principal, query: GrantQuery) -> list[GrantRecord]:
    """Return the grants that match `query`, newest first, and one more if there are more."""
    by.require(Permission.TOKENS_READ)
    conditions = [in_scope(grants, by.scope)]
    for column in (grants.c.user_id, grants.c.user_email, grants.c.provider_id, grants.c.key_id):
        value = getattr(query, column.name)
        if value:
            conditions.append(column == value)
    if query.active is not None:
        inactive = inactive_clause(tx.now)
        conditions.append(~inactive if query.active else inactive)
    if query.after is not None:
        conditions.append(tuple_(grants.c.created_at, grants.c.kid) < query.after)
    rows = tx.connection.execute(
        SELECT_GRANT.where(*conditions)
        .order_by(grants.c.created_at.desc(), grants.c.kid.desc())
        .limit(query.limit + 1)
        .offset(query.offset)
    )
    return [grant_record(row, tx.now) for row in rows]


def get(tx: Transaction, by: Principal, token_id: str) -> GrantRecord:
    """Return one grant; raises `GrantNotFound`."""
    by.require(Permission.TOKENS_READ)
    return grant_record(_get(tx, by, token_id), tx.now)


def revoke(tx: Transaction, by: Principal, token_id: str) -> GrantRecord:
    """End one grant permanently; a second call changes nothing. Raises `GrantNotFound`."""
    by.require(Permission.TOKENS_REVOKE)
    row = _get(tx, by, token_id)
    changed = tx.connection.execute(
        update(grants)
        .where(grants.c.kid == row.kid, in_scope(grants, by.scope), grants.c.revoked_at.is_(None))
        .values(revoked_at=tx.now)
    )
    if changed.rowcount:
        tx.affected_subjects.add(row.user_key)
        record(tx, by, "grant.revoked", Target(ENDED, token_id), {"user_id": row.user_id})
    return grant_record(_get(tx, by, token_id), tx.now)


def revoke_all(tx: Transaction, by: Principal, kind: CutoffKind, subject: str) -> int:
    """End all grants of a user, address, provider or key; return how many were active.

    Raises `ProviderNotFound`, `KeyNotFound`.
    """
    by.require(Permission.TOKENS_REVOKE)
    if kind is CutoffKind.PROVIDER:
        _require_provider(tx, by, subject)
    if kind is CutoffKind.KEY and not _has_key(tx, by, subject):
        raise KeyNotFound
    column = {
        CutoffKind.USER: grants.c.user_id,
        CutoffKind.EMAIL: grants.c.user_email,
        CutoffKind.PROVIDER: grants.c.provider_id,
        CutoffKind.KEY: grants.c.key_id,
        CutoffKind.FAMILY: grants.c.family,
    }[kind]
    active = len(
        tx.connection.execute(
            SELECT_GRANT.where(
                in_scope(grants, by.scope), column == subject, ~inactive_clause(tx.now)
            ).with_only_columns(grants.c.kid)
        ).all()
    )
    cut_off(tx, by, kind, subject, tx.revision)
    tx.affected_subjects.add(ALL_SUBJECTS)
    details = {"of": str(kind), "subject": subject, "live": active}
    record(tx, by, "grants.revoked", Target(ENDED, subject[:64]), details)
    return active


def inactive_reason(row: Row[Any], now: int, *, refreshing: bool = False) -> str:
    """Return why a grant can't log in, or be refreshed, as a clause; "" if it can."""
    reasons = (
        (row.revoked_at is not None or bool(row.cut_off), "it was revoked"),
        (bool(row.provider_id) and row.provider is None, "its provider was deleted"),
        (row.suspended_at is not None, "its organization is suspended"),
        (row.deleted_at is not None, "its organization was deleted"),
        (
            _has_key_ended(row, now),
            "the key that created it was revoked or disabled, or has expired",
        ),
        (
            refreshing and bool(row.provider_id) and not row.provider_enabled,
            "its provider is disabled",
        ),
        (refreshing and now >= row.refreshable_until, "it is too old"),
        (not refreshing and now >= expiry_of(row), EXPIRED),
    )
    return next((reason for applies, reason in reasons if applies), "")


def expiry_of(row: Row[Any]) -> int:
    """Return when a grant ends (epoch milliseconds): no later than the key that created it."""
    expiries: list[int] = [row.expires_at]
    if row.key_expires_at is not None:
        expiries.append(row.key_expires_at)
    return min(expiries)


def grant_principal(row: Row[Any], by: Principal) -> Principal:
    """Return the principal that a grant's password authenticates, at the address of `by`."""
    return Principal(
        PrincipalKind.GRANT,
        token_id_of(row.kid),
        row.username,
        org_id=row.org_id,
        environment=Environment(row.environment),
        address=by.address,
        user_agent=by.user_agent,
    )


def grant_record(row: Row[Any], now: int) -> GrantRecord:
    """Return the record of a row of `SELECT_GRANT`."""
    ended = inactive_reason(row, now) not in ("", EXPIRED)
    return GrantRecord(
        kid=row.kid,
        org_id=row.org_id,
        environment=Environment(row.environment),
        provider_id=row.provider_id,
        user_id=row.user_id,
        user_email=row.user_email,
        user_key=row.user_key,
        username=row.username,
        key_id=row.key_id,
        key_kid=row.key_kid,
        family=row.family,
        ttl_s=row.ttl_s,
        created_at=row.created_at,
        expires_at=expiry_of(row),
        refreshable_until=row.refreshable_until,
        replaced_by=row.replaced_by,
        revoked=ended,
        claims=row.claims,
    )


def _mint(
    tx: Transaction,
    by: Principal,
    requests: Sequence[tuple[NewGrant, str]],
    key_kid: str,
    action: str,
) -> list[MintedGrant]:
    open_organization(tx, by)
    key_id = by.id if by.kind is PrincipalKind.KEY else ""
    key_expires_at = _key_expiry(tx, by) if key_id else None
    new_grants = [new_grant for new_grant, _ in requests]
    minted = insert_grants(tx, by, new_grants, key_id, key_kid, key_expires_at=key_expires_at)
    details = {
        "count": len(minted),
        # One event covers all grants, so each entry has its own address.
        "grants": [
            [item.grant.token_id, item.grant.user_id, address]
            for item, (_, address) in zip(minted, requests, strict=True)
        ],
        "providers": sorted({new_grant.provider_id for new_grant in new_grants}),
    }
    record(tx, by, action, Target(MINTED, minted[0].grant.token_id), details)
    return minted


def insert_grants(  # noqa: PLR0917 - the columns shared by all the rows
    tx: Transaction,
    by: Principal,
    new_grants: Sequence[NewGrant],
    key_id: str,
    key_kid: str,
    refreshed: Row[Any] | None = None,
    key_expires_at: int | None = None,
) -> list[MintedGrant]:
    """Insert grants, in the family of the `refreshed` one if given."""
    rows, minted, stamp = [], [], stamp_of(tx.now)
    if refreshed:
        member_id = refreshed.member_id
    else:
        member_id = by.id if by.kind is PrincipalKind.MEMBER else ""
    limits = [] if key_expires_at is None else [key_expires_at]
    for new_grant in new_grants:
        password = generate(SecretKind.GRANT, None, brand=tx.brand, stamp=stamp)
        refreshable_until = (
            refreshed.refreshable_until if refreshed else tx.now + new_grant.refreshable_s * 1000
        )
        grant = GrantRecord(
            kid=password.kid,
            org_id=by.org_id,
            environment=by.environment,
            provider_id=new_grant.provider_id,
            user_id=new_grant.user_id,
            user_email=new_grant.user_email,
            user_key=new_grant.user_key,
            username=new_grant.username,
            key_id=key_id,
            key_kid=key_kid,
            family=refreshed.family if refreshed else password.kid,
            ttl_s=new_grant.ttl_s,
            created_at=tx.now,
            expires_at=min([tx.now + new_grant.ttl_s * 1000, *limits]),
            refreshable_until=refreshable_until,
            replaced_by=None,
            revoked=False,
            claims=new_grant.claims,
        )
        minted.append(MintedGrant(grant, password))
        rows.append(
            {
                "kid": grant.kid,
                "org_id": grant.org_id,
                "environment": grant.environment,
                "provider_id": grant.provider_id,
                "user_id": grant.user_id,
                "user_email": grant.user_email,
                "user_key": grant.user_key,
                "username": grant.username,
                "claims": dict(grant.claims),
                "digest": tx.vault.digest(password.text),
                "pepper_version": tx.vault.version,
                "key_id": key_id,
                "key_kid": key_kid,
                "member_id": member_id,
                "family": grant.family,
                "revision": tx.revision,
                "ttl_s": grant.ttl_s,
                "created_at": tx.now,
                "expires_at": grant.expires_at,
                "refreshable_until": refreshable_until,
                "replaced_by": None,
                "refreshed_at": None,
                "used_at": None,
                "revoked_at": None,
            }
        )
    tx.connection.execute(_INSERT, rows)
    return minted


def inactive_clause(now: int) -> ColumnElement[bool]:
    """Return the SQL condition of `inactive_reason`, except for the organization's state."""
    return or_(
        _PERMANENTLY_ENDED,
        grants.c.expires_at <= now,
        keys.c.disabled_at.is_not(None),
        # Without the NULL check, the negation would be NULL for keys that never expire.
        and_(keys.c.expires_at.is_not(None), keys.c.expires_at <= now),
    )


def _has_key_ended(row: Row[Any], now: int) -> bool:
    if not row.key_id:
        return False
    if row.key is None or row.key_revoked_at is not None or row.key_disabled_at is not None:
        return True
    if row.key_expires_at is not None and row.key_expires_at <= now:
        return True
    # A rotation supersedes a secret but keeps its grants; any other reason ends them.
    return row.secret_revoked_at is not None and row.secret_revoke_reason != Reason.SUPERSEDED


def _key_expiry(tx: Transaction, by: Principal) -> int | None:
    if by.expires_at is None:
        return None
    return tx.connection.execute(
        select(keys.c.expires_at).where(keys.c.id == by.id, keys.c.org_id == by.org_id)
    ).scalar_one_or_none()


def _get(tx: Transaction, by: Principal, token_id: str) -> Row[Any]:
    row = tx.connection.execute(
        SELECT_GRANT.where(grants.c.kid == kid_of_token(token_id), in_scope(grants, by.scope))
    ).one_or_none()
    if row is None:
        raise GrantNotFound
    return row


def _require_provider(tx: Transaction, by: Principal, provider_id: str) -> None:
    row = tx.connection.execute(
        select(auth_providers.c.id).where(
            auth_providers.c.id == provider_id,
            in_scope(auth_providers, by.scope),
        )
    ).first()
    if row is None:
        raise ProviderNotFound


def _has_key(tx: Transaction, by: Principal, key_id: str) -> bool:
    row = tx.connection.execute(
        select(keys.c.id).where(
            keys.c.id == key_id,
            in_scope(keys, by.scope),
        )
    ).first()
    return row is not None
