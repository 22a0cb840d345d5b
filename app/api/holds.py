"""POST, GET and DELETE of legal holds (docs/contract.md, section 13): by correlation as in the reference, and by other selectors."""

from datetime import UTC, datetime
from typing import Annotated, Any, NotRequired
from uuid import UUID

import asyncpg
from pydantic import ConfigDict, Field, with_config
from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import TypedDict

from app.api.access import ANONYMOUS, authorize, caller_name
from app.api.body import json_response
from app.api.checked_body import read_checked_body, request_body_of
from app.api.deadline import within_deadline
from app.api.parameters import CORRELATION_ID, path_correlation_id, query_parameters
from app.api.routes import Router
from app.api.service import service_of
from app.errors import BadRequest
from app.events.catalog.value_types import DateTime, Uuid
from app.events.envelope import Name100, Name255, parse_timestamp
from app.events.explain import bad_fields
from app.query.postgres_time import rfc3339_or_none
from app.retention import holds
from app.retention.holds import HoldOrder, Selector

router = Router(tags=["legal holds"])
_PATH = "/api/v1/audit/legal-hold"
_SELECTORS = ("correlation_id", "actor_id", "resource", "time")
_UNKNOWN_TIME = "0001-01-01T00:00:00Z"


class MissingCorrelationId(BadRequest):
    """correlation_id is empty: name the remediation whose events are to be held."""

    slug = "missing-correlation-id"
    title = "Missing Correlation ID"


class MissingReason(BadRequest):
    """reason is empty: say why the events are to be held."""

    slug = "missing-reason"
    title = "Missing Reason"


class MissingReleaseReason(BadRequest):
    """release_reason is empty: say why the hold ends."""

    slug = "missing-release-reason"
    title = "Missing Release Reason"


@with_config(ConfigDict(strict=True, extra="ignore"))
class HeldResource(TypedDict):
    """Events about one resource."""

    type: Annotated[Name100, Field(min_length=1)]
    id: Annotated[Name255, Field(min_length=1)]


HeldTime = TypedDict("HeldTime", {"from": DateTime, "to": DateTime})  # a call: `from` is a keyword of Python
HeldTime.__doc__ = "Events whose event_timestamp lies between two moments, both included."


@with_config(ConfigDict(strict=True, extra="ignore"))
class HoldToPlace(TypedDict):
    """What to hold, by exactly one of correlation_id, actor_id, resource and time, and why. Other members are ignored."""

    correlation_id: NotRequired[Name255]
    actor_id: NotRequired[Annotated[Name255, Field(min_length=1)]]
    resource: NotRequired[HeldResource]
    time: NotRequired[HeldTime]
    reason: str


@with_config(ConfigDict(strict=True, extra="ignore"))
class CorrelationToRelease(TypedDict):
    """Why the hold ends."""

    release_reason: str


class HoldToRelease(CorrelationToRelease):
    """Which hold ends, and why."""

    hold_id: Uuid


class PlacedHold(TypedDict):
    """The hold that was placed: its selector, and how many of the events that are there it covers."""

    hold_id: UUID
    correlation_id: NotRequired[str]
    actor_id: NotRequired[str]
    resource: NotRequired[HeldResource]
    time: NotRequired[HeldTime]
    events_affected: int
    placed_by: str
    placed_at: datetime
    reason: str


class ListedHold(TypedDict):
    """A hold and how many events show it. Without hold_id it was placed by SQL. The last three are those of a released one."""

    hold_id: NotRequired[UUID]
    correlation_id: NotRequired[str]
    actor_id: NotRequired[str]
    resource: NotRequired[HeldResource]
    time: NotRequired[HeldTime]
    events_affected: int
    placed_by: str
    placed_at: datetime
    reason: str
    release_reason: NotRequired[str]
    released_by: NotRequired[str]
    released_at: NotRequired[datetime]


class Holds(TypedDict):
    """Newest first."""

    holds: list[ListedHold]
    total: int


class ReleasedHold(TypedDict):
    """How many events are free now: those that another hold covers are not."""

    hold_id: NotRequired[UUID]
    correlation_id: NotRequired[str]
    events_released: int
    released_by: str
    released_at: datetime


@router.post(
    _PATH, response_class=Response, responses={200: {"model": PlacedHold}}, openapi_extra=request_body_of(HoldToPlace)
)
async def place_hold(request: Request) -> Response:
    """Hold events, those that are there and those to come: they can be neither purged nor erased until it is released."""
    service = service_of(request)
    body: HoldToPlace = await read_checked_body(request, HoldToPlace)
    selector_name = _selector_name(body)
    await authorize(request)
    selector, by = _selector(body, selector_name), caller_name(request) or ANONYMOUS
    if not body["reason"].strip():
        if body["reason"] and selector.correlation_id is not None:
            await holds.require_events(service.engine, selector.correlation_id)
        raise MissingReason
    placed = await holds.place(service.settings, service.log, selector, HoldOrder(by, body["reason"]))
    return json_response(
        {"hold_id": str(placed.hold_id)}
        | {name: body[name] for name in _SELECTORS if name in body}  # type: ignore[literal-required]
        | {"events_affected": placed.events, "placed_by": by, "placed_at": _nanoseconds(placed.placed_at)}
        | {"reason": body["reason"]}
    )


@router.get(
    _PATH,
    response_class=Response,
    responses={200: {"model": Holds}},
    openapi_extra={
        "parameters": [
            {
                "name": "include",
                "in": "query",
                "description": "released: holds that ended too",
                "schema": {"type": "string", "enum": ["released"]},
            }
        ]
    },
)
async def list_holds(request: Request) -> Response:
    """Every active hold, newest first, also those that SQL placed."""
    include = query_parameters(request.scope["query_string"], {"include"}).get("include")
    if include not in {None, "", "released"}:
        raise bad_fields({"include": f"expected released, got {include[:60]!r}"})
    rows = await within_deadline(request, holds.holds(service_of(request).engine, history=bool(include)))
    return json_response({"holds": [listed_hold(row) for row in rows], "total": len(rows)})


@router.delete(
    f"{_PATH}/{CORRELATION_ID}",
    response_class=Response,
    responses={200: {"model": ReleasedHold}},
    openapi_extra=request_body_of(CorrelationToRelease),
)
async def release_correlation_hold(request: Request, correlation_id: str) -> Response:
    """Release what is held of a correlation, by whatever means; events that another hold covers stay held."""
    service = service_of(request)
    correlation_id = path_correlation_id(request, correlation_id)
    body: CorrelationToRelease = await read_checked_body(request, CorrelationToRelease)
    await authorize(request)
    order = _release_order(request, body)
    released = await holds.release_correlation(service.settings, service.log, correlation_id, order)
    return json_response({"correlation_id": correlation_id} | _released(released, order))


@router.delete(
    _PATH,
    response_class=Response,
    responses={200: {"model": ReleasedHold}},
    openapi_extra=request_body_of(HoldToRelease),
)
async def release_hold(request: Request) -> Response:
    """Release one hold by its id, whatever its selector."""
    service = service_of(request)
    body: HoldToRelease = await read_checked_body(request, HoldToRelease)
    await authorize(request)
    order = _release_order(request, body)
    released = await holds.release(service.settings, service.log, UUID(body["hold_id"]), order)
    return json_response({"hold_id": body["hold_id"].lower()} | _released(released, order))


def _selector_name(body: HoldToPlace) -> str:
    """The name of the body's selector. BadRequest unless there is exactly one."""
    named = [name for name in _SELECTORS if name in body]
    if not named:
        raise bad_fields({"/correlation_id": "required, but missing; or actor_id, or resource, or time"})
    if len(named) > 1:
        raise bad_fields({f"/{name}": f"expected one selector, got {' and '.join(named)}" for name in named[1:]})
    return named[0]


def _selector(body: HoldToPlace, name: str) -> Selector:
    if name == "correlation_id":
        if not body["correlation_id"]:
            raise MissingCorrelationId
        return Selector(correlation_id=body["correlation_id"])
    if name == "actor_id":
        return Selector(actor_id=body["actor_id"])
    if name == "resource":
        return Selector(resource_type=body["resource"]["type"], resource_id=body["resource"]["id"])
    start, end = parse_timestamp(body["time"]["from"], "/time/from"), parse_timestamp(body["time"]["to"], "/time/to")
    if start > end:
        raise bad_fields({"/time/to": "expected a time that is not before the one in from"})
    return Selector(time_from=start, time_to=end)


def _release_order(request: Request, body: CorrelationToRelease) -> HoldOrder:
    if not body["release_reason"].strip():
        raise MissingReleaseReason
    return HoldOrder(caller_name(request) or ANONYMOUS, body["release_reason"])


def _released(released: holds.Release, order: HoldOrder) -> dict[str, Any]:
    return {
        "events_released": released.events,
        "released_by": order.by,
        "released_at": _nanoseconds(released.released_at),
    }


def listed_hold(row: asyncpg.Record) -> dict[str, Any]:
    """A hold as it is listed. Members without a value are left out: nothing may be null."""
    resource = None if row["resource_id"] is None else {"type": row["resource_type"], "id": row["resource_id"]}
    time = (
        None
        if row["time_from"] is None
        else {"from": rfc3339_or_none(row["time_from"]), "to": rfc3339_or_none(row["time_to"])}
    )
    members = {
        "hold_id": row["hold_id"] and str(row["hold_id"]),
        "correlation_id": row["correlation_id"],
        "actor_id": row["actor_id"],
        "resource": resource,
        "time": time,
        "events_affected": row["events"],
        "placed_by": row["placed_by"],
        "placed_at": rfc3339_or_none(row["placed_at"]) or _UNKNOWN_TIME,
        "reason": row["reason"],
        "release_reason": row["release_reason"],
        "released_by": row["released_by"],
        "released_at": row["released_at"] and rfc3339_or_none(row["released_at"]),
    }
    return {name: value for name, value in members.items() if value is not None}


def _nanoseconds(time: datetime) -> str:
    """`time` in RFC 3339 with nine digits, as in the reference."""
    return f"{time.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%f}000Z"
