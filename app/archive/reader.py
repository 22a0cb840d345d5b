"""The process that reads the archive's files for the service: questions come in on stdin, answers go out on stdout, one at a time.

It is a process of its own so that whoever waits can end it, and so that its memory is bounded: it reads one row group of one file
at a time, and of the rows that it finds it has only the newest, and of these only as many payloads as fit into the answer.
"""

import heapq
import os
import pickle
import resource
import signal
import sys
from bisect import insort
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from functools import partial
from hashlib import sha256
from time import monotonic
from typing import IO, Any, NamedTuple
from uuid import UUID

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from app.archive.columns import NAMES, erased_row, file_values, hash_of, rows_of
from app.archive.event_file import open_events
from app.archive.matching import (
    TEXT_COLUMNS,
    columns_for,
    id_bytes,
    is_on_payload,
    matching,
    may_have,
    may_have_text,
    meets_on_payload,
)
from app.archive.part_files import MANIFEST_NAME, ArchivedFile, event_files
from app.archive.question import (
    ALL_READ,
    HEAD_BYTES,
    Found,
    FoundRow,
    Key,
    PartToRead,
    Question,
    Refusal,
    body_bytes,
    framed,
)
from app.archive.storage import Storage, archive_storage
from app.events.canonical import loads

MEMORY_BYTES_MAX = 1024**3
"""Of what the process may allocate, far above what it needs: of a row group with large payloads one column at a time."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_FOOTERS_MAX = 8
"""Files whose whole footers are in memory: about a megabyte each."""
_AHEAD, _FOOTERS_AHEAD = 4, 2
"""Parts that are read ahead, and files of each: no more footers than may be in memory."""
_MANIFESTS_MAX = 10_000
"""Whose lists of files are in memory."""
_GROUPS_MAX = 50_000
"""Row groups whose statistics are in memory, as far as they were asked for: about a kilobyte each."""
_BATCH_EVENTS = 256
_SHOWN = tuple(
    name
    for name in NAMES
    if name
    not in {"recorded_at", "chain_index", "payload_salt", "payload_commitment", "event_metadata", "trace_id", "span_id"}
)
_UNREADABLE = (pa.ArrowException, ValueError, TypeError)


class Refused(Exception):
    """There is no answer."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal)
        self.refusal = refusal


def main() -> None:
    """Answer until stdin ends. The first message says where the archive is."""
    questions, answers = begin()
    place = receive(questions)
    if place is None:
        return
    search = Search(archive_storage(place))
    while (question := receive(questions)) is not None:
        send(answers, search.answer(question))


def begin() -> tuple[IO[bytes], IO[bytes]]:
    """Bound what this process may allocate. Questions come from the first stream, answers go to the second."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process ends this one
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    limit = MEMORY_BYTES_MAX if most == resource.RLIM_INFINITY else min(most, MEMORY_BYTES_MAX)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    return sys.stdin.buffer, answers


def receive(stream: IO[bytes]) -> Any:
    """The next message; None at the end."""
    head = stream.read(HEAD_BYTES)
    if len(head) < HEAD_BYTES:
        return None
    return pickle.loads(stream.read(body_bytes(head)))  # noqa: S301 -- of the parent process


def send(stream: IO[bytes], answer: object) -> None:
    """Answer."""
    stream.write(framed(answer))
    stream.flush()


_Bounds = tuple[Any, Any] | None
"""The smallest and the largest value of a column of a row group; None if nobody knows."""


class _Statistics(NamedTuple):
    """What is remembered of a footer that is not in memory any more: it takes fifteen times its length in the file."""

    groups: int
    bounds: dict[tuple[int, str], _Bounds]
    """By row group and column, those that were asked for."""


class _Head(NamedTuple):
    """What has to be read of a part before it is known where to look."""

    files: list[ArchivedFile]
    footers: list[pq.FileMetaData]
    """Of the first files."""


class EventFile(NamedTuple):
    """A file of events."""

    part: PartToRead
    storage: Storage
    signed: ArchivedFile
    statistics: _Statistics
    read_footer: Callable[[], pq.FileMetaData]

    @property
    def name(self) -> str:
        return self.signed.name

    @property
    def groups(self) -> "list[Group]":
        """Its row groups."""
        return [Group(self, number) for number in range(self.statistics.groups)]

    @contextmanager
    def open(self) -> Iterator[pq.ParquetFile]:
        """Its rows, to be read."""
        footer = self.read_footer()
        with self.storage.open(self.name) as stream, open_events(stream, footer) as opened:
            yield opened


class Group(NamedTuple):
    """A row group of a file."""

    file: EventFile
    number: int

    @property
    def row_bytes(self) -> int:
        """Of a row, on average, before compression."""
        footer = self.file.read_footer().row_group(self.number)
        return int(footer.total_byte_size // footer.num_rows)

    def bounds(self, column: str) -> _Bounds:
        """The smallest and the largest value of a column; None if nobody knows."""
        known, key = self.file.statistics.bounds, (self.number, column)
        if key not in known:
            found = self.file.read_footer().row_group(self.number).column(NAMES.index(column)).statistics
            known[key] = (found.min, found.max) if found is not None and found.has_min_max else None
        return known[key]


class Newest:
    """The newest rows that were found so far, no more than `count`: their keys, and where they are."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._heap: list[tuple[Key, int, Group, int]] = []
        self._number = 0

    @property
    def floor(self) -> int:
        """Rows before this time, in microseconds, need not be looked at."""
        return self._heap[0][0][0] if len(self._heap) == self._count else ALL_READ[0]

    def add(self, key: Key, group: Group, row: int) -> None:
        self._number += 1
        entry = (key, self._number, group, row)
        if len(self._heap) < self._count:
            heapq.heappush(self._heap, entry)
        else:
            heapq.heappushpop(self._heap, entry)

    def by_group(self, down_to: Key) -> list[tuple[Group, dict[int, Key]]]:
        """Keys by row, for each row group that has one at or above a key."""
        found: dict[tuple[str, str, int], tuple[Group, dict[int, Key]]] = {}
        for key, _, group, row in self._heap:
            if key >= down_to:
                where = (group.file.part.location, group.file.name, group.number)
                found.setdefault(where, (group, {}))[1][row] = key
        return list(found.values())


def refusal_of(error: Exception) -> Refusal:
    """Why there is no answer. The message of what nobody has foreseen may have what is in an event, so only its kind is named."""
    match error:
        case Refused():
            return error.refusal
        case FileNotFoundError():
            return Refusal("gone", f"a file of the archive is missing: {_first_line(error)}")
        case MemoryError():  # of pyarrow too
            return Refusal("slow", "a part of the archive does not fit into the memory of its reader")
        case OSError():
            return Refusal("away", f"the archive's storage could not be read: {_first_line(error)}")
        case _ if isinstance(error, _UNREADABLE):
            return Refusal("damaged", f"a file of the archive cannot be read: {_first_line(error)}")
    return Refusal("away", f"its reader has failed: {type(error).__name__}")


class Search:
    """Answers questions, with the metadata of the files that were read last."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._manifests: OrderedDict[UUID, list[ArchivedFile]] = OrderedDict()
        self._statistics: OrderedDict[tuple[str, str], _Statistics] = OrderedDict()
        self._groups = 0
        self._footers: OrderedDict[tuple[str, str], pq.FileMetaData] = OrderedDict()
        self._threads: ThreadPoolExecutor | None = None
        self._coming: dict[UUID, Future[_Head]] = {}
        """By part, what threads read."""

    def answer(self, question: Question) -> Found | Refusal:
        """The answer, or why there is none."""
        try:
            return self._found(question)
        except Exception as error:  # noqa: BLE001 -- the top of the loop
            return refusal_of(error)

    def _found(self, question: Question) -> Found:
        end = monotonic() + question.seconds
        newest = Newest(question.rows)
        read_to = ALL_READ
        asked = {part.archive_id for part in question.parts}
        self._coming = {part: head for part, head in self._coming.items() if part in asked}
        months = defaultdict[str, list[PartToRead]](list)
        for part in question.parts:
            months[part.month].append(part)
        order = sorted(months, reverse=True)
        later = (part for month in order[1:] for part in months[month])
        for number, month in enumerate(order):
            month_end = microseconds(_end_of(month))
            if max(newest.floor, question.down_to[0]) >= month_end:
                break
            if number:  # for many questions the first one is enough
                self._read_ahead(later)
            if not all(self._look_at(part, question, newest, end) for part in months[month]):
                if not number:
                    raise Refused(Refusal("slow", f"there was no time to look through {month} of the archive"))
                read_to = (month_end, b"")
                break
        return self._with_rows(question, newest, max(read_to, question.down_to))

    def _look_at(self, part: PartToRead, question: Question, newest: Newest, end: float) -> bool:
        """Add the matching rows of a part. False if there was no time for all of it."""
        if not self._has_come(part, end):
            return False
        for file in self.files(part):
            if monotonic() > end:
                return False
            groups = _newest_first(group for group in file.groups if may_match(group, question, newest))
            if not groups:
                continue  # nothing but the footer is read of it
            with file.open() as opened:
                for group in groups:
                    if not may_match(group, question, newest):
                        continue
                    if monotonic() > end:
                        return False
                    for one in matches(opened, group, question, newest):
                        newest.add(one.key, group, one.row)
        return True

    def _read_ahead(self, parts: Iterator[PartToRead]) -> None:
        """Have threads read what is not known yet of the parts that come next: a store answers several requests as soon as one."""
        while len(self._coming) < _AHEAD and (part := next(parts, None)) is not None:
            if part.archive_id not in self._manifests and part.archive_id not in self._coming:
                self._threads = self._threads or ThreadPoolExecutor(_AHEAD)
                self._coming[part.archive_id] = self._threads.submit(self._read_head, part)

    def _has_come(self, part: PartToRead, end: float) -> bool:
        """Whether what threads read of a part is there in time; if not, it is there for a later question."""
        head = self._coming.get(part.archive_id)
        return head is None or not wait([head], max(0.0, end - monotonic())).not_done

    def _read_head(self, part: PartToRead) -> _Head:
        storage = self._folder(part)
        files = _read_files(part, storage)
        return _Head(files, [_read_metadata(storage, file) for file in files[:_FOOTERS_AHEAD]])

    def files(self, part: PartToRead) -> Iterator[EventFile]:
        """The files of a part. Refused, OSError or what pyarrow raises if they are not as they were recorded, as far as that is seen."""
        storage = self._folder(part)
        head = self._coming.pop(part.archive_id, None)
        if head is not None and head.exception() is None:  # else it is read again, and fails again if it still does
            self._manifests[part.archive_id] = head.result().files
            for file, footer in zip(head.result().files, head.result().footers, strict=False):
                self._footers[storage.url, file.name] = footer
        for file in self._event_files(part, storage):
            read_footer = partial(self._footer, storage, file)
            yield EventFile(
                part, storage, file, self._statistics_of((part.location, file.name), read_footer), read_footer
            )

    def _folder(self, part: PartToRead) -> Storage:
        folder = self._storage.name_of(part.location)
        if folder is None:
            raise Refused(
                Refusal("away", f"a part is at {part.location}, which is not in the archive of these settings")
            )
        return self._storage.folder(folder)

    def _statistics_of(self, key: tuple[str, str], read_footer: Callable[[], pq.FileMetaData]) -> _Statistics:
        if key not in self._statistics:
            self._statistics[key] = _Statistics(read_footer().num_row_groups, {})
            self._groups += self._statistics[key].groups
        self._statistics.move_to_end(key)
        while self._groups > _GROUPS_MAX and len(self._statistics) > 1:
            self._groups -= self._statistics.popitem(last=False)[1].groups
        return self._statistics[key]

    def _footer(self, storage: Storage, file: ArchivedFile) -> pq.FileMetaData:
        key = (storage.url, file.name)
        if key not in self._footers:
            self._footers[key] = _read_metadata(storage, file)
        _remember(self._footers, key, _FOOTERS_MAX)
        return self._footers[key]

    def _event_files(self, part: PartToRead, storage: Storage) -> list[ArchivedFile]:
        if part.archive_id not in self._manifests:
            self._manifests[part.archive_id] = _read_files(part, storage)
        _remember(self._manifests, part.archive_id, _MANIFESTS_MAX)
        return self._manifests[part.archive_id]

    def _with_rows(self, question: Question, newest: Newest, read_to: Key) -> Found:
        """The rows themselves, the newest first, as many as fit into the answer."""
        answer: list[tuple[Key, int, FoundRow]] = []
        size = 0
        for group, keys in newest.by_group(read_to):
            for index, row in _rows_at(group, {row for row, key in keys.items() if key >= read_to}):
                if keys[index] < read_to:  # did not fit
                    continue
                found = found_row(group.file.part, keys[index], row, question)
                size += len(found.row["event_data"])
                insort(answer, (keys[index], len(answer), found), key=lambda one: one[0])
                while size > question.bytes_max and len(answer) > 1:
                    size -= len(answer.pop(0)[2].row["event_data"])
                    read_to = answer[0][0]
        return Found([found for _, _, found in reversed(answer)], read_to if read_to > question.down_to else ALL_READ)


def _remember(known: OrderedDict[Any, Any], key: object, most: int) -> None:
    """Have a key be the last one to be forgotten, and forget the first ones if there are too many."""
    known.move_to_end(key)
    while len(known) > most:
        known.popitem(last=False)


def _newest_first(groups: Iterable[Group]) -> list[Group]:
    """First the one that may have the newest event: the sooner that is found, the fewer are read."""
    return sorted(groups, key=lambda group: _latest(group.bounds("event_timestamp")), reverse=True)


def _latest(bounds: tuple[Any, Any] | None) -> int:
    return sys.maxsize if bounds is None else microseconds(bounds[1])


def _read_files(part: PartToRead, storage: Storage) -> list[ArchivedFile]:
    """The files that the manifest names which the log records."""
    envelope = storage.read(MANIFEST_NAME)
    if sha256(envelope).hexdigest() != part.manifest_sha256:
        raise Refused(
            Refusal("damaged", f"the manifest of the part {part.archive_id} is not the one that the log records")
        )
    return event_files(envelope)


def _read_metadata(storage: Storage, file: ArchivedFile) -> pq.FileMetaData:
    with storage.open(file.name) as stream:
        if (size := stream.size()) != file.bytes:
            raise Refused(Refusal("damaged", f"{file.name} of a part has {size} bytes, but {file.bytes} were signed"))
        with open_events(stream) as opened:
            return opened.metadata


def may_match(group: Group, question: Question, newest: Newest) -> bool:
    """Whether a row group can have a row that matches and is new enough, by what the file says of its columns."""
    part = group.file.part
    if not part.erased and not may_have(question.conditions, question.arguments, group.bounds):
        return False  # of all this rules out the most
    if (positions := group.bounds("log_index")) is not None:
        first, last = positions
        if not part.wanted.count(first, last + 1):
            return False
        if part.erased.count(first, last + 1):
            return True  # what was erased may match otherwise
    if (times := group.bounds("event_timestamp")) is not None:
        oldest, latest = (microseconds(one) for one in times)
        if latest < max(newest.floor, question.down_to[0]) or (question.after and oldest > question.after[0]):
            return False
    return not part.erased or may_have(question.conditions, question.arguments, group.bounds)


class _Columns:
    """Columns of a row group, each read once."""

    def __init__(self, opened: pq.ParquetFile, group: int, names: Iterable[str]) -> None:
        self._opened, self._group = opened, group
        table = opened.read_row_group(group, columns=sorted(names), use_threads=False)
        self._arrays = {name: id_bytes(table.column(name)) for name in table.column_names}

    def __call__(self, name: str) -> pa.Array:
        if name not in self._arrays:
            table = self._opened.read_row_group(self._group, columns=[name], use_threads=False)
            self._arrays[name] = id_bytes(table.column(name))
        return self._arrays[name]


_KEY_COLUMNS = {"log_id", "log_index", "event_timestamp", "event_id"}


class Match(NamedTuple):
    """A row of a row group that meets all conditions."""

    key: Key
    row: int
    position: int


def matches(opened: pq.ParquetFile, group: Group, question: Question, newest: Newest) -> Iterator[Match]:
    """Each row of a row group that matches, and may be new enough."""
    part = group.file.part
    columns = _Columns(opened, group.number, _KEY_COLUMNS | columns_for(question.conditions))
    times = columns("event_timestamp").cast(pa.int64())
    mask = pc.greater_equal(times, max(newest.floor, question.down_to[0]))
    if question.after is not None:
        mask = pc.and_(mask, pc.less_equal(times, question.after[0]))
    meets = matching(question.conditions, question.arguments, columns)
    erased = _erased_rows(group, columns, part)
    if erased:
        yield from _matches_of_erased(group, question, erased)
    mask = pc.and_(mask, pc.equal(columns("log_id"), part.log_id))
    rows = pc.indices_nonzero(mask if meets is None else pc.and_(mask, meets))
    if len(rows) and any(map(is_on_payload, question.conditions)):
        rows = pa.array(_on_payload(question, columns, rows.to_pylist()), rows.type)
    lowest, highest = pc.min_max(columns("log_index")).as_py().values()
    is_wanted = lowest is not None and part.wanted.count(lowest, highest + 1) == highest + 1 - lowest
    values = (column.take(rows).to_pylist() for column in (times, columns("event_id"), columns("log_index")))
    for row, time, event_id, position in zip(rows.to_pylist(), *values, strict=True):
        key = (time, event_id)
        if (
            row not in erased
            and (is_wanted or position in part.wanted)
            and key >= question.down_to
            and (question.after is None or key < question.after)
        ):
            yield Match(key, row, position)


def _on_payload(question: Question, columns: _Columns, rows: list[int]) -> list[int]:
    """Of some rows those that meet the conditions on the payload."""
    if "q" in question.conditions and question.prefilter:
        found = may_have_text(question.prefilter, question.arguments, columns)
        rows = [row for row in rows if found[row].as_py()]
    names = TEXT_COLUMNS | {"event_data"}
    return [
        row
        for row in rows
        if meets_on_payload(
            question.conditions, question.arguments, {name: columns(name)[row].as_py() for name in names}
        )
    ]


def _erased_rows(group: Group, columns: _Columns, part: PartToRead) -> set[int]:
    """The rows whose content is in the file although it was erased since."""
    bounds = group.bounds("log_index")
    if not part.erased or (bounds is not None and not part.erased.count(bounds[0], bounds[1] + 1)):
        return set()
    return {row for row, position in enumerate(columns("log_index").to_pylist()) if position in part.erased}


def _matches_of_erased(group: Group, question: Question, rows: set[int]) -> Iterator[Match]:
    """As matches(), of rows as an erasure leaves them."""
    part = group.file.part
    for number, row in _rows_at(group, rows):
        values = dict(zip(NAMES, file_values(_as_erased(part, row)), strict=True))
        key = (microseconds(row["event_timestamp"]), row["event_id"].bytes)
        meets = matching(question.conditions, question.arguments, lambda name: _array_of(name, values))  # noqa: B023 -- called at once
        if (
            row["log_index"] in part.wanted
            and row["log_id"] == part.log_id
            and question.down_to <= key
            and (question.after is None or key < question.after)
            and (meets is None or meets[0].as_py())
            and meets_on_payload(question.conditions, question.arguments, _texts(values))
        ):
            yield Match(key, number, row["log_index"])


def _array_of(name: str, values: Mapping[str, Any]) -> pa.Array:
    is_id = name in {"event_id", "parent_event_id"}
    array_type = pa.timestamp("us", "UTC") if name == "event_timestamp" else pa.binary(16) if is_id else pa.string()
    return pa.array([values[name]], array_type)


def _texts(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: values[name] for name in TEXT_COLUMNS} | {"event_data": values["event_data"]}


def _as_erased(part: PartToRead, row: dict[str, Any]) -> dict[str, Any]:
    """A row as it may be shown."""
    if row["log_index"] in part.erased and row["payload_commitment"] is None:
        return erased_row(row, None)
    return row


def _rows_at(group: Group, wanted: set[int]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Some rows of a row group, each with its number in it."""
    if not wanted:
        return
    with group.file.open() as opened:
        for chosen, some in batches_at(opened, group.number, wanted):
            yield from zip(chosen, rows_of([column.to_pylist() for column in some.columns]), strict=True)


def batches_at(
    opened: pq.ParquetFile, group: int, wanted: Container[int]
) -> Iterator[tuple[list[int], pa.RecordBatch]]:
    """Some rows of a row group, batch by batch, each with their numbers in the group."""
    start = 0
    for batch in opened.iter_batches(_BATCH_EVENTS, row_groups=[group], use_threads=False):
        chosen = [row for row in range(start, start + batch.num_rows) if row in wanted]
        if chosen:
            yield chosen, batch.take(pa.array([row - start for row in chosen], pa.int64()))
        start += batch.num_rows


def found_row(part: PartToRead, key: Key, row: dict[str, Any], question: Question) -> FoundRow:
    """A row as it is answered. Refused if its JSON is none."""
    _require_json(part, row)
    row = _as_erased(part, row)
    try:
        event_hash = hash_of(row, part.log_name)
    except (ValueError, TypeError, KeyError):
        event_hash = ""
    if question.payloads_of is not None and row["event_type"] not in question.payloads_of:
        row |= {"event_data": b"{}"}
    names = NAMES if question.is_whole else _SHOWN
    return FoundRow(key, part.archive_id, {name: row[name] for name in names}, event_hash)


def _require_json(part: PartToRead, row: dict[str, Any]) -> None:
    """Refuse to answer with what no row can have had: whoever writes the answer would fail on it."""
    try:
        for name in ("event_data", "event_metadata"):
            if row[name] is not None:
                loads(row[name])
    except ValueError:
        why = f"the event at position {row['log_index']} of the part {part.archive_id} has {name} that is not JSON"
        raise Refused(Refusal("damaged", why)) from None


def _end_of(month: str) -> datetime:
    first = date.fromisoformat(f"{month}-01")
    following = (first.replace(day=28) + timedelta(days=4)).replace(day=1)
    return datetime(following.year, following.month, 1, tzinfo=UTC)


def microseconds(time: datetime) -> int:
    return (time - _EPOCH) // _MICROSECOND


def _first_line(error: BaseException) -> str:
    return (str(error) or repr(error)).split("\n", 1)[0][:200]


if __name__ == "__main__":
    main()
