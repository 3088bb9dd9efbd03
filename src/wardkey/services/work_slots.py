"""Limits on how much costly work runs at once, in this process and for one organization."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from wardkey.domain.errors import Overloaded

_RETRY_S = 5.0


class WorkSlots:
    """At most `most` slots in this process, and `most_each` of them for one organization."""

    def __init__(self, most: int, most_each: int) -> None:
        self._most, self._most_each = most, most_each
        self._taken: Counter[str] = Counter()
        self._lock = threading.Lock()

    def take(self, org_id: str) -> None:
        """Take a slot, which `give_back` frees; raises `Overloaded` if none is free."""
        with self._lock:
            if self._taken.total() >= self._most or self._taken[org_id] >= self._most_each:
                raise Overloaded(retry_after_s=_RETRY_S)
            self._taken[org_id] += 1

    def give_back(self, org_id: str) -> None:
        """Free a slot that was taken."""
        with self._lock:
            self._taken[org_id] -= 1
            if not self._taken[org_id]:
                del self._taken[org_id]

    @contextmanager
    def reserve(self, org_id: str) -> Iterator[None]:
        """Hold a slot during the block; raises `Overloaded` if none is free."""
        self.take(org_id)
        try:
            yield
        finally:
            self.give_back(org_id)
