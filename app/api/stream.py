"""GET of the stream: what is sealed from a place of the log on, in its order, for as long as the client reads.

A portion after the other is read and sent until the end of the log; from there on what the process follows for all who wait with the
same filter (app/stream/tail.py). docs/streams.md has the records.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Any, NamedTuple

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.api.access import caller_name, client_address, expiry, is_still_admitted
from app.api.body import ClientDisconnected
from app.api.deadline import within_deadline
from app.api.filters import documented_filter, parameters_of, read_filter
from app.api.parameters import query_parameters, refuse_unknown
from app.api.routes import Router
from app.api.service import Service, service_of
from app.api.streams import Seat
from app.db import driver_connection
from app.errors import AuditError, BadRequest, Unavailable
from app.events.explain import bad_fields
from app.query.filter import EventFilter, EventQuery
from app.stream.place import parse_place, place_text
from app.stream.portion import NotThereYet, end_place
from app.stream.rendered import Form, Rendered, checkpoint_record, closed_record, position_record
from app.stream.tail import Tail, TooFarBack

router = Router(tags=["query"])

KEEPALIVE_SECONDS = 15.0
_CHECKPOINT_SECONDS = 10.0
_ADMISSION_SECONDS = 15.0
"""Between two looks whether the client would still be admitted."""
_RETRY_SECONDS = 1.0
_LAST_SECONDS = 2.0
"""For what is on its way to the client when the stream has to end."""
_UNTOLD_MAX = 1_000
"""Positions that a filter leaves out, after which the client is told where the stream is."""
_PIECE_BYTES = 64 * 1024
_MEDIA_TYPES: dict[Form, str] = {"sse": "text/event-stream", "ndjson": "application/x-ndjson"}
_OF_PAGES = EventQuery.model_fields.keys() - EventFilter.model_fields.keys()
_PARAMETERS: list[dict[str, Any]] = [
    {
        "name": "from",
        "in": "query",
        "description": "where it begins: start, now, or a place LOG:POSITION, whose event is the first one; now if absent",
        "schema": {"type": "string", "default": "now", "examples": ["start", "now", "0:4711"]},
    },
    {
        "name": "Last-Event-ID",
        "in": "header",
        "description": "the place that the client has seen last: the stream goes on after it, whatever `from` says",
        "schema": {"type": "string"},
    },
]

log = logging.getLogger(__name__)


def _documented() -> list[dict[str, Any]]:
    return [one for one in documented_filter(EventFilter) if one["name"] != "sealed"] + _PARAMETERS


@router.get(
    "/api/v1/audit/stream",
    response_class=Response,
    responses={
        200: {
            "description": "Records without an end: audit (an exported event), absent, seam, checkpoint, position and closed",
            "content": {"text/event-stream": {}, "application/x-ndjson": {}},
        }
    },
    openapi_extra={"parameters": _documented},
)
async def stream_events(request: Request) -> Response:
    """Follow the log: every sealed event once, in its order, from any place on, as it is committed."""
    service = service_of(request)
    return _StreamResponse(request, service, parse_stream(request, datetime.now(UTC)))


async def end_of_log(request: Request) -> str:
    """The place that the next event will have, as `from`."""
    service = service_of(request)
    async with driver_connection(service.engine) as connection:
        return place_text(await end_place(connection, service.log))


class Question(NamedTuple):
    """What a client wants to follow."""

    query: EventFilter
    place: int | None
    """Where it begins; None: at the end of the log."""
    form: Form


def parse_stream(request: Request, now: datetime) -> Question:
    """The question in a request. BadRequest for what a stream does not have."""
    query_string = request.scope["query_string"]
    # Times that are relative count from this minute's begin, so that those who ask within it ask the same.
    query = read_filter(query_string, EventFilter, now.replace(second=0, microsecond=0), {}, check=_check)
    sent = query_parameters(query_string, {"from"})
    accept = request.headers.get("accept", "")
    form: Form = "ndjson" if "application/x-ndjson" in accept and "text/event-stream" not in accept else "sse"
    if last := request.headers.get("last-event-id"):
        place: int | None = _place("Last-Event-ID", last) + 1
    elif (begin := sent.get("from") or "now") in {"now", "start"}:
        place = None if begin == "now" else 0
    else:
        place = _place("from", begin)
    return Question(query.model_copy(update={"sealed": None, "zone": None}), place, form)


def _check(query_string: bytes, fields: dict[str, Any]) -> None:
    sent = query_parameters(query_string, _OF_PAGES)
    if sent:
        raise bad_fields(dict.fromkeys(sent, "belongs to pages: a stream has all events, in the order of the log"))
    if fields.get("sealed") is False:
        raise bad_fields({"sealed": "a stream has sealed events only: what others inserted by SQL has no position"})
    refuse_unknown(query_string, _names())


def _names() -> Collection[str]:
    return [*parameters_of(EventFilter), "from"]


def _place(name: str, text: str) -> int:
    try:
        return parse_place(text)
    except ValueError as error:
        also = " start, or now" if name == "from" else ""
        raise bad_fields({name: f"{error}{',' if also else ''}{also}; got {text[:60]!r}"}) from None


class _StreamResponse(Response):
    def __init__(self, request: Request, service: Service, question: Question) -> None:
        super().__init__(media_type=_MEDIA_TYPES[question.form], headers={"X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._request, self._service, self._question = request, service, question

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service, request, question = self._service, self._request, self._question
        caller = caller_name(request) or client_address(scope)
        streams = service.streams
        async with streams.seat(caller, question.query, service.log_name, service.signing_key) as seat:
            place = question.place
            if place is None:
                place = await within_deadline(request, streams.end_of_log(caller))
            try:
                first = await within_deadline(request, streams.portion(question.query, place, caller))
            except NotThereYet as refusal:
                raise _beyond_end(place, refusal.end) from None
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            watching = asyncio.create_task(_watch(receive, seat))
            try:
                await _Stream(request, seat, send, question, first).run()
            finally:
                watching.cancel()


def _beyond_end(place: int, end: int) -> BadRequest:
    text = f"{place_text(place)} is beyond the end of the log: the next event will be {place_text(end)}"
    return BadRequest(text, field_errors={"from": text}, end=place_text(end))


async def _watch(receive: Receive, seat: Seat) -> None:
    """End the stream when its client is gone."""
    with suppress(AuditError):  # of a body that is not HTTP
        while (await receive())["type"] != "http.disconnect":
            pass
    seat.end("gone")


class _Over(Exception):
    """The stream has to end."""


class _Stream:
    """One stream, from its first portion to its last record."""

    def __init__(self, request: Request, seat: Seat, send: Send, question: Question, first: Rendered) -> None:
        self._request, self._seat, self._send_message = request, seat, send
        service = service_of(request)
        self._streams = service.streams
        self._query, self._form = question.query, question.form
        self._first = first
        self._is_at_end = False
        self._place = self._told = self._covered = first.first
        """Everything before `_place` that matches was sent, the client knows that it may go on at `_told`, and `_covered` is what
        the last checkpoint covers that was sent."""
        self._now = asyncio.get_running_loop().time
        self._stall_seconds = service.settings.stream_stall_ms / 1000
        now, seconds, expires_in = self._now(), service.settings.stream_seconds_max, expiry(request) - time.time()
        self._end_at, self._end_reason = now + min(seconds, expires_in), "token" if expires_in < seconds else "time"
        self._alive_at, self._checkpoint_at = now + KEEPALIVE_SECONDS, now
        self._admitted_until = now + _ADMISSION_SECONDS

    async def run(self) -> None:
        """Send until the client is gone or the stream has to end. Raises ClientDisconnected for a client that is too slow."""
        try:
            await self._send((b"retry: 1000\n" if self._form == "sse" else b"") + self._position())
            await self._follow(self._first)
        except _Over:
            pass
        except ClientDisconnected:
            raise
        except Exception:  # the client hears that it is not the end of the log
            log.exception("a stream has failed")
            self._seat.end("failed")
        if self._seat.end_reason != "gone":
            await self._send(closed_record(self._place, self._seat.end_reason, self._form), is_last=True)

    async def _follow(self, found: Rendered) -> None:
        while True:
            await self._send_portion(found)
            if found.is_end:
                self._is_at_end = True
                async with self._streams.tail(self._query, self._place, self._seat) as tail:
                    await self._wait_at_end(tail)
                self._is_at_end = False
            found = await self._read()

    async def _wait_at_end(self, tail: Tail) -> None:
        """Send what comes; return if it is more than is remembered for one who is slow."""
        while True:
            self._seat.woken.clear()
            self._end_if_due()
            try:
                found = tail.after(self._place)
            except TooFarBack:
                return
            if found is not None:
                await self._send_portion(found)
                continue
            self._place = max(self._place, tail.place)
            await self._wait()

    async def _read(self) -> Rendered:
        """What there is from the place on; waits for a Postgres that is away."""
        while True:
            self._seat.woken.clear()
            self._end_if_due()
            try:
                async with self._reading():
                    return await self._streams.portion(self._query, self._place, self._seat.caller)
            except Unavailable:
                await self._wait(_RETRY_SECONDS)

    @asynccontextmanager
    async def _reading(self) -> AsyncIterator[None]:
        """While it waits for a reading. Raises _Over as soon as the stream has to end: then the reading is not needed any more."""
        try:
            async with self._seat.bounded(None, 0.0):
                yield
        except TimeoutError:
            raise _Over from None

    async def _send_portion(self, found: Rendered) -> None:
        for chunk in found.chunks(self._form):
            self._end_if_due()
            await self._send(chunk.content)
            self._place = self._told = chunk.next
            await self._end_if_not_admitted()  # a client that is slow gets a portion for minutes
        self._place = found.next
        if self._place - self._told >= _UNTOLD_MAX:
            await self._send(self._position())
        await self._send_what_is_due()

    async def _wait(self, seconds_max: float = KEEPALIVE_SECONDS) -> None:
        """Wait until somebody wakes the stream, and not longer than until the next thing is due."""
        until = min(self._now() + seconds_max, self._alive_at, self._admitted_until, self._end_at)
        with suppress(TimeoutError):
            async with asyncio.timeout_at(until):
                await self._seat.woken.wait()
        await self._send_what_is_due()

    async def _send_what_is_due(self) -> None:
        await self._end_if_not_admitted()
        now = self._now()
        is_silent = now >= self._alive_at
        if is_silent or now >= self._checkpoint_at:
            self._checkpoint_at = now + _CHECKPOINT_SECONDS
            with suppress(AuditError):  # Postgres is away, or busy
                async with self._reading():
                    checkpoint = await self._streams.checkpoint(
                        self._place, self._seat.caller, is_at_end=self._is_at_end
                    )
                if checkpoint is not None and checkpoint.place > self._covered:
                    self._covered = checkpoint.place
                    await self._send(checkpoint_record(checkpoint, self._form))
        if is_silent:
            await self._send(self._position())

    async def _end_if_not_admitted(self) -> None:
        """Raises _Over, also if it is due for another reason."""
        if self._now() >= self._admitted_until:
            self._admitted_until = self._now() + _ADMISSION_SECONDS
            if not await is_still_admitted(self._request):
                self._seat.end("token")
        self._end_if_due()

    def _end_if_due(self) -> None:
        """Raises _Over."""
        if self._now() >= self._end_at:
            self._seat.end(self._end_reason)
        if self._seat.end_reason:
            raise _Over

    def _position(self) -> bytes:
        self._told = self._place
        return position_record(self._place, self._form)

    async def _send(self, content: bytes, *, is_last: bool = False) -> None:
        """Raises ClientDisconnected for a client that takes too long for a piece."""
        for start in range(0, len(content), _PIECE_BYTES):
            end = start + _PIECE_BYTES
            more = not is_last or end < len(content)
            seconds = _LAST_SECONDS if self._seat.end_reason else self._stall_seconds
            try:
                async with self._seat.bounded(seconds, _LAST_SECONDS):
                    await self._send_message(
                        {"type": "http.response.body", "body": content[start:end], "more_body": more}
                    )
            except TimeoutError:
                if not self._seat.end_reason:
                    text = "a stream was closed: its client receives too slowly"
                    log.warning(text, extra={"place": place_text(self._place)})
                self._seat.end("slow")
                raise ClientDisconnected from None
        self._alive_at = self._now() + KEEPALIVE_SECONDS
