"""Readings that equal questions share: nobody gets an old answer, waits for ever, or ends what others wait for."""

import asyncio

import pytest

from app.query.sharing import SharedReads


class Library:
    """Something to read that changes, and whose readings last until they are let go."""

    def __init__(self) -> None:
        self.content = 0
        self.readings = 0
        self.under_way = 0
        self.most_under_way = 0
        self.cancelled = 0
        self.gate = asyncio.Event()
        self.begun = asyncio.Semaphore(0)

    async def read(self, question: str) -> tuple[str, int]:
        self.readings += 1
        self.begun.release()
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        found = self.content
        try:
            await self.gate.wait()
            if question == "wrong":
                raise ValueError(question)
        except asyncio.CancelledError:
            await asyncio.sleep(0)  # as a connection that has to be closed
            self.cancelled += 1
            raise
        finally:
            self.under_way -= 1
        return question, found


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_crowd_shares_readings() -> None:
    """Each of many who ask the same costs a reading, or one question gets the answer to another."""
    library = Library()
    shared = SharedReads(library.read)
    asked = [asyncio.create_task(shared.ask("same")) for _ in range(32)]
    await turns()
    asked += [asyncio.create_task(shared.ask("same")) for _ in range(32)]
    other = asyncio.create_task(shared.ask("other"))
    await turns()
    library.gate.set()
    assert await asyncio.gather(*asked) == [("same", 0)] * 64
    assert await other == ("other", 0)
    assert (library.readings, library.most_under_way) == (3, 2)
    assert await shared.ask("same") == ("same", 0)
    assert library.readings == 4


async def test_nobody_misses_what_was_written_before_the_question() -> None:
    """Somebody who writes and then asks gets an answer that was read before."""
    library = Library()
    shared = SharedReads(library.read)
    asked = []
    for number in range(5):
        library.content = number
        asked.append(asyncio.create_task(shared.ask("same")))
        await turns()
    library.gate.set()
    found = [content for _, content in await asyncio.gather(*asked)]
    assert found == [0, 4, 4, 4, 4]


@pytest.mark.parametrize("gone", [[0], [1, 2], [0, 1], [3], [0, 1, 2], [0, 1, 2, 3]])
async def test_who_does_not_wait_ends_nothing(gone: list[int]) -> None:
    """A client that disconnects ends the reading of others; or a reading goes on for nobody, or has not ended when its askers have."""
    library = Library()
    shared = SharedReads(library.read)
    asked = []
    for number in range(4):
        asked.append(asyncio.create_task(shared.ask("same")))
        if number != 2:
            await turns()
    for number in gone:
        asked[number].cancel()
    await asyncio.wait([asked[number] for number in gone])
    if len(gone) == len(asked):
        assert library.under_way == 0
    await turns()
    library.gate.set()
    found = await asyncio.gather(*asked, return_exceptions=True)
    assert [isinstance(one, asyncio.CancelledError) for one in found] == [number in gone for number in range(4)]
    assert library.cancelled == (1 if 0 in gone else 0)
    assert await shared.ask("same") == ("same", 0)


async def test_a_slow_reading_is_not_waited_for() -> None:
    """Who asks while a slow reading is under way has no time left for his own when it ends."""
    library = Library()
    shared = SharedReads(library.read, patience_seconds=0.01)
    asked = [asyncio.create_task(shared.ask("same"))]
    await library.begun.acquire()
    for content in (1, 2):
        library.content = content
        asked += [asyncio.create_task(shared.ask("same")) for _ in range(8)]
        await asyncio.wait_for(library.begun.acquire(), 30)
    asked[1].cancel()
    await turns()
    library.gate.set()
    found = await asyncio.gather(*asked, return_exceptions=True)
    assert isinstance(found.pop(1), asyncio.CancelledError)
    assert found == [("same", 0), *[("same", 1)] * 7, *[("same", 2)] * 8]
    assert (library.readings, library.most_under_way, library.cancelled) == (3, 3, 0)
    assert await shared.ask("same") == ("same", 2)


async def test_an_error_is_everybodys() -> None:
    """An error reaches one asker only, and others wait for ever; or the question can never be asked again."""
    library = Library()
    shared = SharedReads(library.read)
    asked = [asyncio.create_task(shared.ask("wrong")) for _ in range(3)]
    await turns()
    library.gate.set()
    found = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(one) for one in found] == [ValueError] * 3
    with pytest.raises(ValueError, match="wrong"):
        await shared.ask("wrong")
