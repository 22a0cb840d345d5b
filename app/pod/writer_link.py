"""The writer's end of the connections by which the other processes of the pod hand it events, and it asks them for metrics.

Messages to the writer:   ("part", number, events)                               a further part of a large submission
                          ("forget", number)                                     there will be no submission of these parts
                          ("submit", number, count, events, rest, deadline)      answered with (number, error, cause, outcome)
                          ("dates", number, ids)                                 answered with (number, error, cause, dates)
                          ("samples", samples)                                   the answer to METRICS_PLEASE
`events` is what encode_events() makes, `count` the number of all events of the submission, `outcome` (is_spooled, stored_as, rejections, bookmark). A deadline is on the clock that all processes of one machine share.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from datetime import date
from typing import Any
from uuid import UUID

from app.bookmark import Bookmark
from app.errors import AuditError, DatabaseAway
from app.ingest.accept import Event
from app.ingest.submission import Submission
from app.ingest.writer import Writer
from app.pod.messages import Messages, listen
from app.pod.pod_metrics import PodMetrics

METRICS_PLEASE = (0, None, "", None)
"""Asks the other end for its metrics; number 0 is of no submission."""
EncodedEvents = list[tuple[Any, ...]]

log = logging.getLogger(__name__)


def encode_events(events: Sequence[Event]) -> EncodedEvents:
    """Tuples, which are sent in half the time of objects."""
    return [
        (e.id.int, e.correlation_id, e.row[1:], e.record, e.digest, e.payload_bytes, e.metadata, e.other_ids, e.alias)
        for e in events
    ]


def decode_events(events: EncodedEvents) -> list[Event]:
    """The events that encode_events() was called with."""
    return [
        Event(event_id := UUID(int=number), correlation_id, (event_id, *row), *others)
        for number, correlation_id, row, *others in events
    ]


class WriterLink:
    """Takes submissions from the other processes of the pod."""

    def __init__(self, writer: Callable[[], Writer | None], metrics: PodMetrics, name: str) -> None:
        self._writer = writer
        self._metrics = metrics
        self._name = name
        self._server: asyncio.Server | None = None
        self._parts: dict[tuple[Messages, int], list[Event]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(self._connected, sock=listen(self._name))

    async def close(self) -> None:
        """Answer what was submitted, and take nothing further."""
        if self._server is not None:
            self._server.close()
        await asyncio.gather(*self._tasks)

    def _connected(self) -> Messages:
        messages = Messages(self.on_message, self._on_lost)
        self._metrics.add(messages, lambda: messages.send(METRICS_PLEASE))
        return messages

    def _on_lost(self, messages: Messages) -> None:
        self._metrics.remove(messages)
        self._parts = {key: events for key, events in self._parts.items() if key[0] is not messages}

    def on_message(self, messages: Messages, message: Any) -> None:
        """Do what a message from the other end of `messages` asks for."""
        match message:
            case "part", number, events:
                self._parts.setdefault((messages, number), []).extend(decode_events(events))
            case "forget", number:
                self._parts.pop((messages, number), None)
            case "submit", number, count, last, rest, deadline:
                events = [*self._parts.pop((messages, number), []), *decode_events(last)]
                self._answer(messages, number, self._submit(events, count, rest, deadline))
            case "dates", number, ids:
                self._answer(messages, number, self._waiting_event_dates(ids))
            case "samples", samples:
                self._metrics.update(messages, samples)

    async def _submit(
        self, events: Sequence[Event], count: int, rest: dict[str, Any], deadline: float
    ) -> tuple[bool, dict[UUID, UUID], dict[UUID, AuditError] | None, Bookmark | None]:
        """Have the writer store the events. DatabaseAway if a part is missing, or they were made for another log than it writes to."""
        writer = self._writer()
        if writer is None or len(events) != count or events[0].record["log"] != writer.store.log.first_name:
            raise DatabaseAway
        submission = Submission(events, **rest)
        is_spooled = await writer.submit(submission, deadline)
        return is_spooled, submission.stored_as, submission.rejections, submission.bookmark

    async def _waiting_event_dates(self, ids: set[UUID]) -> dict[UUID, date]:
        writer = self._writer()
        return {} if writer is None else await writer.waiting_event_dates(ids)

    def _answer(self, messages: Messages, number: int, outcome: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.create_task(_send_outcome(messages, number, outcome))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _send_outcome(messages: Messages, number: int, outcome: Coroutine[Any, Any, Any]) -> None:
    try:
        messages.send((number, None, "", await outcome))
    except AuditError as error:
        messages.send((number, error, "" if error.__cause__ is None else repr(error.__cause__), None))
    except Exception:  # the other end waits for an answer, whatever failed
        log.exception("a submission of another process failed unexpectedly")
        messages.send((number, AuditError(), "", None))
