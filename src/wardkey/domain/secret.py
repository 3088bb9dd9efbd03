"""The text of a secret: how it is made, recognised without a look-up, and shown masked."""

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
_THROWN_AWAY = bytes(range(248, 256))
KID_LENGTH = 12
RANDOM_LENGTH = 32
CRC_LENGTH = 6
_TAIL = KID_LENGTH + 1 + RANDOM_LENGTH + CRC_LENGTH
_MOST = 96
_BRAND = re.compile(r"[a-z][a-z0-9]{1,15}")
_BODY = r"(?:(?:sk|pk)_(?:live|test)|wsk|wht|ut|tkn)_[0-9A-Za-z]{12}_[0-9A-Za-z]{38}"
_HEAD_OF_ANY_BRAND = re.compile(
    rf"(?:{_BRAND.pattern}_)?(?:(?:sk|pk)_(?:live|test)|wsk|wht|ut|tkn)_"
)
_OF_ANY_BRAND = re.compile(rf"(?:{_BRAND.pattern}_)?{_BODY}")

# Base62 read and written two digits at a time: a third of the steps, and tables of 3,844 entries.
_PAIRS = [a + b for a in ALPHABET for b in ALPHABET]
_LOW = {int.from_bytes(pair.encode(), "big"): value for value, pair in enumerate(_PAIRS)}
_MIDDLE = {pair: value * 62**2 for pair, value in _LOW.items()}
_HIGH = {pair: value * 62**4 for pair, value in _LOW.items()}
# What stands behind the head: kid, `_`, random, and the CRC as three of those pairs.
_unpack_tail = Struct(f">{KID_LENGTH}sc{RANDOM_LENGTH}sHHH").unpack_from


class Environment(StrEnum):
    """The two halves of an organization, neither of which sees the other."""

    LIVE = "live"
    TEST = "test"


class SecretKind(StrEnum):
    """What a secret opens: a key, a door of the operator's, a user's session, MQTT for a while."""

    SECRET = "sk"
    PUBLISHABLE = "pk"
    SERVICE = "wsk"
    HOOK = "wht"
    USER = "ut"
    GRANT = "tkn"


class Malformed(StrEnum):
    """Why a text is no secret of this deployment, found out without any look-up."""

    EMPTY = "empty"
    TOO_LONG = "too_long"
    SHAPE = "shape"
    CHECKSUM = "checksum"
    BRAND = "brand"


# Not frozen: that would double the time of a parse.
@dataclass(slots=True, repr=False)
class SecretText:
    """A well-formed secret, which prints as its prefix; only `.text` gives the whole of it."""

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
        """The start that lists show, such as `sk_live_7QdR…`."""
        return f"{self.text[: len(self.text) - _TAIL + 4]}…"


def clean_brand(brand: str) -> str:
    """Return `brand`, 2 to 16 characters of a-z and 0-9, or empty; raises `ValueError`."""
    if brand and not _BRAND.fullmatch(brand):
        raise ValueError("A brand has 2 to 16 characters of a-z and 0-9 and starts with a letter.")
    if brand in {kind.value for kind in SecretKind}:
        raise ValueError(f"{brand} cannot be a brand, because it is the name of a kind of secret.")
    return brand


class _Heads(dict[str, dict[str, tuple[SecretKind, Environment | None]]]):
    """What may stand before the kid, by brand; made when a brand is first asked for."""

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
    """Return `length` base62 characters without bias: bytes from 248 = 4 × 62 on are thrown away.

    `entropy` gives that many random bytes; raises `ValueError` if it gives fewer.
    """
    found = b""
    while len(found) < length:
        drawn = entropy(2 * length)
        if len(drawn) < 2 * length:
            raise ValueError("The source of randomness gave fewer bytes than it was asked for.")
        found += drawn.translate(_DIGITS, _THROWN_AWAY)
    return found[:length].decode()


def generate(
    kind: SecretKind,
    environment: Environment | None,
    *,
    brand: str = "",
    stamp: str = "",
    entropy: Callable[[int], bytes] = secrets.token_bytes,
) -> SecretText:
    """Return a new secret with 190 bits of randomness behind its public kid.

    The kid begins with `stamp`: texts that grow with time are kept together in an index.
    Keys (`sk`, `pk`) take an environment, all others None; raises
    `ValueError` otherwise, and for a brand that `clean_brand` refuses.
    """
    meanings = _HEADS[brand].items()
    head = next((head for head, meaning in meanings if meaning == (kind, environment)), None)
    if head is None:
        raise ValueError(f"A secret of kind {kind} does not go with the environment {environment}.")
    kid = stamp + random_text(KID_LENGTH - len(stamp), entropy)
    body = f"{head}{kid}_{random_text(RANDOM_LENGTH, entropy)}"
    upper, low = divmod(crc32(body.encode("ascii")), 62**2)
    high, middle = divmod(upper, 62**2)
    text = f"{body}{_PAIRS[high]}{_PAIRS[middle]}{_PAIRS[low]}"
    return SecretText(kind, environment, kid, text)


def parse(text: str, *, brand: str = "") -> SecretText | Malformed:
    """Read a presented text; no look-up, no hash.

    A truncated text gives `SHAPE`, an edited one or one with a swapped environment `CHECKSUM`, one
    that is well-formed but for its brand `BRAND`. Raises `ValueError` if `brand` itself is none.
    """
    if len(text) > _MOST:
        return Malformed.TOO_LONG
    try:
        ascii_bytes = text.encode("ascii")
        # Bare numbers, because names cost a tenth of the time: 51 is _TAIL.
        kind, environment = _HEADS[brand][text[:-51]]
        kid, joint, random, high, middle, low = _unpack_tail(ascii_bytes, -51)
        claimed = _HIGH[high] + _MIDDLE[middle] + _LOW[low]
    except (UnicodeEncodeError, KeyError):
        return _why(text)
    # Of bytes, isalnum knows ASCII only.
    if joint != b"_" or not kid.isalnum() or not random.isalnum():
        return Malformed.SHAPE
    if claimed != crc32(ascii_bytes[:-6]):
        return Malformed.CHECKSUM
    return SecretText(kind, environment, text[-51:-39], text)


def kid_of(text: str) -> str:
    """Return what stands where a secret has its kid; of a text that is none, anything."""
    return text[-51:-39]


def _why(text: str) -> Malformed:
    if not text:
        return Malformed.EMPTY
    # The caller found that it does not start as secrets of this brand do.
    return Malformed.BRAND if _OF_ANY_BRAND.fullmatch(text) else Malformed.SHAPE


def looks_like_ours(text: str, *, brand: str = "") -> bool:
    """Tell whether `text` starts as our secrets do, however its rest looks."""
    return text.startswith(tuple(_HEADS[brand]))


def has_shape_of_any_brand(text: str) -> bool:
    """Return whether `text` has the whole form of a secret, of this deployment or another."""
    return _OF_ANY_BRAND.fullmatch(text) is not None


def is_whole(text: str) -> bool:
    """Return whether `text` is a secret of some deployment, its checksum included."""
    if not has_shape_of_any_brand(text):
        return False
    ascii_bytes = text.encode("ascii")
    *_, high, middle, low = _unpack_tail(ascii_bytes, -_TAIL)
    return _HIGH[high] + _MIDDLE[middle] + _LOW[low] == crc32(ascii_bytes[:-CRC_LENGTH])


def head_of_any_brand(text: str) -> str:
    """Return what stands before the kid of a secret, or may once more of `text` is there.

    Empty if `text` does not begin as a secret does, with a brand or without.
    """
    found = _HEAD_OF_ANY_BRAND.match(text)
    if found is not None:
        return found[0]
    return text if meets_our_heads(text) else ""


def meets_our_heads(prefix: str, *, brand: str = "") -> bool:
    """Return whether a text with `prefix` could be one of our secrets, with the brand or without.

    A deployment may get a brand, or lose it, after the prefix was registered.
    """
    heads = (*_HEADS[""], *_HEADS[brand])
    return any(prefix.startswith(head) or head.startswith(prefix) for head in heads)


def fingerprint_regex(brand: str = "") -> str:
    r"""Return the regular expression by which a leak scanner recognises our secrets.

    Only what RE2, Hyperscan and PCRE share is used. What it finds, `parse` checks offline.
    """
    start = f"{clean_brand(brand)}_" if brand else ""
    return rf"\b{start}{_BODY}\b"


# What ends a text within a URL, a header field or a sentence.
_END = r"\s/?#&;,\"'<>()="
_OURS_WITHIN = r"(?:[sp]k_(?:live|test)|wsk|wht|ut|tkn)_[0-9A-Za-z]{12}_[0-9A-Za-z]*"
# An imported text has 128 bits at least; a short word after its prefix may be anything.
_IMPORTED_WITHIN = r"[0-9A-Za-z_.~+-]{12,}"
_LONG_RUN = re.compile(r"[0-9A-Za-z_.~+%-]{16}")


def may_hold_secret(text: str) -> bool:
    """Return whether `text` is such that `mask_secrets` with import prefixes could change it."""
    return _LONG_RUN.search(text) is not None


def mask_secrets(text: str, *, brand: str = "", prefixes: tuple[str, ...] = ()) -> str:
    """Return `text` with … for all in it that has the shape of a secret, percent-encoded or not.

    `prefixes` are those under which keys were imported. A text in which a secret was
    percent-encoded is returned decoded.
    """
    decoded = text
    while "%" in decoded and (once := unquote(decoded)) != decoded:
        decoded = once
    masked = _masking(brand, prefixes).sub("…", decoded)
    return text if masked == decoded else masked


@lru_cache(maxsize=64)
def _masking(brand: str, prefixes: tuple[str, ...]) -> re.Pattern[str]:
    heads = "|".join(map(re.escape, _HEADS[brand]))
    forms = [rf"(?<![0-9A-Za-z])(?:{heads})[^{_END}]*", rf"(?:{_BRAND.pattern}_)?{_OURS_WITHIN}"]
    if prefixes:
        starts = "|".join(map(re.escape, prefixes))
        forms.append(rf"(?<![0-9A-Za-z])(?:{starts}){_IMPORTED_WITHIN}")
    return re.compile("|".join(forms))


def mask(text: str) -> str:
    """Return all that a log may show of a presented text: its kid, or `…` if it has none.

    A text that is not wholly of our shape may be somebody's other secret, so none of it shows.
    """
    return text[-_TAIL : KID_LENGTH - _TAIL] if _OF_ANY_BRAND.fullmatch(text) else "…"
