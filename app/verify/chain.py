"""One chain: links, gaps and head. Pure: rows come in order, defects go out.

The rule of a link: an event has the chain position after that of the event before, and its previous hash is the stored hash of that
event. Two kinds of rows have rules of their own:

- unsealed rows (verify/unsealed.py) have no chain position, so it is not known which comes next: each may link to any hashed row of
  its correlation;
- pages of format=json (export/signed_page.py) have events of many chains in any order: the event before each is looked up, and any
  purge in the log excuses a missing one.

Whether a gap is a purge is decided in app/tlog/gaps.py.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal

from app.events.log import NO_LOG, Log
from app.events.record import Row, place
from app.tlog.evidence import NO_ERASURES, Erasures
from app.tlog.gaps import Gap
from app.verify.row import Defect, Defects, defect_of, row_defects

LinkFault = Literal["no position", "duplicate", "gap", "broken"]
"""The event has no position in its chain; it has the position of another event; events before it are missing; its previous hash
is not that of the event before."""


def link_fault(
    chain_index: int | None, previous_hash: str, next_index: int, last_hashes: Collection[str]
) -> LinkFault | None:
    """What is wrong between an event and the one before it in its chain; None if it follows.

    `next_index` is the chain position that comes next, and `last_hashes` are the hashes of the event before it: the empty text
    before the first one, several if events share its position.
    """
    if chain_index == next_index:
        return None if previous_hash in last_hashes else "broken"
    if chain_index is None or chain_index < 0:
        return "no position"
    return "gap" if chain_index > next_index else "duplicate"


def gap_defect(gap: Gap, row: Row | None, detail: str = "") -> Defect:
    """The defect of a gap that is not a purge. `row` is the event after the gap; `detail` ends the message."""
    if row is not None:
        message = f"{gap.missing} event(s) are missing before chain position {gap.chain_end}{detail}"
        return defect_of(row, "removed", message)
    message = f"{gap.missing} of {gap.chain_end} events are missing at the end of the chain{detail}"
    return Defect("truncated", f"truncated: {message}")


@dataclass(slots=True)
class ChainChecker:
    """Checks the sealed rows of one correlation, which come in the order of (chain_index, log_index); times are UTC."""

    log: Log = NO_LOG
    """Only check() needs it, which computes hashes."""
    erased: Erasures = NO_ERASURES
    """Which events may be marked as erased."""
    total: int = 0
    """Rows read."""
    verified: int = 0
    """Rows that match the log."""
    erased_total: int = 0
    """Of those, the ones that were erased since."""
    next_index: int = 0
    """The chain position that comes next."""
    last_hashes: set[str] = field(default_factory=lambda: {""})
    """Stored hashes at the position before: more than one when events share it."""
    last_position: int = -1
    """The place of the last row."""
    defects: Defects = field(default_factory=Defects)
    gaps: list[tuple[Gap, Row | None]] = field(default_factory=list)
    """Where events are missing, with the row after each gap. The caller decides which of them are purges."""

    def check(self, row: Row, leaf: str | None) -> None:
        """Check the next row: its link, its own hash, and the log's leaf at its position."""
        is_in_log_order = self.check_link(row)
        defects = list(row_defects(row, leaf, self.log, self.erased))
        self.verified += not defects
        self.erased_total += not defects and row.get("payload_commitment") is not None
        if defects and not is_in_log_order:
            message = f"the event is at position {row.get('log_index')} of the log, before the one that it follows"
            defects = [defect_of(row, "reordered", message)]
        for defect in defects:
            self.defects.add(defect)

    def check_archived(self, row: Row) -> None:
        """As check(), of an event that is in the archive alone: `event_hash` is what it hashes to there, and `leaf` what the log has."""
        self.check_link(row)
        at, is_erased = place(row), row.get("payload_commitment") is not None
        if is_erased and at not in self.erased:
            self.defects.add(
                defect_of(row, "edited", "marked as erased in the archive, but the log has no erasure event for it")
            )
        elif row["event_hash"] != row["leaf"]:
            message = f"the event at position {row['log_index']} differs from the log's leaf in the archive"
            self.defects.add(defect_of(row, "edited", message, row["leaf"] or "", row["event_hash"], row["leaf"] or ""))
        else:
            self.verified += 1
            self.erased_total += is_erased

    def check_link(self, row: Row) -> bool:
        """Check only the link of the next row. True if the row comes after the last one in the log too."""
        self.total += 1
        index, position, hash_ = row.get("chain_index"), place(row), row.get("event_hash") or ""
        previous = row.get("previous_event_hash") or ""
        fault = link_fault(index, previous, self.next_index, self.last_hashes)
        if fault is not None:
            self._record_link_fault(fault, row)
            if fault == "no position":
                return True
        if fault == "duplicate":
            if index == self.next_index - 1:
                self.last_hashes.add(hash_)
        else:
            self.next_index = index + 1
            self.last_hashes = {hash_}
        if position is None:
            return True
        is_in_log_order: bool = position > self.last_position
        self.last_position = position
        return is_in_log_order

    def _record_link_fault(self, fault: LinkFault, row: Row) -> None:
        """Add the defect of a fault, or the gap."""
        index = row.get("chain_index")
        if fault == "gap":
            previous = row.get("previous_event_hash") or ""
            gap = Gap(index - self.next_index, index, self.last_position, place(row), previous)
            self.gaps.append((gap, row))
        elif fault == "no position":
            message = f"chain_index is {index}, which is not a chain position"
            self.defects.add(defect_of(row, "edited", message))
        elif fault == "duplicate":
            self.defects.add(defect_of(row, "inserted", f"another event is at chain position {index} too"))
        else:
            self.defects.add(defect_of(row, "edited", "the previous hash is not the hash of the event before"))

    def check_head(self, head: tuple[int, str] | None) -> Defect | None:
        """Compare the chain's head (length and last hash) with the rows, after the last row. A missing end is a gap."""
        if head is None:
            return Defect("removed", "removed: the head of this chain is missing") if self.total else None
        length, last_hash = head
        if not self.next_index and length < 1:
            return Defect("edited", f"edited: the head of this chain has length {length}")
        if self.next_index < length:
            gap = Gap(length - self.next_index, length, self.last_position, None, last_hash)
            self.gaps.append((gap, None))
            return None
        if self.next_index > length:
            message = f"the chain has {self.next_index} events, but its head has length {length}"
            return Defect("inserted", f"inserted: {message}")
        if last_hash not in self.last_hashes:
            return Defect("edited", "edited: the head of this chain has the hash of another last event")
        return None
