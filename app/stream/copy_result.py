"""What the comparison of a copy with the database has found."""

from collections import Counter
from dataclasses import dataclass, field

from app.stream.compare import Difference, Side
from app.verify.row import DEFECTS_MAX


@dataclass(slots=True)
class CopyResult:
    """What was found."""

    events: int = 0
    """Of the logs, in the copy; one that came twice counts twice."""
    counts: Counter[str] = field(default_factory=Counter)
    """of events: same, different, purged, erased, lost, content not comparable, unsealed; positions: missing, left out; manifests: filtered,
    filter not signed; lines: cut off"""
    differences: list[Difference] = field(default_factory=list)
    """The first DEFECTS_MAX."""
    by_side: Counter[Side] = field(default_factory=Counter)
    first: int | None = None
    end: int = 0
    """The copy's places, from the first one up to, not including, this one."""
    checkpoints: int = 0
    """In the copy."""
    compared_checkpoints: int = 0
    signatures: Counter[str] = field(default_factory=Counter)
    """By label of the key: how many of the copy's checkpoints it has signed."""
    is_filtered: bool = False
    """It need not have all events, as the caller says."""

    @property
    def count(self) -> int:
        """How many differences there are."""
        return sum(self.by_side.values())

    def add(self, difference: Difference) -> None:
        self.by_side[difference.side] += 1
        if len(self.differences) < DEFECTS_MAX:
            self.differences.append(difference)

    def report(self, side: Side, kind: str, message: str, where: str | None, place: int | None = None) -> None:
        """Add a difference that is not about one event."""
        self.add(Difference(side, kind, message, place, where=where))

    def extend(self, first: int, end: int) -> None:
        """The copy has something about these places."""
        self.first = first if self.first is None else min(self.first, first)
        self.end = max(self.end, end)
