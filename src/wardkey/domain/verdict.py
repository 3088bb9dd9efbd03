"""The verdict on a presented key: a pure function of its record, the request and the time."""

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
    """The outcome of a verification, in the order in which the reasons are checked."""

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


# Accessing an enum member takes several times as long as a module global (Python 3.11).
_VALID = Verdict.VALID
_PUBLISHABLE = KeyType.PUBLISHABLE


@dataclass(frozen=True, slots=True)
class KnownSecret:
    """The fields of a secret, its key and its organization that a verdict and its response need."""

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
    # When the key got a newer secret, which started this one's grace.
    superseded_at: int | None = None
    # Every slug the organization ever had; no other organization can use them.
    org_slugs: frozenset[str] = frozenset()
    # JSON members for verification responses, rendered once per record.
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


# Created for each request; creating a frozen one takes longer than the decision.
@dataclass(slots=True)
class VerificationRequest:
    """A presented text, and the requirements that its key has to meet.

    `organization` (an id, or a current or former slug) accepts only its keys (empty: any);
    `environment` and `type` None accept both; `address` and `origin` are the end client's, empty
    if unknown; `browser` is true if a browser sent the key.
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


def decide(known: KnownSecret, request: VerificationRequest, now: int) -> Verdict:  # noqa: PLR0911 - a ladder
    """Return the verdict on a secret whose hash matched, except for its rate; `now` in epoch ms.

    A key of an organization other than the requested one is `unknown`.
    """
    if request.organization and not known.is_of(request.organization):
        return Verdict.UNKNOWN
    if known.key_revoked_at is not None or known.secret_revoked_at is not None:
        return Verdict.REVOKED
    end = known.expires_at
    if end is not None and end <= now:
        return Verdict.EXPIRED
    if known.key_disabled_at is not None or known.org_stopped:
        return Verdict.DISABLED
    if request.environment is not None and request.environment is not known.environment:
        return Verdict.WRONG_ENVIRONMENT
    if request.type is not None and request.type is not known.type:
        return Verdict.NOT_PERMITTED
    if request.permissions and not known.permissions.issuperset(request.permissions):
        return Verdict.NOT_PERMITTED
    if known.networks and not contains(known.networks, request.address):
        return Verdict.ADDRESS_NOT_ALLOWED
    return _VALID if _is_origin_allowed(known, request) else Verdict.ORIGIN_NOT_ALLOWED


def _is_origin_allowed(known: KnownSecret, request: VerificationRequest) -> bool:
    if known.type is not _PUBLISHABLE:
        return request.browser_allowed or not (request.browser or request.origin)
    return page_allowed(known.origins, request.origin, allow_native=known.allow_native)


def page_allowed(origins: tuple[str, ...], origin: str, *, allow_native: bool) -> bool:
    """Return whether a publishable key works on a page, or outside of pages (`origin` is empty)."""
    if not origins:
        return True
    if not origin:
        return allow_native
    return origin_allowed(origins, origin)


def failure_of(  # noqa: PLR0911 - one line a verdict
    verdict: Verdict,
    known: KnownSecret | None,
    request: VerificationRequest,
    retry_after_s: float | None = None,
) -> WardkeyError:
    """Return the error for a verdict that is not valid, with a detail that says how to fix it."""
    if known is None:
        if verdict is Verdict.RATE_LIMITED:
            return TooManyAttempts(retry_after_s=retry_after_s)
        if verdict is Verdict.MALFORMED:
            return Malformed(explain_malformed(request.text))
        return Unknown()
    match verdict:
        case Verdict.WRONG_ENVIRONMENT:
            return WrongEnvironment(
                f"This is a {known.environment} key ({known.prefix}), but {request.environment} is "
                f"required; use the {request.environment} key."
            )
        case Verdict.NOT_PERMITTED if request.type is not None and request.type is not known.type:
            if known.type is KeyType.PUBLISHABLE:
                return SecretKeyRequired(
                    "A secret key (sk_) is required, but a publishable key (pk_) was sent; call "
                    "from a server with a secret key."
                )
            return NotPermitted(
                "A publishable key (pk_) is required, but a secret key (sk_) was sent; send a "
                "publishable key."
            )
        case Verdict.NOT_PERMITTED:
            missing = next((p for p in request.permissions if p not in known.permissions), "")
            return NotPermitted(
                f"The key lacks {missing}; an admin of {known.org_name} can grant it.",
                needs=missing,
            )
        case Verdict.ORIGIN_NOT_ALLOWED:
            return _origin_failure(known, request)
        case Verdict.RATE_LIMITED:
            return RateLimitExceeded(retry_after_s=retry_after_s)
        case _:
            return PROBLEMS[verdict]()


def _origin_failure(known: KnownSecret, request: VerificationRequest) -> WardkeyError:
    if known.type is KeyType.SECRET:
        return SecretKeyInBrowser()
    if request.origin:
        return OriginNotAllowed()
    return OriginNotAllowed(
        "The key is limited to pages of its allowed origins, and the request has no Origin header, "
        "which browsers add. To use the key in an app or on a server, set its allow_native."
    )


# The error for each verdict, where nothing else is known.
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
