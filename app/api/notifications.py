"""POST and GET of notifications."""

import asyncio
from datetime import UTC, datetime
from hashlib import sha256
from time import perf_counter
from typing import Annotated, Any

import orjson
from fastapi import APIRouter
from pydantic import BaseModel, Field, TypeAdapter
from starlette.requests import Request
from starlette.responses import Response

from app import metrics
from app.api import idempotency, parameters
from app.api.access import caller_of, permit
from app.api.body import read_json_body
from app.api.deadline import in_time
from app.api.paging import behind, page_answer, standing
from app.errors import BadRequest, DatabaseAway
from app.events.canonical import canonical, kind_of, parse
from app.events.explain import bad_fields, by_member_name
from app.ingest.notifications import Channel, Notification, PostedNotification, Status, Stored, checked, shaped, write
from app.ingest.submission import Claim
from app.query.cursor import NumberedCursor
from app.query.filter import LIMIT_MAX
from app.query.notifications import NotificationQuery, page

router = APIRouter(tags=["notifications"])
_TABLE = "notification_audit"


class StoredNotification(BaseModel):
    """A notification as it is stored. What is unknown is left out."""

    id: int
    remediation_id: str
    notification_id: str
    recipient: str
    channel: Channel
    message_summary: str
    status: Status
    sent_at: datetime
    delivery_status: str | None = None
    error_message: str | None = None
    escalation_level: Annotated[int, Field(description="0 to 5")]
    created_at: datetime
    updated_at: datetime


class NotificationAccepted(BaseModel):
    """The notification is safe on disk, and will be committed when Postgres is back."""

    status: str
    message: str


class NotificationPagination(BaseModel):
    """Where this page stands. `next_cursor` is absent on the last one."""

    limit: int
    has_more: bool
    next_cursor: str | None = None


class Notifications(BaseModel):
    """One page, latest notification first."""

    data: list[StoredNotification]
    pagination: NotificationPagination


async def post_notification(request: Request) -> Response:
    """Record that somebody was told of a remediation; 201 with the record once it is committed, 202 once it is safe on disk."""
    started = perf_counter()
    settings = request.app.state.settings
    body = await read_json_body(request, settings.body_bytes_max)
    try:
        document = parse(body)
    except BadRequest as error:
        fields: Any = error.extra.get("field_errors")
        if fields:
            error.extra["field_errors"] = by_member_name(fields)
        raise
    if not isinstance(document.value, dict):
        raise bad_fields({"": f"expected an object, got {kind_of(document.value)}"})
    posted, sent_at = shaped(document.value)
    await permit(request)
    notification = checked(posted, sent_at, datetime.now(UTC))
    claim = None
    if key := idempotency.sent_key(request):
        digest = sha256(canonical(document.value, plain=document.plain)).digest()
        claim = idempotency.claim_of(request, caller_of(request), key, digest)
    try:
        stored = await _write(request, notification, claim)
    except DatabaseAway as error:
        raise DatabaseAway(retry=True) from (error.__cause__ or error)
    finally:
        metrics.WRITE_DURATION.labels(_TABLE).observe(perf_counter() - started)
    if stored is None:
        message = "Notification accepted: the database is away, and the notification is queued on disk"
        return _json({"status": "accepted", "message": message}, 202)
    lag = (datetime.now(UTC) - notification.sent_at).total_seconds()
    metrics.AUDIT_LAG.labels("notification").observe(max(lag, 0.0))
    return _json(_answer(notification, *stored), 201)


async def _write(request: Request, notification: Notification, claim: Claim | None) -> Stored | None:
    """None once it is safe in the spool, where its outcome in Postgres may be unknown: replay looks."""
    state = request.app.state
    if state.writer is None:  # the database was never seen
        raise DatabaseAway
    spool = state.spool
    with state.writer.running(claim):
        if spool is not None and await spool.has_notification(notification, claim):
            return None
        try:
            if not state.writer.away:
                async with asyncio.timeout(state.settings.single_deadline_ms / 1000):
                    return await write(state.engine, notification, claim)
        except (TimeoutError, DatabaseAway):
            if spool is None:
                raise DatabaseAway from None
        assert spool is not None, "without a spool the writer is never away"
        await spool.append_notification(notification, claim)
    return None


def _json(body: dict[str, Any], status: int) -> Response:
    return Response(orjson.dumps(body, option=orjson.OPT_APPEND_NEWLINE), status, media_type="application/json")


def _answer(notification: Notification, number: int, created_at: datetime) -> dict[str, Any]:
    """Members in the order of the columns."""
    one, moment = notification, _zulu(created_at)
    answer: dict[str, Any] = {
        "id": number,
        "remediation_id": one.remediation_id,
        "notification_id": one.notification_id,
        "recipient": one.recipient,
        "channel": one.channel,
        "message_summary": one.message_summary,
        "status": one.status,
        "sent_at": _zulu(one.sent_at),
    }
    answer |= {name: said for name in ("delivery_status", "error_message") if (said := getattr(one, name))}
    return answer | {"escalation_level": one.escalation_level, "created_at": moment, "updated_at": moment}


def _zulu(moment: datetime) -> str:
    """As Postgres writes it, zeros at its end cut."""
    whole, dot, fraction = moment.astimezone(UTC).isoformat().removesuffix("+00:00").partition(".")
    return f"{whole}{dot}{fraction.rstrip('0')}Z"


router.add_api_route(
    "/api/v1/audit/notifications",
    post_notification,
    methods=["POST"],
    status_code=201,
    response_class=Response,
    responses={201: {"model": StoredNotification}, 202: {"model": NotificationAccepted}},
    openapi_extra={
        "parameters": [idempotency.PARAMETER],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": TypeAdapter(PostedNotification).json_schema()}},
        },
    },
)


@router.get(
    "/api/v1/audit/notifications",
    response_class=Response,
    responses={200: {"model": Notifications}},
    openapi_extra={"parameters": parameters.documented(NotificationQuery)},
)
async def list_notifications(request: Request) -> Response:
    """Find notifications, latest first."""
    query = parse_query(request.scope["query_string"], datetime.now(UTC))
    with behind(query.cursor):
        found = await in_time(request, page(request.app.state.engine, query))
    return page_answer(request, found.notifications, standing(query.limit, found.next_cursor))


def parse_query(query_string: bytes, now: datetime) -> NotificationQuery:
    """The question in a query string; an empty value says nothing."""
    sent = parameters.sent_parameters(query_string, NotificationQuery.model_fields)
    fields: dict[str, Any] = {}
    for name, value in sent.items():
        if value:
            fields[name] = _read(name, value, now)
    return NotificationQuery(**fields)


def _read(name: str, value: str, now: datetime) -> Any:
    if name == "limit":
        return parameters.number(name, value, 1, LIMIT_MAX)
    if name in {"since", "until"}:
        return parameters.moment(name, value, now)
    return parameters.cursor(name, value, NumberedCursor) if name == "cursor" else value
