"""Records of keys and their secrets, validation of new and edited keys, and grace periods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from wardkey.domain.addresses import parse_networks, parse_origin
from wardkey.domain.errors import (
    ExpiryInPast,
    InvalidAddress,
    InvalidGrace,
    InvalidMetadata,
    InvalidName,
    InvalidOrigin,
    InvalidRateLimit,
    InvalidText,
    OriginsNotForType,
    TooManyItems,
)
from wardkey.domain.names import clean_metadata, clean_name, clean_text
from wardkey.domain.permissions import KeyType
from wardkey.domain.secret import Environment
from wardkey.domain.times import DAY_MS, HOUR_MS, parse_iso

MOST_LIVE_SECRETS = 10
# The default rotation policy in days, and its limits.
ROTATION_DAYS = 90
ROTATION_BOUNDS = (1, 3650)
EXPIRING_MS = 14 * DAY_MS
GRACE_MS: Mapping[str, int] = {"1h": HOUR_MS, "24h": DAY_MS, "7d": 7 * DAY_MS}

Metadata = Mapping[str, Any]


class Reason(StrEnum):
    """Revocation reasons: those of RFC 5280 §5.3.1 that apply to keys, in its spelling."""

    UNSPECIFIED = "unspecified"
    KEY_COMPROMISE = "keyCompromise"
    AFFILIATION_CHANGED = "affiliationChanged"
    SUPERSEDED = "superseded"
    CESSATION_OF_OPERATION = "cessationOfOperation"
    PRIVILEGE_WITHDRAWN = "privilegeWithdrawn"


class KeyStatus(StrEnum):
    """The status of a key in lists; only `active` keys get valid verdicts."""

    ACTIVE = "active"
    DISABLED = "disabled"
    EXPIRED = "expired"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True)
class Rate:
    """A key's rate limit as users write it: `limit` requests per `period_s`, `burst` at once."""

    limit: int
    period_s: int
    burst: int


@dataclass(frozen=True, slots=True)
class KeySpec:
    """The fields of a new key; times in epoch milliseconds."""

    name: str
    type: KeyType
    environment: Environment
    permissions: tuple[str, ...] | None = None
    expires_at: int | None = None
    description: str = ""
    allowed_addresses: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    allow_native: bool = False
    rate_limit: Rate | None = None
    metadata: Metadata = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SecretRecord:
    """A secret of a key, without its text; `expires_at` is the end of its grace period."""

    kid: str
    prefix: str
    created_at: int
    created_by: str
    expires_at: int | None
    revoked_at: int | None
    revoke_reason: str | None
    revoke_comment: str | None
    imported: bool
    last_used_at: int | None = None
    last_used_address: str | None = None
    last_used_agent: str | None = None

    def live(self, now: int) -> bool:
        """Return whether this secret is neither revoked nor expired at `now`."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A key as its organization sees it; times in epoch milliseconds."""

    id: str
    org_id: str
    environment: Environment
    type: KeyType
    name: str
    description: str
    permissions: tuple[str, ...]
    allowed_addresses: tuple[str, ...]
    allowed_origins: tuple[str, ...]
    allow_native: bool
    rate_limit: Rate | None
    metadata: Metadata
    created_at: int
    created_by: str
    updated_at: int
    rotated_at: int
    expires_at: int | None
    disabled_at: int | None
    revoked_at: int | None
    revoke_reason: str | None
    revoke_comment: str | None
    secrets: tuple[SecretRecord, ...] = ()
    rotation_days: int = ROTATION_DAYS

    def status(self, now: int) -> KeyStatus:
        """Return the key's status at `now`: revoked before expired before disabled."""
        if self.revoked_at is not None:
            return KeyStatus.REVOKED
        if self.expires_at is not None and self.expires_at <= now:
            return KeyStatus.EXPIRED
        return KeyStatus.ACTIVE if self.disabled_at is None else KeyStatus.DISABLED

    def rotation_due(self, now: int) -> bool:
        """Return whether a live secret key's newest secret is older than the policy allows."""
        is_old = now - self.rotated_at >= self.rotation_days * DAY_MS
        is_live = self.status(now) in {KeyStatus.ACTIVE, KeyStatus.DISABLED}
        return is_old and is_live and self.type is KeyType.SECRET


def clean_spec(spec: KeySpec, now: int) -> KeySpec:
    """Return `spec` with its values in canonical form, or raise the first error.

    Raises `InvalidName`, `InvalidText`, `ExpiryInPast`, `InvalidAddress`, `InvalidOrigin`,
    `OriginsNotForType`, `InvalidRateLimit`, `InvalidMetadata`, `TooManyItems`.
    """
    if spec.expires_at is not None and spec.expires_at <= now:
        raise ExpiryInPast(field="expires_at")
    if (spec.allowed_origins or spec.allow_native) and spec.type is not KeyType.PUBLISHABLE:
        raise OriginsNotForType(field="allowed_origins")
    try:
        name = clean_name(spec.name)
    except ValueError as error:
        raise InvalidName(str(error), field="name") from None
    try:
        description = clean_text(spec.description, 500)
    except ValueError as error:
        raise InvalidText(str(error), field="description") from None
    try:
        metadata = clean_metadata(spec.metadata)
    except ValueError as error:
        raise InvalidMetadata(str(error), field="metadata") from None
    check_rate(spec.rate_limit)
    return KeySpec(
        name=name,
        type=spec.type,
        environment=spec.environment,
        permissions=spec.permissions,
        expires_at=spec.expires_at,
        description=description,
        allowed_addresses=clean_addresses(spec.allowed_addresses),
        allowed_origins=_clean_origins(spec.allowed_origins),
        allow_native=spec.allow_native,
        rate_limit=spec.rate_limit,
        metadata=metadata,
    )


def clean_addresses(items: tuple[str, ...]) -> tuple[str, ...]:
    """Return CIDR blocks in canonical form; raises `InvalidAddress`, `TooManyItems`."""
    if len(items) > 100:  # noqa: PLR2004 - the documented bound
        raise TooManyItems(
            f"There are {len(items)} allowed addresses; send at most 100.",
            field="allowed_addresses",
        )
    clean: list[str] = []
    for index, item in enumerate(items):
        try:
            clean.extend(str(network) for network in parse_networks([item]))
        except ValueError as error:
            raise InvalidAddress(str(error), field=f"allowed_addresses.{index}") from None
    return tuple(dict.fromkeys(clean))


def _clean_origins(items: tuple[str, ...]) -> tuple[str, ...]:
    if len(items) > 100:  # noqa: PLR2004 - the documented bound
        raise TooManyItems(
            f"There are {len(items)} allowed origins; send at most 100.", field="allowed_origins"
        )
    clean = []
    for index, item in enumerate(items):
        try:
            clean.append(parse_origin(item))
        except ValueError as error:
            raise InvalidOrigin(str(error), field=f"allowed_origins.{index}") from None
    return tuple(dict.fromkeys(clean))


def check_rate(rate: Rate | None) -> None:
    """Check the parts of a rate limit; raises `InvalidRateLimit`."""
    if rate is None:
        return
    bounds = {"limit": 1_000_000_000, "period_s": 86_400 * 31, "burst": 1_000_000_000}
    for name, most in bounds.items():
        if not 1 <= getattr(rate, name) <= most:
            raise InvalidRateLimit(
                f"{name} must be a whole number from 1 to {most:,}.", field=f"rate_limit.{name}"
            )


def grace_end(grace: str, now: int) -> int | None:
    """Return the time at which the old secrets expire; None means when someone revokes them.

    `grace` is `now`, `1h`, `24h`, `7d`, `until_revoked` or an RFC 3339 time in the future.
    Raises `InvalidGrace`.
    """
    if grace == "now":
        return now
    if grace == "until_revoked":
        return None
    if grace in GRACE_MS:
        return now + GRACE_MS[grace]
    try:
        end = parse_iso(grace)
    except ValueError:
        raise InvalidGrace(field="grace") from None
    if end <= now:
        raise InvalidGrace(
            "The end of the grace period is in the past; use now or a later time.", field="grace"
        )
    return end


def origin_warnings(spec: KeySpec) -> list[str]:
    """Return a sentence for a publishable key that any page can use, else nothing."""
    if spec.type is not KeyType.PUBLISHABLE or spec.allowed_origins:
        return []
    warning = (
        "Any page can use this key, because it has no allowed_origins; list the origins of your "
        "own pages there."
    )
    return [warning]
