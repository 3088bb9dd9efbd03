"""The OpenAPI description of `POST /publish`, whose route handles raw bytes."""

from __future__ import annotations

from typing import Any

from wardkey.bridge.wire import MAX_ITEMS, MAX_PAYLOAD_BYTES

_JSON = "application/json"
_MESSAGE: dict[str, Any] = {
    "type": "object",
    "description": "One message.",
    "additionalProperties": False,
    "required": ["topic", "payload"],
    "properties": {
        "topic": {
            "type": "string",
            "format": "topic",
            "description": "The topic to publish to: at most 65,535 bytes, without wildcards and "
            "white space, and not starting with `$`.",
        },
        "payload": {
            "description": f"Any JSON value. A string is sent without its quotes, anything else as "
            f"its JSON text; at most {MAX_PAYLOAD_BYTES:,} bytes. With `payload_encoding` `plain` "
            "or `base64` it must be a string.",
        },
        "qos": {
            "enum": [0, 1, None],
            "default": 0,
            "description": "0: the response is sent when the message is handed to the broker; 1: "
            "when the broker has acknowledged it. 2 is not supported.",
        },
        "retain": {
            "type": ["boolean", "null"],
            "default": False,
            "description": "Store it as the topic's last message for later subscribers; an empty "
            "payload deletes the stored message.",
        },
        "payload_encoding": {
            "enum": ["json", "plain", "base64", None],
            "default": "json",
            "description": "`json`: as described for `payload`; `plain`: sends the string as "
            "UTF-8; `base64`: sends the bytes that the string encodes (RFC 4648, with padding).",
        },
    },
    "example": {"topic": "agents/agent-01/state", "payload": {"status": "idle"}, "qos": 1},
}
_ACCEPTED: dict[str, Any] = {
    "type": "object",
    "required": ["success", "message_id"],
    "properties": {"success": {"const": True}, "message_id": {"type": "string"}},
    "example": {"success": True, "message_id": "msg_0fA3xQ2LmN7pR9sT1uV4wY"},
}
_REJECTED: dict[str, Any] = {
    "allOf": [
        {"$ref": "#/components/schemas/Problem"},
        {"required": ["success"], "properties": {"success": {"const": False}}},
    ]
}
RESPONSE: dict[str, Any] = {
    "description": "The message's id; for an array, a list with a result for each message, in the "
    "same order.",
    "content": {
        _JSON: {
            "schema": {
                "anyOf": [_ACCEPTED, {"type": "array", "items": {"anyOf": [_ACCEPTED, _REJECTED]}}]
            }
        }
    },
}
REQUEST: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            _JSON: {
                "schema": {
                    "anyOf": [
                        _MESSAGE,
                        {
                            "type": "array",
                            "items": _MESSAGE,
                            "minItems": 1,
                            "maxItems": MAX_ITEMS,
                            "description": "Each message is checked and answered separately.",
                        },
                    ]
                }
            }
        },
    },
    "parameters": [
        {
            "name": "Idempotency-Key",
            "in": "header",
            "schema": {"type": "string", "format": "idempotency-key"},
            "description": "A text with 128 bits of randomness, such as a version 4 UUID. "
            "Repeating the request with it returns the same response for 24 hours and publishes "
            "nothing again.",
        },
        {
            "name": "X-Wardkey-Grant",
            "in": "header",
            "schema": {"type": "string", "format": "grant-password"},
            "description": "The password of a grant, sent with a publishable key: topics that the "
            "rules allow its user are then allowed too.",
        },
        {
            "name": "Wardkey-Organization",
            "in": "header",
            "schema": {"type": "string", "maxLength": 64},
            "description": "Slug or id of the organization, for a person who is in several. Keys "
            "act in their own; any other is rejected.",
        },
        {
            "name": "Wardkey-Environment",
            "in": "header",
            "schema": {"enum": ["live", "test"], "default": "live"},
            "description": "The environment, for a person. Keys act in their own; the other is "
            "rejected.",
        },
    ],
    "security": [{"key": []}, {"keyHeader": []}, {"userToken": []}],
}
