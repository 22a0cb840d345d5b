"""GET of events: a page of them, and one."""

import re
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

import orjson
from fastapi import APIRouter, HTTPException, Path
from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from app.api.deadline import in_time
from app.api.paging import behind, page_answer
from app.api.parameters import bad_query, cursor, documented, moment, number, sent_parameters
from app.errors import DatabaseFailed, NotFound
from app.events.envelope import Category, Outcome
from app.events.explain import bad_fields, by_member_name, explain
from app.ingest.accept import ACCEPTED_COLUMNS
from app.query.cursor import Cursor
from app.query.filter import LIMIT_MAX, OFFSET_MAX, EventQuery
from app.query.page import Page, event_by_id, page, spooled_event

router = APIRouter(tags=["query"])

_EMPTY_LIMIT = 100
_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


class Event(BaseModel):
    """An event as it is stored. Members of which nothing is known are left out."""

    event_id: UUID
    event_timestamp: datetime
    event_date: str
    event_type: str
    version: str
    event_category: Category
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
    retention_days: int | None
    is_sensitive: bool | None
    event_hash: str
    previous_event_hash: str
    legal_hold: bool
    legal_hold_reason: str
    legal_hold_placed_by: str
    legal_hold_placed_at: datetime | None
    event_data: dict[str, Any]


class Pagination(BaseModel):
    """Where this page stands. `next_cursor` is absent on the last page, `total` when it was not asked for."""

    limit: int
    offset: int
    total: int | None = None
    has_more: bool
    next_cursor: str | None = None
    total_exact: bool | None = None


class Events(BaseModel):
    """One page, newest event first."""

    data: list[Event]
    pagination: Pagination


@router.get(
    "/api/v1/audit/events",
    response_class=Response,
    responses={200: {"model": Events}},
    openapi_extra={"parameters": documented(EventQuery)},
)
async def list_events(request: Request) -> Response:
    """Find events, newest first."""
    query = parse_query(request.scope["query_string"], datetime.now(UTC))
    try:
        with behind(query.cursor):
            found = await in_time(request, page(request.app.state.engine, query))
    except DatabaseFailed as error:
        error.extra["instance"] = request.url.path
        raise
    return page_answer(request, found.events, _pagination(query, found))


@router.get("/api/v1/audit/events/{event_id}", response_class=Response, responses={200: {"model": Event}})
async def get_event(request: Request, event_id: Annotated[str, Path(json_schema_extra={"format": "uuid"})]) -> Response:
    """One event by its id, also while it waits in this replica's spool."""
    if event_id == "batch":  # a path of its own, which is only posted to
        raise HTTPException(405)
    if _UUID.fullmatch(event_id) is None:
        raise bad_fields({"event_id": f"expected a UUID, got {event_id[:60]!r}"})
    spooled = await spool.event(UUID(event_id)) if (spool := request.app.state.spool) is not None else None
    if spooled is not None:
        event: dict[str, Any] | None = spooled_event(dict(zip(ACCEPTED_COLUMNS, spooled.row, strict=True)))
    else:
        event = await in_time(request, event_by_id(request.app.state.engine, UUID(event_id)))
    if event is None:
        raise NotFound(f"There is no event {event_id}.")
    return Response(orjson.dumps(event, option=orjson.OPT_APPEND_NEWLINE), media_type="application/json")


def _pagination(query: EventQuery, found: Page) -> dict[str, Any]:
    pagination: dict[str, Any] = {"limit": query.limit, "offset": query.offset}
    if found.total is not None:
        pagination["total"] = found.total
    pagination["has_more"] = found.has_more
    if found.next_cursor is not None:
        pagination["next_cursor"] = str(found.next_cursor)
    if not found.total_exact:
        pagination["total_exact"] = False
    return pagination


def parse_query(query_string: bytes, now: datetime) -> EventQuery:
    """The question in a query string: unknown parameters are ignored, of repeated ones the first counts."""
    sent = sent_parameters(query_string, EventQuery.model_fields)
    fields: dict[str, Any] = {}
    for name in EventQuery.model_fields:
        if name in sent:
            _read(fields, name, sent[name], now)
    if ("detail_key" in fields) != ("detail_value" in fields):
        raise bad_query("detail_key and detail_value belong together: send both or neither")
    if "cursor" in fields and "offset" in fields:
        raise bad_fields({"cursor": "not together with offset: the cursor says where the page begins"})
    try:
        return EventQuery(**fields)
    except ValidationError as error:
        fields = by_member_name(explain(error, ""))
        raise bad_fields(fields) from None


def _read(fields: dict[str, Any], name: str, value: str, now: datetime) -> None:
    """Set field `name` to what `value` says; an empty value mostly says nothing."""
    if name == "limit":
        fields[name] = number(name, value, 1, LIMIT_MAX) if value else _EMPTY_LIMIT
    elif name == "offset" and value:
        fields[name] = number(name, value, 0, OFFSET_MAX)
    elif name in {"event_outcome", "detail_value"} or (name == "detail_key" and value):
        fields[name] = value
    elif not value:
        return
    elif name in {"since", "until"}:
        fields[name] = moment(name, value, now)
    elif name == "cursor":
        fields[name] = cursor(name, value, Cursor)
    else:
        fields[name] = value
