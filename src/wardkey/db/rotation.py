"""Bringing SQLite's files under a new master key: whole copies that take the old ones' place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from wardkey.db.atomic_files import make_private, put_in_place
from wardkey.db.engine import Database, connect_sqlite, open_database, storage_errors
from wardkey.db.vault import MasterKey
from wardkey.domain.errors import DatabaseDamaged, StorageBusy, WrongMasterKey


def rekey_files(
    database: Database, following: MasterKey, change: Callable[[Database], None]
) -> None:
    """Replace the database's file by a copy under `following` to which `change` was applied.

    The caller holds the deployment alone. The rename of the copy is the commit: a kill before it
    leaves the old file, one after it the new. The usage file follows; it holds counters only, so
    where it cannot be copied it is made anew at the next start. Raises `StorageBusy` where
    something else has the file open, `StorageFull`.
    """
    # The last connection folds the WAL into the file, which then is all there is.
    database.close()
    path = Path(database.url.database or "")
    _check_folded(path)
    copy = _copy(path, database.master, following)
    opened = open_database(f"sqlite:///{copy}", following, database.brand)
    opened.vault, opened.clock = database.vault, database.clock
    try:
        change(opened)
    finally:
        opened.close()
    _check_folded(copy)
    usage = path.with_name("usage.db")
    try:
        usage_copy = _copy(usage, database.master, following)
    except (WrongMasterKey, DatabaseDamaged):
        usage_copy = None
    put_in_place(copy, path)
    if usage_copy is not None:
        put_in_place(usage_copy, usage)


def _check_folded(path: Path) -> None:
    if path.with_name(path.name + "-wal").exists():
        raise StorageBusy(f"Something else has {path} open; stop it first.")


def _copy(path: Path, master: MasterKey, following: MasterKey) -> Path:
    """Export a file into `.next` beside it, left there by a rotation that was cut off or not."""
    copy = path.with_name(path.name + ".next")
    for suffix in ("", "-wal", "-shm", "-journal"):
        copy.with_name(copy.name + suffix).unlink(missing_ok=True)
    make_private(copy)
    with storage_errors():
        connection = connect_sqlite(path, master.database_key)
        try:
            key = f"x'{following.database_key.hex()}'"
            connection.execute("ATTACH DATABASE ? AS following KEY ?", (str(copy), key))
            connection.execute("SELECT sqlcipher_export('following')").fetchall()
            connection.execute("DETACH DATABASE following")
        finally:
            connection.close()
    return copy
