"""One chain held against what its rows say. Pure: rows come in the order of their positions, defects go out."""

from dataclasses import dataclass, field

from app.events.positions import NO_POSITIONS, Positions
from app.events.record import Row
from app.verify.row import Defect, Defects, defect_of, faults


@dataclass(frozen=True, slots=True)
class Gap:
    """Events that are missing in a chain, and what is known of where they stood in the log."""

    missing: int
    before: int
    """The chain's position behind the gap; its length when the end is missing."""
    low: int
    """The log's position of the last event before the gap, -1 if none is."""
    high: int | None
    """The log's position of the first event behind the gap, None if none is."""
    last_hash: str
    """Hash of the last event that is missing."""

    def defect(self, row: Row | None, more: str = "") -> Defect:
        """The gap, when it is not all purged; `row` is the event behind it."""
        if row is not None:
            return defect_of(row, "removed", f"{self.missing} event(s) are missing before position {self.before}{more}")
        what = f"truncated: {self.missing} of {self.before} events are missing at the end of the chain{more}"
        return Defect("truncated", what)


@dataclass(slots=True)
class Chain:
    """The sealed rows of one correlation, taken in the order of (chain_index, log_index); times are UTC."""

    log: str
    erased: Positions = NO_POSITIONS
    """Positions of the log whose events may be marked as erased."""
    total: int = 0
    """Rows taken."""
    verified: int = 0
    """Rows that are the ones that were logged."""
    erased_total: int = 0
    """Of those, the ones that were erased since."""
    end: int = 0
    """The chain_index that has to come next."""
    ends: set[str] = field(default_factory=lambda: {""})
    """Stored hashes at position end - 1: more than one when the position is taken twice."""
    place: int = -1
    """The log_index of the last row."""
    defects: Defects = field(default_factory=Defects)
    gaps: list[tuple[Gap, Row | None]] = field(default_factory=list)
    """Where events are missing, with the row behind each; whoever knows what was purged judges them."""

    def take(self, row: Row, leaf: str | None) -> None:
        """Hold the next row against those before it, its own hash, and the log's leaf at its position."""
        is_behind = self.link(row)
        found = list(faults(row, leaf, self.log, self.erased))
        self.verified += not found
        self.erased_total += not found and row.get("payload_commitment") is not None
        if found and not is_behind:
            message = f"the event stands at position {row.get('log_index')} of the log, before the one that it follows"
            found = [defect_of(row, "reordered", message)]
        for defect in found:
            self.defects.add(defect)

    def link(self, row: Row) -> bool:
        """Hold the next row against those before it only. Whether it stands behind them in the log too."""
        self.total += 1
        index, actual, place = row.get("chain_index"), row.get("event_hash") or "", row.get("log_index")
        previous = row.get("previous_event_hash") or ""
        if index is None or index < 0:
            message = f"chain_index is {index}, which is no position in the chain"
            self.defects.add(defect_of(row, "edited", message))
            return True
        if index < self.end:
            self.defects.add(defect_of(row, "inserted", f"another event stands at position {index} of the chain too"))
            if index == self.end - 1:
                self.ends.add(actual)
        else:
            if index > self.end:
                self.gaps.append((Gap(index - self.end, index, self.place, place, previous), row))
            elif previous not in self.ends:
                self.defects.add(defect_of(row, "edited", "the previous hash is not the hash of the event before"))
            self.end = index + 1
            self.ends = {actual}
        is_behind = place is None or place > self.place
        self.place = self.place if place is None else place
        return is_behind

    def finish(self, head: tuple[int, str] | None) -> Defect | None:
        """What the chain's head (length and hash) says against the rows, after the last of them. A missing end is a gap."""
        if head is None:
            return Defect("removed", "removed: the head of this chain is missing") if self.total else None
        length, last_hash = head
        if self.end < length:
            self.gaps.append((Gap(length - self.end, length, self.place, None, last_hash), None))
            return None
        if self.end > length:
            return Defect("inserted", f"inserted: the chain has {self.end} events, but its head knows of {length}")
        if last_hash not in self.ends:
            return Defect("edited", "edited: the last event is not the one that the head of this chain knows")
        return None
