"""Logins of clients: whose a user name and password are, without paying Argon2 each time."""

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
from wardkey.domain.usernames import on_the_wire, parse_username

REMEMBERED_S = 300
MOST_REMEMBERED = 10_000
MINUTE_MS = 60_000

# Built once: constructing a statement costs more than running it.
_CLIENT = (
    select(clients, organizations.c.suspended_at)
    .join(organizations, organizations.c.id == clients.c.org_id)
    .where(
        in_bound_scope(clients),
        clients.c.username == bindparam("wanted"),
        organizations.c.deleted_at.is_(None),
    )
)
_MARK = (
    update(clients)
    .where(
        clients.c.id == bindparam("wanted"),
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
    """A client whose password fitted; `last_connected_at` in epoch milliseconds."""

    id: str
    org_id: str
    environment: Environment
    username: str
    tags: tuple[str, ...]
    password_set_at: int
    last_connected_at: int | None

    @property
    def mqtt_username(self) -> str:
        """The user name as it stands on the wire."""
        return on_the_wire(self.username, self.org_id, self.environment)

    def actor(self, mqtt_id: str) -> Actor:
        """Return whom ACL rules see in a session with that client id."""
        return Actor(ActorKind.CLIENT, self.org_id, self.username, mqtt_id, self.id)


@dataclass(slots=True)
class VerifiedPasswords:
    """Passwords that fitted an Argon2 hash in the last five minutes, as keyed hashes.

    Each is bound to the hash that it fitted, which has a salt of its own, so a password that was
    replaced is never found here. The key exists in this process alone. Generated passwords have a
    digest instead; `rehashes` are the new ones of those that fitted under an older pepper.
    """

    clock: Callable[[], float] = time.monotonic
    key: bytes = field(default_factory=lambda: os.urandom(32), repr=False)
    # In the order in which they end.
    ends: dict[bytes, float] = field(default_factory=dict, repr=False)
    # By client: the digest, and the version that it takes the place of.
    rehashes: dict[str, tuple[bytes, int]] = field(default_factory=dict, repr=False)
    # By digest: checks that wait or run. Many logins at once with one password wait for one hash.
    checks: dict[bytes, Future[bool]] = field(default_factory=dict, repr=False)
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def check(
        self, password_hash: str | None, password: str, address: str, line: Line
    ) -> Future[bool]:
        """Return the future answer whether a password from `address` fits.

        A missing hash takes as long and never fits. The future may be shared, so it is not to be
        cancelled; it may fail with `Overloaded`.
        """
        name = blake2b(f"{password_hash}\0{password}".encode(), key=self.key, digest_size=32)
        digest = name.digest()
        known: Future[bool]
        if self._remembers(digest):
            known = Future()
            known.set_result(True)
            return known
        with self.lock:
            running = self.checks.get(digest)
        if running is not None:
            return running
        work = partial(self._verify, digest, password_hash, password)
        begun = hashing.submit(line, address, work)
        with self.lock:
            self.checks[digest] = begun
        begun.add_done_callback(partial(self._forget_check, digest))
        return begun

    def _verify(self, digest: bytes, password_hash: str | None, password: str) -> bool:
        # Another check of the same password may have begun at the same moment.
        if self._remembers(digest):
            return True
        fits = hashing.verify(password_hash, password)
        if fits:
            self._remember(digest)
        return fits

    def _forget_check(self, digest: bytes, check: Future[bool]) -> None:
        with self.lock:
            if self.checks.get(digest) is check:
                del self.checks[digest]

    def note_rehash(self, client_id: str, digest: bytes, old_version: int) -> None:
        """Keep the digest of a generated password under the current pepper, to be stored."""
        with self.lock:
            self.rehashes[client_id] = digest, old_version

    def take_rehashes(self) -> dict[str, tuple[bytes, int]]:
        """Return what was noted since the last time."""
        with self.lock:
            taken, self.rehashes = self.rehashes, {}
        return taken

    def _remembers(self, digest: bytes) -> bool:
        with self.lock:
            return self.ends.get(digest, 0) > self.clock()

    def _remember(self, digest: bytes) -> None:
        with self.lock:
            now = self.clock()
            self.ends.pop(digest, None)
            self.ends[digest] = now + REMEMBERED_S
            while True:
                oldest, end = next(iter(self.ends.items()))
                if end > now and len(self.ends) <= MOST_REMEMBERED:
                    return
                del self.ends[oldest]


@dataclass(frozen=True, slots=True)
class LoginAttempt:
    """A user name that was looked up, and which hash has to be compared with the password.

    `fits` is true where a digest has answered already; otherwise Argon2 has to.
    """

    row: Row[Any] | None
    password: str = field(repr=False)
    fits: bool = False
    password_hash: str | None = field(default=None, repr=False)


def begin_login(database: Database, username: str, password: str) -> LoginAttempt:
    """Look a user name up, as it is on the wire; raises the storage's failure."""
    with database.read() as tx:
        row = _find(tx, username)
    if len(password) > LONGEST_PASSWORD or not password.isprintable():
        # No client has such a password, and not every hash takes such a text.
        return LoginAttempt(None, "")
    if row is None or row.digest is None:
        return LoginAttempt(row, password, password_hash=row.password_hash if row else None)
    known = row.pepper_version in database.vault.peppers
    matches = known and database.vault.matches(password, bytes(row.digest), row.pepper_version)
    return LoginAttempt(row, password, fits=matches)


def finish_login(
    database: Database, verified: VerifiedPasswords, attempt: LoginAttempt
) -> KnownClient | None:
    """Return the enabled client of an attempt whose password fits."""
    row, keys = attempt.row, database.vault
    if row is None:
        return None
    known = _known(row)
    if known is not None and row.digest is not None and row.pepper_version != keys.version:
        verified.note_rehash(row.id, keys.digest(attempt.password), row.pepper_version)
    return known


def find_login(
    database: Database, verified: VerifiedPasswords, username: str, password: str, address: str = ""
) -> KnownClient | None:
    """Return the enabled client whose user name, as on the wire, and password these are.

    Every refusal takes as long as a wrong password. The transaction ends before a password is
    hashed, so a client that is disabled in between is still found: whoever disables one looks for
    its sessions once more afterwards. Raises `Overloaded` and the storage's failure.
    """
    attempt = begin_login(database, username, password)
    if not attempt.fits:
        hashed = attempt.password_hash
        if not verified.check(hashed, attempt.password, address, Line.REQUEST).result():
            return None
    return finish_login(database, verified, attempt)


def find_client(tx: Transaction, username: str) -> KnownClient | None:
    """Return the enabled client with this user name as on the wire, whose login was judged."""
    row = _find(tx, username)
    return None if row is None else _known(row)


def _known(row: Row[Any]) -> KnownClient | None:
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

    Like the last use of a key, that stands neither in the audit nor in the change feed.
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
            "wanted": client.id,
            **bind_scope(TenantScope(client.org_id, client.environment)),
            "before": now - MINUTE_MS,
            "at": now,
        }
        # In one order, so that two processes on PostgreSQL never wait for each other.
        for client in sorted(due.values(), key=lambda client: client.id)
    ]
    with storage_errors(), database.writer.begin() as connection:
        connection.execute(_MARK, rows)


def _find(tx: Transaction, username: str) -> Row[Any] | None:
    parsed = parse_username(username)
    if parsed is None:
        return None
    parameters = {"wanted": parsed.name, **bind_scope(parsed.scope)}
    return tx.connection.execute(_CLIENT, parameters).one_or_none()
