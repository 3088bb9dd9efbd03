"""Time-limited reads from the PostgreSQL primary, which never hang when the network fails."""

from __future__ import annotations

import queue
import threading
import time
from typing import Any

import psycopg
from psycopg.rows import dict_row

from wardkey.db.deadlines import BoundedConnection, connect_bounded
from wardkey.db.engine import Database
from wardkey.domain.errors import StorageUnreachable

READ_S = 0.25
_CONNECTIONS = 4
_CONNECT_S = 2.0
_LONGEST_PAUSE_S = 1.0


class Primary:
    """A few connections, which a thread of its own opens so no verdict waits for a connect.

    While the primary is unreachable, reads fail at once.
    """

    def __init__(self, database: Database) -> None:
        self._url = database.url
        self._free: queue.SimpleQueue[BoundedConnection] = queue.SimpleQueue()
        self._missing = threading.Semaphore(_CONNECTIONS)
        self._reachable = threading.Event()
        self._reachable.set()
        self._stopped = threading.Event()
        self._thread = threading.Thread(
            target=self._open_connections, name="wardkey-primary", daemon=True
        )
        self._thread.start()

    def fetch_rows(self, statement: str, value: object = None) -> list[dict[str, Any]]:
        """Run one of `queries` within 250 ms; raises `StorageUnreachable`.

        A connection that fails is dropped and the next one is tried: after an outage of the
        primary, every older connection is dead.
        """
        end = time.monotonic() + READ_S
        if not self._reachable.is_set():
            raise StorageUnreachable
        while True:
            try:
                connection = self._free.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                raise StorageUnreachable from None
            connection.deadline = end
            try:
                with connection.cursor(row_factory=dict_row) as cursor:
                    cursor.execute(statement.replace(":value", "%(value)s"), {"value": value})
                    rows: list[dict[str, Any]] = cursor.fetchall()
            except (psycopg.Error, StorageUnreachable) as error:
                connection.pgconn.finish()
                self._missing.release()
                if isinstance(error, psycopg.errors.QueryCanceled) or time.monotonic() >= end:
                    raise StorageUnreachable from error
                if not isinstance(error, psycopg.OperationalError):
                    raise
            else:
                self._free.put(connection)
                return rows

    def close(self) -> None:
        """Stop opening connections and close the free ones."""
        self._stopped.set()
        self._missing.release()
        # Wait for the thread, or a connection that it is opening would stay open.
        self._thread.join(2 * _CONNECT_S)
        while not self._free.empty():
            self._free.get().close()

    def _open_connections(self) -> None:
        pause = 0.05
        while not self._stopped.is_set():
            self._missing.acquire()
            if self._stopped.is_set():
                return
            try:
                connection = connect_bounded(self._url, _CONNECT_S)
                connection.execute("SET statement_timeout = 250")
            except (psycopg.Error, OSError, StorageUnreachable):
                if self._free.empty():
                    self._reachable.clear()
                self._missing.release()
                self._stopped.wait(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_S)
            else:
                pause = 0.05
                self._free.put(connection)
                self._reachable.set()
