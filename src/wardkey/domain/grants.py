"""Grants: temporary MQTT credentials, their lifetime and status."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from wardkey.domain.errors import InvalidTtl
from wardkey.domain.secret import ALPHABET, Environment
from wardkey.domain.usernames import on_the_wire

DEFAULT_TTL_S, SHORTEST_TTL_S, LONGEST_TTL_S = 3_600, 30, 86_400
REFRESHABLE_S = 30 * 86_400
# How long the old password can still log in after a refresh, for a client that is connecting.
OVERLAP_MS = 30_000
# How long a refresh can be repeated after its response was lost; see decision 41.
RETRY_MS = 120_000


class GrantStatus(StrEnum):
    """The status of a grant in lists; only `active` ones can log in."""

    ACTIVE = "active"
    EXPIRED = "expired"
    REFRESHED = "refreshed"
    REVOKED = "revoked"


class CutoffKind(StrEnum):
    """What the grants that a cutoff ends have in common; a family is a grant and its refreshes."""

    USER = "user"
    EMAIL = "email"
    PROVIDER = "provider"
    KEY = "key"
    FAMILY = "family"


@dataclass(frozen=True, slots=True)
class NewGrant:
    """The values of a grant to create; `user_key` identifies the user across grants.

    `claims` are the variables of ACL rules; `username` is without the organization.
    """

    provider_id: str
    user_id: str
    user_email: str
    user_key: str
    username: str
    claims: Mapping[str, str]
    ttl_s: int
    refreshable_s: int = REFRESHABLE_S


@dataclass(frozen=True, slots=True)
class GrantRecord:
    """A grant as its organization sees it, without its password; times in epoch ms."""

    kid: str
    org_id: str
    environment: Environment
    provider_id: str
    user_id: str
    user_email: str
    user_key: str
    username: str
    key_id: str
    key_kid: str
    family: str
    ttl_s: int
    created_at: int
    expires_at: int
    refreshable_until: int
    replaced_by: str | None
    revoked: bool
    claims: Mapping[str, str] = field(default_factory=dict)

    @property
    def token_id(self) -> str:
        """The id by which it is listed, refreshed and revoked."""
        return token_id_of(self.kid)

    @property
    def mqtt_username(self) -> str:
        """The user name in MQTT."""
        return on_the_wire(self.username, self.org_id, self.environment)

    def status(self, now: int) -> GrantStatus:
        """Return the status at `now` (epoch ms); the strongest reason wins."""
        if self.revoked:
            return GrantStatus.REVOKED
        if self.replaced_by is not None and now >= self.expires_at:
            return GrantStatus.REFRESHED
        return GrantStatus.EXPIRED if now >= self.expires_at else GrantStatus.ACTIVE


def stamp_of(now: int) -> str:
    """Return the first four characters of the kids of grants created at `now` (epoch ms).

    They grow for half a year and then start again, so rows created together are stored together.
    """
    seconds, text = now // 1000, ""
    for _ in range(4):
        seconds, digit = divmod(seconds, len(ALPHABET))
        text = ALPHABET[digit] + text
    return text


def token_id_of(kid: str) -> str:
    """Return the id of the grant with that kid."""
    return f"tok_{kid}"


def kid_of_token(token_id: str) -> str:
    """Return the kid in a grant id, or "" if the text is not one."""
    return token_id.removeprefix("tok_") if token_id.startswith("tok_") else ""


def choose_ttl(requested: int | None, longest: int) -> int:
    """Return a grant's lifetime in seconds: the requested one, at most `longest`.

    Raises `InvalidTtl` for a lifetime that no provider can allow.
    """
    if requested is None:
        return min(DEFAULT_TTL_S, longest)
    if not SHORTEST_TTL_S <= requested <= LONGEST_TTL_S:
        raise InvalidTtl(
            f"ttl is {requested:,}; send {SHORTEST_TTL_S} to {LONGEST_TTL_S:,} seconds.",
            field="ttl",
        )
    return min(requested, longest)


def recommended_refresh(created_at: int, expires_at: int) -> int:
    """Return when to refresh a grant, epoch ms: after four fifths of its lifetime."""
    return created_at + (expires_at - created_at) * 4 // 5
