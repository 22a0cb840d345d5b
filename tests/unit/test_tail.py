"""What tails remember, and that it is bounded for all of them together."""

import asyncio
import tracemalloc
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import get_args

import pytest
from starlette.requests import Request

from app.api.stream import parse_stream
from app.query.filter import EventFilter
from app.settings import Settings
from app.stream.growth import Follower, LogGrowth
from app.stream.portion import Portion
from app.stream.rendered import Form, Rendered
from app.stream.tail import Memory, Tail, TooFarBack
from tests.streamed import streamed_event


class NoGrowth(LogGrowth):
    """A log that nobody announces."""

    @asynccontextmanager
    async def follow(self) -> AsyncIterator[Follower]:
        yield Follower(self)


def rendered(first: int, size: int = 10_000, number: int = 1) -> Rendered:
    items = [streamed_event(first + one, {"text": "x" * size}) for one in range(number)]
    return Rendered.of(Portion(items, first + number, is_end=True), first)


class Followed:
    """A tail whose log has an event more for each call of `grow`."""

    def __init__(self, memory: Memory) -> None:
        self._grown = asyncio.Queue[int]()
        self.tail = Tail(EventFilter(), 0, self._read, NoGrowth(Settings()), memory)

    async def _read(self, query: EventFilter, place: int, callers: Collection[str]) -> Rendered:
        del query, callers
        size = await self._grown.get()
        found = rendered(place, size)
        found.is_end = False
        return found

    async def grow(self, size: int = 10_000) -> None:
        """Return when the tail has found it."""
        woken, place = asyncio.Event(), self.tail.place
        self.tail.waiting[woken] = "one"
        self._grown.put_nowait(size)
        await woken.wait()
        del self.tail.waiting[woken]
        assert self.tail.place == place + 1


async def test_memory_is_bounded_for_all() -> None:
    """Each tail has a bound of its own, so that many of them take gigabytes."""
    bytes_max = 10 * rendered(0).size + 1_000
    memory = Memory(bytes_max)
    large, *small = (Followed(memory) for _ in range(4))
    for followed in small:
        await followed.grow()
    for _ in range(20):
        await large.grow()
        assert memory.size <= bytes_max
    for followed in small:  # they kept what they have: the largest forgets
        assert followed.tail.after(0) is not None
    with pytest.raises(TooFarBack):
        large.tail.after(12)
    found = large.tail.after(13)
    assert found is not None
    assert (found.first, found.next) == (13, 14)
    large.tail.close()
    assert memory.size == 3 * rendered(0).size
    for followed in small:
        followed.tail.close()
    assert memory.size == 0


async def test_what_alone_is_too_large() -> None:
    """One event that has no space is remembered all the same, or those who wait for it do not hear of it."""
    memory = Memory(bytes_max=rendered(0).size)
    followed = Followed(memory)
    await followed.grow()
    await followed.grow(200_000)
    assert memory.size == 0
    with pytest.raises(TooFarBack):  # who waits reads it for himself
        followed.tail.after(1)
    assert followed.tail.after(2) is None
    await followed.grow()
    found = followed.tail.after(2)
    assert found is not None
    assert found.next == 3
    followed.tail.close()


@pytest.mark.parametrize(("size", "number"), [(1, 500), (10_000, 20)])
def test_size_covers_what_is_kept(size: int, number: int) -> None:
    """A portion takes more memory than is counted: what its lines have been written to, or the records that are made of it for clients."""
    items = [streamed_event(one, {"text": "x" * size}) for one in range(number)]
    tracemalloc.start()
    try:
        found = Rendered.of(Portion(items, number, is_end=True), 0)
        for form in get_args(Form):
            found.chunks(form)
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert number * size < taken < found.size


def test_relative_times_are_shared() -> None:
    """Each dashboard that is opened with since=1h has a filter of its own."""

    def asked(second: int) -> EventFilter:
        scope = {"type": "http", "query_string": b"since=1h", "headers": []}
        return parse_stream(Request(scope), datetime(2026, 1, 31, 12, 0, second, 5, tzinfo=UTC)).query

    assert asked(0) == asked(59)
    assert asked(7).since == datetime(2026, 1, 31, 11, 0, tzinfo=UTC)
