"""What was purged or erased, as recorded in the log itself: read from self events, each of which is verified first."""

from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from app.db import LONG_FETCH_SECONDS, Connection
from app.events.catalog.self_events import CATEGORY, correlation_of
from app.events.log import Log
from app.events.positions import Positions, Range
from app.events.record import Row, is_logged
from app.tlog.tiles import SQL

PURGED, RESTORED, ERASED = "datastorage.retention.purged", "datastorage.retention.restored", "datastorage.event.erased"
_OPERATION = {PURGED: "operation_id", RESTORED: "operation_id", ERASED: "erasure_id"}
"""By type: the member of the payload that is part of the event's correlation."""
_ROWS_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class Evidence:
    """Positions whose rows may be missing, and positions whose rows may be marked as erased."""

    purged: Positions = field(default_factory=Positions)
    erased: Positions = field(default_factory=Positions)

    def within(self, first: int, end: int) -> "Evidence":
        """The evidence about positions from `first` up to, not including, `end`."""
        return Evidence(Positions(self.purged.within(first, end)), Positions(self.erased.within(first, end)))


NO_EVIDENCE = Evidence()


async def read_evidence(connection: Connection, log: Log, correlation_ids: Sequence[str] | None = None) -> Evidence:
    """The evidence in the log, or only that in some correlations. Self events that do not match the log are ignored.

    `connection` is in a snapshot. Only self events are read, and a few at a time, whatever else their correlations contain.
    """
    recorded = _Recorded()
    async for payload, position in read_records(connection, log, correlation_ids):
        recorded.add(payload, position)
    return recorded.evidence()


async def read_records(
    connection: Connection, log: Log, correlation_ids: Sequence[str] | None = None
) -> AsyncIterator[tuple[dict[str, Any], int]]:
    """The self events that are evidence: payload and position in the log of each. As read_evidence()."""
    rows = connection.cursor(
        SQL["evidence"], list(_OPERATION), correlation_ids, prefetch=_ROWS_AT_ONCE, timeout=LONG_FETCH_SECONDS
    )
    async for row in rows:
        payload = orjson.loads(row["event_data"])
        if is_evidence(row, payload) and _matches_log(row, log):
            yield payload, row["log_index"]


def is_evidence(row: Row, payload: Any) -> bool:
    """Whether the columns of a self event agree with its payload, as they do in all that the service writes and in no other event."""
    event_type = row["event_type"]
    if event_type not in _OPERATION or not isinstance(payload, dict) or payload.get("event_type") != event_type:
        return False
    operation = payload.get(_OPERATION[event_type])
    if not isinstance(operation, str) or row["event_category"] != CATEGORY:
        return False
    return bool(row["correlation_id"] == correlation_of(event_type, operation))


class _Recorded:
    """What the self events that were read so far record."""

    def __init__(self) -> None:
        self._purged: dict[str, list[Range]] = defaultdict(list)
        self._restored: dict[str, list[Range]] = defaultdict(list)
        self._erased: list[Range] = []

    def add(self, payload: dict[str, Any], position: int) -> None:
        """Add the event at this position of the log. It counts only for positions before its own."""
        ranges = Positions.parse(str(payload.get("positions"))).within(0, position)
        match payload["event_type"]:
            case "datastorage.retention.purged":
                self._purged[payload["operation_id"]] += ranges
            case "datastorage.retention.restored":
                self._restored[payload["operation_id"]] += ranges
            case _:
                self._erased += ranges

    def evidence(self) -> Evidence:
        """The positions that are purged and not restored by the same operation, and those that are erased."""
        not_restored = [
            remaining
            for operation, ranges in self._purged.items()
            for remaining in Positions(ranges).without(Positions(self._restored[operation])).ranges
        ]
        return Evidence(Positions(not_restored), Positions(self._erased))


async def leaves_at(connection: Connection, log: Log, positions: list[int]) -> dict[int, str]:
    """The leaf hashes of the log at these positions, in hex, where it has any."""
    rows = await connection.fetch(SQL.of(log)["leaves_at"], positions)
    return {row["position"]: row["leaf"].hex() for row in rows}


def _matches_log(row: Row, log: Log) -> bool:
    """Whether a row is the event that the log has at its position. A self event that is evidence is never erased."""
    is_erased = row["payload_commitment"] is not None
    if is_erased or row["log_id"] != log.id or row["event_date"] != row["event_timestamp"].date():
        return False
    return is_logged(row, log) and bool(row["event_hash"] == row["leaf"])
