"""Rate limiting as pure arithmetic: the generic cell rate algorithm (GCRA)."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from math import ceil
from typing import NamedTuple

# Times are multiples of 1/2048 ms. Doubles add and subtract those without rounding up to 2^42 ms
# (the year 2109), so rounding never admits or rejects a request.
_GRAINS = 2048


@dataclass(frozen=True, slots=True)
class RateLimit:
    """`limit` requests per `period_ms`, of which `burst` may come at once; raises `ValueError`.

    `increment_ms` is the part of the budget that one request uses, rounded up to 1/2048 ms: limits
    above about 20,000 per second admit up to a few percent less, never more. `tolerance_ms` is the
    time in which an empty budget fills up.
    """

    limit: int
    period_ms: int
    burst: int
    increment_ms: float = field(init=False, repr=False, compare=False)
    tolerance_ms: float = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.limit < 1 or self.period_ms < 1 or self.burst < 1:
            raise ValueError(
                "A rate limit's limit, period and burst must be whole numbers from 1 on."
            )
        increment = -(-self.period_ms * _GRAINS // self.limit) / _GRAINS
        object.__setattr__(self, "increment_ms", increment)
        object.__setattr__(self, "tolerance_ms", increment * self.burst)


@lru_cache(maxsize=4096)
def share(limit: RateLimit, parts: int, own_parts: int = 1) -> RateLimit:
    """Return the limit for a verifier that enforces `own_parts` of `parts` equal parts of `limit`.

    Over time, all verifiers together never admit more than the whole limit. At once they admit the
    burst, or one request each if a verifier's part of the burst is smaller than that.
    """
    burst = max(1, limit.burst * own_parts // parts)
    return RateLimit(limit.limit * own_parts, limit.period_ms * parts, burst)


class Admission(NamedTuple):
    """The decision on one request; store `tat`, the theoretical arrival time, for the next one.

    `remaining` is how many requests of cost 1 would be admitted at the same time. `retry_after_ms`
    is 0 if admitted, and None if waiting does not help because the cost is above the burst.
    `reset_ms` is the time until the budget is full again. Both are whole numbers, rounded up.
    """

    admitted: bool
    tat: float
    remaining: int
    retry_after_ms: int | None
    reset_ms: int


# The named tuple's own constructor takes twice as long.
_new = tuple.__new__


def admit(limit: RateLimit, tat_ms: float, now_ms: int, cost: int = 1) -> Admission:
    """Decide on a request of `cost` at `now_ms`, given the stored theoretical arrival time.

    Both times are milliseconds of the same clock; 0 means a new caller. A `cost` of 0 checks
    without using budget; a negative one raises `ValueError`. A clock that is set back admits
    nothing extra.

    GCRA by virtual scheduling: ATM Forum, Traffic Management 4.0 (af-tm-0056.000), §4.4.2; for
    HTTP see https://brandur.org/rate-limiting.
    """
    if cost < 0:
        raise ValueError("A request's cost must be 0 or more.")
    increment = limit.increment_ms
    tolerance = limit.tolerance_ms
    # The used part of the budget, as time.
    debt = tat_ms - now_ms if tat_ms > now_ms else 0.0
    after = debt + increment * cost
    if after > tolerance:
        remaining = int((tolerance - debt) // increment) if debt < tolerance else 0
        wait = None if cost > limit.burst else ceil(after - tolerance)
        return _new(Admission, (False, tat_ms, remaining, wait, ceil(debt)))
    remaining = int((tolerance - after) // increment)
    return _new(Admission, (True, now_ms + after if cost else tat_ms, remaining, 0, ceil(after)))
