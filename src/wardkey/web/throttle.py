"""Slowing down guesses: attempts counted by address and by account, in this process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from wardkey.domain.addresses import network_of, site_of
from wardkey.domain.errors import Failure, TooManyAttempts, Unauthenticated
from wardkey.domain.rate import RateLimit, admit

# Ten attempts at once, then one in 30 s, for each address and for each account.
_LIMIT = RateLimit(limit=2, period_ms=60_000, burst=10)
# Tokens and their passwords cannot be guessed; this bounds the work of strangers, and lets the
# framework's 40 threads exchange for the users behind one address.
TOKENS = RateLimit(limit=8, period_ms=60_000, burst=40)
# A site, an IPv6 /48, holds 65,536 subscribers' networks, and often several people.
_SITE_TIMES = 4
_MOST = 50_000


class Counter(NamedTuple):
    """What attempts are counted under; it takes `times` as many as the throttle's limit."""

    name: str
    times: int = 1


def counters_of_address(purpose: str, address: str) -> tuple[Counter, ...]:
    """Return the counters of an address: its IPv4 address, or its IPv6 /64 and /48."""
    network, site = network_of(address), site_of(address)
    counters = (Counter(f"{purpose} {network}"),)
    return (*counters, Counter(f"{purpose} {site}", _SITE_TIMES)) if site else counters


def counter_of_account(email: str) -> Counter:
    """Return the counter that all guesses at an account's password share, at every entry."""
    return Counter(f"name {email.strip().lower()}")


def for_workers(workers: int) -> Throttle:
    """Return the throttle of one of several processes, which share the burst, not the refill."""
    burst = max(1, _LIMIT.burst // workers)
    return Throttle(RateLimit(_LIMIT.limit, _LIMIT.period_ms, burst))


@dataclass(slots=True)
class _Same:
    """How many attempts with one guess are being checked, and whether one was wrong."""

    running: int = 0
    is_wrong: bool = False


@dataclass(slots=True)
class Throttle:
    """Bounds wrong guesses; each is reserved before its check, so that parallel ones count."""

    limit: RateLimit = _LIMIT
    tats: dict[str, float] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    # Attempts with the same guess that are being checked; only the first one is counted.
    _same: dict[tuple[tuple[Counter, ...], bytes], _Same] = field(default_factory=dict)
    _most: int = _MOST

    @contextmanager
    def attempt(
        self,
        now: int,
        *counters: Counter,
        wrong: tuple[type[Failure], ...] = (Unauthenticated,),
        guess: bytes = b"",
    ) -> Iterator[None]:
        """Reserve one attempt for the block; give it back unless the block raises one of `wrong`.

        Attempts in parallel with the same `guess` count as one. Raises `TooManyAttempts`.
        """
        name = (counters, guess)
        with self.lock:
            same = self._same.get(name) if guess else None
            if same is None:
                self._reserve(now, counters)
                same = _Same()
                if guess:
                    self._same[name] = same
            same.running += 1
        try:
            yield
        except wrong:
            same.is_wrong = True
            raise
        finally:
            with self.lock:
                same.running -= 1
                if not same.running:
                    self._same.pop(name, None)
                    if not same.is_wrong:
                        self._give_back(counters)

    def spend(self, now: int, *counters: Counter) -> None:
        """Count an attempt that is never given back; raises `TooManyAttempts`."""
        with self.lock:
            self._reserve(now, counters)

    def _reserve(self, now: int, counters: tuple[Counter, ...]) -> None:
        """Count an attempt against each of `counters`, or against none."""
        if len(self.tats) > self._most:
            self.tats = {name: tat for name, tat in self.tats.items() if tat > now}
            # Otherwise each attempt would look through all of them.
            self._most = max(_MOST, 2 * len(self.tats))
        reserved = {}
        for name, times in counters:
            asked = admit(_widened(self.limit, times), self.tats.get(name, 0.0), now, 1)
            if not asked.admitted:
                raise TooManyAttempts(retry_after_s=(asked.retry_after_ms or 0) / 1000)
            reserved[name] = asked.tat
        self.tats.update(reserved)

    def _give_back(self, counters: tuple[Counter, ...]) -> None:
        for name, times in counters:
            if name in self.tats:
                self.tats[name] -= _widened(self.limit, times).increment_ms


@lru_cache(maxsize=16)
def _widened(limit: RateLimit, times: int) -> RateLimit:
    return RateLimit(limit.limit * times, limit.period_ms, limit.burst * times)
