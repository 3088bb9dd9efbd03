"""A bounded queue that serves its users in turn, however much one of them puts in."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """At most `most` items, each of a user; `take` serves the users round-robin."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._size = 0
        # By user, the next one to be served first.
        self._lines: dict[str, deque[T]] = {}

    def __len__(self) -> int:
        """Return how many items wait."""
        return self._size

    def put(self, user: str, item: T) -> T | None:
        """Add an item; return the item that a full queue drops for it, possibly the new one.

        That is the newest item of the user who would have the most; of equals, the new item.
        """
        dropped = None
        if self._size >= self._most:
            own = len(self._lines.get(user, ())) + 1
            longest = max(self._lines.values(), key=len, default=deque[T]())
            if len(longest) <= own:
                return item
            dropped = longest.pop()
            self._size -= 1
        self._lines.setdefault(user, deque()).append(item)
        self._size += 1
        return dropped

    def take(self) -> T | None:
        """Remove and return the oldest item of the user whose turn it is; None if empty."""
        if not self._size:
            return None
        user = next(iter(self._lines))
        line = self._lines.pop(user)
        item = line.popleft()
        self._size -= 1
        if line:
            self._lines[user] = line
        return item
