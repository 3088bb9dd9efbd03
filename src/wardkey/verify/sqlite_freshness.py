"""Freshness on one machine: SQLite itself tells whether anything was committed."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from wardkey.db.engine import Database, connect_sqlite
from wardkey.verify import queries
from wardkey.verify.memory import Change, Memory
from wardkey.verify.wal_index import WalIndex


class SqliteFreshness:
    """Two raw connections to the database file that never write: one watches, one reads rows.

    An unchanged WAL-index says that nothing was committed. Where it changed, `PRAGMA data_version`
    decides: it moves with every commit of another connection (sqlite.org/pragma.html), as long as
    no cursor of the watching one is left open; so each is read to its end.
    """

    def __init__(self, database: Database) -> None:
        path = Path(database.url.database or "")
        self._watching = connect_sqlite(path, database.keys.master.database_key)
        self._reading = connect_sqlite(path, database.keys.master.database_key)
        self._reading_lock = threading.Lock()
        self._pragma = self._watching.cursor()
        self._version: Any = None
        self._index = _wal_index(self._watching, path)

    def is_fresh(self) -> bool:
        """Tell, without any lock, that nothing was committed since memory was brought up to date.

        The header is remembered after memory was corrected, so whoever finds it unchanged may read.
        """
        return self._index is not None and self._index.unchanged()

    def serves(self, memory: Memory) -> bool:
        """Bring `memory` up to the last commit; the caller holds its lock. Always true."""
        index, looked = self._index, b""
        if index is not None:
            if index.unchanged():
                return True
            # Before the changes are read, so that a commit in between shows as another header.
            looked = index.look()
        version = self._pragma.execute("PRAGMA data_version").fetchall()
        if version != self._version:
            self._catch_up(memory)
            self._version = version
        if index is not None:
            index.remember(looked)
        return True

    def check(self) -> None:
        """Go without the WAL-index if the file in the folder is no longer the mapped one."""
        if self._index is not None and not self._index.is_current():
            self._index = None

    def stale_ms(self) -> int:
        """Tell how old an answer from memory may be: never older than the last commit."""
        return 0

    def age_ms(self) -> int:
        """Tell how long ago memory was last brought up to date: by each verdict."""
        return 0

    def rows(self, statement: str, one: object = None) -> list[dict[str, Any]]:
        """Run one of `queries` on the newest commit; raises the driver's errors."""
        with self._reading_lock:
            return _rows(self._reading, statement, one)

    def close(self) -> None:
        """Close both connections."""
        self._watching.close()
        with self._reading_lock:
            self._reading.close()

    def _catch_up(self, memory: Memory) -> None:
        # The feed is read after data_version: a commit in between is seen now and told again.
        feed = _rows(self._watching, queries.FEED)[0]
        rows: list[dict[str, Any]] = []
        if feed["epoch"] == memory.epoch:
            rows = _rows(self._watching, queries.CHANGES, memory.revision)
        told = [self._change(row) for row in rows]
        # Read last, so that a clean-up between the reads is noticed.
        oldest = _rows(self._watching, queries.OLDEST)[0]["oldest"]
        memory.catch_up(feed["epoch"], feed["revision"], oldest, told)

    def _change(self, row: dict[str, Any]) -> Change:
        kids: tuple[str, ...] = ()
        if row["subject"] == "key":
            found = _rows(self._watching, queries.KIDS, row["subject_id"])
            kids = tuple(item["kid"] for item in found)
        return Change(row["subject"], row["subject_id"], row["org_id"], kids)


def _wal_index(connection: Any, path: Path) -> WalIndex | None:  # noqa: ANN401 - no types
    # The file exists once something was read, and only in WAL mode without an exclusive lock.
    connection.execute(queries.FEED).fetchall()
    modes = [
        connection.execute(f"PRAGMA {name}").fetchall()[0][0]
        for name in ("journal_mode", "locking_mode")
    ]
    try:
        return WalIndex(path) if modes == ["wal", "normal"] else None
    except OSError:
        return None


def _rows(connection: Any, statement: str, one: object = None) -> list[dict[str, Any]]:  # noqa: ANN401
    cursor = connection.execute(statement, {"one": one})
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
