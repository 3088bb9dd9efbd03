"""The Space-Saving sketch: of many callers the heaviest few, in bounded space.

Metwally, Agrawal, El Abbadi, "Efficient Computation of Frequent and Top-k Elements in Data
Streams", ICDT 2005; here with counts that arrive in batches.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Sighting:
    """How often a caller was seen, and when first and last; times in epoch milliseconds."""

    count: int
    first_at: int
    last_at: int

    def plus(self, other: Sighting) -> Sighting:
        """Return both sightings of one caller as one."""
        return Sighting(
            self.count + other.count,
            min(self.first_at, other.first_at),
            max(self.last_at, other.last_at),
        )


def merge(kept: Mapping[K, Sighting], new: Mapping[K, Sighting], most: int) -> dict[K, Sighting]:
    """Return at most `most` sightings of those kept and those new.

    One that finds no room takes the place of the lightest and adds that one's count to its own.
    So the counts add up to all that was ever seen; whoever has more than `1 / most` of it is
    kept; and no count is too high by more than the lowest of a full sketch. Whoever was seen
    last of all is kept too, because the new ones come in the order of their last sighting.
    """
    merged = dict(kept)
    if len(merged) > most:
        # Two processes may each have added one without knowing of the other's.
        heaviest = heapq.nlargest(most, merged, key=lambda name: merged[name].count)
        merged = {name: merged[name] for name in heaviest}
    arriving: list[tuple[K, Sighting]] = []
    for name, sighting in new.items():
        known = merged.get(name)
        if known is None:
            arriving.append((name, sighting))
        else:
            merged[name] = known.plus(sighting)
    arriving.sort(key=lambda item: item[1].last_at)
    free = max(0, most - len(merged))
    merged.update(arriving[:free])
    if len(arriving) <= free:
        return merged
    # Of equally light ones the one that was not seen for longest goes first.
    names = list(merged)
    heap = [(merged[name].count, merged[name].last_at, n) for n, name in enumerate(names)]
    heapq.heapify(heap)
    for name, sighting in arriving[free:]:
        lightest, _, place = heap[0]
        del merged[names[place]]
        merged[name] = replace(sighting, count=sighting.count + lightest)
        names[place] = name
        heapq.heapreplace(heap, (merged[name].count, sighting.last_at, place))
    return merged
