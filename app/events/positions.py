"""Sets of positions in the log, and their text: that of Postgres's int8multirange, `{[0,5),[7,9)}`. Pure."""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from itertools import accumulate

RANGES_MAX = 2_000
"""Ranges in one self event, so that its payload stays well below its limit."""
_RANGE = re.compile(r"\[(-?\d{1,19}),(-?\d{1,19})\)")

Range = tuple[int, int]
"""Positions from the first up to, not including, the second."""


class Positions:
    """A set of positions, as ranges in order that neither touch nor overlap."""

    def __init__(self, ranges: Iterable[Range] = ()) -> None:
        self.ranges: list[Range] = []
        for first, end in sorted(ranges):
            if self.ranges and first <= self.ranges[-1][1]:
                self.ranges[-1] = self.ranges[-1][0], max(self.ranges[-1][1], end)
            elif first < end:
                self.ranges.append((first, end))
        self._firsts = [first for first, _ in self.ranges]
        self._counts = list(accumulate((end - first for first, end in self.ranges), initial=0))

    @classmethod
    def parse(cls, multirange: str) -> "Positions":
        """The positions of an int8multirange's text; none if the text has no range."""
        return cls((int(first), int(end)) for first, end in _RANGE.findall(multirange))

    @classmethod
    def of(cls, positions: Iterable[int]) -> "Positions":
        """The set of single positions, in any order."""
        return cls((position, position + 1) for position in positions)

    def __contains__(self, position: object) -> bool:
        if not isinstance(position, int):
            return False
        at = bisect_right(self._firsts, position) - 1
        return at >= 0 and position < self.ranges[at][1]

    def __bool__(self) -> bool:
        return bool(self.ranges)

    @property
    def size(self) -> int:
        """How many positions there are."""
        return self._counts[-1]

    def portions(self) -> Iterator["Positions"]:
        """The set in portions of at most RANGES_MAX ranges; an empty set is one portion."""
        for start in range(0, max(1, len(self.ranges)), RANGES_MAX):
            yield Positions(self.ranges[start : start + RANGES_MAX])

    def within(self, first: int, end: int) -> Iterator[Range]:
        """The parts of the set that lie in one range."""
        for at in range(max(0, bisect_right(self._firsts, first) - 1), bisect_left(self._firsts, end)):
            low, high = self.ranges[at]
            if max(low, first) < min(high, end):
                yield max(low, first), min(high, end)

    def without(self, others: "Positions") -> "Positions":
        """The positions that are not among `others`."""
        remaining = []
        for first, end in self.ranges:
            at = first
            for low, high in others.within(first, end):
                remaining.append((at, low))
                at = high
            remaining.append((at, end))
        return Positions(remaining)

    def count(self, first: int, end: int) -> int:
        """How many positions lie in one range. Verification asks this for every gap of what may be 100,000 ranges."""
        return max(0, self._below(end) - self._below(first))

    def _below(self, position: int) -> int:
        at = bisect_left(self._firsts, position)
        return self._counts[at] - (max(0, self.ranges[at - 1][1] - position) if at else 0)

    def __str__(self) -> str:
        return "{" + ",".join(f"[{first},{end})" for first, end in self.ranges) + "}"


NO_POSITIONS = Positions()
