"""Topic filters numbered and indexed, to ask of all at once which meet another, or cover it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence


class FilterIndex:
    """Filters as sets of bits, one for each: an answer has the bit `1 << n` for filter `n`.

    A question takes one step for each level, however many filters there are. What it answers is
    what `levels_overlap` and `covers` say of each; no filter begins with `$`.
    """

    def __init__(self, filters: Sequence[Sequence[str]]) -> None:
        self._all = (1 << len(filters)) - 1
        self._exact: defaultdict[tuple[int, str], int] = defaultdict(int)
        self._plus: defaultdict[int, int] = defaultdict(int)
        self._hash: defaultdict[int, int] = defaultdict(int)
        # Those that have a level there, and those that end before it.
        self._level: defaultdict[int, int] = defaultdict(int)
        self._end: defaultdict[int, int] = defaultdict(int)
        for number, levels in enumerate(filters):
            bit = 1 << number
            for place, level in enumerate(levels):
                if level == "#":
                    self._hash[place] |= bit
                    break
                self._level[place] |= bit
                if level == "+":
                    self._plus[place] |= bit
                else:
                    self._exact[place, level] |= bit
            else:
                self._end[len(levels)] |= bit

    def meeting(self, levels: Sequence[str]) -> int:
        """Return the filters that share a topic with one."""
        found, left = 0, self._all
        for place, level in enumerate(levels):
            found |= left & self._hash.get(place, 0)
            if level == "#":
                return found | left
            if level == "+":
                left &= self._level.get(place, 0)
            else:
                left &= self._plus.get(place, 0) | self._exact.get((place, level), 0)
            if not left:
                return found
        end = len(levels)
        return found | left & (self._end.get(end, 0) | self._hash.get(end, 0))

    def hashes_above(self, levels: Sequence[str]) -> int:
        """Return the filters with `#` that cover all of `levels`/#."""
        found, left = 0, self._all
        for place, level in enumerate(levels):
            found |= left & self._hash.get(place, 0)
            fits = self._plus.get(place, 0)
            left &= fits if level == "+" else fits | self._exact.get((place, level), 0)
            if not left:
                return found
        return found | left & self._hash.get(len(levels), 0)
