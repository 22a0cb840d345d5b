"""POST of OpenTelemetry's log records, as a collector or an SDK sends them by OTLP/HTTP: those that are audit events are stored.

Each record stands for itself: what cannot be stored is counted and named in the answer, and the others are stored. Sent again, in this
request or in another one, a record is recognised.
"""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from time import perf_counter
from uuid import UUID

from starlette.requests import Request
from starlette.responses import Response

from app import metrics
from app.api.access import actor_override, authorize, authorize_large_body, caller_name
from app.api.body import read_body
from app.api.otlp_answers import (
    JSON,
    LOGS_PATH,
    PROTOBUF,
    STATUSES,
    LogsStored,
    MediaTypeUnknown,
    Status,
    logs_stored,
    media_type_of,
)
from app.api.post import DIRECT, LARGE_BYTES, SLICE_SECONDS, one_large_body, release_memory_soon
from app.api.routes import Router
from app.api.service import foundation_of, recording_service
from app.errors import AuditError, BadRequest, BatchTooLarge, TooLarge
from app.events import canonical
from app.events.catalog import Catalog
from app.events.otlp import json_form
from app.events.otlp.log_record import LogRecord, Unreadable
from app.events.otlp.mapping import MEMBERS, PREFIX, mapped
from app.ingest.accept import Acceptance, Draft, check_item, log_record_ids
from app.ingest.parents import find_parent_dates
from app.ingest.submission import new_submission, used_twice
from app.settings import Settings

_NAMED_MAX, _REASON_CHARACTERS_MAX = 5, 400
"""How many of the records that are not stored an answer names, and how long it is about each."""
_BINARY = {"type": "string", "format": "binary"}


async def post_logs(request: Request) -> Response:
    """Record log records as events; 200 once they are committed, or safe on disk while Postgres is away.

    Those that are no audit events are counted and named in partialSuccess; if none is one, the answer is 400.
    """
    started = perf_counter()
    settings = foundation_of(request).settings
    await authorize_large_body(request)
    media_type = _media_type(request)
    # JSON is parsed at once, protobuf record by record.
    body, _ = await read_body(request, settings.batch_bytes_max if media_type == PROTOBUF else settings.body_bytes_max)
    reader, is_large = LogReader(foundation_of(request).catalog, settings), len(body) > LARGE_BYTES
    if is_large:
        async with one_large_body:
            await _read(body, media_type, reader)
    else:
        await _read(body, media_type, reader)
    del body
    try:
        await authorize(request)
        if reader.drafts:
            await _submit(request, reader)
    finally:
        metrics.WRITE_DURATION.labels("audit_events_batch").observe(perf_counter() - started)
        if is_large:
            release_memory_soon()
    return _answer(media_type, reader)


def _media_type(request: Request) -> str:
    """JSON or PROTOBUF. MediaTypeUnknown for any other, and for the latter where its packages are not installed."""
    sent = media_type_of(request)
    if sent == PROTOBUF:
        try:
            from app.events.otlp import protobuf  # noqa: F401, PLC0415 -- an extra
        except ImportError:
            raise MediaTypeUnknown(
                f"Content-Type: {PROTOBUF} needs packages that are not installed: pip install 'datastorage[otlp]' on the "
                f"service's side, or have the sender use {JSON} (in a collector: `encoding: json` of its otlp_http exporter)"
            ) from None
    elif sent != JSON:
        raise MediaTypeUnknown(f"Content-Type: expected {PROTOBUF} or {JSON}, got {sent[:60] or 'none'}")
    return sent


async def _read(body: bytes, media_type: str, reader: "LogReader") -> None:
    """Give each record of `body` to `reader`, in slices, so that other requests are answered meanwhile."""
    slice_end = perf_counter() + SLICE_SECONDS
    for place, record in _records(body, media_type, reader.records_max):
        reader.add(place, record)
        if perf_counter() > slice_end:
            await asyncio.sleep(0)
            slice_end = perf_counter() + SLICE_SECONDS


def _records(body: bytes, media_type: str, records_max: int) -> Iterator[tuple[str, LogRecord | Unreadable]]:
    if media_type == JSON:
        return json_form.records(body)
    from app.events.otlp import protobuf  # noqa: PLC0415 -- an extra

    return protobuf.records(body, records_max)


class LogReader:
    """Reads the records of one request: each becomes a draft, or is refused for itself."""

    def __init__(self, catalog: Catalog, settings: Settings) -> None:
        self.records_max = settings.batch_events_max
        self._catalog = catalog
        self._bytes_max, self._bytes = settings.batch_bytes_max, 0
        self.count = 0
        self.drafts: list[Draft] = []
        self.refused: dict[int, str] = {}
        """By index of the record: what is wrong with it, with its place."""
        self._digests: list[str] = []
        self._indexes: list[int] = []
        """Of the drafts, among all records."""
        self._names: list[dict[str, str]] = []
        self._by_id: dict[UUID, bytes | None] = {}

    def add(self, place: str, record: LogRecord | Unreadable) -> None:
        """One more record. BatchTooLarge or TooLarge if they are too many, or their events too large together."""
        index, self.count = self.count, self.count + 1
        if self.count > self.records_max:
            raise BatchTooLarge(
                f"the request has more than {self.records_max} log records: send them in several requests (in a collector: "
                "`max_size` of the exporter's `sending_queue.batch`)"
            )
        if isinstance(record, Unreadable):
            self.refused[index] = f"{place}: {record.detail}"
            return
        names: dict[str, str] = {}
        try:
            draft = self._draft(record, place, names)
        except AuditError as error:
            self.refused[index] = _reason(error, place, names)
            return
        self.drafts.append(draft)
        self._digests.append(record.digest())
        self._indexes.append(index)
        self._names.append(names)
        # The attributes of one resource become a part of each of its events.
        self._bytes += len(draft.payload)
        if self._bytes > self._bytes_max:
            raise TooLarge(
                f"the payloads of the request's events have more than {self._bytes_max} bytes together: send it in several requests"
            )

    def _draft(self, record: LogRecord, place: str, names: dict[str, str]) -> Draft:
        """The draft of one record; `names` gets what its members come from."""
        item, sources, trace = mapped(record, self._catalog)
        names |= sources
        document = canonical.parse(canonical.canonical(item))
        draft = check_item(self._catalog, document.value, place, plain=document.plain, depth=document.depth)
        if draft.event_id is not None and self._by_id.setdefault(draft.event_id, draft.digest) != draft.digest:
            raise used_twice(draft, draft.event_id)
        draft.trace = trace
        draft.posted["event_data"] = {}  # the draft has its canonical form
        return draft

    def ids(self, caller: str, now: datetime) -> tuple[list[UUID], dict[UUID, tuple[UUID, ...]]]:
        """Those of the drafts, and by id those of other sends without a time."""
        return log_record_ids(zip(self.drafts, self._digests, strict=True), caller, now)

    def refuse(self, number: int, error: AuditError) -> None:
        """Note why the draft with this number is not written."""
        self.refused[self._indexes[number]] = _reason(error, self.drafts[number].pointer, self._names[number])


def _reason(error: AuditError, place: str, names: dict[str, str]) -> str:
    """What is wrong with the record at `place`, by the names of attributes where it has them."""
    fields = error.extra.get("field_errors")
    if not isinstance(fields, dict):
        return f"{place}: {error.detail.removeprefix(f'{place}/')}"
    faults = (f"{_name_of(pointer.removeprefix(place), names)}: {message}" for pointer, message in fields.items())
    return f"{place}: " + "; ".join(faults)


def _name_of(pointer: str, names: dict[str, str]) -> str:
    member, slash, rest = pointer.removeprefix("/").partition("/")
    return names.get(member, PREFIX + member if member in MEMBERS else member) + slash + rest


async def _submit(request: Request, reader: LogReader) -> None:
    """Have the writer store the drafts, but for those that it refuses, which `reader` then knows."""
    clock, drafts = asyncio.get_running_loop().time, reader.drafts
    deadline = clock() + foundation_of(request).settings.batch_deadline_ms / 1000
    service = await recording_service(request, deadline, drafts)
    parents = await find_parent_dates(service.engine, service.writer, drafts, (clock() + deadline) / 2)
    now = datetime.now(UTC)
    own_ids, other_ids = reader.ids(caller_name(request), now)
    acceptance = Acceptance(now, parents, service.log_name, actor_override(request), other_ids=other_ids)
    submission = await new_submission(drafts, own_ids, acceptance, is_lenient=True)
    await service.writer.submit(submission, deadline)
    rejections = submission.rejections or {}
    for number, event_id in enumerate(own_ids):
        if event_id in rejections:
            reader.refuse(number, rejections[event_id])


def _answer(media_type: str, reader: LogReader) -> Response:
    refused = reader.refused
    metrics.LOG_RECORDS_REFUSED.inc(len(refused))
    if not refused:
        return logs_stored(media_type)
    first = [refused[index][:_REASON_CHARACTERS_MAX] for index in sorted(refused)[:_NAMED_MAX]]
    more = f"; and {len(refused) - len(first)} more" if len(refused) > len(first) else ""
    message = f"{len(refused)} of {reader.count} log records are not stored: {'; '.join(first)}{more}"
    if len(refused) == reader.count:  # a sender that reads no partialSuccess has to notice
        raise BadRequest(message)
    return logs_stored(media_type, len(refused), message)


router = Router(tags=["events"])
router.add_api_route(
    LOGS_PATH,
    post_logs,
    methods=["POST"],
    response_class=Response,
    responses={
        200: {"model": LogsStored, "content": {PROTOBUF: {"schema": _BINARY}}},
        # By status, so that the default is that of every route: generators of clients make one type of error of it then.
        **{status: {"model": Status, "content": {PROTOBUF: {"schema": _BINARY}}} for status in STATUSES},
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "description": "an ExportLogsServiceRequest of OpenTelemetry",
            "content": {JSON: {"schema": {"type": "object"}}, PROTOBUF: {"schema": _BINARY}},
        }
    },
)
DIRECT["POST", LOGS_PATH] = post_logs
