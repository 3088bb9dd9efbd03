"""Limits on failed attempts, by address and by name, for all processes of one machine."""

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
from wardkey.verify.shared_rates import SharedRates


class Limit(Enum):
    """How many attempts may fail at once, and how many later on."""

    # Ten, then one in 30 s: what a person guesses.
    PERSON = RateLimit(limit=2, period_ms=60_000, burst=10)
    # A hundred, then one a second: many devices or users may share one address.
    SHARED = RateLimit(limit=60, period_ms=60_000, burst=100)


@dataclass(frozen=True, slots=True)
class Counter:
    """A counted name of one kind; `weight` multiplies its limit."""

    kind: str
    name: str
    limit: Limit = Limit.PERSON
    weight: int = 1

    @property
    def scaled(self) -> tuple[RateLimit, str]:
        """The limit with its weight, and the text that it is counted under."""
        base: RateLimit = self.limit.value
        scaled = RateLimit(base.limit * self.weight, base.period_ms, base.burst * self.weight)
        return scaled, f"{self.kind} {self.name}"


class Throttle:
    """Counts failed attempts in a file that all workers of a machine share.

    An attempt is counted before it is judged and given back if it did not fail, so attempts in
    parallel count as those in a row do.
    """

    def __init__(self, file: Path) -> None:
        self._counts = SharedRates(file)

    @contextmanager
    def attempt(
        self,
        *counters: Counter,
        failed: type[WardkeyError] | tuple[type[WardkeyError], ...] = Unauthenticated,
    ) -> Iterator[None]:
        """Count an attempt during the block; it stays counted where the block raises `failed`.

        Raises `TooManyAttempts` with the wait, where one of the counters is used up.
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
        """Count only what raises `failed` in the block, so that what is right is never held up.

        For what cannot be guessed and costs little to judge. Raises `TooManyAttempts` in place of
        the failure, where one of the counters is used up.
        """
        try:
            yield
        except failed as failure:
            try:
                self.take(*counters)
            except TooManyAttempts as many:
                raise many from failure
            raise

    def take(self, *counters: Counter) -> None:
        """Count an attempt; raises `TooManyAttempts`, and counts nothing then."""
        wait_ms = self._counts.take([one.scaled for one in counters], _now_ms())
        if wait_ms:
            raise TooManyAttempts(retry_after_s=wait_ms / 1000)

    def give_back(self, *counters: Counter) -> None:
        """Uncount an attempt that did not fail."""
        self._counts.give_back([one.scaled for one in counters], _now_ms())

    def close(self) -> None:
        """Let go of the file."""
        self._counts.close()


def by_address(kind: str, address: str, limit: Limit = Limit.PERSON) -> tuple[Counter, ...]:
    """Return the counters of an address: an IPv4 address, or the /64 and the /48 of an IPv6 one."""
    return tuple(Counter(kind, block, limit, weight) for block, weight in blocks_of(address))


def by_account(email: str) -> Counter:
    """Return the counter of an account, which every entry that takes its password shares."""
    return Counter("name", email.strip().lower())


def _now_ms() -> int:
    # On a clock that nobody sets back, or waits would last for as long.
    return boottime() // 1_000_000
