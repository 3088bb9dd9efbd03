"""A user's passkeys: registering, listing, renaming, removing and signing in with them."""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from hashlib import blake2b
from secrets import token_bytes

from sqlalchemy import func, insert, select, update

from wardkey.actions.accounts import browser_sessions
from wardkey.actions.accounts.browser_sessions import NewSession
from wardkey.actions.core.audit import Target, record
from wardkey.adapters.passkeys import Answer
from wardkey.db.engine import Transaction
from wardkey.db.schema import challenges, passkeys
from wardkey.db.vault import Vault
from wardkey.domain.errors import (
    DuplicatePasskey,
    InvalidName,
    InvalidPasskey,
    PasskeyNotFound,
    TooManyItems,
)
from wardkey.domain.ids import new_id
from wardkey.domain.names import clean_name
from wardkey.domain.principal import Principal
from wardkey.domain.times import MINUTE_MS

# The time that a browser has to respond.
CHALLENGE_MS = 5 * MINUTE_MS
_RANDOM_BYTES, _TIME_BYTES, _TAG_BYTES = 16, 8, 16
_PAYLOAD_BYTES = _RANDOM_BYTES + _TIME_BYTES
_MAX_PASSKEYS = 20


@dataclass(frozen=True, slots=True)
class Passkey:
    """A passkey as shown to its user; times in epoch milliseconds."""

    id: str
    name: str
    created_at: int
    last_used_at: int | None
    credential_id: bytes


@dataclass(frozen=True, slots=True)
class StoredPasskey:
    """The stored data that a browser's response is verified against."""

    id: str
    user_id: str
    public_key: bytes
    sign_count: int


def new_challenge(vault: Vault, subject: str, now: int) -> bytes:
    """Return a challenge that a browser must sign within five minutes.

    It is bound to the user id `subject`, or to no user if that is empty. It contains its expiry and
    is authenticated with a key of the deployment, so nothing is stored before the response.
    """
    payload = token_bytes(_RANDOM_BYTES) + (now + CHALLENGE_MS).to_bytes(_TIME_BYTES)
    return payload + _tag(vault, payload, subject)


def list_passkeys(tx: Transaction, by: Principal) -> list[Passkey]:
    """Return the caller's own passkeys, oldest first."""
    return [
        Passkey(row.id, row.name, row.created_at, row.last_used_at, bytes(row.credential_id))
        for row in tx.connection.execute(
            select(passkeys)
            .where(passkeys.c.user_id == by.id, passkeys.c.removed_at.is_(None))
            .order_by(passkeys.c.created_at, passkeys.c.id)
        )
    ]


def register(tx: Transaction, by: Principal, response: Answer, name: str) -> str:
    """Register a new passkey of the caller; return its id.

    Raises `InvalidName`, `InvalidPasskey`, `DuplicatePasskey`, `TooManyItems`.
    """
    name = _clean(name)
    _spend_challenge(tx, response.challenge, by.id)
    count = tx.connection.execute(
        select(func.count())
        .select_from(passkeys)
        .where(passkeys.c.credential_id == response.credential_id)
    ).scalar_one()
    if count:
        raise DuplicatePasskey
    if len(list_passkeys(tx, by)) >= _MAX_PASSKEYS:
        raise TooManyItems(f"You have {_MAX_PASSKEYS} passkeys, the maximum; remove one first.")
    passkey_id = new_id("pass", tx.now)
    tx.connection.execute(
        insert(passkeys).values(
            id=passkey_id,
            user_id=by.id,
            credential_id=response.credential_id,
            public_key=response.public_key,
            sign_count=response.sign_count,
            name=name,
            created_at=tx.now,
        )
    )
    record(
        tx, by, "passkey.registered", Target("user", by.id), {"passkey": passkey_id, "name": name}
    )
    return passkey_id


def rename(tx: Transaction, by: Principal, passkey_id: str, name: str) -> None:
    """Rename one of the caller's passkeys; raises `InvalidName`, `PasskeyNotFound`."""
    own = (
        passkeys.c.id == passkey_id,
        passkeys.c.user_id == by.id,
        passkeys.c.removed_at.is_(None),
    )
    before = tx.connection.execute(select(passkeys.c.name).where(*own)).scalar_one_or_none()
    if before is None:
        raise PasskeyNotFound
    name = _clean(name)
    if name == before:
        return
    tx.connection.execute(update(passkeys).where(*own).values(name=name))
    details = {"passkey": passkey_id, "name": name, "old": before}
    record(tx, by, "passkey.renamed", Target("user", by.id), details)


def remove(tx: Transaction, by: Principal, passkey_id: str) -> None:
    """Remove one of the caller's passkeys; raises `PasskeyNotFound`."""
    removed = tx.connection.execute(
        update(passkeys)
        .where(
            passkeys.c.id == passkey_id,
            passkeys.c.user_id == by.id,
            passkeys.c.removed_at.is_(None),
        )
        .values(removed_at=tx.now)
    )
    if not removed.rowcount:
        raise PasskeyNotFound
    record(tx, by, "passkey.removed", Target("user", by.id), {"passkey": passkey_id})


def find(tx: Transaction, credential_id: bytes, user_id: str) -> StoredPasskey:
    """Return the passkey with this credential id; raises `InvalidPasskey` if there is none."""
    row = tx.connection.execute(
        select(passkeys).where(
            passkeys.c.credential_id == credential_id,
            passkeys.c.user_id == user_id,
            passkeys.c.removed_at.is_(None),
        )
    ).one_or_none()
    if row is None:
        raise InvalidPasskey
    return StoredPasskey(row.id, row.user_id, bytes(row.public_key), row.sign_count)


def sign_in(
    tx: Transaction, by: Principal, passkey: StoredPasskey, response: Answer, previous_cookie: str
) -> NewSession:
    """Sign in the owner of a passkey with its response, which works once.

    The session of `previous_cookie`, the browser's cookie so far, ends. Raises `InvalidPasskey`.
    """
    _spend_response(tx, passkey, response, "")
    return browser_sessions.create_session(tx, by, passkey.user_id, "passkey", previous_cookie)


def confirm(
    tx: Transaction, by: Principal, session_id: str, passkey: StoredPasskey, response: Answer
) -> None:
    """Record that the caller authenticated again with a passkey; a response works once.

    Raises `InvalidPasskey`, `BrowserSessionNotFound`.
    """
    if passkey.user_id != by.id:
        raise InvalidPasskey
    _spend_response(tx, passkey, response, by.id)
    browser_sessions.refresh(tx, by, session_id)


def _spend_response(
    tx: Transaction, passkey: StoredPasskey, response: Answer, subject: str
) -> None:
    _spend_challenge(tx, response.challenge, subject)
    used = tx.connection.execute(
        update(passkeys)
        .where(passkeys.c.id == passkey.id, passkeys.c.removed_at.is_(None))
        .values(last_used_at=tx.now, sign_count=response.sign_count)
    )
    if not used.rowcount:
        raise InvalidPasskey


def _clean(name: str) -> str:
    try:
        return clean_name(name)
    except ValueError as error:
        raise InvalidName(str(error), field="name") from None


def _spend_challenge(tx: Transaction, challenge: bytes, subject: str) -> None:
    expires_at = _expiry_of(tx.vault, challenge, subject)
    spent_query = select(challenges.c.subject).where(challenges.c.challenge == challenge)
    if expires_at <= tx.now or tx.connection.execute(spent_query).first() is not None:
        raise InvalidPasskey
    tx.connection.execute(
        insert(challenges).values(challenge=challenge, subject=subject, expires_at=expires_at)
    )


def _expiry_of(vault: Vault, challenge: bytes, subject: str) -> int:
    """Return when a challenge for `subject` expires (epoch ms); 0 if it is not authentic."""
    payload, tag = challenge[:_PAYLOAD_BYTES], challenge[_PAYLOAD_BYTES:]
    if not hmac.compare_digest(tag, _tag(vault, payload, subject)):
        return 0
    return int.from_bytes(payload[_RANDOM_BYTES:])


def _tag(vault: Vault, payload: bytes, subject: str) -> bytes:
    key = vault.key_for("passkey-challenge")
    return blake2b(payload + subject.encode(), key=key, digest_size=_TAG_BYTES).digest()
