"""Freshness on one machine: SQLite itself shows whether anything was committed."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from wardkey.db.engine import Database, connect_sqlite
from wardkey.verify import queries
from wardkey.verify.memory import Change, Memory
from wardkey.verify.wal_index import WalIndex


class SqliteFreshness:
    """Detects commits with two raw read-only connections: one watches, one reads rows.

    An unchanged WAL-index means that nothing was committed. If it changed, `PRAGMA data_version`
    decides: it changes with each commit of another connection (sqlite.org/pragma.html), unless a
    cursor of the watching connection is open, so every cursor is read to its end.
    """

    def __init__(self, database: Database) -> None:
        path = Path(database.url.database or "")
        self._watching = connect_sqlite(path, database.vault.master.database_key)
        self._reading = connect_sqlite(path, database.vault.master.database_key)
        self._reading_lock = threading.Lock()
        self._pragma = self._watching.cursor()
        self._version: Any = None
        self._index = _open_wal_index(self._watching, path)

    def is_fresh(self) -> bool:
        """Return, without any lock, whether nothing was committed since memory was updated.

        The header is stored only after the update, so an unchanged one means current memory.
        """
        return self._index is not None and self._index.is_unchanged()

    def refresh(self, memory: Memory) -> bool:
        """Bring `memory` up to the last commit; the caller holds its lock. Always true."""
        index, header = self._index, b""
        if index is not None:
            if index.is_unchanged():
                return True
            # Read before the changes, so a commit in between shows as a different header.
            header = index.read_header()
        version = self._pragma.execute("PRAGMA data_version").fetchall()
        if version != self._version:
            self._catch_up(memory)
            self._version = version
        if index is not None:
            index.remember(header)
        return True

    def check(self) -> None:
        """Stop using the WAL-index if the mapped file was replaced or deleted."""
        if self._index is not None and not self._index.is_current():
            self._index = None

    def stale_ms(self) -> int:
        """Return 0: an answer from memory always includes the last commit."""
        return 0

    def age_ms(self) -> int:
        """Return 0: each verdict brings memory up to date."""
        return 0

    def fetch_rows(self, statement: str, value: object = None) -> list[dict[str, Any]]:
        """Run one of `queries` on the newest commit; raises the driver's errors."""
        with self._reading_lock:
            return _fetch_rows(self._reading, statement, value)

    def close(self) -> None:
        """Close both connections."""
        self._watching.close()
        with self._reading_lock:
            self._reading.close()

    def _catch_up(self, memory: Memory) -> None:
        # Read after data_version, so a commit in between is applied now and once more next time.
        feed = _fetch_rows(self._watching, queries.FEED)[0]
        rows: list[dict[str, Any]] = []
        if feed["epoch"] == memory.epoch:
            rows = _fetch_rows(self._watching, queries.CHANGES, memory.revision)
        changes = [self._change(row) for row in rows]
        # Read last, so a cleanup between the reads is detected.
        oldest = _fetch_rows(self._watching, queries.OLDEST)[0]["oldest"]
        memory.catch_up(feed["epoch"], feed["revision"], oldest, changes)

    def _change(self, row: dict[str, Any]) -> Change:
        kids: tuple[str, ...] = ()
        if row["subject"] == "key":
            secrets = _fetch_rows(self._watching, queries.KIDS, row["subject_id"])
            kids = tuple(secret["kid"] for secret in secrets)
        return Change(row["subject"], row["subject_id"], row["org_id"], kids)


def _open_wal_index(connection: Any, path: Path) -> WalIndex | None:  # noqa: ANN401 - no types
    # SQLite creates the file at the first read, in WAL mode without exclusive locking only.
    connection.execute(queries.FEED).fetchall()
    modes = [
        connection.execute(f"PRAGMA {name}").fetchall()[0][0]
        for name in ("journal_mode", "locking_mode")
    ]
    try:
        return WalIndex(path) if modes == ["wal", "normal"] else None
    except OSError:
        return None


def _fetch_rows(connection: Any, statement: str, value: object = None) -> list[dict[str, Any]]:  # noqa: ANN401
    cursor = connection.execute(statement, {"value": value})
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
