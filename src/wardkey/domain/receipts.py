"""What a revocation may claim of the verifiers."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Reach(StrEnum):
    """`everywhere`: nothing accepts it any more; `bounded`: some may, for a stated time."""

    EVERYWHERE = "everywhere"
    BOUNDED = "bounded"


@dataclass(frozen=True, slots=True)
class Confirmation:
    """How far a change has reached when its call returns.

    `took_ms` is the time from the commit on. `late` verifiers, which chose to answer without the
    database for up to `staleness_s`, may not know it yet.
    """

    reach: Reach
    verifiers: int
    took_ms: float
    staleness_s: float = 0.0
    late: int = 0
