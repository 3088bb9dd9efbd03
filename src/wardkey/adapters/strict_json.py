"""JSON objects of strangers, read strictly: one meaning, and bounds on what reading them costs."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

# A closing quote may be missing, so that an unclosed text is passed over once and not tried anew.
_MARKS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[{]|[\]}]', re.DOTALL)
_DEEPEST = 16
_LONGEST_INT = 20


def read_object(raw: bytes, deepest: int = _DEEPEST) -> dict[str, Any]:
    """Return the JSON object in `raw`; raises `ValueError` with a sentence.

    Refused are text that is no UTF-8, names that come twice, lone surrogates, NaN and infinities,
    and more than `deepest` levels.
    """
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise ValueError("It is not UTF-8.") from None
    # Counting is enough for most; only what could be too deep is looked at mark by mark.
    if text.count("{") + text.count("[") > deepest and _depth(text) > deepest:
        raise ValueError(f"It has more than {deepest} levels.")
    try:
        made = _DECODER.decode(text)
    except json.JSONDecodeError:
        raise ValueError("It is not JSON.") from None
    if not isinstance(made, dict):
        raise ValueError("It is not a JSON object.")  # noqa: TRY004 - bad input
    if "\\u" in text:
        try:
            json.dumps(made, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("It has half a surrogate pair.") from None
    return made


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("It has a name twice.")
    return made


def _int(digits: str) -> int:
    if len(digits) > _LONGEST_INT:
        raise ValueError(f"It has a number of more than {_LONGEST_INT} digits.")
    return int(digits)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON.")


def _depth(text: str) -> int:
    deepest = depth = 0
    for found in _MARKS.finditer(text):
        mark = found[0][0]
        if mark in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif mark in "]}":
            depth -= 1
    return deepest


# json.loads would make one each time, which takes longer than reading a token.
_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_refuse, parse_int=_int)
