"""Reads of PostgreSQL's primary that end in time, whatever becomes of the network."""

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
    """A few connections that a thread of its own opens, so that no verdict waits for one to open.

    While none can be had, reads fail at once.
    """

    def __init__(self, database: Database) -> None:
        self._url = database.url
        self._free: queue.SimpleQueue[BoundedConnection] = queue.SimpleQueue()
        self._missing = threading.Semaphore(_CONNECTIONS)
        self._reachable = threading.Event()
        self._reachable.set()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._open, name="wardkey-primary", daemon=True)
        self._thread.start()

    def rows(self, statement: str, one: object = None) -> list[dict[str, Any]]:
        """Run one of `queries` within 250 ms; raises `StorageUnreachable`.

        When the primary was away, every older connection is dead: the next one is tried then.
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
                    found = cursor.execute(statement.replace(":one", "%(one)s"), {"one": one})
                    rows: list[dict[str, Any]] = found.fetchall()
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
        """Stop opening connections and close those that are free."""
        self._stopped.set()
        self._missing.release()
        # A connection that is just being opened would be left open.
        self._thread.join(2 * _CONNECT_S)
        while not self._free.empty():
            self._free.get().close()

    def _open(self) -> None:
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
