"""What the OpenAPI document says of `POST /publish`, which reads and answers bytes itself."""

from __future__ import annotations

from typing import Any

from wardkey.bridge.wire import MOST_ITEMS, MOST_PAYLOAD

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
            "description": "Where it goes: at most 65,535 bytes, no wildcard, no white space, no "
            "`$` at its start.",
        },
        "payload": {
            "description": f"Any JSON value. A string is sent as it is, all else as its JSON "
            f"text, at most {MOST_PAYLOAD:,} bytes. With `payload_encoding` `plain` or `base64` "
            "it has to be a string.",
        },
        "qos": {
            "enum": [0, 1, None],
            "default": 0,
            "description": "0: the answer comes when the message is handed to the broker; 1: when "
            "the broker has acknowledged it. 2 is not taken.",
        },
        "retain": {
            "type": ["boolean", "null"],
            "default": False,
            "description": "Keep it as the topic's last message for later subscribers; an empty "
            "payload clears what is kept.",
        },
        "payload_encoding": {
            "enum": ["json", "plain", "base64", None],
            "default": "json",
            "description": "`json` as described at `payload`; `plain` sends the string's UTF-8; "
            "`base64` sends the bytes that the string encodes (RFC 4648, with padding).",
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
_REFUSED: dict[str, Any] = {
    "allOf": [
        {"$ref": "#/components/schemas/Problem"},
        {"required": ["success"], "properties": {"success": {"const": False}}},
    ]
}
ANSWER: dict[str, Any] = {
    "description": "The message's id; for an array a list with an answer for each message, in "
    "their order.",
    "content": {
        _JSON: {
            "schema": {
                "anyOf": [_ACCEPTED, {"type": "array", "items": {"anyOf": [_ACCEPTED, _REFUSED]}}]
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
                            "maxItems": MOST_ITEMS,
                            "description": "Each message is judged and answered by itself.",
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
            "description": "A text with 128 bits of randomness, such as a UUID of version 4. The "
            "same request with it gets the same answer for 24 hours and is published once.",
        },
        {
            "name": "X-Wardkey-Grant",
            "in": "header",
            "schema": {"type": "string", "format": "grant-password"},
            "description": "The password of a grant, beside a publishable key: what the rules let "
            "its user publish is then allowed too.",
        },
        {
            "name": "Wardkey-Organization",
            "in": "header",
            "schema": {"type": "string", "maxLength": 64},
            "description": "Slug or id: where a person acts who is in several organizations. Keys "
            "act in their own, and any other is refused.",
        },
        {
            "name": "Wardkey-Environment",
            "in": "header",
            "schema": {"enum": ["live", "test"], "default": "live"},
            "description": "Where a person acts. Keys act in their own environment, and the other "
            "is refused.",
        },
    ],
    "security": [{"key": []}, {"keyHeader": []}, {"userToken": []}],
}
