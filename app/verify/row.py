"""One row against its own hash and the log's leaf, and what a defect is. Pure."""

from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from app.events.canonical import NESTING_MAX, canonical, depth_of, loads
from app.events.log import Log
from app.events.neutral import ERASED, is_neutral, neutral_words
from app.events.record import Row, place, stored_hash
from app.tlog.evidence import Erasures, left_digest

DEFECTS_MAX = 10_000
_EMPTIED = ("actor_ip", "resource_name", "error_message", "event_metadata", "payload_salt")

# fmt: off
Kind = Literal[
    "edited", "removed", "inserted", "shadowed", "reordered", "truncated", "rolled back", "forged checkpoint", "wrong key",
    "unverifiable", "hold removed", "hold invented", "hold edited", "policy edited", "early purge",
]
# fmt: on


@dataclass(frozen=True, slots=True)
class Defect:
    """One thing that is wrong. expected_hash and actual_hash are empty when it is not the event's own hash."""

    kind: Kind
    message: str
    event_id: UUID | None = None
    """None when it is not about one event."""
    event_timestamp: datetime | None = None
    previous_hash: str = ""
    expected_hash: str = ""
    actual_hash: str = ""
    correlation_id: str = ""
    position: int | None = None
    """The log position; None when it is not about one."""
    leaf: str = ""
    """The log's leaf hash at that position."""
    subject: str = ""
    """What makes it the same in every round; empty if its position, event or correlation does."""


@dataclass(slots=True)
class Defects:
    """The first DEFECTS_MAX defects, so that those of a log of any length fit into memory, and how many there are."""

    listed: list[Defect] = field(default_factory=list)
    count: int = 0

    def add(self, defect: Defect) -> None:
        self.count += 1
        if len(self.listed) < DEFECTS_MAX:
            self.listed.append(defect)

    def extend(self, others: "Defects") -> None:
        """Add the defects of another part of the work."""
        for defect in others.listed:
            self.add(defect)
        self.count += others.count - len(others.listed)


def defect_of(  # noqa: PLR0917 -- the last three are hashes, in the order of the answer
    row: Row,
    kind: Kind,
    message: str,
    expected: str = "",
    actual: str = "",
    leaf: str = "",
) -> Defect:
    """A defect of one event."""
    return Defect(
        kind,
        f"{kind}: {message}",
        row.get("event_id"),
        row.get("event_timestamp"),
        row.get("previous_event_hash") or "",
        expected,
        actual,
        row.get("correlation_id") or "",
        row.get("log_index"),
        leaf,
    )


def row_defects(row: Row, leaf: str | None, log: Log, erased: Erasures) -> Iterator[Defect]:
    """What is wrong with a sealed row by itself; nothing when its hash is `leaf`, the log's leaf at its position.

    The row is of `log` or of one before it. `leaf` is None where its log has none; `erased` is what was erased, by its place
    (place_of), as recorded in the logs.
    """
    # These columns are not in the record.
    if row.get("event_date") != row.get("event_timestamp").date():
        yield defect_of(row, "edited", "event_date is not the UTC date of event_timestamp")
    if row.get("log_id") is None or not 0 <= row.get("log_id") <= log.id:
        yield defect_of(row, "edited", f"log_id is {row.get('log_id')}, which is not this log")
    is_erased = row.get("payload_commitment") is not None
    if is_erased and place(row) not in erased:
        yield defect_of(row, "edited", "marked as erased, but the log has no erasure event for it")
        return
    if is_erased and not is_what_erasure_left(row, erased.left_at(place(row))):
        yield defect_of(row, "edited", "an erased event contains data again")
    expected, actual = stored_hash(row, log.name_of(row.get("log_id"))), row.get("event_hash") or ""
    if expected == actual == leaf:
        return
    if expected != actual:
        yield defect_of(row, "edited", "the stored hash is not the hash of this event", expected, actual, leaf or "")
    elif leaf is None:
        yield defect_of(row, "inserted", f"the log has no position {row.get('log_index')}", "", actual)
    else:
        message = f"the event at position {row.get('log_index')} differs from the log's leaf"
        yield defect_of(row, "edited", message, leaf, actual, leaf)


def is_what_erasure_left(row: Row, digests: AbstractSet[str]) -> bool:
    """Whether an erased row has only what erasure has left in the columns that no hash covers any more.

    `digests` are those of the payload as the log records them. Without any, the payload may be what some release would leave.
    """
    emptied = [row.get(name) for name in _EMPTIED]
    if row.get("actor_id") != ERASED or row.get("resource_id") != ERASED or emptied != [None] * len(emptied):
        return False
    payload = loads(row.get("event_data"))
    if digests:
        return left_digest(canonical(payload)) in digests
    return isinstance(payload, dict) and depth_of(payload) <= NESTING_MAX and is_neutral(payload, _words_of(payload))


def _words_of(payload: Mapping[str, Any]) -> frozenset[str]:
    event_type = payload.get("event_type")
    return neutral_words(event_type if isinstance(event_type, str) else None)


def mark_reordered(defects: Iterable[Defect], missing_leaves: Mapping[str, int] | None = None) -> list[Defect]:
    """The defects, those of an event that is only at another event's position replaced by "reordered".

    `missing_leaves` has the log positions without a row, by their leaf hashes.
    """
    listed = list(defects)
    positions: dict[str, int | None] = {d.leaf: d.position for d in listed if d.leaf} | dict(missing_leaves or {})
    return [_reordered(d, positions[d.actual_hash]) if _is_elsewhere(d, positions) else d for d in listed]


def _is_elsewhere(defect: Defect, positions: Mapping[str, int | None]) -> bool:
    logged_at = positions.get(defect.actual_hash)
    return defect.actual_hash != "" and logged_at is not None and logged_at != defect.position


def _reordered(defect: Defect, logged_at: int | None) -> Defect:
    message = f"reordered: the event of position {logged_at} of the log is at position {defect.position}"
    return replace(defect, kind="reordered", message=message)
