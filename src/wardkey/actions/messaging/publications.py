"""What was published under an Idempotency-Key, kept for a day so that it is not sent twice."""

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
    """The right to publish once; `answer` is what an earlier request with the key got, if any."""

    id: bytes = field(repr=False)
    answer: bytes | None


def claim(database: Database, by: Principal, retry: Retry, unconfirmed: bytes) -> Claim:
    """Take the right to publish under a key, before anything is sent.

    Until `settle` the key's answer is `unconfirmed`, so that a process that dies in between has
    not promised anything. Raises `IdempotencyKeyReused`, `WeakIdempotencyKey`.
    """
    text = check_idempotency_key(retry.key).encode()
    name = f"{by.kind}\0{by.id}\0{by.org_id}\0{by.environment}\0{retry.route}\0".encode()
    key = database.vault.key_for("publication")
    claimed = blake2b(name + text, key=key, digest_size=32).digest()
    # A payload may be guessed from a hash without a key.
    digest = blake2b(retry.body, key=key, digest_size=32).digest()
    now = database.clock()
    row = {"id": claimed, "body_digest": digest, "answer": unconfirmed, "created_at": now}
    try:
        with storage_errors(), database.usage.begin() as connection:
            connection.execute(
                delete(publications).where(
                    publications.c.id == claimed,
                    publications.c.created_at <= now - KEPT_PUBLICATIONS_MS,
                )
            )
            connection.execute(insert(publications).values(row))
    except IntegrityError:
        with storage_errors(), database.usage.connect() as connection:
            kept = connection.execute(
                select(publications).where(publications.c.id == claimed)
            ).one_or_none()
        if kept is None or bytes(kept.body_digest) != digest:
            raise IdempotencyKeyReused from None
        return Claim(claimed, bytes(kept.answer))
    return Claim(claimed, None)


def settle(database: Database, held: Claim, answer: bytes | None) -> None:
    """Keep the answer of what was published, or forget the claim where nothing was sent."""
    with storage_errors(), database.usage.begin() as connection:
        mine = publications.c.id == held.id
        if answer is None:
            connection.execute(delete(publications).where(mine))
        else:
            connection.execute(update(publications).where(mine).values(answer=answer))
