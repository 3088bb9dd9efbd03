"""The decision on a presented key: a pure function of what is known, what is asked and the time."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from wardkey.domain.addresses import Network, contains, origin_allowed
from wardkey.domain.credentials import explain_malformed
from wardkey.domain.errors import (
    AddressNotAllowed,
    Disabled,
    Expired,
    Malformed,
    NotPermitted,
    OriginNotAllowed,
    QuotaExceeded,
    RateLimitExceeded,
    Revoked,
    SecretKeyInBrowser,
    SecretKeyRequired,
    TooManyAttempts,
    Unknown,
    WardkeyError,
    WrongEnvironment,
)
from wardkey.domain.keys import Metadata
from wardkey.domain.permissions import KeyType
from wardkey.domain.rate import RateLimit
from wardkey.domain.secret import Environment


class Verdict(StrEnum):
    """The outcome of a verification, in the order in which the reasons are looked at."""

    VALID = "valid"
    MALFORMED = "malformed"
    UNKNOWN = "unknown"
    REVOKED = "revoked"
    EXPIRED = "expired"
    DISABLED = "disabled"
    WRONG_ENVIRONMENT = "wrong_environment"
    NOT_PERMITTED = "not_permitted"
    ADDRESS_NOT_ALLOWED = "address_not_allowed"
    ORIGIN_NOT_ALLOWED = "origin_not_allowed"
    RATE_LIMITED = "rate_limited"
    QUOTA_EXCEEDED = "quota_exceeded"


# An enum's member takes several times as long to reach as a name of the module (Python 3.11).
_VALID = Verdict.VALID
_PUBLISHABLE = KeyType.PUBLISHABLE


@dataclass(frozen=True, slots=True)
class KnownSecret:
    """What a decision and its answer need of a secret, its key and its organization."""

    kid: str
    key_id: str
    org_id: str
    org_name: str
    org_slug: str
    environment: Environment
    type: KeyType
    name: str
    prefix: str
    digest: bytes
    pepper_version: int
    imported: bool
    permissions: frozenset[str]
    metadata: Metadata
    networks: tuple[Network, ...]
    origins: tuple[str, ...]
    allow_native: bool
    rate: RateLimit | None
    secret_expires_at: int | None
    secret_revoked_at: int | None
    key_expires_at: int | None
    key_disabled_at: int | None
    key_revoked_at: int | None
    org_stopped: bool
    # When the key got a newer secret, with which the grace of this one began.
    superseded_at: int | None = None
    # Every slug the organization ever had; no other organization can take one of them.
    org_slugs: frozenset[str] = frozenset()
    # What answers say of it, as JSON members; made once with the record.
    rendered_fields: bytes = field(default=b"", repr=False, compare=False)

    def is_of(self, organization: str) -> bool:
        """Return whether the key's organization has this id, or has or had this slug."""
        return organization in (self.org_id, self.org_slug) or organization in self.org_slugs

    @property
    def expires_at(self) -> int | None:
        """The earlier of the key's expiry and the end of this secret's grace, epoch ms."""
        grace, expiry = self.secret_expires_at, self.key_expires_at
        if grace is None or (expiry is not None and expiry < grace):
            return expiry
        return grace


# Made for each request, and a frozen one takes longer to make than to decide.
@dataclass(slots=True)
class VerificationRequest:
    """What the asking side wants to know of a presented text.

    `organization` (an id, or a slug it has or had) narrows to the keys of one (empty: any);
    `environment` and `type` None take either; `address` and `origin` are the end client's, empty
    where unknown; `browser` says that a browser sent the key.
    """

    text: str = field(repr=False)
    organization: str = ""
    environment: Environment | None = None
    type: KeyType | None = None
    permissions: tuple[str, ...] = ()
    address: str = ""
    origin: str = ""
    browser: bool = False
    browser_allowed: bool = False
    cost: int = 1


def decide(known: KnownSecret, asked: VerificationRequest, now: int) -> Verdict:  # noqa: PLR0911 - a ladder
    """Judge a secret whose hash matched, all but its rate; `now` in epoch milliseconds.

    A key of another organization than the one asked for is `unknown` there.
    """
    if asked.organization and not known.is_of(asked.organization):
        return Verdict.UNKNOWN
    if known.key_revoked_at is not None or known.secret_revoked_at is not None:
        return Verdict.REVOKED
    end = known.expires_at
    if end is not None and end <= now:
        return Verdict.EXPIRED
    if known.key_disabled_at is not None or known.org_stopped:
        return Verdict.DISABLED
    if asked.environment is not None and asked.environment is not known.environment:
        return Verdict.WRONG_ENVIRONMENT
    if asked.type is not None and asked.type is not known.type:
        return Verdict.NOT_PERMITTED
    if asked.permissions and not known.permissions.issuperset(asked.permissions):
        return Verdict.NOT_PERMITTED
    if known.networks and not contains(known.networks, asked.address):
        return Verdict.ADDRESS_NOT_ALLOWED
    return _VALID if _from_allowed_origin(known, asked) else Verdict.ORIGIN_NOT_ALLOWED


def _from_allowed_origin(known: KnownSecret, asked: VerificationRequest) -> bool:
    if known.type is not _PUBLISHABLE:
        return asked.browser_allowed or not (asked.browser or asked.origin)
    return page_allowed(known.origins, asked.origin, allow_native=known.allow_native)


def page_allowed(origins: tuple[str, ...], origin: str, *, allow_native: bool) -> bool:
    """Return whether a publishable key works from a page, or outside one (`origin` is empty)."""
    if not origins:
        return True
    if not origin:
        return allow_native
    return origin_allowed(origins, origin)


def failure_of(  # noqa: PLR0911 - one line a verdict
    verdict: Verdict,
    known: KnownSecret | None,
    asked: VerificationRequest,
    retry_after_s: float | None = None,
) -> WardkeyError:
    """Return the failure that says why `verdict` was not valid, in a sentence that mends it."""
    if known is None:
        if verdict is Verdict.RATE_LIMITED:
            return TooManyAttempts(retry_after_s=retry_after_s)
        if verdict is Verdict.MALFORMED:
            return Malformed(explain_malformed(asked.text))
        return Unknown()
    match verdict:
        case Verdict.WRONG_ENVIRONMENT:
            return WrongEnvironment(
                f"This is a {known.environment} key ({known.prefix}) and what it was sent to is "
                f"{asked.environment}; use the {asked.environment} key."
            )
        case Verdict.NOT_PERMITTED if asked.type is not None and asked.type is not known.type:
            if known.type is KeyType.PUBLISHABLE:
                return SecretKeyRequired(
                    "A publishable key (pk_) came where a secret key (sk_) is needed; call from "
                    "a server with a secret key."
                )
            return NotPermitted("A secret key (sk_) came where only publishable ones are taken.")
        case Verdict.NOT_PERMITTED:
            lacks = next((p for p in asked.permissions if p not in known.permissions), "")
            return NotPermitted(
                f"The key lacks {lacks}; an admin of {known.org_name} can grant it.", needs=lacks
            )
        case Verdict.ORIGIN_NOT_ALLOWED:
            return _origin_failure(known, asked)
        case Verdict.RATE_LIMITED:
            return RateLimitExceeded(retry_after_s=retry_after_s)
        case _:
            return PROBLEMS[verdict]()


def _origin_failure(known: KnownSecret, asked: VerificationRequest) -> WardkeyError:
    if known.type is KeyType.SECRET:
        return SecretKeyInBrowser()
    if asked.origin:
        return OriginNotAllowed()
    return OriginNotAllowed(
        "The key is limited to pages of its allowed origins, and the request has no Origin header, "
        "which pages send by themselves. To use the key in an app or on a server, set its "
        "allow_native."
    )


# What the document of a refusal is called where its verdict is all that is known.
PROBLEMS: dict[Verdict, type[WardkeyError]] = {
    Verdict.MALFORMED: Malformed,
    Verdict.UNKNOWN: Unknown,
    Verdict.REVOKED: Revoked,
    Verdict.EXPIRED: Expired,
    Verdict.DISABLED: Disabled,
    Verdict.WRONG_ENVIRONMENT: WrongEnvironment,
    Verdict.NOT_PERMITTED: NotPermitted,
    Verdict.ADDRESS_NOT_ALLOWED: AddressNotAllowed,
    Verdict.ORIGIN_NOT_ALLOWED: OriginNotAllowed,
    Verdict.RATE_LIMITED: RateLimitExceeded,
    Verdict.QUOTA_EXCEEDED: QuotaExceeded,
}
