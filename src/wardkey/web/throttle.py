"""Slowing down guesses: failed sign-ins per address and per name, in this process."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from wardkey.domain.errors import TooManyAttempts
from wardkey.domain.rate import RateLimit, admit

# Ten failures at once, then one in 30 s, for each address and for each name.
_LIMIT = RateLimit(limit=2, period_ms=60_000, burst=10)
_MOST = 50_000


@dataclass(slots=True)
class Throttle:
    """Counts failures by name; who has too many waits, whether right or wrong this time."""

    limit: RateLimit = _LIMIT
    tats: dict[str, float] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def check(self, now: int, *names: str) -> None:
        """Raise `TooManyAttempts` with the wait, if one of `names` failed too often."""
        with self.lock:
            for name in names:
                asked = admit(self.limit, self.tats.get(name, 0.0), now, 1)
                if not asked.admitted:
                    raise TooManyAttempts(retry_after_s=(asked.retry_after_ms or 0) / 1000)

    def failed(self, now: int, *names: str) -> None:
        """Count a failure against each of `names`."""
        with self.lock:
            if len(self.tats) > _MOST:
                self.tats = {name: tat for name, tat in self.tats.items() if tat > now}
            for name in names:
                self.tats[name] = admit(self.limit, self.tats.get(name, 0.0), now, 1).tat
