"""What the log itself says was purged or erased: the service's own events, each of them verified before it is believed."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

import orjson

from app.db import Connection
from app.events.positions import Positions, Range
from app.events.record import Row, stored_hash
from app.sql import load

SQL = load("verify")
PURGED, RESTORED, ERASED = "datastorage.retention.purged", "datastorage.retention.restored", "datastorage.event.erased"
_CHAINS_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Evidence:
    """Positions whose rows may be missing, and positions whose rows may be marked as erased."""

    purged: Positions = field(default_factory=Positions)
    erased: Positions = field(default_factory=Positions)

    def within(self, first: int, end: int) -> "Evidence":
        """What is said of one part of the log."""
        return Evidence(Positions(self.purged.within(first, end)), Positions(self.erased.within(first, end)))


NONE = Evidence()


async def read_evidence(connection: Connection, log: str) -> Evidence:
    """What the events of the log say, as far as they are the ones that were logged. `connection` is in a snapshot."""
    own = await connection.fetch(SQL["own_correlations"], [PURGED, RESTORED, ERASED])
    rows: list[Row] = []
    for start in range(0, len(own), _CHAINS_AT_ONCE):
        named = [row["correlation_id"] for row in own[start : start + _CHAINS_AT_ONCE]]
        rows += await connection.fetch(SQL["sealed_rows"], named)
    leaves = await leaves_at(connection, [row["log_index"] for row in rows])
    return evidence(row for row in rows if _is_as_logged(row, leaves.get(row["log_index"]), log))


def evidence(rows: Iterable[Row]) -> Evidence:
    """What own events say, which were verified. None of them speaks of what was written after it."""
    purged: dict[str, list[Range]] = defaultdict(list)
    restored: dict[str, list[Range]] = defaultdict(list)
    erased: list[Range] = []
    for row in rows:
        payload = orjson.loads(row["event_data"])
        kind, said = (
            payload.get("event_type"),
            Positions.parse(payload.get("positions", "")).within(0, row["log_index"]),
        )
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


def _is_as_logged(row: Row, leaf: str | None, log: str) -> bool:
    """Whether a row is the event that was logged as `leaf`. A self event that is evidence is never erased."""
    is_erased = row.get("payload_commitment") is not None
    if is_erased or row["log_id"] != 0 or row["event_date"] != row["event_timestamp"].date():
        return False
    return leaf is not None and stored_hash(row, log) == leaf and leaf == str(row["event_hash"])


async def leaves_at(connection: Connection, positions: list[int]) -> dict[int, str]:
    """The leaves of the log at these positions, where it has any."""
    rows = await connection.fetch(SQL["leaves_at"], positions)
    return {row["position"]: row["leaf"].hex() for row in rows}
