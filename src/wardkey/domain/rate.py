"""Rate limits as arithmetic: the generic cell rate algorithm over given times."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from math import ceil
from typing import NamedTuple

# Times are whole 1/2048 ms. Doubles add and subtract those without rounding up to 2^42 ms (the
# year 2109), so that no request is won or lost to rounding.
_GRAINS = 2048


@dataclass(frozen=True, slots=True)
class RateLimit:
    """`limit` requests per `period_ms`, of which `burst` may come at once; raises `ValueError`.

    `increment_ms` is what one request takes from the budget, rounded up to 1/2048 ms: a limit
    above some 20,000 a second admits up to a few per cent less, never more. `tolerance_ms` is how
    long an empty budget takes to fill.
    """

    limit: int
    period_ms: int
    burst: int
    increment_ms: float = field(init=False, repr=False, compare=False)
    tolerance_ms: float = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.limit < 1 or self.period_ms < 1 or self.burst < 1:
            raise ValueError("A rate limit's limit, period and burst are whole numbers from 1 on.")
        increment = -(-self.period_ms * _GRAINS // self.limit) / _GRAINS
        object.__setattr__(self, "increment_ms", increment)
        object.__setattr__(self, "tolerance_ms", increment * self.burst)


@lru_cache(maxsize=4096)
def share(limit: RateLimit, parts: int, held: int = 1) -> RateLimit:
    """Return what a holder of `held` of `parts` equal parts of `limit` may grant by itself.

    All holders together never grant more than the whole over time; at once they grant the burst,
    or one request each where a holder's part of the burst is smaller than that.
    """
    burst = max(1, limit.burst * held // parts)
    return RateLimit(limit.limit * held, limit.period_ms * parts, burst)


class Admission(NamedTuple):
    """What became of one request; `tat` is to be kept for the next one.

    `remaining` is how many requests of cost 1 would be admitted at the same time. `retry_after_ms`
    is 0 when admitted, and None when no waiting helps because the cost is above the burst.
    `reset_ms` is the time until the budget is full again. Both are whole and rounded up.
    """

    admitted: bool
    tat: float
    remaining: int
    retry_after_ms: int | None
    reset_ms: int


# A named tuple's own constructor takes twice as long.
_new = tuple.__new__


def admit(limit: RateLimit, tat_ms: float, now_ms: int, cost: int = 1) -> Admission:
    """Decide on a request of `cost` at `now_ms`, given the theoretical arrival time kept before.

    Both times are milliseconds of one clock; 0 stands for a caller never seen. A `cost` of 0 asks
    without spending; a negative one raises `ValueError`. A clock set back grants nothing.

    GCRA by virtual scheduling: ATM Forum, Traffic Management 4.0 (af-tm-0056.000), §4.4.2; told
    for HTTP in https://brandur.org/rate-limiting.
    """
    if cost < 0:
        raise ValueError("A request's cost is 0 or more.")
    increment = limit.increment_ms
    tolerance = limit.tolerance_ms
    # How much of the budget is spent, as time.
    debt = tat_ms - now_ms if tat_ms > now_ms else 0.0
    after = debt + increment * cost
    if after > tolerance:
        left = int((tolerance - debt) // increment) if debt < tolerance else 0
        wait = None if cost > limit.burst else ceil(after - tolerance)
        return _new(Admission, (False, tat_ms, left, wait, ceil(debt)))
    left = int((tolerance - after) // increment)
    return _new(Admission, (True, now_ms + after if cost else tat_ms, left, 0, ceil(after)))
