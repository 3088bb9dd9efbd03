"""Checks the claims of a verified token, and derives the user's identity from them."""

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

# The allowed difference between the issuer's clock and ours.
LEEWAY_S = 30
# The part of a digest in a user name: 40 bits, as 8 characters in one case.
DIGEST_BYTES = 5
_LONGEST_NAME = 55
_LONGEST_USER_ID, _LONGEST_VALUE, _MOST_ROLES, _LONGEST_FIREBASE_SUB = 255, 255, 50, 128
# The year 10,000; later times are invalid.
_LAST_S = 253_402_300_800
_REPLACED = re.compile(r"[^A-Za-z0-9]")
_NOT_USERS = frozenset({"anon", "service_role"})


@dataclass(frozen=True, slots=True)
class Identity:
    """A user of an identity provider; `variables` are the values of `{claim.NAME}` in ACL rules.

    `email` is empty if the token has none; `email_verified` is whether the issuer verified it.
    """

    user_id: str
    email: str
    email_verified: bool
    roles: tuple[str, ...]
    variables: Mapping[str, str]


class Step(NamedTuple):
    """A check of a token, named after what it checks; an empty `fault` means that it passed.

    `note` is additional information about a check that passed.
    """

    name: str
    fault: str = ""
    note: str = ""


def claim_steps(rules: TokenRules, claims: Claims, now_s: float) -> Iterator[Step]:
    """Check a verified token's claims one after the other, and yield the result of each."""
    for name, check in _checks_of(rules):
        yield Step(name, check(rules, claims, now_s) or "")


def check_claims(rules: TokenRules, claims: Claims, now_s: float) -> None:
    """Raise `InvalidToken` or `TokenExpired` for the first check that the claims fail."""
    for name, check in _checks_of(rules):
        fault = check(rules, claims, now_s)
        if fault is not None:
            if check is _exp and _seconds(claims.get("exp")) is not None:
                raise TokenExpired(fault)
            raise InvalidToken(fault, step=name)


def identity_of(mapping: ClaimMapping, claims: Claims) -> Identity:
    """Return the token's user; raises `ClaimMissing`, with the claim's path as its field."""
    for path in mapping.required:
        if claim_at(claims, path) in (None, ""):
            raise ClaimMissing(
                f"The token has no claim {path}, which the provider's settings require; let the "
                "issuer add it.",
                field=path,
            )
    user_id = _text(claim_at(claims, mapping.user_id), _LONGEST_USER_ID)
    if not user_id:
        raise ClaimMissing(
            f"The token has no valid claim {mapping.user_id}, the user's id; it must have 1 to "
            f"{_LONGEST_USER_ID} printable characters.",
            field=mapping.user_id,
        )
    email = _email(claim_at(claims, mapping.email)) if mapping.email else ""
    if not email and (mapping.username_from is UsernameFrom.EMAIL or mapping.verified_email_only):
        raise ClaimMissing(
            f"The token has no claim {mapping.email}, the user's e-mail address; let the issuer "
            "add it.",
            field=mapping.email,
        )
    # Some issuers send the text "true".
    flag = claim_at(claims, mapping.email_verified)
    verified = bool(email) and (flag is True or flag == "true")
    if mapping.verified_email_only and not verified:
        raise ClaimMissing(
            "The token does not state that the e-mail address is verified "
            f"({mapping.email_verified}); verify it at the issuer.",
            field=mapping.email_verified,
        )
    variables = {"user_id": user_id}
    for name, path in mapping.variables.items():
        if value := _text(claim_at(claims, path), _LONGEST_VALUE):
            variables[name] = value
    roles = _roles(claim_at(claims, mapping.roles)) if mapping.roles else ()
    return Identity(user_id, email, verified, roles, variables)


def claim_at(claims: Claims, path: str) -> Any:  # noqa: ANN401 - any JSON
    """Return the value at a path in the claims, or None."""
    value: Any = claims
    for name in _levels_of(path):
        if not isinstance(value, Mapping):
            return None
        value = value.get(name)
    return value


def subject_of(provider_id: str, user_id: str) -> bytes:
    """Return the input for the digest in a grant's user name; it is unique for each user."""
    return f"{provider_id}\0{user_id}".encode()


def grant_username(username_from: UsernameFrom, identity: Identity, digest: bytes) -> str:
    """Return the user name of an identity's grants, without the organization suffix.

    `digest` is a keyed digest of `subject_of`, of which 5 bytes are used. It makes names unique,
    because special characters and the end of a long user id are lost.
    """
    if len(digest) < DIGEST_BYTES:
        raise ValueError(f"The digest must have at least {DIGEST_BYTES} bytes.")
    text = identity.email if username_from is UsernameFrom.EMAIL else identity.user_id
    suffix = base64.b32encode(digest[:DIGEST_BYTES]).decode("ascii").lower()
    return f"{_REPLACED.sub('_', text)[:_LONGEST_NAME]}_{suffix}"


# --- checks: each returns a sentence, or None if the claims pass --------------------------------


def _iss(rules: TokenRules, claims: Claims, _now_s: float) -> str | None:
    if claims.get("iss") == rules.issuer:
        return None
    return (
        f"The token's iss is {_quote(claims.get('iss'))}, the provider's {rules.issuer}; they must "
        "be equal, including a slash at the end."
    )


def _aud(rules: TokenRules, claims: Claims, _now_s: float) -> str | None:
    if not rules.audiences:
        return None
    name = rules.audience_claim
    audience = claims.get(name)
    if isinstance(audience, str) or name is not AudienceClaim.AUD:
        accepted = isinstance(audience, str) and audience in rules.audiences
    else:
        # A list with anything but strings is not an audience (RFC 7519 §4.1.3).
        accepted = (
            isinstance(audience, list)
            and all(isinstance(item, str) for item in audience)
            and any(item in rules.audiences for item in audience)
        )
    if accepted:
        return None
    return f"The token's {name} is {_quote(audience)}; it must be {' or '.join(rules.audiences)}."


def _exp(_rules: TokenRules, claims: Claims, now_s: float) -> str | None:
    expires_s = _seconds(claims.get("exp"))
    if expires_s is None:
        return "The token's exp is missing or not a number; only tokens that expire are accepted."
    if now_s < expires_s + LEEWAY_S:
        return None
    return f"The token expired {int(now_s - expires_s)} seconds ago; get a new one."


def _nbf(_rules: TokenRules, claims: Claims, now_s: float) -> str | None:
    return _check_past("nbf", claims, now_s)


def _iat(rules: TokenRules, claims: Claims, now_s: float) -> str | None:
    return _check_past("iat", claims, now_s, required=rules.kind is ProviderKind.FIREBASE)


def _auth_time(_rules: TokenRules, claims: Claims, now_s: float) -> str | None:
    return _check_past("auth_time", claims, now_s, required=True)


def _check_past(name: str, claims: Claims, now_s: float, *, required: bool = False) -> str | None:
    if name not in claims and not required:
        return None
    time_s = _seconds(claims.get(name))
    if time_s is None:
        return f"The token's {name} is missing or not a number."
    if time_s <= now_s + LEEWAY_S:
        return None
    return (
        f"The token's {name} is {math.ceil(time_s - now_s)} seconds in the future; check the "
        "clocks of the issuer and of this server."
    )


def _role(_rules: TokenRules, claims: Claims, _now_s: float) -> str | None:
    role = claims.get("role")
    if isinstance(role, str) and role and role not in _NOT_USERS:
        return None
    return (
        f"The token's role is {_quote(role)}; send the token of a signed-in user, not the "
        "project's anon or service_role key."
    )


def _firebase_sub(_rules: TokenRules, claims: Claims, _now_s: float) -> str | None:
    sub = claims.get("sub")
    if isinstance(sub, str) and 1 <= len(sub) <= _LONGEST_FIREBASE_SUB:
        return None
    return f"The token's sub must be a string of 1 to {_LONGEST_FIREBASE_SUB} characters."


def _azp(rules: TokenRules, claims: Claims, _now_s: float) -> str | None:
    if not rules.origins:
        return None
    azp = claims.get("azp")
    if isinstance(azp, str) and origin_allowed(rules.origins, azp):
        return None
    return (
        f"The token's azp is {_quote(azp)}, which is not one of the provider's allowed origins; "
        "add it to them if that page is yours."
    )


def _sts(_rules: TokenRules, claims: Claims, _now_s: float) -> str | None:
    if claims.get("sts", "active") == "active":
        return None
    return f"The token's sts is {_quote(claims['sts'])}: its user has not finished signing in."


_Check = Callable[[TokenRules, Claims, float], str | None]
_COMMON_CHECKS: tuple[tuple[str, _Check], ...] = (
    ("iss", _iss),
    ("aud", _aud),
    ("exp", _exp),
    ("nbf", _nbf),
    ("iat", _iat),
)
_CHECKS_BY_KIND: dict[ProviderKind, tuple[tuple[str, _Check], ...]] = {
    ProviderKind.SUPABASE: (("role", _role),),
    ProviderKind.FIREBASE: (("sub", _firebase_sub), ("auth_time", _auth_time)),
    ProviderKind.CLERK: (("azp", _azp), ("sts", _sts)),
}
_CHECKS = {kind: (*_COMMON_CHECKS, *_CHECKS_BY_KIND.get(kind, ())) for kind in ProviderKind}


def _checks_of(rules: TokenRules) -> Iterator[tuple[str, _Check]]:
    """Yield the checks with their names; the audience check is named after the claim it reads."""
    for name, check in _CHECKS[rules.kind]:
        yield rules.audience_claim if check is _aud else name, check


# Providers' mappings use the same paths for each token.
_levels_of = lru_cache(maxsize=4096)(levels_of)


def _seconds(value: object) -> float | None:
    """Return a NumericDate (RFC 7519 §2), or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value if abs(value) < _LAST_S else None


def _text(value: object, most: int) -> str:
    """Return a string or whole number as text, or "" if it is too long or not printable."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**most:
        value = str(value)
    if not isinstance(value, str) or len(value) > most or not value.isprintable():
        return ""
    return value if value == value.strip() else ""


def _email(value: object) -> str:
    try:
        return clean_email(value) if isinstance(value, str) else ""
    except ValueError:
        return ""


def _roles(value: object) -> tuple[str, ...]:
    """Return roles from a list, a single string, or the names in an object."""
    items = (value,) if isinstance(value, str) else value
    if not isinstance(items, (list, tuple, dict)):
        return ()
    roles = (_text(item, _LONGEST_VALUE) for item in items)
    return tuple(dict.fromkeys(role for role in roles if role))[:_MOST_ROLES]


def _quote(value: object) -> str:
    """Return a claim's value, quoted and escaped for an error message."""
    if value is None:
        return "missing"
    return f"“{str(value)[:100].encode('unicode_escape').decode('ascii')}”"
