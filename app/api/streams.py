"""The streams of this process: how many there may be, what they read, and when they end.

A stream holds no slot of the reads (app/api/reading.py): it lasts for an hour and mostly waits. It has a place among streams instead, and
what all of them read goes over a few connections of their own, which rest after their work as the slots of reads do.
"""

import asyncio
import contextvars
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic

from app import metrics
from app.api.reading import Pace
from app.cores import granted_cores
from app.db import Connection, connect, read_errors
from app.errors import Unavailable
from app.events.log import Log
from app.ingest.event_writer import WriterState
from app.presence import Presence
from app.query.filter import EventFilter
from app.settings import Settings
from app.stream.growth import LogGrowth
from app.stream.portion import Checkpoint, LogReader
from app.stream.rendered import Rendered
from app.stream.tail import SharedPortions, Tail
from app.tlog.continued import find_log
from app.tlog.keys import SigningKey
from app.workers import WorkerConnection

BYTES_MAX = 256 * 1024
"""Of the payloads of a portion: as many portions as there are clients that are slow may be in memory."""
_CONNECTIONS = 2
"""For those at the end of the log, and as many for those who are not there yet, so that these do not keep the others from what is new."""
_REST_SECONDS_AT_END = 0.05
"""At the end of the log there is no more to read than is written, and it is wanted at once."""
_REST_SECONDS_MAX = 0.7
_CHECKPOINT_SECONDS = 5.0
_WATCH_SECONDS = 0.2


class StreamsBusy(Unavailable):
    """Too many streams are open here, or too many of this caller; try again shortly, or end one of them."""

    retry_after_seconds = 5


class Seat:
    """One stream's place among those of this process."""

    def __init__(self) -> None:
        self.woken = asyncio.Event()
        """Set when there is something to do."""
        self.end_reason = ""
        """Why it has to end; empty while it may go on."""
        self._sending: asyncio.Timeout | None = None
        self._last_seconds = 0.0

    def end(self, reason: str) -> None:
        """Have the stream end, also where it waits for its client."""
        self.end_reason = self.end_reason or reason
        self.woken.set()
        if self._sending is not None:
            until = asyncio.get_running_loop().time() + self._last_seconds
            self._sending.reschedule(min(until, self._sending.when() or until))

    @asynccontextmanager
    async def sending(self, seconds: float, last_seconds: float) -> AsyncIterator[None]:
        """While the client receives. TimeoutError after `seconds`, or `last_seconds` after the stream had to end."""
        async with asyncio.timeout(seconds) as timeout:
            self._sending, self._last_seconds = timeout, last_seconds
            try:
                yield
            finally:
                self._sending = None


class Streams:
    """Admits streams, and reads for them."""

    def __init__(
        self, settings: Settings, growth: LogGrowth, presence: Presence, writer: WriterState, *, readers: int
    ) -> None:
        """`readers` processes share the writer, and what reads may keep busy of the cores."""
        self._settings, self._growth, self._presence = settings, growth, presence
        self._most = settings.streams_max
        self._most_of_caller = max(1, settings.streams_max // 2)
        self._seats: set[Seat] = set()
        self._of_caller = Counter[str]()
        self._watching: asyncio.Task[None] | None = None
        self._pace = Pace(granted_cores() / readers, writer)
        self._lanes = [_Lane(settings, self._pace, seconds) for seconds in (_REST_SECONDS_AT_END, _REST_SECONDS_MAX)]
        self._reader: LogReader | None = None
        self._tails: dict[EventFilter, Tail] = {}
        self._portions = SharedPortions(lambda query, place: self._read(self._lanes[1], query, place))
        self._checkpoint: tuple[float, Checkpoint | None] = (0.0, None)

    @asynccontextmanager
    async def seat(self, caller: str, log_name: str, key: SigningKey | None) -> AsyncIterator[Seat]:
        """A place for one stream of the log, whose key is needed to follow it into a next one. Raises StreamsBusy."""
        if self._presence.shutting_down:
            raise StreamsBusy("The service stops: ask again shortly, perhaps another replica.")
        if len(self._seats) >= self._most or self._of_caller[caller] >= self._most_of_caller:
            metrics.STREAMS_REFUSED.inc()
            raise StreamsBusy
        if self._reader is None or self._reader.log.first_name != log_name:
            keys = () if key is None else key.all_public
            self._reader = LogReader(Log(0, log_name), find_log(self._settings, keys))
        seat = Seat()
        self._seats.add(seat)
        self._of_caller[caller] += 1
        metrics.STREAMS.inc()
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch(), name="streams", context=contextvars.Context())
        try:
            yield seat
        finally:
            metrics.STREAMS.dec()
            metrics.STREAMS_ENDED.labels(seat.end_reason or "gone").inc()
            self._seats.remove(seat)
            self._of_caller[caller] -= 1
            if not self._of_caller[caller]:
                del self._of_caller[caller]
            if not self._seats:
                self._rest()

    def _rest(self) -> None:
        """Nobody follows any more: give back connections."""
        for lane in self._lanes:
            lane.close()
        if self._watching is not None:
            self._watching.cancel()
            self._watching = None

    async def _watch(self) -> None:
        """End all streams when the service stops."""
        while not self._presence.shutting_down:  # noqa: ASYNC110 -- in a pod another process sets it
            await asyncio.sleep(_WATCH_SECONDS)
        for seat in self._seats:
            seat.end("shutdown")

    async def end_of_log(self) -> int:
        """The place that the next event will have."""
        async with self._lanes[1].use() as connection:
            return await self._log_reader.end(connection)

    async def portion(self, query: EventFilter, place: int) -> Rendered:
        """What there is from a place on. Raises NotThereYet, DatabaseAway, DatabaseBusy or DatabaseFailed."""
        return await self._portions.ask(query, place)

    @asynccontextmanager
    async def tail(self, query: EventFilter, place: int, woken: asyncio.Event) -> AsyncIterator[Tail]:
        """What comes at the end of the log, for one who has got there; `woken` is set when there is something."""
        tail = self._tails.get(query)
        if tail is None or tail.failure is not None:
            tail = self._tails[query] = Tail(
                query, place, lambda query, place: self._read(self._lanes[0], query, place), self._growth
            )
        tail.waiting.add(woken)
        try:
            yield tail
        finally:
            tail.waiting.remove(woken)
            if not tail.waiting:
                tail.close()
                if self._tails.get(query) is tail:
                    del self._tails[query]

    async def checkpoint(self, place: int) -> Checkpoint | None:
        """The newest checkpoint that covers nothing from a place on; at the end of the log it may be one of a few seconds ago."""
        read_at, known = self._checkpoint
        if monotonic() - read_at < _CHECKPOINT_SECONDS and (known is None or known.place <= place):
            return known
        async with self._lanes[0].use() as connection:
            found = await self._log_reader.checkpoint(connection, place)
        self._checkpoint = monotonic(), found
        return found

    async def _read(self, lane: "_Lane", query: EventFilter, place: int) -> Rendered:
        async with lane.use() as connection:
            portion = await self._log_reader.read(connection, place, query, bytes_max=BYTES_MAX)
            return Rendered.of(portion, place)

    @property
    def _log_reader(self) -> LogReader:
        assert self._reader is not None
        return self._reader


class _Lane:
    """Some connections for readings; each rests after its work."""

    def __init__(self, settings: Settings, pace: Pace, rest_seconds_max: float) -> None:
        self._pace = pace
        self._rest_seconds_max = rest_seconds_max
        self._free = [WorkerConnection(lambda: connect(settings)) for _ in range(_CONNECTIONS)]
        self._available = asyncio.Semaphore(_CONNECTIONS)
        self._is_open = False

    @asynccontextmanager
    async def use(self) -> AsyncIterator[Connection]:
        """A connection for one short reading. Raises DatabaseAway, DatabaseBusy or DatabaseFailed for what goes wrong on it."""
        self._is_open = True
        await self._available.acquire()
        worker = self._free.pop()
        self._pace.slots_in_use += 1
        began = self._pace.begin()
        try:
            with read_errors():
                async with worker.use() as connection:
                    yield connection
        finally:
            rest = min(self._pace.end(began), self._rest_seconds_max)
            asyncio.get_running_loop().call_later(rest, self._give_back, worker)

    def close(self) -> None:
        """End the connections that nobody uses."""
        self._is_open = False
        for worker in self._free:
            worker.close()

    def _give_back(self, worker: WorkerConnection) -> None:
        self._pace.slots_in_use -= 1
        if not self._is_open:
            worker.close()
        self._free.append(worker)
        self._available.release()
