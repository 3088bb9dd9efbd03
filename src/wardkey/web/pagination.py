"""Pagination cursors, authenticated with a key of the deployment and bound to their list."""

from __future__ import annotations

import base64
import hmac
import json
from hashlib import blake2b
from typing import Annotated, Any

from fastapi import Query

from wardkey.db.vault import Vault
from wardkey.domain.errors import InvalidCursor

_TAG_BYTES = 16
Cursor = Annotated[
    str,
    Query(
        description="The `next_cursor` of the previous page, with the same filters; empty for the "
        "first page.",
        json_schema_extra={"format": "cursor"},
    ),
]


def write_cursor(vault: Vault, binding: str, position: list[Any]) -> str:
    """Return a cursor with `position`, valid only for the same `binding` (list and filters)."""
    body = json.dumps(position).encode()
    return base64.urlsafe_b64encode(_tag(vault, binding, body) + body).decode().rstrip("=")


def read_cursor(vault: Vault, binding: str, text: str) -> list[Any]:
    """Return the position in a cursor; raises `InvalidCursor` for a forged or unrelated cursor."""
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except ValueError:
        raise InvalidCursor(field="cursor") from None
    if not hmac.compare_digest(_tag(vault, binding, raw[_TAG_BYTES:]), raw[:_TAG_BYTES]):
        raise InvalidCursor(field="cursor")
    position: list[Any] = json.loads(raw[_TAG_BYTES:])
    return position


def _tag(vault: Vault, binding: str, body: bytes) -> bytes:
    key = vault.key_for("cursor")
    return blake2b(binding.encode() + b"\0" + body, key=key, digest_size=_TAG_BYTES).digest()
