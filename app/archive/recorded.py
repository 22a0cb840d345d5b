"""What the log records of the archive: its parts."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from app.db import Connection
from app.events.log import LOG_POSITIONS, Log, place_of
from app.events.positions import NO_POSITIONS, Positions
from app.tlog.evidence import ARCHIVED, read_self_events


@dataclass(frozen=True, slots=True)
class RecordedPart:
    """One part."""

    archive_id: UUID
    log_id: int
    month: str
    """As 2026-01."""
    location: str
    """URL of its folder."""
    manifest_sha256: str
    tree_size: int
    """Of its checkpoint."""
    positions: Positions
    place: int
    """Of its first event."""
    recorded_at: datetime


async def read_parts(connection: Connection, log: Log) -> list[RecordedPart]:
    """The parts that `log` and those before it record, in the order in which they were archived. `connection` is in a snapshot."""
    events = [
        (place_of(row["log_id"], row["log_index"]), payload, row["recorded_at"])
        async for payload, row in read_self_events(connection, log, [ARCHIVED])
    ]
    parts: dict[str, RecordedPart] = {}
    for place, payload, recorded_at in sorted(events, key=lambda one: one[0]):
        log_id, archive_id = payload["log_id"], payload["archive_id"]
        end = min(place - place_of(log_id, 0), LOG_POSITIONS)  # an event says nothing about what comes after it
        positions = Positions(Positions.parse(payload["positions"]).within(0, end)) if end > 0 else NO_POSITIONS
        before = parts.get(archive_id)
        parts[archive_id] = RecordedPart(
            UUID(archive_id),
            log_id,
            payload["month"],
            payload["location"],
            payload["manifest_sha256"],
            payload["tree_size"],
            positions if before is None else Positions([*before.positions.ranges, *positions.ranges]),
            place if before is None else before.place,
            recorded_at,
        )
    return list(parts.values())


def archived_positions(parts: Sequence[RecordedPart], log_id: int) -> Positions:
    """The positions of one log that are in some part."""
    return Positions(one for part in parts if part.log_id == log_id for one in part.positions.ranges)
