"""Caller authority: judges an authenticated caller again in the transaction of its action."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import BigInteger, BindParameter, Row, bindparam, exists, select

from wardkey.db.engine import Transaction
from wardkey.db.schema import (
    browser_sessions,
    keys,
    members,
    organizations,
    secrets,
    user_tokens,
)
from wardkey.domain.addresses import contains, parse_networks
from wardkey.domain.errors import (
    AddressNotAllowed,
    Disabled,
    Expired,
    InvalidUserToken,
    OrganizationNotFound,
    OrganizationSuspended,
    OriginNotAllowed,
    Revoked,
    SignedOut,
    Unknown,
)
from wardkey.domain.permissions import ROLE_TABLE, KeyType, Role
from wardkey.domain.principal import Principal, PrincipalKind
from wardkey.domain.times import SESSION_IDLE_MS
from wardkey.domain.verdict import page_allowed

_ID: BindParameter[str] = bindparam("of_id")
_KID: BindParameter[str] = bindparam("of_kid")
_NOW: BindParameter[int] = bindparam("at", type_=BigInteger)
_SIGN_INS = (
    exists()
    .where(
        user_tokens.c.kid == _KID,
        user_tokens.c.user_id == _ID,
        user_tokens.c.ended_at.is_(None),
        user_tokens.c.expires_at > _NOW,
    )
    .label("has_token"),
    exists()
    .where(
        browser_sessions.c.id == bindparam("of_session"),
        browser_sessions.c.user_id == _ID,
        browser_sessions.c.ended_at.is_(None),
        browser_sessions.c.expires_at > _NOW,
        browser_sessions.c.seen_at > _NOW - SESSION_IDLE_MS,
    )
    .label("has_session"),
)
# Built once: constructing a statement costs more than running it.
_USER = select(*_SIGN_INS)
_MEMBER = (
    select(
        members.c.role,
        organizations.c.suspended_at,
        organizations.c.deleted_at,
        *_SIGN_INS,
    )
    .join(organizations, organizations.c.id == members.c.org_id)
    .where(members.c.user_id == _ID, members.c.org_id == bindparam("of_org"))
)
_KEY = (
    select(
        keys.c.type,
        keys.c.permissions,
        keys.c.allowed_addresses,
        keys.c.allowed_origins,
        keys.c.allow_native,
        keys.c.expires_at,
        keys.c.disabled_at,
        keys.c.revoked_at,
        secrets.c.kid,
        secrets.c.expires_at.label("grace_ends_at"),
        secrets.c.revoked_at.label("secret_revoked_at"),
        organizations.c.suspended_at,
        organizations.c.deleted_at,
    )
    .join(organizations, organizations.c.id == keys.c.org_id)
    .outerjoin(secrets, (secrets.c.key_id == keys.c.id) & (secrets.c.kid == _KID))
    .where(keys.c.id == _ID, keys.c.org_id == bindparam("of_org"))
)
_STATEMENTS = {
    PrincipalKind.KEY: _KEY,
    PrincipalKind.MEMBER: _MEMBER,
    PrincipalKind.USER: _USER,
}


@dataclass(slots=True)
class CallerAuthority:
    """The current rights of callers, read once per caller in one transaction.

    Writes are serialized, so the rights that a write reads here can't change before its commit.
    """

    tx: Transaction
    _rows: dict[tuple[str, ...], Row[Any] | None] = field(default_factory=dict)

    def recheck(self, by: Principal) -> Principal:
        """Return the caller with the permissions that remain of those it was authenticated with.

        Raises the error that a new request would get: the credential has ended or is not allowed
        from this address or origin, the user is no longer a member, or the organization is
        suspended.
        """
        if by.kind not in _STATEMENTS or not by.id:
            return by
        name = (by.kind, by.id, by.org_id, by.kid, by.session_id)
        if name not in self._rows:
            parameters = {
                "of_id": by.id,
                "of_org": by.org_id,
                "of_kid": by.kid,
                "of_session": by.session_id,
                "at": self.tx.now,
            }
            self._rows[name] = self.tx.connection.execute(
                _STATEMENTS[by.kind], parameters
            ).one_or_none()
        row = self._rows[name]
        if by.kind is PrincipalKind.KEY:
            return _recheck_key(by, row, self.tx.now)
        return _recheck_user(by, row)


def _recheck_user(by: Principal, row: Row[Any] | None) -> Principal:
    if row is None:
        raise OrganizationNotFound
    if by.kid and not row.has_token:
        raise InvalidUserToken
    if by.session_id and not row.has_session:
        raise SignedOut
    if by.kind is PrincipalKind.USER:
        return by
    if row.deleted_at is not None:
        raise OrganizationNotFound
    if row.suspended_at is not None:
        raise OrganizationSuspended
    role = Role(row.role)
    if role is by.role:
        return by
    return replace(by, role=role, permissions=by.permissions & ROLE_TABLE[role])


def _recheck_key(by: Principal, row: Row[Any] | None, now: int) -> Principal:
    if row is None or (by.kid and row.kid is None):
        raise Unknown
    if row.revoked_at is not None or row.secret_revoked_at is not None:
        raise Revoked
    ends = [end for end in (row.expires_at, row.grace_ends_at) if end is not None]
    end = min(ends, default=None)
    if end is not None and end <= now:
        raise Expired
    if row.disabled_at is not None or row.suspended_at is not None or row.deleted_at is not None:
        raise Disabled
    if row.allowed_addresses and not contains(parse_networks(row.allowed_addresses), by.address):
        raise AddressNotAllowed
    if row.type == KeyType.PUBLISHABLE and not page_allowed(
        tuple(row.allowed_origins), by.origin, allow_native=row.allow_native
    ):
        raise OriginNotAllowed
    return replace(by, permissions=by.permissions & frozenset(row.permissions), expires_at=end)
