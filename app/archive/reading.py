"""The service's side of reading the archive: which parts have what Postgres has no more, and a process that searches them.

An event is shown from the archive if the log records that its row was removed; everything else is in Postgres, and shown from there. What
is shown was compared with the leaf that the log has at its position.
"""

import asyncio
import os
import pickle
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from time import monotonic
from types import MappingProxyType
from typing import Any, NoReturn
from uuid import UUID

from app.archive.question import (
    ALL_READ,
    HEAD_BYTES,
    ArchivePlace,
    Found,
    FoundRow,
    Key,
    PartToRead,
    Question,
    Refusal,
    body_bytes,
    framed,
)
from app.archive.recorded import read_erasures, read_parts, record_version
from app.db import Connection, Pool, driver_connection
from app.errors import AuditError, DatabaseBusy, Unavailable
from app.events.log import LOG_POSITIONS, Log, place_of
from app.events.positions import NO_POSITIONS, Positions
from app.export.manifest import LeftOut
from app.query.cursor import Cursor
from app.query.filter import EventFilter, EventQuery, in_json, text_pattern
from app.query.page import archived_event
from app.query.timeline import Gone
from app.settings import Settings
from app.sql import load
from app.tlog.evidence import RECORDS, leaves_at, read_evidence

SQL = load("archive")
ARCHIVE_SHARE = 0.5
"""Of the deadline of a query, for the search in the archive: what it has found by then is answered."""
PAGE_BYTES_MAX = 8 * 1024**2
"""Of payloads on a page, from where on it ends before it is full."""
_PACKAGES = str(Path(__file__).parents[2])
"""Where this package is."""
_IDLE_SECONDS = 300.0
"""After which the process ends that nobody asks."""
_TRIES = 2
CORRELATION_EVENTS_MAX = 10_000
"""Of one correlation that are in memory at once."""
CORRELATION_BYTES_MAX = 64 * 1024**2
"""Of their payloads, where these are wanted."""
_ROWS_AT_ONCE = 2_000
_SAME_ID_MAX = 8
"""Events with the same id that are compared: only one of them can be what the log has."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_SEPARATED = str.maketrans(dict.fromkeys(" ,:", "\n"))
"""What jsonb's text has between values otherwise than the archive has."""


class ArchiveAway(Unavailable):
    """The archive cannot be read now; send the request again shortly."""


class ArchiveDamaged(AuditError):
    """The archive is not as the log records it."""


class PartGone(Exception):
    """A file of a part is not there: another part may have replaced it meanwhile."""


@dataclass(frozen=True, slots=True)
class ArchivedEvents:
    """Events that are in the archive alone."""

    events: list[tuple[Cursor, dict[str, Any]]]
    """Newest first, each with its key, in the form of the answer."""
    end: Cursor | None
    """Down to where the archive was read; None: down to where it was to be."""


@dataclass(frozen=True, slots=True)
class ArchivedRow:
    """An event that is in the archive alone, compared with the log. What was erased of it is as an erasure leaves it."""

    row: dict[str, Any]
    """Columns of the archive as rows of Postgres have them, but for JSON, which is canonical; and what it hashes to, `event_hash`, `leaf`
    and `archive_id`."""

    @classmethod
    def of(cls, found: FoundRow, leaf: str | None) -> "ArchivedRow":
        """One that was found, and the leaf that the log has at its position."""
        link = found.row["previous_event_hash"]
        own = {"previous_event_hash": None if link is None else link.hex(), "event_hash": found.event_hash}
        return cls(found.row | own | {"leaf": leaf, "archive_id": found.archive_id})

    @property
    def is_logged(self) -> bool:
        """Whether it is what the log has at its position."""
        return bool(self.row["leaf"] == self.row["event_hash"])

    def event(self) -> dict[str, Any]:
        """In the form of the answer; not sealed if it is not what the log has."""
        return archived_event(self.row | {"sealed": self.is_logged})


@dataclass(eq=False)
class ArchiveReader:
    """Reads the archive for one process of the service. One question at a time: that bounds its memory."""

    settings: Settings
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    _process: asyncio.subprocess.Process | None = None
    _idle: asyncio.TimerHandle | None = None
    _recorded: tuple[tuple[Any, ...], tuple[PartToRead, ...]] | None = None
    """What the log records of the parts, and what tells it from what it recorded before."""

    @property
    def what_is_missing(self) -> str | None:
        """What to change before the archive can be read; None if nothing."""
        if self.settings.archive_url is None:
            return "this service has no archive: DATASTORAGE_ARCHIVE_URL says where it is"
        if not _has_packages():
            return "the service needs more packages for the archive: pip install 'datastorage[archive]'"
        return None

    @property
    def place(self) -> ArchivePlace:
        """The first message to a process that reads."""
        return ArchivePlace(*(getattr(self.settings, name) for name in ArchivePlace._fields))

    @property
    def process_id(self) -> int | None:
        """Of the process that reads, if there is one."""
        return None if self._process is None else self._process.pid

    async def is_all_archived(self, pool: Pool, until: datetime) -> bool:
        """Whether Postgres has nothing that is not later than `until`."""
        async with driver_connection(pool) as connection:
            return not await connection.fetchval(SQL["has_until"], until)

    async def read(
        self, pool: Pool, log: Log, query: EventQuery, down_to: Cursor | None, seconds: float
    ) -> ArchivedEvents:
        """The events on the page of `query` that are in the archive alone, with one more if there is one.

        `pool` is that of the primary, and the page of Postgres was read before: what is removed between the two is found twice, not never.
        DatabaseBusy, ArchiveAway or ArchiveDamaged if it cannot be read.
        """
        if query.sealed is False:
            return ArchivedEvents([], None)
        after = key_of(query.cursor) if isinstance(query.cursor, Cursor) else None
        lowest = ALL_READ if down_to is None else key_of(down_to)
        question = Question(
            query.conditions(),
            {name: value for name, value in query.arguments().items() if value is not None},
            prefilter_of(query),
            after,
            lowest,
            query.limit + 1,
            (),
            seconds,
            PAGE_BYTES_MAX,
        )
        found = await self._found(pool, log, question, lambda month: _is_between(month, query, after, lowest))
        events = [
            (_cursor(one.key), ArchivedRow.of(one, leaf).event())
            for one, leaf in await _with_leaves(pool, log, found.rows)
            if not query.sealed or leaf == one.event_hash
        ]
        is_full = len(found.rows) > query.limit  # some of them may be left out, and there may be more after them
        read_to = found.rows[-1].key if is_full else found.read_to
        return ArchivedEvents(events, None if read_to == ALL_READ else _cursor(read_to))

    async def find(self, pool: Pool, log: Log, event_id: UUID, seconds: float) -> "ArchivedRow | None":
        """The event with this id, with all its columns, if it is in the archive alone; the one that the log has, if several have the id.

        Most ids begin with a time, so the months around that are looked through first; statistics of other row groups rule them out, and
        ids that are random are read of each. DatabaseBusy if there was no time for all months; else as read().
        """
        end = monotonic() + seconds
        around = _months_around(event_id)
        doubtful: ArchivedRow | None = None
        for is_wanted in (around.__contains__, lambda month: month not in around):
            question = Question(
                *(("event_id",), {"event_id": event_id}, "", None, ALL_READ, _SAME_ID_MAX, ()),
                *(end - monotonic(), PAGE_BYTES_MAX, True),
            )
            try:
                found = await self._found(pool, log, question, is_wanted)
            except DatabaseBusy:
                raise _not_looked_through(event_id) from None
            rows = [ArchivedRow.of(*one) for one in await _with_leaves(pool, log, found.rows)]
            if (logged := next((one for one in rows if one.is_logged), None)) is not None:
                return logged
            doubtful = doubtful or next(iter(rows), None)
            if found.read_to != ALL_READ:
                raise _not_looked_through(event_id)
        return doubtful

    async def of_correlation(
        self,
        pool: Pool,
        log: Log,
        correlation_id: str,
        gone: Gone,
        *,
        payloads_of: frozenset[str] | None,
        seconds: float,
    ) -> "list[ArchivedRow]":
        """The events of one correlation that are in the archive alone, newest first: those that are `gone`. They have all columns, but
        payloads only of some types, if `payloads_of` is not None.

        DatabaseBusy if there are more than CORRELATION_EVENTS_MAX, or payloads of more than CORRELATION_BYTES_MAX, or no time for all; else as read().
        """
        end = monotonic() + seconds
        rows: dict[int, ArchivedRow] = {}
        after: Key | None = None
        size = 0
        while len(rows) < gone.count:
            question = Question(
                *(("correlation_id",), {"correlation_id": correlation_id}, "", after, ALL_READ),
                *(min(gone.count - len(rows), _ROWS_AT_ONCE), (), end - monotonic(), PAGE_BYTES_MAX),
                *(True, payloads_of),
            )
            try:
                found = await self._found(pool, log, question, lambda _: True)
            except DatabaseBusy:
                raise _too_much(correlation_id) from None
            for one in await _with_leaves(pool, log, found.rows):
                at = place_of(one[0].row["log_id"], one[0].row["log_index"])
                if at not in gone.stored:
                    rows.setdefault(at, ArchivedRow.of(*one))
            size += sum(len(one.row["event_data"]) for one in found.rows)
            if len(rows) > CORRELATION_EVENTS_MAX or size > CORRELATION_BYTES_MAX:
                raise _too_much(correlation_id)
            if found.read_to == ALL_READ and len(found.rows) < question.rows:
                break
            after = found.rows[-1].key if found.rows else found.read_to
        return list(rows.values())

    async def has_more(self, pool: Pool, log: Log) -> bool:
        """Whether some events are in the archive alone, as the log records it."""
        return bool(await self.parts(pool, log))

    async def close(self) -> None:
        """End the process, if there is one; it has ended when this returns."""
        if self._idle is not None:
            self._idle.cancel()
        process = self._process
        self._end()
        if process is not None:
            await process.wait()

    async def _found(self, pool: Pool, log: Log, question: Question, is_wanted: Callable[[str], bool]) -> Found:
        """The answer to `question`, asked of the parts of the wanted months."""
        for _ in range(_TRIES):
            parts = await self.parts(pool, log, is_wanted)
            if not parts:
                return Found([], ALL_READ)
            with suppress(PartGone):
                return await self._ask(question._replace(parts=parts))
        raise ArchiveAway

    async def parts(
        self, pool: Pool, log: Log, is_wanted: Callable[[str], bool] = lambda _: True
    ) -> tuple[PartToRead, ...]:
        """The parts with events that Postgres has no more, of the wanted months.

        A removal of ten million events is ten thousand events of the log, which are read again only if there are others.
        """
        async with driver_connection(pool) as connection, _snapshot(connection):
            return tuple(part for part in await self.parts_in(connection, log) if is_wanted(part.month))

    async def parts_in(self, connection: Connection, log: Log) -> tuple[PartToRead, ...]:
        """The parts with events that Postgres has no more. `connection` is in a snapshot."""
        version = await record_version(connection, log, RECORDS)
        recorded = self._recorded  # others may put there what they have seen before this snapshot
        if recorded is None or recorded[0] != version:
            recorded = self._recorded = version, await _parts_to_read(connection, log)
        return recorded[1]

    async def _ask(self, question: Question) -> Found:
        async with self._turn:
            if self._idle is not None:
                self._idle.cancel()
            try:
                answer = await self._exchange(question)
            except (OSError, EOFError, asyncio.IncompleteReadError):
                self._end()
                raise ArchiveAway("The process that reads the archive has ended.") from None
            except BaseException:  # whoever asked waits no more: its answer is not the next one's
                self._end()
                raise
            self._idle = asyncio.get_running_loop().call_later(_IDLE_SECONDS, self._end)
        if not isinstance(answer, Found):
            refuse(answer)
        return answer

    async def _exchange(self, question: Question) -> Found | Refusal:
        process = self._process
        if process is None or process.returncode is not None:
            process = self._process = await start_reader("app.archive.reader")
            await send(process, self.place)
        await send(process, question)
        answer: Found | Refusal = await receive(process)
        return answer

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()


@cache
def _has_packages() -> bool:
    return find_spec("pyarrow") is not None


async def start_reader(module: str) -> asyncio.subprocess.Process:
    """A process that reads the archive, by a module of this package."""
    # All that `site` would find: it takes a tenth of the process's start.
    path = os.pathsep.join(dict.fromkeys([*filter(None, sys.path), _PACKAGES]))
    # A pool of memory that gives back what it does not need any more, and less than there are cores: others need them.
    environment = os.environ | {"PYTHONPATH": path, "ARROW_DEFAULT_MEMORY_POOL": "system", "OMP_NUM_THREADS": "1"}
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-S", "-P", "-m", module),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=environment,
    )


async def send(process: asyncio.subprocess.Process, message: object) -> None:
    """Ask a process that reads the archive. OSError if it has ended."""
    assert process.stdin is not None
    process.stdin.write(framed(message))
    await process.stdin.drain()


async def receive(process: asyncio.subprocess.Process) -> Any:
    """What it answers next. IncompleteReadError if it has ended."""
    assert process.stdout is not None
    head = await process.stdout.readexactly(HEAD_BYTES)
    return pickle.loads(await process.stdout.readexactly(body_bytes(head)))  # noqa: S301 -- our own process


def refuse(refusal: Refusal) -> NoReturn:
    """Raise what a refusal means to those who have asked; PartGone if asking again may help."""
    kind, message = refusal
    if kind == "gone":
        raise PartGone
    if kind == "slow":
        raise DatabaseBusy(f"No answer in time: {message}. Narrow the query by time, or by correlation.")
    if kind == "away":
        raise ArchiveAway(f"The archive cannot be read: {message}.")
    raise ArchiveDamaged(f"The archive is not as the log records it: {message}. `datastorage archive verify` has more.")


async def _parts_to_read(connection: Connection, log: Log) -> tuple[PartToRead, ...]:
    recorded = await read_parts(connection, log)
    missing = (await read_evidence(connection, log)).missing if recorded else NO_POSITIONS
    erasures = await read_erasures(connection, log) if missing else ()
    return tuple(
        PartToRead(
            part.archive_id,
            part.location,
            part.manifest_sha256,
            part.month,
            part.log_id,
            log.name_of(part.log_id),
            positions,
            Positions(one for erasure in part.pending(erasures) for one in erasure.positions.ranges),
        )
        for part in recorded
        if (positions := part.among(missing))
    )


def _snapshot(connection: Connection) -> Any:
    return connection.transaction(isolation="repeatable_read", readonly=True)


def is_of_time(month: str, query: EventFilter) -> bool:
    """Whether events of a month can be of the time that is asked about."""
    first, end = _month(month)
    return not ((query.since is not None and end <= query.since) or (query.until is not None and first > query.until))


def left_out_of(parts: Sequence[PartToRead], sizes: Mapping[int, int] = MappingProxyType({})) -> LeftOut | None:
    """All that the archive alone has of some parts, in logs of these sizes."""
    counts: Counter[str] = Counter()
    for part in parts:
        counts[part.month] += part.wanted.count(0, sizes.get(part.log_id, LOG_POSITIONS))
    months = tuple(sorted(+counts))
    return LeftOut(counts.total(), months) if months else None


def _month(month: str) -> tuple[datetime, datetime]:
    first = datetime.fromisoformat(f"{month}-01").replace(tzinfo=UTC)
    return first, (first + timedelta(days=31)).replace(day=1)


def _is_between(month: str, query: EventQuery, after: Key | None, lowest: Key) -> bool:
    """Whether events of a month can be on the page."""
    first, end = _month(month)
    return is_of_time(month, query) and not (
        (after is not None and _microseconds(first) > after[0]) or _microseconds(end) <= lowest[0]
    )


async def _with_leaves(pool: Pool, log: Log, rows: Sequence[FoundRow]) -> list[tuple[FoundRow, str | None]]:
    if not rows:
        return []
    async with driver_connection(pool) as connection:
        return await with_leaves(connection, log, rows)


async def with_leaves(connection: Connection, log: Log, rows: Sequence[FoundRow]) -> list[tuple[FoundRow, str | None]]:
    """The rows, each with the leaf that the log has at its position."""
    places = [place_of(one.row["log_id"], one.row["log_index"]) for one in rows]
    leaves = await leaves_at(connection, log, places)
    return [(one, leaves.get(place)) for one, place in zip(rows, places, strict=True)]


def _too_much(correlation_id: str) -> DatabaseBusy:
    return DatabaseBusy(
        f"No answer in time, or more than {CORRELATION_EVENTS_MAX:,} events or {CORRELATION_BYTES_MAX // 1024**2} MiB: some events of {correlation_id} are in the archive alone. Find them page by "
        "page among the events with archive=include, or leave them out here with archive=exclude."
    )


def _months_around(event_id: UUID) -> frozenset[str]:
    """The month of the time that an id begins with, if it begins with one, and those beside it: an event may be older than its id."""
    try:
        first = (_EPOCH + timedelta(milliseconds=event_id.int >> 80)).replace(day=1)
        return frozenset(f"{first + timedelta(days=days):%Y-%m}" for days in (-1, 0, 31))
    except OverflowError:
        return frozenset()


def _not_looked_through(event_id: UUID) -> DatabaseBusy:
    return DatabaseBusy(
        f"No answer in time: event {event_id} is not in Postgres, and not all of the archive could be looked through for it. Find it by "
        "its correlation or its time with archive=include."
    )


def prefilter_of(query: EventFilter) -> str:
    """A pattern that payloads match in which `q` may stand: its longest piece that is written alike there and in jsonb's text."""
    pieces = in_json(query.q or "").translate(_SEPARATED).split("\n")
    return text_pattern(max(pieces, key=len))


def _microseconds(time: datetime) -> int:
    return (time - _EPOCH) // _MICROSECOND


def key_of(cursor: Cursor) -> Key:
    """The key of an event in the order of time. A time that Python cannot represent becomes the nearest one that it can."""
    try:
        time = datetime.fromisoformat(cursor.event_timestamp).replace(tzinfo=UTC)
    except ValueError:
        is_early = cursor.event_timestamp.startswith("-") or cursor.event_timestamp.endswith("BC")
        time = datetime.min.replace(tzinfo=UTC) if is_early else datetime.max.replace(tzinfo=UTC)
    return _microseconds(time), cursor.event_id.bytes


def _cursor(key: Key) -> Cursor:
    time = (_EPOCH + key[0] * _MICROSECOND).replace(tzinfo=None).isoformat()
    return Cursor(time, UUID(bytes=key[1].rjust(16, b"\0")))
