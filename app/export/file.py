"""The records of an export file: one for each event, and after each part of them one with its manifest.

A part is complete only with its manifest, and a file only with a manifest that names no next part. So a file that was cut, wherever
that was, lacks a manifest. Parts that were fetched one after another make a file when they are concatenated. The form is described
in docs/design.md, section 9.
"""

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date, datetime
from typing import Any, BinaryIO, Literal

import orjson

from app.events.canonical import loads_strict

Format = Literal["ndjson", "csv"]

MEMBERS = (
    *("event_id", "event_version", "event_timestamp", "event_date", "recorded_at", "event_type", "event_category"),
    *("event_action", "event_outcome", "correlation_id", "actor_type", "actor_id", "actor_ip", "resource_type"),
    *("resource_id", "resource_name", "parent_event_id", "parent_event_date", "namespace", "cluster_id", "severity"),
    *("duration_ms", "error_code", "error_message", "is_sensitive", "trace_id", "span_id", "retention_days"),
    *("legal_hold", "legal_hold_reason", "legal_hold_placed_by", "legal_hold_placed_at", "hash_algorithm", "log"),
    *("log_index", "chain_index", "previous_event_hash", "event_hash", "payload_salt", "payload_commitment"),
    *("event_metadata", "event_data", "redacted", "sealed"),
)
"""Members of an exported event: the columns by their names; the log's name, so that a record can be hashed without anything else;
`redacted`, the names of the members that redaction changed, if it changed any; and `sealed`, whether the log had the event's hash at
its position when it was exported."""
_OLDER_MEMBERS = MEMBERS[:-1]
"""Those of files from before `sealed`, which are read for ever."""
JSON_MEMBERS = frozenset({"event_data", "event_metadata", "duration_ms", "retention_days", "log_index", "chain_index"})
JSON_MEMBERS |= {"is_sensitive", "legal_hold", "redacted", "sealed"}
"""Members that are JSON in CSV too; the others are text there."""
COMMITTED = frozenset(
    {"actor_id", "actor_ip", "resource_id", "resource_name", "error_message", "event_data", "event_metadata"}
)
"""Members that the hashed record does not have itself: it has a commitment to them."""

NOT_COVERED = (
    *("retention_days", "legal_hold", "legal_hold_reason", "legal_hold_placed_by", "legal_hold_placed_at"),
    "hash_algorithm",
)
"""Members that no hash of an event covers: only the manifest says that they were so when it was exported."""

MANIFEST_MARK = "#manifest"
RECORD_BYTES_MAX = 64 * 1024 * 1024
csv.field_size_limit(RECORD_BYTES_MAX)

_OPTIONS = orjson.OPT_UTC_Z | orjson.OPT_NAIVE_UTC
# A spreadsheet evaluates a cell that begins with one of these as a formula, full width ones too, so an apostrophe is put before it.
# It is also put before an apostrophe, and is the whole cell for empty text, so that the value can be restored: an empty field is NULL.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "'", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def event_record(form: Format, event: Mapping[str, Any]) -> bytes:
    """The record of one event. Its event_data and event_metadata are JSON already, as orjson.Fragment."""
    if form == "ndjson":
        return orjson.dumps(event, option=_OPTIONS | orjson.OPT_APPEND_NEWLINE)
    return _csv_record(_cell(event[name]) for name in MEMBERS)


def header_record(form: Format) -> bytes:
    """The record before the first event; empty for ndjson."""
    return _csv_record(MEMBERS) if form == "csv" else b""


def manifest_record(form: Format, envelope: bytes) -> bytes:
    """The record of a manifest's envelope. In CSV it has as many fields as the others, so that every reader accepts it."""
    if form == "ndjson":
        return envelope + b"\n"
    return _csv_record([MANIFEST_MARK, envelope.decode(), *[""] * (len(MEMBERS) - 2)])


class MalformedRecord(ValueError):
    """A record is not one of an export file."""


class RecordReader:
    """Reads an export file record by record. Iteration yields the bytes of each record; `form` is found from the first line."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        start = file.readline(RECORD_BYTES_MAX)
        self.form: Format = "ndjson" if start.startswith(b"{") else "csv"
        self._next = start

    def __iter__(self) -> Iterator[bytes]:
        while self._next:
            yield self._whole_record()
            self._next = self._file.readline(RECORD_BYTES_MAX)

    def _whole_record(self) -> bytes:
        """The record that begins with the next line. One of CSV ends with the first line at whose end all quotes are closed."""
        if self.form == "ndjson":
            return self._next
        lines, quotes, size = [self._next], self._next.count(b'"'), len(self._next)
        while quotes % 2 and size < RECORD_BYTES_MAX and (line := self._file.readline(RECORD_BYTES_MAX)):
            lines.append(line)
            quotes += line.count(b'"')
            size += len(line)
        return b"".join(lines)

    def is_manifest(self, record: bytes) -> bool:
        mark = b'{"payloadType":' if self.form == "ndjson" else MANIFEST_MARK.encode() + b","
        return record.startswith(mark)

    def is_header(self, record: bytes) -> bool:
        return self.form == "csv" and record in _HEADERS

    def envelope(self, record: bytes) -> Any:
        """The manifest's envelope, any JSON value. MalformedRecord if the record cannot be read, or has more than that."""
        return _parse(record, lambda: loads_strict(record if self.form == "ndjson" else _manifest_cell(record)))

    def event(self, record: bytes) -> dict[str, Any]:
        """The exported event. MalformedRecord if the record cannot be read, or does not have exactly the members of one.

        One of an older file has no member `sealed`.
        """
        event = _parse(record, lambda: loads_strict(record) if self.form == "ndjson" else _from_cells(_cells(record)))
        if not isinstance(event, dict) or set(event) not in (set(MEMBERS), set(_OLDER_MEMBERS)):
            raise MalformedRecord("expected the members of an exported event")
        return event


def _parse(record: bytes, parse: Callable[[], Any]) -> Any:
    if not record.endswith(b"\n"):
        raise MalformedRecord("the record is cut off")
    try:
        return parse()
    except (ValueError, IndexError, csv.Error) as error:
        raise MalformedRecord(f"the record cannot be read: {error}") from None


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        text = value
    else:
        text = orjson.dumps(value, option=_OPTIONS).decode()
        if isinstance(value, (datetime, date)):
            text = text[1:-1]
    return f"'{text}" if not text or text.startswith(_FORMULA_STARTS) else text


def _csv_record(cells: Iterable[str]) -> bytes:
    """RFC 4180, the same bytes as csv.writer's in a quarter of its time."""
    return (",".join([_quoted(cell) for cell in cells]) + "\r\n").encode()


def _quoted(cell: str) -> str:
    if '"' in cell or "," in cell or "\n" in cell or "\r" in cell:
        return '"' + cell.replace('"', '""') + '"'
    return cell


_HEADERS = _csv_record(MEMBERS), _csv_record(_OLDER_MEMBERS)


def _cells(record: bytes) -> list[str]:
    rows = list(csv.reader(io.StringIO(record.decode(), newline=""), strict=True))
    if len(rows) != 1 or len(rows[0]) not in {len(MEMBERS), len(_OLDER_MEMBERS)}:
        raise MalformedRecord(f"expected one record of {len(MEMBERS)} fields")
    return rows[0]


def _manifest_cell(record: bytes) -> str:
    _, envelope, *others = _cells(record)
    if any(others):  # no digest and no signature is over them
        raise MalformedRecord("expected empty fields after the manifest")
    return envelope


def _from_cells(cells: list[str]) -> dict[str, Any]:
    event: dict[str, Any] = {}
    for name, cell in zip(MEMBERS, cells, strict=False):  # an older record has no last one
        text = cell.removeprefix("'")
        event[name] = None if not cell else loads_strict(text) if name in JSON_MEMBERS else text
    return event
