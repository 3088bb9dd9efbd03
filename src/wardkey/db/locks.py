"""Deployment locks: shared by servers, exclusive for commands that need them stopped."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import text

from wardkey.db.engine import Database, storage_errors
from wardkey.domain.errors import AlreadyRunning, StorageReadOnly

_LOCK = 0x77617265


def check_folder(data_dir: Path) -> None:
    """Raise `StorageReadOnly`, naming the data folder, if it isn't writable."""
    if not os.access(data_dir, os.R_OK | os.W_OK | os.X_OK):
        raise StorageReadOnly(
            f"The data folder {data_dir} cannot be written by the user of this process; change its "
            "owner or permissions, or choose another folder with --data-dir."
        )


@contextmanager
def hold_folder(data_dir: Path, *, alone: bool) -> Iterator[None]:
    """Lock the data folder until the block ends.

    Raises `AlreadyRunning` if another process holds the lock, `StorageReadOnly` if the folder
    isn't writable. Lock before opening the database, because a rotation of the master key
    replaces its files.
    """
    check_folder(data_dir)
    with storage_errors():
        file = (data_dir / "lock").open("w")
    with file:
        try:
            fcntl.flock(file, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunning from None
        yield


@contextmanager
def hold_database(database: Database, *, alone: bool) -> Iterator[None]:
    """Lock a PostgreSQL database, whose servers have separate folders, with an advisory lock.

    Raises `AlreadyRunning`. The lock on the folder covers an SQLite file.
    """
    if database.kind == "sqlite":
        yield
        return
    with database.writer.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT")
        function = "pg_try_advisory_lock" if alone else "pg_try_advisory_lock_shared"
        result = connection.execute(text(f"SELECT {function}(:lock)"), {"lock": _LOCK})
        if not result.scalar_one():
            raise AlreadyRunning
        yield
