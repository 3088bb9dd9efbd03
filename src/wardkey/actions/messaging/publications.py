"""Publications by Idempotency-Key, kept for a day so that a retry isn't sent again."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import blake2b

from sqlalchemy import delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from wardkey.actions.core.idempotency import Retry, check_idempotency_key
from wardkey.db.engine import Database, storage_errors
from wardkey.db.maintenance import KEPT_PUBLICATIONS_MS
from wardkey.db.schema import publications
from wardkey.domain.errors import IdempotencyKeyReused
from wardkey.domain.principal import Principal


@dataclass(frozen=True, slots=True)
class Claim:
    """A claimed idempotency key; `answer` is the response to an earlier request with it, if any."""

    id: bytes = field(repr=False)
    answer: bytes | None


def claim(database: Database, by: Principal, retry: Retry, unconfirmed: bytes) -> Claim:
    """Claim an idempotency key before anything is sent.

    Until `settle`, the key's response is `unconfirmed`, so a process that dies in between leaves
    no false promise. Raises `IdempotencyKeyReused`, `WeakIdempotencyKey`.
    """
    text = check_idempotency_key(retry.key).encode()
    name = f"{by.kind}\0{by.id}\0{by.org_id}\0{by.environment}\0{retry.route}\0".encode()
    key = database.vault.key_for("publication")
    claim_id = blake2b(name + text, key=key, digest_size=32).digest()
    # Keyed, because a plain hash would let a payload be guessed.
    digest = blake2b(retry.body, key=key, digest_size=32).digest()
    now = database.clock()
    row = {"id": claim_id, "body_digest": digest, "answer": unconfirmed, "created_at": now}
    try:
        with storage_errors(), database.usage.begin() as connection:
            connection.execute(
                delete(publications).where(
                    publications.c.id == claim_id,
                    publications.c.created_at <= now - KEPT_PUBLICATIONS_MS,
                )
            )
            connection.execute(insert(publications).values(row))
    except IntegrityError:
        with storage_errors(), database.usage.connect() as connection:
            earlier = connection.execute(
                select(publications).where(publications.c.id == claim_id)
            ).one_or_none()
        if earlier is None or bytes(earlier.body_digest) != digest:
            raise IdempotencyKeyReused from None
        return Claim(claim_id, bytes(earlier.answer))
    return Claim(claim_id, None)


def settle(database: Database, claimed: Claim, answer: bytes | None) -> None:
    """Store the response for a publication, or release the claim (None) if nothing was sent."""
    with storage_errors(), database.usage.begin() as connection:
        own_row = publications.c.id == claimed.id
        if answer is None:
            connection.execute(delete(publications).where(own_row))
        else:
            connection.execute(update(publications).where(own_row).values(answer=answer))
