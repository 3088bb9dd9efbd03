"""The OpenAPI schema of a verdict, which is rendered without a framework."""

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
        "description": "The outcome of a verification. It describes the key only if the whole "
        "secret was right, even if the key is rejected.",
        "required": ["valid", "code", "as_of"],
        "properties": {
            "valid": {"type": "boolean"},
            "code": {
                "enum": [str(verdict) for verdict in Verdict],
                "description": "The developer guide lists the status to return for each.",
            },
            "detail": {"type": "string", "description": "Why the key was rejected, as a sentence."},
            "key_id": {"type": "string"},
            "kid": {"type": "string", "description": "The secret of the key that was sent."},
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
            "metadata": {"type": "object", "description": "The key's metadata."},
            "expires_at": {"type": ["string", "null"], "format": "date-time"},
            "grace_ends_at": {
                "type": ["string", "null"],
                "format": "date-time",
                "description": "When this secret expires because the key has a newer one.",
            },
            "limits": {
                "type": ["object", "null"],
                "description": "The key's rate limit and what remains of it; null without one.",
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
                "description": "Only with --max-staleness while the database is unreachable: "
                "changes of the last `stale_s` seconds may be missing.",
            },
            "as_of": {
                "type": "string",
                "format": "date-time",
                "description": "When the key was verified.",
            },
        },
        "example": _EXAMPLE,
    }
}
