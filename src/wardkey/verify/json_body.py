"""Decodes JSON bodies in which null means that an optional field is omitted."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
from msgspec import structs

T = TypeVar("T")


def decode_body(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """Return the decoded body; a null field that has a default gets its default.

    Many clients and brokers send null for an empty field. Only a body that is invalid as it is
    gets decoded a second time. Raises `msgspec.DecodeError` (including its subclass
    `msgspec.ValidationError`) and `UnicodeDecodeError`.
    """
    try:
        return decoder.decode(body)
    except msgspec.ValidationError:
        if b"null" not in body:
            raise
        try:
            value = _remove_nulls(msgspec.json.decode(body), decoder.type)
        except RecursionError:
            raise msgspec.DecodeError("The JSON is nested too deeply.") from None
        return decoder.decode(msgspec.json.encode(value))
    except RecursionError:
        raise msgspec.DecodeError("The JSON is nested too deeply.") from None


def _remove_nulls(value: Any, target: Any) -> Any:  # noqa: ANN401 - any JSON, any type
    if isinstance(value, list):
        (item_type,) = getattr(target, "__args__", None) or (None,)
        return [_remove_nulls(item, item_type) for item in value]
    if not isinstance(value, dict) or not (
        isinstance(target, type) and issubclass(target, msgspec.Struct)
    ):
        return value
    fields = {field.encode_name: field for field in structs.fields(target)}
    return {
        name: _remove_nulls(item, fields[name].type if name in fields else None)
        for name, item in value.items()
        if item is not None or name not in fields or fields[name].required
    }


def or_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON Schema of an optional field with null allowed."""
    if schema.get("default", 0) is None or {"type": "null"} in schema.get("anyOf", ()):
        return schema
    outer = {name: part for name, part in schema.items() if name in ("default", "description")}
    inner = {name: part for name, part in schema.items() if name not in outer}
    return {"anyOf": [inner, {"type": "null"}], **outer}
