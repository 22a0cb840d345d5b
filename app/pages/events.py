"""The page of events: filters that are links, and a table whose rows open to all that is known of an event."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, Literal, get_args
from urllib.parse import urlencode

import orjson
from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from app.api.archived import find_events, find_left_out
from app.api.deadline import within_deadline
from app.api.events import parse_list_query
from app.api.filters import time_readers
from app.api.histogram import parse_histogram_query
from app.api.paging import cursor_errors
from app.api.reads import reads_of
from app.api.service import service_of
from app.api.stream import end_of_log
from app.errors import DatabaseBusy
from app.events import kubernetes
from app.events.envelope import Category, Outcome
from app.pages.chart import bars
from app.pages.rendering import page
from app.pages.text import indented
from app.query.filter import ALIASES, EventQuery, ListQuery
from app.query.histogram import Histogram
from app.query.page import Page, rest_of_page
from app.query.places import places

router = APIRouter(include_in_schema=False)
_API = "/api/v1/audit/events"
_STREAM = "/api/v1/audit/stream"
_TIMES = {"since", "until", "start_time", "end_time"}
_MINUTES = re.compile(r"(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d)(:\d\d)?")
_REPEATED = ("_in", "_not")
_PAGING = {"limit", "offset", "cursor", "total"}
_WITHOUT_FIELD = _PAGING | {"event_type", "strict"}
_NOT_STREAMED = _PAGING | {"order", "strict", "sealed", "archive"}
_NOT_COUNTED = _PAGING | {"order", "strict", "archive"}
_EVENTS_MAX = 200
"""Most events on a page: it is rendered in one go, while nobody else is answered."""
_DIGITS_MAX = 20
"""Of a limit; a longer one is left to the API's own rule."""
_PAYLOAD_MAX = 20_000
"""Characters of a payload in a table; the event's own page has all of them."""
_TEXT_DAYS = 7
"""How far back a text is looked for if nobody says: it is looked for in every payload."""
_CHOICES: dict[str, tuple[str, ...]] = {
    "event_outcome": get_args(Outcome),
    "event_category": (*get_args(Category), kubernetes.CATEGORY),
    "include": ("self", "kubernetes", "all"),
    "order": ("time", "log"),
    "sealed": ("true", "false"),
    "archive": ("include",),
}
_FIRST = ("q", "since", "until", "event_type_in", "event_outcome", "actor_id", "resource_id", "correlation_id")
"""Filters that are always shown; the others open."""


@router.get("/ui/events")
async def events_page(request: Request) -> Response:
    """Events, newest first, as GET /api/v1/audit/events answers with the same query."""
    sent = _question(request)
    query = parse_list_query(urlencode([*sent, ("strict", "true")]).encode(), datetime.now(UTC))
    live_from = await within_deadline(
        request, end_of_log(request)
    )  # first: what comes meanwhile is on the page, and is streamed too
    with cursor_errors(query.cursor):
        found = await within_deadline(request, find_events(request, query))
    left_out = await within_deadline(request, find_left_out(request, query, found))
    histogram = await _histogram(request, sent)
    events = [event async for portion in portions(request, found) for event in await shown(request, portion)]
    return page(
        request,
        "events.html",
        title="Events",
        twin=f"{_API}?{urlencode(sent)}",
        events=events,
        found=found,
        stream=_stream(query, sent),
        live_from=live_from,
        link=Links("/ui/events", sent),
        left_out=left_out,
        archive_missing=service_of(request).archive.what_is_missing,
        is_counted=query.archive is None,
        filters=filters(sent),
        histogram=histogram,
        bars=bars(histogram.buckets) if histogram else [],
    )


def _stream(query: EventQuery, sent: list[tuple[str, str]]) -> str | None:
    """The URL of what comes that matches, to which `from` is added; None where nothing can be put on top."""
    if query.cursor is not None or query.offset or query.until is not None or query.sealed is False:
        return None
    return f"{_STREAM}?{urlencode([pair for pair in sent if pair[0] not in _NOT_STREAMED])}"


async def _histogram(request: Request, sent: list[tuple[str, str]]) -> Histogram | None:
    """The events of the same filters over time, by outcome; None if there was no time to count them."""
    asked = [pair for pair in sent if pair[0] not in _NOT_COUNTED] + [("by", "outcome")]
    query = parse_histogram_query(urlencode(asked).encode(), datetime.now(UTC))
    with suppress(DatabaseBusy):
        return await within_deadline(request, reads_of(request).ask(service_of(request).histograms, query))
    return None


def without_empty(request: Request) -> list[tuple[str, str]]:
    """The parameters of the request that have a value, since a form sends all of its fields. A time that was sent by its other name has
    the field's, unless both were sent.
    """
    sent = [(name, _as_sent(name, value)) for name, value in request.query_params.multi_items() if value]
    names = {name for name, _ in sent}
    return [(name if (field := ALIASES.get(name, name)) in names else field, value) for name, value in sent]


def _question(request: Request) -> list[tuple[str, str]]:
    """What is asked: a text is looked for in the last days, unless somebody says where, and a page is not endless."""
    sent = [_bounded(*pair) for pair in without_empty(request) if pair[0] != "strict"]
    names = {name for name, _ in sent}
    if "q" in names and not names & {"since", "correlation_id", "correlation_id_in"}:
        sent.append(("since", _days_before_end(dict(reversed(sent)))))
    return sent


def _days_before_end(sent: dict[str, str]) -> str:
    """Where a text is looked for from: some days before `until`, if that is not to come."""
    now = datetime.now(UTC)
    until = time_readers(sent, now)["until"]("until", sent["until"]) if "until" in sent else now
    if until >= now:
        return f"{_TEXT_DAYS}d"
    with suppress(OverflowError):
        until -= timedelta(days=_TEXT_DAYS)
    return until.isoformat()


def _bounded(name: str, value: str) -> tuple[str, str]:
    return (
        (name, str(_EVENTS_MAX))
        if name == "limit" and value.isdecimal() and len(value) < _DIGITS_MAX and int(value) > _EVENTS_MAX
        else (name, value)
    )


def _as_sent(name: str, value: str) -> str:
    """A parameter as the API reads it: people write a time of day without seconds, and after a space."""
    match = _MINUTES.fullmatch(value.strip()) if name in _TIMES else None
    return f"{match[1]}T{match[2]}{match[3] or ':00'}" if match else value


async def portions(request: Request, found: Page) -> AsyncIterator[list[dict[str, Any]]]:
    """The events of a page, as many at a time as fit into memory."""
    yield found.events
    rest = rest_of_page(reads_of(request), found)
    while found.rest and (portion := await within_deadline(request, anext(rest, None))) is not None:
        yield portion


async def shown(request: Request, events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Events with what a page shows beside their members: `place` (query/places.py), `payload` as text instead of event_data, and
    whether their time has not come yet: `is_ahead`.
    """
    found = await within_deadline(request, reads_of(request)(lambda pool: places(pool, events)))
    now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S}"
    made = list[dict[str, Any]]()
    for event, place in zip(events, found, strict=True):
        payload = indented(orjson.dumps(event["event_data"]).decode(), _PAYLOAD_MAX)
        others = {name: value for name, value in event.items() if name != "event_data"}
        made.append(others | {"place": place, "payload": payload, "is_ahead": event["event_timestamp"] > now})
        await asyncio.sleep(0)  # payloads can be large, and others are waiting
    return made


class Links:
    """Links to a page with another question than the one that it was asked."""

    def __init__(self, path: str, sent: Iterable[tuple[str, str]]) -> None:
        self._path = path
        self.sent = [(name, value) for name, value in sent if name not in _PAGING - {"limit"}]

    def __call__(self, **changes: str | None) -> str:
        """The page's first part, with these parameters instead of its own of the same names; None leaves one out."""
        others = [(name, value) for name, value in self.sent if name not in changes]
        new = [(name, value) for name, value in changes.items() if value is not None]
        question = urlencode([*others, *new])
        return f"{self._path}?{question}" if question else self._path

    def without(self, name: str, value: str) -> str:
        """The page without one filter of several."""
        question = urlencode([pair for pair in self.sent if pair != (name, value)])
        return f"{self._path}?{question}" if question else self._path

    @property
    def chosen(self) -> list[tuple[str, str]]:
        """The filters in force."""
        return [pair for pair in self.sent if pair[0] not in _PAGING]


def filters(
    sent: list[tuple[str, str]], model: type[BaseModel] = ListQuery, always: Sequence[str] = _FIRST
) -> dict[Literal["first", "more", "hidden"], list[dict[str, Any]]]:
    """The fields of the form: those of the model, each with what was sent and what can be chosen; those of `always` come first.

    What was sent and has no field, or is a further value of one, is hidden: the form sends it again.
    """
    fields, hidden, values = _fields(model), list[dict[str, Any]](), dict[str, str]()
    for name, value in sent:
        if name in fields and name not in values:
            values[name] = value
        elif name not in _PAGING:
            hidden.append({"name": name, "value": value})
    fields = {name: one | {"value": values.get(name, "")} for name, one in fields.items()}
    first = [fields.pop(name) for name in always]
    return {"first": first, "more": list(fields.values()), "hidden": hidden}


def label(name: str) -> str:
    """A parameter's name as words."""
    known = {"q": "text", "event_type_in": "type, or prefix.*", "sealed": "in the log", "archive": "of the archive too"}
    return known.get(name) or name.removeprefix("event_").removesuffix("_id").replace("_", " ")


@cache
def _fields(model: type[BaseModel]) -> dict[str, dict[str, Any]]:
    """The form's fields by parameter. Of what can be repeated it has the type alone, since that can be a prefix, instead of the exact one."""
    return {
        name: {"name": name, "label": label(name), "choices": _CHOICES.get(name), "help": field.description or ""}
        for name, field in model.model_fields.items()
        if name == "event_type_in" or (name not in _WITHOUT_FIELD and not name.endswith(_REPEATED))
    }
