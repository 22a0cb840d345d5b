"""A copy of the log as somebody else has it: what stands in its files, in whichever of our formats.

A stream (lines or Server-Sent Events), an export (ndjson or csv), objects of these in gzip, CloudEvents one by one or in batches, and OCSF events.
"""

import gzip
import json
import re
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from hashlib import sha256
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
_STARTS = b'{"event_id":', b'{"stream":'
"""How a line of a stream begins."""
_START = re.compile(b"|".join(_STARTS))
_STARTS_MAX = 20
_FIELDS = _DATA, *_OTHER_FIELDS
_FIRST_FIELD = re.compile(rb"retry: \d+\r?\n?\Z")
"""With which Server-Sent Events begin."""


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
    part: int = 0
    """Number of the part of an export that it may be of, if a manifest follows; 0 if it cannot be of one."""


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
    part: int
    """Which events of the copy it is of, unless it has a defect."""
    defect: str | None
    """Why it is not of the lines before it."""


class Unreadable(NamedTuple):
    """A line, or the rest of a file, in none of the formats."""

    where: str
    reason: str
    is_cut: bool = False
    """It has no end, as the last line of a file, or as the next record stands behind it: what is left where a connection broke."""


Copied = CopiedEvent | CopiedControl | CopiedManifest | Unreadable


class _Part:
    """The lines that a manifest is of, if it comes now.

    A part begins with the file, after a manifest or a line that no export has, and with an event that an export has before the last one.
    """

    def __init__(self) -> None:
        self.number = 0
        self.begin()

    def begin(self, header: bytes = b"") -> None:
        self.number += 1
        self._digest = sha256(header)
        self._counts: Counter[str] = Counter()
        self._last: tuple[object, object] | None = None

    def add(self, line: bytes, event: dict[str, Any]) -> int:
        """Add an event's line; the number of its part."""
        log, position = event["log"], event["log_index"]
        if self._last is not None and _is_before((log, position), self._last):
            self.begin()
        self._last = log, position
        self._digest.update(line)
        self._counts["unsealed" if position is None else "sealed"] += 1
        return self.number

    def add_unreadable(self, line: bytes) -> None:
        self._digest.update(line)

    def defect(self, manifest: Manifest) -> str | None:
        """Why a manifest is not of these lines."""
        stated = manifest.sealed, manifest.unsealed
        if stated != (self._counts["sealed"], self._counts["unsealed"]) or manifest.events != sum(stated):
            return f"the manifest is of {manifest.events} events, before it there are {self._counts.total()} that may be of its part"
        return None if manifest.sha256 == self._digest.hexdigest() else "the manifest is not of the lines before it"


def _is_before(one: tuple[object, object], other: tuple[object, object]) -> bool:
    """Whether an export has an event, of which log and position are given, before the other one: what has no position comes last."""
    (log, position), (other_log, other_position) = one, other
    if position is None or other_position is None:
        return position is not None
    both = isinstance(position, int) and isinstance(other_position, int) and log == other_log
    return both and position < other_position  # type: ignore[operator]  # they are numbers


def read_copy(paths: Sequence[Path], keys: Sequence[PublicKey]) -> Iterator[Copied]:
    """All that stands in the files of a copy, in their order; `-` is the standard input. Fatal if one cannot be opened or read."""
    part = _Part()
    for path in paths:
        try:
            with nullcontext(sys.stdin.buffer) if path == STDIN else path.open("rb") as file:
                yield from _read_file(cast("BinaryIO", file), "stdin" if path == STDIN else str(path), list(keys), part)
        except OSError as error:
            raise Fatal(f"Cannot read the copy: {error}") from None


def _read_file(raw: Any, name: str, keys: list[PublicKey], part: _Part) -> Iterator[Copied]:
    part.begin()
    start = raw.peek(2)[:2]
    file: Any = gzip.GzipFile(fileobj=raw) if start == _GZIP else raw
    number = 0
    try:
        begin = file.peek(len(b"retry:"))
        if begin.startswith(_OBJECT_MANIFEST):
            yield CopiedControl(name, loads_strict(file.read(_MANIFEST_BYTES_MAX)) | {"stream": "object"})
            return
        if not begin or begin.startswith((*_LINES, _DATA, *_OTHER_FIELDS)):
            read: Callable[[Any, str, list[PublicKey], _Part], Iterator[Copied]] = _parse_line
            lines: Any = iter(lambda: file.readline(RECORD_BYTES_MAX), b"")
        else:
            records = RecordReader(file)
            read, lines = (lambda record, *of_it: _parse_csv(records, record, *of_it)), records
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield from read(line, f"{name}:{number}", keys, part)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        yield Unreadable(f"{name}:{number + 1}", f"the file is cut or damaged: {error}")
    except (ValueError, TypeError) as error:
        yield Unreadable(name, f"it is not the manifest of an object: {error}")


def _parse_csv(
    records: RecordReader, record: bytes, where: str, keys: list[PublicKey], part: _Part
) -> Iterator[Copied]:
    try:
        if records.is_manifest(record):
            yield _manifest(lambda: records.envelope(record), where, keys, part)
        elif records.is_header(record):
            part.begin(record)
        else:
            event = records.event(record)
            yield CopiedEvent(where, dict.fromkeys(MEMBERS) | event, part=part.add(record, event))
    except (MalformedRecord, ValueError) as error:
        part.add_unreadable(record)
        yield Unreadable(where, str(error))


def _parse_line(line: bytes, where: str, keys: list[PublicKey], part: _Part) -> Iterator[Copied]:
    if line.startswith(_OTHER_FIELDS):
        return
    try:
        value = loads_strict(line.removeprefix(_DATA))
    except (ValueError, RecursionError) as error:
        if (start := _start_of_next(line)) is not None:
            yield from _parse_cut(line[:start], where, keys, part)
            yield from _parse_line(line[start:], where, keys, part)
            return
        first_field = _FIRST_FIELD.search(line)
        if first_field is not None and _is_begun(line[: first_field.start()], _FIELDS):
            yield Unreadable(where, "a record has no end", is_cut=True)
            return
        part.add_unreadable(line)
        yield Unreadable(where, f"it is no JSON: {error}", is_cut=not line.endswith(b"\n"))
        return
    batch = value if isinstance(value, list) else [value]
    for number, one in enumerate(batch, 1):
        of_one = where if one is value else f"{where}, item {number}"
        try:
            yield _parse(one, line, of_one, keys, part)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            part.add_unreadable(line)
            yield Unreadable(of_one, f"it is in none of the formats: {error}")


def _start_of_next(line: bytes) -> int | None:
    """Where the record begins that stands on one line with what a broken connection has left of another one."""
    for found in reversed([found.start() for found in _START.finditer(line, 1)][-_STARTS_MAX:]):
        try:
            loads_strict(line[found:])
        except (ValueError, RecursionError):
            continue
        return found if _is_begun(line[:found], _STARTS) else None
    return None


def _is_begun(head: bytes, starts: Sequence[bytes]) -> bool:
    """Whether a record that begins in one of these ways can have `head` as its first part."""
    return any(head.startswith(start) or start.startswith(head) for start in starts)


def _parse_cut(head: bytes, where: str, keys: list[PublicKey], part: _Part) -> Iterator[Copied]:
    """What stands before the next record: a whole one of which only the line's end is missing, or the first part of one."""
    try:
        _, end = json.JSONDecoder().raw_decode(head.decode(errors="replace"))
    except (ValueError, RecursionError):
        part.begin()
        yield Unreadable(where, "a record has no end", is_cut=True)
        return
    if end == len(head.decode(errors="replace")):
        yield from _parse_line(head + b"\n", where, keys, part)
    else:
        yield Unreadable(where, "two records are on one line, and something between them")


def _parse(value: Any, line: bytes, where: str, keys: list[PublicKey], part: _Part) -> Copied:
    if "payloadType" in value:
        return _manifest(lambda: value, where, keys, part)
    if "stream" in value or "specversion" in value or "class_uid" in value:
        part.begin()
    if "specversion" in value:
        event, place = cloudevents.parse(value)
        return CopiedControl(where, event) if "stream" in event else CopiedEvent(where, event, place)
    if "class_uid" in value:
        event, own_place, wrong = ocsf.parse(value)
        return CopiedControl(where, event) if "stream" in event else _event(where, event, own_place, wrong)
    if "stream" in value:
        return CopiedControl(where, value)
    copied = _event(where, value)
    return copied._replace(part=part.add(line.rstrip(b"\r\n") + b"\n", copied.event))


def _event(where: str, event: Any, place: str | None = None, wrong: Sequence[str] = ()) -> CopiedEvent:
    if unknown := sorted(event.keys() - set(MEMBERS))[:3]:
        raise ValueError(f"{', '.join(unknown)} is no member of an event")
    if missing := [name for name in ("event_id", "log", "log_index", "event_hash") if name not in event]:
        raise ValueError(f"the event has no {', '.join(missing)}")
    return CopiedEvent(where, dict.fromkeys(MEMBERS) | event, place, wrong)


def _manifest(envelope: Callable[[], Any], where: str, keys: list[PublicKey], part: _Part) -> CopiedManifest:
    try:
        manifest, signer = open_envelope(envelope(), keys)
        return CopiedManifest(where, manifest, signer is not None, part.number, part.defect(manifest))
    finally:
        part.begin()
