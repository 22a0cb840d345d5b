"""Delivers one sink's portions: each is read from the log, sent, and only when the destination has confirmed it the cursor moves.

A session lock on the connection of the sink lets one replica at a time deliver; with the connection the lock is lost, and another
replica has it within seconds. Whoever has lost it without knowing may still send what is on its way, but it moves no cursor: only from
the place where the portion began, and only if nobody has moved it by hand. So everything arrives at least once, and in order.

Before a portion is sent, its end is recorded; after a crash the same portion is sent again, with the same id. A crash at any point
repeats one portion at most.
"""

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Any, NoReturn

import orjson

from app import metrics
from app.db import DATABASE_ERRORS, Connection, connect
from app.errors import DatabaseAway
from app.settings import Settings
from app.standby import StandbyMissing
from app.stream import cursor as cursors
from app.stream.cursor import BEYOND_END, SQL, Cursor, read_cursor
from app.stream.destination import Delivery, Destination, NotDelivered
from app.stream.place import parse_place, place_text
from app.stream.portion import Absent, Checkpoint, Item, LogReader, NotThereYet, Portion, StreamedEvent
from app.stream.records import control_record
from app.stream.sink import Sink
from app.workers import Reminder, WorkerConnection, run_forever

STANDBY_SECONDS = 2.0
"""How often a replica asks whether it may deliver."""
CHECKPOINT_SECONDS = 60.0
"""Between two checkpoints that a destination gets."""
_IDLE_SECONDS = 1.0
"""Between two readings that find nothing for the sink, while others write: each costs Postgres as much as ten events."""
_SKIPPED_SECONDS = 1.0
"""How often a cursor is written that moves over events which the filter does not take."""
_PAUSE_SECONDS, _PAUSE_SECONDS_MAX, _RETRY_AFTER_SECONDS_MAX = 1.0, 60.0, 3600.0
_LOOK_SECONDS = 2.0
"""How soon a pause between two attempts, or a paused sink, notices what an operator has ordered."""
_DELIVERY_SECONDS_MAX = 900.0
_LATE_TRIES = 3
"""After so many in a row a portion is taken to be too large for a destination that does not answer in time."""
_SESSION: dict[str, Any] = {  # a replica whose machine has died loses its lock within seconds
    "tcp_user_timeout": "15s",
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "2",
}

log = logging.getLogger(__name__)

WaitForGrowth = Callable[[float], Awaitable[None]]
"""Returns when the log may have grown, at the latest after so many seconds."""


class _Moved(Exception):
    """The cursor is elsewhere by now: an operator has moved it, or another replica delivers."""


@dataclass
class SinkDelivery:
    """The delivery of one sink, for as long as its entry in the file stays as it is."""

    sink: Sink
    settings: Settings
    reader: LogReader
    wait_for_growth: WaitForGrowth
    destination: Destination = field(init=False)
    has_lock: bool = False
    _first: int = 0
    """Where the next portion is read from: the cursor, or behind what the filter has not taken since it was written."""
    _revision: int = -1
    _written_at: float = 0.0
    _checkpoint: int = -1
    """Place of the last checkpoint that was delivered."""
    _checkpoint_due_at: float = 0.0
    _waiting_since: float | None = None
    _failures: int = 0
    _events_max: int = 0
    _reminder: Reminder = field(default_factory=Reminder)

    def __post_init__(self) -> None:
        self.destination = self.sink.destination()
        self._events_max = self._full = min(self.sink.events_max, self.sink.events_per_second or self.sink.events_max)
        self._kind = _digest(self.sink.model_dump_json(include={"type", "filter", "format"}))

    async def run(self) -> NoReturn:
        """Deliver whenever no other replica does, until this task is cancelled."""

        async def open_connection() -> Connection:
            self.has_lock = False
            return await connect(self.settings, cancels=True, **_SESSION)

        connection = WorkerConnection(open_connection)

        async def do_round() -> float:
            try:
                async with connection.use() as usable:
                    try:
                        return await self._round(usable)
                    except StandbyMissing as error:  # the connection is sound, and with it the lock
                        self._tell(error.detail)
                        return _LOOK_SECONDS
            except BaseException:
                self.has_lock = False
                raise

        try:
            await run_forever(
                "delivery",
                do_round,
                pause_seconds=0.0,
                retry_seconds=_PAUSE_SECONDS,
                failure=f"the sink {self.sink.name} could not be delivered to",
                uncounted=(DatabaseAway, *DATABASE_ERRORS),
            )
        finally:
            self.has_lock = False
            connection.close()
            with suppress(Exception):  # it ends anyway
                await self.destination.close()

    async def _round(self, connection: Connection) -> float:
        """One portion, or one wait. Returns the seconds until the next round."""
        if not self.has_lock:
            if not await connection.fetchval(SQL["try_lock"], self.sink.name):
                return STANDBY_SECONDS
            self.has_lock, self._revision = True, -1
            log.info("delivering", extra={"sink": self.sink.name, "address": self.sink.address})
        cursor = await read_cursor(connection, self.sink.name)
        if cursor is None:
            return await self._create(connection)
        if cursor.paused:
            return _LOOK_SECONDS
        if cursor.is_beyond_end and await self._is_in_open_log(connection, cursor.place):
            await self._record(connection, BEYOND_END)
            return _LOOK_SECONDS
        if cursor.revision != self._revision or not cursor.place <= self._first:
            self._first, self._revision, self._failures = cursor.place, cursor.revision, 0
            await connection.execute(SQL["describe"], self.sink.name, _type(self.sink), self.sink.address)
        try:
            return await self._next(connection, cursor)
        except _Moved:
            self._revision = -1
            return 0.0
        except NotThereYet:
            await self._record(connection, BEYOND_END)
            return _LOOK_SECONDS

    async def _create(self, connection: Connection) -> float:
        """A new sink begins where its entry says. The end of the log is read before the cursor is there: nothing in between is missed."""
        self._revision = -1
        place = end = await self.reader.end(connection)
        if self.sink.start != "now":
            place = 0 if self.sink.start == "start" else parse_place(self.sink.start)
        if place > end:
            self._tell(f"from: {place_text(place)} is beyond the end of the log, {place_text(end)}: there is no cursor")
            return _LOOK_SECONDS
        await cursors.create_cursor(connection, self.sink.name, _type(self.sink), self.sink.address, place)
        return 0.0

    async def _is_in_open_log(self, connection: Connection, place: int) -> bool:
        """Whether events may still be written at a place. If not, the seam says what is lost."""
        await self.reader.end(connection)
        return place >= self.reader.log.place(0)

    async def _next(self, connection: Connection, cursor: Cursor) -> float:
        if cursor.sent_up_to is None and (due := await self._due_checkpoint(connection, self._first)):
            await self._deliver(connection, cursor, due, self._first)
            return 0.0
        portion = await self._read(connection, cursor)
        items = list(portion.items)
        is_full = not portion.is_end or len(items) >= self._events_max
        if not is_full and await self._wait_for_more(portion, cursor):
            return 0.0
        if not items:
            return await self._skip(connection, cursor, portion)
        started = monotonic()
        if not await self._deliver(connection, cursor, items, portion.next):
            return 0.0
        took = monotonic() - started
        return max(0.0, len(items) / self.sink.events_per_second - took) if self.sink.events_per_second else 0.0

    async def _read(self, connection: Connection, cursor: Cursor) -> Portion:
        """The next portion. One that was sent before is read with the end that it had."""
        bounds = {"events_max": self._events_max, "bytes_max": self.sink.bytes_max}
        portion = await self.reader.read(connection, self._first, self.sink.filter, **bounds)
        end = cursor.sent_up_to
        if end is not None and self._first < end < portion.next:
            portion = Portion(_before(portion.items, end), end, is_end=False)
        count = self.sink.items_at_once(portion.items)
        if count < len(portion.items):
            return Portion(portion.items[:count], portion.items[count][0], is_end=False)
        return portion

    async def _skip(self, connection: Connection, cursor: Cursor, portion: Portion) -> float:
        """Go on behind a portion of which the filter takes nothing; at the end of the log wait for more."""
        self._first = portion.next
        is_written = portion.next == cursor.place
        if not is_written and monotonic() - self._written_at >= _SKIPPED_SECONDS:
            await self._advance(connection, cursor, portion.next, sent=False)
            is_written = True
        if portion.is_end:
            await asyncio.sleep(_IDLE_SECONDS)
            await self.wait_for_growth(_LOOK_SECONDS if is_written else _SKIPPED_SECONDS)
        return 0.0

    async def _wait_for_more(self, portion: Portion, cursor: Cursor) -> bool:
        """For a portion that is not full: wait until it may be, as long as the sink allows; whether to read again."""
        if not portion.items or not self.sink.wait_ms or cursor.sent_up_to is not None:
            return False
        wait = self.sink.wait_ms / 1000
        now = monotonic()
        if self._waiting_since is None:
            self._waiting_since = now
        remaining = self._waiting_since + wait - now
        if remaining <= 0:
            return False
        await asyncio.sleep(min(remaining, max(_LOOK_SECONDS, wait / 20)))
        return True

    async def _due_checkpoint(self, connection: Connection, place: int) -> Sequence[Checkpoint]:
        """The newest checkpoint of what has been delivered up to `place`, every so often. It is a delivery of its own: a portion that is
        sent again is sent without one, and has the same id.
        """
        if monotonic() < self._checkpoint_due_at:
            return ()
        found = await self.reader.checkpoint(connection, place)
        if found is None or found.place == self._checkpoint:
            return ()
        return (found,)

    async def _deliver(self, connection: Connection, cursor: Cursor, items: Sequence[Item], end: int) -> bool:
        """Send a portion and move the cursor. False, after a pause, if the destination has not confirmed it."""
        if end > self._first and (cursor.place, cursor.sent_up_to) != (self._first, end):
            await self._require(connection, SQL["send"], cursor, self._first, end)
            cursor = replace(cursor, place=self._first)
        try:
            async with asyncio.timeout(_DELIVERY_SECONDS_MAX):
                said = await self.destination.deliver(
                    Delivery(self.sink.name, items, self._first, end, self.reader.log, id=self._id(cursor, items, end))
                )
        except Exception as error:  # noqa: BLE001 -- whatever is wrong with a destination stops this sink only
            await self._fail(connection, cursor, error, len(items))
            return False
        await self._advance(connection, cursor, end, sent=True, said=said)
        self._delivered(items)
        self._first, self._failures, self._waiting_since = end, 0, None
        self._events_max = min(self._full, 2 * self._events_max)
        return True

    def _id(self, cursor: Cursor, items: Sequence[Item], end: int) -> str:
        """The same for the same portion, whoever sends it, and another one after somebody has moved the cursor.

        It binds what is sent: after a loss another event may have the same place, and another log's sink may have the same name.
        """
        log = self.reader.log.first_name
        return _digest(self.sink.name, self._kind, cursor.revision, log, end, *map(_identity, items))

    def _delivered(self, items: Sequence[Item]) -> None:
        name = self.sink.name
        metrics.SINK_EVENTS.labels(sink=name).inc(sum(isinstance(item, StreamedEvent) for item in items))
        for item in items:
            if isinstance(item, Absent) and item.reason == "unknown":
                metrics.SINK_GAPS.labels(sink=name).inc(item.end - item.first)
            elif isinstance(item, Checkpoint):
                pause = max(CHECKPOINT_SECONDS, self.sink.wait_ms / 1000)
                self._checkpoint, self._checkpoint_due_at = item.place, monotonic() + pause

    async def _advance(
        self, connection: Connection, cursor: Cursor, end: int, *, sent: bool, said: str | None = None
    ) -> None:
        await self._require(connection, SQL["advance"], cursor, end, sent, said)
        self._written_at = monotonic()

    async def _require(self, connection: Connection, statement: str, cursor: Cursor, *arguments: object) -> None:
        row = await connection.fetchrow(statement, self.sink.name, cursor.revision, cursor.place, *arguments)
        if row is None:
            raise _Moved

    async def _fail(self, connection: Connection, cursor: Cursor, error: Exception, count: int) -> None:
        """Record why a portion of `count` items failed, and wait: longer each time, and at least as long as the destination asks for."""
        self._failures += 1
        retry_after = None
        is_too_large = isinstance(error, TimeoutError)
        if isinstance(error, NotDelivered):
            retry_after, is_too_large = error.retry_after, error.is_too_large
            # A destination that is late once gets the same portion again, which it may recognise.
            is_too_large |= error.is_late and self._failures % _LATE_TRIES == 0
        if is_too_large:
            self._events_max = max(1, min(self._events_max, count) // 2)
        pause = min(_PAUSE_SECONDS * 2 ** (self._failures - 1), _PAUSE_SECONDS_MAX)
        pause = max(pause, min(retry_after or 0.0, _RETRY_AFTER_SECONDS_MAX))
        is_expected = isinstance(error, NotDelivered | OSError | TimeoutError)
        await self._record(connection, reason(error), None if is_expected else error)
        waited_from = monotonic()
        while (remaining := waited_from + pause - monotonic()) > 0:
            await asyncio.sleep(min(remaining, _LOOK_SECONDS))
            now = await read_cursor(connection, self.sink.name)  # fails when the lock is lost
            if now is None or now.revision != cursor.revision or now.paused:
                return

    async def _record(self, connection: Connection, reason: str, bug: Exception | None = None) -> None:
        self._tell(reason, bug)
        await cursors.fail(connection, self.sink.name, reason)

    def _tell(self, reason: str, bug: Exception | None = None) -> None:
        metrics.SINK_FAILURES.labels(sink=self.sink.name).inc()
        if self._reminder.is_due():
            extra = {"sink": self.sink.name, "error": reason}
            log.log(logging.ERROR if bug else logging.WARNING, "nothing was delivered", extra=extra, exc_info=bug)


def _before(items: Sequence[Item], end: int) -> list[Item]:
    """The items of places before `end`; of a gap that goes on there, its beginning."""
    found: list[Item] = []
    for item in items:
        if isinstance(item, Absent) and item.first < end < item.end:
            found.append(item._replace(end=end))
        elif item[0] < end or (not isinstance(item, StreamedEvent | Absent) and item[0] == end):
            found.append(item)
    return found


def _identity(item: Item) -> object:
    """Of an event what its hash covers, of any other item all that it says."""
    return (item.place, item.event["event_hash"]) if isinstance(item, StreamedEvent) else control_record(item)


def _digest(*parts: object) -> str:
    return hashlib.sha256(orjson.dumps([str(part) for part in parts])).hexdigest()[:32]


def _type(sink: Sink) -> str:
    return str(getattr(sink, "type"))  # noqa: B009 -- each type of sink has it, with its own Literal


def reason(error: Exception) -> str:
    """Why a destination has not confirmed, without what is nobody's business."""
    if isinstance(error, NotDelivered):
        return error.reason
    if isinstance(error, TimeoutError):
        return "no answer in time"
    # The text of any other error may have what is nobody's business: a URL, a payload.
    return str(error) or repr(error) if isinstance(error, OSError) else f"{type(error).__name__}, see the log"
