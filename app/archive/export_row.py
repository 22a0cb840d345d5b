"""Events of the archive with the columns that exports read of those of Postgres."""

from typing import Any

from app.archive.reading import ArchivedRow
from app.events.record import Row
from app.export.file import MEMBERS

HASH_ALGORITHM = "sha256-rfc6962"
"""Of all events that a log has."""
_BYTES = ("payload_salt", "payload_commitment")
_HOLD = ("reason", "placed_by", "placed_at")
_JSON = ("event_data", "event_metadata")


def export_row(one: ArchivedRow, hold: Row | None = None) -> dict[str, Any]:
    """The row, with its `log_id`; `log` is None. `hold`, the one that covers it, has `reason`, `placed_by` and `placed_at`."""
    row = one.row
    hex_or_none = {name: None if row[name] is None else row[name].hex() for name in _BYTES}
    texts = {name: None if row[name] is None else row[name].decode() for name in _JSON}
    ids = {name: row[name] and str(row[name]) for name in ("event_id", "parent_event_id")}
    own = {"event_date": row["event_timestamp"].date(), "legal_hold": False, "hash_algorithm": HASH_ALGORITHM}
    if hold is not None:
        own |= {"legal_hold": True} | {f"legal_hold_{name}": hold[name] for name in _HOLD}
    own["previous_event_hash"] = row["previous_event_hash"] or ""
    columns = row | hex_or_none | texts | ids | own | {"sealed": one.is_logged}
    return {name: columns.get(name) for name in MEMBERS} | {"log_id": row["log_id"]}
