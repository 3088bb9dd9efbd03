"""Errors for bodies that are not JSON, with the line and column of the mistake."""

from __future__ import annotations

import json
from collections.abc import Callable

from wardkey.domain.errors import MalformedJson

_EMPTY = "The body is empty; send a JSON object, with the header Content-Type: application/json."
_INVALID_ESCAPE = 'a backslash must be followed by ", \\, /, b, f, n, r, t or uXXXX'
# By the start of the standard library's message.
_DESCRIPTIONS: tuple[tuple[str, str], ...] = (
    ("Expecting property name", "expected the name of a field, in double quotes"),
    ("Illegal trailing comma", "there is a comma before the closing bracket; remove it"),
    ("Expecting ':'", "expected a colon after the name of a field"),
    ("Expecting ','", "expected a comma or a closing bracket"),
    ("Expecting value", "expected a value"),
    ("Extra data", "there is more after the value; send one value"),
    ("Unterminated string", "a string is not closed"),
    ("Invalid control character", "a string contains a control character; write it as \\u00XX"),
    ("Invalid \\escape", _INVALID_ESCAPE),
    ("Invalid \\uXXXX", _INVALID_ESCAPE),
)  # fmt: skip


def malformed_json(body: bytes) -> MalformedJson:
    """Return the error for a body that is not JSON, with the position of the mistake.

    It quotes nothing from the body, because that may contain a secret.
    """
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        return MalformedJson(
            f"The body is not UTF-8 at byte {error.start + 1:,}; send JSON in UTF-8."
        )
    if not text.strip():
        return MalformedJson(_EMPTY)
    return MalformedJson(_find_mistake(text))


def _find_mistake(text: str) -> str | None:
    if text[0] == "\ufeff":
        return "The body begins with a byte order mark; remove it."
    try:
        json.loads(text, parse_constant=_refuse_constant(text))
    except json.JSONDecodeError as error:
        return (
            f"The body is not JSON at line {error.lineno:,}, column {error.colno:,}: "
            f"{_describe(error)}."
        )
    except RecursionError:
        return "The body is nested too deeply; use fewer levels."
    except ValueError:
        return "The body contains a number with too many digits; send it as a string."
    return None


def _refuse_constant(text: str) -> Callable[[str], None]:
    def refuse(name: str) -> None:
        raise json.JSONDecodeError(name, text, text.index(name))

    return refuse


def _describe(error: json.JSONDecodeError) -> str:
    if error.pos >= len(error.doc.rstrip()):
        return "it ends too early; a bracket, a quote or a value is missing"
    if error.doc[error.pos] == "'":
        return "use double quotes, not single quotes"
    if error.msg in {"NaN", "Infinity", "-Infinity"}:
        return f"{error.msg} is not JSON; send a number or null"
    matches = (text for start, text in _DESCRIPTIONS if error.msg.startswith(start))
    return next(matches, "unexpected text")
