"""Secret texts: generated, parsed without a lookup, and masked."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from struct import Struct
from urllib.parse import unquote
from zlib import crc32

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_DIGITS = bytes(ALPHABET[byte % 62].encode()[0] for byte in range(256))
_REJECTED_BYTES = bytes(range(248, 256))
KID_LENGTH = 12
RANDOM_LENGTH = 32
CRC_LENGTH = 6
_TAIL = KID_LENGTH + 1 + RANDOM_LENGTH + CRC_LENGTH
_MAX_LENGTH = 96
_BRAND = re.compile(r"[a-z][a-z0-9]{1,15}")
_BODY = r"(?:(?:sk|pk)_(?:live|test)|wsk|wht|ut|tkn)_[0-9A-Za-z]{12}_[0-9A-Za-z]{38}"
_HEAD_OF_ANY_BRAND = re.compile(
    rf"(?:{_BRAND.pattern}_)?(?:(?:sk|pk)_(?:live|test)|wsk|wht|ut|tkn)_"
)
_OF_ANY_BRAND = re.compile(rf"(?:{_BRAND.pattern}_)?{_BODY}")

# Base62 is read and written two digits at a time, in a third of the steps; each table has 3,844
# entries.
_PAIRS = [a + b for a in ALPHABET for b in ALPHABET]
_LOW = {int.from_bytes(pair.encode(), "big"): value for value, pair in enumerate(_PAIRS)}
_MIDDLE = {pair: value * 62**2 for pair, value in _LOW.items()}
_HIGH = {pair: value * 62**4 for pair, value in _LOW.items()}
# The part after the head: kid, `_`, random characters, and the CRC as three of those pairs.
_unpack_tail = Struct(f">{KID_LENGTH}sc{RANDOM_LENGTH}sHHH").unpack_from


class Environment(StrEnum):
    """The two halves of an organization; neither can access the other."""

    LIVE = "live"
    TEST = "test"


class SecretKind(StrEnum):
    """The kinds of secrets: keys, the operator's tokens, user tokens and MQTT grants."""

    SECRET = "sk"
    PUBLISHABLE = "pk"
    SERVICE = "wsk"
    HOOK = "wht"
    USER = "ut"
    GRANT = "tkn"


class Malformed(StrEnum):
    """Why a text is not a secret of this deployment, determined without any lookup."""

    EMPTY = "empty"
    TOO_LONG = "too_long"
    SHAPE = "shape"
    CHECKSUM = "checksum"
    BRAND = "brand"


# Not frozen, because that would double the time to parse.
@dataclass(slots=True, repr=False)
class SecretText:
    """A well-formed secret; it prints as its prefix, and only `.text` is the complete secret."""

    kind: SecretKind
    environment: Environment | None
    kid: str
    text: str

    def __repr__(self) -> str:
        return f"SecretText({self.prefix})"

    def __str__(self) -> str:
        return self.prefix

    @property
    def prefix(self) -> str:
        """The start shown in lists, such as `sk_live_7QdR…`."""
        return f"{self.text[: len(self.text) - _TAIL + 4]}…"


def clean_brand(brand: str) -> str:
    """Return `brand`, 2 to 16 characters of a-z and 0-9, or empty; raises `ValueError`."""
    if brand and not _BRAND.fullmatch(brand):
        raise ValueError("A brand has 2 to 16 characters of a-z and 0-9, and starts with a letter.")
    if brand in {kind.value for kind in SecretKind}:
        raise ValueError(f"{brand} can't be a brand, because it is the prefix of a kind of secret.")
    return brand


class _Heads(dict[str, dict[str, tuple[SecretKind, Environment | None]]]):
    """The possible texts before the kid, by brand; built on a brand's first use."""

    def __missing__(self, brand: str) -> dict[str, tuple[SecretKind, Environment | None]]:
        start = f"{clean_brand(brand)}_" if brand else ""
        heads: dict[str, tuple[SecretKind, Environment | None]] = {
            f"{start}{SecretKind.SERVICE}_": (SecretKind.SERVICE, None),
            f"{start}{SecretKind.HOOK}_": (SecretKind.HOOK, None),
            f"{start}{SecretKind.USER}_": (SecretKind.USER, None),
            f"{start}{SecretKind.GRANT}_": (SecretKind.GRANT, None),
        }
        for kind in (SecretKind.SECRET, SecretKind.PUBLISHABLE):
            for environment in Environment:
                heads[f"{start}{kind}_{environment}_"] = (kind, environment)
        self[brand] = heads
        return heads


_HEADS = _Heads()


def random_text(length: int, entropy: Callable[[int], bytes] = secrets.token_bytes) -> str:
    """Return `length` base62 characters without bias: bytes from 248 = 4 × 62 on are discarded.

    `entropy` returns that many random bytes; raises `ValueError` if it returns fewer.
    """
    digits = b""
    while len(digits) < length:
        random_bytes = entropy(2 * length)
        if len(random_bytes) < 2 * length:
            raise ValueError("The source of randomness returned fewer bytes than requested.")
        digits += random_bytes.translate(_DIGITS, _REJECTED_BYTES)
    return digits[:length].decode()


def generate(
    kind: SecretKind,
    environment: Environment | None,
    *,
    brand: str = "",
    stamp: str = "",
    entropy: Callable[[int], bytes] = secrets.token_bytes,
) -> SecretText:
    """Return a new secret with 190 bits of randomness after its public kid.

    The kid begins with `stamp`: kids that grow with time are adjacent in an index. Keys (`sk`,
    `pk`) have an environment, all others None; raises `ValueError` otherwise, and for a brand that
    `clean_brand` refuses.
    """
    meanings = _HEADS[brand].items()
    head = next((head for head, meaning in meanings if meaning == (kind, environment)), None)
    if head is None:
        raise ValueError(f"A secret of kind {kind} can't have the environment {environment}.")
    kid = stamp + random_text(KID_LENGTH - len(stamp), entropy)
    body = f"{head}{kid}_{random_text(RANDOM_LENGTH, entropy)}"
    upper, low = divmod(crc32(body.encode("ascii")), 62**2)
    high, middle = divmod(upper, 62**2)
    text = f"{body}{_PAIRS[high]}{_PAIRS[middle]}{_PAIRS[low]}"
    return SecretText(kind, environment, kid, text)


def parse(text: str, *, brand: str = "") -> SecretText | Malformed:
    """Parse a presented text, without a lookup or a hash.

    A truncated text gives `SHAPE`, an edited one or one with a swapped environment `CHECKSUM`, one
    that is well-formed except for its brand `BRAND`. Raises `ValueError` if `brand` is invalid.
    """
    if len(text) > _MAX_LENGTH:
        return Malformed.TOO_LONG
    try:
        ascii_bytes = text.encode("ascii")
        # Literal numbers, because global names cost a tenth of the time: 51 is _TAIL.
        kind, environment = _HEADS[brand][text[:-51]]
        kid, separator, random, high, middle, low = _unpack_tail(ascii_bytes, -51)
        claimed = _HIGH[high] + _MIDDLE[middle] + _LOW[low]
    except (UnicodeEncodeError, KeyError):
        return _malformed_reason(text)
    # For bytes, isalnum accepts ASCII only.
    if separator != b"_" or not kid.isalnum() or not random.isalnum():
        return Malformed.SHAPE
    if claimed != crc32(ascii_bytes[:-6]):
        return Malformed.CHECKSUM
    return SecretText(kind, environment, text[-51:-39], text)


def kid_of(text: str) -> str:
    """Return the characters at the position of a secret's kid; arbitrary if it is not a secret."""
    return text[-51:-39]


def _malformed_reason(text: str) -> Malformed:
    if not text:
        return Malformed.EMPTY
    # The caller has checked that it doesn't start like a secret of this brand.
    return Malformed.BRAND if _OF_ANY_BRAND.fullmatch(text) else Malformed.SHAPE


def looks_like_ours(text: str, *, brand: str = "") -> bool:
    """Return whether `text` starts like one of our secrets, whatever follows."""
    return text.startswith(tuple(_HEADS[brand]))


def has_shape_of_any_brand(text: str) -> bool:
    """Return whether `text` has the complete form of a secret, of this deployment or another."""
    return _OF_ANY_BRAND.fullmatch(text) is not None


def is_whole(text: str) -> bool:
    """Return whether `text` is a secret of any deployment, with a correct checksum."""
    if not has_shape_of_any_brand(text):
        return False
    ascii_bytes = text.encode("ascii")
    *_, high, middle, low = _unpack_tail(ascii_bytes, -_TAIL)
    return _HIGH[high] + _MIDDLE[middle] + _LOW[low] == crc32(ascii_bytes[:-CRC_LENGTH])


def head_of_any_brand(text: str) -> str:
    """Return the part before the kid of a secret; a truncated `text` may be only a part of that.

    Empty if `text` doesn't begin like a secret, with or without a brand.
    """
    match = _HEAD_OF_ANY_BRAND.match(text)
    if match is not None:
        return match[0]
    return text if meets_our_heads(text) else ""


def meets_our_heads(prefix: str, *, brand: str = "") -> bool:
    """Return whether a text with `prefix` could be one of our secrets, with or without the brand.

    A deployment's brand may be added or removed after the prefix was registered.
    """
    heads = (*_HEADS[""], *_HEADS[brand])
    return any(prefix.startswith(head) or head.startswith(prefix) for head in heads)


def fingerprint_regex(brand: str = "") -> str:
    r"""Return the regular expression with which a leak scanner finds our secrets.

    It uses only syntax that RE2, Hyperscan and PCRE share. `parse` can check matches offline.
    """
    start = f"{clean_brand(brand)}_" if brand else ""
    return rf"\b{start}{_BODY}\b"


# Characters that end a text within a URL, a header or a sentence.
_END = r"\s/?#&;,\"'<>()="
_OURS_WITHIN = r"(?:[sp]k_(?:live|test)|wsk|wht|ut|tkn)_[0-9A-Za-z]{12}_[0-9A-Za-z]*"
# An imported text has at least 128 bits; a short word after its prefix may be anything.
_IMPORTED_WITHIN = r"[0-9A-Za-z_.~+-]{12,}"
_LONG_RUN = re.compile(r"[0-9A-Za-z_.~+%-]{16}")


def may_hold_secret(text: str) -> bool:
    """Return whether `mask_secrets` with import prefixes could change `text`."""
    return _LONG_RUN.search(text) is not None


def mask_secrets(text: str, *, brand: str = "", prefixes: tuple[str, ...] = ()) -> str:
    """Return `text` with … in place of everything shaped like a secret, percent-encoded or not.

    `prefixes` are import prefixes. If a secret was percent-encoded, the text
    is returned decoded.
    """
    decoded = text
    while "%" in decoded and (unquoted := unquote(decoded)) != decoded:
        decoded = unquoted
    masked = _secret_pattern(brand, prefixes).sub("…", decoded)
    return text if masked == decoded else masked


@lru_cache(maxsize=64)
def _secret_pattern(brand: str, prefixes: tuple[str, ...]) -> re.Pattern[str]:
    heads = "|".join(map(re.escape, _HEADS[brand]))
    forms = [rf"(?<![0-9A-Za-z])(?:{heads})[^{_END}]*", rf"(?:{_BRAND.pattern}_)?{_OURS_WITHIN}"]
    if prefixes:
        starts = "|".join(map(re.escape, prefixes))
        forms.append(rf"(?<![0-9A-Za-z])(?:{starts}){_IMPORTED_WITHIN}")
    return re.compile("|".join(forms))


def mask(text: str) -> str:
    """Return the part of a presented text that may be logged: its kid, or `…` if it has none.

    A text that isn't completely of our shape may be another system's secret, so it is hidden.
    """
    return text[-_TAIL : KID_LENGTH - _TAIL] if _OF_ANY_BRAND.fullmatch(text) else "…"
