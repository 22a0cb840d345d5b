"""A copy of the log as somebody else has it: what stands in its files, in whichever of our formats.

A stream (lines or Server-Sent Events), an export (ndjson or csv), objects of these in gzip, CloudEvents one by one or in batches, and OCSF events.
"""

import gzip
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from app.errors import Fatal
from app.events.canonical import loads_strict
from app.export.file import MEMBERS, RECORD_BYTES_MAX, MalformedRecord, RecordReader
from app.export.manifest import Manifest, open_envelope
from app.stream.formats import cloudevents, ocsf
from app.stream.records import Control
from app.tlog.note import PublicKey

STDIN = Path("-")
_GZIP = b"\x1f\x8b"
_OBJECT_MANIFEST = b"{\n"
"""How the manifest begins that a sink stores beside an object (stream/objects.py): it has a line for each member."""
_MANIFEST_BYTES_MAX = 1024 * 1024
_LINES = b"{", b"[", b"\n", b" "
_DATA, _OTHER_FIELDS = b"data:", (b"id:", b"event:", b"retry:", b":")
"""Of Server-Sent Events."""


class CopiedEvent(NamedTuple):
    """An event."""

    where: str
    """File and line."""
    event: dict[str, Any]
    """The members of an exported event; those that its format does not have are None."""
    place: str | None = None
    """The text of its place, where that stands beside it."""
    wrong: Sequence[str] = ()
    """What stands beside it and is not what the event itself has."""


class CopiedControl(NamedTuple):
    """What a stream says besides its events."""

    where: str
    record: Control


class CopiedManifest(NamedTuple):
    """The manifest of an export's part."""

    where: str
    manifest: Manifest
    is_signed: bool
    """By one of the keys."""


class Unreadable(NamedTuple):
    """A line, or the rest of a file, in none of the formats."""

    where: str
    reason: str
    is_cut: bool = False
    """It is the last line of a file and has no end: what is left where a connection broke."""


Copied = CopiedEvent | CopiedControl | CopiedManifest | Unreadable


def read_copy(paths: Sequence[Path], keys: Sequence[PublicKey]) -> Iterator[Copied]:
    """All that stands in the files of a copy, in their order; `-` is the standard input. Fatal if one cannot be opened or read."""
    for path in paths:
        try:
            with nullcontext(sys.stdin.buffer) if path == STDIN else path.open("rb") as file:
                yield from _read_file(cast("BinaryIO", file), "stdin" if path == STDIN else str(path), list(keys))
        except OSError as error:
            raise Fatal(f"Cannot read the copy: {error}") from None


def _read_file(raw: Any, name: str, keys: list[PublicKey]) -> Iterator[Copied]:
    start = raw.peek(2)[:2]
    file: Any = gzip.GzipFile(fileobj=raw) if start == _GZIP else raw
    number = 0
    try:
        begin = file.peek(len(b"retry:"))
        if begin.startswith(_OBJECT_MANIFEST):
            yield CopiedControl(name, loads_strict(file.read(_MANIFEST_BYTES_MAX)) | {"stream": "object"})
            return
        if not begin or begin.startswith((*_LINES, _DATA, *_OTHER_FIELDS)):
            read: Callable[[Any, str, list[PublicKey]], Iterator[Copied]] = _parse_line
            lines: Any = iter(lambda: file.readline(RECORD_BYTES_MAX), b"")
        else:
            records = RecordReader(file)
            read, lines = (lambda record, where, known: _parse_csv(records, record, where, known)), records
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield from read(line, f"{name}:{number}", keys)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        yield Unreadable(f"{name}:{number + 1}", f"the file is cut or damaged: {error}")
    except (ValueError, TypeError) as error:
        yield Unreadable(name, f"it is not the manifest of an object: {error}")


def _parse_csv(records: RecordReader, record: bytes, where: str, keys: list[PublicKey]) -> Iterator[Copied]:
    try:
        if records.is_manifest(record):
            yield _manifest(records.envelope(record), where, keys)
        elif not records.is_header(record):
            yield CopiedEvent(where, records.event(record))
    except (MalformedRecord, ValueError) as error:
        yield Unreadable(where, str(error))


def _parse_line(line: bytes, where: str, keys: list[PublicKey]) -> Iterator[Copied]:
    if line.startswith(_OTHER_FIELDS):
        return
    try:
        value = loads_strict(line.removeprefix(_DATA))
    except (ValueError, RecursionError) as error:
        yield Unreadable(where, f"it is no JSON: {error}", is_cut=not line.endswith(b"\n"))
        return
    batch = value if isinstance(value, list) else [value]
    for number, one in enumerate(batch, 1):
        of_one = where if one is value else f"{where}, item {number}"
        try:
            yield _parse(one, of_one, keys)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            yield Unreadable(of_one, f"it is in none of the formats: {error}")


def _parse(value: Any, where: str, keys: list[PublicKey]) -> Copied:
    if "specversion" in value:
        event, place = cloudevents.parse(value)
        return CopiedControl(where, event) if "stream" in event else CopiedEvent(where, event, place)
    if "class_uid" in value:
        event, own_place, wrong = ocsf.parse(value)
        return CopiedControl(where, event) if "stream" in event else _event(where, event, own_place, wrong)
    if "stream" in value:
        return CopiedControl(where, value)
    if "payloadType" in value:
        return _manifest(value, where, keys)
    return _event(where, value)


def _event(where: str, event: Any, place: str | None = None, wrong: Sequence[str] = ()) -> CopiedEvent:
    if unknown := sorted(event.keys() - set(MEMBERS))[:3]:
        raise ValueError(f"{', '.join(unknown)} is no member of an event")
    if missing := [name for name in ("event_id", "log", "log_index", "event_hash") if name not in event]:
        raise ValueError(f"the event has no {', '.join(missing)}")
    return CopiedEvent(where, dict.fromkeys(MEMBERS) | event, place, wrong)


def _manifest(envelope: Any, where: str, keys: list[PublicKey]) -> CopiedManifest:
    manifest, signer = open_envelope(envelope, keys)
    return CopiedManifest(where, manifest, signer is not None)
