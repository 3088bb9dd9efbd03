"""The Space-Saving sketch: the heaviest of many callers, in bounded space.

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
    """A caller's number of uses and the first and last of them; times in epoch milliseconds."""

    count: int
    first_at: int
    last_at: int

    def add(self, other: Sighting) -> Sighting:
        """Return the sum of two sightings of the same caller."""
        return Sighting(
            self.count + other.count,
            min(self.first_at, other.first_at),
            max(self.last_at, other.last_at),
        )


def merge(stored: Mapping[K, Sighting], new: Mapping[K, Sighting], most: int) -> dict[K, Sighting]:
    """Merge the `new` sightings into the `stored` ones; return at most `most`.

    If there is no room, a new caller replaces the lightest one and adds that caller's count to its
    own. So the counts add up to all uses ever seen, a caller with more than `1 / most` of them is
    kept, and no count is too high by more than the lowest count of a full sketch. The caller seen
    last is kept too, because new callers are added in the order of their last use.
    """
    merged = dict(stored)
    if len(merged) > most:
        # Two processes may each have added a caller without seeing the other's.
        heaviest = heapq.nlargest(most, merged, key=lambda name: merged[name].count)
        merged = {name: merged[name] for name in heaviest}
    added: list[tuple[K, Sighting]] = []
    for name, sighting in new.items():
        existing = merged.get(name)
        if existing is None:
            added.append((name, sighting))
        else:
            merged[name] = existing.add(sighting)
    added.sort(key=lambda item: item[1].last_at)
    room = max(0, most - len(merged))
    merged.update(added[:room])
    if len(added) <= room:
        return merged
    # Among equally light callers, the one seen least recently is replaced first.
    names = list(merged)
    heap = [(merged[name].count, merged[name].last_at, n) for n, name in enumerate(names)]
    heapq.heapify(heap)
    for name, sighting in added[room:]:
        lowest_count, _, index = heap[0]
        del merged[names[index]]
        merged[name] = replace(sighting, count=sighting.count + lowest_count)
        names[index] = name
        heapq.heapreplace(heap, (merged[name].count, sighting.last_at, index))
    return merged
