"""Responses to clients that receive slowly."""

import asyncio

import pytest
from starlette.types import Message

from app.api import streaming
from app.api.body import ClientDisconnected
from app.api.reading import Pace, Turn
from app.api.streaming import PacedSend
from app.ingest.event_writer import OwnState


def a_turn() -> Turn:
    return Turn("a", is_long=False, pace=Pace(1, 1, OwnState()))


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


async def test_who_does_not_receive_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that has stopped reading occupies a slot for ever."""
    monkeypatch.setattr(streaming, "STALL_SECONDS", 0.05)

    async def send(_: Message) -> None:
        await asyncio.Event().wait()

    with pytest.raises(ClientDisconnected):
        await PacedSend(send, a_turn())({"type": "http.response.body", "body": b"x"})


async def test_who_receives_too_slowly_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that reads a little now and then occupies a slot for ever, or one that is fast enough is cut."""
    monkeypatch.setattr(streaming, "STALL_SECONDS", 0.5)

    async def send(_: Message) -> None:
        await asyncio.sleep(0.02)

    async def send_all(body: bytes, times: int) -> None:
        paced = PacedSend(send, a_turn())
        for _ in range(times):
            await paced({"type": "http.response.body", "body": body, "more_body": True})

    with pytest.raises(ClientDisconnected):
        await send_all(b"x", 1000)
    await send_all(b"x" * 65536, 50)
