"""MQTT logins of clients by user name and password, with verified passwords cached."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from typing import Any

from sqlalchemy import Row, bindparam, or_, select, update

from wardkey.actions.core import hashing
from wardkey.actions.core.hashing import Line
from wardkey.db.engine import Database, Transaction, storage_errors
from wardkey.db.schema import clients, organizations
from wardkey.db.scoped import bind_scope, in_bound_scope
from wardkey.domain.acl import Actor, ActorKind
from wardkey.domain.clients import LONGEST_PASSWORD
from wardkey.domain.secret import Environment
from wardkey.domain.tenants import TenantScope
from wardkey.domain.times import MINUTE_MS
from wardkey.domain.usernames import on_the_wire, parse_username

CACHED_S = 300
MAX_CACHED = 10_000

# Built once: constructing a statement costs more than running it.
_CLIENT = (
    select(clients, organizations.c.suspended_at)
    .join(organizations, organizations.c.id == clients.c.org_id)
    .where(
        in_bound_scope(clients),
        clients.c.username == bindparam("name"),
        organizations.c.deleted_at.is_(None),
    )
)
_MARK_CONNECTED = (
    update(clients)
    .where(
        clients.c.id == bindparam("client_id"),
        in_bound_scope(clients),
        or_(
            clients.c.last_connected_at.is_(None),
            clients.c.last_connected_at <= bindparam("before"),
            clients.c.last_connected_at > bindparam("at"),
        ),
    )
    .values(last_connected_at=bindparam("at"))
)


@dataclass(frozen=True, slots=True)
class KnownClient:
    """An authenticated client; `last_connected_at` in epoch milliseconds."""

    id: str
    org_id: str
    environment: Environment
    username: str
    tags: tuple[str, ...]
    password_set_at: int
    last_connected_at: int | None

    @property
    def mqtt_username(self) -> str:
        """The user name that the client sends in CONNECT."""
        return on_the_wire(self.username, self.org_id, self.environment)

    def actor(self, mqtt_id: str) -> Actor:
        """Return the actor that ACL rules apply to in a session with this client id."""
        return Actor(ActorKind.CLIENT, self.org_id, self.username, mqtt_id, self.id)


@dataclass(slots=True)
class VerifiedPasswords:
    """Caches, as keyed hashes, passwords that matched an Argon2 hash in the last five minutes.

    Each entry is bound to the salted hash that it matched, so a replaced password never matches.
    The key exists only in this process. Generated passwords have a digest instead; `rehashes` has
    the new digests of those that matched under an older pepper.
    """

    clock: Callable[[], float] = time.monotonic
    key: bytes = field(default_factory=lambda: os.urandom(32), repr=False)
    # Expiry by digest, earliest first.
    expiries: dict[bytes, float] = field(default_factory=dict, repr=False)
    # By client: the new digest, and the pepper version of the old one.
    rehashes: dict[str, tuple[bytes, int]] = field(default_factory=dict, repr=False)
    # Queued and running checks by digest; concurrent logins with one password share a check.
    checks: dict[bytes, Future[bool]] = field(default_factory=dict, repr=False)
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def check(
        self, password_hash: str | None, password: str, address: str, line: Line
    ) -> Future[bool]:
        """Return a future of whether a password sent from `address` matches.

        A missing hash takes as long and never matches. The future may be shared, so don't cancel
        it; it may raise `Overloaded`.
        """
        name = blake2b(f"{password_hash}\0{password}".encode(), key=self.key, digest_size=32)
        digest = name.digest()
        if self._is_cached(digest):
            done = Future[bool]()
            done.set_result(True)
            return done
        with self.lock:
            running = self.checks.get(digest)
        if running is not None:
            return running
        work = partial(self._verify, digest, password_hash, password)
        check = hashing.submit(line, address, work)
        with self.lock:
            self.checks[digest] = check
        check.add_done_callback(partial(self._forget_check, digest))
        return check

    def _verify(self, digest: bytes, password_hash: str | None, password: str) -> bool:
        # Another check of the same password may have run at the same time.
        if self._is_cached(digest):
            return True
        matches = hashing.verify(password_hash, password)
        if matches:
            self._cache(digest)
        return matches

    def _forget_check(self, digest: bytes, check: Future[bool]) -> None:
        with self.lock:
            if self.checks.get(digest) is check:
                del self.checks[digest]

    def note_rehash(self, client_id: str, digest: bytes, old_version: int) -> None:
        """Queue a generated password's digest under the current pepper for storing."""
        with self.lock:
            self.rehashes[client_id] = digest, old_version

    def take_rehashes(self) -> dict[str, tuple[bytes, int]]:
        """Return and clear the queued digests."""
        with self.lock:
            rehashes, self.rehashes = self.rehashes, {}
        return rehashes

    def _is_cached(self, digest: bytes) -> bool:
        with self.lock:
            return self.expiries.get(digest, 0) > self.clock()

    def _cache(self, digest: bytes) -> None:
        with self.lock:
            now = self.clock()
            self.expiries.pop(digest, None)
            self.expiries[digest] = now + CACHED_S
            while True:
                oldest, end = next(iter(self.expiries.items()))
                if end > now and len(self.expiries) <= MAX_CACHED:
                    return
                del self.expiries[oldest]


@dataclass(frozen=True, slots=True)
class LoginAttempt:
    """The client found for a user name, and the hash to compare with the password.

    `matches` is true if the password matched a digest; otherwise Argon2 has to compare it.
    """

    row: Row[Any] | None
    password: str = field(repr=False)
    matches: bool = False
    password_hash: str | None = field(default=None, repr=False)


def begin_login(database: Database, username: str, password: str) -> LoginAttempt:
    """Look up a user name as sent in CONNECT; raises storage errors."""
    with database.read() as tx:
        row = _find_row(tx, username)
    if len(password) > LONGEST_PASSWORD or not password.isprintable():
        # No client has such a password, and not every hash function accepts it.
        return LoginAttempt(None, "")
    if row is None or row.digest is None:
        return LoginAttempt(row, password, password_hash=row.password_hash if row else None)
    has_pepper = row.pepper_version in database.vault.peppers
    matches = has_pepper and database.vault.matches(password, bytes(row.digest), row.pepper_version)
    return LoginAttempt(row, password, matches=matches)


def finish_login(
    database: Database, verified: VerifiedPasswords, attempt: LoginAttempt
) -> KnownClient | None:
    """Return the enabled client of an attempt whose password matched."""
    row, vault = attempt.row, database.vault
    if row is None:
        return None
    known = _known_client(row)
    if known is not None and row.digest is not None and row.pepper_version != vault.version:
        verified.note_rehash(row.id, vault.digest(attempt.password), row.pepper_version)
    return known


def find_login(
    database: Database, verified: VerifiedPasswords, username: str, password: str, address: str = ""
) -> KnownClient | None:
    """Return the enabled client with this user name, as sent in CONNECT, and password.

    Every refusal takes as long as a wrong password. The transaction ends before the password is
    hashed, so a client disabled in between is still returned; disabling a client checks for its
    sessions again afterwards. Raises `Overloaded` and storage errors.
    """
    attempt = begin_login(database, username, password)
    if not attempt.matches:
        check = verified.check(attempt.password_hash, attempt.password, address, Line.REQUEST)
        if not check.result():
            return None
    return finish_login(database, verified, attempt)


def find_client(tx: Transaction, username: str) -> KnownClient | None:
    """Return the enabled client with this user name, as sent in an accepted CONNECT."""
    row = _find_row(tx, username)
    return None if row is None else _known_client(row)


def _known_client(row: Row[Any]) -> KnownClient | None:
    if not row.enabled or row.suspended_at is not None:
        return None
    return KnownClient(
        id=row.id,
        org_id=row.org_id,
        environment=Environment(row.environment),
        username=row.username,
        tags=tuple(row.tags),
        password_set_at=row.password_set_at,
        last_connected_at=row.last_connected_at,
    )


def mark_connected(database: Database, connected: Iterable[KnownClient]) -> None:
    """Store that these clients connected just now, each at most once a minute.

    Like a key's last use, this goes neither to the audit log nor to the change feed.
    """
    now = database.clock()
    due = {
        client.id: client
        for client in connected
        if client.last_connected_at is None or not now - MINUTE_MS < client.last_connected_at <= now
    }
    if not due:
        return
    rows = [
        {
            "client_id": client.id,
            **bind_scope(TenantScope(client.org_id, client.environment)),
            "before": now - MINUTE_MS,
            "at": now,
        }
        # In a fixed order, so that two processes on PostgreSQL can't deadlock.
        for client in sorted(due.values(), key=lambda client: client.id)
    ]
    with storage_errors(), database.writer.begin() as connection:
        connection.execute(_MARK_CONNECTED, rows)


def _find_row(tx: Transaction, username: str) -> Row[Any] | None:
    parsed = parse_username(username)
    if parsed is None:
        return None
    parameters = {"name": parsed.name, **bind_scope(parsed.scope)}
    return tx.connection.execute(_CLIENT, parameters).one_or_none()
