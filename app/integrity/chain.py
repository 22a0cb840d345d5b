"""One chain held against what its rows say. Pure: rows come in the order of their positions, defects go out."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal
from uuid import UUID

from app.events.record import Row, commitment, committed, leaf_hash, record

DEFECTS_MAX = 10_000

Kind = Literal["edited", "removed", "inserted", "truncated", "unverifiable"]


@dataclass(frozen=True, slots=True)
class Defect:
    """One thing that is wrong. Both hashes are empty when it is not the event's own hash that is wrong."""

    kind: Kind
    message: str
    event_id: UUID | None = None
    """None when no one event is at fault."""
    event_timestamp: datetime | None = None
    previous_hash: str = ""
    expected_hash: str = ""
    actual_hash: str = ""


@dataclass(slots=True)
class Defects:
    """The first `DEFECTS_MAX` of them, so that a chain of any length fits into memory, and how many there are."""

    listed: list[Defect] = field(default_factory=list)
    count: int = 0

    def add(self, defect: Defect) -> None:
        self.count += 1
        if len(self.listed) < DEFECTS_MAX:
            self.listed.append(defect)


def defect_of(row: Row, kind: Kind, message: str, expected: str = "", actual: str = "") -> Defect:
    """A defect of one event."""
    previous = row.get("previous_event_hash") or ""
    return Defect(kind, message, row.get("event_id"), row.get("event_timestamp"), previous, expected, actual)


@dataclass(slots=True)
class Chain:
    """The sealed rows of one correlation, taken in the order of (chain_index, log_index); times are UTC."""

    log: str
    total: int = 0
    """Rows taken."""
    verified: int = 0
    """Rows whose own hash is right."""
    end: int = 0
    """The chain_index that has to come next."""
    ends: set[str] = field(default_factory=lambda: {""})
    """Stored hashes at position end - 1: more than one when the position is taken twice."""
    defects: Defects = field(default_factory=Defects)

    def take(self, row: Row) -> None:
        """Hold the next row against those before it and against its own hash."""
        self.total += 1
        self._check_place(row)
        self._check_hash(row)

    def finish(self, head: tuple[int, str] | None) -> Defect | None:
        """What the chain's head (length and hash) says against the rows, after the last of them."""
        if head is None:
            return Defect("removed", "removed: the head of this chain is missing") if self.total else None
        length, last_hash = head
        if self.end < length:
            missing = length - self.end
            return Defect("truncated", f"truncated: {missing} of {length} events are missing at the end of the chain")
        if self.end > length:
            return Defect("inserted", f"inserted: the chain has {self.end} events, but its head knows of {length}")
        if last_hash not in self.ends:
            return Defect("edited", "edited: the last event is not the one that the head of this chain knows")
        return None

    def _check_place(self, row: Row) -> None:
        index, actual = row.get("chain_index"), row.get("event_hash") or ""
        if index is None or index < 0:
            self._add(row, "edited", f"edited: chain_index is {index}, which is no position in the chain")
        elif index < self.end:
            self._add(row, "inserted", f"inserted: another event stands at position {index} of the chain too")
            if index == self.end - 1:
                self.ends.add(actual)
        else:
            if index > self.end:
                missing = index - self.end
                self._add(row, "removed", f"removed: {missing} event(s) are missing before position {index}")
            elif (row.get("previous_event_hash") or "") not in self.ends:
                self._add(row, "edited", "edited: the previous hash is not the hash of the event before")
            self.end = index + 1
            self.ends = {actual}

    def _check_hash(self, row: Row) -> None:
        # These three columns are not in the record.
        if row.get("event_date") != row.get("event_timestamp").date():
            self._add(row, "edited", "edited: event_date is not the UTC date of event_timestamp")
        if row.get("log_id") != 0:
            self._add(row, "edited", f"edited: log_id is {row.get('log_id')}, which is not this log")
        if row.get("payload_commitment") is not None:
            self._add(row, "edited", "edited: the event is marked as erased, but no erasure was recorded")
        expected, actual = self._recomputed(row), row.get("event_hash") or ""
        if expected == actual:
            self.verified += 1
        else:
            message = "edited: the event does not have the hash that was stored with it"
            self._add(row, "edited", message, expected, actual)

    def _recomputed(self, row: Row) -> str:
        # Without its salt a row is not the one that was written; an empty salt gives the hash that it has now.
        salt = row.get("payload_salt") or b""
        return leaf_hash(record(row, self.log, commitment(salt, committed(row, stored=True)))).hex()

    def _add(self, row: Row, kind: Kind, message: str, expected: str = "", actual: str = "") -> None:
        self.defects.add(defect_of(row, kind, message, expected, actual))
