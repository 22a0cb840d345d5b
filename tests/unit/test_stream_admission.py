"""A stream's caller, looked at again while it lasts."""

from math import inf
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from starlette.types import Message

from app.api import stream
from app.api.streams import Seat
from app.query.filter import EventFilter
from app.settings import Settings
from app.stream.portion import Portion
from app.stream.rendered import Rendered
from tests.streamed import streamed_event


async def test_within_a_portion(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client whose token was revoked is looked at again only once it has received its portion, for which a slow one takes minutes."""

    async def is_still_admitted(_: object) -> bool:
        return False

    monkeypatch.setattr(stream, "service_of", lambda _: SimpleNamespace(streams=Mock(), settings=Settings()))
    monkeypatch.setattr(stream, "expiry", lambda _: inf)
    monkeypatch.setattr(stream, "is_still_admitted", is_still_admitted)
    monkeypatch.setattr(stream, "_ADMISSION_SECONDS", 0.0)
    found = Rendered.of(Portion([streamed_event(one, {"x": "x" * 100_000}) for one in range(5)], 5, is_end=False), 0)
    sent = list[bytes]()

    async def send(message: Message) -> None:
        sent.append(message["body"])

    question = stream.Question(EventFilter(), 0, "ndjson")
    await stream._Stream(Mock(), Seat("one"), send, question, found).run()
    lines = b"".join(sent).splitlines()
    assert len(lines) == 3  # position, one event, closed
    assert lines[-1] == b'{"stream":"closed","place":"0:1","reason":"token"}'
