"""Logins with a grant: whose user name and password these are, and which sessions may go on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Row, bindparam, select

from wardkey.actions.grants.grants import (
    BY_KID,
    EXPIRED,
    GRANT,
    end_of,
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
from wardkey.domain.usernames import on_the_wire, parse_username

_AT_ONCE = 500
# How long after a grant the broker itself ends a session that it let in, whether it was refreshed
# or not: should nobody be there to end it when its grants are over.
_UNSEEN_MS = 86_400_000

_FROM = (
    select(grants.c.kid.label("first"), grants.c.kid, grants.c.replaced_by)
    .where(grants.c.kid.in_(bindparam("some", expanding=True)))
    .cte("refreshed", recursive=True)
)
_REFRESHED = _FROM.union_all(
    select(_FROM.c.first, grants.c.kid, grants.c.replaced_by).where(
        grants.c.kid == _FROM.c.replaced_by
    )
)
# Of each grant the last that it was refreshed to, which may be itself.
_NEWEST = select(_REFRESHED.c.first, _REFRESHED.c.kid).where(_REFRESHED.c.replaced_by.is_(None))


@dataclass(frozen=True, slots=True)
class KnownGrant:
    """A grant that logs in; `expires_at` in epoch milliseconds.

    A session ends when the newest grant of the family does, and at `session_until` at the latest.
    `id` names the person, not the grant: what he has on the broker stays his when he refreshes.
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
        """The user name as it stands on the wire."""
        return on_the_wire(self.username, self.org_id, self.environment)

    def actor(self, mqtt_id: str) -> Actor:
        """Return whom ACL rules see in a session with that client id."""
        return Actor(
            ActorKind.GRANT, self.org_id, self.username, mqtt_id, self.provider_id, self.claims
        )


def is_grant_password(text: str, brand: str) -> bool:
    """Tell whether a password has the form of a grant's; no client has such a one."""
    known = parse(text, brand=brand)
    return not isinstance(known, Malformed) and known.kind is SecretKind.GRANT


def find_grant(
    database: Database, password: str, username: str = "", address: str = ""
) -> KnownGrant | None:
    """Return the grant with that password, and that user name on the wire unless it is empty.

    Its first use is noted, and the use of a superseded one ends its family. Raises the storage's
    failure.
    """
    text = parse(password, brand=database.brand)
    if isinstance(text, Malformed) or text.kind is not SecretKind.GRANT:
        return None
    with database.read() as tx:
        row = tx.connection.execute(BY_KID, {"of_kid": text.kid}).one_or_none()
        # A digest is made for an unknown kid too, so that it takes as long.
        version = row.pepper_version if row is not None else tx.vault.version
        if version not in tx.vault.peppers:
            return None
        fits = tx.vault.matches(password, bytes(row.digest) if row else bytes(32), version)
        over = inactive_reason(row, tx.now) if row is not None else ""
    if row is None or not fits:
        return None
    known = _known(row)
    if username not in ("", known.mqtt_username):
        return None
    if over:
        end_if_superseded(database, row, address)
        return None
    return known if note_use(database, row) else None


def newest_grant(tx: Transaction, username: str) -> KnownGrant | None:
    """Return the newest live grant of the person with that user name on the wire.

    For those who were told no password: all grants of a person have the same user name.
    """
    name = parse_username(username)
    if name is None:
        return None
    row = tx.connection.execute(
        GRANT.where(
            in_scope(grants, name.scope),
            grants.c.username == name.name,
            organizations.c.suspended_at.is_(None),
            organizations.c.deleted_at.is_(None),
            ~inactive_clause(tx.now),
        )
        .order_by(grants.c.created_at.desc(), grants.c.kid.desc())
        .limit(1)
    ).one_or_none()
    return None if row is None else _known(row)


def live_grants(
    tx: Transaction, scope: TenantScope, kids: Iterable[str]
) -> Mapping[str, KnownGrant]:
    """Return of each grant, by kid, the one under which its sessions go on, if they do.

    That is the newest of its family, unless this one or that one was ended.
    """
    return {
        kid: _known(last)
        for kid, (row, last) in _families(tx, scope, kids).items()
        if not _why_session_over(row, last, tx.now)
    }


def expired_grants(tx: Transaction, scope: TenantScope, kids: Iterable[str]) -> frozenset[str]:
    """Return those of these grants whose sessions are over because of the time alone."""
    return frozenset(
        kid
        for kid, (row, last) in _families(tx, scope, kids).items()
        if _why_session_over(row, last, tx.now) == EXPIRED
    )


def _why_session_over(row: Row[Any], last: Row[Any], now: int) -> str:
    why = inactive_reason(row, now)
    # That the password of a refreshed grant logs nobody in any more ends no session.
    return why if why not in {"", EXPIRED} else inactive_reason(last, now)


def _families(
    tx: Transaction, scope: TenantScope, kids: Iterable[str]
) -> dict[str, tuple[Row[Any], Row[Any]]]:
    """Return of each grant its row, and that of the last that it was refreshed to."""
    wanted = list(kids)
    newest: dict[str, str] = {}
    for start in range(0, len(wanted), _AT_ONCE):
        some = {"some": wanted[start : start + _AT_ONCE]}
        newest |= {row.first: row.kid for row in tx.connection.execute(_NEWEST, some)}
    rows = {row.kid: row for row in _rows(tx, scope, {*newest, *newest.values()})}
    return {
        kid: (rows[kid], rows[last]) for kid, last in newest.items() if kid in rows and last in rows
    }


def _rows(tx: Transaction, scope: TenantScope, kids: Iterable[str]) -> Iterator[Row[Any]]:
    wanted = list(kids)
    for start in range(0, len(wanted), _AT_ONCE):
        yield from tx.connection.execute(
            GRANT.where(
                grants.c.kid.in_(wanted[start : start + _AT_ONCE]),
                in_scope(grants, scope),
            )
        )


def _known(row: Row[Any]) -> KnownGrant:
    return KnownGrant(
        id=row.user_key,
        kid=row.kid,
        org_id=row.org_id,
        environment=Environment(row.environment),
        username=row.username,
        provider_id=row.provider_id,
        claims=row.claims,
        expires_at=end_of(row),
        session_until=min(row.refreshable_until + row.ttl_s * 1000, end_of(row) + _UNSEEN_MS),
    )
