"""POST of an import: a portion of events from elsewhere, which keep their own times, however old these are.

They go through the same checks and the same writer as all others. Refused are those whose retention is over already, since the
next retention run would purge them, and months that were purged do not come back.
"""

import asyncio
from datetime import UTC, datetime
from time import perf_counter
from uuid import UUID, uuid4

from starlette.requests import Request
from starlette.responses import Response

from app import metrics
from app.api.access import ANONYMOUS, authorize, authorize_large_body, caller_name
from app.api.body import JSON, read_json_body
from app.api.body_formats import BodyFormat
from app.api.post import BatchReader, BatchVerdicts, Receipt, parse_batch, receipt_of, verdicts
from app.api.routes import Router
from app.api.service import foundation_of, service_of
from app.events import canonical, ids
from app.events.envelope import parse_uuid
from app.ingest import import_rules
from app.ingest.accept import Acceptance, Draft, imported_ids
from app.ingest.parents import find_parent_dates
from app.ingest.self_events import self_event
from app.ingest.submission import new_submission

PATH = "/api/v1/audit/import"
_IMPORT_ID = {
    "name": "Import-Id",
    "in": "header",
    "description": "a UUID, the same for all portions of one import; a new one if absent",
    "schema": {"type": "string", "format": "uuid"},
}
router = Router(tags=["import"])


@router.post(
    PATH,
    status_code=207,
    response_class=Response,
    responses={207: {"model": BatchVerdicts}},
    openapi_extra={
        "parameters": [_IMPORT_ID],
        "requestBody": {
            "required": True,
            "content": {
                JSON: {
                    "schema": {"type": "array", "items": {"$ref": "#/components/schemas/PostedEvent"}, "minItems": 1}
                }
            },
        },
    },
)
async def post_import(request: Request) -> Response:
    """Store a portion of an import; 207 with a verdict for each event. Events that are stored already are recognised."""
    started = perf_counter()
    foundation = foundation_of(request)
    settings = foundation.settings
    import_id = _import_id(request)
    await authorize_large_body(request)
    body = await read_json_body(request, settings.body_bytes_max)
    reader = BatchReader(BodyFormat(foundation.catalog), settings.batch_events_max, is_lenient=True)
    _, digest = await parse_batch(body, reader, request.url.path)
    await authorize(request)
    try:
        return verdicts(reader, await _submit(request, reader, import_id, digest))
    finally:
        metrics.WRITE_DURATION.labels("audit_events_batch").observe(perf_counter() - started)


def _import_id(request: Request) -> UUID:
    sent = request.headers.get("import-id")
    return uuid4() if sent is None else parse_uuid(sent, "Import-Id")


async def _submit(request: Request, reader: BatchReader, import_id: UUID, body_digest: str) -> Receipt | None:
    """Have the writer store what can be stored, with the self event that records it, in one transaction."""
    service, now = service_of(request), datetime.now(UTC)
    by = caller_name(request) or ANONYMOUS
    rules = await import_rules.read(service.engine, service.settings, now)
    reader.refuse(rules.refusal)
    drafts = reader.accepted
    if not drafts:
        return None
    deadline = asyncio.get_running_loop().time() + service.settings.batch_deadline_ms / 1000
    # In a history a parent may be missing, or be part of the same portion.
    parents = {draft.parent_id: draft.parent_date for draft in drafts if draft.parent_id is not None}
    dates = {draft.event_id: _time(draft).date() for draft in drafts if draft.event_id in parents}
    parents |= {event_id: date for event_id, date in dates.items() if event_id is not None}
    parents |= await find_parent_dates(service.engine, service.writer, drafts, deadline)
    metadata = canonical.canonical({"imported": {"at": now.isoformat().replace("+00:00", "Z"), "by": by}})
    own_ids = imported_ids(reader.items)
    # As among its other ids it is looked up whatever its date and correlation: somebody may have chosen it for another event.
    other_ids = {one: (one,) for one in own_ids}
    acceptance = Acceptance(now, parents, service.log_name, metadata=metadata, other_ids=other_ids)
    submission = await new_submission(drafts, own_ids, acceptance, is_lenient=True)
    times = sorted(map(_time, drafts))
    payload = {
        "event_type": "datastorage.import.stored",
        "import_id": str(import_id),
        "imported_by": by,
        "event_count": len(drafts),
        "first_event_timestamp": times[0].isoformat(),
        "last_event_timestamp": times[-1].isoformat(),
    }
    # A portion that is sent again has the same event about it.
    event_id = ids.derived_event_id(ids.EPOCH, by, ("import", body_digest), len(drafts))
    event = self_event(service.log_name, payload, about=import_id, actor_id=by, event_id=event_id)
    submission.events = [*submission.events, event]
    return receipt_of(submission, own_ids, await service.writer.submit(submission, deadline))


def _time(draft: Draft) -> datetime:
    assert draft.timestamp is not None, "events without a time are refused"
    return draft.timestamp
