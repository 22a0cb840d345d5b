"""Responses to clients that receive slowly."""

import asyncio

import pytest
from starlette.types import Message

from app.api.body import ClientDisconnected
from app.api.reading import Arrivals, Pace, ReadSlots, Turn
from app.api.streaming import PacedSend
from app.ingest.event_writer import OwnState
from tests.reading import Clock
from tests.without_waiting import without_waiting


def a_turn() -> Turn:
    return Turn("a", is_long=False, pace=Pace(1, OwnState()))


async def test_large_bodies_leave_in_pieces() -> None:
    """A large body is handed over at once, so that it is in memory until a slow client has it, or loses bytes or its end."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    paced = PacedSend(send, a_turn())
    body = bytes(range(256)) * 1000
    await paced({"type": "http.response.start", "status": 200, "headers": []})
    await paced({"type": "http.response.body", "body": body, "more_body": True})
    await paced({"type": "http.response.body", "body": body})
    assert sent[0]["type"] == "http.response.start"
    assert b"".join(message["body"] for message in sent[1:]) == body * 2
    assert max(len(message["body"]) for message in sent[1:]) <= 65536
    assert [message["more_body"] for message in sent[1:]] == [True] * (len(sent) - 2) + [False]


@without_waiting
async def test_who_does_not_receive_is_cut() -> None:
    """A client that has stopped reading occupies a slot for ever."""

    async def send(_: Message) -> None:
        await asyncio.Event().wait()

    with pytest.raises(ClientDisconnected):
        await PacedSend(send, a_turn())({"type": "http.response.body", "body": b"x"})


@without_waiting
async def test_who_receives_too_slowly_is_cut() -> None:
    """A client that reads a little now and then occupies a slot for ever, or one that is fast enough is cut."""

    async def send(_: Message) -> None:
        await asyncio.sleep(0.9)

    async def send_all(body: bytes, times: int) -> None:
        paced = PacedSend(send, a_turn())
        for _ in range(times):
            await paced({"type": "http.response.body", "body": body, "more_body": True})

    with pytest.raises(ClientDisconnected):
        await send_all(b"x", 1000)
    await send_all(b"x" * 65536, 50)


async def test_whose_slot_somebody_else_gets_is_cut() -> None:
    """A read that has had its slot for hours keeps it although others wait."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    paced = PacedSend(send, turn := a_turn())
    await paced({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
    turn.is_over = True
    with pytest.raises(ClientDisconnected):
        await paced({"type": "http.response.body", "body": b"x", "more_body": True})
    assert len(sent) == 1


async def test_work_is_what_happens_between_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream is read on without rests, or its slot rests because its client is slow."""
    clock = Clock(monkeypatch)
    pace = Pace(1, clock.writer)
    pace.slots_in_use = 1
    turn = Turn("a", is_long=False, pace=pace)
    clock.advance(1, 1)

    async def send(_: Message) -> None:
        assert pace._working == 0
        clock.advance(10, 1)

    paced = PacedSend(send, turn)
    turn.work()
    await paced({"type": "http.response.start", "status": 200, "headers": []})
    clock.advance(0.01, 1)
    before = asyncio.get_running_loop().time()
    await paced({"type": "http.response.body", "body": b"x", "more_body": True})
    assert asyncio.get_running_loop().time() - before >= 0.01 * (1 / 0.1 - 1)
    assert pace._working == 1
    await paced({"type": "http.response.body", "body": b""})
    assert (pace._working, turn.rest_owed) == (0, 0)


@pytest.mark.parametrize("ends", ["while it waits", "while it works", "while it sends", "while it rests"])
async def test_a_cancelled_read_leaves_nothing_behind(ends: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a read whose client has gone there is one slot less, or work counts as shared with a read that is over."""
    clock = Clock(monkeypatch)
    pace = Pace(1, clock.writer)
    slots = ReadSlots(1, pace)
    clock.advance(1, 1)
    entered = asyncio.Event()

    async def wait(message: Message | None = None) -> Message:
        if ends == "while it rests" and message is not None:
            return message
        entered.set()
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        await wait(message)

    async def read() -> None:
        async with slots.slot("a", Arrivals(wait), is_long=True) as turn:
            clock.advance(0.05, 1)
            if ends == "while it works":
                await wait()
            asyncio.get_running_loop().call_later(0.01, entered.set)
            await PacedSend(send, turn)({"type": "http.response.body", "body": b"x", "more_body": True})

    holder = asyncio.create_task(read())
    await entered.wait()
    if ends == "while it waits":
        entered.clear()
        waiting = asyncio.create_task(read())
        await entered.wait()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    holder.cancel()
    with pytest.raises(asyncio.CancelledError):
        await holder
    async with asyncio.timeout(5):
        while not slots._free:  # noqa: ASYNC110 -- the loop's timer sets it
            await asyncio.sleep(0.01)
    assert (slots._free, slots._long, pace._working) == (1, 0, 0)
    assert not slots._held
    assert not slots._waiting
