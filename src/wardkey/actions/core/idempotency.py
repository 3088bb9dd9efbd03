"""Idempotency keys: a repeated request gets the first response again for ten minutes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b

from sqlalchemy import delete, insert, select

from wardkey.db.engine import Transaction
from wardkey.db.maintenance import KEPT_ANSWERS_MS
from wardkey.db.schema import idempotency
from wardkey.db.vault import seal, unseal
from wardkey.domain.errors import IdempotencyKeyReused, WeakIdempotencyKey
from wardkey.domain.permissions import Permission
from wardkey.domain.principal import Principal

_HEX = re.compile(r"[0-9a-fA-F-]+")
_PLAIN = re.compile(r"[\x21-\x7e]{22,255}")


@dataclass(frozen=True, slots=True)
class Retry:
    """The parts of a request that identify a retry: Idempotency-Key, route, body and credential."""

    key: str = field(repr=False)
    route: str
    body: bytes = field(repr=False)
    credential: bytes = field(repr=False)


def check_idempotency_key(text: str) -> str:
    """Return the key if it can hold 128 bits of randomness; raises `WeakIdempotencyKey`.

    It needs 32 hexadecimal digits (a UUID) or 22 other visible ASCII characters, and at least 8
    different characters.
    """
    is_long_enough = _PLAIN.fullmatch(text) is not None
    if is_long_enough and _HEX.fullmatch(text):
        is_long_enough = len(text.replace("-", "")) >= 32  # noqa: PLR2004 - 4 bits each
    if not is_long_enough or len(set(text)) < 8:  # noqa: PLR2004 - "aaaa…" is not random
        raise WeakIdempotencyKey
    return text


def run_idempotently(
    tx: Transaction,
    by: Principal,
    retry: Retry,
    act: Callable[[], dict[str, object]],
    *,
    needs: Permission,
) -> dict[str, object]:
    """Run `act`, or return the stored response of the same caller's same request.

    A stored response contains a secret, so reading it requires the permission `needs` too.

    The response is sealed under a key derived from the master key, the Idempotency-Key and the
    caller's credential, so the row alone does not reveal the secret. The same key with another
    credential is a different request. Raises `IdempotencyKeyReused`, `WeakIdempotencyKey`.
    """
    by.require(needs)
    text = check_idempotency_key(retry.key).encode()
    name = f"{by.kind}\0{by.id}\0{by.org_id}\0{by.environment}\0{retry.route}".encode()
    identity = name + b"\0" + retry.credential + text
    row_id = blake2b(identity, key=tx.vault.key_for("idempotency-id"), digest_size=32).digest()
    context = blake2b(text + b"\0" + retry.credential, digest_size=32).digest()
    sealing_key = tx.vault.key_for("idempotency-answer", context)
    # A keyed hash, because the body may contain a password that a plain hash would let one guess.
    body_key = tx.vault.key_for("idempotency-body", context)
    body_digest = blake2b(retry.body, key=body_key, digest_size=32).digest()
    tx.connection.execute(
        delete(idempotency).where(idempotency.c.created_at <= tx.now - KEPT_ANSWERS_MS)
    )
    row = tx.connection.execute(select(idempotency).where(idempotency.c.id == row_id)).one_or_none()
    if row is not None:
        if bytes(row.body_digest) != body_digest:
            raise IdempotencyKeyReused
        stored: dict[str, object] = json.loads(unseal(sealing_key, bytes(row.sealed), row_id))
        return stored
    response = act()
    tx.connection.execute(
        insert(idempotency).values(
            id=row_id,
            body_digest=body_digest,
            sealed=seal(sealing_key, json.dumps(response).encode(), row_id),
            created_at=tx.now,
        )
    )
    return response
