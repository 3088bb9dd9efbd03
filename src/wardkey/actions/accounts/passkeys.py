"""Passkeys: registering, listing, renaming and removing one's own, and signing in with one."""

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

# How long a browser may take to answer.
CHALLENGE_MS = 5 * 60_000
_RANDOM_BYTES, _TIME_BYTES, _TAG_BYTES = 16, 8, 16
_SAID_BYTES = _RANDOM_BYTES + _TIME_BYTES
_MOST = 20


@dataclass(frozen=True, slots=True)
class Passkey:
    """A passkey as its owner sees it; times in epoch milliseconds."""

    id: str
    name: str
    created_at: int
    last_used_at: int | None
    credential_id: bytes


@dataclass(frozen=True, slots=True)
class KnownPasskey:
    """What an answer is checked against."""

    id: str
    user_id: str
    public_key: bytes
    sign_count: int


def new_challenge(vault: Vault, subject: str, now: int) -> bytes:
    """Return what a browser is asked to sign within five minutes; `subject` is who may, or empty.

    It states its end and is authenticated by a key of the deployment, so nothing is stored until
    it was answered.
    """
    said = token_bytes(_RANDOM_BYTES) + (now + CHALLENGE_MS).to_bytes(_TIME_BYTES)
    return said + _tag(vault, said, subject)


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


def register(tx: Transaction, by: Principal, answer: Answer, name: str) -> str:
    """Keep a passkey that the caller made; return its id.

    Raises `InvalidName`, `InvalidPasskey`, `DuplicatePasskey`, `TooManyItems`.
    """
    name = _clean(name)
    _spend(tx, answer.challenge, by.id)
    taken = tx.connection.execute(
        select(func.count())
        .select_from(passkeys)
        .where(passkeys.c.credential_id == answer.credential_id)
    ).scalar_one()
    if taken:
        raise DuplicatePasskey
    if len(list_passkeys(tx, by)) >= _MOST:
        raise TooManyItems(f"A person has at most {_MOST} passkeys; remove one.")
    passkey_id = new_id("pass", tx.now)
    tx.connection.execute(
        insert(passkeys).values(
            id=passkey_id,
            user_id=by.id,
            credential_id=answer.credential_id,
            public_key=answer.public_key,
            sign_count=answer.sign_count,
            name=name,
            created_at=tx.now,
        )
    )
    record(
        tx, by, "passkey.registered", Target("user", by.id), {"passkey": passkey_id, "name": name}
    )
    return passkey_id


def rename(tx: Transaction, by: Principal, passkey_id: str, name: str) -> None:
    """Call one of the caller's passkeys otherwise; raises `InvalidName`, `PasskeyNotFound`."""
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
    """Let one of the caller's passkeys sign in no more; raises `PasskeyNotFound`."""
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


def find(tx: Transaction, credential_id: bytes, user_id: str) -> KnownPasskey:
    """Return the passkey that an answer names; raises `InvalidPasskey` where there is none."""
    row = tx.connection.execute(
        select(passkeys).where(
            passkeys.c.credential_id == credential_id,
            passkeys.c.user_id == user_id,
            passkeys.c.removed_at.is_(None),
        )
    ).one_or_none()
    if row is None:
        raise InvalidPasskey
    return KnownPasskey(row.id, row.user_id, bytes(row.public_key), row.sign_count)


def sign_in(
    tx: Transaction, by: Principal, known: KnownPasskey, answer: Answer, replaced: str
) -> NewSession:
    """Sign in whoever's passkey gave `answer`, once; raises `InvalidPasskey`.

    `replaced` is the text of the browser's cookie before, whose session ends.
    """
    _use(tx, known, answer, "")
    return browser_sessions.create_session(tx, by, known.user_id, "passkey", replaced)


def confirm(
    tx: Transaction, by: Principal, session_id: str, known: KnownPasskey, answer: Answer
) -> None:
    """Note that the caller showed one of his passkeys, once.

    Raises `InvalidPasskey`, `BrowserSessionNotFound`.
    """
    if known.user_id != by.id:
        raise InvalidPasskey
    _use(tx, known, answer, by.id)
    browser_sessions.refresh(tx, by, session_id)


def _use(tx: Transaction, known: KnownPasskey, answer: Answer, subject: str) -> None:
    _spend(tx, answer.challenge, subject)
    used = tx.connection.execute(
        update(passkeys)
        .where(passkeys.c.id == known.id, passkeys.c.removed_at.is_(None))
        .values(last_used_at=tx.now, sign_count=answer.sign_count)
    )
    if not used.rowcount:
        raise InvalidPasskey


def _clean(name: str) -> str:
    try:
        return clean_name(name)
    except ValueError as error:
        raise InvalidName(str(error), field="name") from None


def _spend(tx: Transaction, challenge: bytes, subject: str) -> None:
    ends = _end_of(tx.vault, challenge, subject)
    spent = select(challenges.c.subject).where(challenges.c.challenge == challenge)
    if ends <= tx.now or tx.connection.execute(spent).first() is not None:
        raise InvalidPasskey
    tx.connection.execute(
        insert(challenges).values(challenge=challenge, subject=subject, expires_at=ends)
    )


def _end_of(vault: Vault, challenge: bytes, subject: str) -> int:
    """Return when a challenge for `subject` ends; 0 if it is not one of ours."""
    said, tag = challenge[:_SAID_BYTES], challenge[_SAID_BYTES:]
    if not hmac.compare_digest(tag, _tag(vault, said, subject)):
        return 0
    return int.from_bytes(said[_RANDOM_BYTES:])


def _tag(vault: Vault, said: bytes, subject: str) -> bytes:
    key = vault.key_for("passkey-challenge")
    return blake2b(said + subject.encode(), key=key, digest_size=_TAG_BYTES).digest()
