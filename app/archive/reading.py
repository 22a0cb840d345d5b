"""The service's side of reading the archive: which parts have what Postgres has no more, and a process that searches them.

An event is shown from the archive if the log records that its row was removed; everything else is in Postgres, and shown from there. What
is shown was compared with the leaf that the log has at its position.
"""

import asyncio
import os
import pickle
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from importlib.util import find_spec
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
from app.archive.recorded import read_erasures, read_parts
from app.db import Connection, Pool, driver_connection
from app.errors import AuditError, DatabaseBusy, Unavailable
from app.events.log import Log, place_of
from app.events.positions import Positions
from app.query.cursor import Cursor
from app.query.filter import EventQuery, in_json, text_pattern
from app.query.page import archived_event
from app.settings import Settings
from app.sql import load
from app.tlog.evidence import leaves_at, read_evidence

SQL = load("archive")
PAGE_BYTES_MAX = 8 * 1024**2
"""Of payloads on a page, from where on it ends before it is full."""
_IDLE_SECONDS = 300.0
"""After which the process ends that nobody asks."""
_TRIES = 2
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_SEPARATED = str.maketrans(dict.fromkeys(" ,:", "\n"))
"""What jsonb's text has between values otherwise than the archive has."""


class ArchiveAway(Unavailable):
    """The archive cannot be read now; send the request again shortly."""


class ArchiveDamaged(AuditError):
    """The archive is not as the log records it."""


class _Gone(Exception):
    """A file of a part is not there: another part may have replaced it meanwhile."""


@dataclass(frozen=True, slots=True)
class ArchivedEvents:
    """Events that are in the archive alone."""

    events: list[tuple[Cursor, dict[str, Any]]]
    """Newest first, each with its key, in the form of the answer."""
    end: Cursor | None
    """Down to where the archive was read; None: down to where it was to be."""


@dataclass(eq=False)
class ArchiveReader:
    """Reads the archive for one process of the service. One question at a time: that bounds its memory."""

    settings: Settings
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    _process: asyncio.subprocess.Process | None = None
    _idle: asyncio.TimerHandle | None = None

    @property
    def what_is_missing(self) -> str | None:
        """What to change before the archive can be read; None if nothing."""
        if self.settings.archive_url is None:
            return "this service has no archive: DATASTORAGE_ARCHIVE_URL says where it is"
        if not _has_packages():
            return "the service needs more packages for the archive: pip install 'datastorage[archive]'"
        return None

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
        for _ in range(_TRIES):
            parts = await self._parts(pool, log, query, after, lowest)
            if not parts:
                return ArchivedEvents([], None)
            question = Question(
                query.conditions(),
                {name: value for name, value in query.arguments().items() if value is not None},
                _prefilter(query),
                after,
                lowest,
                query.limit + 1,
                parts,
                seconds,
                PAGE_BYTES_MAX,
            )
            with suppress(_Gone):
                found = await self._ask(question)
                events = await _compared(pool, log, found.rows, is_sealed=query.sealed)
                is_full = (
                    len(found.rows) > query.limit
                )  # some of them may be left out, and there may be more after them
                read_to = found.rows[-1].key if is_full else found.read_to
                return ArchivedEvents(events, None if read_to == ALL_READ else _cursor(read_to))
        raise ArchiveAway

    async def close(self) -> None:
        """End the process, if there is one; it has ended when this returns."""
        if self._idle is not None:
            self._idle.cancel()
        process = self._process
        self._end()
        if process is not None:
            await process.wait()

    async def _parts(
        self, pool: Pool, log: Log, query: EventQuery, after: Key | None, lowest: Key
    ) -> tuple[PartToRead, ...]:
        """The parts with events that Postgres has no more, of the months between both keys and the query's times."""
        async with driver_connection(pool) as connection, _snapshot(connection):
            recorded = await read_parts(connection, log)
            if not (in_time := [part for part in recorded if _is_between(part.month, query, after, lowest)]):
                return ()
            missing = (await read_evidence(connection, log)).missing
            wanted = [(part, part.among(missing)) for part in in_time]
            erasures = await read_erasures(connection, log) if any(positions for _, positions in wanted) else ()
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
            for part, positions in wanted
            if positions
        )

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
            _refuse(answer)
        return answer

    async def _exchange(self, question: Question) -> Found | Refusal:
        process = self._process
        if process is None or process.returncode is not None:
            process = self._process = await _start()
            await _send(process, ArchivePlace(*(getattr(self.settings, name) for name in ArchivePlace._fields)))
        await _send(process, question)
        assert process.stdout is not None
        head = await process.stdout.readexactly(HEAD_BYTES)
        answer: Found | Refusal = pickle.loads(await process.stdout.readexactly(body_bytes(head)))  # noqa: S301 -- our own process
        return answer

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()


@cache
def _has_packages() -> bool:
    return find_spec("pyarrow") is not None


async def _start() -> asyncio.subprocess.Process:
    path = os.pathsep.join(one for one in sys.path if one)
    # A pool of memory that gives back what it does not need any more, and less than there are cores: others need them.
    environment = os.environ | {"PYTHONPATH": path, "ARROW_DEFAULT_MEMORY_POOL": "system", "OMP_NUM_THREADS": "1"}
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "app.archive.reader"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=environment,
    )


async def _send(process: asyncio.subprocess.Process, message: object) -> None:
    assert process.stdin is not None
    process.stdin.write(framed(message))
    await process.stdin.drain()


def _refuse(refusal: Refusal) -> NoReturn:
    kind, message = refusal
    if kind == "gone":
        raise _Gone
    if kind == "slow":
        raise DatabaseBusy(f"No answer in time: {message}. Narrow the query by time, or by correlation.")
    if kind == "away":
        raise ArchiveAway(f"The archive cannot be read: {message}.")
    raise ArchiveDamaged(f"The archive is not as the log records it: {message}. `datastorage archive verify` has more.")


def _snapshot(connection: Connection) -> Any:
    return connection.transaction(isolation="repeatable_read", readonly=True)


def _is_between(month: str, query: EventQuery, after: Key | None, lowest: Key) -> bool:
    """Whether events of a month can be on the page."""
    first = datetime.fromisoformat(f"{month}-01").replace(tzinfo=UTC)
    end = (first + timedelta(days=31)).replace(day=1)
    return not (
        (query.since is not None and end <= query.since)
        or (query.until is not None and first > query.until)
        or (after is not None and _microseconds(first) > after[0])
        or _microseconds(end) <= lowest[0]
    )


async def _compared(
    pool: Pool, log: Log, rows: Sequence[FoundRow], *, is_sealed: bool | None
) -> list[tuple[Cursor, dict[str, Any]]]:
    """The rows in the form of the answer; one that is not what the log has at its position is not sealed."""
    places = [place_of(one.row["log_id"], one.row["log_index"]) for one in rows]
    async with driver_connection(pool) as connection:
        leaves = await leaves_at(connection, log, places) if places else {}
    events = []
    for one, place in zip(rows, places, strict=True):
        sealed = leaves.get(place) == one.event_hash
        if sealed or not is_sealed:
            event = archived_event(one.row | {"event_hash": one.event_hash, "sealed": sealed}, one.archive_id)
            events.append((_cursor(one.key), event))
    return events


def _prefilter(query: EventQuery) -> str:
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
