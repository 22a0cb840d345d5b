"""The columns of the archive's files: a row of audit_events as values of Parquet, and back as what its hash is made of."""

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import UUID

from app.events.canonical import canonical, loads
from app.events.neutral import ERASED
from app.events.record import Row, address_text, commitment_of, stored_hash


class Column(NamedTuple):
    """One column. Its number in `COLUMNS`, from 1 on, is its id in the table and in every file, for ever."""

    name: str
    type: str
    """As Iceberg names it."""
    required: bool = False
    has_statistics: bool = True
    """Whether files have the smallest and the largest value: not of what is never looked for, or is very long."""
    form: Callable[[Any], Any] | None = None
    """From the value that Postgres gives."""


def _hash_bytes(text: str | None) -> bytes | None:
    return bytes.fromhex(text) if text else None


def _uuid_bytes(value: UUID | None) -> bytes | None:
    return None if value is None else value.bytes


COLUMNS = (
    Column("log_id", "int", required=True),
    Column("log_index", "long", required=True),
    Column("event_id", "uuid", required=True, form=_uuid_bytes),
    Column("event_version", "string", required=True),
    Column("event_timestamp", "timestamptz", required=True),
    Column("recorded_at", "timestamptz", required=True),
    Column("event_type", "string", required=True),
    Column("event_category", "string", required=True),
    Column("event_action", "string", required=True),
    Column("event_outcome", "string", required=True),
    Column("correlation_id", "string", required=True),
    Column("actor_type", "string", required=True),
    Column("actor_id", "string", required=True),
    Column("actor_ip", "string", form=address_text),
    Column("resource_type", "string", required=True),
    Column("resource_id", "string", required=True),
    Column("resource_name", "string"),
    Column("parent_event_id", "uuid", form=_uuid_bytes),
    Column("parent_event_date", "date"),
    Column("namespace", "string"),
    Column("cluster_id", "string"),
    Column("severity", "string"),
    Column("duration_ms", "int"),
    Column("error_code", "string"),
    Column("error_message", "string", has_statistics=False),
    Column("is_sensitive", "boolean"),
    Column("trace_id", "string"),
    Column("span_id", "string"),
    Column("chain_index", "long", required=True),
    Column("previous_event_hash", "fixed[32]", has_statistics=False, form=_hash_bytes),
    Column("payload_salt", "fixed[16]", has_statistics=False),
    Column("payload_commitment", "fixed[32]", has_statistics=False),
    Column("retention_days", "int"),
    Column("event_metadata", "string", has_statistics=False),
    Column("event_data", "string", required=True, has_statistics=False),
)
NAMES = tuple(column.name for column in COLUMNS)
SORTED_BY = ("correlation_id", "event_timestamp", "log_index")
NOT_COVERED = ("retention_days",)
"""Columns that no hash of an event covers: only the digest of the file does."""
DELTA = ("log_index", "event_timestamp", "recorded_at", "chain_index")
"""Numbers that are written as differences."""
PLAIN = ("event_id", "parent_event_id", "previous_event_hash", "payload_salt", "payload_commitment", "event_data")
"""Values that do not repeat, so that a dictionary of them would only be larger."""

_FORMS = tuple((column.name, column.form) for column in COLUMNS)


def values_of(row: Row, event_data: bytes, event_metadata: bytes | None) -> list[Any]:
    """The values of one row in the order of `COLUMNS`; payload and metadata are canonical JSON."""
    values = [form(row[name]) if form is not None else row[name] for name, form in _FORMS[:-2]]
    return [*values, event_metadata, event_data]


def file_values(row: dict[str, Any]) -> list[Any]:
    """The values of one row of a file, as rows_of() gives it, in the order of `COLUMNS`."""
    return [value.bytes if isinstance(value, UUID) else value for value in (row[name] for name in NAMES)]


def hash_of(row: dict[str, Any], log_name: str) -> str:
    """The leaf hash, in hex, of a row of a file. ValueError or TypeError if no record can have one of its values."""
    link = row["previous_event_hash"]
    return stored_hash(row | {"previous_event_hash": None if link is None else link.hex()}, log_name, stored=False)


def erased_row(row: dict[str, Any], left: bytes | None) -> dict[str, Any]:
    """What an erasure leaves of a row. `left` is the payload in Postgres; without it, as of a row that was purged since, the type stays."""
    event_type = loads(row["event_data"]).get("event_type")
    only_type = canonical({"event_type": event_type} if isinstance(event_type, str) else {})
    emptied = dict.fromkeys(("actor_ip", "resource_name", "error_message", "event_metadata", "payload_salt"))
    return (
        row
        | emptied
        | {
            "actor_id": ERASED,
            "resource_id": ERASED,
            "payload_commitment": commitment_of(row, stored=False),
            "event_data": only_type if left is None else left,
        }
    )


def sort_key(row: dict[str, Any]) -> tuple[bytes, datetime, int]:
    """By what the rows of a file ascend."""
    return row["correlation_id"].encode(), row["event_timestamp"], row["log_index"]


def rows_of(columns: Sequence[Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Rows from the values of each column of a file, with times in UTC and JSON as bytes."""
    for values in zip(*columns, strict=True):
        row = dict(zip(NAMES, values, strict=True))
        for name in ("event_timestamp", "recorded_at"):
            row[name] = row[name].astimezone(UTC)
        row["event_data"] = row["event_data"].encode()
        row["event_metadata"] = None if row["event_metadata"] is None else row["event_metadata"].encode()
        yield row
