"""One chain held against what its rows say. Pure: rows come in the order of their positions, findings go out."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol
from uuid import UUID

from app.events.record import commitment, committed, leaf_hash, record


class Row(Protocol):
    """A row of audit_events as asyncpg returns it, jsonb as its text."""

    def __getitem__(self, name: str, /) -> Any: ...
    def get(self, name: str, /) -> Any: ...


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with one row. Both hashes are empty when it is its place that is wrong."""

    event_id: UUID
    event_timestamp: datetime
    message: str
    previous_hash: str
    expected_hash: str = ""
    actual_hash: str = ""


@dataclass(slots=True)
class Chain:
    """The sealed rows of one correlation, taken in order of chain_index."""

    log: str
    length: int = 0
    """Rows seen."""
    verified: int = 0
    """Rows whose own hash is right."""
    end: int = 0
    """The chain_index that has to come next."""
    hash: str = ""
    """Stored hash of the last row."""
    findings: list[Finding] = field(default_factory=list)

    def take(self, row: Row) -> None:
        """Hold the next row against those before it and against its own hash."""
        self.length += 1
        self._check_place(row)
        self._check_hash(row)
        self.hash = row["event_hash"] or ""

    def finish(self, head: tuple[int, str] | None) -> str | None:
        """What the chain's head (length and hash) says against it, or None."""
        if head is None:
            return "the head of this chain is missing" if self.length else None
        length, last_hash = head
        if self.end < length:
            return f"truncated: {length - self.end} of {length} events are missing at the end of the chain"
        if self.end > length:
            return f"inserted: the chain has {self.end} events, but its head knows of {length}"
        return "the last event is not the one that the head of this chain knows" if self.hash != last_hash else None

    def _check_place(self, row: Row) -> None:
        index = row["chain_index"] if row["chain_index"] is not None else -1
        previous = row["previous_event_hash"] or ""
        if index > self.end:
            self._find(row, f"removed: {index - self.end} event(s) are missing before this one")
        elif index < self.end:
            self._find(row, f"inserted: position {index} of the chain is taken twice")
        elif previous != self.hash:
            self._find(row, "the previous hash is not the hash of the event before")
        self.end = max(self.end, index + 1)

    def _check_hash(self, row: Row) -> None:
        if row["event_date"] != row["event_timestamp"].astimezone(UTC).date():
            self._find(row, "edited: event_date is not the UTC date of event_timestamp")
        expected, actual = self.recomputed(row), row["event_hash"] or ""
        if expected == actual:
            self.verified += 1
        else:
            self._find(row, "edited: the event does not have the hash that was stored with it", expected, actual)

    def recomputed(self, row: Row) -> str:
        """The hash that the row's columns have; empty when they cannot have come from this service."""
        salt = row["payload_salt"]
        if salt is None:
            return ""
        return leaf_hash(record(row, self.log, commitment(salt, committed(row, stored=True)))).hex()

    def _find(self, row: Row, message: str, expected: str = "", actual: str = "") -> None:
        previous = row["previous_event_hash"] or ""
        self.findings.append(Finding(row["event_id"], row["event_timestamp"], message, previous, expected, actual))
