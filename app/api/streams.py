"""The streams of this process: how many there may be, what they read, and when they end.

A stream holds no slot of the reads (app/api/reading.py): it lasts for an hour and mostly waits. It has a place among streams instead, and
what all of them read goes over a few connections of their own, which rest after their work as the slots of reads do.
"""

import asyncio
import contextvars
from collections import Counter
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from functools import partial
from itertools import count
from time import monotonic

from app import metrics
from app.api.reading import Pace
from app.cores import granted_cores
from app.db import Connection, connect, read_errors
from app.errors import DatabaseBusy, Unavailable
from app.events.log import Log
from app.ingest.event_writer import WriterState
from app.presence import Presence
from app.query.filter import EventFilter
from app.settings import Settings
from app.standby import confirm_if
from app.stream.growth import LogGrowth
from app.stream.portion import Checkpoint, LogReader
from app.stream.rendered import Rendered
from app.stream.tail import Memory, SharedPortions, Tail
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
_FILTERS_MAX = 32
"""Different filters of one caller's streams: each is read for, and remembers, by itself."""
_SERVED_MAX = 1_000
"""Callers of whom a lane remembers when it was their turn."""


class StreamsBusy(Unavailable):
    """Too many streams are open here, or too many of this caller; try again shortly, or end one of them."""

    retry_after_seconds = 5


class Seat:
    """One stream's place among those of this process."""

    def __init__(self, caller: str) -> None:
        self.woken = asyncio.Event()
        """Set when there is something to do."""
        self.end_reason = ""
        """Why it has to end; empty while it may go on."""
        self.caller = caller
        self._bound: asyncio.Timeout | None = None
        self._last_seconds = 0.0

    def end(self, reason: str) -> None:
        """Have the stream end, also where it waits for its client or for a reading."""
        self.end_reason = self.end_reason or reason
        self.woken.set()
        if self._bound is not None and not self._bound.expired():
            until = asyncio.get_running_loop().time() + self._last_seconds
            self._bound.reschedule(min(until, self._bound.when() or until))

    @asynccontextmanager
    async def bounded(self, seconds: float | None, last_seconds: float) -> AsyncIterator[None]:
        """For what a stream waits for. TimeoutError after `seconds`, or `last_seconds` after the stream had to end."""
        async with asyncio.timeout(seconds) as timeout:
            self._bound, self._last_seconds = timeout, last_seconds
            try:
                yield
            finally:
                self._bound = None


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
        self._filters: dict[str, Counter[EventFilter]] = {}
        """By caller, those of the streams that are open."""
        self._watching: asyncio.Task[None] | None = None
        self._pace = Pace(granted_cores() / readers, writer)
        self._lanes = [_Lane(settings, self._pace, seconds) for seconds in (_REST_SECONDS_AT_END, _REST_SECONDS_MAX)]
        self._reader: LogReader | None = None
        self._tails: dict[EventFilter, Tail] = {}
        self._portions = SharedPortions(partial(self._read, self._lanes[1]))
        self._memory = Memory()
        self._checkpoint: tuple[float, Checkpoint | None] = (0.0, None)

    @asynccontextmanager
    async def seat(self, caller: str, query: EventFilter, log_name: str, key: SigningKey | None) -> AsyncIterator[Seat]:
        """A place for one stream of the log, whose key is needed to follow it into a next one. Raises StreamsBusy."""
        if self._presence.shutting_down:
            raise StreamsBusy("The service stops: ask again shortly, perhaps another replica.")
        if len(self._seats) >= self._most or self._of_caller[caller] >= self._most_of_caller:
            metrics.STREAMS_REFUSED.inc()
            raise StreamsBusy
        filters = self._filters.get(caller, Counter())
        if query not in filters and len(filters) >= _FILTERS_MAX:
            metrics.STREAMS_REFUSED.inc()
            raise StreamsBusy(
                f"Your open streams have {_FILTERS_MAX} different filters, the most that one caller may have here: "
                "end some of them, or let streams share a filter (a relative time is one of its minute)."
            )
        if self._reader is None or self._reader.log.first_name != log_name:
            keys = () if key is None else key.all_public
            self._reader = LogReader(
                Log(0, log_name),
                find_log(self._settings, keys),
                confirm_if(required=self._settings.require_synchronous_standby),
            )
        seat = Seat(caller)
        self._seats.add(seat)
        self._of_caller[caller] += 1
        self._filters[caller] = filters
        filters[query] += 1
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
            filters[query] -= 1
            if not filters[query]:
                del filters[query]
            if not self._of_caller[caller]:
                del self._of_caller[caller], self._filters[caller]
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

    async def end_of_log(self, caller: str) -> int:
        """The place that the next event will have."""
        async with self._lanes[1].use([caller]) as connection:
            return await self._log_reader.end(connection)

    async def portion(self, query: EventFilter, place: int, caller: str) -> Rendered:
        """What there is from a place on. Raises NotThereYet, DatabaseAway, DatabaseBusy or DatabaseFailed."""
        return await self._portions.ask(query, place, caller)

    @asynccontextmanager
    async def tail(self, query: EventFilter, place: int, seat: Seat) -> AsyncIterator[Tail]:
        """What comes at the end of the log, for one who has got there; he is woken when there is something."""
        tail = self._tails.get(query)
        if tail is None or tail.failure is not None:
            read = partial(self._read, self._lanes[0])
            tail = self._tails[query] = Tail(query, place, read, self._growth, self._memory)
        tail.waiting[seat.woken] = seat.caller
        try:
            yield tail
        finally:
            del tail.waiting[seat.woken]
            if not tail.waiting:
                tail.close()
                if self._tails.get(query) is tail:
                    del self._tails[query]

    async def checkpoint(self, place: int, caller: str, *, is_at_end: bool) -> Checkpoint | None:
        """The newest checkpoint that covers nothing from a place on; at the end of the log it may be one of a few seconds ago."""
        if not is_at_end or not self._is_covered(place):
            async with self._lanes[1].use([caller]) as connection:
                return await self._log_reader.checkpoint(connection, place)
        if not self._is_checkpoint_new():
            async with self._lanes[0].use([caller]) as connection:
                if not self._is_checkpoint_new():  # others may have waited for it too
                    self._checkpoint = monotonic(), await self._log_reader.checkpoint(connection, place)
        return self._checkpoint[1] if self._is_covered(place) else None

    def _is_checkpoint_new(self) -> bool:
        return monotonic() - self._checkpoint[0] < _CHECKPOINT_SECONDS

    def _is_covered(self, place: int) -> bool:
        """Whether the checkpoint that is known covers nothing from a place on."""
        known = self._checkpoint[1]
        return known is None or known.place <= place

    async def _read(self, lane: "_Lane", query: EventFilter, place: int, callers: Collection[str]) -> Rendered:
        async with lane.use(callers) as connection:
            portion = await self._log_reader.read(connection, place, query, bytes_max=BYTES_MAX)
            return Rendered.of(portion, place)

    @property
    def _log_reader(self) -> LogReader:
        assert self._reader is not None
        return self._reader


class _Lane:
    """Some connections for readings, for one caller in turn; each rests after its work."""

    def __init__(self, settings: Settings, pace: Pace, rest_seconds_max: float) -> None:
        self._pace = pace
        self._rest_seconds_max = rest_seconds_max
        self._free = [WorkerConnection(lambda: connect(settings)) for _ in range(_CONNECTIONS)]
        self._waiting: dict[asyncio.Future[WorkerConnection], Collection[str]] = {}
        self._served: dict[str, int] = {}
        """The last turn of each caller, in the order of turns."""
        self._turns = count(1)
        self._is_open = False

    @asynccontextmanager
    async def use(self, callers: Collection[str]) -> AsyncIterator[Connection]:
        """A connection for one short reading, when it is the turn of one of `callers`, who may come and go until then.

        Raises DatabaseAway, DatabaseBusy or DatabaseFailed for what goes wrong on it, DatabaseBusy also if none of them is left.
        """
        self._is_open = True
        worker = await self._turn(callers)
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

    async def _turn(self, callers: Collection[str]) -> WorkerConnection:
        admitted: asyncio.Future[WorkerConnection] = asyncio.get_running_loop().create_future()
        self._waiting[admitted] = callers
        self._admit()
        try:
            return await admitted
        except asyncio.CancelledError:
            self._waiting.pop(admitted, None)
            if not admitted.cancelled() and admitted.exception() is None:
                self._release(admitted.result())
            raise

    def _admit(self) -> None:
        """Give free connections to those whose last turn is longest ago, of those to who has waited longest."""
        while self._free and self._waiting:
            admitted = min(self._waiting, key=self._last_turn)
            callers = self._waiting.pop(admitted)
            if admitted.done():
                continue
            if not callers:  # whoever wanted it has gone
                admitted.set_exception(DatabaseBusy())
                continue
            turn = next(self._turns)
            for caller in callers:
                self._served.pop(caller, None)
                self._served[caller] = turn
            while len(self._served) > _SERVED_MAX:
                del self._served[next(iter(self._served))]
            admitted.set_result(self._free.pop())

    def _last_turn(self, waiting: asyncio.Future[WorkerConnection]) -> int:
        return min((self._served.get(caller, 0) for caller in self._waiting[waiting]), default=0)

    def _give_back(self, worker: WorkerConnection) -> None:
        self._pace.slots_in_use -= 1
        self._release(worker)

    def _release(self, worker: WorkerConnection) -> None:
        if not self._is_open:
            worker.close()
        self._free.append(worker)
        self._admit()
