"""Where events of a page are in the log: what a reader of a page sees beside an event's members."""

from collections.abc import Sequence
from typing import Any

from app.db import Pool, fetch
from app.query.postgres_time import nearest_rfc3339
from app.sql import load

SQL = load("reports")
_PLACE = (
    *("log_id", "log_index", "chain_index", "recorded_at", "trace_id", "event_metadata"),
    *("is_received", "is_erased"),
)
_KEY = ("event_id", "event_date", "correlation_id")


async def places(pool: Pool, events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each event, as an answer has it: log_id, log_index and chain_index (None of one that is unsealed), recorded_at as RFC 3339,
    trace_id, event_metadata (JSON, its beginning), is_received (event_timestamp is when it arrived) and is_erased. Without values: it
    was removed meanwhile.
    """
    rows = await fetch(pool, SQL["places"], *([event[name] for event in events] for name in _KEY))
    found = {(str(row["event_id"]), row["event_date"], row["correlation_id"]): row for row in rows}
    return [_place(found.get(tuple(event[name] for name in _KEY))) for event in events]


def _place(row: Any) -> dict[str, Any]:
    if row is None:
        return dict.fromkeys(_PLACE)
    return {name: row[name] for name in _PLACE} | {"recorded_at": nearest_rfc3339(row["recorded_at"])}
