"""What one verifier counts of itself, told to the others through the usage database."""

from __future__ import annotations

import json
import threading
from bisect import bisect_left
from collections import deque
from dataclasses import dataclass, field
from typing import Any

# Upper bounds in seconds: from a hot verdict to a wait for a lease to run out.
BOUNDS = (
    0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05,
    0.1, 0.25, 0.5, 1.0, 2.5,
)  # fmt: skip
_FOLDED_AT_ONCE = 1_000


@dataclass(slots=True)
class Histogram:
    """Counts by `BOUNDS`, the last one for all above, and the sum in seconds."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    total_s: float = 0.0


class Metrics:
    """Counters of this process since its start; what happens is noted and counted later."""

    def __init__(self) -> None:
        self.verdicts: dict[str, int] = {}
        self.seconds: dict[str, Histogram] = {}
        self.stale = 0
        self.csp_reports = 0
        self._noted: deque[tuple[str, float]] = deque()
        self._lock = threading.Lock()

    def count(self, code: str, *, stale: bool) -> None:
        """Count a verdict, and whether it may have missed the newest commits."""
        self.observe(code, -1.0)
        if stale:
            with self._lock:
                self.stale += 1

    def count_csp_report(self) -> None:
        """Count that a page tried what its content security policy forbids."""
        with self._lock:
            self.csp_reports += 1

    def observe(self, what: str, seconds: float) -> None:
        """Count how long something took; a negative time stands for a verdict."""
        # Appending needs no lock, which would take longer than all else here.
        self._noted.append((what, seconds))
        if len(self._noted) >= _FOLDED_AT_ONCE:
            self._fold()

    def snapshot(self, **gauges: float) -> str:
        """Return everything as JSON, with what is so now."""
        self._fold()
        with self._lock:
            return json.dumps(
                {
                    "verdicts": self.verdicts,
                    "seconds": {
                        what: [*histogram.counts, histogram.total_s]
                        for what, histogram in self.seconds.items()
                    },
                    "stale": self.stale,
                    "csp_reports": self.csp_reports,
                    **gauges,
                }
            )

    def _fold(self) -> None:
        with self._lock:
            noted = self._noted
            for _ in range(len(noted)):
                what, seconds = noted.popleft()
                if seconds < 0:
                    self.verdicts[what] = self.verdicts.get(what, 0) + 1
                    continue
                histogram = self.seconds.get(what)
                if histogram is None:
                    histogram = self.seconds[what] = Histogram()
                histogram.counts[bisect_left(BOUNDS, seconds)] += 1
                histogram.total_s += seconds


def read_snapshot(text: str) -> dict[str, Any]:
    """Return what `snapshot` wrote."""
    told: dict[str, Any] = json.loads(text)
    return told
