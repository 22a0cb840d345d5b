"""POST of one event and of a batch: parse, validate, authorize, submit to the writer, answer with a receipt.

A request that is not valid is refused before the caller's right to write is checked, and before the database is needed.
"""

import asyncio
import ctypes
import hashlib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import cache
from time import perf_counter
from typing import Annotated, Any, NamedTuple
from uuid import UUID

from prometheus_client import Histogram
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from app import metrics
from app.api import body_formats, idempotency, preference
from app.api.access import actor_override, authorize, authorize_large_body, caller_name
from app.api.body import JSON, json_response, read_body
from app.api.body_formats import BodyFormat
from app.api.routes import Answer, Router
from app.api.service import Endpoint, foundation_of, recording_service, service_of
from app.errors import AuditError, BadRequest, BatchTooLarge, DatabaseFailed
from app.events import canonical, cloudevents
from app.events.explain import Faults
from app.ingest.accept import Acceptance, Draft, ItemIds, computed_ids, lenient_ids, other_ids, single_id
from app.ingest.claim import Claim
from app.ingest.parents import find_parent_dates
from app.ingest.submission import Submission, new_submission, refusal, used_twice
from app.query.page import event_by_id

SLICE_SECONDS = 0.005
LARGE_BYTES = 256 * 1024
_RELEASE_SECONDS = 0.5
"""After the answer to a large batch, when nothing refers to its events any more."""

_QUEUED = "accepted: the database is away, and they are queued on disk"

_SINGLE_DURATION, _BATCH_DURATION = map(metrics.WRITE_DURATION.labels, ("audit_events", "audit_events_batch"))
one_large_body = asyncio.Lock()
"""Held while a body of more than LARGE_BYTES is read into events."""
_malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only


class EventCreated(Answer):
    """The event is committed."""

    event_id: UUID
    event_timestamp: datetime
    message: str


class EventAccepted(Answer):
    """The event is safe on disk under its id, and will be committed when Postgres is back."""

    event_id: UUID
    status: str
    message: str


class BatchCreated(Answer):
    """Every event of the batch is committed, or safe on disk while Postgres is away, as the message says; the ids are in its order."""

    event_ids: list[UUID]
    message: str


class ItemVerdict(Answer):
    """What became of one item of a lenient batch: stored under its id, or refused, with the members of a problem."""

    index: int
    status: Annotated[int, Field(description="201, or what a batch would be answered for this item")]
    event_id: UUID | None = None
    type: str | None = None
    title: str | None = None
    detail: str | None = None
    field_errors: dict[str, str] | None = None


class BatchVerdicts(Answer):
    """The good events of a lenient batch are committed, or safe on disk while Postgres is away."""

    items: list[ItemVerdict]
    message: str


class ParentLookupFailed(DatabaseFailed):
    """The events named as parents could not be looked up; see the service's log."""

    slug = "query-error"


async def post_event(request: Request) -> Response:
    """Record one event; 201 once it is committed, 202 once it is safe on disk.

    With a ce-specversion header, a body of application/json is the data of a CloudEvent in binary mode.
    """
    started = perf_counter()
    settings = foundation_of(request).settings
    await authorize_large_body(request)
    body, media_type = await read_body(request, settings.body_bytes_max)
    body_format = body_formats.single_format(request, media_type)
    document = canonical.parse(body)
    draft = body_format.parse_single(document)
    claim = id_source = None
    if key := idempotency.key_of(request):
        digest = hashlib.sha256(canonical.canonical(document.value, plain=document.plain)).digest()
        claim = idempotency.claim_of(request, caller_name(request), key, digest)
        id_source = idempotency.id_source(request, key)
    posted = _PostedEvents(body_format, [draft], id_source, claim)
    try:
        receipt = await _submit(request, posted, settings.single_deadline_ms)
    except DatabaseFailed as error:
        raise DatabaseFailed(slug="database_error") from (error.__cause__ or error)
    finally:
        _SINGLE_DURATION.observe(perf_counter() - started)
    event_id = str(receipt.ids[0])
    if receipt.is_spooled:
        message = "Audit event accepted: the database is away, and the event is queued on disk"
        return json_response({"event_id": event_id, "status": "accepted", "message": message}, 202)
    _observe_lag(draft)
    return json_response(
        {
            "event_id": event_id,
            "event_timestamp": f"{await _timestamp(request, draft, receipt.submission):%Y-%m-%dT%H:%M:%SZ}",
            "message": "Audit event created successfully",
        },
        201,
    )


async def post_batch(request: Request) -> Response:
    """Record a batch, whole or not at all; 201 with the ids in input order once it is committed.

    With `Prefer: handling=lenient` its good events are recorded; 207 with a verdict for each item.
    """
    started = perf_counter()
    settings = foundation_of(request).settings
    await authorize_large_body(request)
    body, media_type = await read_body(request, settings.batch_bytes_max)
    body_format = body_formats.batch_format(request, media_type)
    reader = BatchReader(body_format, settings.batch_events_max, is_lenient=preference.is_lenient(request))
    is_large = len(body) > LARGE_BYTES
    drafts, body_digest = await parse_batch(body, reader, request.url.path)
    del body  # up to 50 MiB
    caller, key = caller_name(request), idempotency.key_of(request)
    claim = idempotency.claim_of(request, caller, key, bytes.fromhex(body_digest)) if key else None
    id_source = idempotency.id_source(request, key) if key else ("body", body_digest)
    posted = _PostedEvents(body_format, drafts, id_source, claim, reader if reader.is_lenient else None)
    try:
        if reader.is_lenient:
            return verdicts(reader, await _submit_lenient(request, posted, settings.batch_deadline_ms))
        receipt = await _submit(request, posted, settings.batch_deadline_ms)
    except DatabaseFailed as error:
        raise DatabaseFailed(slug=error.slug, instance=request.url.path) from (error.__cause__ or error)
    finally:
        _BATCH_DURATION.observe(perf_counter() - started)
        if is_large:
            del drafts, reader, posted
            release_memory_soon()
    message = f"{len(receipt.ids)} audit events {_QUEUED if receipt.is_spooled else 'created successfully'}"
    return json_response({"event_ids": [str(i) for i in receipt.ids], "message": message}, 201)


class _PostedEvents(NamedTuple):
    """The events of one request, read and valid."""

    body_format: BodyFormat
    drafts: Sequence[Draft]
    id_source: tuple[str, str] | None
    """What ids are computed from; None for a random one."""
    claim: Claim | None
    lenient: "BatchReader | None" = None
    """Of a lenient batch: what was read of it."""


class Receipt(NamedTuple):
    """The events of one request are committed, or safe in the spool."""

    ids: Sequence[UUID]
    """In input order: those under which the events are stored."""
    own_ids: Sequence[UUID]
    """In input order: those of this request."""
    is_spooled: bool
    submission: Submission


async def _submit(request: Request, posted: _PostedEvents, deadline_ms: int) -> Receipt:
    """Have the writer store the events."""
    await authorize(request)
    clock, drafts = asyncio.get_running_loop().time, posted.drafts
    deadline = clock() + deadline_ms / 1000
    service = await recording_service(request, deadline, drafts)
    try:
        parents_deadline = (clock() + deadline) / 2
        parent_dates = await find_parent_dates(service.engine, service.writer, drafts, parents_deadline)
    except DatabaseFailed as error:
        raise ParentLookupFailed from (error.__cause__ or error)
    trace_id, span_id = request.scope["state"].get("trace", (None, None))
    acceptance = Acceptance(
        datetime.now(UTC), parent_dates, service.log_name, actor_override(request), trace_id, span_id
    )
    if posted.lenient is not None and posted.id_source is not None:
        of_items = posted.lenient.ids(caller_name(request), posted.id_source, acceptance)
        ids = [one.own for one in of_items]
        acceptance = acceptance._replace(
            other_ids={one.own: one.others for one in of_items},
            aliases={one.own: one.alias for one in of_items if one.alias is not None},
        )
    elif posted.id_source is None:
        ids = list(map(single_id, drafts))
    else:
        computed_from = drafts, caller_name(request), posted.id_source, acceptance.now
        ids = computed_ids(*computed_from)
        acceptance = acceptance._replace(other_ids=other_ids(*computed_from))
    try:
        submission = await new_submission(drafts, ids, acceptance, posted.claim, is_lenient=posted.lenient is not None)
        is_spooled = await service.writer.submit(submission, deadline)
    except BadRequest as error:
        raise posted.body_format.with_client_names(error) from None
    if submission.bookmark is not None and not is_spooled:
        request.scope["state"]["bookmark"] = submission.bookmark
    return receipt_of(submission, ids, is_spooled)


def receipt_of(submission: Submission, ids: Sequence[UUID], is_spooled: bool) -> Receipt:
    """The receipt of a request that the writer has finished; `ids` are its own, in input order."""
    stored_as = submission.stored_as
    stored_ids = [stored_as.get(one, one) for one in ids] if stored_as else ids
    return Receipt(stored_ids, ids, is_spooled, submission)


async def _submit_lenient(request: Request, posted: _PostedEvents, deadline_ms: int) -> Receipt | None:
    """The receipt of a lenient batch; None if nothing of it can be written."""
    if posted.drafts:
        return await _submit(request, posted, deadline_ms)
    await authorize(request)
    return None


def verdicts(reader: "BatchReader", receipt: Receipt | None) -> Response:
    """What became of each item of a lenient batch."""
    written: dict[int, tuple[UUID, UUID]] = {}
    rejections: dict[UUID, AuditError] = {}
    if receipt is not None:
        own_ids, rejections = receipt.own_ids, receipt.submission.rejections or {}
        written = {index: pair for index, *pair in zip(reader.indexes, own_ids, receipt.ids, strict=True)}  # type: ignore[misc]
    items, stored = [], 0
    for index in range(reader.count):
        own_id, event_id = written.get(index, (None, None))
        error = reader.refused.get(index) or (rejections.get(own_id) if own_id else None)
        if error is None:
            stored += 1
            items.append({"index": index, "status": 201, "event_id": str(event_id)})
            continue
        if isinstance(error, BadRequest):
            error = reader.body_format.with_client_names(error)
        problem = {"type": error.type, "title": error.title, "detail": error.detail}
        items.append({"index": index, "status": error.status} | problem | error.extra)
    became = _QUEUED if receipt is not None and receipt.is_spooled else "created"
    message = f"{stored} of {reader.count} audit events {became}"
    return json_response({"items": items, "message": message}, 207, preference.APPLIED)


async def _timestamp(request: Request, draft: Draft, submission: Submission) -> datetime:
    """The event's time: of a resend without one, that of the event that is stored."""
    [event] = submission.events
    if draft.timestamp is None and submission.stored_as:
        stored = await event_by_id(service_of(request).engine, submission.stored_as[event.id])
        if stored is not None:
            return datetime.fromisoformat(stored["event_timestamp"])
    return event.timestamp


async def parse_batch(body: bytes, reader: "BatchReader", path: str) -> tuple[list[Draft], str]:
    """The drafts of a batch, and the digest of its canonical form, from which their ids are computed.

    Large bodies are parsed one at a time, in slices, so that other requests are answered meanwhile.
    """
    if len(body) > LARGE_BYTES:
        async with one_large_body:
            return await _parse_slices(body, reader, path)
    if reader.body_format.one_a_line or reader.is_lenient:  # which may have to name the faults of every item
        return await _parse_slices(body, reader, path)
    document = canonical.parse(body)
    items = document.value
    if not isinstance(items, list):
        raise BadRequest(f"body: expected a JSON array of events, got {canonical.kind_of(items)}")
    _check_count(len(items), reader.events_max, path)
    for value in items:
        reader.add(value, plain=document.plain, depth=document.depth - 1)
    return reader.drafts(), hashlib.sha256(canonical.canonical(items, plain=document.plain)).hexdigest()


async def _parse_slices(body: bytes, reader: "BatchReader", path: str) -> tuple[list[Draft], str]:
    digest = hashlib.sha256(b"[")
    slice_end = perf_counter() + SLICE_SECONDS
    for document in reader.body_format.items(body):
        if reader.count < reader.events_max:
            digest.update(b"," if reader.count else b"")
            digest.update(canonical.canonical(document.value, plain=document.plain))
        reader.add(document.value, plain=document.plain, depth=document.depth)
        reader.forget_payload()
        if perf_counter() > slice_end:
            await asyncio.sleep(0)
            slice_end = perf_counter() + SLICE_SECONDS
    _check_count(reader.count, reader.events_max, path)
    digest.update(b"]")
    return reader.drafts(), digest.hexdigest()


class BatchReader:
    """Reads a batch item by item, and reports the faults of all its items together, or if it is lenient each by itself."""

    def __init__(self, body_format: BodyFormat, events_max: int, *, is_lenient: bool = False) -> None:
        self.count = 0
        self.events_max = events_max
        self.is_lenient = is_lenient
        self.body_format = body_format
        self._drafts: list[Draft] = []
        self._faults = Faults()
        # Only of a lenient batch:
        self.refused: dict[int, AuditError] = {}
        """By index of the item."""
        self.indexes: list[int] = []
        """Of the items that are not refused."""
        self._digests: list[str] = []
        self._by_id: dict[UUID, bytes | None] = {}

    def add(self, value: Any, *, plain: bool, depth: int) -> None:
        if self.is_lenient:
            self._add_lenient(value, plain=plain, depth=depth)
        else:
            with self._faults:
                if self.count < self.events_max and not self._faults.full:
                    self._drafts.append(self.body_format.parse_item(value, f"/{self.count}", plain=plain, depth=depth))
        self.count += 1

    def _add_lenient(self, value: Any, *, plain: bool, depth: int) -> None:
        if self.count >= self.events_max:
            return
        try:
            draft = self.body_format.parse_item(value, f"/{self.count}", plain=plain, depth=depth)
            if draft.event_id is not None and self._by_id.setdefault(draft.event_id, draft.digest) != draft.digest:
                raise used_twice(draft, draft.event_id)
        except AuditError as error:
            self.refused[self.count] = error
            return
        self._drafts.append(draft)
        self.indexes.append(self.count)
        self._digests.append(hashlib.sha256(canonical.canonical(value, plain=plain)).hexdigest())

    @property
    def items(self) -> list[tuple[int, Draft, str]]:
        """Index, draft and hex digest of each item of a lenient batch that is not refused."""
        return list(zip(self.indexes, self._drafts, self._digests, strict=True))

    @property
    def accepted(self) -> list[Draft]:
        """The drafts of the items that are not refused."""
        return self._drafts

    def refuse(self, rule: Callable[[Draft], AuditError | None]) -> None:
        """Refuse the items of a lenient batch for which `rule` returns why."""
        for index, draft in zip(self.indexes, self._drafts, strict=True):
            if error := rule(draft):
                self.refused[index] = error
        kept = [item for item in self.items if item[0] not in self.refused]
        self.indexes, self._drafts, self._digests = map(list, zip(*kept, strict=True)) if kept else ([], [], [])

    def forget_payload(self) -> None:
        """Let go of the last item's parsed payload, a third of what a large batch uses: its draft has the canonical form."""
        if self._drafts:
            self._drafts[-1].posted["event_data"] = {}

    def ids(self, caller: str, source: tuple[str, str], acceptance: Acceptance) -> list[ItemIds]:
        """Those of each item of a lenient batch that is not refused."""
        # An id that the client chose may belong to another event, which only the writer will find.
        is_whole = not self.refused and all(
            draft.event_id is None and refusal(draft, acceptance) is None for draft in self._drafts
        )
        return lenient_ids(self.items, caller, source, acceptance.now, is_whole=is_whole)

    def drafts(self) -> list[Draft]:
        """The drafts of all items. BadRequest if any item has a fault."""
        if self._faults.fields:
            raise self.body_format.with_client_names(self._faults.error())
        return self._drafts


def _check_count(count: int, events_max: int, path: str) -> None:
    if count == 0:
        raise BadRequest("body: the batch is empty; expected at least one event")
    if count > events_max:
        raise BatchTooLarge(
            f"batch size {count} exceeds the maximum of {events_max} events: send it in several batches", instance=path
        )


def release_memory_soon() -> None:
    """Return what a large batch used, hundreds of megabytes, to the system: the allocator does not do so by itself."""
    if _malloc_trim is not None:
        asyncio.get_running_loop().call_later(_RELEASE_SECONDS, _malloc_trim, 0)


def _observe_lag(draft: Draft) -> None:
    if draft.timestamp is None:
        return
    category = draft.posted["event_category"]
    lag = (datetime.now(UTC) - draft.timestamp).total_seconds()
    _lag_of(category).observe(max(lag, 0.0))


@cache
def _lag_of(category: str) -> Histogram:
    return metrics.AUDIT_LAG.labels("other" if category in metrics.LAG_OTHER_CATEGORIES else category)


router = Router(tags=["events"])
DIRECT: dict[tuple[str, str], Endpoint] = {}
"""The same endpoints by method and path, for the front, which calls them without the framework."""


def _add_post_route(
    path: str,
    endpoint: Endpoint,
    responses: dict[int | str, dict[str, Any]],
    bodies: dict[str, dict[str, Any]],
    *parameters: dict[str, Any],
) -> None:
    DIRECT["POST", path] = endpoint
    router.add_api_route(
        path,
        endpoint,
        methods=["POST"],
        status_code=201,
        response_class=Response,
        responses=responses,
        openapi_extra={
            "parameters": [idempotency.PARAMETER, *parameters],
            "requestBody": {"required": True, "content": {kind: {"schema": schema} for kind, schema in bodies.items()}},
        },
    )


def _schema(model: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{model}"}


def _array_of(model: str) -> dict[str, Any]:
    return {"type": "array", "items": _schema(model), "minItems": 1}


_add_post_route(
    body_formats.SINGLE_PATH,
    post_event,
    {201: {"model": EventCreated}, 202: {"model": EventAccepted}},
    {JSON: _schema("PostedEvent"), cloudevents.STRUCTURED: _schema("CloudEvent")},
)
_add_post_route(
    body_formats.BATCH_PATH,
    post_batch,
    {201: {"model": BatchCreated}, 207: {"model": BatchVerdicts}},
    {
        JSON: _array_of("PostedEvent"),
        cloudevents.BATCH: _array_of("CloudEvent"),
        **{name: {"type": "string", "description": "one PostedEvent a line"} for name in body_formats.NDJSON},
    },
    preference.PARAMETER,
)
