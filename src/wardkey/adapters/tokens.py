"""Parses and verifies identity providers' tokens strictly: form, signature and claims.

joserfc imports the keys and verifies the signatures; see docs/decisions/0017-token-verification.md.
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
# The checks before the claims, in order; `InvalidToken.step` is one of them or a claim.
STEPS = ("form", "header", "algorithm", "key", "signature", "payload")

_MAX_KEYS_TRIED = 5
_MAX_KID_LENGTH, _MAX_HEADER_LENGTH = 255, 8 * 1024
_MIN_RSA_BITS, _MAX_RSA_BITS, _MAX_EXPONENT_BITS = 2048, 8192, 64
_TYPES = frozenset({"jwt", "at+jwt", "application/jwt", "application/at+jwt"})
# To the alphabet of binascii; + / and = become a character that it rejects.
_BASE64URL_TO_BASE64 = bytes.maketrans(b"-_+/=", b"+/***")
# The final letters that leave no unused bits set, by the number of letters missing to four.
_FINAL_LETTERS = {1: b"AEIMQUYcgkosw048", 2: b"AQgw", 3: b""}
# The key type of each algorithm, and its curve if the type has several.
_KEY_KINDS = {
    **dict.fromkeys(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"), ("RSA", "")),
    "ES256": ("EC", "P-256"),
    "ES384": ("EC", "P-384"),
    "ES512": ("EC", "P-521"),
    "EdDSA": ("OKP", "Ed25519"),
    SHARED_SECRET: ("oct", ""),
}
# RFC 9864 names it Ed25519; tokens still use EdDSA.
_ALG_ALIASES = {"Ed25519": "EdDSA"}


class VerifyingKey(NamedTuple):
    """An imported public key of a key set; `alg`, if any, is the only algorithm it can verify."""

    kid: str
    kind: tuple[str, str]
    alg: str
    key: Key


class KeySet(NamedTuple):
    """The usable keys of a set, and a sentence for each key that was left out."""

    keys: tuple[VerifyingKey, ...]
    left_out: tuple[str, ...]


# Returns the keys with a kid, or all keys for a token without one.
KeysOf = Callable[[str], Sequence[VerifyingKey]]


class ParsedToken(NamedTuple):
    """A token with a valid form and header; nothing of it is verified yet."""

    alg: str
    kid: str
    signed: bytes
    payload: str
    signature: bytes


def import_keys(document: dict[str, Any]) -> KeySet:
    """Import a JWK set (RFC 7517 §5); raises `ValueError`.

    Keys for encryption, of other types, too weak or too costly, malformed, or with a published
    private half are left out; they never affect the others.
    """
    items = document.get("keys")
    if not isinstance(items, list):
        raise ValueError("It is not a key set: it has no list of keys.")  # noqa: TRY004 - bad input
    if len(items) > MOST_KEYS:
        raise ValueError(f"It has {len(items)} keys; at most {MOST_KEYS} are allowed.")
    keys, left_out = [], []
    for number, item in enumerate(items, 1):
        try:
            keys.append(_import_key(item))
        except (JoseError, ValueError) as error:
            reason = str(error) if isinstance(error, _UnusableKeyError) else "it is malformed"
            left_out.append(f"Key {number}{_kid_of(item)} is left out: {reason}.")
    return KeySet(tuple(keys), tuple(left_out))


def parse_token(text: str) -> ParsedToken:
    """Parse a token's form and header; raises `InvalidToken`."""
    if len(text) > LONGEST_TOKEN:
        raise InvalidToken(
            f"The token is longer than {LONGEST_TOKEN // 1024} KiB; ask the issuer for fewer "
            "claims.",
            step="form",
        )
    parts = text.split(".")
    if len(parts) != 3 or not all(parts):  # noqa: PLR2004 - RFC 7515 §7.1
        raise InvalidToken(
            "The token does not have three parts separated by dots; send a complete, signed JWT.",
            step="form",
        )
    head, payload, signature = parts
    if len(head) > _MAX_HEADER_LENGTH:
        raise InvalidToken("The token's header is longer than 8 KiB.", step="header")
    alg, kid = _header(head)
    return ParsedToken(
        alg,
        kid,
        f"{head}.{payload}".encode("ascii", "replace"),
        payload,
        _decode_signature(signature),
    )


def issuer_hint(token: ParsedToken) -> str:
    """Return an unverified token's `iss`, to find its provider; raises `InvalidToken`."""
    issuer = _claims(token).get("iss")
    return issuer if isinstance(issuer, str) else ""


def verify_token(
    token: ParsedToken, rules: TokenRules, keys_of: KeysOf, now_s: float, secret: bytes = b""
) -> dict[str, Any]:
    """Verify a token's signature and claims, and return the claims.

    `secret` is the shared secret of a provider with HS256; it is never part of a key set. Raises
    `InvalidToken`, `TokenExpired`, and `KeySetUnavailable` from `keys_of`.
    """
    claims = _verify_signature(token, rules, keys_of, secret)
    check_claims(rules, claims, now_s)
    return claims


def explain_token(
    text: str, rules: TokenRules, keys_of: KeysOf, now_s: float, secret: bytes = b""
) -> tuple[Step, ...]:
    """Check a token like `verify_token`, and return each step's result, for the provider test.

    The steps before the claims end at the first failure; all claims are checked.
    """
    try:
        claims = _verify_signature(parse_token(text), rules, keys_of, secret)
    except InvalidToken as error:
        step, fault = error.step, error.detail
    except KeySetUnavailable as error:
        step, fault = "key", error.detail
    else:
        return (*map(Step, STEPS), *claim_steps(rules, claims, now_s))
    return (*map(Step, STEPS[: STEPS.index(step)]), Step(step, fault))


def _verify_signature(
    token: ParsedToken, rules: TokenRules, keys_of: KeysOf, secret: bytes
) -> dict[str, Any]:
    alg, kid = token.alg, token.kid
    if alg not in rules.algorithms:
        raise InvalidToken(
            f"The token's alg is {_quote(alg)}; this provider accepts "
            f"{', '.join(sorted(rules.algorithms))}.",
            step="algorithm",
        )
    if alg == SHARED_SECRET:
        candidates = [_shared_key(secret)]
    else:
        if rules.kid_required and not kid:
            raise InvalidToken(
                "The token's header has no kid; this provider requires one.", step="key"
            )
        candidates = [
            key for key in keys_of(kid) if key.kind == _KEY_KINDS[alg] and key.alg in ("", alg)
        ][:_MAX_KEYS_TRIED]
    if not candidates:
        raise InvalidToken(
            f"None of the provider's keys is for {alg} with the kid {_quote(kid)}."
            if kid
            else f"None of the provider's keys is for {alg}.",
            step="key",
        )
    algorithm = JWSRegistry.algorithms[alg]
    if not any(algorithm.verify(token.signed, token.signature, key.key) for key in candidates):
        raise InvalidToken(
            "The token's signature does not match the provider's key; the token was altered, or "
            "issued by someone else.",
            step="signature",
        )
    return _claims(token)


def _claims(token: ParsedToken) -> dict[str, Any]:
    try:
        return read_object(_decode(token.payload))
    except ValueError as error:
        raise InvalidToken(f"The token's payload can't be read: {error}", step="payload") from None


# An issuer sends the same header until it changes its key.
@lru_cache(maxsize=1024)
def _header(head: str) -> tuple[str, str]:
    """Return `alg` and `kid`; keys contained or linked in a header are ignored."""
    try:
        header = read_object(_decode(head))
    except ValueError as error:
        raise InvalidToken(f"The token's header can't be read: {error}", step="header") from None
    header = {name: value for name, value in header.items() if value is not None or name == "crit"}
    alg, kid = header.get("alg"), header.get("kid", "")
    if not isinstance(alg, str) or not isinstance(kid, str) or len(kid) > _MAX_KID_LENGTH:
        raise InvalidToken(
            f"The token's header must have an alg, and a kid, if any, of at most {_MAX_KID_LENGTH} "
            "characters.",
            step="header",
        )
    if "crit" in header or header.get("b64", True) is not True:
        raise InvalidToken(
            "The token's header requires extensions (crit, b64), which are not supported.",
            step="header",
        )
    kind = header.get("typ", "JWT")
    if not isinstance(kind, str) or kind.lower() not in _TYPES:
        raise InvalidToken(
            f"The token's typ is {_quote(kind)}; it must be JWT or at+jwt.", step="header"
        )
    return alg, kid


def _decode_signature(segment: str) -> bytes:
    try:
        return _decode(segment)
    except ValueError as error:
        raise InvalidToken(f"The token's signature can't be read: {error}", step="form") from None


def _decode(segment: str) -> bytes:
    """Decode base64url in its one canonical spelling (RFC 7515 §2); raises `ValueError`."""
    text = segment.encode("ascii", "replace")
    padding = -len(text) % 4
    raw = None
    if not padding or text[-1] in _FINAL_LETTERS[padding]:
        padded = text.translate(_BASE64URL_TO_BASE64) + b"=" * padding
        with suppress(binascii.Error):
            raw = binascii.a2b_base64(padded, strict_mode=True)
    if raw is None:
        raise ValueError("It is not canonical base64url (no padding, no trailing characters).")
    return raw


def _shared_key(secret: bytes) -> VerifyingKey:
    if not secret:
        raise InvalidToken("The provider has no shared secret for HS256.", step="key")
    return VerifyingKey("", ("oct", ""), SHARED_SECRET, OctKey.import_key(secret))


class _UnusableKeyError(ValueError):
    """The reason why a key is left out, as the end of a sentence."""


def _import_key(item: object) -> VerifyingKey:
    """Import a key of a set; raises `_UnusableKeyError`, `ValueError` or `JoseError`."""
    if not isinstance(item, dict):
        raise _UnusableKeyError("it is not an object")
    # Some issuers send null for absent members.
    members = {name: value for name, value in item.items() if value is not None}
    kid, alg, use = members.get("kid", ""), members.get("alg", ""), members.get("use", "sig")
    operations = members.get("key_ops", ["verify"])
    if "d" in members:
        raise _UnusableKeyError("its private half is published, so it must be replaced")
    if use != "sig":
        raise _UnusableKeyError(f"its use is {_quote(use)}, not sig")
    if not isinstance(operations, list) or "verify" not in operations:
        raise _UnusableKeyError("its key_ops do not contain verify")
    if not isinstance(kid, str) or not isinstance(alg, str):
        raise _UnusableKeyError("its kid or alg is not a string")
    kind, key = _key(members)
    alg = _ALG_ALIASES.get(alg, alg)
    if alg and _KEY_KINDS.get(alg) != kind:
        raise _UnusableKeyError(
            f"its alg is {_quote(alg)}, which does not work with its type of key"
        )
    return VerifyingKey(kid, kind, alg, key)


def _key(members: dict[str, Any]) -> tuple[tuple[str, str], Key]:
    """Import a public key from its public members only; raises as `_import_key`."""
    kind = (members.get("kty", ""), members.get("crv", ""))
    match kind:
        case ("RSA", _):
            n, e = _member(members, "n"), _member(members, "e")
            size, exponent = _bits(n), _bits(e)
            if not _MIN_RSA_BITS <= size <= _MAX_RSA_BITS:
                raise _UnusableKeyError(
                    f"it has {size} bits; RSA keys must have {_MIN_RSA_BITS} to {_MAX_RSA_BITS}"
                )
            if exponent > _MAX_EXPONENT_BITS:
                raise _UnusableKeyError(f"its exponent has more than {_MAX_EXPONENT_BITS} bits")
            return ("RSA", ""), RSAKey.import_key({"kty": "RSA", "n": n, "e": e})
        case ("EC", "P-256" | "P-384" | "P-521"):
            x, y = _member(members, "x"), _member(members, "y")
            return kind, ECKey.import_key({"kty": "EC", "crv": kind[1], "x": x, "y": y})
        case ("OKP", "Ed25519"):
            x = _member(members, "x")
            return kind, OKPKey.import_key({"kty": "OKP", "crv": "Ed25519", "x": x})
        case ("EC" | "OKP", curve):
            raise _UnusableKeyError(
                f"its curve is {_quote(curve)}, not P-256, P-384, P-521 or Ed25519"
            )
    raise _UnusableKeyError(f"its kty is {_quote(kind[0])}, not RSA, EC or OKP")


def _member(members: dict[str, Any], name: str) -> str:
    value = members.get(name)
    if not isinstance(value, str):
        raise _UnusableKeyError(f"it has no {name}")
    return value


def _kid_of(item: object) -> str:
    kid = item.get("kid") if isinstance(item, dict) else None
    return f" with the kid {_quote(kid)}" if isinstance(kid, str) and kid else ""


def _bits(number: str) -> int:
    return int.from_bytes(_decode(number), "big").bit_length()


def _quote(text: object) -> str:
    """Return untrusted text escaped, shortened and quoted, for use in a sentence."""
    return f"“{str(text)[:100].encode('unicode_escape').decode('ascii')}”"
