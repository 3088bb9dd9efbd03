"""Sign-in with the deployment's OIDC issuer: what its ID tokens must tell, and who may come in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wardkey.domain.errors import SignInFailed, SignInNotAllowed
from wardkey.domain.names import clean_email
from wardkey.domain.permissions import Role

# How long ago somebody who confirms that it is he may have signed in at the issuer.
CONFIRMED_S = 300
_SKEW_S = 60
_LONGEST_SUBJECT = 255


@dataclass(frozen=True, slots=True)
class SignInPolicy:
    """Who may sign in by the issuer.

    With `domains` only addresses there may, and whoever is new joins `organization` (an id or a
    slug) as `role`. Without them whoever has a place already may, and nobody joins.
    """

    domains: frozenset[str] = frozenset()
    organization: str = ""
    role: Role = Role.VIEWER

    def check(self, email: str) -> None:
        """Raise `SignInNotAllowed` where an address is of no domain that may sign in."""
        domain = email.rpartition("@")[2].lower()
        if self.domains and domain not in self.domains:
            raise SignInNotAllowed(
                f"Addresses of {domain} may not sign in this way; use one of "
                f"{', '.join(sorted(self.domains))}, or a password if you have one."
            )


@dataclass(frozen=True, slots=True)
class Identity:
    """Somebody at an issuer, by the subject that never changes, with his verified address."""

    issuer: str
    subject: str
    email: str


def identity_of(claims: Mapping[str, Any], client_id: str, nonce: str) -> Identity:
    """Return whom the claims of a proven ID token name (OpenID Connect Core 1.0 §3.1.3.7).

    `nonce` is what this sign-in was begun with. Raises `SignInFailed`, and `SignInNotAllowed` where
    the issuer has not verified the address.
    """
    if claims.get("nonce") != nonce:
        raise SignInFailed("The ID token is of another sign-in; sign in again.")
    audience, party = claims.get("aud"), claims.get("azp")
    several = isinstance(audience, list) and len(audience) > 1
    if (party is not None or several) and party != client_id:
        raise SignInFailed("The ID token was issued to another client; tell the operator.")
    subject, email = claims.get("sub"), claims.get("email")
    if not isinstance(subject, str) or not 0 < len(subject) <= _LONGEST_SUBJECT:
        raise SignInFailed("The ID token names no subject; tell the operator.")
    if not isinstance(email, str):
        raise SignInNotAllowed(
            "The issuer tells no e-mail address of yours; the operator lets it give the client "
            "the scope email."
        )
    if claims.get("email_verified") is not True:
        raise SignInNotAllowed(
            "The issuer has not verified your e-mail address; verify it there, then sign in again."
        )
    try:
        return Identity(str(claims.get("iss")), subject, clean_email(email))
    except ValueError as error:
        raise SignInNotAllowed(
            f"The issuer tells an address that cannot be used. {error}"
        ) from None


def check_fresh(claims: Mapping[str, Any], now_s: float, longest_s: int) -> None:
    """Check that a sign-in at the issuer is no older than `max_age` asked for, if it tells that.

    Raises `SignInFailed`.
    """
    if "auth_time" in claims and not _is_within(claims["auth_time"], now_s, longest_s):
        raise SignInFailed(
            "The issuer let you in by a sign-in of long ago and did not ask again; sign out there, "
            "then in."
        )


def check_confirmed(claims: Mapping[str, Any], now_s: float) -> None:
    """Check that somebody just signed in at the issuer anew; raises `SignInFailed`."""
    if not _is_within(claims.get("auth_time"), now_s, CONFIRMED_S):
        raise SignInFailed(
            "The issuer did not ask you to sign in again, so nothing is confirmed; use your "
            "password or a passkey, or sign out and in."
        )


def _is_within(told: object, now_s: float, longest_s: int) -> bool:
    return isinstance(told, int | float) and now_s - told <= longest_s + _SKEW_S
