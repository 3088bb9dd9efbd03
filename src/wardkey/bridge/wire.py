"""Parses the body of `POST /publish` strictly, and encodes the messages to send."""

from __future__ import annotations

import base64
from typing import Annotated, Literal

import msgspec

from wardkey.domain.errors import (
    InvalidPayload,
    InvalidTopic,
    PayloadTooLarge,
    TooManyItems,
)
from wardkey.domain.topics import clean_topic
from wardkey.verify.body_faults import body_failure

MAX_PAYLOAD_BYTES = 262_144
MAX_ITEMS = 1_000


class PublishRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """One message; `payload` is sent as its JSON text, a string without its quotes."""

    topic: str
    payload: msgspec.Raw
    qos: Annotated[int, msgspec.Meta(ge=0, le=1)] | None = None
    retain: bool | None = None
    payload_encoding: Literal["json", "plain", "base64"] | None = None


class Message(msgspec.Struct, frozen=True):
    """A message as it goes to the broker."""

    topic: str
    payload: bytes
    qos: int
    retain: bool


_message_decoder = msgspec.json.Decoder(PublishRequest)
_batch_decoder = msgspec.json.Decoder(list[PublishRequest])
_string_decoder = msgspec.json.Decoder(str)


def decode_publish(body: bytes) -> list[PublishRequest] | PublishRequest:
    """Decode one message or an array of them.

    Raises `MalformedJson`, `InvalidRequest`, `TooManyItems`.
    """
    try:
        # The decoder skips payloads without checking that they are UTF-8.
        body.decode()
        if body.lstrip()[:1] != b"[":
            return _message_decoder.decode(body)
        items = _batch_decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        model = _batch_decoder.type if body.lstrip()[:1] == b"[" else _message_decoder.type
        raise body_failure(body, model, error) from None
    if not 1 <= len(items) <= MAX_ITEMS:
        raise TooManyItems(f"The batch has {len(items):,} messages; send 1 to {MAX_ITEMS:,}.")
    return items


def to_message(item: PublishRequest) -> Message:
    """Return the message to send; raises `InvalidTopic`, `InvalidPayload`, `PayloadTooLarge`."""
    try:
        topic = clean_topic(item.topic)
    except ValueError as error:
        raise InvalidTopic(str(error), field="topic") from None
    payload = _payload(item)
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise PayloadTooLarge(
            f"The payload has {len(payload):,} bytes; send at most {MAX_PAYLOAD_BYTES:,}.",
            field="payload",
        )
    return Message(topic, payload, item.qos or 0, bool(item.retain))


def _payload(item: PublishRequest) -> bytes:
    raw = bytes(item.payload)
    is_string = raw[:1] == b'"'
    if item.payload_encoding in (None, "json"):
        return _string_decoder.decode(raw).encode() if is_string else raw
    if not is_string:
        raise InvalidPayload(
            f"With payload_encoding {item.payload_encoding} the payload must be a string.",
            field="payload",
        )
    text = _string_decoder.decode(raw)
    if item.payload_encoding == "plain":
        return text.encode()
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise InvalidPayload(
            "The payload is not base64; send RFC 4648 base64 with padding.", field="payload"
        ) from None
