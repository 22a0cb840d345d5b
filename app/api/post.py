"""POST of one event and of a batch: parse, check, submit to the writer, answer with a receipt."""

import asyncio
import ctypes
import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from time import perf_counter
from typing import Any, NamedTuple
from uuid import UUID

import orjson
from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from app import metrics
from app.api import body_formats, idempotency
from app.api.access import caller_of, permit, person_of
from app.api.body import JSON, Reservation, read_body
from app.api.body_formats import Envelope
from app.api.front import Endpoint
from app.errors import BadRequest, BatchTooLarge, DatabaseAway, DatabaseFailed
from app.events import canonical, cloudevents
from app.events.explain import Faults
from app.ingest import parents
from app.ingest.accept import Acceptance, Draft, computed_ids, single_id
from app.ingest.submission import Claim, prepare

_SLICE_SECONDS = 0.005
_LARGE_BYTES = 256 * 1024

_one_large_body = asyncio.Lock()
_malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only


class EventCreated(BaseModel):
    """The event is committed."""

    event_id: UUID
    event_timestamp: datetime
    message: str


class EventAccepted(BaseModel):
    """The event is safe on disk under its id, and will be committed when Postgres is back."""

    event_id: UUID
    status: str
    message: str


class BatchCreated(BaseModel):
    """Every event of the batch is committed, or safe on disk while Postgres is away; the ids are in its order."""

    event_ids: list[UUID]
    message: str


class ParentsNotRead(DatabaseFailed):
    """The events named as parents could not be looked up; the service's log says why."""

    slug = "query-error"


async def post_event(request: Request) -> Response:
    """Record one event; 201 once it is committed, 202 once it is safe on disk.

    With a ce-specversion header, a body of application/json is the data of a CloudEvent in binary mode.
    """
    started = perf_counter()
    settings = request.app.state.settings
    body, media_type = await read_body(request, settings.body_bytes_max)
    envelope = body_formats.of_single(request, media_type)
    document = canonical.parse(body)
    item = envelope.only(document)
    claim = None
    event_id = single_id(item)
    if key := idempotency.sent_key(request):
        digest = hashlib.sha256(canonical.canonical(document.value, plain=document.plain)).digest()
        claim = idempotency.claim_of(request, caller_of(request), key, digest)
        event_id = computed_ids([item], caller_of(request), idempotency.id_source(request, key))[0]
    posted = _Posted(envelope, [item], [event_id], claim)
    try:
        spooled = await _submit(request, posted, settings.single_deadline_ms)
    except DatabaseFailed as error:
        raise DatabaseFailed(slug="database_error") from (error.__cause__ or error)
    finally:
        metrics.WRITE_DURATION.labels("audit_events").observe(perf_counter() - started)
    if spooled:
        message = "Audit event accepted: the database is away, and the event is queued on disk"
        return _answer(202, {"event_id": str(event_id), "status": "accepted", "message": message})
    _observe_lag(item)
    return _answer(
        201,
        {
            "event_id": str(event_id),
            "event_timestamp": f"{item.timestamp:%Y-%m-%dT%H:%M:%SZ}",
            "message": "Audit event created successfully",
        },
    )


async def post_batch(request: Request) -> Response:
    """Record a batch, whole or not at all; 201 with the ids in input order once it is committed."""
    with request.app.state.room.taking() as taking:
        return await _post_batch(request, taking)


async def _post_batch(request: Request, taking: Reservation) -> Response:
    started = perf_counter()
    settings = request.app.state.settings
    body, media_type = await read_body(request, settings.batch_bytes_max, taking)
    envelope = body_formats.of_batch(request, media_type)
    drafts, body_digest = await _parse_batch(body, _Reading(envelope, settings.batch_events_max), request.url.path)
    caller, key = caller_of(request), idempotency.sent_key(request)
    claim = idempotency.claim_of(request, caller, key, bytes.fromhex(body_digest)) if key else None
    ids = computed_ids(drafts, caller, idempotency.id_source(request, key) if key else ("body", body_digest))
    try:
        await _submit(request, _Posted(envelope, drafts, ids, claim), settings.batch_deadline_ms)
    except DatabaseFailed as error:
        raise DatabaseFailed(slug=error.slug, instance=request.url.path) from (error.__cause__ or error)
    finally:
        metrics.WRITE_DURATION.labels("audit_events_batch").observe(perf_counter() - started)
        if len(body) > _LARGE_BYTES:
            del drafts
            _give_memory_back()
    message = f"{len(ids)} audit events created successfully"
    return _answer(201, {"event_ids": [str(i) for i in ids], "message": message})


class _Posted(NamedTuple):
    """What one request wants written."""

    envelope: Envelope
    drafts: Sequence[Draft]
    ids: Sequence[UUID]
    claim: Claim | None


async def _submit(request: Request, posted: _Posted, deadline_ms: int) -> bool:
    """Whether the events are safe in the spool, rather than committed."""
    await permit(request)
    state = request.app.state
    if state.writer is None:
        raise DatabaseAway
    now = asyncio.get_running_loop().time()
    try:
        found = await parents.find(state.engine, state.writer, posted.drafts, now + deadline_ms / 2000)
    except DatabaseFailed as error:
        raise ParentsNotRead from (error.__cause__ or error)
    trace_id, span_id = request.scope["state"].get("trace", (None, None))
    acceptance = Acceptance(
        datetime.now(UTC), found, state.writer.store.log_name, person_of(request), trace_id, span_id
    )
    try:
        submission = await prepare(posted.drafts, posted.ids, acceptance, posted.claim)
        spooled: bool = await state.writer.submit(submission, now + deadline_ms / 1000)
    except BadRequest as error:
        raise posted.envelope.renamed(error) from None
    return spooled


async def _parse_batch(body: bytes, reading: "_Reading", path: str) -> tuple[list[Draft], str]:
    """The drafts of a batch, and the digest of its canonical form, from which their ids are computed.

    One large body is parsed at a time, in slices, so that other requests are answered meanwhile.
    """
    if len(body) > _LARGE_BYTES:
        async with _one_large_body:
            return await _parse_slices(body, reading, path)
    document = canonical.parse(body)
    items = document.value
    if not isinstance(items, list):
        raise BadRequest(f"body: expected a JSON array of events, got {canonical.kind_of(items)}")
    _check_count(len(items), reading.events_max, path)
    for value in items:
        reading.take(value, plain=document.plain, depth=document.depth - 1)
    return reading.drafts(), hashlib.sha256(canonical.canonical(items, plain=document.plain)).hexdigest()


async def _parse_slices(body: bytes, reading: "_Reading", path: str) -> tuple[list[Draft], str]:
    digest = hashlib.sha256(b"[")
    slice_end = perf_counter() + _SLICE_SECONDS
    for document in canonical.parse_items(body):
        if reading.count < reading.events_max:
            digest.update(b"," if reading.count else b"")
            digest.update(canonical.canonical(document.value, plain=document.plain))
        reading.take(document.value, plain=document.plain, depth=document.depth)
        if perf_counter() > slice_end:
            await asyncio.sleep(0)
            slice_end = perf_counter() + _SLICE_SECONDS
    _check_count(reading.count, reading.events_max, path)
    digest.update(b"]")
    return reading.drafts(), digest.hexdigest()


class _Reading:
    """The items of a batch as they are read. All that is wrong with them is told at once."""

    def __init__(self, envelope: Envelope, events_max: int) -> None:
        self.count = 0
        self.events_max = events_max
        self._envelope = envelope
        self._drafts: list[Draft] = []
        self._faults = Faults()

    def take(self, value: Any, *, plain: bool, depth: int) -> None:
        with self._faults:
            if self.count < self.events_max and not self._faults.full:
                self._drafts.append(self._envelope.draft(value, f"/{self.count}", plain=plain, depth=depth))
        self.count += 1

    def drafts(self) -> list[Draft]:
        if self._faults.fields:
            raise self._envelope.renamed(self._faults.error())
        return self._drafts


def _check_count(count: int, events_max: int, path: str) -> None:
    if count == 0:
        raise BadRequest("body: the batch is empty; expected at least one event")
    if count > events_max:
        raise BatchTooLarge(
            f"batch size {count} exceeds the maximum of {events_max} events: send it in several batches", instance=path
        )


def _give_memory_back() -> None:
    """The allocator keeps what a large batch has used, hundreds of megabytes, unless it is asked."""
    if _malloc_trim is not None:
        _malloc_trim(0)


def _observe_lag(item: Draft) -> None:
    category = item.posted["event_category"]
    lag = (datetime.now(UTC) - item.timestamp).total_seconds()
    metrics.AUDIT_LAG.labels("other" if category in metrics.LAG_OTHER_CATEGORIES else category).observe(max(lag, 0.0))


def _answer(status: int, answer: dict[str, Any]) -> Response:
    return Response(orjson.dumps(answer, option=orjson.OPT_APPEND_NEWLINE), status, media_type="application/json")


router = APIRouter(tags=["events"])
DIRECT: dict[tuple[str, str], Endpoint] = {}
"""The same endpoints for the front, which calls them without the framework."""


def _post(
    path: str, endpoint: Endpoint, answers: dict[int | str, dict[str, Any]], bodies: dict[str, dict[str, Any]]
) -> None:
    DIRECT["POST", path] = endpoint
    router.add_api_route(
        path,
        endpoint,
        methods=["POST"],
        status_code=201,
        response_class=Response,
        responses=answers,
        openapi_extra={
            "parameters": [idempotency.PARAMETER],
            "requestBody": {"required": True, "content": {kind: {"schema": schema} for kind, schema in bodies.items()}},
        },
    )


def _schema(model: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{model}"}


def _many(model: str) -> dict[str, Any]:
    return {"type": "array", "items": _schema(model), "minItems": 1}


_post(
    body_formats.SINGLE_PATH,
    post_event,
    {201: {"model": EventCreated}, 202: {"model": EventAccepted}},
    {JSON: _schema("PostedEvent"), cloudevents.STRUCTURED: _schema("CloudEvent")},
)
_post(
    body_formats.BATCH_PATH,
    post_batch,
    {201: {"model": BatchCreated}},
    {JSON: _many("PostedEvent"), cloudevents.BATCH: _many("CloudEvent")},
)
