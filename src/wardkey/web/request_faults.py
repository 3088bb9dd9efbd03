"""Turns the framework's validation errors into the API's own sentences."""

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

_MAX_SENTENCES = 3
_MAX_DIGITS = 20
_NO_SHAPE = Shape({}, {})
# By route function and place (body, path, query or header); bounded by the number of routes.
_shapes: dict[tuple[object, str], Shape] = {}


def validation_failure(error: RequestValidationError, request: Request) -> WardkeyError:
    """Return the error for invalid parameters or an invalid body.

    It is a `MalformedJson` or an `InvalidRequest`.
    """
    faults = error.errors()
    if any(item["type"] == "json_invalid" for item in faults):
        text = error.body if isinstance(error.body, str) else ""
        return malformed_json(text.encode("utf-8", "replace"))
    if any(item["loc"] == ("body",) for item in faults) and not _read_body(request):
        return malformed_json(b"")
    route = request.scope.get("route")
    errors = tuple(dict.fromkeys(_field_error(item, route) for item in faults))
    detail = " ".join(sentence for _, sentence in errors[:_MAX_SENTENCES])
    if len(errors) > _MAX_SENTENCES:
        detail += f" There are {len(errors) - _MAX_SENTENCES} more; see errors."
    return InvalidRequest(detail, errors=errors)


def unknown_parameter(name: str, known: Sequence[str]) -> InvalidRequest:
    """Return the error for a parameter that a route doesn't have."""
    quoted = shown_name(name)
    detail = unknown_name(f"There is no parameter {quoted}.", name, known, "This route")
    return InvalidRequest(detail, errors=((quoted, detail),))


def _field_error(item: Mapping[str, Any], route: object) -> tuple[str, str]:
    place, *path = item["loc"]
    shape = _shape(route, place)
    match item["type"]:
        case "missing":
            return missing_field(shape, path)
        case "extra_forbidden":
            return unknown_field(shape, path)
    value = item.get("input", UNREAD)
    if place != "body" and isinstance(value, str) and value.isascii() and value.isdigit():
        # URLs and headers contain only text.
        value = int(value[:_MAX_DIGITS])
    return wrong_value(shape, path, value)


def _shape(route: object, place: str) -> Shape:
    """Return the shape of a route's body, or of its path, query or header parameters."""
    name = (getattr(route, "endpoint", None), place)
    if name not in _shapes:
        body = getattr(route, "body_field", None)
        _shapes[name] = _shape_of(body) if place == "body" else _parameter_shape(route, place)
    return _shapes[name]


def _parameter_shape(route: object, place: str) -> Shape:
    """Return a shape with a field for each parameter."""
    properties: dict[str, Any] = {}
    parts: dict[str, Any] = {}
    for field in _parameters(getattr(route, "dependant", None), f"{place}_params"):
        shape = _shape_of(field)
        properties[field.alias] = shape.schema
        parts |= dict(shape.parts)
    return Shape({"type": "object", "properties": properties}, parts)


def _parameters(dependant: Any, kind: str) -> list[Any]:  # noqa: ANN401 - FastAPI's own types
    parameters = list(getattr(dependant, kind, ()))
    for dependency in getattr(dependant, "dependencies", ()):
        parameters += _parameters(dependency, kind)
    return parameters


def _shape_of(field: Any) -> Shape:  # noqa: ANN401 - FastAPI's fields have no public type
    if field is None:
        return _NO_SHAPE
    kind = Annotated[field.field_info.annotation, field.field_info]
    try:
        schema = TypeAdapter(kind).json_schema(ref_template="#/{model}")
    except PydanticInvalidForJsonSchema:
        return _NO_SHAPE
    return Shape(schema, schema.pop("$defs", {}))


def unreadable_failure(request: Request) -> WardkeyError:
    """Return the error for a body that the framework couldn't parse at all."""
    return malformed_json(_read_body(request))


def _read_body(request: Request) -> bytes:
    # Starlette caches the body in a private attribute of the request that the route read.
    body: bytes = getattr(request, "_body", b"")
    return body
