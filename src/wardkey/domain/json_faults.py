"""Where a body stops being JSON: the line, the column and what is wrong there, in a sentence."""

from __future__ import annotations

import json
from collections.abc import Callable

from wardkey.domain.errors import MalformedJson

_EMPTY = "The body is empty; send a JSON object, with the header Content-Type: application/json."
_AFTER_A_BACKSLASH = 'after a backslash only ", \\, /, b, f, n, r, t or uXXXX may stand'
# By how the standard library's decoder begins its message.
_SENTENCES: tuple[tuple[str, str], ...] = (
    ("Expecting property name", "the name of a field is expected, in double quotes"),
    ("Illegal trailing comma", "a comma stands before the closing bracket; leave it out"),
    ("Expecting ':'", "a colon is expected after the name of a field"),
    ("Expecting ','", "a comma or a closing bracket is expected"),
    ("Expecting value", "a value is expected"),
    ("Extra data", "the value has ended, and more follows; send one value"),
    ("Unterminated string", "a string begins that does not end"),
    ("Invalid control character", "a string has a control character in it; write it as \\u00XX"),
    ("Invalid \\escape", _AFTER_A_BACKSLASH),
    ("Invalid \\uXXXX", _AFTER_A_BACKSLASH),
)  # fmt: skip


def malformed_json(body: bytes) -> MalformedJson:
    """Return the failure of a body that is not JSON, with the place where it stops being JSON.

    Nothing of the body is quoted, because a secret may stand there.
    """
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        return MalformedJson(
            f"The body is not UTF-8 from byte {error.start + 1:,} on; send JSON in UTF-8."
        )
    if not text.strip():
        return MalformedJson(_EMPTY)
    return MalformedJson(_place_of_fault(text))


def _place_of_fault(text: str) -> str | None:
    if text[0] == "\ufeff":
        return "The body begins with a byte order mark; send it without."
    try:
        json.loads(text, parse_constant=_refuse_constant(text))
    except json.JSONDecodeError as error:
        return (
            f"The body is not JSON at line {error.lineno:,}, column {error.colno:,}: "
            f"{_sentence(error)}."
        )
    except RecursionError:
        return "The body is nested too deeply; send fewer brackets in one another."
    except ValueError:
        return "The body has a number with too many digits; send it as a string."
    return None


def _refuse_constant(text: str) -> Callable[[str], None]:
    def refuse(name: str) -> None:
        raise json.JSONDecodeError(name, text, text.index(name))

    return refuse


def _sentence(fault: json.JSONDecodeError) -> str:
    if fault.pos >= len(fault.doc.rstrip()):
        return "it ends too early; a bracket, a quote or a value is missing"
    if fault.doc[fault.pos] == "'":
        return "strings and names stand in double quotes, not in single ones"
    if fault.msg in {"NaN", "Infinity", "-Infinity"}:
        return f"{fault.msg} is no JSON; send a number or null"
    found = (sentence for start, sentence in _SENTENCES if fault.msg.startswith(start))
    return next(found, "something else is expected")
