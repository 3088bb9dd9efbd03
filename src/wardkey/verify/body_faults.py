"""What is wrong with a body that msgspec refused, in the sentences that the whole API has."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import msgspec

from wardkey.domain.errors import InvalidRequest, WardkeyError
from wardkey.domain.json_faults import malformed_json
from wardkey.domain.shape_faults import UNREAD, Shape, missing_field, unknown_field, wrong_value

# msgspec has no other form of its faults than these sentences; a test holds each of them.
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.*)`")
_STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]")


def body_failure(body: bytes, shape: Any, fault: Exception) -> WardkeyError:  # noqa: ANN401 - any type
    """Return why `body` was not read as `shape`: `MalformedJson` or `InvalidRequest`."""
    if not isinstance(fault, msgspec.ValidationError):
        return malformed_json(body)
    said, _, at = str(fault).rpartition(" - at `$")
    if not said:
        said, at = at, ""
    path = [name or int(index) for name, index in _STEP.findall(at.rstrip("`"))]
    described = _shape(shape)
    if found := _UNKNOWN.match(said):
        named = unknown_field(described, [*path, found[1]])
    elif found := _MISSING.match(said):
        named = missing_field(described, [*path, found[1]])
    else:
        named = wrong_value(described, path, _value(body, path))
    return InvalidRequest(named[1], errors=(named,))


@lru_cache(maxsize=64)
def _shape(shape: Any) -> Shape:  # noqa: ANN401 - any type
    made, parts = msgspec.json.schema_components([shape], ref_template="#/{name}")
    return Shape(made[0], parts)


def _value(body: bytes, path: Sequence[str | int]) -> object:
    try:
        value: Any = msgspec.json.decode(body)
        for step in path:
            value = value[step]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, LookupError, TypeError):
        return UNREAD
    return value
