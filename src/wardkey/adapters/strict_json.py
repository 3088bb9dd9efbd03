"""Parses untrusted JSON objects strictly: one meaning, bounded cost."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

# The closing quote is optional, so an unclosed string is scanned once, not retried per character.
_TOKENS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[{]|[\]}]', re.DOTALL)
_MAX_DEPTH = 16
_MAX_INT_DIGITS = 20


def read_object(raw: bytes, max_depth: int = _MAX_DEPTH) -> dict[str, Any]:
    """Return the JSON object in `raw`; raises `ValueError` with a sentence.

    Text that is not UTF-8, duplicate names, lone surrogates, NaN, infinities, and more than
    `max_depth` levels are rejected.
    """
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise ValueError("It is not UTF-8.") from None
    # Counting brackets is enough for most texts; only one that could be too deep is scanned.
    if text.count("{") + text.count("[") > max_depth and _depth(text) > max_depth:
        raise ValueError(f"It has more than {max_depth} levels.")
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError:
        raise ValueError("It is not JSON.") from None
    if not isinstance(value, dict):
        raise ValueError("It is not a JSON object.")  # noqa: TRY004 - bad input
    if "\\u" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("It contains half a surrogate pair.") from None
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("It contains a name twice.")
    return members


def _int(digits: str) -> int:
    if len(digits) > _MAX_INT_DIGITS:
        raise ValueError(f"It contains a number with more than {_MAX_INT_DIGITS} digits.")
    return int(digits)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON.")


def _depth(text: str) -> int:
    max_depth = depth = 0
    for match in _TOKENS.finditer(text):
        first = match[0][0]
        if first in "[{":
            depth += 1
            max_depth = max(max_depth, depth)
        elif first in "]}":
            depth -= 1
    return max_depth


# json.loads would create a decoder for each call, which takes longer than parsing a token.
_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_refuse, parse_int=_int)
