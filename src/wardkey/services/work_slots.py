"""Limits how much costly work runs at once, in this process and for each organization."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from wardkey.domain.errors import Overloaded

_RETRY_S = 5.0


class WorkSlots:
    """At most `total` slots in this process, and `per_organization` of them for one."""

    def __init__(self, total: int, per_organization: int) -> None:
        self._total, self._per_organization = total, per_organization
        self._taken: Counter[str] = Counter()
        self._lock = threading.Lock()

    def take(self, org_id: str) -> None:
        """Take a slot, which `give_back` frees; raises `Overloaded` if none is free."""
        with self._lock:
            if self._taken.total() >= self._total or self._taken[org_id] >= self._per_organization:
                raise Overloaded(retry_after_s=_RETRY_S)
            self._taken[org_id] += 1

    def give_back(self, org_id: str) -> None:
        """Free a slot."""
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
