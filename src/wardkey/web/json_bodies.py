"""JSON bodies of a known shape, in which null in an optional field counts as absent."""

from __future__ import annotations

from typing import TypeVar

import msgspec

T = TypeVar("T")


def decode_body(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """Decode a body; many clients and brokers send null for a field that they leave empty.

    Raises `msgspec.DecodeError`, of which `msgspec.ValidationError` is one, and
    `UnicodeDecodeError`.
    """
    try:
        return decoder.decode(body)
    except msgspec.ValidationError:
        kept = _without_nulls(decoder, body)
        if kept is None:
            raise
        return decoder.decode(kept)
    except RecursionError:
        raise msgspec.DecodeError("The JSON is nested too deeply.") from None


def _without_nulls(decoder: msgspec.json.Decoder[T], body: bytes) -> bytes | None:
    """Return a body without the decoder's fields that are null, or None where there are none."""
    try:
        given = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if not isinstance(given, dict):
        return None
    known = getattr(decoder.type, "__struct_encode_fields__", ())
    empty = {name for name in known if given.get(name, ...) is None}
    if not empty:
        return None
    return msgspec.json.encode({k: v for k, v in given.items() if k not in empty})
