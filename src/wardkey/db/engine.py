"""Connections and transactions on SQLite (SQLCipher) and PostgreSQL."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import sqlcipher3.dbapi2 as sqlcipher
from sqlalchemy import URL, Connection, Engine, create_engine, event, exc, make_url, text, update
from sqlalchemy.pool import QueuePool

from wardkey.db.schema import feed
from wardkey.db.vault import MasterKey, Vault
from wardkey.domain.errors import (
    DatabaseDamaged,
    StorageBusy,
    StorageFull,
    StorageReadOnly,
    StorageUnreachable,
    WardkeyError,
    WrongMasterKey,
)
from wardkey.domain.tenants import TenantScope

Kind = Literal["sqlite", "postgresql"]
BUSY_MS = 5_000
_PAGE_CACHE_KIB = 65_536
_TAKE_REVISION = (
    update(feed).values(revision=feed.c.revision + 1).returning(feed.c.epoch, feed.c.revision)
)
CHANNEL = "wardkey"
# A verifier that misses the notification sees the change at its next lease renewal.
_NOTIFY = text(f"NOTIFY {CHANNEL}")
# Serializes writers of the usage schema on PostgreSQL; on SQLite BEGIN IMMEDIATE does.
_LOCK_USAGE = text("SELECT pg_advisory_xact_lock(:lock)")
# The two advisory lock ids below this one belong to migrations and deployment locks.
_USAGE_LOCK = 0x77617266


def wall_clock() -> int:
    """Return the time of day in epoch milliseconds."""
    return time.time_ns() // 1_000_000


@dataclass(slots=True)
class Transaction:
    """A connection in a transaction, with the time and revision shared by all its statements.

    `revision` is 0 in a read transaction.
    """

    connection: Connection
    vault: Vault
    now: int
    brand: str = ""
    epoch: str = ""
    revision: int = 0
    position: int = 0
    # Subjects whose live sessions this change may end: client ids, or `*` for the whole scope.
    affected_subjects: set[str] = field(default_factory=set)
    # Other scopes, besides the caller's own, whose live sessions this change may end.
    affected_scopes: set[TenantScope] = field(default_factory=set)


@dataclass(slots=True)
class Database:
    """One deployment's storage.

    On SQLite, readers have the usage file attached as schema `usage`. Writers do not, because
    BEGIN IMMEDIATE would lock that file too and block the counters.
    """

    url: URL
    master: MasterKey
    reader: Engine
    writer: Engine
    usage: Engine
    brand: str = ""
    clock: Callable[[], int] = field(default=wall_clock)
    _vault: Vault | None = field(default=None, init=False)

    @property
    def kind(self) -> Kind:
        """The storage in use, SQLite or PostgreSQL."""
        return "sqlite" if self.url.get_backend_name() == "sqlite" else "postgresql"

    @property
    def vault(self) -> Vault:
        """The vault that `open_vault` set; raises `WrongMasterKey` before that."""
        if self._vault is None:
            raise WrongMasterKey
        return self._vault

    @vault.setter
    def vault(self, vault: Vault) -> None:
        self._vault = vault

    @contextmanager
    def read(self) -> Iterator[Transaction]:
        """Open a read transaction on one snapshot."""
        with storage_errors(), self.reader.begin() as connection:
            yield Transaction(connection, self.vault, self.clock(), self.brand)

    @contextmanager
    def write(self) -> Iterator[Transaction]:
        """Open a write transaction; its first statement takes the next revision.

        The single row of `feed` serializes all writers, so revisions have no gaps and follow
        commit order. A transaction that recorded no audit event and no change-feed row is
        rolled back.
        """
        with (
            storage_errors(),
            self.writer.connect() as connection,
            connection.begin() as transaction,
        ):
            counter = connection.execute(_TAKE_REVISION).one()
            tx = Transaction(
                connection, self.vault, self.clock(), self.brand, counter.epoch, counter.revision
            )
            yield tx
            if not tx.position:
                transaction.rollback()
            elif self.kind == "postgresql":
                connection.execute(_NOTIFY)

    @contextmanager
    def counting(self) -> Iterator[Connection]:
        """Open a transaction that writes usage; only one runs at a time across all processes.

        What it reads can't change before it writes, and two of them can't deadlock.
        """
        with storage_errors(), self.usage.begin() as connection:
            if self.kind == "postgresql":
                connection.execute(_LOCK_USAGE, {"lock": _USAGE_LOCK})
            yield connection

    def close(self) -> None:
        """Close all connections; SQLite's last one merges the WAL into the database file."""
        for engine in (self.reader, self.usage, self.writer):
            engine.dispose()


def open_database(url: str, master: MasterKey, brand: str = "") -> Database:
    """Return the database at `sqlite:///path` or `postgresql://…`, without connecting yet."""
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        parsed = parsed.set(drivername="postgresql+psycopg")
        engine = _postgresql(parsed)
        return Database(parsed, master, engine, engine, engine, brand)
    path = Path(parsed.database or "")
    key = master.database_key
    usage = path.with_name("usage.db")
    return Database(
        parsed,
        master,
        _sqlite(path, key, size=8, begin="BEGIN", attach=usage),
        _sqlite(path, key, size=1, begin="BEGIN IMMEDIATE"),
        _sqlite(path, key, size=2, begin="BEGIN IMMEDIATE", usage_only=usage),
        brand,
    )


def connect_sqlite(path: Path, key: bytes) -> Any:  # noqa: ANN401 - sqlcipher3 has no types
    """Return a raw autocommit connection with every pragma set; raises `WrongMasterKey`.

    SQLCipher takes a raw 256-bit key in this form without stretching it
    (zetetic.net/sqlcipher/sqlcipher-api, "PRAGMA key").
    """
    try:
        connection = sqlcipher.connect(str(path), isolation_level=None, check_same_thread=False)
    except sqlcipher.OperationalError as error:
        raise StorageReadOnly(
            f"The database {path} cannot be opened ({error}); check that its folder exists and "
            "may be written."
        ) from error
    # Errors are raised; by default the library would also write them to stderr.
    connection.execute("PRAGMA cipher_log_level = NONE")
    connection.execute(f"PRAGMA key = \"x'{key.hex()}'\"")
    connection.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
    connection.execute(f"PRAGMA cache_size = -{_PAGE_CACHE_KIB}")
    try:
        connection.execute("PRAGMA journal_mode = WAL").fetchone()
    except sqlcipher.DatabaseError as error:
        connection.close()
        if "not a database" in str(error):
            raise WrongMasterKey from None
        raise
    connection.execute("PRAGMA synchronous = FULL")
    # 16 MiB of WAL between checkpoints, so hot pages are copied once instead of many times.
    connection.execute("PRAGMA wal_autocheckpoint = 4000")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA temp_store = MEMORY")
    return connection


def _sqlite(
    path: Path,
    key: bytes,
    *,
    size: int,
    begin: str,
    attach: Path | None = None,
    usage_only: Path | None = None,
) -> Engine:
    def connect() -> Any:  # noqa: ANN401 - sqlcipher3 has no types
        if usage_only is not None:
            # The schema must be named `usage` here too, so the main database is an empty one.
            connection = sqlcipher.connect(
                ":memory:", isolation_level=None, check_same_thread=False
            )
            connection.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
            _attach(connection, usage_only, key)
            return connection
        connection = connect_sqlite(path, key)
        if attach is not None:
            _attach(connection, attach, key)
        return connection

    engine = create_engine(
        "sqlite://",
        module=sqlcipher,
        creator=connect,
        poolclass=QueuePool,
        pool_size=size,
        max_overflow=0,
        pool_timeout=BUSY_MS / 1000,
    )

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine


def _attach(connection: Any, path: Path, key: bytes) -> None:  # noqa: ANN401 - no types
    connection.execute("ATTACH DATABASE ? AS usage KEY ?", (str(path), f"x'{key.hex()}'"))
    connection.execute("PRAGMA usage.journal_mode = WAL").fetchone()
    # A power cut can lose the last second of counters, but not corrupt them.
    connection.execute("PRAGMA usage.synchronous = NORMAL")


def _postgresql(url: URL) -> Engine:
    return create_engine(
        url,
        pool_size=8,
        max_overflow=8,
        pool_timeout=BUSY_MS / 1000,
        pool_pre_ping=True,
        connect_args={
            "connect_timeout": 5,
            "options": f"-c lock_timeout={BUSY_MS} -c idle_in_transaction_session_timeout=60000",
        },
    )


@contextmanager
def storage_errors() -> Iterator[None]:
    """Translate a driver's errors into the matching storage errors."""
    try:
        yield
    except exc.IntegrityError:
        raise
    except exc.TimeoutError:
        raise StorageBusy from None
    except exc.DBAPIError as error:
        raise storage_failure(error) or error from error
    except sqlcipher.DatabaseError as error:
        raise storage_failure(error) or error from error
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise StorageFull from error
        if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
            raise _read_only(error.filename) from error
        raise


def _read_only(name: object) -> StorageReadOnly:
    """Return the error for a path that cannot be written."""
    if not isinstance(name, str):
        return StorageReadOnly()
    return StorageReadOnly(
        f"{name} cannot be written; give this user rights to the folder "
        f"{Path(name).parent}, or name another with --data-dir."
    )


_ERRORS_BY_TEXT: tuple[tuple[str, type[WardkeyError]], ...] = (
    ("database or disk is full", StorageFull),
    ("disk i/o error", StorageFull),
    ("no space left on device", StorageFull),
    ("diskfull", StorageFull),
    ("readonly database", StorageReadOnly),
    ("read-only", StorageReadOnly),
    ("unable to open database file", StorageReadOnly),
    ("database is locked", StorageBusy),
    ("locknotavailable", StorageBusy),
    ("deadlock", StorageBusy),
    ("not a database", WrongMasterKey),
    ("malformed", DatabaseDamaged),
)


def storage_failure(error: BaseException) -> WardkeyError | None:
    """Return the storage error that a driver's error means, or None if it is our own bug."""
    original = getattr(error, "orig", None) or error
    text = f"{type(original).__name__}: {original}".lower()
    for fragment, failure in _ERRORS_BY_TEXT:
        if fragment in text:
            return failure()
    lost = isinstance(error, exc.DBAPIError) and error.connection_invalidated
    if lost or "operationalerror: connection" in text or "could not connect" in text:
        return StorageUnreachable()
    stopped = ("adminshutdown", "server closed the connection", "cannotconnectnow", "crashshutdown")
    return StorageUnreachable() if any(fragment in text for fragment in stopped) else None
