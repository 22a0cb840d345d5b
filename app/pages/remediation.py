"""The page of one remediation: its story as a picture and in tables, the verdict on its chain, and what can be taken away as a file."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote
from uuid import UUID

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from app.api.access import may
from app.api.archived import find_gone, find_report, find_timeline
from app.api.deadline import within_deadline
from app.api.parameters import (
    CORRELATION_ID,
    path_correlation_id,
    query_parameters,
    read_fields,
    true_or_false,
    whole_number,
)
from app.api.reads import reads_of
from app.api.verify import chain_verified, verify_correlation
from app.archive.reading import ArchiveDamaged
from app.db import Pool
from app.errors import AuditError, DatabaseFailed, Unavailable
from app.events.record import Row
from app.pages.drawing import draw, duration
from app.pages.events import Links, shown
from app.pages.rendering import page
from app.query.approvals import EVENT_TYPES as APPROVAL_TYPES
from app.query.approvals import approvals
from app.query.effectiveness import effectiveness
from app.query.filter import OFFSET_MAX
from app.query.page import event_by_id, events_by_id
from app.query.reconstruct import EVENT_TYPES, rebuild
from app.query.timeline import EVENTS_MAX, Timeline, timeline
from app.verify.correlation import CorrelationResult

router = APIRouter(include_in_schema=False)

EVENTS_ON_PAGE = 100
VERIFIED_AT_ONCE_MAX = 500
"""A chain of at most so many events is verified whenever its page is shown."""
_READERS = {"verify": true_or_false(), "offset": whole_number(0, OFFSET_MAX)}


_T = TypeVar("_T")
_WHOLE = "The chain is whole: each event has its hash, its link and its leaf in the log."


class Verdict(NamedTuple):
    """What is known about the chain: `kind` is good, bad or open."""

    kind: str
    words: str
    extent: str
    at: datetime | None


class Download(NamedTuple):
    """A link to something that the reader can take away."""

    name: str
    href: str
    why: str
    file: str
    """As which it is saved."""


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """The reconstructed RemediationRequest, or why there is none."""

    yaml: str
    completeness: int
    faults: list[str]
    why_not: str = ""


@router.get(f"/ui/correlations/{CORRELATION_ID}")
async def remediation_page(request: Request, correlation_id: str) -> Response:
    """All of one correlation."""
    correlation_id = path_correlation_id(request, correlation_id)
    reads = reads_of(request)
    fields = read_fields(query_parameters(request.scope["query_string"], _READERS), _READERS)
    unread = ""
    try:
        found = await within_deadline(request, find_timeline(request, correlation_id, EVENTS_MAX, 0))
    except (Unavailable, ArchiveDamaged) as error:  # what Postgres has is worth a page, if it is that which answers
        found = await within_deadline(request, reads(lambda pool: timeline(pool, correlation_id, EVENTS_MAX, 0)))
        unread = error.detail
    if found.is_empty:
        return _no_correlation(request, correlation_id)
    events: list[dict[str, Any]] = orjson.loads(found.events)
    offset = min(fields.get("offset", 0), max(0, len(events) - 1))
    ids = [event["event_id"] for event in events[offset : offset + EVENTS_ON_PAGE]]
    on_page = await within_deadline(request, _events_on_page(request, correlation_id, ids, events))
    path = quote(correlation_id, safe="")

    async def report(payloads_of: frozenset[str] | None, read: Callable[[Pool, Sequence[Row]], Awaitable[_T]]) -> _T:
        of_both = find_report(request, correlation_id, payloads_of, read, with_archive=not unread)
        return await within_deadline(request, of_both)

    return page(
        request,
        "remediation.html",
        title=correlation_id,
        twin=f"/api/v1/audit/correlations/{path}",
        correlation_id=correlation_id,
        found=found,
        events=await shown(request, on_page),
        link=Links("/ui/events", [("correlation_id", correlation_id)]),
        offset=offset,
        events_on_page=EVENTS_ON_PAGE,
        lasted=_lasted(found),
        drawing=draw(events, found.phases, found.decisions, found.notifications),
        is_cut=found.has_more,
        verdicts=await _verdicts(request, correlation_id, found, asked=fields.get("verify", False)),
        failure=await _first_failure(request, events),
        approvals=await report(APPROVAL_TYPES, lambda pool, archived: approvals(pool, correlation_id, archived)),
        effect=await report(None, lambda pool, archived: effectiveness(pool, correlation_id, archived)),
        rebuilt=await report(EVENT_TYPES, lambda pool, archived: _rebuilt(pool, correlation_id, archived)),
        unread=unread,
        downloads=_downloads(path, events),
        duration=duration,
        may_hold=await may(request, "update"),
    )


def _no_correlation(request: Request, correlation_id: str) -> Response:
    detail = (
        f"Nothing is recorded about a remediation {correlation_id[:255]}. Ids are exact, upper and lower case count. Look for it in the "
        "list of remediations, or among the events by its resource or namespace."
    )
    return page(request, "error.html", title="No such remediation", status=404, detail=detail)


def _lasted(found: Timeline) -> str:
    first, last = found.extent["first"], found.extent["last"]
    return duration((last - first).total_seconds() * 1000) if found.extent["count"] else ""


async def _verdicts(request: Request, correlation_id: str, found: Timeline, *, asked: bool) -> list[Verdict]:
    """What is known about the chain: found just now, if that is cheap or was asked for; and what the background verifier found last."""
    verdicts = [_last_verdict(found)]
    if asked or found.extent["count"] <= VERIFIED_AT_ONCE_MAX:
        report = await verify_correlation(request, correlation_id)
        verdicts.insert(0, _verdict_now(correlation_id, report))
    return verdicts


def _verdict_now(correlation_id: str, report: CorrelationResult) -> Verdict:
    answer = chain_verified(correlation_id, report)
    total, unsealed = report.sealed.total, report.unsealed.total
    if not report.is_sealed:
        return Verdict(
            "open",
            "None of this is in the log: others inserted it by SQL.",
            f"{_events(unsealed)} without proof",
            datetime.now(UTC),
        )
    extent = (
        f"all {_events(total)}, up to chain position {report.sealed.next_index - 1}"
        if report.sealed.next_index
        else "no event"
    )
    if unsealed:
        extent += f"; {_events(unsealed)} beside them that others inserted by SQL, which nothing proves"
    message = str(answer["message"])
    kind = "bad" if not report.is_valid else "open" if unsealed else "good"
    words = _WHOLE if kind == "good" else f"{message[0].upper()}{message[1:]}."
    return Verdict(kind, words + _gone(report), extent, datetime.now(UTC))


def _gone(report: CorrelationResult) -> str:
    """What is missing by the rules, as the log records it."""
    purged, erased = report.purged_total, report.sealed.erased_total
    words = f" {_events(purged)} of it were purged when their time was over." if purged else ""
    if report.archived_total:
        words += f" {_events(report.archived_total)} of it are in the archive only."
    return words + (f" {_events(erased)} of it were erased." if erased else "")


def _last_verdict(found: Timeline) -> Verdict:
    """The background verifier's, with how far it has come: what was recorded since is not covered."""
    verdict, position = found.verdict, found.extent["verified"] or 0
    if verdict is None or not (position or verdict["found"]):
        return Verdict("open", "The background verifier has not reached this chain yet.", "no event", None)
    length = found.head["length"] if found.head else position
    extent = (
        f"{position} of the chain's {_events(length)}" if position < length else f"all {_events(length)} of the chain"
    )
    if verdict["found"]:
        return Verdict(
            "bad",
            f"The background verifier has found {verdict['found']} defects of this chain.",
            extent,
            verdict["looked_at"],
        )
    words = "The background verifier found no defect of this chain."
    if verdict["unclear"]:
        words += f" It found {verdict['unclear']} of the log that belong to no one chain."
    is_whole = position >= length and not verdict["unclear"]
    return Verdict("good" if is_whole else "open", words, extent, verdict["looked_at"])


def _events(number: int) -> str:
    return f"{number:,} event" if number == 1 else f"{number:,} events"


async def _first_failure(request: Request, events: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The failure whose sender's clock says the earliest time; None if nothing failed."""
    failed = [event for event in events if event["event_outcome"] == "failure"]
    if not failed:
        return None
    first = min(failed, key=lambda event: datetime.fromisoformat(event["event_timestamp"]))
    whole = await within_deadline(request, reads_of(request)(lambda pool: event_by_id(pool, UUID(first["event_id"]))))
    return whole or first


async def _events_on_page(
    request: Request, correlation_id: str, ids: list[str], events: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The events of a timeline with these ids, whole."""
    found = await reads_of(request)(lambda pool: events_by_id(pool, correlation_id, ids))
    archived = {event["event_id"] for event in events if "archive_id" in event}.intersection(ids)
    if archived:
        gone = await find_gone(request, correlation_id)
        found += [one.event() for one in gone if str(one.row["event_id"]) in archived]
        found.sort(key=lambda event: ids.index(event["event_id"]))
    return found


async def _rebuilt(pool: Pool, correlation_id: str, archived: Sequence[Row]) -> Rebuilt:
    try:
        built = await rebuild(pool, correlation_id, datetime.now(UTC), archived)
    except (DatabaseFailed, Unavailable):
        raise
    except AuditError as error:  # also a payload that cannot be read: the rest of the page does not depend on it
        return Rebuilt("", 0, [], error.detail)
    return Rebuilt(built.yaml, built.completeness, [*built.errors, *built.warnings])


def _downloads(path: str, events: list[dict[str, Any]]) -> list[Download]:
    api, export = "/api/v1/audit", f"/api/v1/audit/export?correlation_id={path}"
    if any("archive_id" in event for event in events):
        export += "&archive=include"
    found = [
        Download(
            "Bundle",
            f"{api}/correlations/{path}/bundle",
            "everything with its proofs, as one file that is verified without this service",
            f"{path}.bundle.json",
        ),
        Download("CSV", f"{export}&format=csv", "the events as a signed table", f"{path}.csv"),
        Download(
            "NDJSON", f"{export}&format=ndjson", "the events as a signed export, one on each line", f"{path}.ndjson"
        ),
        Download("JSON", f"{api}/correlations/{path}", "this page for programs", f"{path}.json"),
    ]
    if sealed := [event for event in events if event.get("sealed") is not False]:
        found.insert(
            1,
            Download(
                "Proof",
                f"{api}/events/{sealed[-1]['event_id']}/proof?open=true",
                "of the last event, which names the one before it by its hash, and so on",
                f"{path}.tlog-proof",
            ),
        )
    return found
