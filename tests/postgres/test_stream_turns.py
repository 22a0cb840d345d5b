"""Who reads for streams, and when: callers take turns, what nobody waits for is not read, and checkpoints are not mixed up."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from pydantic import SecretStr

from app.api.streams import Seat, Streams, StreamsBusy
from app.db import Connection
from app.ingest.event_writer import OwnState
from app.presence import Presence
from app.query.filter import EventFilter
from app.settings import Settings
from app.stream.growth import LogGrowth
from app.stream.portion import Checkpoint, LogReader, Portion
from tests.logs import FIRST_LOG
from tests.waiting import eventually

ALL = EventFilter(include="all")


class Reads:
    """What is read, instead of the log: each reading waits until there is a go for it."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        """Places, in the order in which they were read."""
        self.go = asyncio.Semaphore(0)
        self.checkpoints: list[int] = []

    async def read(
        self, reader: LogReader, connection: Connection, first: int, query: EventFilter, **_: int
    ) -> Portion:
        del reader, connection, query
        self.begun.append(first)
        await self.go.acquire()
        return Portion((), first + 1, is_end=True)

    async def checkpoint(self, reader: LogReader, connection: Connection, place: int) -> Checkpoint:
        del reader, connection
        self.checkpoints.append(place)
        return Checkpoint(place, "note")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    made = Reads()

    async def read(*arguments: object, **named: int) -> Portion:
        return await made.read(*arguments, **named)  # type: ignore[arg-type]

    async def checkpoint(*arguments: object) -> Checkpoint:
        return await made.checkpoint(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(LogReader, "read", read)
    monkeypatch.setattr(LogReader, "checkpoint", checkpoint)
    return made


@pytest.fixture
async def streams(database_url: str) -> AsyncIterator[Streams]:
    settings = Settings(database_url=SecretStr(database_url), streams_max=100)
    made = Streams(settings, LogGrowth(settings), Presence(), OwnState(), readers=1)
    async with made.seat("somebody", ALL, FIRST_LOG.name, None):
        yield made


async def begun(reads: Reads, number: int) -> None:
    async def enough() -> bool | None:
        return len(reads.begun) >= number or None

    await eventually(enough)


async def test_callers_take_turns(streams: Streams, reads: Reads) -> None:
    """One caller who has many streams in the past keeps those of others waiting until all of his have read."""
    many = [asyncio.create_task(streams.portion(ALL, place, "many")) for place in range(40)]
    await begun(reads, 2)
    one = asyncio.create_task(streams.portion(ALL, 1_000, "one"))
    shared = asyncio.create_task(streams.portion(ALL, 39, "another"))  # many has asked for it too, as the last one
    await asyncio.sleep(0)
    for _ in range(42):
        reads.go.release()
    await asyncio.gather(one, shared, *many)
    assert reads.begun.index(1_000) < 5
    assert reads.begun.index(39) < 5
    assert len(reads.begun) == 41


async def test_nobody_waits_any_more(streams: Streams, reads: Reads) -> None:
    """What was asked for by a client that has gone, or beyond its deadline, is read all the same."""
    running = [asyncio.create_task(streams.portion(ALL, place, "many")) for place in range(2)]
    await begun(reads, 2)
    waiting = [asyncio.create_task(streams.portion(ALL, place, "many")) for place in range(10, 30)]
    other = asyncio.create_task(streams.portion(ALL, 10, "other"))
    await asyncio.sleep(0)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    for _ in range(25):
        reads.go.release()
    await asyncio.gather(other, *running)
    assert (await streams.portion(ALL, 31, "other")).next == 32
    assert sorted(reads.begun) == [0, 1, 10, 31]


async def test_a_turn_that_is_given_up(streams: Streams, reads: Reads) -> None:
    """A client that goes in the moment in which it is its turn takes a connection with it."""
    for _ in range(4):
        asked = [asyncio.create_task(streams.checkpoint(5, "one", is_at_end=False)) for _ in range(4)]
        await asyncio.sleep(0)
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
    assert await asyncio.gather(*(streams.checkpoint(5, "one", is_at_end=False) for _ in range(4)))
    del reads


async def test_checkpoints_of_those_who_lag(streams: Streams, reads: Reads) -> None:
    """A stream in the past has those at its end ask for a checkpoint again and again, or gives them an old one."""
    assert await streams.checkpoint(10, "late", is_at_end=False) == Checkpoint(10, "note")
    at_end = [streams.checkpoint(100, "one", is_at_end=True) for _ in range(5)]
    assert await asyncio.gather(*at_end) == [Checkpoint(100, "note")] * 5
    assert await streams.checkpoint(20, "late", is_at_end=False) == Checkpoint(20, "note")
    assert await streams.checkpoint(50, "slow", is_at_end=True) == Checkpoint(50, "note")
    assert await streams.checkpoint(101, "one", is_at_end=True) == Checkpoint(100, "note")
    assert reads.checkpoints == [10, 100, 20, 50]


async def test_filters_of_one_caller(streams: Streams) -> None:
    """Each stream of a caller may have a filter of its own, each of which is read for at every event."""
    seats = [streams.seat("many", EventFilter(actor_id=str(number)), FIRST_LOG.name, None) for number in range(32)]
    for seat in seats:
        await seat.__aenter__()
    with pytest.raises(StreamsBusy, match="32 different filters"):
        async with streams.seat("many", ALL, FIRST_LOG.name, None):
            pass
    async with streams.seat("many", EventFilter(actor_id="3"), FIRST_LOG.name, None):
        pass  # one that he has is no further one
    async with streams.seat("other", ALL, FIRST_LOG.name, None):
        pass
    await seats[3].__aexit__(None, None, None)
    async with streams.seat("many", ALL, FIRST_LOG.name, None):
        pass
    for number in set(range(32)) - {3}:
        await seats[number].__aexit__(None, None, None)


async def test_a_reading_ends_with_its_stream() -> None:
    """A stream whose client has gone, or that has to end, waits until the reading that it asked for had its turn."""
    seat = Seat("one")
    asyncio.get_running_loop().call_soon(seat.end, "gone")
    with pytest.raises(TimeoutError):
        async with seat.bounded(None, 0.0):
            await asyncio.Event().wait()
    seat.end("shutdown")
    assert seat.end_reason == "gone"
