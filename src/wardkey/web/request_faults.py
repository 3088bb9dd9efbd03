"""What is wrong with a request that the framework refused, in the sentences that the API has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import TypeAdapter
from pydantic.errors import PydanticInvalidForJsonSchema

from wardkey.domain.errors import InvalidRequest, WardkeyError
from wardkey.domain.json_faults import malformed_json
from wardkey.domain.shape_faults import (
    UNREAD,
    Shape,
    missing_field,
    shown_name,
    unknown_field,
    unknown_name,
    wrong_value,
)

_MOST_TOLD = 3
_MOST_DIGITS = 20
_NO_SHAPE = Shape({}, {})
# By a route's function and the place; there are no more than the application has.
_shapes: dict[tuple[object, str], Shape] = {}


def validation_failure(fault: RequestValidationError, request: Request) -> WardkeyError:
    """Return what is wrong with parameters or a body: `MalformedJson` or `InvalidRequest`."""
    faults = fault.errors()
    if any(item["type"] == "json_invalid" for item in faults):
        text = fault.body if isinstance(fault.body, str) else ""
        return malformed_json(text.encode("utf-8", "replace"))
    if any(item["loc"] == ("body",) for item in faults) and not _read_body(request):
        return malformed_json(b"")
    route = request.scope.get("route")
    named = tuple(dict.fromkeys(_sentence(item, route) for item in faults))
    told = " ".join(sentence for _, sentence in named[:_MOST_TOLD])
    if len(named) > _MOST_TOLD:
        told += f" There are {len(named) - _MOST_TOLD} more; see errors."
    return InvalidRequest(told, errors=named)


def unknown_parameter(name: str, known: Sequence[str]) -> InvalidRequest:
    """Return the failure of a parameter that a route does not take."""
    shown = shown_name(name)
    said = unknown_name(f"There is no parameter {shown}.", name, known, "This route")
    return InvalidRequest(said, errors=((shown, said),))


def _sentence(item: Mapping[str, Any], route: object) -> tuple[str, str]:
    place, *path = item["loc"]
    shape = _shape(route, place)
    match item["type"]:
        case "missing":
            return missing_field(shape, path)
        case "extra_forbidden":
            return unknown_field(shape, path)
    value = item.get("input", UNREAD)
    if place != "body" and isinstance(value, str) and value.isascii() and value.isdigit():
        # All that a URL or a header holds is text.
        value = int(value[:_MOST_DIGITS])
    return wrong_value(shape, path, value)


def _shape(route: object, place: str) -> Shape:
    """Return what a route takes in its body, or in its path, its query or its header."""
    known = (getattr(route, "endpoint", None), place)
    if known not in _shapes:
        body = getattr(route, "body_field", None)
        _shapes[known] = _shape_of(body) if place == "body" else _parameter_shape(route, place)
    return _shapes[known]


def _parameter_shape(route: object, place: str) -> Shape:
    """Return a shape that has a field for each parameter."""
    properties: dict[str, Any] = {}
    parts: dict[str, Any] = {}
    for field in _parameters(getattr(route, "dependant", None), f"{place}_params"):
        made = _shape_of(field)
        properties[field.alias] = made.schema
        parts |= dict(made.parts)
    return Shape({"type": "object", "properties": properties}, parts)


def _parameters(dependant: Any, kind: str) -> list[Any]:  # noqa: ANN401 - FastAPI's own types
    found = list(getattr(dependant, kind, ()))
    for below in getattr(dependant, "dependencies", ()):
        found += _parameters(below, kind)
    return found


def _shape_of(field: Any) -> Shape:  # noqa: ANN401 - FastAPI's fields have no public type
    if field is None:
        return _NO_SHAPE
    kind = Annotated[field.field_info.annotation, field.field_info]
    try:
        made = TypeAdapter(kind).json_schema(ref_template="#/{model}")
    except PydanticInvalidForJsonSchema:
        return _NO_SHAPE
    return Shape(made, made.pop("$defs", {}))


def unreadable_failure(request: Request) -> WardkeyError:
    """Return what is wrong with a body that the framework could not even try to read."""
    return malformed_json(_read_body(request))


def _read_body(request: Request) -> bytes:
    # Starlette keeps the body on the request that the route read it from, and has no name for it.
    body: bytes = getattr(request, "_body", b"")
    return body
