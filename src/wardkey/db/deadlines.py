"""PostgreSQL connections with a deadline, for code that must not hang when the network fails."""

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
    """A connection that waits for the server until `deadline`, in `time.monotonic()` seconds.

    Close a connection that missed its deadline: it is in the middle of an exchange.
    """

    deadline: float = float("inf")

    def within(self, seconds: float) -> None:
        """Set the deadline `seconds` from now."""
        self.deadline = time.monotonic() + seconds

    def wait(
        self, gen: Generator[Any, Any, T], interval: float = 0.1, timeout: float | None = None
    ) -> T:
        """Run a psycopg generator to its end; raises `StorageUnreachable` past the deadline."""
        if timeout is not None:
            self.within(timeout)
        try:
            events = next(gen)
            with selectors.DefaultSelector() as selector:
                selector.register(self.pgconn.socket, events)
                while True:
                    remaining = self.deadline - time.monotonic()
                    if remaining <= 0:
                        raise StorageUnreachable
                    ready = selector.select(min(remaining, interval or remaining))
                    events = gen.send(ready[0][1] if ready else 0)
                    selector.modify(self.pgconn.socket, events)
        except StopIteration as stop:
            value: T = stop.value
            return value


def connect_bounded(url: URL, seconds: float) -> BoundedConnection:
    """Connect in autocommit mode within `seconds`, at least 2 s; raises psycopg's errors."""
    plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
    connection = BoundedConnection.connect(
        plain, autocommit=True, connect_timeout=max(2, int(seconds))
    )
    connection.within(seconds)
    return connection
