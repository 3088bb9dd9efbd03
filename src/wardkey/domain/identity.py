"""Whose token it is: the checks of a verified token's claims, and the identity that they tell."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from wardkey.domain.addresses import origin_allowed
from wardkey.domain.errors import ClaimMissing, InvalidToken, TokenExpired
from wardkey.domain.names import clean_email
from wardkey.domain.providers import (
    AudienceClaim,
    ClaimMapping,
    ProviderKind,
    TokenRules,
    UsernameFrom,
    levels_of,
)

Claims = Mapping[str, Any]

# How far the issuer's clock and ours may be apart.
LEEWAY_S = 30
# What a digest gives a user name: 40 bits, as 8 characters that stay apart in lower case too.
DIGEST_BYTES = 5
_LONGEST_NAME = 55
_LONGEST_USER_ID, _LONGEST_VALUE, _MOST_ROLES, _LONGEST_FIREBASE_SUB = 255, 255, 50, 128
# The year 10,000, beyond which nobody writes a time.
_LAST_S = 253_402_300_800
_LOST = re.compile(r"[^A-Za-z0-9]")
_NOT_USERS = frozenset({"anon", "service_role"})


@dataclass(frozen=True, slots=True)
class Identity:
    """A user of an identity provider; `variables` are what ACL rules know as `{claim.NAME}`.

    `email` is empty where the token names none; whether the user has it is `email_verified`.
    """

    user_id: str
    email: str
    email_verified: bool
    roles: tuple[str, ...]
    variables: Mapping[str, str]


class Step(NamedTuple):
    """One check of a token, by the name of what is checked; no `fault` means that it passed.

    `note` says what to know of a check that passed.
    """

    name: str
    fault: str = ""
    note: str = ""


def claim_steps(rules: TokenRules, claims: Claims, now_s: float) -> Iterator[Step]:
    """Check a verified token's claims one after the other, and say of each whether it passes."""
    for name, fault_of in _checks_of(rules):
        yield Step(name, fault_of(rules, claims, now_s) or "")


def check_claims(rules: TokenRules, claims: Claims, now_s: float) -> None:
    """Raise `InvalidToken` or `TokenExpired` for the first check that the claims fail."""
    for name, fault_of in _checks_of(rules):
        fault = fault_of(rules, claims, now_s)
        if fault is not None:
            if fault_of is _exp and _seconds(claims.get("exp")) is not None:
                raise TokenExpired(fault)
            raise InvalidToken(fault, step=name)


def identity_of(mapping: ClaimMapping, claims: Claims) -> Identity:
    """Return whose token it is; raises `ClaimMissing`, its field the claim's path."""
    for path in mapping.required:
        if value_at(claims, path) in (None, ""):
            raise ClaimMissing(
                f"The token lacks the claim {path}, which the provider's settings require.",
                field=path,
            )
    user_id = _text(value_at(claims, mapping.user_id), _LONGEST_USER_ID)
    if not user_id:
        raise ClaimMissing(
            f"The token lacks the claim {mapping.user_id}, the user's id: a text of 1 to "
            f"{_LONGEST_USER_ID} characters that can be shown.",
            field=mapping.user_id,
        )
    email = _email(value_at(claims, mapping.email)) if mapping.email else ""
    if not email and (mapping.username_from is UsernameFrom.EMAIL or mapping.verified_email_only):
        raise ClaimMissing(
            f"The token lacks the claim {mapping.email}, the user's e-mail address.",
            field=mapping.email,
        )
    # Some issuers write it as a text.
    proof = value_at(claims, mapping.email_verified)
    verified = bool(email) and (proof is True or proof == "true")
    if mapping.verified_email_only and not verified:
        raise ClaimMissing(
            f"The token does not say that the e-mail address was verified "
            f"({mapping.email_verified}).",
            field=mapping.email_verified,
        )
    variables = {"user_id": user_id}
    for name, path in mapping.variables.items():
        if value := _text(value_at(claims, path), _LONGEST_VALUE):
            variables[name] = value
    roles = _roles(value_at(claims, mapping.roles)) if mapping.roles else ()
    return Identity(user_id, email, verified, roles, variables)


def value_at(claims: Claims, path: str) -> Any:  # noqa: ANN401 - any JSON
    """Return what stands at a path in the claims, or None."""
    found: Any = claims
    for name in _levels_of(path):
        if not isinstance(found, Mapping):
            return None
        found = found.get(name)
    return found


def subject_of(provider_id: str, user_id: str) -> bytes:
    """Return what the digest of a grant's user name is taken of; no two users share it."""
    return f"{provider_id}\0{user_id}".encode()


def grant_username(username_from: UsernameFrom, identity: Identity, digest: bytes) -> str:
    """Return the user name of an identity's grants, without the organization behind it.

    `digest` is a keyed digest of `subject_of`, of which 5 bytes are used. It alone keeps names
    apart, since characters of the user id are lost, and the end of a long one is.
    """
    if len(digest) < DIGEST_BYTES:
        raise ValueError(f"The digest has at least {DIGEST_BYTES} bytes.")
    text = identity.email if username_from is UsernameFrom.EMAIL else identity.user_id
    mark = base64.b32encode(digest[:DIGEST_BYTES]).decode("ascii").lower()
    return f"{_LOST.sub('_', text)[:_LONGEST_NAME]}_{mark}"


# --- the checks: each returns a sentence, or None if the claims pass ---------------------------


def _iss(rules: TokenRules, claims: Claims, _now_s: float) -> str | None:
    if claims.get("iss") == rules.issuer:
        return None
    return (
        f"The token's iss is {_shown(claims.get('iss'))}, and the provider's {rules.issuer}; the "
        "two are compared character by character, a slash at the end included."
    )


def _aud(rules: TokenRules, claims: Claims, _now_s: float) -> str | None:
    if not rules.audiences:
        return None
    name = rules.audience_claim
    told = claims.get(name)
    if isinstance(told, str) or name is not AudienceClaim.AUD:
        fits = isinstance(told, str) and told in rules.audiences
    else:
        # A list with anything but texts is no audience (RFC 7519 §4.1.3).
        fits = (
            isinstance(told, list)
            and all(isinstance(item, str) for item in told)
            and any(item in rules.audiences for item in told)
        )
    if fits:
        return None
    return f"The token's {name} is {_shown(told)}; it has to be {' or '.join(rules.audiences)}."


def _exp(_rules: TokenRules, claims: Claims, now_s: float) -> str | None:
    ends = _seconds(claims.get("exp"))
    if ends is None:
        return "The token's exp is missing or no number; a token that never ends is not taken."
    if now_s < ends + LEEWAY_S:
        return None
    return f"The token has expired {int(now_s - ends)} seconds ago; get a new one."


def _nbf(_rules: TokenRules, claims: Claims, now_s: float) -> str | None:
    return _in_the_past("nbf", claims, now_s)


def _iat(rules: TokenRules, claims: Claims, now_s: float) -> str | None:
    return _in_the_past("iat", claims, now_s, needed=rules.kind is ProviderKind.FIREBASE)


def _auth_time(_rules: TokenRules, claims: Claims, now_s: float) -> str | None:
    return _in_the_past("auth_time", claims, now_s, needed=True)


def _in_the_past(name: str, claims: Claims, now_s: float, *, needed: bool = False) -> str | None:
    if name not in claims and not needed:
        return None
    told = _seconds(claims.get(name))
    if told is None:
        return f"The token's {name} is missing or no number."
    if told <= now_s + LEEWAY_S:
        return None
    return (
        f"The token's {name} is {math.ceil(told - now_s)} seconds in the future; check the clocks "
        "of the issuer and of this server."
    )


def _role(_rules: TokenRules, claims: Claims, _now_s: float) -> str | None:
    told = claims.get("role")
    if isinstance(told, str) and told and told not in _NOT_USERS:
        return None
    return (
        f"The token's role is {_shown(told)}; tokens of a signed-in user are taken, the project's "
        "anon and service_role keys never."
    )


def _firebase_sub(_rules: TokenRules, claims: Claims, _now_s: float) -> str | None:
    told = claims.get("sub")
    if isinstance(told, str) and 1 <= len(told) <= _LONGEST_FIREBASE_SUB:
        return None
    return f"The token's sub is no text of 1 to {_LONGEST_FIREBASE_SUB} characters."


def _azp(rules: TokenRules, claims: Claims, _now_s: float) -> str | None:
    if not rules.origins:
        return None
    told = claims.get("azp")
    if isinstance(told, str) and origin_allowed(rules.origins, told):
        return None
    return (
        f"The token's azp is {_shown(told)}, which is none of the provider's allowed origins; "
        "extend them if that page is yours."
    )


def _sts(_rules: TokenRules, claims: Claims, _now_s: float) -> str | None:
    if claims.get("sts", "active") == "active":
        return None
    return f"The token's sts is {_shown(claims['sts'])}: its session is not signed in yet."


_Fault = Callable[[TokenRules, Claims, float], str | None]
_OF_EVERY_KIND: tuple[tuple[str, _Fault], ...] = (
    ("iss", _iss),
    ("aud", _aud),
    ("exp", _exp),
    ("nbf", _nbf),
    ("iat", _iat),
)
_OF_KIND: dict[ProviderKind, tuple[tuple[str, _Fault], ...]] = {
    ProviderKind.SUPABASE: (("role", _role),),
    ProviderKind.FIREBASE: (("sub", _firebase_sub), ("auth_time", _auth_time)),
    ProviderKind.CLERK: (("azp", _azp), ("sts", _sts)),
}
_CHECKS = {kind: (*_OF_EVERY_KIND, *_OF_KIND.get(kind, ())) for kind in ProviderKind}


def _checks_of(rules: TokenRules) -> Iterator[tuple[str, _Fault]]:
    """Return the checks by name; that of the audience has the name of the claim that it reads."""
    for name, fault_of in _CHECKS[rules.kind]:
        yield rules.audience_claim if fault_of is _aud else name, fault_of


# The paths of providers' mappings; they come again with each token.
_levels_of = lru_cache(maxsize=4096)(levels_of)


def _seconds(told: object) -> float | None:
    """Return a NumericDate (RFC 7519 §2), or None for anything else."""
    if isinstance(told, bool) or not isinstance(told, (int, float)):
        return None
    return told if abs(told) < _LAST_S else None


def _text(told: object, most: int) -> str:
    """Return a claim's text or whole number as a text, or none if it cannot be kept and shown."""
    if isinstance(told, int) and not isinstance(told, bool) and abs(told) < 10**most:
        told = str(told)
    if not isinstance(told, str) or len(told) > most or not told.isprintable():
        return ""
    return told if told == told.strip() else ""


def _email(told: object) -> str:
    try:
        return clean_email(told) if isinstance(told, str) else ""
    except ValueError:
        return ""


def _roles(told: object) -> tuple[str, ...]:
    """Return roles from a list, from one text, or from an object that has them as names."""
    items = (told,) if isinstance(told, str) else told
    if not isinstance(items, (list, tuple, dict)):
        return ()
    roles = (_text(item, _LONGEST_VALUE) for item in items)
    return tuple(dict.fromkeys(role for role in roles if role))[:_MOST_ROLES]


def _shown(told: object) -> str:
    """Return a claim as it can stand in a sentence."""
    if told is None:
        return "missing"
    return f"“{str(told)[:100].encode('unicode_escape').decode('ascii')}”"
