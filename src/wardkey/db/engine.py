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
# Verifiers that miss it find the change when they renew their leases.
_NOTIFY = text(f"NOTIFY {CHANNEL}")
# On SQLite BEGIN IMMEDIATE puts the usage file's writers in line, on PostgreSQL this lock does.
_TAKE_TURN = text("SELECT pg_advisory_xact_lock(:lock)")
# Numbers before it stand for migrations and for who uses the deployment.
_USAGE_LOCK = 0x77617266


def wall_clock() -> int:
    """Return the time of day in epoch milliseconds."""
    return time.time_ns() // 1_000_000


@dataclass(slots=True)
class Transaction:
    """A connection in a transaction, with the one time and the revision that all of it shares.

    `revision` is 0 in a transaction that only reads.
    """

    connection: Connection
    vault: Vault
    now: int
    brand: str = ""
    epoch: str = ""
    revision: int = 0
    position: int = 0
    # Whose live sessions the change may end: ids of clients, or `*` for all of the room.
    affected_subjects: set[str] = field(default_factory=set)
    # Organizations' environments, beside the caller's own, whose live sessions it may end.
    affected_scopes: set[TenantScope] = field(default_factory=set)


@dataclass(slots=True)
class Database:
    """One deployment's storage.

    Readers on SQLite see the usage file attached as schema `usage`; writers do not, because
    BEGIN IMMEDIATE would lock that file too and hold up the counters.
    """

    url: URL
    master: MasterKey
    reader: Engine
    writer: Engine
    usage: Engine
    brand: str = ""
    vault: Vault | None = None
    clock: Callable[[], int] = field(default=wall_clock)

    @property
    def kind(self) -> Kind:
        """Which of the two storages this is."""
        return "sqlite" if self.url.get_backend_name() == "sqlite" else "postgresql"

    @property
    def keys(self) -> Vault:
        """The vault, once `load_vault` has fitted the master key to the database."""
        if self.vault is None:
            raise WrongMasterKey
        return self.vault

    @contextmanager
    def read(self) -> Iterator[Transaction]:
        """Open a transaction that only reads, on one snapshot."""
        with storage_errors(), self.reader.begin() as connection:
            yield Transaction(connection, self.keys, self.clock(), self.brand)

    @contextmanager
    def write(self) -> Iterator[Transaction]:
        """Open a transaction that changes things; its first statement takes the revision.

        The one row of `feed` puts all writers in line, so revisions are gapless and in the
        order of their commits. A transaction that recorded nothing is rolled back: without its
        audit event and its change-feed row nothing changes.
        """
        with (
            storage_errors(),
            self.writer.connect() as connection,
            connection.begin() as transaction,
        ):
            took = connection.execute(_TAKE_REVISION).one()
            tx = Transaction(
                connection, self.keys, self.clock(), self.brand, took.epoch, took.revision
            )
            yield tx
            if not tx.position:
                transaction.rollback()
            elif self.kind == "postgresql":
                connection.execute(_NOTIFY)

    @contextmanager
    def counting(self) -> Iterator[Connection]:
        """Open a transaction that changes usage; of all processes one at a time.

        So what was read stays true until it is written, and none can deadlock with another.
        """
        with storage_errors(), self.usage.begin() as connection:
            if self.kind == "postgresql":
                connection.execute(_TAKE_TURN, {"lock": _USAGE_LOCK})
            yield connection

    def close(self) -> None:
        """Close all connections; SQLite's last one folds the WAL into the file."""
        for engine in (self.reader, self.usage, self.writer):
            engine.dispose()


def open_database(url: str, master: MasterKey, brand: str = "") -> Database:
    """Return the engines for `sqlite:///path` or `postgresql://…`; connects to nothing yet."""
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
    # What is wrong is told as a failure; the library would write to stderr as well.
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
    # 16 MiB of WAL between checkpoints: hot pages are copied once instead of many times.
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
            # The schema's name must be `usage` here too, so the main database is an empty one.
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
    # A power cut may cost the last second of counters, never their consistency.
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
    """Turn what a driver or the system says of the storage into the failure that it stands for."""
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
    """Name the file or folder at which it failed, and the folder above it."""
    if not isinstance(name, str):
        return StorageReadOnly()
    return StorageReadOnly(
        f"{name} cannot be written; give this user rights to the folder "
        f"{Path(name).parent}, or name another with --data-dir."
    )


_SIGNS: tuple[tuple[str, type[WardkeyError]], ...] = (
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


def storage_failure(fault: BaseException) -> WardkeyError | None:
    """Return the failure that a driver's error stands for, or None for a fault of our own."""
    original = getattr(fault, "orig", None) or fault
    text = f"{type(original).__name__}: {original}".lower()
    for sign, failure in _SIGNS:
        if sign in text:
            return failure()
    lost = isinstance(fault, exc.DBAPIError) and fault.connection_invalidated
    if lost or "operationalerror: connection" in text or "could not connect" in text:
        return StorageUnreachable()
    shut = ("adminshutdown", "server closed the connection", "cannotconnectnow", "crashshutdown")
    return StorageUnreachable() if any(sign in text for sign in shut) else None
