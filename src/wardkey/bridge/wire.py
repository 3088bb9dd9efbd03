"""What `POST /publish` takes, read strictly from its bytes."""

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

MOST_PAYLOAD = 262_144
MOST_ITEMS = 1_000


class PublishRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """One message; `payload` is sent as its JSON text, but a string as it is."""

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


_one = msgspec.json.Decoder(PublishRequest)
_many = msgspec.json.Decoder(list[PublishRequest])
_string = msgspec.json.Decoder(str)


def read_publish(body: bytes) -> list[PublishRequest] | PublishRequest:
    """Read one message or an array of them.

    Raises `MalformedJson`, `InvalidRequest`, `TooManyItems`.
    """
    try:
        # The decoder passes over a payload without looking whether it is UTF-8.
        body.decode()
        if body.lstrip()[:1] != b"[":
            return _one.decode(body)
        items = _many.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        shape = _many.type if body.lstrip()[:1] == b"[" else _one.type
        raise body_failure(body, shape, error) from None
    if not 1 <= len(items) <= MOST_ITEMS:
        raise TooManyItems(f"A batch takes 1 to {MOST_ITEMS:,} messages.")
    return items


def message_of(wanted: PublishRequest) -> Message:
    """Return the message; raises `InvalidTopic`, `InvalidPayload`, `PayloadTooLarge`."""
    try:
        topic = clean_topic(wanted.topic)
    except ValueError as error:
        raise InvalidTopic(str(error), field="topic") from None
    payload = _payload(wanted)
    if len(payload) > MOST_PAYLOAD:
        raise PayloadTooLarge(
            f"The payload has {len(payload):,} bytes; at most {MOST_PAYLOAD:,} are taken.",
            field="payload",
        )
    return Message(topic, payload, wanted.qos or 0, bool(wanted.retain))


def _payload(wanted: PublishRequest) -> bytes:
    raw = bytes(wanted.payload)
    is_string = raw[:1] == b'"'
    if wanted.payload_encoding in (None, "json"):
        return _string.decode(raw).encode() if is_string else raw
    if not is_string:
        raise InvalidPayload(
            f"With payload_encoding {wanted.payload_encoding} the payload is a string.",
            field="payload",
        )
    text = _string.decode(raw)
    if wanted.payload_encoding == "plain":
        return text.encode()
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise InvalidPayload(
            "The payload is no base64 (RFC 4648, with its padding).", field="payload"
        ) from None
