"""What the log itself says was purged or erased: the service's own events, each of them verified before it is believed."""

import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import orjson

from app.db import Connection
from app.events.record import Row
from app.integrity.rows import faults
from app.sql import load

SQL = load("integrity")
PURGED, RESTORED, ERASED = "datastorage.retention.purged", "datastorage.retention.restored", "datastorage.event.erased"
_CHAINS_AT_ONCE = 500
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

    @classmethod
    def parse(cls, multirange: str) -> "Positions":
        """Those of an int8multirange's text; nothing where there is none."""
        return cls((int(first), int(end)) for first, end in _RANGE.findall(multirange))

    def __contains__(self, position: int) -> bool:
        place = bisect_right(self._firsts, position) - 1
        return place >= 0 and position < self.ranges[place][1]

    def __bool__(self) -> bool:
        return bool(self.ranges)

    def within(self, first: int, end: int) -> Iterator[Range]:
        """The parts that lie in one range."""
        for low, high in self.ranges[max(0, bisect_right(self._firsts, first) - 1) :]:
            if low >= end:
                return
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
        """How many lie in one range."""
        return sum(high - low for low, high in self.within(first, end))

    def __str__(self) -> str:
        return "{" + ",".join(f"[{first},{end})" for first, end in self.ranges) + "}"


@dataclass(frozen=True, slots=True)
class Evidence:
    """Positions whose rows may be missing, and positions whose rows may be marked as erased."""

    purged: Positions = field(default_factory=Positions)
    erased: Positions = field(default_factory=Positions)


NONE = Evidence()


async def read_evidence(connection: Connection, log: str) -> Evidence:
    """What the events of the log say, as far as they are the ones that were logged. `connection` is in a snapshot."""
    own = await connection.fetch(SQL["own_correlations"], [PURGED, RESTORED, ERASED])
    rows: list[Row] = []
    for start in range(0, len(own), _CHAINS_AT_ONCE):
        named = [row["correlation_id"] for row in own[start : start + _CHAINS_AT_ONCE]]
        rows += await connection.fetch(SQL["sealed_rows"], named)
    leaves = await leaves_at(connection, [row["log_index"] for row in rows])
    return evidence(row for row in rows if not any(faults(row, leaves.get(row["log_index"]), log, Positions())))


def evidence(rows: Iterable[Row]) -> Evidence:
    """What own events say, which were verified. None of them speaks of what was written after it."""
    purged: dict[str, list[Range]] = defaultdict(list)
    restored: dict[str, list[Range]] = defaultdict(list)
    erased: list[Range] = []
    for row in rows:
        payload = orjson.loads(row["event_data"])
        kind, said = payload.get("event_type"), Positions.parse(payload.get("positions", "")).within(0, row["log_index"])
        if kind == PURGED:
            purged[payload["operation_id"]] += said
        elif kind == RESTORED:
            restored[payload["operation_id"]] += said
        elif kind == ERASED:
            erased += said
    gone = [
        left
        for operation, ranges in purged.items()
        for left in Positions(ranges).without(Positions(restored[operation])).ranges
    ]
    return Evidence(Positions(gone), Positions(erased))


async def leaves_at(connection: Connection, positions: list[int]) -> dict[int, str]:
    """The leaves of the log at these positions, where it has any."""
    rows = await connection.fetch(SQL["leaves_at"], positions)
    return {row["position"]: row["leaf"].hex() for row in rows}
