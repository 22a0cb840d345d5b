"""GET of counts over time."""

from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Annotated

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from app.api.archived import LeftOutEvents, find_uncounted
from app.api.body import UTC_Z, json_response
from app.api.deadline import within_deadline
from app.api.filters import documented_filter, read_filter
from app.api.parameters import bad_query
from app.api.reads import reads_of
from app.api.routes import Answer, Router
from app.api.service import service_of
from app.export.manifest import LeftOut
from app.query.histogram import BUCKETS_MAX, DAYS_DEFAULT, Histogram, HistogramQuery
from app.query.spans import Span, number_of

router = Router(tags=["query"])


class Bucket(Answer):
    """The events from `start` up to `end`; of the last bucket, up to and at it."""

    start: datetime
    end: datetime
    events: int
    groups: Annotated[
        dict[str, int] | None,
        Field(description="events by the value that `by` names, where there are any; the empty text stands for none"),
    ] = None


class EventHistogram(Answer):
    """Events by time, oldest bucket first, the empty ones too. The first begins at `since`, the last one ends at `until`."""

    bucket: Span
    since: datetime
    until: datetime
    exact: Annotated[
        bool,
        Field(description="false: there was time for the buckets from `scanned_from` on only; older ones are left out"),
    ]
    scanned_from: datetime | None = None
    events: Annotated[int, Field(description="of all buckets")]
    buckets: list[Bucket]
    left_out: Annotated[LeftOutEvents | None, Field(description="not counted; absent if there are none")] = None


@router.get(
    "/api/v1/audit/histogram",
    response_class=Response,
    responses={200: {"model": EventHistogram}},
    openapi_extra={"parameters": partial(documented_filter, HistogramQuery)},
)
async def get_histogram(request: Request) -> Response:
    """Count events by time, as a chart draws them."""
    query = parse_histogram_query(request.scope["query_string"], datetime.now(UTC))
    found = await within_deadline(request, reads_of(request).ask(service_of(request).histograms, query))
    left_out = await within_deadline(request, find_uncounted(request, query))
    return json_response(histogram_answer(found) | LeftOut.member(left_out), options=UTC_Z)


def parse_histogram_query(query_string: bytes, now: datetime) -> HistogramQuery:
    """The query in a query string, with both times set. `now` counts as the end of its second, so that equal questions of one second
    are equal, and a client counts what it has just written.
    """
    now = now.replace(microsecond=0) + timedelta(seconds=1)
    asked = read_filter(query_string, HistogramQuery, now, {})
    until = asked.until or now
    since = asked.since or until - min(timedelta(days=DAYS_DEFAULT), until - _FIRST)
    query = asked.model_copy(update={"since": since, "until": until})
    if (number := number_of(since, until, query.span)) > BUCKETS_MAX:
        raise bad_query(f"bucket: expected at most {BUCKETS_MAX} buckets from since to until, got {number}")
    return query


_FIRST = datetime(1, 1, 1, tzinfo=UTC)


def histogram_answer(found: Histogram) -> dict[str, object]:
    """The answer, of which orjson makes JSON."""
    scanned = {} if found.exact else {"scanned_from": found.scanned_from}
    return {
        "bucket": found.bucket,
        "since": found.since,
        "until": found.until,
        "exact": found.exact,
        **scanned,
        "events": sum(bucket["events"] for bucket in found.buckets),
        "buckets": found.buckets,
    }
