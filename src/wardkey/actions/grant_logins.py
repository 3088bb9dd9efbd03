"""Logins with a grant: whose user name and password these are, and which sessions may go on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Row

from wardkey.actions.grants import BY_KID, GRANT, end_of, over, why_over
from wardkey.db.engine import Database, Transaction
from wardkey.db.schema import grants, organizations
from wardkey.domain.acl import Actor, ActorKind
from wardkey.domain.secret import Environment, Malformed, SecretKind, parse
from wardkey.domain.usernames import on_the_wire, parse_username

_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class KnownGrant:
    """A grant that logs in; `expires_at` in epoch milliseconds.

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
    # Whether it may end before the time that a login with it was told.
    may_end_early: bool

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


def find_grant(database: Database, password: str, username: str = "") -> KnownGrant | None:
    """Return the grant with that password, and that user name on the wire unless it is empty.

    Raises the storage's failure.
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
        if row is None or not fits or why_over(row, tx.now):
            return None
    known = _known(row)
    return known if username in ("", known.mqtt_username) else None


def newest_grant(tx: Transaction, username: str) -> KnownGrant | None:
    """Return the newest live grant of the person with that user name on the wire.

    For those who were told no password: all grants of a person have the same user name.
    """
    name = parse_username(username)
    if name is None:
        return None
    row = tx.connection.execute(
        GRANT.where(
            grants.c.org_id == name.org_id,
            grants.c.environment == name.environment,
            grants.c.username == name.name,
            organizations.c.suspended_at.is_(None),
            organizations.c.deleted_at.is_(None),
            ~over(tx.now),
        )
        .order_by(grants.c.created_at.desc(), grants.c.kid.desc())
        .limit(1)
    ).one_or_none()
    return None if row is None else _known(row)


def live_grants(
    tx: Transaction, room: tuple[str, Environment], kids: Iterable[str]
) -> Mapping[str, KnownGrant]:
    """Return those of these grants that still log in, by kid."""
    wanted = list(kids)
    found: dict[str, KnownGrant] = {}
    for start in range(0, len(wanted), _AT_ONCE):
        rows = tx.connection.execute(
            GRANT.where(
                grants.c.kid.in_(wanted[start : start + _AT_ONCE]),
                grants.c.org_id == room[0],
                grants.c.environment == room[1],
            )
        )
        found |= {row.kid: _known(row) for row in rows if not why_over(row, tx.now)}
    return found


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
        may_end_early=row.replaced_by is not None or end_of(row) == row.key_expires_at,
    )
