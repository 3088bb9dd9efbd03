"""Metrics of one verifier, shared with the others through the usage database."""

from __future__ import annotations

import json
import threading
from bisect import bisect_left
from collections import deque
from dataclasses import dataclass, field
from typing import Any

# Upper bounds in seconds, from a cached verdict to waiting for a lease to expire.
BOUNDS = (
    0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05,
    0.1, 0.25, 0.5, 1.0, 2.5,
)  # fmt: skip
_BATCH_SIZE = 1_000


@dataclass(slots=True)
class Histogram:
    """Counts by `BOUNDS`, plus one for everything above, and the total in seconds."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    total_s: float = 0.0


class Metrics:
    """Counters of this process since its start; events are queued and counted in batches."""

    def __init__(self) -> None:
        self.verdicts: dict[str, int] = {}
        self.seconds: dict[str, Histogram] = {}
        self.stale = 0
        self.csp_reports = 0
        self._events: deque[tuple[str, float]] = deque()
        self._lock = threading.Lock()

    def count(self, code: str, *, stale: bool) -> None:
        """Count a verdict; `stale` means that it may have missed the newest commits."""
        self.observe(code, -1.0)
        if stale:
            with self._lock:
                self.stale += 1

    def count_csp_report(self) -> None:
        """Count a report that a page violated its content security policy."""
        with self._lock:
            self.csp_reports += 1

    def observe(self, name: str, seconds: float) -> None:
        """Record a duration; a negative one counts a verdict with the code `name` instead."""
        # Appending needs no lock; taking one would cost more than everything else here.
        self._events.append((name, seconds))
        if len(self._events) >= _BATCH_SIZE:
            self._fold()

    def snapshot(self, **gauges: float) -> str:
        """Return all counters as JSON, together with the given gauges."""
        self._fold()
        with self._lock:
            return json.dumps(
                {
                    "verdicts": self.verdicts,
                    "seconds": {
                        name: [*histogram.counts, histogram.total_s]
                        for name, histogram in self.seconds.items()
                    },
                    "stale": self.stale,
                    "csp_reports": self.csp_reports,
                    **gauges,
                }
            )

    def _fold(self) -> None:
        with self._lock:
            events = self._events
            for _ in range(len(events)):
                name, seconds = events.popleft()
                if seconds < 0:
                    self.verdicts[name] = self.verdicts.get(name, 0) + 1
                    continue
                histogram = self.seconds.get(name)
                if histogram is None:
                    histogram = self.seconds[name] = Histogram()
                histogram.counts[bisect_left(BOUNDS, seconds)] += 1
                histogram.total_s += seconds


def read_snapshot(text: str) -> dict[str, Any]:
    """Return the decoded result of `Metrics.snapshot`."""
    snapshot: dict[str, Any] = json.loads(text)
    return snapshot
