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
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
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
_FILES_MAX = 8
"""Whose metadata is in memory: about a megabyte each."""
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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process ends this one
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    limit = MEMORY_BYTES_MAX if most == resource.RLIM_INFINITY else min(most, MEMORY_BYTES_MAX)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    questions = sys.stdin.buffer
    place = _receive(questions)
    if place is None:
        return
    search = Search(archive_storage(place))
    while (question := _receive(questions)) is not None:
        _send(answers, search.answer(question))


def _receive(stream: IO[bytes]) -> Any:
    """The next message; None at the end."""
    head = stream.read(HEAD_BYTES)
    if len(head) < HEAD_BYTES:
        return None
    return pickle.loads(stream.read(body_bytes(head)))  # noqa: S301 -- of the parent process


def _send(stream: IO[bytes], answer: Found | Refusal) -> None:
    stream.write(framed(answer))
    stream.flush()


class _File(NamedTuple):
    """A file of events, and what its footer says."""

    part: PartToRead
    storage: Storage
    name: str
    metadata: pq.FileMetaData

    def open(self) -> pa.NativeFile:
        return self.storage.open(self.name)


class _Group(NamedTuple):
    file: _File
    number: int

    @property
    def rows(self) -> int:
        return int(self.file.metadata.row_group(self.number).num_rows)

    def bounds(self, column: str) -> tuple[Any, Any] | None:
        """The smallest and the largest value of a column; None if nobody knows."""
        statistics = self.file.metadata.row_group(self.number).column(NAMES.index(column)).statistics
        return (statistics.min, statistics.max) if statistics is not None and statistics.has_min_max else None


class _Newest:
    """The newest rows that were found so far, no more than `count`: their keys, and where they are."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._heap: list[tuple[Key, int, _Group, int]] = []
        self._number = 0

    @property
    def floor(self) -> int:
        """Rows before this time, in microseconds, need not be looked at."""
        return self._heap[0][0][0] if len(self._heap) == self._count else ALL_READ[0]

    def add(self, key: Key, group: _Group, row: int) -> None:
        self._number += 1
        entry = (key, self._number, group, row)
        if len(self._heap) < self._count:
            heapq.heappush(self._heap, entry)
        else:
            heapq.heappushpop(self._heap, entry)

    def by_group(self, down_to: Key) -> list[tuple[_Group, dict[int, Key]]]:
        """Keys by row, for each row group that has one at or above a key."""
        found: dict[tuple[str, str, int], tuple[_Group, dict[int, Key]]] = {}
        for key, _, group, row in self._heap:
            if key >= down_to:
                where = (group.file.part.location, group.file.name, group.number)
                found.setdefault(where, (group, {}))[1][row] = key
        return list(found.values())


class Search:
    """Answers questions, with the metadata of the files that were read last."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._manifests: OrderedDict[UUID, list[ArchivedFile]] = OrderedDict()
        self._metadata: OrderedDict[tuple[str, str], pq.FileMetaData] = OrderedDict()

    def answer(self, question: Question) -> Found | Refusal:
        """The answer, or why there is none."""
        try:
            return self._found(question)
        except Refused as refused:
            return refused.refusal
        except FileNotFoundError as error:
            return Refusal("gone", f"a file of the archive is missing: {_first_line(error)}")
        except MemoryError:  # of pyarrow too
            return Refusal("slow", "a part of the archive does not fit into the memory of its reader")
        except OSError as error:
            return Refusal("away", f"the archive's storage could not be read: {_first_line(error)}")
        except _UNREADABLE as error:
            return Refusal("damaged", f"a file of the archive cannot be read: {_first_line(error)}")
        except Exception as error:  # noqa: BLE001 -- the top of the loop; the message may have what is in an event
            return Refusal("away", f"its reader has failed: {type(error).__name__}")

    def _found(self, question: Question) -> Found:
        end = monotonic() + question.seconds
        newest = _Newest(question.rows)
        read_to = ALL_READ
        months = defaultdict[str, list[PartToRead]](list)
        for part in question.parts:
            months[part.month].append(part)
        for number, month in enumerate(sorted(months, reverse=True)):
            month_end = _microseconds(_end_of(month))
            if max(newest.floor, question.down_to[0]) >= month_end:
                break
            if not all(self._look_at(part, question, newest, end) for part in months[month]):
                if not number:
                    raise Refused(Refusal("slow", f"there was no time to look through {month} of the archive"))
                read_to = (month_end, b"")
                break
        return self._with_rows(question, newest, max(read_to, question.down_to))

    def _look_at(self, part: PartToRead, question: Question, newest: _Newest, end: float) -> bool:
        """Add the matching rows of a part. False if there was no time for all of it."""
        for file in self._files(part):
            with file.open() as stream, open_events(stream, file.metadata) as opened:
                for group in _newest_first(file):
                    if not _may_match(group, question, newest):
                        continue
                    if monotonic() > end:
                        return False
                    for key, row in _matches(opened, group, question, newest):
                        newest.add(key, group, row)
        return True

    def _files(self, part: PartToRead) -> Iterator[_File]:
        folder = self._storage.name_of(part.location)
        if folder is None:
            raise Refused(
                Refusal("away", f"a part is at {part.location}, which is not in the archive of these settings")
            )
        storage = self._storage.folder(folder)
        for file in self._event_files(part, storage):
            key = (part.location, file.name)
            if key not in self._metadata:
                self._metadata[key] = _read_metadata(storage, file)
            self._metadata.move_to_end(key)
            if len(self._metadata) > _FILES_MAX:
                self._metadata.popitem(last=False)
            yield _File(part, storage, file.name, self._metadata[key])

    def _event_files(self, part: PartToRead, storage: Storage) -> list[ArchivedFile]:
        """The files that the manifest names which the log records."""
        if part.archive_id not in self._manifests:
            envelope = storage.read(MANIFEST_NAME)
            if sha256(envelope).hexdigest() != part.manifest_sha256:
                raise Refused(
                    Refusal(
                        "damaged", f"the manifest of the part {part.archive_id} is not the one that the log records"
                    )
                )
            self._manifests[part.archive_id] = event_files(envelope)
        self._manifests.move_to_end(part.archive_id)
        if len(self._manifests) > _FILES_MAX:
            self._manifests.popitem(last=False)
        return self._manifests[part.archive_id]

    def _with_rows(self, question: Question, newest: _Newest, read_to: Key) -> Found:
        """The rows themselves, the newest first, as many as fit into the answer."""
        answer: list[tuple[Key, int, FoundRow]] = []
        size = 0
        for group, keys in newest.by_group(read_to):
            for index, row in _rows_at(group, {row for row, key in keys.items() if key >= read_to}):
                if keys[index] < read_to:  # did not fit
                    continue
                found = _found_row(group.file.part, keys[index], row, question)
                size += len(found.row["event_data"])
                insort(answer, (keys[index], len(answer), found), key=lambda one: one[0])
                while size > question.bytes_max and len(answer) > 1:
                    size -= len(answer.pop(0)[2].row["event_data"])
                    read_to = answer[0][0]
        return Found([found for _, _, found in reversed(answer)], read_to if read_to > question.down_to else ALL_READ)


def _newest_first(file: _File) -> list[_Group]:
    """The row groups of a file, first the one that may have the newest event: the sooner that is found, the fewer are read."""
    groups = [_Group(file, number) for number in range(file.metadata.num_row_groups)]
    latest = {group.number: group.bounds("event_timestamp") for group in groups}
    return sorted(groups, key=lambda group: _latest(latest[group.number]), reverse=True)


def _latest(bounds: tuple[Any, Any] | None) -> int:
    return sys.maxsize if bounds is None else _microseconds(bounds[1])


def _read_metadata(storage: Storage, file: ArchivedFile) -> pq.FileMetaData:
    with storage.open(file.name) as stream:
        if (size := stream.size()) != file.bytes:
            raise Refused(Refusal("damaged", f"{file.name} of a part has {size} bytes, but {file.bytes} were signed"))
        with open_events(stream) as opened:
            return opened.metadata


def _may_match(group: _Group, question: Question, newest: _Newest) -> bool:
    """Whether a row group can have a row that matches and is new enough, by what the file says of its columns."""
    part = group.file.part
    if (positions := group.bounds("log_index")) is not None:
        first, last = positions
        if not part.wanted.count(first, last + 1):
            return False
        if part.erased.count(first, last + 1):
            return True  # what was erased may match otherwise
    if (times := group.bounds("event_timestamp")) is not None:
        oldest, latest = (_microseconds(one) for one in times)
        if latest < max(newest.floor, question.down_to[0]) or (question.after and oldest > question.after[0]):
            return False
    return may_have(question.conditions, question.arguments, group.bounds)


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


def _matches(opened: pq.ParquetFile, group: _Group, question: Question, newest: _Newest) -> Iterator[tuple[Key, int]]:
    """Key and number of each row of a row group that matches, and may be new enough."""
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
    rows = pc.indices_nonzero(mask if meets is None else pc.and_(mask, meets)).to_pylist()
    if rows and any(map(is_on_payload, question.conditions)):
        rows = _on_payload(question, columns, rows)
    ids, positions, log_ids = columns("event_id"), columns("log_index"), columns("log_id")
    for row in rows:
        key = (times[row].as_py(), ids[row].as_py())
        position = positions[row].as_py()
        if (
            row not in erased
            and log_ids[row].as_py() == part.log_id
            and position in part.wanted
            and key >= question.down_to
            and (question.after is None or key < question.after)
        ):
            yield key, row


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


def _erased_rows(group: _Group, columns: _Columns, part: PartToRead) -> set[int]:
    """The rows whose content is in the file although it was erased since."""
    bounds = group.bounds("log_index")
    if not part.erased or (bounds is not None and not part.erased.count(bounds[0], bounds[1] + 1)):
        return set()
    return {row for row, position in enumerate(columns("log_index").to_pylist()) if position in part.erased}


def _matches_of_erased(group: _Group, question: Question, rows: set[int]) -> Iterator[tuple[Key, int]]:
    """As _matches(), of rows as an erasure leaves them."""
    part = group.file.part
    for number, row in _rows_at(group, rows):
        values = dict(zip(NAMES, file_values(_as_erased(part, row)), strict=True))
        key = (_microseconds(row["event_timestamp"]), row["event_id"].bytes)
        meets = matching(question.conditions, question.arguments, lambda name: _array_of(name, values))  # noqa: B023 -- called at once
        if (
            row["log_index"] in part.wanted
            and row["log_id"] == part.log_id
            and question.down_to <= key
            and (question.after is None or key < question.after)
            and (meets is None or meets[0].as_py())
            and meets_on_payload(question.conditions, question.arguments, _texts(values))
        ):
            yield key, number


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


def _rows_at(group: _Group, wanted: set[int]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Some rows of a row group, each with its number in it."""
    if not wanted:
        return
    with group.file.open() as stream, open_events(stream, group.file.metadata) as opened:
        start = 0
        for batch in opened.iter_batches(_BATCH_EVENTS, row_groups=[group.number], use_threads=False):
            chosen = [row for row in range(start, start + batch.num_rows) if row in wanted]
            if chosen:
                some = batch.take(pa.array([row - start for row in chosen], pa.int64()))
                yield from zip(chosen, rows_of([column.to_pylist() for column in some.columns]), strict=True)
            start += batch.num_rows


def _found_row(part: PartToRead, key: Key, row: dict[str, Any], question: Question) -> FoundRow:
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


def _microseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // _MICROSECOND


def _first_line(error: BaseException) -> str:
    return (str(error) or repr(error)).split("\n", 1)[0][:200]


if __name__ == "__main__":
    main()
