"""What one verifier counts of itself, told to the others through the usage database."""

from __future__ import annotations

import json
import threading
from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Any

# Upper bounds in seconds: from a hot verdict to a wait for a lease to run out.
BOUNDS = (
    0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05,
    0.1, 0.25, 0.5, 1.0, 2.5,
)  # fmt: skip


@dataclass(slots=True)
class Histogram:
    """Counts by `BOUNDS`, the last one for all above, and the sum in seconds."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    total_s: float = 0.0


@dataclass(slots=True)
class Metrics:
    """Counters of this process since its start."""

    verdicts: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, Histogram] = field(default_factory=dict)
    stale: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, code: str, *, stale: bool) -> None:
        """Count a verdict, and whether it may have missed the newest commits."""
        with self.lock:
            self.verdicts[code] = self.verdicts.get(code, 0) + 1
            self.stale += stale

    def observe(self, what: str, seconds: float) -> None:
        """Count how long something took."""
        with self.lock:
            histogram = self.seconds.get(what)
            if histogram is None:
                histogram = self.seconds[what] = Histogram()
            histogram.counts[bisect_left(BOUNDS, seconds)] += 1
            histogram.total_s += seconds

    def snapshot(self, **gauges: float) -> str:
        """Return everything as JSON, with what is so now."""
        with self.lock:
            return json.dumps(
                {
                    "verdicts": self.verdicts,
                    "seconds": {
                        what: [*histogram.counts, histogram.total_s]
                        for what, histogram in self.seconds.items()
                    },
                    "stale": self.stale,
                    **gauges,
                }
            )


def read_snapshot(text: str) -> dict[str, Any]:
    """Return what `snapshot` wrote."""
    told: dict[str, Any] = json.loads(text)
    return told
