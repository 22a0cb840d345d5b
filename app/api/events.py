"""POST of one event and of a batch: parse, check, submit to the writer, answer with a receipt."""

import asyncio
import ctypes
import hashlib
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from time import perf_counter
from typing import Any
from uuid import UUID

import orjson
from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from app import metrics
from app.api.body import read_json_body
from app.api.front import Endpoint
from app.errors import BadRequest, BatchTooLarge, DatabaseAway, DatabaseFailed
from app.events import canonical
from app.events.explain import Faults
from app.ingest import parents
from app.ingest.accept import Acceptance, Draft, computed_ids, draft, single_id
from app.ingest.submission import Claim, prepare

CALLER = ""  # everybody, until there is authentication
_SLICE_SECONDS = 0.005
_LARGE_BYTES = 256 * 1024
_KEY = re.compile(r"[\x20-\x7e]{1,255}")

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
    """Record one event; 201 once it is committed, 202 once it is safe on disk."""
    started = perf_counter()
    settings = request.app.state.settings
    body = await read_json_body(request, settings.body_bytes_max)
    document = canonical.parse(body)
    item = draft(document.value, "", plain=document.plain, depth=document.depth)
    claim = None
    event_id = single_id(item)
    if key := _idempotency_key(request):
        digest = hashlib.sha256(canonical.canonical(document.value, plain=document.plain)).digest()
        claim = _claim(request, key, digest)
        event_id = computed_ids([item], CALLER, _key_source(request, key))[0]
    try:
        spooled = await _submit(request, [item], [event_id], settings.single_deadline_ms, claim)
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
    started = perf_counter()
    settings = request.app.state.settings
    body = await read_json_body(request, settings.batch_bytes_max)
    drafts, body_digest = await _parse_batch(body, settings.batch_events_max, request.url.path)
    key = _idempotency_key(request)
    claim = _claim(request, key, bytes.fromhex(body_digest)) if key else None
    ids = computed_ids(drafts, CALLER, _key_source(request, key) if key else ("body", body_digest))
    try:
        await _submit(request, drafts, ids, settings.batch_deadline_ms, claim)
    except DatabaseFailed as error:
        raise DatabaseFailed(slug=error.slug, instance=request.url.path) from (error.__cause__ or error)
    finally:
        metrics.WRITE_DURATION.labels("audit_events_batch").observe(perf_counter() - started)
        if len(body) > _LARGE_BYTES:
            del drafts
            _give_memory_back()
    message = f"{len(ids)} audit events created successfully"
    return _answer(201, {"event_ids": [str(i) for i in ids], "message": message})


def _idempotency_key(request: Request) -> str:
    """The key, in quotes as the IETF draft has it or bare; empty without one."""
    sent = request.headers.get("idempotency-key")
    if sent is None:
        return ""
    key = sent[1:-1] if len(sent) > 1 and sent[0] == sent[-1] == '"' else sent
    if not _KEY.fullmatch(key):
        raise BadRequest(f"Idempotency-Key: expected 1 to 255 printable ASCII characters, got {sent[:60]!r}")
    return key


def _key_source(request: Request, key: str) -> tuple[str, str]:
    """With the path: the same key may be used for a single event and for a batch, whose ids must not meet."""
    return "key", f"{request.url.path} {key}"


def _claim(request: Request, key: str, digest: bytes) -> Claim:
    lasts = timedelta(days=request.app.state.settings.idempotency_key_days)
    return Claim(f"POST {request.url.path} {CALLER}", key, digest, datetime.now(UTC) + lasts)


async def _submit(
    request: Request, drafts: Sequence[Draft], ids: Sequence[UUID], deadline_ms: int, claim: Claim | None
) -> bool:
    """Whether the events are safe in the spool, rather than committed."""
    state = request.app.state
    if state.writer is None:
        raise DatabaseAway
    now = asyncio.get_running_loop().time()
    try:
        found = await parents.find(state.engine, state.writer, drafts, now + deadline_ms / 2000)
    except DatabaseFailed as error:
        raise ParentsNotRead from (error.__cause__ or error)
    acceptance = Acceptance(datetime.now(UTC), found, state.writer.store.log_name)
    submission = await prepare(drafts, ids, acceptance, claim)
    spooled: bool = await state.writer.submit(submission, now + deadline_ms / 1000)
    return spooled


async def _parse_batch(body: bytes, events_max: int, path: str) -> tuple[list[Draft], str]:
    """The drafts of a batch, and the digest of its canonical form, from which their ids are computed.

    One large body is parsed at a time, in slices, so that other requests are answered meanwhile.
    """
    if len(body) > _LARGE_BYTES:
        async with _one_large_body:
            return await _parse_slices(body, events_max, path)
    document = canonical.parse(body)
    items = document.value
    if not isinstance(items, list):
        raise BadRequest(f"body: expected a JSON array of events, got {canonical.kind_of(items)}")
    _check_count(len(items), events_max, path)
    reading = _Reading(events_max)
    for value in items:
        reading.take(value, plain=document.plain, depth=document.depth - 1)
    return reading.drafts(), hashlib.sha256(canonical.canonical(items, plain=document.plain)).hexdigest()


async def _parse_slices(body: bytes, events_max: int, path: str) -> tuple[list[Draft], str]:
    reading = _Reading(events_max)
    digest = hashlib.sha256(b"[")
    slice_end = perf_counter() + _SLICE_SECONDS
    for document in canonical.items(body):
        if reading.count < events_max:
            digest.update(b"," if reading.count else b"")
            digest.update(canonical.canonical(document.value, plain=document.plain))
        reading.take(document.value, plain=document.plain, depth=document.depth)
        if perf_counter() > slice_end:
            await asyncio.sleep(0)
            slice_end = perf_counter() + _SLICE_SECONDS
    _check_count(reading.count, events_max, path)
    digest.update(b"]")
    return reading.drafts(), digest.hexdigest()


class _Reading:
    """The items of a batch as they are read. All that is wrong with them is told at once."""

    def __init__(self, events_max: int) -> None:
        self.count = 0
        self._events_max = events_max
        self._drafts: list[Draft] = []
        self._faults = Faults()

    def take(self, value: Any, *, plain: bool, depth: int) -> None:
        with self._faults:
            if self.count < self._events_max and not self._faults.full:
                self._drafts.append(draft(value, f"/{self.count}", plain=plain, depth=depth))
        self.count += 1

    def drafts(self) -> list[Draft]:
        if self._faults.fields:
            raise self._faults.error()
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
    metrics.AUDIT_LAG.labels("other" if category in metrics.LAG_OTHER else category).observe(max(lag, 0.0))


def _answer(status: int, answer: dict[str, Any]) -> Response:
    return Response(orjson.dumps(answer, option=orjson.OPT_APPEND_NEWLINE), status, media_type="application/json")


router = APIRouter(tags=["events"])
DIRECT: dict[tuple[str, str], Endpoint] = {}
"""The same endpoints for the front, which calls them without the framework."""


def _post(path: str, endpoint: Endpoint, answers: dict[int | str, dict[str, Any]], body: dict[str, Any]) -> None:
    DIRECT["POST", path] = endpoint
    router.add_api_route(
        path,
        endpoint,
        methods=["POST"],
        status_code=201,
        response_class=Response,
        responses=answers,
        openapi_extra={
            "parameters": [_KEY_PARAMETER],
            "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        },
    )


_KEY_PARAMETER = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "the same key and body again get the same answer, and nothing is stored twice",
    "schema": {"type": "string", "maxLength": 257},
}
_ITEM = {"$ref": "#/components/schemas/PostedEvent"}
_post("/api/v1/audit/events", post_event, {201: {"model": EventCreated}, 202: {"model": EventAccepted}}, _ITEM)
_post(
    "/api/v1/audit/events/batch",
    post_batch,
    {201: {"model": BatchCreated}},
    {"type": "array", "items": _ITEM, "minItems": 1},
)
