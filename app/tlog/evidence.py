"""What was purged or erased, as recorded in the log itself: read from self events, each of which is verified first."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

import orjson

from app.db import Connection
from app.events.positions import Positions, Range
from app.events.record import Row, stored_hash
from app.tlog.tiles import SQL

PURGED, RESTORED, ERASED = "datastorage.retention.purged", "datastorage.retention.restored", "datastorage.event.erased"
_CHAINS_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Evidence:
    """Positions whose rows may be missing, and positions whose rows may be marked as erased."""

    purged: Positions = field(default_factory=Positions)
    erased: Positions = field(default_factory=Positions)

    def within(self, first: int, end: int) -> "Evidence":
        """The evidence about positions from `first` up to, not including, `end`."""
        return Evidence(Positions(self.purged.within(first, end)), Positions(self.erased.within(first, end)))


NO_EVIDENCE = Evidence()


async def read_evidence(connection: Connection, log_name: str) -> Evidence:
    """The evidence in the log named `log_name`. Self events that do not match the log are ignored.

    `connection` is in a snapshot.
    """
    found = await connection.fetch(SQL["correlations_of_types"], [PURGED, RESTORED, ERASED])
    correlation_ids = [row["correlation_id"] for row in found]
    rows: list[Row] = []
    for start in range(0, len(correlation_ids), _CHAINS_AT_ONCE):
        rows += await connection.fetch(SQL["chain_rows"], correlation_ids[start : start + _CHAINS_AT_ONCE])
    leaves = await leaves_at(connection, [row["log_index"] for row in rows])
    return evidence_in(row for row in rows if _matches_log(row, leaves.get(row["log_index"]), log_name))


def evidence_in(rows: Iterable[Row]) -> Evidence:
    """The evidence in verified self events. Each counts only for positions before its own."""
    purged: dict[str, list[Range]] = defaultdict(list)
    restored: dict[str, list[Range]] = defaultdict(list)
    erased: list[Range] = []
    for row in rows:
        payload = orjson.loads(row["event_data"])
        kind = payload.get("event_type")
        ranges = Positions.parse(payload.get("positions", "")).within(0, row["log_index"])
        if kind == PURGED:
            purged[payload["operation_id"]] += ranges
        elif kind == RESTORED:
            restored[payload["operation_id"]] += ranges
        elif kind == ERASED:
            erased += ranges
    not_restored = [
        remaining
        for operation, ranges in purged.items()
        for remaining in Positions(ranges).without(Positions(restored[operation])).ranges
    ]
    return Evidence(Positions(not_restored), Positions(erased))


async def leaves_at(connection: Connection, positions: list[int]) -> dict[int, str]:
    """The leaf hashes of the log at these positions, in hex, where it has any."""
    rows = await connection.fetch(SQL["leaves_at"], positions)
    return {row["position"]: row["leaf"].hex() for row in rows}


def _matches_log(row: Row, leaf: str | None, log_name: str) -> bool:
    """Whether a row is the event whose leaf in the log is `leaf`. A self event that is evidence is never erased."""
    is_erased = row.get("payload_commitment") is not None
    if is_erased or row["log_id"] != 0 or row["event_date"] != row["event_timestamp"].date():
        return False
    return leaf is not None and stored_hash(row, log_name) == leaf and leaf == str(row["event_hash"])
