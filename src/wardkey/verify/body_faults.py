"""Error details for bodies that msgspec rejects, in the same words as the rest of the API."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import msgspec

from wardkey.domain.errors import InvalidRequest, WardkeyError
from wardkey.domain.json_faults import malformed_json
from wardkey.domain.shape_faults import UNREAD, Shape, missing_field, unknown_field, wrong_value

# msgspec reports errors only as these sentences; a test pins each of them.
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.*)`")
_STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]")


def body_failure(body: bytes, type_: Any, error: Exception) -> WardkeyError:  # noqa: ANN401 - any type
    """Return the error for a `body` that isn't a `type_`: `MalformedJson` or `InvalidRequest`."""
    if not isinstance(error, msgspec.ValidationError):
        return malformed_json(body)
    message, _, location = str(error).rpartition(" - at `$")
    if not message:
        message, location = location, ""
    path = [name or int(index) for name, index in _STEP.findall(location.rstrip("`"))]
    shape = _shape(type_)
    if match := _UNKNOWN.match(message):
        field_error = unknown_field(shape, [*path, match[1]])
    elif match := _MISSING.match(message):
        field_error = missing_field(shape, [*path, match[1]])
    else:
        field_error = wrong_value(shape, path, _value(body, path))
    return InvalidRequest(field_error[1], errors=(field_error,))


@lru_cache(maxsize=64)
def _shape(type_: Any) -> Shape:  # noqa: ANN401 - any type
    schemas, parts = msgspec.json.schema_components([type_], ref_template="#/{name}")
    return Shape(schemas[0], parts)


def _value(body: bytes, path: Sequence[str | int]) -> object:
    try:
        value: Any = msgspec.json.decode(body)
        for step in path:
            value = value[step]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, LookupError, TypeError):
        return UNREAD
    return value
