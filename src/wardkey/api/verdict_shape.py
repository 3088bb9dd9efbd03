"""What the OpenAPI document says of a verdict, which is rendered without any framework."""

from __future__ import annotations

from typing import Any

from wardkey.domain.permissions import KeyType
from wardkey.domain.secret import Environment
from wardkey.domain.verdict import Verdict

_EXAMPLE = {
    "valid": True,
    "code": "valid",
    "key_id": "key_0fA3xQ2LmN7pR9sT1uV4wY",
    "kid": "7QdRk2mVx9Ta",
    "name": "live-billing-webhooks",
    "type": "secret",
    "environment": "live",
    "organization": {"id": "org_0fA3xQ2LmN7pR9sT1uV4wY", "slug": "acme", "name": "Acme"},
    "permissions": ["invoices:read"],
    "metadata": {},
    "expires_at": None,
    "grace_ends_at": None,
    "limits": None,
    "as_of": "2030-01-31T12:00:00.000Z",
}
VERDICT_PARTS: dict[str, Any] = {
    "Verdict": {
        "type": "object",
        "description": "What is known of a key. Of the key itself only if the whole secret was "
        "right, even where it is refused.",
        "required": ["valid", "code", "as_of"],
        "properties": {
            "valid": {"type": "boolean"},
            "code": {
                "enum": [str(verdict) for verdict in Verdict],
                "description": "The guide for developers says which status to answer for each.",
            },
            "detail": {"type": "string", "description": "Why not, in a sentence for people."},
            "key_id": {"type": "string"},
            "kid": {"type": "string", "description": "Which secret of the key it was."},
            "name": {"type": "string"},
            "type": {"enum": list(KeyType)},
            "environment": {"enum": list(Environment)},
            "organization": {
                "type": "object",
                "properties": {
                    "id": {"type": "string"},
                    "slug": {"type": "string"},
                    "name": {"type": "string"},
                },
            },
            "permissions": {"type": "array", "items": {"type": "string"}},
            "metadata": {"type": "object", "description": "What you gave the key."},
            "expires_at": {"type": ["string", "null"], "format": "date-time"},
            "grace_ends_at": {
                "type": ["string", "null"],
                "format": "date-time",
                "description": "When this secret ends because the key has a newer one.",
            },
            "limits": {
                "type": ["object", "null"],
                "description": "The key's rate limit and what is left of it; null without one.",
                "properties": {
                    "limit": {"type": "integer"},
                    "period_s": {"type": "integer"},
                    "burst": {"type": "integer"},
                    "remaining": {"type": "integer"},
                    "reset_s": {"type": "number"},
                    "retry_after_s": {"type": ["number", "null"]},
                },
            },
            "stale_s": {
                "type": "number",
                "description": "Only with --max-staleness while the database is away: changes "
                "of the last so many seconds may be missing.",
            },
            "as_of": {"type": "string", "format": "date-time", "description": "When judged."},
        },
        "example": _EXAMPLE,
    }
}
