"""Freshness on one machine: SQLite itself tells whether anything was committed."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from wardkey.db.engine import Database, connect_sqlite
from wardkey.verify import queries
from wardkey.verify.memory import Change, Memory


class Embedded:
    """Two raw connections to the database file that never write: one watches, one reads rows.

    `PRAGMA data_version` changes with every commit of another connection (sqlite.org/pragma.html),
    as long as no cursor of the watching one is left open; so each is read to its end.
    """

    def __init__(self, database: Database) -> None:
        path = Path(database.url.database or "")
        self._watching = connect_sqlite(path, database.keys.master.database_key)
        self._reading = connect_sqlite(path, database.keys.master.database_key)
        self._reading_lock = threading.Lock()
        self._pragma = self._watching.cursor()
        self._version: Any = None

    def serves(self, memory: Memory) -> bool:
        """Bring `memory` up to the last commit; the caller holds its lock. Always true."""
        version = self._pragma.execute("PRAGMA data_version").fetchall()
        if version != self._version:
            self._catch_up(memory)
            self._version = version
        return True

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
        told = [
            self._change(row)
            for row in _rows(self._watching, queries.CHANGES, memory.revision)
            if feed["epoch"] == memory.epoch
        ]
        # Read last, so that a clean-up between the reads is noticed.
        oldest = _rows(self._watching, queries.OLDEST)[0]["oldest"]
        memory.catch_up(feed["epoch"], feed["revision"], oldest, told)

    def _change(self, row: dict[str, Any]) -> Change:
        kids: tuple[str, ...] = ()
        if row["subject"] == "key":
            found = _rows(self._watching, queries.KIDS, row["subject_id"])
            kids = tuple(item["kid"] for item in found)
        return Change(row["subject"], row["subject_id"], row["org_id"], kids)


def _rows(connection: Any, statement: str, one: object = None) -> list[dict[str, Any]]:  # noqa: ANN401
    cursor = connection.execute(statement, {"one": one})
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
