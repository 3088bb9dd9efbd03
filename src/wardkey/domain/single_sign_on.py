"""Sign-in with the deployment's OIDC issuer: checks of its ID tokens, and the sign-in policy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wardkey.domain.errors import SignInFailed, SignInNotAllowed
from wardkey.domain.names import clean_email
from wardkey.domain.permissions import Role

# The maximum age of a sign-in at the issuer that confirms a user's identity.
CONFIRMED_S = 300
_SKEW_S = 60
_LONGEST_SUBJECT = 255


@dataclass(frozen=True, slots=True)
class SignInPolicy:
    """The users who may sign in through the issuer.

    With `domains`, only users with an address there may sign in, and new users join `organization`
    (an id or a slug) with `role`. Without them, only existing members may sign in.
    """

    domains: frozenset[str] = frozenset()
    organization: str = ""
    role: Role = Role.VIEWER

    def check(self, email: str) -> None:
        """Raise `SignInNotAllowed` if the policy has domains and the address is in none of them."""
        domain = email.rpartition("@")[2].lower()
        if self.domains and domain not in self.domains:
            raise SignInNotAllowed(
                f"Addresses at {domain} can't sign in through the issuer; use one at "
                f"{' or '.join(sorted(self.domains))}, or your password if you have one."
            )


@dataclass(frozen=True, slots=True)
class Identity:
    """A user at an issuer: the subject, which never changes, and the verified address."""

    issuer: str
    subject: str
    email: str


def identity_of(claims: Mapping[str, Any], client_id: str, nonce: str) -> Identity:
    """Return the user of a verified ID token's claims (OpenID Connect Core 1.0 §3.1.3.7).

    `nonce` is that of this sign-in. Raises `SignInFailed`, and `SignInNotAllowed` if the issuer has
    not verified the address.
    """
    if claims.get("nonce") != nonce:
        raise SignInFailed("The ID token belongs to another sign-in; sign in again.")
    audience, authorized_party = claims.get("aud"), claims.get("azp")
    has_several = isinstance(audience, list) and len(audience) > 1
    if (authorized_party is not None or has_several) and authorized_party != client_id:
        raise SignInFailed("The ID token was issued to another client; contact the operator.")
    subject, email = claims.get("sub"), claims.get("email")
    if not isinstance(subject, str) or not 0 < len(subject) <= _LONGEST_SUBJECT:
        raise SignInFailed("The ID token has no subject; contact the operator.")
    if not isinstance(email, str):
        raise SignInNotAllowed(
            "The issuer did not send your e-mail address; ask the operator to allow the client the "
            "scope email there."
        )
    if claims.get("email_verified") is not True:
        raise SignInNotAllowed(
            "The issuer has not verified your e-mail address; verify it there, then sign in again."
        )
    try:
        return Identity(str(claims.get("iss")), subject, clean_email(email))
    except ValueError as error:
        raise SignInNotAllowed(f"The issuer sent an address that can't be used. {error}") from None


def check_fresh(claims: Mapping[str, Any], now_s: float, longest_s: int) -> None:
    """Check that a sign-in at the issuer is not older than the `max_age` requested, if it is known.

    Raises `SignInFailed`.
    """
    if "auth_time" in claims and not _is_within(claims["auth_time"], now_s, longest_s):
        raise SignInFailed(
            "The issuer used an old sign-in and did not ask you to sign in again; sign out there, "
            "then sign in again."
        )


def check_confirmed(claims: Mapping[str, Any], now_s: float) -> None:
    """Check that the user just signed in again at the issuer; raises `SignInFailed`."""
    if not _is_within(claims.get("auth_time"), now_s, CONFIRMED_S):
        raise SignInFailed(
            "The issuer did not ask you to sign in again, so nothing is confirmed; use your "
            "password or a passkey, or sign out and sign in again."
        )


def _is_within(time_s: object, now_s: float, longest_s: int) -> bool:
    return isinstance(time_s, int | float) and now_s - time_s <= longest_s + _SKEW_S
