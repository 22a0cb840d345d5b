"""What is in the archive alone beside what is in Postgres: pages of events, each event once, in one order; one event by its id; and the timeline of one
correlation.
"""

from collections.abc import Awaitable, Callable, Sequence
from heapq import merge
from typing import Any, TypeVar
from uuid import UUID

from starlette.requests import Request

from app.api.reads import reads_of
from app.api.routes import Answer
from app.api.service import Service, service_of
from app.archive.reading import ARCHIVE_SHARE, ArchivedEvents, ArchivedRow, is_of_time, key_of, left_out_of
from app.archive.timeline import STEP_TYPES, stored_window, with_archived
from app.db import Pool
from app.errors import AuditError, DatabaseBusy, DatabaseFailed, NotFound, Unavailable
from app.events.explain import bad_fields
from app.events.record import Row
from app.export.manifest import LeftOut
from app.export.select import ExportQuery
from app.query.correlations import CorrelationPage, CorrelationQuery
from app.query.cursor import Cursor
from app.query.filter import EventFilter, ListQuery
from app.query.page import KeyedEvent, KeyedPage, Page, keyed_page
from app.query.postgres_time import nearest_rfc3339
from app.query.timeline import Gone, Timeline, gone_events, timeline

_T = TypeVar("_T")
_TRIES = 3


class LeftOutEvents(Answer):
    """Events that are in the archive alone, of the time that was asked about; whether they match the other filters nobody has looked at."""

    events: int
    months: list[str]


async def find_events(request: Request, query: ListQuery) -> Page:
    """The page of `query`: from the archive too if that is asked for, or if Postgres has nothing of the time that is asked about."""
    service = service_of(request)
    if query.archive == "include":
        _require_archive(service)
        return await _with_archive(request, query)
    if await _is_all_archived(request, query):
        found = await _with_archive(request, query)
        if found.events or found.next_cursor is not None:
            return found
    return await reads_of(request).ask(service.pages, query)


async def find_left_out(request: Request, query: ListQuery, found: Page) -> LeftOut | None:
    """What the archive alone has of the time that is asked about, if the page has nothing of the archive; None if no time is."""
    if query.archive is not None or (query.since is None and query.until is None):
        return None
    if any("archive_id" in event for event in found.events):
        return None
    return await find_uncounted(request, query)


async def find_uncounted(request: Request, query: EventFilter) -> LeftOut | None:
    """What the archive alone has of the time that is asked about, for an answer that has nothing of the archive."""
    if query.sealed is False:
        return None
    service = service_of(request)
    parts = await reads_of(request)(
        lambda pool: service.archive.parts(pool, service.log, lambda month: is_of_time(month, query))
    )
    return left_out_of(parts)


async def find_unlisted(request: Request, query: CorrelationQuery, found: CorrelationPage) -> LeftOut | None:
    """The same for a page of correlations; None if the list goes on in Postgres and no time is asked about."""
    if found.next_cursor is not None and query.since is None and query.until is None:
        return None
    return await find_uncounted(request, query)


async def reads_archive(request: Request, query: ExportQuery) -> bool:
    """Whether an export is from the archive too, by the same rules. BadRequest if that is asked for and this service cannot read it."""
    service = service_of(request)
    if query.archive == "include":
        _require_archive(service)
    if query.archive is not None:
        return query.archive == "include"
    until = query.until
    if until is None or service.archive.what_is_missing is not None:
        return False
    return await reads_of(request)(lambda pool: service.archive.is_all_archived(pool, until))


def _require_archive(service: Service) -> None:
    if (missing := service.archive.what_is_missing) is not None:
        raise bad_fields({"archive": missing})


async def find_archived(request: Request, event_id: UUID) -> ArchivedRow | None:
    """The event with this id, of which Postgres was asked before and has none, if it is in the archive; None if there is no such event.

    NotFound, saying so, if it may be in the archive and this service cannot read that.
    """
    service = service_of(request)
    if (missing := service.archive.what_is_missing) is None:
        seconds = service.settings.query_deadline_ms / 1000 * ARCHIVE_SHARE
        return await service.archive.find(service.engine, service.log, event_id, seconds)
    if await service.archive.has_more(service.engine, service.log):
        raise NotFound(
            f"There is no event {event_id} in Postgres. It may be one of those that are in the archive alone: {missing}."
        )
    return None


async def find_timeline(
    request: Request,
    correlation_id: str,
    limit: int,
    offset: int,
    *,
    sealed: bool | None = None,
    with_archive: bool = True,
) -> Timeline:
    """The timeline of one correlation, with those of its events that are in the archive alone, if its chain has events that Postgres has not.

    If this service cannot read the archive, what Postgres has.
    """
    service = service_of(request)
    found = await reads_of(request)(lambda pool: timeline(pool, correlation_id, limit, offset, sealed=sealed))
    if not with_archive or sealed is False or not found.is_incomplete or service.archive.what_is_missing is not None:
        return found

    async def read(archived: list[ArchivedRow]) -> Timeline:
        if sealed:
            archived = [one for one in archived if one.is_logged]
        start, count = stored_window(len(archived), offset, limit)
        found = await timeline(service.engine, correlation_id, count, start, sealed=sealed)
        return with_archived(found, archived, offset, limit) if archived else found

    gone = await gone_events(service.engine, correlation_id)
    return await _of_both(service, correlation_id, gone, STEP_TYPES, read)


async def find_report(
    request: Request,
    correlation_id: str,
    payloads_of: frozenset[str] | None,
    read: Callable[[Pool, Sequence[Row]], Awaitable[_T]],
    *,
    with_archive: bool,
) -> _T:
    """What `read` makes of the events of one correlation in Postgres, and of those that are in the archive alone, if its chain has events that Postgres has
    not. These have payloads if they are of the types `payloads_of`, or all if that is None.

    If this service cannot read the archive, what it makes of Postgres alone.
    """
    service, reads = service_of(request), reads_of(request)
    if not with_archive or service.archive.what_is_missing is not None:
        return await reads(lambda pool: read(pool, ()))
    found: _T | AuditError
    try:
        found = await reads(lambda pool: read(pool, ()))
    except (DatabaseFailed, Unavailable):
        raise
    except AuditError as error:  # what it misses may be in the archive
        found = error
    gone = await reads(lambda pool: gone_events(pool, correlation_id))  # if nothing is gone now, nothing was
    if gone.count:

        async def read_both(archived: list[ArchivedRow]) -> _T:
            return await read(service.engine, [one.row | {"sealed": one.is_logged} for one in archived])

        return await _of_both(service, correlation_id, gone, payloads_of, read_both)
    if isinstance(found, AuditError):
        raise found
    return found


async def _of_both(
    service: Service,
    correlation_id: str,
    gone: Gone,
    payloads_of: frozenset[str] | None,
    read: Callable[[list[ArchivedRow]], Awaitable[_T]],
) -> _T:
    """What `read` makes of the events of one correlation that are in the archive alone, and of those that Postgres has then."""
    seconds = service.settings.query_deadline_ms / 1000 * ARCHIVE_SHARE
    for _ in range(_TRIES):
        archived = await service.archive.of_correlation(
            service.engine, service.log, correlation_id, gone, payloads_of=payloads_of, seconds=seconds
        )
        found = await read(archived)
        before, gone = gone, await gone_events(service.engine, correlation_id)
        if before.count == gone.count:  # else something was in neither
            return found
    raise DatabaseBusy(
        f"Events of {correlation_id} are being removed from Postgres at this moment: send the request again."
    )


async def find_gone(request: Request, correlation_id: str) -> list[ArchivedRow]:
    """The events of one correlation that are in the archive alone, with their payloads; none if this service cannot read the archive."""
    service = service_of(request)
    if service.archive.what_is_missing is not None:
        return []
    gone = await gone_events(service.engine, correlation_id)
    seconds = service.settings.query_deadline_ms / 1000 * ARCHIVE_SHARE
    return await service.archive.of_correlation(
        service.engine, service.log, correlation_id, gone, payloads_of=None, seconds=seconds
    )


async def _is_all_archived(request: Request, query: ListQuery) -> bool:
    """Whether the archive alone can have what is asked about."""
    service = service_of(request)
    if query.until is None or query.order == "log" or query.offset or service.archive.what_is_missing is not None:
        return False
    return await service.archive.is_all_archived(service.engine, query.until)


async def _with_archive(request: Request, query: ListQuery) -> Page:
    service = service_of(request)
    plain = query.model_copy(update={"total": "none", "archive": None})
    found = await reads_of(request)(lambda pool: keyed_page(pool, plain))
    seconds = service.settings.query_deadline_ms / 1000 * ARCHIVE_SHARE
    archived = await service.archive.read(service.engine, service.log, plain, found.end, seconds)
    return merged(query.limit, found, archived)


def merged(limit: int, found: KeyedPage, archived: ArchivedEvents) -> Page:
    """One page of both, as far down as both were read. An event that is in both is that of Postgres."""
    known = {_identity(one.event) for one in found.events if one.event.get("sealed", True)}
    events = [one for one in found.events if archived.end is None or key_of(one.key) >= key_of(archived.end)]
    others = [KeyedEvent(key, event) for key, event in archived.events if _identity(event) not in known]
    every = list(merge(events, others, key=lambda one: key_of(one.key), reverse=True))
    on_page = every[:limit]
    if len(every) > limit:
        return _page(on_page, on_page[-1].key, None)
    ends = [one for one in (found.end, archived.end) if one is not None]
    end = max(ends, key=key_of, default=None)
    is_cut = end is not None and len(on_page) < limit
    return _page(on_page, end, nearest_rfc3339(end.event_timestamp.replace("T", " ", 1)) if end and is_cut else None)


def _page(events: list[KeyedEvent], next_cursor: Cursor | None, scanned_until: str | None) -> Page:
    return Page([one.event for one in events], (), next_cursor, scanned_until, None)


def _identity(event: dict[str, Any]) -> tuple[str, str, str]:
    return event["event_id"], event["event_date"], event["correlation_id"]
