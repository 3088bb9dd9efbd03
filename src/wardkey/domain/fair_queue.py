"""A bounded queue that serves its users round-robin, so one of them can't starve the others."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """At most `most` items, each from a user; `take` serves the users round-robin."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._size = 0
        # By user, in the order in which they are served.
        self._queues: dict[str, deque[T]] = {}

    def __len__(self) -> int:
        """Return the number of waiting items."""
        return self._size

    def put(self, user: str, item: T) -> T | None:
        """Add an item; return the item that a full queue drops for it, possibly the new one.

        That is the newest item of the user with the most items, or the new item on a tie.
        """
        dropped = None
        if self._size >= self._most:
            own_count = len(self._queues.get(user, ())) + 1
            longest = max(self._queues.values(), key=len, default=deque[T]())
            if len(longest) <= own_count:
                return item
            dropped = longest.pop()
            self._size -= 1
        self._queues.setdefault(user, deque()).append(item)
        self._size += 1
        return dropped

    def take(self) -> T | None:
        """Remove and return the oldest item of the next user; None if empty."""
        if not self._size:
            return None
        user = next(iter(self._queues))
        queue = self._queues.pop(user)
        item = queue.popleft()
        self._size -= 1
        if queue:
            self._queues[user] = queue
        return item
