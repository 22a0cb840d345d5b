"""POST and GET of notifications."""

import asyncio
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from time import perf_counter
from typing import Annotated, Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from app import metrics
from app.api import idempotency
from app.api.access import authorize, authorize_large_body, caller_name
from app.api.body import json_response, read_json_body
from app.api.checked_body import request_body_of
from app.api.deadline import within_deadline
from app.api.filters import documented_filter, read_times_query
from app.api.paging import cursor_errors, page_response, pagination
from app.api.parameters import Reader, cursor, whole_number
from app.api.reads import reads_of
from app.api.routes import Answer, Router
from app.api.service import foundation_of, recording_service
from app.errors import BadRequest, DatabaseAway
from app.events.canonical import canonical, kind_of, parse
from app.events.explain import bad_fields, by_member_name
from app.ingest.claim import Claim
from app.ingest.notification_writing import write
from app.ingest.notifications import (
    Channel,
    GeneratedColumns,
    Notification,
    PostedNotification,
    Status,
    check_notification,
    parse_notification,
)
from app.ingest.writer import Writer
from app.query.cursor import NumberedCursor
from app.query.filter import LIMIT_MAX
from app.query.notifications import NotificationQuery, page

router = Router(tags=["notifications"])
_TABLE = "notification_audit"


class StoredNotification(Answer):
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
    sealed: Annotated[bool | None, Field(description="false: the log has no digest of it; else absent")] = None


class NotificationAccepted(Answer):
    """The notification is safe on disk, and will be committed when Postgres is back."""

    status: str
    message: str


class NotificationPagination(Answer):
    """Where this page stands. `next_cursor` is absent on the last one."""

    limit: int
    has_more: bool
    next_cursor: str | None = None


class Notifications(Answer):
    """One page, latest notification first."""

    data: list[StoredNotification]
    pagination: NotificationPagination


async def post_notification(request: Request) -> Response:
    """Record that somebody was told of a remediation; 201 with the record once it is committed, 202 once it is safe on disk."""
    started = perf_counter()
    settings = foundation_of(request).settings
    await authorize_large_body(request)
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
    posted, sent_at = parse_notification(document.value)
    await authorize(request)
    notification = check_notification(posted, sent_at, datetime.now(UTC))
    claim = None
    if key := idempotency.key_of(request):
        digest = sha256(canonical(document.value, plain=document.plain)).digest()
        claim = idempotency.claim_of(request, caller_name(request), key, digest)
    try:
        stored = await _write(request, notification, claim)
    except DatabaseAway as error:
        raise DatabaseAway(retry=True) from (error.__cause__ or error)
    finally:
        metrics.WRITE_DURATION.labels(_TABLE).observe(perf_counter() - started)
    if stored is None:
        message = "Notification accepted: the database is away, and the notification is queued on disk"
        return json_response({"status": "accepted", "message": message}, 202)
    lag = (datetime.now(UTC) - notification.sent_at).total_seconds()
    metrics.AUDIT_LAG.labels("notification").observe(max(lag, 0.0))
    return json_response(_stored_notification(notification, *stored), 201)


async def _write(request: Request, notification: Notification, claim: Claim | None) -> GeneratedColumns | None:
    """Store the notification in Postgres, else in the spool, in order with what waits there.

    None once it is safe in the spool. Whether Postgres has it too may be unknown then; replay finds out.
    """
    deadline = asyncio.get_running_loop().time() + foundation_of(request).settings.single_deadline_ms / 1000
    service = await recording_service(request, deadline)
    writer, spool = service.writer, service.spool
    assert isinstance(writer, Writer), "posts of notifications are answered by the process that writes"
    with writer.exclusive(claim):
        if spool is not None and await spool.has_notification(notification, claim):
            return None
        try:
            if not writer.away:
                async with asyncio.timeout_at(deadline):
                    return await write(service.engine, writer, notification, claim, deadline)
        except (TimeoutError, DatabaseAway):
            if spool is None:
                raise DatabaseAway from None
        assert spool is not None, "without a spool the writer is never away"
        await spool.append_notification(notification, claim)
    return None


def _stored_notification(notification: Notification, number: int, created_at: datetime) -> dict[str, Any]:
    """Members in the order of the columns."""
    one, created = notification, _rfc3339(created_at)
    members: dict[str, Any] = {
        "id": number,
        "remediation_id": one.remediation_id,
        "notification_id": one.notification_id,
        "recipient": one.recipient,
        "channel": one.channel,
        "message_summary": one.message_summary,
        "status": one.status,
        "sent_at": _rfc3339(one.sent_at),
    }
    members |= {name: text for name in ("delivery_status", "error_message") if (text := getattr(one, name))}
    return members | {"escalation_level": one.escalation_level, "created_at": created, "updated_at": created}


def _rfc3339(time: datetime) -> str:
    """As Postgres writes it: without zeros at its end."""
    whole, dot, fraction = time.astimezone(UTC).isoformat().removesuffix("+00:00").partition(".")
    return f"{whole}{dot}{fraction.rstrip('0')}Z"


router.add_api_route(
    "/api/v1/audit/notifications",
    post_notification,
    methods=["POST"],
    status_code=201,
    response_class=Response,
    responses={201: {"model": StoredNotification}, 202: {"model": NotificationAccepted}},
    openapi_extra={"parameters": [idempotency.PARAMETER], **request_body_of(PostedNotification)},
)


@router.get(
    "/api/v1/audit/notifications",
    response_class=Response,
    responses={200: {"model": Notifications}},
    openapi_extra={"parameters": partial(documented_filter, NotificationQuery)},
)
async def list_notifications(request: Request) -> Response:
    """Find notifications, latest first."""
    readers: dict[str, Reader] = {"limit": whole_number(1, LIMIT_MAX), "cursor": cursor(NumberedCursor)}
    query = read_times_query(request.scope["query_string"], NotificationQuery, datetime.now(UTC), readers)
    with cursor_errors(query.cursor):
        found = await within_deadline(request, reads_of(request)(lambda pool: page(pool, query)))
    return page_response(request, found.notifications, pagination(query.limit, found.next_cursor))
