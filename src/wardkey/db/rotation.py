"""Re-encrypts SQLite files under a new master key, as full copies that replace the old ones."""

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
    """Replace the database file by a copy under `following`, after `change` ran on the copy.

    The caller holds the deployment lock exclusively. Renaming the copy is the commit: a kill
    before it leaves the old file, a kill after it the new one. The usage file is replaced next;
    it contains only counters, so if it can't be copied, the next start creates a new one.
    Raises `StorageBusy` if something else has the file open, `StorageFull`.
    """
    # Closing the last connection merges the WAL into the file.
    database.close()
    path = Path(database.url.database or "")
    _require_no_wal(path)
    copy = _copy(path, database.master, following)
    rekeyed = open_database(f"sqlite:///{copy}", following, database.brand)
    rekeyed.vault, rekeyed.clock = database.vault, database.clock
    try:
        change(rekeyed)
    finally:
        rekeyed.close()
    _require_no_wal(copy)
    usage = path.with_name("usage.db")
    try:
        usage_copy = _copy(usage, database.master, following)
    except (WrongMasterKey, DatabaseDamaged):
        usage_copy = None
    put_in_place(copy, path)
    if usage_copy is not None:
        put_in_place(usage_copy, usage)


def _require_no_wal(path: Path) -> None:
    if path.with_name(path.name + "-wal").exists():
        raise StorageBusy(f"Something else has {path} open; stop it first.")


def _copy(path: Path, master: MasterKey, following: MasterKey) -> Path:
    """Export a file to `<name>.next`, replacing one that an interrupted rotation left behind."""
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
