"""Who uses a deployment: servers share it, and what needs them stopped takes it alone."""

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
    """Raise `StorageReadOnly`, with its name, for a data folder that cannot be written."""
    if not os.access(data_dir, os.R_OK | os.W_OK | os.X_OK):
        raise StorageReadOnly(
            f"The data folder {data_dir} cannot be written by the user of this process; change its "
            "owner or its permissions, or name another with --data-dir."
        )


@contextmanager
def hold_folder(data_dir: Path, *, alone: bool) -> Iterator[None]:
    """Hold the data folder until the block ends.

    Raises `AlreadyRunning` if it cannot be had, `StorageReadOnly` if it cannot be written. It is
    held before the database is opened, since a rotation of the master key puts other files in
    the place of those that one would have opened.
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
    """Hold a PostgreSQL, whose other servers have folders elsewhere, by an advisory lock.

    Raises `AlreadyRunning`. An SQLite file is held with its folder.
    """
    if database.kind == "sqlite":
        yield
        return
    with database.writer.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT")
        which = "pg_try_advisory_lock" if alone else "pg_try_advisory_lock_shared"
        took = connection.execute(text(f"SELECT {which}(:lock)"), {"lock": _LOCK})
        if not took.scalar_one():
            raise AlreadyRunning
        yield
