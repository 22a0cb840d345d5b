"""A portion as it leaves: the records of its items in the form that a client asked for, made once for all who get them."""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, get_args

from app.events.log import LOG_POSITIONS
from app.stream.place import place_text
from app.stream.portion import Absent, Checkpoint, Item, Portion, Seam, StreamedEvent
from app.stream.records import Control, control_line, ndjson_line

Form = Literal["sse", "ndjson"]
"""Server-Sent Events, or lines of JSON."""
_CHUNK_BYTES = 64 * 1024
_COPIES = 1 + len(get_args(Form))
_LINE_BYTES = 512
"""Of the objects around a line, and of the names around its copies."""


class Chunk(NamedTuple):
    """Whole records, about 64 KiB of them but for a large event."""

    content: bytes
    next: int
    """The place behind them."""


class _Line(NamedTuple):
    """The line of one item."""

    item: Item | None
    """Only of what can be divided: events that were rendered need no more memory than their lines."""
    place: int
    next: int
    """The place where a stream goes on after it."""
    name: str
    last: int | None
    """As of _record()."""
    content: bytes


class Rendered:
    """A portion, from the place `first` up to `next`."""

    def __init__(self, lines: Sequence[_Line], first: int, next_place: int, *, is_end: bool) -> None:
        self.first = first
        self.next = next_place
        self.is_end = is_end
        """Whether the log had nothing more."""
        self.size = sum(_COPIES * len(line.content) + _LINE_BYTES for line in lines)
        """Bytes of memory that it takes at most: its lines, and their records in each form."""
        self._lines = lines
        self._chunks: dict[Form, list[Chunk]] = {}

    @classmethod
    def of(cls, portion: Portion, first: int) -> "Rendered":
        """The portion that begins at `first`."""
        return cls([_line(item) for item in portion.items], first, portion.next, is_end=portion.is_end)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to send."""
        return not self._lines

    def since(self, place: int) -> "Rendered":
        """What of it is not before `place`, which is not behind it."""
        if place <= self.first:
            return self
        lines = []
        for line in self._lines:
            if isinstance(line.item, Absent) and line.place < place < line.next:
                lines.append(_line(line.item._replace(first=place)))
            elif line.place >= place:
                lines.append(line)
        return Rendered(lines, place, self.next, is_end=self.is_end)

    def chunks(self, form: Form) -> Sequence[Chunk]:
        """Its records."""
        if form not in self._chunks:
            self._chunks[form] = list(_chunked(self._lines, form))
        return self._chunks[form]


def _chunked(lines: Sequence[_Line], form: Form) -> Iterator[Chunk]:
    records, size = list[bytes](), 0
    for number, line in enumerate(lines, 1):
        records.append(_record(form, line.name, line.content, line.last))
        size += len(records[-1])
        if size >= _CHUNK_BYTES or number == len(lines):
            yield Chunk(b"".join(records), line.next)
            records, size = [], 0


def _line(item: Item) -> _Line:
    content = bytes(memoryview(ndjson_line(item)))  # a copy: orjson leaves 16 KiB of space with each line of 1 KiB
    match item:
        case StreamedEvent(place):
            return _Line(None, place, place + 1, "audit", place, content)
        case Absent(first, end):
            return _Line(item, first, end, "absent", end - 1, content)
        case Seam(place):
            return _Line(None, place, place, "seam", None, content)
        case Checkpoint(place):
            return _Line(None, place, place, "checkpoint", None, content)


def checkpoint_record(checkpoint: Checkpoint, form: Form) -> bytes:
    """What was signed of what was sent."""
    return _record(form, "checkpoint", ndjson_line(checkpoint), None)


def position_record(place: int, form: Form) -> bytes:
    """Says where to go on: everything before `place` that matches was sent."""
    return _control(form, {"stream": "position", "place": place_text(place)}, place)


def closed_record(place: int, reason: str, form: Form) -> bytes:
    """The last record of a stream that the service ends."""
    return _control(form, {"stream": "closed", "place": place_text(place), "reason": reason}, place)


def _control(form: Form, record: Control, place: int) -> bytes:
    # A client goes on after the id that it has seen last. Before the first position of a log there is none: it has the one before.
    return _record(form, record["stream"], control_line(record), place - 1 if place % LOG_POSITIONS else None)


def _record(form: Form, name: str, line: bytes, last: int | None) -> bytes:
    """`last`: the place after which a client goes on that has seen this record; None leaves it where it was."""
    if form == "ndjson":
        return line
    name_of_place = b"" if last is None else b"id: %b\n" % place_text(last).encode()
    return b"%bevent: %b\ndata: %b\n" % (name_of_place, name.encode(), line)
