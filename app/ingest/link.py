"""Positions and links of one flush. Pure: store.py commits it, or loses the race for these positions.

`link` is the only place where `previous_event_hash` is set. app/verify/chain.py checks it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from app.events.log import Log
from app.events.record import record_leaf_hash
from app.ingest.accept import Event


class Head(NamedTuple):
    """The end of one correlation's chain."""

    length: int
    hash: str
    stored: int | None
    """The length in its row of chain_heads; None without a row. It differs from `length` only after damage by SQL."""


NO_HEAD = Head(0, "", None)


@dataclass(slots=True)
class Flush:
    """One flush, ready to be sent. It is committed at `first_index` of its log, or not at all."""

    log: Log
    previous_first: int
    """The first_index of the flush before it."""
    first_index: int
    events: Sequence[Event]
    rows: list[tuple[Any, ...]] = field(default_factory=list)
    """Columns fixed at acceptance, then log_index, chain_index, previous_event_hash, event_hash."""
    leaves: bytes = b""
    """Leaf hashes of 32 bytes, one after another."""
    expected: dict[str, int | None] = field(default_factory=dict)
    """Length that each chain's head must have in the table before this flush; None for no head."""
    heads: dict[str, Head] = field(default_factory=dict)
    """End of each chain after this flush."""


def link(events: Sequence[Event], of_log: Log, tail: tuple[int, int], heads: dict[str, Head]) -> Flush:
    """Give `events` the positions after `tail` (first_index and count of the last flush), and link each into its chain.

    A chain that is not in `heads` is new. The log's name and the positions are written
    into each event's record, which is hashed then.
    """
    flush = Flush(of_log, tail[0], tail[0] + tail[1], events)
    leaves, log_name, rows, ends = [], of_log.name, flush.rows, flush.heads
    for log_index, event in enumerate(events, flush.first_index):
        correlation_id = event.correlation_id
        head = ends.get(correlation_id)
        if head is None:
            head = heads.get(correlation_id, NO_HEAD)
            flush.expected[correlation_id] = head.stored
        length, previous_hash, _ = head
        record = event.record
        record["log"] = log_name
        record["log_index"] = log_index
        record["chain_index"] = length
        record["previous_event_hash"] = previous_hash or None
        leaf = record_leaf_hash(record)
        event_hash = leaf.hex()
        leaves.append(leaf)
        ends[correlation_id] = Head(length + 1, event_hash, length + 1)
        rows.append(event.row + (log_index, length, previous_hash, event_hash))  # noqa: RUF005 - one copy instead of two
    flush.leaves = b"".join(leaves)
    return flush
