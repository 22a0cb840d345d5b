"""Sets of positions in the log. Pure."""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from itertools import accumulate

_RANGE = re.compile(r"\[(-?\d{1,19}),(-?\d{1,19})\)")

Range = tuple[int, int]
"""Positions from the first up to, not including, the second."""


class Positions:
    """A set of positions, as ranges that neither touch nor overlap."""

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
        """Those of an int8multirange's text; nothing where there is none."""
        return cls((int(first), int(end)) for first, end in _RANGE.findall(multirange))

    def __contains__(self, position: object) -> bool:
        if not isinstance(position, int):
            return False
        place = bisect_right(self._firsts, position) - 1
        return place >= 0 and position < self.ranges[place][1]

    def __bool__(self) -> bool:
        return bool(self.ranges)

    def within(self, first: int, end: int) -> Iterator[Range]:
        """The parts that lie in one range."""
        for place in range(max(0, bisect_right(self._firsts, first) - 1), bisect_left(self._firsts, end)):
            low, high = self.ranges[place]
            if max(low, first) < min(high, end):
                yield max(low, first), min(high, end)

    def without(self, others: "Positions") -> "Positions":
        """Those that are not among `others`."""
        left = []
        for first, end in self.ranges:
            place = first
            for low, high in others.within(first, end):
                left.append((place, low))
                place = high
            left.append((place, end))
        return Positions(left)

    def count(self, first: int, end: int) -> int:
        """How many lie in one range. It is asked for every gap, of what may be a hundred thousand ranges."""
        return max(0, self._below(end) - self._below(first))

    def _below(self, position: int) -> int:
        place = bisect_left(self._firsts, position)
        return self._counts[place] - (max(0, self.ranges[place - 1][1] - position) if place else 0)

    def __str__(self) -> str:
        return "{" + ",".join(f"[{first},{end})" for first, end in self.ranges) + "}"


NO_POSITIONS = Positions()
