"""The page of one event: every member as it is recorded, where it stands, and the badge that proves it in the reader's own browser."""

import asyncio
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import UUID

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from app.api.archived import find_archived
from app.api.deadline import within_deadline
from app.api.service import service_of
from app.events.canonical import canonical, loads
from app.pages.rendering import page
from app.pages.text import indented
from app.query.whole_event import WholeEvent, whole_archived, whole_event

router = APIRouter(include_in_schema=False)

_GROUPS = {
    "Who": "actor_type actor_id actor_ip",
    "What": "event_category event_action severity duration_ms error_code error_message is_sensitive",
    "About": "resource_type resource_id resource_name namespace cluster_id correlation_id parent_event_id parent_event_date",
    "When": "recorded_at trace_id span_id",
    "Where": "log log_index chain_index previous_event_hash",
    "Record": "event_id event_version v commitment event_metadata",
}
"""Members of record and committed object as the page groups them, but for those of its head and the payload."""

_INDENTED_BYTES_MAX = 200_000
"""Of a JSON value in canonical form: a longer one stands as it is, on one line. static/badge.js has the same rule."""


class Member(NamedTuple):
    """One member as the page shows it, which the badge compares with what is proved."""

    name: str
    text: str


class Mark(NamedTuple):
    """Something about an event that its reader has to know."""

    word: str
    kind: str
    why: str


@router.get("/ui/events/{event_id}")
async def event_page(request: Request, event_id: str) -> Response:
    """One event, its place, and its proof."""
    service = service_of(request)
    try:
        parsed = UUID(event_id)
    except ValueError:
        return _no_event(request, event_id)
    found = await within_deadline(request, whole_event(service.engine, parsed, service.log))
    if found is None and (archived := await within_deadline(request, find_archived(request, parsed))) is not None:
        found = await within_deadline(request, whole_archived(service.engine, archived.row, service.log))
    if found is None:
        return _no_event(request, event_id)
    # In a thread: a payload can be megabytes, and others are waiting.
    return await asyncio.to_thread(_page_of, request, found, f"/api/v1/audit/events/{parsed}")


def _page_of(request: Request, found: WholeEvent, twin: str) -> Response:
    return page(
        request,
        "event.html",
        title=found.row["event_type"],
        twin=twin,
        event=found,
        record=found.record.decode(),
        committed=None if found.committed is None else found.committed.decode(),
        members=members_of(found),
        groups={title: names.split() for title, names in _GROUPS.items()},
        marks=list(marks_of(found, datetime.now(UTC))),
        proof=f"{str(request.base_url).rstrip('/')}{twin}/proof?open=true",
        has_login=not service_of(request).authenticator.is_disabled,
    )


def _no_event(request: Request, event_id: str) -> Response:
    detail = (
        f"There is no event {event_id[:200]}. An id is a UUID, as lists, exports and log lines show it. An event that was accepted while "
        "the database was away can be read here once it is written; one that was purged is gone, and the log says so."
    )
    return page(request, "error.html", title="No such event", status=404, detail=detail)


def members_of(event: WholeEvent) -> dict[str, Member]:
    """Every member of the record and of the committed object that is not null, as text: a JSON value is written over several lines
    unless it is long."""
    members: dict[str, Any] = loads(event.record) | ({} if event.committed is None else loads(event.committed))
    return {name: Member(name, _text(value)) for name, value in members.items() if value is not None}


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    written = canonical(value)
    is_indented = isinstance(value, Mapping | list) and len(written) <= _INDENTED_BYTES_MAX
    return indented(written.decode()) if is_indented else written.decode()


def marks_of(event: WholeEvent, now: datetime) -> Iterator[Mark]:
    """What a reader has to know before they rely on the event."""
    row, notes = event.row, event.notes
    if not event.is_sealed:
        yield Mark("unsealed", "bad", "Others inserted this row by SQL: it is in no log, and nothing proves it.")
    elif not event.is_logged:
        yield Mark("changed", "bad", "The row is not what the log has at its position.")
    if (archive_id := row.get("archive_id")) is not None:
        yield Mark("archived", "", f"It was removed from Postgres, and is in the part {archive_id} of the archive.")
    if event.rows > 1:
        yield Mark("shadowed", "bad", f"{event.rows} rows have this id; the one that the log has is shown.")
    if row["payload_commitment"] is not None:
        yield Mark(
            "erased", "", "Payload and actor were erased by the rules; that the event was recorded stays proved."
        )
    if row["legal_hold"]:
        yield Mark("held", "held", f"On legal hold: {row['legal_hold_reason'] or 'no reason was recorded'}.")
    if notes.get("event_timestamp") == "received":
        yield Mark("received time", "", "Its sender gave no time: this is when the event arrived.")
    if isinstance(imported := notes.get("imported"), dict):
        words = orjson.dumps(imported, default=str).decode()
        yield Mark("imported", "", f"It came from a file, not from its sender: {words}.")
    time = row["event_timestamp"]
    if time.tzinfo is None or time > now:
        yield Mark("in the future", "", "Its sender's clock says a time that has not come yet.")
