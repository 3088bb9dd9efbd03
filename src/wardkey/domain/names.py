"""Texts that people choose: names, descriptions, metadata, slugs and e-mail addresses."""

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
_PAIRS, _VALUE, _METADATA_BYTES, _LARGEST = 50, 500, 8_192, 2**53
# A plain value has one level.
_METADATA_LEVELS, _NAME_INSIDE = 5, 64
_ADDRESS, _LOCAL_PART = 254, 64

# Joiners belong to emoji and to Persian and Indic words; every other format character hides,
# reorders or breaks what stands around it (Cf holds the bidirectional marks and overrides).
_JOINERS = "\u200c\u200d"
_HIDING = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
# Default_Ignorable_Code_Point (Unicode, DerivedCoreProperties.txt), as far as not in _HIDING.
_UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200c\u200d\u3164\ufe00-\ufe0f"
    "\uffa0\U000e0100-\U000e01ef]"
)

_WORDS = re.compile(r"[^\W_]+")
_NOTHING_SAID = """
    a abc access an another api apikey app asdf asdfasdf asdfgh asdfghjkl bar baz blah copy
    credential credentials default demo dev dummy example first foo foobar hello key keys live
    main my myapikey myapp mykey mytest name new newapikey newkey no number old one our prod
    production qwer qwerty random sample second secret secretkey some staging stuff temp test
    testapikey testing testkey the thing three tmp todo token tokens two unknown unnamed
    untitled v x xx xxx xyz y z zxcv zxcvbn
"""
_SAY_NOTHING = frozenset(_NOTHING_SAID.split())
_SHORTEST_WORD = 3


def _check_visible(text: str, what: str, kept: str) -> None:
    for place, character in enumerate(text, 1):
        if unicodedata.category(character) in _HIDING and character not in kept:
            raise ValueError(
                f"The {what} has a control or invisible character, U+{ord(character):04X}, at "
                f"place {place}; take it out."
            )


def _check_length(text: str, what: str, most: int) -> None:
    if len(text) > most:
        raise ValueError(f"The {what} has {len(text)} characters; shorten it to {most}.")


def clean_name(text: str, *, most: int = 100) -> str:
    """Return a name trimmed and in NFC; raises `ValueError` with a sentence that says how to mend.

    `most` counts code points. Control characters, bidirectional marks and overrides (Unicode UTS
    55), lone surrogates, and names without any visible character are refused.
    """
    name = unicodedata.normalize("NFC", text.strip())
    if not _UNSEEN.sub("", name).strip():
        raise ValueError("The name is empty; choose one that says what it is for.")
    _check_length(name, "name", most)
    _check_visible(name, "name", _JOINERS)
    return name


def clean_text(text: str, most: int) -> str:
    """Return a description or comment trimmed and in NFC; line breaks and tabs are allowed.

    The CR LF that browsers send becomes LF. Raises `ValueError` as `clean_name` does, but the text
    may be empty.
    """
    clean = unicodedata.normalize("NFC", text.replace("\r\n", "\n").strip())
    _check_length(clean, "text", most)
    _check_visible(clean, "text", "\n\t" + _JOINERS)
    return clean


def fold_name(name: str) -> str:
    """Return what two names that people would take for the same have in common.

    NFKC_Casefold (Unicode Standard §3.13, D146) with inner white space collapsed.
    """
    folded = unicodedata.normalize("NFD", name)
    for _ in range(2):
        folded = unicodedata.normalize("NFKC", _UNSEEN.sub("", folded).casefold())
    return " ".join(folded.split())


def name_warnings(name: str, environment: str) -> list[str]:
    """Return a sentence for a name that will tell nobody what its key is for, else nothing."""
    words = _WORDS.findall(fold_name(name))
    if any(_says_something(word) for word in words):
        return []
    warning = (
        f"“{name}” does not say what the key is for. Recommended: "
        f"{{environment}}-{{service}}-{{purpose}}, for example {environment}-billing-webhooks."
    )
    return [warning]


def _says_something(word: str) -> bool:
    word = word.rstrip("0123456789")
    if word in _SAY_NOTHING or len(set(word)) < 2:  # noqa: PLR2004 - aaa, or nothing left
        return False
    # One or two letters are an abbreviation, but one or two ideographs are a word.
    return len(word) >= _SHORTEST_WORD or not word.isascii()


def clean_metadata(pairs: Mapping[str, object]) -> dict[str, Any]:
    """Return metadata of at most 50 short names with JSON values; raises `ValueError`.

    Names have 1 to 64 characters of A-Z, a-z, 0-9, `_`, `.` and `-`, those of objects inside any
    visible ones. Values are texts of at most 500 characters, finite numbers, booleans, null, and
    lists and objects of them up to five levels deep; all of it is at most 8 KiB as compact JSON.
    Numbers end at ±2^53, beyond which JSON readers differ (RFC 8259 §6).
    """
    if len(pairs) > _PAIRS:
        raise ValueError(f"Metadata has {len(pairs)} pairs; {_PAIRS} are the most.")
    clean: dict[str, Any] = {}
    for key, value in pairs.items():
        if not _METADATA_KEY.fullmatch(key):
            raise ValueError("A metadata name has 1 to 64 characters of A-Z, a-z, 0-9, _ . and -.")
        clean[key] = _clean_value(key, value, 1)
    if len(json.dumps(clean, ensure_ascii=False, separators=(",", ":")).encode()) > _METADATA_BYTES:
        raise ValueError("Metadata is larger than 8 KiB in all; shorten its values.")
    return clean


def _clean_value(key: str, value: object, level: int) -> Any:  # noqa: ANN401 - any JSON
    if value is None:
        return None
    if isinstance(value, str):
        _check_length(value, f"value of {key}", _VALUE)
        _check_visible(value, f"value of {key}", "\n\t" + _JOINERS)
        return value
    if isinstance(value, (int, float)):
        _check_number(key, value)
        return value
    if not isinstance(value, (list, dict)):
        raise ValueError(f"The value of {key} is not a JSON value.")  # noqa: TRY004 - as all others
    if level == _METADATA_LEVELS:
        raise ValueError(f"The value of {key} has more than {_METADATA_LEVELS} levels.")
    if isinstance(value, list):
        return [_clean_value(key, item, level + 1) for item in value]
    for name in value:
        _check_length(name, f"name in {key}", _NAME_INSIDE)
        _check_visible(name, f"name in {key}", _JOINERS)
    return {name: _clean_value(key, item, level + 1) for name, item in value.items()}


def _check_number(key: str, value: float) -> None:
    if not math.isfinite(value):
        raise ValueError(f"The value of {key} is no finite number.")
    if abs(value) > _LARGEST:
        raise ValueError(f"The value of {key} is beyond 2^53; send it as a text.")


def clean_slug(text: str) -> str:
    """Return a slug as it is; raises `ValueError` if it has another form."""
    if not _SLUG.fullmatch(text):
        raise ValueError("A slug has 1 to 48 characters of a-z, 0-9 and -, and no - at its ends.")
    return text


def slug_from(name: str) -> str:
    """Return a slug that resembles `name`, and `organization` where nothing of it is left."""
    plain = unicodedata.normalize("NFKD", name.casefold()).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:48].strip("-") or "organization"


def clean_email(text: str) -> str:
    """Return an e-mail address, its domain in lower case; raises `ValueError`.

    The dot-atom form of RFC 5321 §4.1.2 in ASCII, at most 254 characters (§4.5.3.1 and RFC 3696,
    erratum 1690). Two addresses that differ in case alone are taken for the same: compare with
    `.lower()`.
    """
    address = text.strip()
    local, _, host = address.rpartition("@")
    if len(address) > _ADDRESS or len(local) > _LOCAL_PART or not _EMAIL.fullmatch(address):
        raise ValueError("That is not an e-mail address; write it as name@host.")
    return f"{local}@{host.lower()}"
