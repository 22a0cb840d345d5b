"""The pod's writer as the other processes see it: EventWriter over a local connection."""

import asyncio
from collections.abc import Callable, Iterator
from datetime import date
from itertools import count
from typing import Any
from uuid import UUID

from app.errors import DatabaseAway
from app.ingest.accept import Event
from app.ingest.submission import Submission
from app.pod import pod_metrics
from app.pod.messages import Messages, connect
from app.pod.state import PodState
from app.pod.writer_link import METRICS_PLEASE, encode_events

_PART_EVENTS_MAX = 500
_PART_BYTES_MAX = 1024 * 1024
_DATES_SECONDS = 5.0


class RemoteWriter:
    """Hands submissions to the pod's writer."""

    def __init__(self, state: PodState, on_lost: Callable[[], None] = lambda: None) -> None:
        """`on_lost` is called when the connection ends and nobody here has closed it."""
        self._state = state
        self._when_lost = on_lost
        self._messages = Messages(self._on_message, self._on_lost)
        self._numbers = count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._is_lost = False

    async def connect(self, name: str) -> None:
        """Connect to the writer that listens under `name`. Raises OSError."""
        await asyncio.get_running_loop().create_unix_connection(lambda: self._messages, sock=connect(name))

    @property
    def away(self) -> bool:
        """Whether Postgres was away at the writer's last flush."""
        return self._state.away

    @property
    def has_spool(self) -> bool:
        """Whether the writer has a spool."""
        return self._state.has_spool

    async def submit(self, submission: Submission, deadline: float) -> bool:
        """As Writer.submit(). DatabaseAway at the deadline also if the writer hangs or ends: then the outcome is unknown."""
        number = next(self._numbers)
        *parts, last = _parts(submission)
        try:
            async with asyncio.timeout_at(deadline):
                for part in parts:
                    self._messages.send(("part", number, encode_events(part)))
                    await self._messages.sent()
                if not self._messages.is_writable:  # a writer that hangs is not sent more and more
                    await self._messages.sent()
        except TimeoutError:
            if parts:
                self._messages.send(("forget", number))
            raise DatabaseAway from None
        rest = {"refusals": submission.refusals, "may_exist": submission.may_exist, "claim": submission.claim}
        rest["is_lenient"] = submission.rejections is not None
        is_spooled, submission.stored_as, submission.rejections, submission.bookmark = await self._ask(
            deadline, "submit", number, len(submission.events), encode_events(last), rest, deadline
        )
        return bool(is_spooled)

    async def waiting_event_dates(self, ids: set[UUID]) -> dict[UUID, date]:
        """As Writer.waiting_event_dates()."""
        deadline = asyncio.get_running_loop().time() + _DATES_SECONDS
        dates: dict[UUID, date] = await self._ask(deadline, "dates", next(self._numbers), ids)
        return dates

    async def close(self) -> None:
        """Close the connection."""
        self._when_lost = lambda: None
        self._messages.close()

    async def _ask(self, deadline: float, kind: str, number: int, *arguments: object) -> Any:
        """Send a message and return the answer, or raise the error that it brings."""
        if self._is_lost:
            raise DatabaseAway
        loop = asyncio.get_running_loop()
        answer = self._waiting[number] = loop.create_future()
        timer = loop.call_at(deadline, _fail, answer)
        self._messages.send((kind, number, *arguments))
        try:
            return await answer
        finally:
            timer.cancel()
            del self._waiting[number]

    def _on_message(self, messages: Messages, message: Any) -> None:
        if message == METRICS_PLEASE:
            messages.send(("samples", pod_metrics.samples()))
            return
        number, error, cause, value = message
        answer = self._waiting.get(number)
        if answer is None or answer.done():
            return
        if error is None:
            answer.set_result(value)
        else:
            error.__cause__ = RuntimeError(cause) if cause else None
            answer.set_exception(error)

    def _on_lost(self, messages: Messages) -> None:
        del messages
        self._is_lost = True
        for answer in self._waiting.values():
            _fail(answer)
        self._when_lost()


def _fail(answer: asyncio.Future[Any]) -> None:
    """The writer does not answer: it may have written the events or not."""
    if not answer.done():
        answer.set_exception(DatabaseAway())


def _parts(submission: Submission) -> Iterator[list[Event]]:
    """The events in parts, so that neither process is busy for long with one of them; at least one."""
    part: list[Event] = []
    size = 0
    for event in submission.events:
        if part and (len(part) == _PART_EVENTS_MAX or size + event.payload_bytes > _PART_BYTES_MAX):
            yield part
            part, size = [], 0
        part.append(event)
        size += event.payload_bytes
    yield part
