"""The page of events: filters that are links, and a table whose rows open to all that is known of an event."""

from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Literal, get_args
from urllib.parse import urlencode

import orjson
from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from app.api.deadline import within_deadline
from app.api.events import parse_query
from app.api.paging import cursor_errors
from app.api.service import service_of
from app.events.envelope import Category, Outcome
from app.pages.rendering import page
from app.query.filter import EventQuery
from app.query.page import Page, rest_of_page
from app.query.places import places

router = APIRouter(include_in_schema=False)
_API = "/api/v1/audit/events"
_REPEATED = ("_in", "_not")
_PAGING = {"limit", "offset", "cursor", "total"}
_CHOICES: dict[str, tuple[str, ...]] = {
    "event_outcome": get_args(Outcome),
    "event_category": get_args(Category),
    "include": ("self",),
    "sealed": ("true", "false"),
}
_FIRST = ("since", "until", "event_type", "event_outcome", "event_category", "correlation_id")
"""Filters that are always shown; the others open."""


@router.get("/ui/events")
async def events_page(request: Request) -> Response:
    """Events, newest first, as GET /api/v1/audit/events answers with the same query."""
    service, sent = service_of(request), without_empty(request)
    query = parse_query(urlencode(sent).encode(), datetime.now(UTC))
    with cursor_errors(query.cursor):
        found = await within_deadline(request, service.pages.ask(query))
    events = [event async for portion in portions(request, found) for event in await shown(request, portion)]
    return page(
        request,
        "events.html",
        title="Events",
        twin=f"{_API}?{urlencode(sent)}",
        events=events,
        found=found,
        link=Links("/ui/events", sent),
        filters=filters(sent),
    )


def without_empty(request: Request) -> list[tuple[str, str]]:
    """The parameters of the request that have a value: a form sends all of its fields."""
    return [(name, value) for name, value in request.query_params.multi_items() if value]


async def portions(request: Request, found: Page) -> AsyncIterator[list[dict[str, Any]]]:
    """The events of a page, as many at a time as fit into memory."""
    yield found.events
    rest = rest_of_page(service_of(request).engine, found)
    while found.rest and (portion := await within_deadline(request, anext(rest, None))) is not None:
        yield portion


async def shown(request: Request, events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Events with what a page shows beside their members: `place` (query/places.py), `payload` as JSON text, and whether their time has
    not come yet: `is_ahead`.
    """
    found = await within_deadline(request, places(service_of(request).engine, events))
    now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S}"
    return [
        event
        | {
            "place": place,
            "payload": orjson.dumps(event["event_data"]).decode(),
            "is_ahead": event["event_timestamp"] > now,
        }
        for event, place in zip(events, found, strict=True)
    ]


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
    sent: list[tuple[str, str]], model: type[BaseModel] = EventQuery, always: Sequence[str] = _FIRST
) -> dict[Literal["first", "more", "hidden"], list[dict[str, Any]]]:
    """The fields of the form: those of the model, each with what was sent and what can be chosen; those of `always` come first.

    Parameters that can be repeated are hidden fields, which the form sends again.
    """
    values: dict[str, str] = {}
    for name, value in sent:
        values.setdefault(name, value)
    fields = [
        {
            "name": name,
            "label": label(name),
            "value": values.get(name, ""),
            "choices": _CHOICES.get(name),
            "help": field.description or "",
        }
        for name, field in model.model_fields.items()
        if name not in _PAGING and not name.endswith(_REPEATED)
    ]
    first = sorted((one for one in fields if one["name"] in always), key=lambda one: always.index(one["name"]))
    hidden = [{"name": name, "value": value} for name, value in sent if name.endswith(_REPEATED)]
    return {"first": first, "more": [one for one in fields if one["name"] not in always], "hidden": hidden}


def label(name: str) -> str:
    """A parameter's name as words."""
    return {"q": "text"}.get(name, name.removeprefix("event_").replace("_id", "").replace("_", " "))
