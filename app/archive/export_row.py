"""Events of the archive with the columns that exports read of those of Postgres."""

from typing import Any

from app.archive.reading import ArchivedRow
from app.export.file import MEMBERS

HASH_ALGORITHM = "sha256-rfc6962"
"""Of all events that a log has."""
_BYTES = ("payload_salt", "payload_commitment")
_JSON = ("event_data", "event_metadata")


def export_row(one: ArchivedRow) -> dict[str, Any]:
    """The row, with its `log_id`; `log` is None. Its holds are not known: the table of holds has them, and no row."""
    row = one.row
    hex_or_none = {name: None if row[name] is None else row[name].hex() for name in _BYTES}
    texts = {name: None if row[name] is None else row[name].decode() for name in _JSON}
    ids = {name: row[name] and str(row[name]) for name in ("event_id", "parent_event_id")}
    own = {"event_date": row["event_timestamp"].date(), "legal_hold": False, "hash_algorithm": HASH_ALGORITHM}
    columns = row | hex_or_none | texts | ids | own | {"sealed": one.is_logged}
    return {name: columns.get(name) for name in MEMBERS} | {"log_id": row["log_id"]}
