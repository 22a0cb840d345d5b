"""The end of the log, followed once for all who wait there with the same filter; and readings that equal askers share.

A follower that finds nothing costs those who wait nothing: they are woken by what matches. What it has found lately it keeps, so that
whoever is a little slower still gets it without a reading of his own.
"""

import asyncio
import contextvars
import logging
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from time import monotonic

from app.db import DATABASE_ERRORS
from app.errors import Unavailable
from app.query.filter import EventFilter
from app.stream.growth import LogGrowth
from app.stream.rendered import Rendered

Read = Callable[[EventFilter, int], Awaitable[Rendered]]
"""Reads the portion that begins at a place. Raises AuditError, or NotThereYet."""
_RECENT_BYTES_MAX = 4 * 1024 * 1024
_RECENT_MAX = 256
_RETRY_SECONDS = 1.0
_SHARED_BYTES_MAX = 8 * 1024 * 1024
_SHARED_SECONDS = 10.0

log = logging.getLogger(__name__)


class TooFarBack(Exception):
    """What lies at a place is not known here any more: it has to be read."""


class Tail:
    """Follows the log from a place near its end, for those who wait for what matches one filter."""

    def __init__(self, query: EventFilter, place: int, read: Read, growth: LogGrowth) -> None:
        self.place = place
        """Everything before it that matches has been found."""
        self.failure: Exception | None = None
        """Why it follows no further."""
        self.waiting: set[asyncio.Event] = set()
        """Of those who follow; each is set when there is something for them."""
        self._query, self._read, self._growth = query, read, growth
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
        """Follow no further."""
        self._task.cancel()

    async def _follow(self) -> None:
        try:
            async with self._growth.follow() as follower:
                while True:
                    try:
                        found = await self._read(self._query, self.place)
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
        while len(self._recent) > 1 and (self._recent_bytes > _RECENT_BYTES_MAX or len(self._recent) > _RECENT_MAX):
            oldest = self._recent.popleft()
            self._recent_bytes -= oldest.size
            self._known_from = oldest.next


class SharedPortions:
    """Readings of portions that are not at the end: one for all who ask the same at the same time, or shortly after."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._running: dict[tuple[EventFilter, int], asyncio.Task[Rendered]] = {}
        self._recent: OrderedDict[tuple[EventFilter, int], tuple[float, Rendered]] = OrderedDict()
        self._recent_bytes = 0

    async def ask(self, query: EventFilter, place: int) -> Rendered:
        """The portion that begins at `place`. Raises what the reading raises."""
        question = query, place
        self._forget_old()
        if (known := self._recent.get(question)) is not None:
            return known[1]
        task = self._running.get(question)
        if task is None:
            task = asyncio.create_task(self._read_once(question), context=contextvars.Context())
            task.add_done_callback(
                lambda done: done.cancelled() or done.exception()
            )  # nobody may be left to hear of it
            self._running[question] = task
        return await asyncio.shield(task)  # who asked first may be gone while others wait

    async def _read_once(self, question: tuple[EventFilter, int]) -> Rendered:
        try:
            found = await self._read(*question)
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
