"""Tokens of identity providers: their form, their signature and their claims, checked strictly.

joserfc reads the keys and checks the signatures; see docs/decisions/0017-token-verification.md.
"""

from __future__ import annotations

import binascii
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any, NamedTuple

from joserfc.errors import JoseError
from joserfc.jwk import ECKey, Key, OctKey, OKPKey, RSAKey
from joserfc.jws import JWSRegistry

from wardkey.adapters.strict_json import read_object
from wardkey.domain.errors import InvalidToken, KeySetUnavailable
from wardkey.domain.identity import Step, check_claims, claim_steps
from wardkey.domain.providers import SHARED_SECRET, TokenRules

LONGEST_TOKEN = 16 * 1024
MOST_KEYS = 100
# What is checked before the claims, in this order; `InvalidToken.step` is one of them or a claim.
STEPS = ("form", "header", "algorithm", "key", "signature", "payload")

_MOST_TRIED = 5
_LONGEST_KID, _LONGEST_HEADER = 255, 8 * 1024
_SHORTEST_RSA, _LONGEST_RSA, _LONGEST_EXPONENT = 2048, 8192, 64
_TYPES = frozenset({"jwt", "at+jwt", "application/jwt", "application/at+jwt"})
# To the letters that binascii knows; its own +, / and = become one that it refuses.
_TO_BASE64 = bytes.maketrans(b"-_+/=", b"+/***")
# The last letters that leave no bits over, by how many letters are missing to four.
_ENDS = {1: b"AEIMQUYcgkosw048", 2: b"AQgw", 3: b""}
# Which key an algorithm takes: its type, and its curve where there are several.
_KEY_OF = {
    **dict.fromkeys(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"), ("RSA", "")),
    "ES256": ("EC", "P-256"),
    "ES384": ("EC", "P-384"),
    "ES512": ("EC", "P-521"),
    "EdDSA": ("OKP", "Ed25519"),
    SHARED_SECRET: ("oct", ""),
}
# The name that RFC 9864 gives what tokens still call EdDSA.
_NEW_NAMES = {"Ed25519": "EdDSA"}


class VerifyingKey(NamedTuple):
    """One public key of a key set, read once; `alg` is the only one that it is for, if any."""

    kid: str
    kind: tuple[str, str]
    alg: str
    key: Key


class KeySet(NamedTuple):
    """The keys of a set that can verify, and a sentence for each of the others."""

    keys: tuple[VerifyingKey, ...]
    left_out: tuple[str, ...]


# Returns the keys with a kid, or all of a set for a token that names none.
KeysOf = Callable[[str], Sequence[VerifyingKey]]


class ParsedToken(NamedTuple):
    """A token whose form and header are sound, and of which nothing is proven yet."""

    alg: str
    kid: str
    signed: bytes
    payload: str
    signature: bytes


def import_keys(document: dict[str, Any]) -> KeySet:
    """Read a JWK set (RFC 7517 §5); raises `ValueError`.

    Keys for encryption, of other types, too weak or too costly, malformed ones, and those whose
    private half was published are left out; they never affect the others.
    """
    items = document.get("keys")
    if not isinstance(items, list):
        raise ValueError("It is no key set: it has no list of keys.")  # noqa: TRY004 - bad input
    if len(items) > MOST_KEYS:
        raise ValueError(f"It has {len(items)} keys; {MOST_KEYS} are the most.")
    keys, left_out = [], []
    for place, item in enumerate(items, 1):
        try:
            keys.append(_imported(item))
        except (JoseError, ValueError) as error:
            reason = str(error) if isinstance(error, _UnusableKeyError) else "it is malformed"
            left_out.append(f"Key {place}{_kid_of(item)} is left out: {reason}.")
    return KeySet(tuple(keys), tuple(left_out))


def parse_token(text: str) -> ParsedToken:
    """Read a token's form and header; raises `InvalidToken`."""
    if len(text) > LONGEST_TOKEN:
        raise InvalidToken(
            f"The token is longer than {LONGEST_TOKEN // 1024} KiB; ask the issuer for fewer "
            "claims.",
            step="form",
        )
    parts = text.split(".")
    if len(parts) != 3 or not all(parts):  # noqa: PLR2004 - RFC 7515 §7.1
        raise InvalidToken(
            "The token does not have three parts with dots between them; send a signed JWT, whole.",
            step="form",
        )
    head, payload, tail = parts
    if len(head) > _LONGEST_HEADER:
        raise InvalidToken("The token's header is longer than 8 KiB.", step="header")
    alg, kid = _header(head)
    return ParsedToken(
        alg, kid, f"{head}.{payload}".encode("ascii", "replace"), payload, _raw(tail)
    )


def issuer_hint(presented: ParsedToken) -> str:
    """Return the `iss` that an unproven token names, to find its provider by; raises as `read`."""
    told = _claims(presented).get("iss")
    return told if isinstance(told, str) else ""


def verify_token(
    presented: ParsedToken, rules: TokenRules, keys_of: KeysOf, now_s: float, secret: bytes = b""
) -> dict[str, Any]:
    """Return a token's claims once its signature and they themselves are found right.

    `secret` is the shared secret of a provider with HS256, which is never a key of a set. Raises
    `InvalidToken`, `TokenExpired`, and `KeySetUnavailable` as `keys_of` does.
    """
    claims = _proven(presented, rules, keys_of, secret)
    check_claims(rules, claims, now_s)
    return claims


def explain_token(
    text: str, rules: TokenRules, keys_of: KeysOf, now_s: float, secret: bytes = b""
) -> tuple[Step, ...]:
    """Check a token as `verified` does, and say of each step how it went, for the test tool.

    The steps before the claims end at the first that fails; of the claims all are told.
    """
    try:
        claims = _proven(parse_token(text), rules, keys_of, secret)
    except InvalidToken as refused:
        step, fault = refused.step, refused.detail
    except KeySetUnavailable as away:
        step, fault = "key", away.detail
    else:
        return (*map(Step, STEPS), *claim_steps(rules, claims, now_s))
    return (*map(Step, STEPS[: STEPS.index(step)]), Step(step, fault))


def _proven(
    presented: ParsedToken, rules: TokenRules, keys_of: KeysOf, secret: bytes
) -> dict[str, Any]:
    alg, kid = presented.alg, presented.kid
    if alg not in rules.algorithms:
        raise InvalidToken(
            f"The token's alg is {_shown(alg)}; this provider's are "
            f"{', '.join(sorted(rules.algorithms))}.",
            step="algorithm",
        )
    if alg == SHARED_SECRET:
        fitting = [_shared(secret)]
    else:
        if rules.kid_required and not kid:
            raise InvalidToken("The token's header has no kid, which it needs.", step="key")
        fitting = [
            key for key in keys_of(kid) if key.kind == _KEY_OF[alg] and key.alg in ("", alg)
        ][:_MOST_TRIED]
    if not fitting:
        raise InvalidToken(
            f"None of the provider's keys is for {alg} and the kid {_shown(kid)}."
            if kid
            else f"None of the provider's keys is for {alg}.",
            step="key",
        )
    checks = JWSRegistry.algorithms[alg]
    if not any(checks.verify(presented.signed, presented.signature, key.key) for key in fitting):
        raise InvalidToken(
            "The token's signature is not by the key that it names; it was altered, or made "
            "elsewhere.",
            step="signature",
        )
    return _claims(presented)


def _claims(presented: ParsedToken) -> dict[str, Any]:
    try:
        return read_object(_decoded(presented.payload))
    except ValueError as error:
        raise InvalidToken(
            f"The token's second part cannot be read: {error}", step="payload"
        ) from None


# An issuer writes the same header until it changes its key.
@lru_cache(maxsize=1024)
def _header(head: str) -> tuple[str, str]:
    """Return `alg` and `kid`; keys that a header brings or points to are never looked at."""
    try:
        header = read_object(_decoded(head))
    except ValueError as error:
        raise InvalidToken(f"The token's header cannot be read: {error}", step="header") from None
    header = {name: value for name, value in header.items() if value is not None or name == "crit"}
    alg, kid = header.get("alg"), header.get("kid", "")
    if not isinstance(alg, str) or not isinstance(kid, str) or len(kid) > _LONGEST_KID:
        raise InvalidToken(
            f"The token's header needs an alg, and a kid of at most {_LONGEST_KID} characters if "
            "any.",
            step="header",
        )
    if "crit" in header or header.get("b64", True) is not True:
        raise InvalidToken("The token's header asks for extensions (crit, b64).", step="header")
    kind = header.get("typ", "JWT")
    if not isinstance(kind, str) or kind.lower() not in _TYPES:
        raise InvalidToken(
            f"The token's typ is {_shown(kind)}; it has to be JWT or at+jwt.", step="header"
        )
    return alg, kid


def _raw(segment: str) -> bytes:
    try:
        return _decoded(segment)
    except ValueError as error:
        raise InvalidToken(f"The token's signature cannot be read: {error}", step="form") from None


def _decoded(segment: str) -> bytes:
    """Decode base64url that has one spelling only (RFC 7515 §2); raises `ValueError`."""
    text = segment.encode("ascii", "replace")
    left = -len(text) % 4
    raw = None
    if not left or text[-1] in _ENDS[left]:
        with suppress(binascii.Error):
            raw = binascii.a2b_base64(text.translate(_TO_BASE64) + b"=" * left, strict_mode=True)
    if raw is None:
        raise ValueError("It is not base64url, without = and with nothing behind its end.")
    return raw


def _shared(secret: bytes) -> VerifyingKey:
    if not secret:
        raise InvalidToken("The provider has no shared secret for HS256.", step="key")
    return VerifyingKey("", ("oct", ""), SHARED_SECRET, OctKey.import_key(secret))


class _UnusableKeyError(ValueError):
    """Why a key of a set is left out, as the end of a sentence."""


def _imported(item: object) -> VerifyingKey:
    """Read a key of a set; raises `_UnusableKeyError`, `ValueError` or `JoseError`."""
    if not isinstance(item, dict):
        raise _UnusableKeyError("it is not an object")
    # Some issuers write null for members that a key lacks.
    members = {name: value for name, value in item.items() if value is not None}
    kid, alg, use = members.get("kid", ""), members.get("alg", ""), members.get("use", "sig")
    operations = members.get("key_ops", ["verify"])
    if "d" in members:
        raise _UnusableKeyError("its private half is published, so it must be replaced")
    if use != "sig":
        raise _UnusableKeyError(f"its use is {_shown(use)}, not sig")
    if not isinstance(operations, list) or "verify" not in operations:
        raise _UnusableKeyError("its key_ops do not contain verify")
    if not isinstance(kid, str) or not isinstance(alg, str):
        raise _UnusableKeyError("its kid or alg is not a string")
    kind, key = _key(members)
    alg = _NEW_NAMES.get(alg, alg)
    if alg and _KEY_OF.get(alg) != kind:
        raise _UnusableKeyError(
            f"its alg is {_shown(alg)}, which does not verify tokens with such a key"
        )
    return VerifyingKey(kid, kind, alg, key)


def _key(members: dict[str, Any]) -> tuple[tuple[str, str], Key]:
    """Read a public key from its own members alone; raises as `_imported`."""
    kind = (members.get("kty", ""), members.get("crv", ""))
    match kind:
        case ("RSA", _):
            n, e = _member(members, "n"), _member(members, "e")
            size, exponent = _bits(n), _bits(e)
            if not _SHORTEST_RSA <= size <= _LONGEST_RSA:
                raise _UnusableKeyError(
                    f"it has {size} bits; RSA keys have {_SHORTEST_RSA} to {_LONGEST_RSA}"
                )
            if exponent > _LONGEST_EXPONENT:
                raise _UnusableKeyError(f"its exponent has more than {_LONGEST_EXPONENT} bits")
            return ("RSA", ""), RSAKey.import_key({"kty": "RSA", "n": n, "e": e})
        case ("EC", "P-256" | "P-384" | "P-521"):
            x, y = _member(members, "x"), _member(members, "y")
            return kind, ECKey.import_key({"kty": "EC", "crv": kind[1], "x": x, "y": y})
        case ("OKP", "Ed25519"):
            x = _member(members, "x")
            return kind, OKPKey.import_key({"kty": "OKP", "crv": "Ed25519", "x": x})
        case ("EC" | "OKP", curve):
            raise _UnusableKeyError(
                f"its curve is {_shown(curve)}, not P-256, P-384, P-521 or Ed25519"
            )
    raise _UnusableKeyError(f"its kty is {_shown(kind[0])}, not RSA, EC or OKP")


def _member(members: dict[str, Any], name: str) -> str:
    value = members.get(name)
    if not isinstance(value, str):
        raise _UnusableKeyError(f"it has no {name}")
    return value


def _kid_of(item: object) -> str:
    kid = item.get("kid") if isinstance(item, dict) else None
    return f" with the kid {_shown(kid)}" if isinstance(kid, str) and kid else ""


def _bits(number: str) -> int:
    return int.from_bytes(_decoded(number), "big").bit_length()


def _shown(text: object) -> str:
    """Return a part of a stranger's token as it can stand in a sentence."""
    return f"“{str(text)[:100].encode('unicode_escape').decode('ascii')}”"
