"""The label of each error in the metrics, on which dashboards and alerts depend; and an answer that precedes its body's end."""

import pytest
from starlette.requests import Request
from starlette.types import Message

from app.api.problems import problem_response
from app.errors import (
    AuditError,
    BadRequest,
    Conflict,
    DatabaseAway,
    DatabaseFailed,
    InboxFull,
    KeyBusy,
    KeyReused,
    TooLarge,
)
from app.framing import Malformed
from app.ingest.spool import SpoolFailed, SpoolFull
from app.ingest.store import MonthDetached, RowRefused

LABELS = {
    BadRequest: "BadRequest",
    Conflict: "Conflict",
    DatabaseAway: "DatabaseAway",
    DatabaseFailed: "DatabaseFailed",
    InboxFull: "InboxFull",
    KeyBusy: "KeyBusy",
    KeyReused: "KeyReused",
    MonthDetached: "MonthAway",
    RowRefused: "Refused",
    SpoolFailed: "SpoolFailed",
    SpoolFull: "SpoolFull",
}


@pytest.mark.parametrize(("kind", "label"), LABELS.items())
def test_label_of_a_refusal(kind: type[AuditError], label: str) -> None:
    """datastorage_events_refused_total has another value of `reason` than before, since a class was renamed."""
    assert kind().label == label


async def test_a_body_that_is_too_large_is_answered_however_it_goes_on() -> None:
    """The rest of a body that is not framed as HTTP has it spoils the answer, which was sent already."""
    sent: list[Message] = []

    async def receive() -> Message:
        raise Malformed

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
    await problem_response(Request(scope), TooLarge())(scope, receive, send)
    assert [message.get("more_body") for message in sent] == [None, True, None]
