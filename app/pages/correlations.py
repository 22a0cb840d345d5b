"""The page that lists remediations, the one with the newest event first."""

from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from app.api.archived import find_unlisted
from app.api.deadline import within_deadline
from app.api.paging import cursor_errors
from app.api.reads import reads_of
from app.api.service import service_of
from app.api.timeline import parse_query
from app.pages.drawing import duration
from app.pages.events import Links, filters, without_empty
from app.pages.rendering import page
from app.query import correlations
from app.query.correlations import CorrelationQuery

router = APIRouter(include_in_schema=False)
_ALWAYS = ("since", "until", "namespace", "resource_id", "actor_id", "event_outcome")
"""Filters that are always shown; the others open."""
_API = "/api/v1/audit/correlations"


@router.get("/ui/correlations")
async def correlations_page(request: Request) -> Response:
    """Remediations, as GET /api/v1/audit/correlations answers with the same query."""
    sent = without_empty(request)
    query = parse_query(urlencode(sent).encode(), datetime.now(UTC))
    with cursor_errors(query.cursor):
        found = await within_deadline(request, reads_of(request)(lambda pool: correlations.page(pool, query)))
    left_out = await within_deadline(request, find_unlisted(request, query, found))
    return page(
        request,
        "correlations.html",
        title="Remediations",
        twin=f"{_API}?{urlencode(sent)}",
        correlations=[_shown(one) for one in found.correlations],
        next_cursor=found.next_cursor,
        left_out=left_out,
        archive_missing=service_of(request).archive.what_is_missing,
        events=Links("/ui/events", sent),
        link=Links("/ui/correlations", sent),
        filters=filters(sent, CorrelationQuery, _ALWAYS),
    )


def _shown(correlation: dict[str, Any]) -> dict[str, Any]:
    first = datetime.fromisoformat(correlation["first_event"]["event_timestamp"])
    last = datetime.fromisoformat(correlation["last_event"]["event_timestamp"])
    return correlation | {"lasted": duration((last - first).total_seconds() * 1000)}
