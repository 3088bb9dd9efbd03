"""A PostgreSQL connection whose every wait ends: for what must not hang when a network is cut."""

from __future__ import annotations

import selectors
import time
from collections.abc import Generator
from typing import Any, TypeVar

import psycopg
from sqlalchemy import URL

from wardkey.domain.errors import StorageUnreachable

T = TypeVar("T")


class BoundedConnection(psycopg.Connection[Any]):
    """Waits on the server until `deadline` (seconds of `time.monotonic()`) and no longer.

    A connection that ran into its deadline is in the middle of something: close it.
    """

    deadline: float = float("inf")

    def within(self, seconds: float) -> None:
        """Give what follows this long."""
        self.deadline = time.monotonic() + seconds

    def wait(
        self, gen: Generator[Any, Any, T], interval: float = 0.1, timeout: float | None = None
    ) -> T:
        """Run one of psycopg's generators to its end; raises `StorageUnreachable` when late."""
        if timeout is not None:
            self.within(timeout)
        try:
            wanted = next(gen)
            with selectors.DefaultSelector() as selector:
                selector.register(self.pgconn.socket, wanted)
                while True:
                    left = self.deadline - time.monotonic()
                    if left <= 0:
                        raise StorageUnreachable
                    found = selector.select(min(left, interval or left))
                    wanted = gen.send(found[0][1] if found else 0)
                    selector.modify(self.pgconn.socket, wanted)
        except StopIteration as done:
            value: T = done.value
            return value


def connect_bounded(url: URL, seconds: float) -> BoundedConnection:
    """Connect in autocommit within `seconds`, or 2 s if that is more; raises psycopg's errors."""
    plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
    connection = BoundedConnection.connect(
        plain, autocommit=True, connect_timeout=max(2, int(seconds))
    )
    connection.within(seconds)
    return connection
