"""How many reads run at once, and whose turn is next.

Reads share a few slots, so that neither Postgres nor this process works on more of them than leaves writing its share, and so that
the pool of connections is never empty. A read that gets no slot within WAIT_SECONDS is answered 503. Callers take turns, no caller
has all slots, and neither have long reads.

What reads do in Postgres, events wait for: its processes for reads have the same priority as the one that writes. So while the
writer is busy, slots rest after each piece of work, in proportion to it.
"""

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from time import monotonic
from urllib.parse import unquote_to_bytes

from starlette.types import Message, Receive, Scope, Send

from app import metrics
from app.api.body import ClientDisconnected
from app.cores import granted_cores
from app.errors import Unavailable
from app.ingest.event_writer import WriterState, busy_seconds_until
from app.settings import Settings

WAIT_SECONDS = 0.8
WAITS, WORKS = "datastorage.waits", "datastorage.works"
"""Types of messages before an answer, for the process that has relayed the request and whose clock is not late (app/pod/relay.py): from
now on it waits for a slot, and from now on it does not. WAITS is also the ASGI extension that says that somebody wants to know.
"""
HELD_SECONDS_MAX = 1800.0
"""For which a read has its slot whoever waits. In this time also a client that only just receives fast enough, with the longest
rests, gets one part of an export, from whose end it can go on."""
_CORES_SHARE = 0.1
"""Of the cores, how much reads may keep busy on average while the writer has no pause."""
_REST_SECONDS_MAX = 0.7
"""Less than a read waits: who asks one question after another, alone, is answered also where there is one slot."""
_WINDOW_SECONDS = 0.2
_WAITING_FOR_SLOT_MAX = 16
"""Reads that wait for each slot; what comes beyond is refused at once, rather than all of them in one moment later."""
_CONNECTIONS_LEFT = 2
"""Connections of the pool that reads leave to posts, which look up parents and store notifications."""
_API, _TLOG, _AUDIT, _PAGES = "/api/v1/", "/tlog/", "/api/v1/audit/", "/ui/"
_STATIC = (
    *(_AUDIT + "export/certificate", "/tlog/key"),
    _AUDIT + "stream",  # lasts; see app/api/streams.py
    *(_PAGES + name for name in ("static/", "login", "logout")),
)


class ReadsBusy(Unavailable):
    """Too many reads are running, or too many of this caller; send the request again shortly."""


class Arrivals:
    """The `receive` of a request, which can also watch for its client's disconnect; what arrives meanwhile is not lost."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._early = deque[Message]()

    async def __call__(self) -> Message:
        return self._early.popleft() if self._early else await self._receive()

    async def disconnect(self) -> None:
        """Return when the client has disconnected; never while a body is on its way, of which one piece is received at most."""
        while (message := await self._receive())["type"] != "http.disconnect":
            self._early.append(message)
            if message.get("more_body", False):
                await asyncio.Event().wait()


class Pace:
    """How long slots rest after work, so that reads keep no more than their share of the cores busy while the writer has no pause.

    Work is counted on a clock that reads share: while several work at once, it goes slower by their number.
    """

    def __init__(self, cores: float, writer: WriterState) -> None:
        self._writer = writer
        self._share = _CORES_SHARE * cores
        self.slots_in_use = 0
        """The share is divided among them."""
        self._working = 0
        self._clock, self._clock_at = 0.0, monotonic()
        self._seen_at, self._seen = self._clock_at, busy_seconds_until(self._clock_at, writer)
        self._busy = 0.0

    def begin(self) -> float:
        """When work begins, on the shared clock."""
        self._advance()
        self._working += 1
        return self._clock

    def end(self, began: float) -> float:
        """Seconds of rest after the work that ends now."""
        self._advance()
        self._working -= 1
        factor = max(0.0, self.slots_in_use / self._share - 1)
        return (self._clock - began) * factor * self._busy

    def _advance(self) -> None:
        now = monotonic()
        self._clock += (now - self._clock_at) / max(1, self._working)
        self._clock_at = now
        if (window := now - self._seen_at) > _WINDOW_SECONDS:
            busy_seconds = busy_seconds_until(now, self._writer)
            self._busy = min(1.0, max(0.0, (busy_seconds - self._seen) / window))
            self._seen_at, self._seen = now, busy_seconds


@dataclass(slots=True, eq=False)
class Turn:
    """One read that has a slot or waits for one."""

    caller: str
    is_long: bool
    pace: Pace
    admitted: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    rest_owed: float = 0.0
    """Seconds for which its slot has to rest before any more work."""
    admitted_at: float = 0.0
    is_over: bool = False
    """Somebody else waits for its slot, which it has had for too long: its answer is to be cut."""
    _began: float | None = None

    def work(self) -> None:
        """What the read does from now on is work."""
        self._began = self.pace.begin()

    def pause(self) -> None:
        """What the read does from now on is to wait for its client, or nothing."""
        if self._began is not None:
            self.rest_owed = min(_REST_SECONDS_MAX, self.rest_owed + self.pace.end(self._began))
            self._began = None

    async def rest(self) -> None:
        """Rest for what is owed, then go on with the work."""
        if self.rest_owed:
            await asyncio.sleep(self.rest_owed)
            self.rest_owed = 0.0
        self.work()


class ReadSlots:
    """The slots of this process, and the reads that wait for one, by caller in the order of their turns."""

    def __init__(self, slots: int, pace: Pace) -> None:
        self._free = slots
        self._waiting_max = slots * _WAITING_FOR_SLOT_MAX
        self._pace = pace
        self._most = max(1, slots - 1)
        """Slots that one caller may have."""
        self._most_long = max(1, slots // 2)
        """Slots that all long reads may have: an export has a connection with one snapshot until its client has received all of it."""
        self._held = Counter[str]()
        self._running: list[Turn] = []
        self._long = 0
        self._waiting: OrderedDict[str, deque[Turn]] = OrderedDict()

    @asynccontextmanager
    async def slot(
        self, caller: str, arrivals: Arrivals, *, is_long: bool, report: Callable[[str], Awaitable[None]] | None = None
    ) -> AsyncIterator[Turn]:
        """A slot for one read of `caller`. ReadsBusy if none is free in time, ClientDisconnected if the client does not wait.

        While it waits also what `arrivals` raises for a body that is not framed as HTTP has it. Where there is no slot at once,
        `report` is called with WAITS, and with WORKS when there is one.
        """
        turn = Turn(caller, is_long, self._pace)
        self._waiting.setdefault(caller, deque()).append(turn)
        self._admit()
        if not turn.admitted.done():
            self._end_one_for(turn)
        if sum(map(len, self._waiting.values())) > self._waiting_max:
            self._refuse_one()
        try:
            if report is not None and not turn.admitted.done():
                await report(WAITS)
                await _wait(turn, arrivals)
                await report(WORKS)
            else:
                await _wait(turn, arrivals)
            turn.work()
            yield turn
        finally:
            turn.pause()
            if turn.rest_owed:
                asyncio.get_running_loop().call_later(turn.rest_owed, self._leave, turn)
            else:
                self._leave(turn)

    def _refuse_one(self) -> None:
        """Refuse the last read of the caller with the most that wait, and whose turn comes last of those: it would wait in vain."""
        turn = max(reversed(self._waiting.values()), key=len)[-1]
        self._remove(turn)
        turn.admitted.set_exception(ReadsBusy())

    def _end_one_for(self, waiting: Turn) -> None:
        """Have one of the reads end that keep `waiting` out for too long, of the caller who has most slots."""
        needs_long = waiting.is_long and self._long >= self._most_long
        if self._held[waiting.caller] >= self._most or not (needs_long or not self._free):
            return
        in_the_way = [turn for turn in self._running if turn.is_long or not needs_long]
        if any(turn.is_over for turn in in_the_way):
            return
        over = [
            turn
            for turn in in_the_way
            if monotonic() - turn.admitted_at > HELD_SECONDS_MAX
            and self._held[turn.caller] > self._held[waiting.caller]
        ]
        if over:
            max(over, key=lambda turn: (self._held[turn.caller], -turn.admitted_at)).is_over = True

    def _admit(self) -> None:
        """Give free slots to those who wait, one for each caller in turn."""
        while self._free and (turn := self._next()) is not None:
            self._free -= 1
            self._pace.slots_in_use += 1
            self._held[turn.caller] += 1
            self._running.append(turn)
            self._long += turn.is_long
            turn.admitted_at = monotonic()
            turn.admitted.set_result(None)

    def _next(self) -> Turn | None:
        for caller, turns in self._waiting.items():
            if self._held[caller] < self._most:
                for turn in turns:
                    if not turn.is_long or self._long < self._most_long:
                        self._remove(turn)
                        if caller in self._waiting:
                            self._waiting.move_to_end(caller)
                        return turn
        return None

    def _remove(self, turn: Turn) -> None:
        turns = self._waiting[turn.caller]
        turns.remove(turn)
        if not turns:
            del self._waiting[turn.caller]

    def _leave(self, turn: Turn) -> None:
        if not turn.admitted.done():
            self._remove(turn)
            return
        if turn.admitted.exception() is not None:
            return
        self._free += 1
        self._pace.slots_in_use -= 1
        self._running.remove(turn)
        self._long -= turn.is_long
        self._held[turn.caller] -= 1
        if not self._held[turn.caller]:
            del self._held[turn.caller]
        if turn.is_over and turn.caller in self._waiting:
            self._waiting.move_to_end(turn.caller)
        self._admit()


async def _wait(turn: Turn, arrivals: Arrivals) -> None:
    if not turn.admitted.done():
        gone = asyncio.ensure_future(arrivals.disconnect())
        try:
            await asyncio.wait({turn.admitted, gone}, timeout=WAIT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if gone.done() and not turn.admitted.done():
                gone.result()  # raises what is wrong with the rest of the request
                raise ClientDisconnected
        finally:
            gone.cancel()
    if not turn.admitted.done() or turn.admitted.exception() is not None:
        raise refusal()


def refusal() -> ReadsBusy:
    """The refusal of one read, counted."""
    metrics.READS_REFUSED.inc()
    return ReadsBusy()


def read_slots(settings: Settings, writer: WriterState, readers: int) -> ReadSlots:
    """The slots that the settings ask for, else two for each core, and fewer than the pool has connections.

    `readers` processes share the writer, and what reads may keep busy of the cores.
    """
    cores = granted_cores()
    by_default = min(round(2 * cores), settings.pool_connections_max - _CONNECTIONS_LEFT)
    slots = settings.reads_at_once_max or max(1, by_default)
    return ReadSlots(slots, Pace(cores / readers, writer))


def is_endless(path: str) -> bool:
    """Whether the answer is a stream (app/api/streams.py)."""
    return path == _AUDIT + "stream"


def wait_reports(scope: Scope, send: Send) -> Callable[[str], Awaitable[None]] | None:
    """What tells the process that has relayed a request whether it waits; None where nobody wants to know."""
    if WAITS not in scope.get("extensions", ()):
        return None

    async def report(what: str) -> None:
        await send({"type": what})

    return report


def needs_slot(method: str, path: str) -> bool:
    """Whether the request reads the database, or takes time otherwise. verify-chain takes a slot itself, after its body."""
    if not path.startswith((_API, _TLOG, _PAGES)) or path.startswith(_STATIC):
        return False
    return method == "GET" or (method == "POST" and path.endswith("/reconstruct"))


def is_long(path: str, query_string: bytes) -> bool:
    """Whether the read may take longer than a query may: an export to a file, a bundle, or the verification of a chain.

    A search in the archive does not, but one waits for another (app/archive/reading.py): they leave slots to all others too.
    """
    query_string = unquote_to_bytes(query_string)
    if path == _AUDIT + "events":
        return b"archive=include" in query_string
    if path == _AUDIT + "export":
        return b"=ndjson" in query_string or b"=csv" in query_string
    return path.startswith((_AUDIT + "correlations/", _PAGES + "correlations/")) and (
        b"verify=" in query_string or path.endswith("/bundle")
    )
