"""Events that are in the archive alone, as arguments of statements that read them with those of Postgres: so both are sorted by the same rules."""

from collections.abc import Iterable
from typing import Any

from app.events.record import Row

_COLUMNS = (
    *("event_id", "event_timestamp", "event_type", "event_outcome", "actor_type", "actor_id", "namespace"),
    "cluster_id",
)


def archived_columns(events: Iterable[Row]) -> list[list[Any]]:
    """The arguments of the fragment `archived_events`. Payloads are JSON as bytes; `sealed` is whether the log has the event."""
    rows = list(events)
    payloads = [row["event_data"].decode() for row in rows]
    return [*([row[name] for row in rows] for name in _COLUMNS), payloads, [row["sealed"] for row in rows]]
