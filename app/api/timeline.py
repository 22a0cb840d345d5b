"""GET of the list of correlations, and of one correlation with everything that belongs to it."""

from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any
from uuid import UUID

import orjson
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from app.api.archived import LeftOutEvents, find_timeline, find_unlisted
from app.api.body import UTC_Z, json_response
from app.api.deadline import within_deadline
from app.api.filters import documented_filter, read_filter
from app.api.notifications import StoredNotification
from app.api.paging import cursor_errors, page_response, pagination
from app.api.parameters import (
    CORRELATION_ID,
    WITHOUT_ARCHIVE,
    Reader,
    cursor,
    one_of,
    path_correlation_id,
    query_parameters,
    read_fields,
    true_or_false,
    whole_number,
)
from app.api.reads import reads_of
from app.api.routes import Answer, Router
from app.api.verify import chain_verified, verify_correlation
from app.errors import NotFound
from app.export.manifest import LeftOut
from app.query import correlations
from app.query.correlations import CorrelationQuery
from app.query.cursor import Cursor
from app.query.filter import OFFSET_MAX
from app.query.timeline import EVENTS_DEFAULT, EVENTS_MAX, Timeline

router = Router(tags=["correlations"])


class TimelineEvent(Answer):
    """An event without its payload."""

    event_id: UUID
    event_timestamp: Annotated[datetime, Field(description="by the sender's clock")]
    event_type: str
    recorded_at: Annotated[datetime, Field(description="by the service's clock")]
    log_index: int | None = None
    chain_index: int | None = None
    event_category: str
    event_action: str
    event_outcome: str
    actor_type: str | None = None
    actor_id: str | None = None
    resource_type: str | None = None
    resource_id: str | None = None
    severity: str | None = None
    duration_ms: int | None = None
    error_code: str | None = None
    parent_event_id: UUID | None = None
    event_metadata: Annotated[
        dict[str, Any] | None,
        Field(description="what the service noted; event_timestamp `received`: its time of arrival"),
    ] = None
    sealed: Annotated[
        bool | None,
        Field(description="false: others inserted the event by SQL, it is not in the log; absent in all others"),
    ] = None
    archive_id: Annotated[
        UUID | None,
        Field(description="of an event that is in the archive alone: the part that it was read from; else absent"),
    ] = None


class Phase(Answer):
    """One phase of the remediation. One that lasts has no left_at; nobody told when one without entered_at began."""

    phase: str
    entered_at: datetime | None = None
    left_at: datetime | None = None
    duration_ms: int | None = None


class Decision(Answer):
    """Somebody, or a program, decided something."""

    event_id: UUID
    event_timestamp: datetime
    event_type: str
    decision: str
    decided_by: str
    actor_type: str
    workflow_id: str | None = None
    reason: str | None = None


class Hold(Answer):
    """A legal hold on some of the events, as their rows have it."""

    active: bool
    reason: str
    placed_by: str
    events: int
    placed_at: datetime | None = None


class ChainEnd(Answer):
    """What the service knows of the chain's end, whatever its rows say."""

    length: int
    hash: str


class Verdict(Answer):
    """What verification found. `position` is the chain position behind the last one that was looked at.

    With verify=true it is made now; else it is the last one of the verifier in the background, which counts no events.
    """

    is_valid: bool
    total_events: int | None = None
    verified_events: int | None = None
    position: int
    verification_time: datetime
    message: str


class TimelinePagination(Answer):
    """Which part of the events is shown."""

    limit: int
    offset: int
    has_more: bool


class CorrelationTimeline(Answer):
    """All of one correlation. The events stand in the order of the log, unsealed ones behind the others."""

    correlation_id: str
    event_count: int
    first_event_at: datetime | None = None
    last_event_at: datetime | None = None
    chain: ChainEnd | None = None
    verification: Verdict | None = None
    phases: list[Phase]
    decisions: list[Decision]
    notifications: list[StoredNotification]
    holds: list[Hold]
    events: list[TimelineEvent]
    pagination: TimelinePagination


class FirstEvent(Answer):
    event_id: UUID | None = None
    event_timestamp: datetime
    event_type: str | None = None


class LastEvent(Answer):
    event_id: UUID
    event_timestamp: datetime
    event_type: str


class Correlation(Answer):
    """One correlation. Namespace and cluster are those of its newest event."""

    correlation_id: str
    first_event: FirstEvent
    last_event: LastEvent
    event_count: int
    last_outcome: str
    categories: list[str]
    namespace: str | None = None
    cluster_id: str | None = None


class CorrelationPagination(Answer):
    """Where this page stands. `next_cursor` is absent behind the last correlation."""

    limit: int
    has_more: bool
    next_cursor: str | None = None
    scanned_until: Annotated[
        datetime | None,
        Field(description="present if the page was cut before it was full: it has what was found down to this time"),
    ] = None
    left_out: Annotated[
        LeftOutEvents | None,
        Field(
            description="of the time that was asked about, or behind the last page: their correlations are not listed, or with fewer events; "
            "`GET /api/v1/audit/events` finds them with archive=include"
        ),
    ] = None


class Correlations(Answer):
    """One page, the correlation with the newest event first. It may be short, or empty, and have a next one."""

    data: list[Correlation]
    pagination: CorrelationPagination


_TIMELINE = [
    {
        "name": "verify",
        "in": "query",
        "description": "true: verify the chain now, instead of telling what the verifier in the background found last",
        "schema": {"type": "boolean"},
    },
    {
        "name": "limit",
        "in": "query",
        "description": f"most events shown; {EVENTS_DEFAULT} if absent",
        "schema": {"type": "integer", "minimum": 1, "maximum": EVENTS_MAX},
    },
    {
        "name": "offset",
        "in": "query",
        "description": "events to skip, in the order of the log",
        "schema": {"type": "integer", "minimum": 0, "maximum": OFFSET_MAX},
    },
    {
        "name": "sealed",
        "in": "query",
        "description": "true: without the events that others inserted by SQL; false: only those",
        "schema": {"type": "boolean"},
    },
    WITHOUT_ARCHIVE,
]


_READERS: dict[str, Reader] = {"limit": whole_number(1, correlations.LIMIT_MAX), "cursor": cursor(Cursor)}
TIMELINE_PARAMETERS = {
    "limit": whole_number(1, EVENTS_MAX),
    "offset": whole_number(0, OFFSET_MAX),
    "verify": true_or_false(),
    "sealed": true_or_false(),
    "archive": one_of("exclude"),
}


@router.get(
    "/api/v1/audit/correlations",
    response_class=Response,
    responses={200: {"model": Correlations}},
    openapi_extra={"parameters": partial(documented_filter, CorrelationQuery)},
)
async def list_correlations(request: Request) -> Response:
    """List correlations, the one with the newest event first."""
    query = parse_query(request.scope["query_string"], datetime.now(UTC))
    with cursor_errors(query.cursor):
        found = await within_deadline(request, reads_of(request)(lambda pool: correlations.page(pool, query)))
    left_out = await within_deadline(request, find_unlisted(request, query, found))
    members = pagination(query.limit, found.next_cursor, found.scanned_until) | LeftOut.member(left_out)
    return page_response(request, found.correlations, members)


def parse_query(query_string: bytes, now: datetime) -> CorrelationQuery:
    """The query in a query string."""
    return read_filter(query_string, CorrelationQuery, now, _READERS)


@router.get(
    f"/api/v1/audit/correlations/{CORRELATION_ID}",
    response_class=Response,
    responses={200: {"model": CorrelationTimeline}},
    openapi_extra={"parameters": _TIMELINE},
)
async def get_timeline(request: Request, correlation_id: str) -> Response:
    """All of one correlation: events, phases, decisions, notifications, holds, and on demand the chain's verification."""
    correlation_id = path_correlation_id(request, correlation_id)
    sent = query_parameters(request.scope["query_string"], TIMELINE_PARAMETERS)
    fields = read_fields({name: sent[name] for name in TIMELINE_PARAMETERS if name in sent}, TIMELINE_PARAMETERS)
    limit, offset = fields.get("limit", EVENTS_DEFAULT), fields.get("offset", 0)
    sealed = fields.get("sealed")
    with_archive = fields.get("archive") is None
    of_both = find_timeline(request, correlation_id, limit, offset, sealed=sealed, with_archive=with_archive)
    found = await within_deadline(request, of_both)
    if found.is_empty:
        raise NotFound(f"There is nothing about a correlation {correlation_id}.", instance=request.url.path)
    verification = await _verify_now(request, correlation_id) if fields.get("verify") else _last_verdict(found)
    answer = (
        _summary(correlation_id, found)
        | verification
        | {
            "phases": found.phases,
            "decisions": found.decisions,
            "notifications": found.notifications,
            "holds": found.holds,
            "events": orjson.Fragment(found.events),
            "pagination": {"limit": limit, "offset": offset, "has_more": found.has_more},
        }
    )
    return json_response(answer, options=UTC_Z)


def _summary(correlation_id: str, found: Timeline) -> dict[str, Any]:
    members: dict[str, Any] = {"correlation_id": correlation_id, "event_count": found.extent["count"]}
    if found.extent["count"]:
        members["first_event_at"] = found.extent["first"]
        members["last_event_at"] = found.extent["last"]
    if found.head is not None:
        members["chain"] = {"length": found.head["length"], "hash": found.head["hash"]}
    return members


async def _verify_now(request: Request, correlation_id: str) -> dict[str, Any]:
    report = await verify_correlation(request, correlation_id)
    answer = chain_verified(correlation_id, report)
    verdict = {name: answer[name] for name in ("is_valid", "total_events", "verified_events")}
    rest = {name: answer[name] for name in ("verification_time", "message")}
    return {"verification": verdict | {"position": report.sealed.next_index} | rest}


def _last_verdict(found: Timeline) -> dict[str, Any]:
    """The background verifier's last verdict; empty before it has reached the chain."""
    verdict, position = found.verdict, found.extent["verified"] or 0
    if verdict is None or not (position or verdict["found"]):
        return {}
    message = f"{verdict['found']} defect(s) of this chain were found" if verdict["found"] else "no defect was found"
    if verdict["unclear"]:
        message += f", and {verdict['unclear']} of the log that belong to no one chain"
    members = {"is_valid": not verdict["found"], "position": position}
    return {"verification": members | {"verification_time": verdict["looked_at"], "message": message}}
