"""GET of events: a page of them, and one by its id."""

from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any, get_args
from uuid import UUID

from fastapi import HTTPException, Path
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from app.api.archived import find_archived, find_events
from app.api.body import json_response
from app.api.deadline import within_deadline
from app.api.filters import documented_filter, parameters_of, read_filter
from app.api.paging import cursor_errors, page_response
from app.api.parameters import Reader, cursor, refuse_unknown, true_or_false, uuid, whole_number
from app.api.reads import reads_of
from app.api.routes import Answer, Router
from app.api.service import foundation_of, service_of
from app.errors import DatabaseFailed, NotFound
from app.events import kubernetes
from app.events.envelope import Category, Outcome
from app.events.explain import bad_fields
from app.ingest.accept import ACCEPTED_COLUMNS
from app.query.cursor import Cursor, LogCursor
from app.query.filter import LIMIT_MAX, OFFSET_MAX, EventQuery, ListQuery
from app.query.page import Page, event_by_id, rest_of_page, spooled_event

router = Router(tags=["query"])

_WHEN_EMPTY = {"limit": 100, "event_outcome": ""}
"""What an empty value means where it does not mean that the parameter is absent."""
_READERS: dict[str, Reader] = {
    "limit": whole_number(1, LIMIT_MAX),
    "offset": whole_number(0, OFFSET_MAX),
    "cursor": cursor(Cursor, LogCursor),
    "strict": true_or_false(),
}

StoredCategory = Annotated[str, Field(json_schema_extra={"enum": [*get_args(Category), kubernetes.CATEGORY]})]
"""Those that clients post, and those of receivers."""
_NOT_COVERED = Field(description="covered by no hash: not proved by the log")


class Event(Answer):
    """An event as it is stored. Members of which nothing is known are left out."""

    event_id: UUID
    event_timestamp: datetime
    event_date: str
    event_type: str
    version: str
    event_category: StoredCategory
    event_action: str
    event_outcome: Outcome
    correlation_id: str
    parent_event_id: UUID | None
    parent_event_date: datetime | None
    resource_type: str | None = None
    resource_id: str | None = None
    namespace: str | None = None
    cluster_id: str | None = None
    severity: str | None = None
    duration_ms: int | None = None
    error_code: str | None = None
    error_message: str | None = None
    actor_id: str | None = None
    actor_type: str | None = None
    actor_ip: str | None = None
    retention_days: Annotated[int | None, _NOT_COVERED]
    is_sensitive: bool | None
    event_hash: str
    previous_event_hash: str
    legal_hold: Annotated[bool, _NOT_COVERED]
    legal_hold_reason: Annotated[str, _NOT_COVERED]
    legal_hold_placed_by: Annotated[str, _NOT_COVERED]
    legal_hold_placed_at: Annotated[datetime | None, _NOT_COVERED]
    event_data: dict[str, Any]
    sealed: Annotated[
        bool, Field(description="false, or absent: others inserted the event by SQL; it is in no log")
    ] = True
    archive_id: Annotated[
        UUID | None,
        Field(description="of an event that is in the archive alone: the part that it was read from; else absent"),
    ] = None


class Pagination(Answer):
    """Where this page stands. `next_cursor` is absent on the last page, `total` when it was not asked for."""

    limit: int
    offset: int
    total: int | None = None
    has_more: bool
    next_cursor: str | None = None
    total_exact: bool | None = None
    scanned_until: Annotated[
        datetime | None,
        Field(description="present if the page was cut before it was full: it has what was found down to this time"),
    ] = None


class Events(Answer):
    """One page, newest event first."""

    data: list[Event]
    pagination: Pagination


@router.get(
    "/api/v1/audit/events",
    response_class=Response,
    responses={200: {"model": Events}},
    openapi_extra={"parameters": partial(documented_filter, ListQuery)},
)
async def list_events(request: Request) -> Response:
    """Find events, newest first. With archive=include also those that are in the archive alone, as if by itself where Postgres has nothing
    of the time that `until` ends.
    """
    query = parse_list_query(request.scope["query_string"], datetime.now(UTC))
    try:
        with cursor_errors(query.cursor):
            found = await within_deadline(request, find_events(request, query))
    except DatabaseFailed as error:
        error.extra["instance"] = request.url.path
        raise
    return page_response(
        request, found.events, _pagination(query, found), _rest(request, found) if found.rest else None
    )


async def _rest(request: Request, found: Page) -> AsyncIterator[list[dict[str, Any]]]:
    portions = rest_of_page(reads_of(request), found)
    with suppress(StopAsyncIteration):
        while True:
            yield await within_deadline(request, anext(portions))


@router.get("/api/v1/audit/events/{event_id}", response_class=Response, responses={200: {"model": Event}})
async def get_event(request: Request, event_id: Annotated[str, Path(json_schema_extra={"format": "uuid"})]) -> Response:
    """One event by its id, also while it waits in this replica's spool, and if it is in the archive alone."""
    if event_id == "batch":  # a path of its own, which has only POST
        raise HTTPException(405)
    wanted = uuid("event_id", event_id)
    spool = foundation_of(request).spool
    spooled = None if spool is None else await spool.event(wanted)
    if spooled is not None:
        event: dict[str, Any] | None = spooled_event(dict(zip(ACCEPTED_COLUMNS, spooled.row, strict=True)))
    else:
        event = await within_deadline(request, _stored_event(request, wanted))
    if event is None:
        raise NotFound(f"There is no event {event_id}.")
    return json_response(event)


async def _stored_event(request: Request, event_id: UUID) -> dict[str, Any] | None:
    event = await event_by_id(service_of(request).engine, event_id)
    if event is None and (archived := await find_archived(request, event_id)) is not None:
        return archived.event()
    return event


def parse_query(query_string: bytes, now: datetime) -> EventQuery:
    """The query in a query string."""
    return read_filter(query_string, EventQuery, now, _READERS, when_empty=_WHEN_EMPTY, check=_check)


def parse_list_query(query_string: bytes, now: datetime) -> ListQuery:
    """The query in a query string, of a list that can have events of the archive."""
    return read_filter(query_string, ListQuery, now, _READERS, when_empty=_WHEN_EMPTY, check=_check_list)


def _check_list(query_string: bytes, fields: dict[str, Any]) -> None:
    if fields.get("strict"):
        refuse_unknown(query_string, parameters_of(ListQuery))
    _check_pairs(fields)
    if fields.get("archive"):
        if fields.get("offset"):
            raise bad_fields({"offset": "not together with archive=include: go on by next_cursor"})
        if fields.get("order") == "log":
            raise bad_fields(
                {"order": "not log together with archive=include: the archive is read in the order of time"}
            )
        if fields.get("total", "none") != "none":
            raise bad_fields({"total": "only none together with archive=include: the archive is not counted"})


def _check(query_string: bytes, fields: dict[str, Any]) -> None:
    if fields.get("strict"):
        refuse_unknown(query_string, parameters_of(EventQuery))
    _check_pairs(fields)


def _check_pairs(fields: dict[str, Any]) -> None:
    if "cursor" in fields and "offset" in fields:
        raise bad_fields({"cursor": "not together with offset: the cursor says where the page begins"})
    by_log = fields.get("order") == "log"
    if by_log and fields.get("offset"):
        raise bad_fields({"offset": "not together with order=log: go on by next_cursor"})
    if "cursor" in fields and by_log != isinstance(fields["cursor"], LogCursor):
        raise bad_fields({"cursor": "expected the next_cursor of an earlier answer in the same order"})


def _pagination(query: EventQuery, found: Page) -> dict[str, Any]:
    members: dict[str, Any] = {"limit": query.limit, "offset": query.offset}
    if found.total is not None:
        members["total"] = found.total
    members["has_more"] = found.has_more
    if found.next_cursor is not None:
        members["next_cursor"] = str(found.next_cursor)
    if found.scanned_until is not None:
        members["scanned_until"] = found.scanned_until
    if not found.total_exact:
        members["total_exact"] = False
    return members
