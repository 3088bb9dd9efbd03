"""Limits failed attempts by address and by name, across all processes of one machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from wardkey.db.leases import boottime
from wardkey.domain.addresses import blocks_of
from wardkey.domain.errors import TooManyAttempts, Unauthenticated, WardkeyError
from wardkey.domain.rate import RateLimit
from wardkey.domain.times import MINUTE_MS
from wardkey.verify.shared_rates import SharedRates


class Limit(Enum):
    """Rate limits of failed attempts."""

    # Ten, then one every 30 s: for guesses by a person.
    PERSON = RateLimit(limit=2, period_ms=MINUTE_MS, burst=10)
    # A hundred, then one a second: for an address that many devices or users may share.
    SHARED = RateLimit(limit=60, period_ms=MINUTE_MS, burst=100)


@dataclass(frozen=True, slots=True)
class Counter:
    """A counter for one name of a kind; `weight` multiplies its limit."""

    kind: str
    name: str
    limit: Limit = Limit.PERSON
    weight: int = 1

    @property
    def scaled(self) -> tuple[RateLimit, str]:
        """The limit multiplied by the weight, and the counter's name in the shared file."""
        base: RateLimit = self.limit.value
        scaled = RateLimit(base.limit * self.weight, base.period_ms, base.burst * self.weight)
        return scaled, f"{self.kind} {self.name}"


class Throttle:
    """Counts failed attempts in a file that all workers of a machine share.

    An attempt is counted before it is checked and given back if it doesn't fail, so parallel
    attempts count like sequential ones.
    """

    def __init__(self, file: Path) -> None:
        self._counts = SharedRates(file)

    @contextmanager
    def attempt(
        self,
        *counters: Counter,
        failed: type[WardkeyError] | tuple[type[WardkeyError], ...] = Unauthenticated,
    ) -> Iterator[None]:
        """Count an attempt during the block; it stays counted if the block raises `failed`.

        Raises `TooManyAttempts` with the time to wait if a counter is exhausted.
        """
        self.take(*counters)
        try:
            yield
        except failed:
            raise
        except BaseException:
            self.give_back(*counters)
            raise
        else:
            self.give_back(*counters)

    @contextmanager
    def failures(
        self,
        *counters: Counter,
        failed: type[WardkeyError] | tuple[type[WardkeyError], ...] = Unauthenticated,
    ) -> Iterator[None]:
        """Count only if the block raises `failed`, so valid requests are never throttled.

        For secrets that can't be guessed and are cheap to check. Raises `TooManyAttempts` in place
        of the error if a counter is exhausted.
        """
        try:
            yield
        except failed as error:
            try:
                self.take(*counters)
            except TooManyAttempts as throttled:
                raise throttled from error
            raise

    def take(self, *counters: Counter) -> None:
        """Count an attempt; if it raises `TooManyAttempts`, nothing is counted."""
        wait_ms = self._counts.take([counter.scaled for counter in counters], _now_ms())
        if wait_ms:
            raise TooManyAttempts(retry_after_s=wait_ms / 1000)

    def give_back(self, *counters: Counter) -> None:
        """Remove an attempt that didn't fail from the counts."""
        self._counts.give_back([counter.scaled for counter in counters], _now_ms())

    def close(self) -> None:
        """Close the file."""
        self._counts.close()


def by_address(kind: str, address: str, limit: Limit = Limit.PERSON) -> tuple[Counter, ...]:
    """Return the counters of an address: an IPv4 address, or the /64 and the /48 of an IPv6 one."""
    return tuple(Counter(kind, block, limit, weight) for block, weight in blocks_of(address))


def by_account(email: str) -> Counter:
    """Return the counter of an account, shared by everything that accepts its password."""
    return Counter("name", email.strip().lower())


def _now_ms() -> int:
    # The boot clock can't be set back, which would prolong waits.
    return boottime() // 1_000_000
