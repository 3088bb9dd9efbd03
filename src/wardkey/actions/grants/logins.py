"""MQTT logins with a grant, and which grants' sessions can continue."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Row, bindparam, select

from wardkey.actions.grants.grants import (
    EXPIRED,
    SELECT_BY_KID,
    SELECT_GRANT,
    expiry_of,
    inactive_clause,
    inactive_reason,
)
from wardkey.actions.grants.refreshes import end_if_superseded, note_use
from wardkey.db.engine import Database, Transaction
from wardkey.db.schema import grants, organizations
from wardkey.db.scoped import in_scope
from wardkey.domain.acl import Actor, ActorKind
from wardkey.domain.secret import Environment, Malformed, SecretKind, parse
from wardkey.domain.tenants import TenantScope
from wardkey.domain.times import DAY_MS
from wardkey.domain.usernames import on_the_wire, parse_username

_BATCH_SIZE = 500
# The broker ends a session at most this long after its grant, even if refreshed, in case no
# process is running to end it when its grants are over.
_MAX_OVERRUN_MS = DAY_MS

_START = (
    select(grants.c.kid.label("first"), grants.c.kid, grants.c.replaced_by)
    .where(grants.c.kid.in_(bindparam("kids", expanding=True)))
    .cte("refreshed", recursive=True)
)
_REFRESHED = _START.union_all(
    select(_START.c.first, grants.c.kid, grants.c.replaced_by).where(
        grants.c.kid == _START.c.replaced_by
    )
)
# The last grant that each grant was refreshed to, which may be itself.
_NEWEST = select(_REFRESHED.c.first, _REFRESHED.c.kid).where(_REFRESHED.c.replaced_by.is_(None))


@dataclass(frozen=True, slots=True)
class KnownGrant:
    """An authenticated grant; times in epoch milliseconds.

    A session ends when the newest grant of the family does, and at `session_until` at the latest.
    `id` identifies the user, not the grant, so a refresh keeps the user's client ids.
    """

    id: str
    kid: str
    org_id: str
    environment: Environment
    username: str
    provider_id: str
    claims: Mapping[str, str] = field(repr=False)
    expires_at: int
    session_until: int

    @property
    def mqtt_username(self) -> str:
        """The user name that the user sends in CONNECT."""
        return on_the_wire(self.username, self.org_id, self.environment)

    def actor(self, mqtt_id: str) -> Actor:
        """Return the actor that ACL rules apply to in a session with this client id."""
        return Actor(
            ActorKind.GRANT, self.org_id, self.username, mqtt_id, self.provider_id, self.claims
        )


def is_grant_password(text: str, brand: str) -> bool:
    """Return whether a password has the form of a grant's, which no client's password has."""
    secret = parse(text, brand=brand)
    return not isinstance(secret, Malformed) and secret.kind is SecretKind.GRANT


def find_grant(
    database: Database, password: str, username: str = "", address: str = ""
) -> KnownGrant | None:
    """Return the grant with this password and, unless empty, this user name as in CONNECT.

    This records the grant's first use; using a superseded grant ends its family. Raises storage
    errors.
    """
    text = parse(password, brand=database.brand)
    if isinstance(text, Malformed) or text.kind is not SecretKind.GRANT:
        return None
    with database.read() as tx:
        row = tx.connection.execute(SELECT_BY_KID, {"of_kid": text.kid}).one_or_none()
        # Hashing for an unknown kid too makes both cases take equally long.
        version = row.pepper_version if row is not None else tx.vault.version
        if version not in tx.vault.peppers:
            return None
        matches = tx.vault.matches(password, bytes(row.digest) if row else bytes(32), version)
        reason = inactive_reason(row, tx.now) if row is not None else ""
    if row is None or not matches:
        return None
    known = _known_grant(row)
    if username not in ("", known.mqtt_username):
        return None
    if reason:
        end_if_superseded(database, row, address)
        return None
    return known if note_use(database, row) else None


def newest_grant(tx: Transaction, username: str) -> KnownGrant | None:
    """Return the newest active grant of the user with this user name, as sent in CONNECT.

    For hooks, which send no password: all grants of a user have the same user name.
    """
    name = parse_username(username)
    if name is None:
        return None
    row = tx.connection.execute(
        SELECT_GRANT.where(
            in_scope(grants, name.scope),
            grants.c.username == name.name,
            organizations.c.suspended_at.is_(None),
            organizations.c.deleted_at.is_(None),
            ~inactive_clause(tx.now),
        )
        .order_by(grants.c.created_at.desc(), grants.c.kid.desc())
        .limit(1)
    ).one_or_none()
    return None if row is None else _known_grant(row)


def live_grants(
    tx: Transaction, scope: TenantScope, kids: Iterable[str]
) -> Mapping[str, KnownGrant]:
    """Return, by kid, the grant under which each grant's sessions continue, if they do.

    That is the newest grant it was refreshed to, unless either of the two was ended.
    """
    return {
        kid: _known_grant(last)
        for kid, (row, last) in _with_newest(tx, scope, kids).items()
        if not _session_end_reason(row, last, tx.now)
    }


def expired_grants(tx: Transaction, scope: TenantScope, kids: Iterable[str]) -> frozenset[str]:
    """Return the grants whose sessions are over only because they expired."""
    return frozenset(
        kid
        for kid, (row, last) in _with_newest(tx, scope, kids).items()
        if _session_end_reason(row, last, tx.now) == EXPIRED
    )


def _session_end_reason(row: Row[Any], last: Row[Any], now: int) -> str:
    reason = inactive_reason(row, now)
    # A refreshed grant's password stops working, but its sessions continue.
    return reason if reason not in {"", EXPIRED} else inactive_reason(last, now)


def _with_newest(
    tx: Transaction, scope: TenantScope, kids: Iterable[str]
) -> dict[str, tuple[Row[Any], Row[Any]]]:
    """Return each grant's row with that of the last grant it was refreshed to."""
    all_kids = list(kids)
    newest: dict[str, str] = {}
    for start in range(0, len(all_kids), _BATCH_SIZE):
        batch = {"kids": all_kids[start : start + _BATCH_SIZE]}
        newest |= {row.first: row.kid for row in tx.connection.execute(_NEWEST, batch)}
    rows = {row.kid: row for row in _select_grants(tx, scope, {*newest, *newest.values()})}
    return {
        kid: (rows[kid], rows[last]) for kid, last in newest.items() if kid in rows and last in rows
    }


def _select_grants(tx: Transaction, scope: TenantScope, kids: Iterable[str]) -> Iterator[Row[Any]]:
    all_kids = list(kids)
    for start in range(0, len(all_kids), _BATCH_SIZE):
        yield from tx.connection.execute(
            SELECT_GRANT.where(
                grants.c.kid.in_(all_kids[start : start + _BATCH_SIZE]),
                in_scope(grants, scope),
            )
        )


def _known_grant(row: Row[Any]) -> KnownGrant:
    return KnownGrant(
        id=row.user_key,
        kid=row.kid,
        org_id=row.org_id,
        environment=Environment(row.environment),
        username=row.username,
        provider_id=row.provider_id,
        claims=row.claims,
        expires_at=expiry_of(row),
        session_until=min(
            row.refreshable_until + row.ttl_s * 1000, expiry_of(row) + _MAX_OVERRUN_MS
        ),
    )
