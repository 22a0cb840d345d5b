"""GET of an export: a signed page as in the reference, or all events as a file with its manifests."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any
from uuid import UUID

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from app.api.access import caller_name
from app.api.archived import LeftOutEvents, reads_archive
from app.api.deadline import within_deadline
from app.api.filters import documented_filter, parameters_of, read_filter
from app.api.parameters import Reader, one_of, query_parameters, refuse_unknown, true_or_false, whole_number
from app.api.reads import reads_of
from app.api.routes import Answer, Router
from app.api.service import Service, foundation_of, service_of
from app.api.streaming import StreamedResponse
from app.archive.exporting import ArchiveOfExport
from app.db import Pool
from app.errors import AuditError, DatabaseFailed
from app.events.envelope import parse_timestamp
from app.events.explain import bad_fields
from app.events.log import Log
from app.export.bundle_read import BundleExport
from app.export.certificate import ExportKeyPair
from app.export.manifest import LeftOut
from app.export.parts import Export, ResumeToken
from app.export.select import PAGE_MAX, ExportQuery
from app.export.signed_page import SignedPage
from app.ingest.self_events import ACTOR, self_event, write_self_event
from app.query.filter import OFFSET_MAX
from app.verify.snapshot import snapshot

_MEDIA_TYPES = {"json": "application/json", "ndjson": "application/x-ndjson", "csv": "text/csv; charset=utf-8"}
BOOLEANS = frozenset(["1", "t", "T", "TRUE", "true", "True", "0", "f", "F", "FALSE", "false", "False"])
_FILES = ("ndjson", "csv")
LEFT_OUT = "DataStorage-Left-Out"
"""How many events an export has not looked at that are in the archive alone, and of which months they are."""
_ONLY_JSON = ("offset", "limit", "include_detached_signature")


def _time(name: str, text: str) -> datetime:
    """Checked as everywhere, and in the zone in which it was sent: the answer repeats it."""
    parse_timestamp(text, name)
    return datetime.fromisoformat(text)


_READERS: dict[str, Reader] = {
    "limit": whole_number(1, PAGE_MAX),
    "offset": whole_number(0, OFFSET_MAX),
    "archive": one_of("include", "exclude"),
    "redact_pii": true_or_false(BOOLEANS),
    "include_detached_signature": true_or_false(BOOLEANS),
}
_PAGE_READERS: dict[str, Reader] = {"start_time": _time, "end_time": _time}

PEM = "application/x-pem-file"
AFTER = {
    "name": "after",
    "in": "query",
    "description": "of ndjson and csv, beside the same filters: the next of the last manifest of an export that was cut",
    "schema": {"type": "string"},
}


class ExportMetadata(Answer):
    """What was exported, by whom, and the signature over all of the answer."""

    export_timestamp: datetime
    export_format: str
    query_filters: dict[str, Any]
    total_events: int
    signature: str
    signature_algorithm: str
    certificate_fingerprint: str
    exported_by: str
    left_out: Annotated[LeftOutEvents | None, Field(description="absent if there are none")] = None


class ExportedEvent(Answer):
    """An event of the page. The hashes of one that has none are empty."""

    event_id: UUID
    version: str
    event_type: str
    event_timestamp: datetime
    event_category: str
    event_action: str
    event_outcome: str
    correlation_id: str
    event_data: Any
    event_hash: str
    previous_event_hash: str
    hash_chain_valid: bool
    legal_hold: Annotated[bool, Field(description="covered by no hash of the event, only by the page's signature")]
    sealed: Annotated[
        bool | None,
        Field(description="false: others inserted the event by SQL, it is not in the log; absent in all others"),
    ] = None
    archive_id: Annotated[
        UUID | None, Field(description="the part of the archive that the event was read from; absent if from Postgres")
    ] = None


class HashChainVerification(Answer):
    """What was found on the page. What links to an event that is not on it is not broken.

    Unsealed events without a hash, or with one that cannot be computed here, are neither valid nor broken: `unverified_events`.
    """

    total_events_verified: int
    valid_chain_events: int
    broken_chain_events: int
    chain_integrity_percentage: float
    verification_timestamp: datetime
    tampered_event_ids: list[UUID]
    not_covered: Annotated[
        list[str], Field(description="members of the events that hash_chain_valid does not speak of")
    ]
    unverified_events: Annotated[int | None, Field(description="absent if there are none")] = None
    unsealed_events: Annotated[
        int | None, Field(description="events that are not in the log; absent if there are none")
    ] = None


class ExportedPage(Answer):
    """The answer to format=json. Signed is its JCS without signature and detached_signature."""

    events: list[ExportedEvent]
    export_metadata: ExportMetadata
    hash_chain_verification: HashChainVerification
    detached_signature: str | None = None


class ExportQueryFailed(AuditError):
    """The events could not be read; see the service's log."""

    slug = "export/query-failed"
    title = "Export Failed"


class ExportBuildFailed(AuditError):
    """The export could not be signed; see the service's log."""

    slug = "export/build-failed"
    title = "Export Failed"


router = Router(tags=["export"])


@router.get(
    "/api/v1/audit/export",
    response_class=Response,
    responses={
        200: {
            "model": ExportedPage,
            "description": "json: a signed page. ndjson, csv: events, and behind every part of them its manifest",
            "content": {"application/x-ndjson": {}, "text/csv": {}},
        }
    },
    openapi_extra={"parameters": lambda: [*documented_filter(ExportQuery), AFTER]},
)
async def export_events(request: Request) -> Response:
    """Take events out of the service: as a signed page, or all of them as a file that can be verified by itself."""
    service = service_of(request)
    query, token, now = parse_export(request.scope["query_string"], datetime.now(UTC))
    caller = caller_name(request)
    if query.format == "json":
        key_pair = await _key_pair(request)
    else:
        require_same_log(token, service.log)
    is_read = await reads_archive(request, query)

    async def begin(pool: Pool) -> tuple[bytes, AsyncGenerator[bytes], LeftOut | None]:
        export: Export | SignedPage
        archive = ArchiveOfExport(service.archive, service.engine, service.log, query, is_read)
        if query.format == "json":
            export = SignedPage(query, caller, service.log, key_pair, service.settings.hmac_key, archive)
        else:
            export = Export(query, caller, service.log, service.log_key, token, archive, now)
        chunks = _chunks(service, export, pool)
        return await anext(chunks), chunks, export.left_out

    try:
        beginning = reads_of(request)(begin)
        first, chunks, left_out = await (within_deadline(request, beginning) if query.format == "json" else beginning)
    except DatabaseFailed as error:
        raise ExportQueryFailed from error
    headers = {} if left_out is None else {LEFT_OUT: f"{left_out.events}; months={','.join(left_out.months)}"}
    return StreamedResponse(first, chunks, _MEDIA_TYPES[query.format], headers)


@router.get("/api/v1/audit/export/certificate", response_class=Response, responses={200: {"content": {PEM: {}}}})
async def get_export_certificate(request: Request) -> Response:
    """The certificate whose key signs format=json, as PEM."""
    return Response((await _key_pair(request)).pem, media_type=PEM)


def parse_export(query_string: bytes, now: datetime) -> tuple[ExportQuery, ResumeToken | None, datetime]:
    """The query in a query string, where a cut export continues, and what relative times are counted from: its beginning, or `now`.

    Empty values are ignored.

    Of ndjson and csv unknown parameters are refused: a misspelled filter would hand over everything, signed.
    """
    sent = query_parameters(query_string, {"format", "after"})
    after = sent.get("after", "")
    token = _token(after) if after else None
    now = now if token is None or token.now is None else token.now.astimezone(UTC)
    is_page = sent.get("format", "json") == "json"
    readers = _READERS | (_PAGE_READERS if is_page else {})
    query = read_filter(query_string, ExportQuery, now, readers, when_empty={"format": ""}, check=_check)
    if token is not None and is_page:
        raise bad_fields({"after": "belongs to ndjson and csv: repeat the parameters of the export that was cut"})
    return query, token, now


def _check(query_string: bytes, fields: dict[str, Any]) -> None:
    if fields.get("format") in _FILES:
        refuse_unknown(query_string, [*parameters_of(ExportQuery), "after"])
        if refused := [name for name in _ONLY_JSON if name in fields]:
            raise bad_fields(dict.fromkeys(refused, "belongs to format=json: the other formats have no pages"))


def _token(text: str) -> ResumeToken:
    try:
        return ResumeToken.parse(text)
    except ValueError as error:
        raise bad_fields({"after": str(error)}) from None


def require_same_log(token: ResumeToken | None, log: Log) -> None:
    """An export that began before the log was continued has no further parts: its manifests name the log that was open."""
    if token is not None and (token.log_id or 0) != log.id:
        raise bad_fields({"after": "of an export that began before the log was continued: begin a new one"})


async def _chunks(service: Service, export: Export | SignedPage, pool: Pool) -> AsyncGenerator[bytes]:
    """The answer in pieces. The event that records the export is written before the last piece leaves."""
    is_recorded = has_begun = False

    async def record() -> None:
        nonlocal is_recorded
        is_recorded = True
        await write_export_event(service, export)

    async with snapshot(pool, confirm=partial(service.standbys.confirm, pool)) as connection:
        try:
            async with aclosing(export.stream(connection, record)) as chunks:
                async for chunk in chunks:
                    has_begun = True
                    yield chunk
        finally:
            if (
                has_begun and export.event_count and not is_recorded
            ):  # the export was cut, but a part of it has left the service
                await record()


async def write_export_event(service: Service, export: Export | SignedPage | BundleExport) -> None:
    """Record who exported what, if the settings ask for it."""
    if not service.settings.audit_exports:
        return
    query, by = export.query, export.exported_by
    payload: dict[str, Any] = {
        "event_type": "datastorage.export.created",
        "export_id": str(export.export_id),
        "exported_by": by,
        "format": query.format,
        "query_filters": query.filters(),
        "event_count": export.event_count,
        "redacted": query.redact_pii,
    }
    known: dict[str, Any] = {"first_position": export.first_position, "last_position": export.last_position}
    known["log_id"] = service.log.id
    if isinstance(export, BundleExport):
        known["file_sha256"] = export.file_sha256
    payload |= {name: value for name, value in known.items() if value is not None}
    event = self_event(service.log_name, payload, about=export.export_id, actor_id=by or ACTOR)
    await write_self_event(service.writer, event, service.settings.single_deadline_ms)


async def _key_pair(request: Request) -> ExportKeyPair:
    try:
        return await foundation_of(request).export_key_store.key_pair()
    except (OSError, ValueError) as error:
        raise ExportBuildFailed(f"The key pair that signs exports cannot be read: {error}") from error
