"""Answers kept for ten minutes under an Idempotency-Key, so that a retry gets the same secret."""

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
    """What binds a kept answer: the header's text, the route, the body and the credential."""

    key: str = field(repr=False)
    route: str
    body: bytes = field(repr=False)
    credential: bytes = field(repr=False)


def check_idempotency_key(text: str) -> str:
    """Return a key that can hold 128 bits of randomness; raises `WeakIdempotencyKey`.

    That is 32 hexadecimal digits (a UUID) or 22 other visible ASCII characters, not all alike.
    """
    long_enough = _PLAIN.fullmatch(text) is not None
    if long_enough and _HEX.fullmatch(text):
        long_enough = len(text.replace("-", "")) >= 32  # noqa: PLR2004 - 4 bits each
    if not long_enough or len(set(text)) < 8:  # noqa: PLR2004 - "aaaa…" is no randomness
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
    """Return `act()`, or what it returned to the same caller's same request before.

    A kept answer holds a secret, so it too goes only to a caller who has the permission `needs`.

    The answer is sealed under a key that needs the master key, the Idempotency-Key and the
    caller's credential, so the row alone gives nobody the secret in it. The same key from another
    credential is another request. Raises `IdempotencyKeyReused`, `WeakIdempotencyKey`.
    """
    by.require(needs)
    text = check_idempotency_key(retry.key).encode()
    name = f"{by.kind}\0{by.id}\0{by.org_id}\0{by.environment}\0{retry.route}".encode()
    named = name + b"\0" + retry.credential + text
    row_id = blake2b(named, key=tx.vault.key_for("idempotency-id"), digest_size=32).digest()
    bound = blake2b(text + b"\0" + retry.credential, digest_size=32).digest()
    sealing = tx.vault.key_for("idempotency-answer", bound)
    # A body may hold a password, which could be guessed from a hash without a key.
    comparing = tx.vault.key_for("idempotency-body", bound)
    body_digest = blake2b(retry.body, key=comparing, digest_size=32).digest()
    tx.connection.execute(
        delete(idempotency).where(idempotency.c.created_at <= tx.now - KEPT_ANSWERS_MS)
    )
    row = tx.connection.execute(select(idempotency).where(idempotency.c.id == row_id)).one_or_none()
    if row is not None:
        if bytes(row.body_digest) != body_digest:
            raise IdempotencyKeyReused
        answer: dict[str, object] = json.loads(unseal(sealing, bytes(row.sealed), row_id))
        return answer
    answer = act()
    tx.connection.execute(
        insert(idempotency).values(
            id=row_id,
            body_digest=body_digest,
            sealed=seal(sealing, json.dumps(answer).encode(), row_id),
            created_at=tx.now,
        )
    )
    return answer
