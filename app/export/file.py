"""The form of an export file: records, one for each event, and behind every part of them its manifest.

A part is complete only with its manifest, and a file only with a manifest that names no part to come: wherever a file is
cut, that is missing. Parts that were fetched one after another make a file when they are put together.
"""

import base64
import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date, datetime
from typing import Any, BinaryIO, Literal, NamedTuple

import orjson

from app.events.canonical import loads

Format = Literal["ndjson", "csv"]

MEMBERS = (
    *("event_id", "event_version", "event_timestamp", "event_date", "recorded_at", "event_type", "event_category"),
    *("event_action", "event_outcome", "correlation_id", "actor_type", "actor_id", "actor_ip", "resource_type"),
    *("resource_id", "resource_name", "parent_event_id", "parent_event_date", "namespace", "cluster_id", "severity"),
    *("duration_ms", "error_code", "error_message", "is_sensitive", "trace_id", "span_id", "retention_days"),
    *("legal_hold", "legal_hold_reason", "legal_hold_placed_by", "legal_hold_placed_at", "hash_algorithm", "log"),
    *("log_index", "chain_index", "previous_event_hash", "event_hash", "payload_salt", "payload_commitment"),
    *("event_metadata", "event_data", "redacted"),
)
"""Of an exported event: the columns by their names; the log's name, so that every record can be hashed by itself; and the
names of the members that redaction changed, if it changed any."""
JSON_MEMBERS = frozenset({"event_data", "event_metadata", "duration_ms", "retention_days", "log_index", "chain_index"})
JSON_MEMBERS |= {"is_sensitive", "legal_hold", "redacted"}
"""In CSV these are JSON; the others are text."""
COMMITTED = frozenset(
    {"actor_id", "actor_ip", "resource_id", "resource_name", "error_message", "event_data", "event_metadata"}
)
"""Not in the record itself, which holds a commitment to them."""

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://kubernaut.ai/datastorage/audit-export/v1"
MANIFEST_MARK = "#manifest"
RECORD_BYTES_MAX = 64 * 1024 * 1024
csv.field_size_limit(RECORD_BYTES_MAX)

_OPTIONS = orjson.OPT_UTC_Z | orjson.OPT_NAIVE_UTC
# A spreadsheet takes what begins so for a formula, full width too. The apostrophe stands in front of itself too, and alone for empty text,
# so that what was exported can be had again: an empty field is NULL.
_GUARDED = ("=", "+", "-", "@", "\t", "\r", "\n", "'", "\uff1d", "\uff0b", "\uff0d", "\uff20")


class Signature(NamedTuple):
    key_id: str
    signature: bytes


def record(form: Format, event: Mapping[str, Any]) -> bytes:
    """One event as it stands in the file. event_data and event_metadata are JSON already, as orjson.Fragment."""
    if form == "ndjson":
        return orjson.dumps(event, option=_OPTIONS | orjson.OPT_APPEND_NEWLINE)
    return _csv_record(_cell(event[name]) for name in MEMBERS)


def header(form: Format) -> bytes:
    """What stands before the first event."""
    return _csv_record(MEMBERS) if form == "csv" else b""


def manifest_record(form: Format, envelope: bytes) -> bytes:
    """A manifest's envelope as a record: in CSV it is as wide as the others, so that every reader takes it."""
    if form == "ndjson":
        return envelope + b"\n"
    return _csv_record([MANIFEST_MARK, envelope.decode(), *[""] * (len(MEMBERS) - 2)])


def envelope(statement: bytes, signatures: Iterable[Signature]) -> bytes:
    """DSSE around an in-toto statement."""
    return orjson.dumps(
        {
            "payloadType": PAYLOAD_TYPE,
            "payload": base64.b64encode(statement).decode(),
            "signatures": [
                {"keyid": one.key_id, "sig": base64.b64encode(one.signature).decode()} for one in signatures
            ],
        }
    )


def signed_bytes(payload_type: str, payload: bytes) -> bytes:
    """What a DSSE signature is over (its PAE)."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


class MalformedRecord(ValueError):
    """A record is none that an export has."""


class Records:
    """The records of a file, as bytes, and the manifests among them."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        start = file.readline(RECORD_BYTES_MAX)
        self.form: Format = "ndjson" if start.startswith(b"{") else "csv"
        self._next = start

    def __iter__(self) -> Iterator[bytes]:
        while self._next:
            yield self._whole()
            self._next = self._file.readline(RECORD_BYTES_MAX)

    def _whole(self) -> bytes:
        """A record of CSV ends with the first line at whose end every quotation mark is closed."""
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
        return self.form == "csv" and record == header("csv")

    def manifest(self, record: bytes) -> Any:
        """The envelope; MalformedRecord when it is none."""
        return _reading(record, lambda: loads(record if self.form == "ndjson" else _cells(record)[1]))

    def event(self, record: bytes) -> dict[str, Any]:
        """The event in its members; MalformedRecord when it has others."""
        event = _reading(record, lambda: loads(record) if self.form == "ndjson" else _from_cells(_cells(record)))
        if not isinstance(event, dict) or set(event) != set(MEMBERS):
            raise MalformedRecord("expected the members of an exported event")
        return event


def _reading(record: bytes, read: Callable[[], Any]) -> Any:
    if not record.endswith(b"\n"):
        raise MalformedRecord("the record is cut off")
    try:
        return read()
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
    return f"'{text}" if not text or text.startswith(_GUARDED) else text


def _csv_record(cells: Iterable[str]) -> bytes:
    """RFC 4180, as csv.writer has it, in a quarter of its time."""
    return (",".join([_quoted(cell) for cell in cells]) + "\r\n").encode()


def _quoted(cell: str) -> str:
    if '"' in cell or "," in cell or "\n" in cell or "\r" in cell:
        return '"' + cell.replace('"', '""') + '"'
    return cell


def _cells(record: bytes) -> list[str]:
    rows = list(csv.reader(io.StringIO(record.decode(), newline=""), strict=True))
    if len(rows) != 1 or len(rows[0]) != len(MEMBERS):
        raise MalformedRecord(f"expected one record of {len(MEMBERS)} fields")
    return rows[0]


def _from_cells(cells: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, cell in zip(MEMBERS, cells, strict=True):
        text = cell.removeprefix("'")
        found[name] = None if not cell else loads(text) if name in JSON_MEMBERS else text
    return found
