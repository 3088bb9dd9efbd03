"""Who uses a deployment: servers share it, and what needs them stopped takes it alone."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from sqlalchemy import text

from wardkey.db.engine import Database
from wardkey.domain.errors import AlreadyRunning

_LOCK = 0x77617265


@contextmanager
def occupy(data_dir: Path, database: Database, *, alone: bool) -> Iterator[None]:
    """Hold the deployment until the block ends; raises `AlreadyRunning` if it cannot be had.

    The folder is held by a lock on a file of its own, a PostgreSQL also by an advisory lock,
    because its other servers have folders elsewhere.
    """
    with ExitStack() as held:
        file = held.enter_context((data_dir / "lock").open("w"))
        try:
            fcntl.flock(file, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunning from None
        if database.kind == "postgresql":
            connection = held.enter_context(database.writer.connect())
            connection.execution_options(isolation_level="AUTOCOMMIT")
            which = "pg_try_advisory_lock" if alone else "pg_try_advisory_lock_shared"
            took = connection.execute(text(f"SELECT {which}(:lock)"), {"lock": _LOCK})
            if not took.scalar_one():
                raise AlreadyRunning
        yield
