"""Validation of texts that users choose: names, descriptions, metadata, slugs, e-mail addresses."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

_SLUG = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,46}[a-z0-9])?")
_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_EMAIL = re.compile(rf"{_ATOM}(?:\.{_ATOM})*@{_LABEL}(?:\.{_LABEL})*")
_METADATA_KEY = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_MOST_PAIRS, _LONGEST_VALUE, _MOST_METADATA_BYTES, _LARGEST = 50, 500, 8_192, 2**53
# A plain value has one level.
_MOST_LEVELS, _LONGEST_INNER_NAME = 5, 64
_LONGEST_EMAIL, _LONGEST_LOCAL_PART = 254, 64

# Joiners are part of emoji and of Persian and Indic words; every other format character hides,
# reorders or breaks the text around it (Cf includes bidirectional marks and overrides).
_JOINERS = "\u200c\u200d"
_HIDING = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
# Default_Ignorable_Code_Point (Unicode, DerivedCoreProperties.txt), except those in _HIDING.
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200c\u200d\u3164\ufe00-\ufe0f"
    "\uffa0\U000e0100-\U000e01ef]"
)

_WORDS = re.compile(r"[^\W_]+")
_GENERIC_WORD_LIST = """
    a abc access an another api apikey app asdf asdfasdf asdfgh asdfghjkl bar baz blah copy
    credential credentials default demo dev dummy example first foo foobar hello key keys live
    main my myapikey myapp mykey mytest name new newapikey newkey no number old one our prod
    production qwer qwerty random sample second secret secretkey some staging stuff temp test
    testapikey testing testkey the thing three tmp todo token tokens two unknown unnamed
    untitled v x xx xxx xyz y z zxcv zxcvbn
"""
_GENERIC_WORDS = frozenset(_GENERIC_WORD_LIST.split())
_SHORTEST_WORD = 3


def _check_visible(text: str, label: str, allowed: str) -> None:
    for position, character in enumerate(text, 1):
        if unicodedata.category(character) in _HIDING and character not in allowed:
            raise ValueError(
                f"The {label} has a control or invisible character, U+{ord(character):04X}, at "
                f"position {position}; remove it."
            )


def _check_length(text: str, label: str, most: int) -> None:
    if len(text) > most:
        raise ValueError(f"The {label} has {len(text)} characters; shorten it to {most}.")


def clean_name(text: str, *, most: int = 100) -> str:
    """Return a name trimmed and in NFC; raises `ValueError` with a sentence on how to fix it.

    `most` counts code points. Control characters, bidirectional marks and overrides (Unicode UTS
    55), lone surrogates, and names without a visible character are rejected.
    """
    name = unicodedata.normalize("NFC", text.strip())
    if not _INVISIBLE.sub("", name).strip():
        raise ValueError("The name is empty; choose one that says what it is for.")
    _check_length(name, "name", most)
    _check_visible(name, "name", _JOINERS)
    return name


def clean_text(text: str, most: int) -> str:
    """Return a description or comment trimmed and in NFC; line breaks and tabs are allowed.

    The CR LF that browsers send becomes LF. The text may be empty. Raises `ValueError` like
    `clean_name`.
    """
    clean = unicodedata.normalize("NFC", text.replace("\r\n", "\n").strip())
    _check_length(clean, "text", most)
    _check_visible(clean, "text", "\n\t" + _JOINERS)
    return clean


def fold_name(name: str) -> str:
    """Return the folded form of a name, which is equal for names that look the same to users.

    NFKC_Casefold (Unicode Standard §3.13, D146) with inner white space collapsed.
    """
    folded = unicodedata.normalize("NFD", name)
    for _ in range(2):
        folded = unicodedata.normalize("NFKC", _INVISIBLE.sub("", folded).casefold())
    return " ".join(folded.split())


def name_warnings(name: str, environment: str) -> list[str]:
    """Return a warning if a name does not describe what its key is for, else an empty list."""
    words = _WORDS.findall(fold_name(name))
    if any(_is_descriptive(word) for word in words):
        return []
    warning = (
        f"“{name}” does not say what the key is for. Recommended: "
        f"{{environment}}-{{service}}-{{purpose}}, for example {environment}-billing-webhooks."
    )
    return [warning]


def _is_descriptive(word: str) -> bool:
    word = word.rstrip("0123456789")
    if word in _GENERIC_WORDS or len(set(word)) < 2:  # noqa: PLR2004 - aaa, or nothing left
        return False
    # One or two letters are just an abbreviation, but one or two ideographs are a word.
    return len(word) >= _SHORTEST_WORD or not word.isascii()


def clean_metadata(pairs: Mapping[str, object]) -> dict[str, Any]:
    """Return metadata of at most 50 short names with JSON values; raises `ValueError`.

    Names have 1 to 64 characters from A-Z, a-z, 0-9, `_`, `.` and `-`; names in inner objects may
    have any visible ones. Values are strings of at most 500 characters, finite numbers, booleans,
    null, and lists and objects of them, up to five levels deep and 8 KiB as compact JSON in total.
    Numbers beyond ±2^53 are rejected, because JSON parsers differ there (RFC 8259 §6).
    """
    if len(pairs) > _MOST_PAIRS:
        raise ValueError(f"Metadata has {len(pairs)} pairs; send at most {_MOST_PAIRS}.")
    clean: dict[str, Any] = {}
    for key, value in pairs.items():
        if not _METADATA_KEY.fullmatch(key):
            raise ValueError(
                "A metadata name must have 1 to 64 characters from A-Z, a-z, 0-9, _, . and -."
            )
        clean[key] = _clean_value(key, value, 1)
    compact = json.dumps(clean, ensure_ascii=False, separators=(",", ":"))
    if len(compact.encode()) > _MOST_METADATA_BYTES:
        raise ValueError("Metadata is larger than 8 KiB in total; shorten its values.")
    return clean


def _clean_value(key: str, value: object, level: int) -> Any:  # noqa: ANN401 - any JSON
    if value is None:
        return None
    if isinstance(value, str):
        _check_length(value, f"value of {key}", _LONGEST_VALUE)
        _check_visible(value, f"value of {key}", "\n\t" + _JOINERS)
        return value
    if isinstance(value, (int, float)):
        _check_number(key, value)
        return value
    if not isinstance(value, (list, dict)):
        raise ValueError(f"The value of {key} is not a JSON value.")  # noqa: TRY004 - like the other errors
    if level == _MOST_LEVELS:
        raise ValueError(f"The value of {key} has more than {_MOST_LEVELS} levels; flatten it.")
    if isinstance(value, list):
        return [_clean_value(key, item, level + 1) for item in value]
    for name in value:
        _check_length(name, f"name in {key}", _LONGEST_INNER_NAME)
        _check_visible(name, f"name in {key}", _JOINERS)
    return {name: _clean_value(key, item, level + 1) for name, item in value.items()}


def _check_number(key: str, value: float) -> None:
    if not math.isfinite(value):
        raise ValueError(f"The value of {key} is not a finite number.")
    if abs(value) > _LARGEST:
        raise ValueError(f"The value of {key} is beyond 2^53; send it as a string.")


def clean_slug(text: str) -> str:
    """Return a slug unchanged; raises `ValueError` if it is invalid."""
    if not _SLUG.fullmatch(text):
        raise ValueError(
            "A slug must have 1 to 48 characters from a-z, 0-9 and -, and no - at either end."
        )
    return text


def slug_from(name: str) -> str:
    """Return a slug derived from `name`, or `organization` if no character can be used."""
    plain = unicodedata.normalize("NFKD", name.casefold()).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:48].strip("-") or "organization"


def clean_email(text: str) -> str:
    """Return an e-mail address with its domain in lower case; raises `ValueError`.

    It must have the dot-atom form of RFC 5321 §4.1.2 in ASCII, with at most 254 characters
    (§4.5.3.1 and RFC 3696, erratum 1690). Addresses that differ only in case are the same: compare
    with `.lower()`.
    """
    address = text.strip()
    local, _, host = address.rpartition("@")
    too_long = len(address) > _LONGEST_EMAIL or len(local) > _LONGEST_LOCAL_PART
    if too_long or not _EMAIL.fullmatch(address):
        raise ValueError("That is not an e-mail address; write it as name@host.")
    return f"{local}@{host.lower()}"
