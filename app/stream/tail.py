"""The end of the log, followed once for all who wait there with the same filter; and readings that equal askers share.

A follower that finds nothing costs those who wait nothing: they are woken by what matches. What it has found lately it keeps, so that
whoever is a little slower still gets it without a reading of his own.
"""

import asyncio
import contextvars
import logging
from collections import Counter, OrderedDict, deque
from collections.abc import Awaitable, Callable, Collection
from time import monotonic
from typing import NamedTuple

from app.db import DATABASE_ERRORS
from app.errors import Unavailable
from app.query.filter import EventFilter
from app.stream.growth import LogGrowth
from app.stream.rendered import Rendered

Read = Callable[[EventFilter, int, Collection[str]], Awaitable[Rendered]]
"""Reads the portion that begins at a place, for those callers, which may change until it begins. Raises AuditError, or NotThereYet."""
_RECENT_BYTES_MAX = 32 * 1024 * 1024
_RECENT_OF_TAIL_BYTES_MAX = 8 * 1024 * 1024
_RECENT_MAX = 256
_RETRY_SECONDS = 1.0
_SHARED_BYTES_MAX = 16 * 1024 * 1024
_SHARED_SECONDS = 10.0

log = logging.getLogger(__name__)


class TooFarBack(Exception):
    """What lies at a place is not known here any more: it has to be read."""


class Memory:
    """What all tails of a process remember, within one bound: of the largest the oldest is forgotten first."""

    def __init__(self, bytes_max: int = _RECENT_BYTES_MAX) -> None:
        self.size = 0
        """Bytes that are remembered."""
        self._bytes_max = bytes_max
        self._sizes = Counter["Tail"]()

    def note(self, tail: "Tail", by: int) -> None:
        """`tail` remembers so many bytes more, or less."""
        self.size += by
        self._sizes[tail] += by
        if not self._sizes[tail]:
            del self._sizes[tail]

    def shrink(self) -> None:
        """Have tails forget until the bound is kept."""
        while self.size > self._bytes_max:
            max(self._sizes, key=self._sizes.__getitem__).forget()


class Tail:
    """Follows the log from a place near its end, for those who wait for what matches one filter."""

    def __init__(self, query: EventFilter, place: int, read: Read, growth: LogGrowth, memory: Memory) -> None:
        self.place = place
        """Everything before it that matches has been found."""
        self.failure: Exception | None = None
        """Why it follows no further."""
        self.waiting: dict[asyncio.Event, str] = {}
        """Of those who follow, with their callers; each is set when there is something for them."""
        self._query, self._read, self._growth, self._memory = query, read, growth, memory
        self._recent: deque[Rendered] = deque()
        self._recent_bytes = 0
        self._known_from = place
        self._task = asyncio.create_task(self._follow(), name="tail", context=contextvars.Context())

    def after(self, place: int) -> Rendered | None:
        """The first of what was found that is not before `place`; None if there is nothing yet. Raises TooFarBack, or its failure."""
        if place < self._known_from:
            raise TooFarBack
        found = None
        for rendered in reversed(self._recent):
            if rendered.next <= place:
                break
            found = rendered
        if found is not None:
            return found.since(place)
        if self.failure is not None:
            raise self.failure
        return None

    def close(self) -> None:
        """Follow no further, and forget everything."""
        self._task.cancel()
        while self._recent:
            self.forget()

    def forget(self) -> None:
        """Forget the oldest of what is remembered."""
        oldest = self._recent.popleft()
        self._known_from = oldest.next
        self._recent_bytes -= oldest.size
        self._memory.note(self, -oldest.size)

    async def _follow(self) -> None:
        try:
            async with self._growth.follow() as follower:
                while True:
                    try:
                        found = await self._read(self._query, self.place, self.waiting.values())
                    except (Unavailable, *DATABASE_ERRORS):
                        await asyncio.sleep(_RETRY_SECONDS)  # Postgres is away: those who wait go on waiting
                        continue
                    if not found.is_empty:
                        self._add(found)
                    self.place = found.next
                    if not found.is_empty:
                        for one in self.waiting:
                            one.set()
                    if found.is_end:
                        await follower.wait()
        except Exception as error:  # those who wait are told, whatever it was
            log.exception("the end of the log is not followed any more")
            self.failure = error
            for one in self.waiting:
                one.set()

    def _add(self, found: Rendered) -> None:
        self._recent.append(found)
        self._recent_bytes += found.size
        self._memory.note(self, found.size)
        while self._recent_bytes > _RECENT_OF_TAIL_BYTES_MAX or len(self._recent) > _RECENT_MAX:
            self.forget()
        self._memory.shrink()


class _Reading(NamedTuple):
    task: asyncio.Task[Rendered]
    askers: list[str]
    """The callers that wait for it. Once they are gone, nothing needs it; but what has begun ends, so that it takes its time from
    nobody else."""


class SharedPortions:
    """Readings of portions that are not at the end: one for all who ask the same at the same time, or shortly after."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._running: dict[tuple[EventFilter, int], _Reading] = {}
        self._recent: OrderedDict[tuple[EventFilter, int], tuple[float, Rendered]] = OrderedDict()
        self._recent_bytes = 0

    async def ask(self, query: EventFilter, place: int, caller: str) -> Rendered:
        """The portion that begins at `place`. Raises what the reading raises."""
        question = query, place
        self._forget_old()
        if (known := self._recent.get(question)) is not None:
            return known[1]
        reading = self._running.get(question)
        if reading is None:
            askers = list[str]()
            task = asyncio.create_task(self._read_once(question, askers), context=contextvars.Context())
            task.add_done_callback(
                lambda done: done.cancelled() or done.exception()
            )  # nobody may be left to hear of it
            reading = self._running[question] = _Reading(task, askers)
        reading.askers.append(caller)
        try:
            return await asyncio.shield(reading.task)  # who asked first may be gone while others wait
        finally:
            reading.askers.remove(caller)

    async def _read_once(self, question: tuple[EventFilter, int], askers: Collection[str]) -> Rendered:
        try:
            found = await self._read(*question, askers)
        finally:
            del self._running[question]
        if not found.is_end and found.size <= _SHARED_BYTES_MAX:  # at the end there may be more at any time
            self._recent[question] = monotonic() + _SHARED_SECONDS, found
            self._recent_bytes += found.size
            while self._recent_bytes > _SHARED_BYTES_MAX:
                self._forget()
        return found

    def _forget_old(self) -> None:
        while self._recent and next(iter(self._recent.values()))[0] < monotonic():
            self._forget()

    def _forget(self) -> None:
        _, (_, forgotten) = self._recent.popitem(last=False)
        self._recent_bytes -= forgotten.size
