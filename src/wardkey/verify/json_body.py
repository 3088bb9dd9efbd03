"""JSON bodies in which null stands for a field that is left out."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
from msgspec import structs

T = TypeVar("T")


def decode_body(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """Return the decoded body; a field with a default may be null and has its default then.

    Many clients and brokers send null for a field that they leave empty. Only a body that does
    not fit as it is pays for the second look. Raises `msgspec.DecodeError`, of which
    `msgspec.ValidationError` is one, and `UnicodeDecodeError`.
    """
    try:
        return decoder.decode(body)
    except msgspec.ValidationError:
        if b"null" not in body:
            raise
        try:
            value = _without_nulls(msgspec.json.decode(body), decoder.type)
        except RecursionError:
            raise msgspec.DecodeError("The JSON is nested too deeply.") from None
        return decoder.decode(msgspec.json.encode(value))
    except RecursionError:
        raise msgspec.DecodeError("The JSON is nested too deeply.") from None


def _without_nulls(value: Any, shape: Any) -> Any:  # noqa: ANN401 - any JSON, any type
    if isinstance(value, list):
        (inner,) = getattr(shape, "__args__", None) or (None,)
        return [_without_nulls(item, inner) for item in value]
    if not isinstance(value, dict) or not (
        isinstance(shape, type) and issubclass(shape, msgspec.Struct)
    ):
        return value
    known = {field.encode_name: field for field in structs.fields(shape)}
    return {
        name: _without_nulls(item, known[name].type if name in known else None)
        for name, item in value.items()
        if item is not None or name not in known or known[name].required
    }


def or_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON Schema of an optional field, which may be null."""
    if schema.get("default", 0) is None or {"type": "null"} in schema.get("anyOf", ()):
        return schema
    outer = {name: part for name, part in schema.items() if name in ("default", "description")}
    inner = {name: part for name, part in schema.items() if name not in outer}
    return {"anyOf": [inner, {"type": "null"}], **outer}
