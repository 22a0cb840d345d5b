"""GET of an export: a signed page as the reference has it, or all events as a file that carries its manifest."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import datetime
from typing import Any
from uuid import UUID

from fastapi import APIRouter
from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from app.api.access import caller_of
from app.api.body import ClientDisconnected
from app.api.deadline import in_time
from app.api.parameters import documented, number, sent_parameters
from app.errors import AuditError, DatabaseAway, DatabaseFailed, Unavailable
from app.events.envelope import timestamp
from app.events.explain import bad_fields, explain, plain
from app.export.certificate import ExportKeyPair
from app.export.parts import Export, Token
from app.export.select import PAGE_MAX, ExportQuery
from app.export.signed_page import SignedPage
from app.ingest.self_events import self_event, write_self_event
from app.query.filter import OFFSET_MAX
from app.verify.snapshot import snapshot

STALL_SECONDS = 60.0
_MEDIA_TYPES = {"json": "application/json", "ndjson": "application/x-ndjson", "csv": "text/csv; charset=utf-8"}
_BOOLEANS = frozenset(["1", "t", "T", "TRUE", "true", "True", "0", "f", "F", "FALSE", "false", "False"])
_OF_JSON = ("offset", "limit", "include_detached_signature")

# Each export holds a connection of the pool, in one snapshot, for as long as its client takes.
_slots = asyncio.Semaphore(2)
_pages = asyncio.Semaphore(2)

PEM = "application/x-pem-file"
AFTER = {
    "name": "after",
    "in": "query",
    "description": "of ndjson and csv, beside the same filters: the next of the last manifest of an export that was cut",
    "schema": {"type": "string"},
}


class ExportMetadata(BaseModel):
    """What was exported, by whom, and the signature over all of the answer."""

    export_timestamp: datetime
    export_format: str
    query_filters: dict[str, Any]
    total_events: int
    signature: str
    signature_algorithm: str
    certificate_fingerprint: str
    exported_by: str


class ExportedEvent(BaseModel):
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
    legal_hold: bool


class HashChainVerification(BaseModel):
    """What was found on the page: events without a hash are not broken, nor is what links to an event that is not on it."""

    total_events_verified: int
    valid_chain_events: int
    broken_chain_events: int
    chain_integrity_percentage: float
    verification_timestamp: datetime
    tampered_event_ids: list[UUID]


class ExportedPage(BaseModel):
    """The answer to format=json. Signed is its JCS without signature and detached_signature."""

    events: list[ExportedEvent]
    export_metadata: ExportMetadata
    hash_chain_verification: HashChainVerification
    detached_signature: str | None = None


class QueryFailed(AuditError):
    """The events could not be read; the service's log says why."""

    slug = "export/query-failed"
    title = "Export Failed"


class BuildFailed(AuditError):
    """The export could not be signed; the service's log says why."""

    slug = "export/build-failed"
    title = "Export Failed"


router = APIRouter(tags=["export"])


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
    openapi_extra={"parameters": [*documented(ExportQuery), AFTER]},
)
async def export_events(request: Request) -> Response:
    """Take events out of the service: as a signed page, or all of them as a file that can be verified by itself."""
    if request.app.state.writer is None:
        raise DatabaseAway
    query, token = parse_export(request.scope["query_string"])
    export: Export | SignedPage
    if query.format == "json":
        hmac_key = request.app.state.settings.hmac_key
        export = SignedPage(query, caller_of(request), _log_name(request), await _key_pair(request), hmac_key)
    else:
        export = Export(query, caller_of(request), _log_name(request), request.app.state.signing_key, token)
    chunks = _chunks(request, export)
    try:
        first = await (in_time(request, anext(chunks)) if query.format == "json" else anext(chunks))
    except DatabaseFailed as error:
        raise QueryFailed from error
    return Stream(first, chunks, _MEDIA_TYPES[query.format])


@router.get("/api/v1/audit/export/certificate", response_class=Response, responses={200: {"content": {PEM: {}}}})
async def get_export_certificate(request: Request) -> Response:
    """The certificate whose key signs format=json, as PEM."""
    return Response((await _key_pair(request)).pem, media_type=PEM)


def parse_export(query_string: bytes) -> tuple[ExportQuery, Token | None]:
    """What is to be exported, and where it goes on. What is empty says nothing."""
    sent = {
        name: value
        for name, value in sent_parameters(query_string, {*ExportQuery.model_fields, "after"}).items()
        if value
    }
    token = _token(sent.pop("after")) if "after" in sent else None
    fields = {name: _read(name, value) for name, value in sent.items()}
    if fields.get("format", "json") != "json" and (odd := [name for name in _OF_JSON if name in sent]):
        raise bad_fields(dict.fromkeys(odd, "belongs to format=json: the other formats have no pages"))
    try:
        query = ExportQuery(**fields)
    except ValidationError as error:
        raise bad_fields(plain(explain(error, ""))) from None
    if token is not None and query.format == "json":
        raise bad_fields({"after": "belongs to ndjson and csv: repeat the parameters of the export that was cut"})
    return query, token


def _token(text: str) -> Token:
    try:
        return Token.parse(text)
    except ValueError as error:
        raise bad_fields({"after": str(error)}) from None


def _read(name: str, value: str) -> Any:
    if name in {"start_time", "end_time"}:
        return timestamp(value, name)
    if name == "limit":
        return number(name, value, 1, PAGE_MAX)
    if name == "offset":
        return number(name, value, 0, OFFSET_MAX)
    if name in {"redact_pii", "include_detached_signature"}:
        if value not in _BOOLEANS:
            raise bad_fields({name: f"expected true or false, got {value[:60]!r}"})
        return value == "true"
    return value


async def _chunks(request: Request, export: Export | SignedPage) -> AsyncGenerator[bytes]:
    """The answer piece by piece, and the event that tells of it."""
    slots = _pages if isinstance(export, SignedPage) else _slots
    if slots is _slots and slots.locked():
        raise Unavailable("Two exports are running already: try again when one of them has ended.")
    told = False

    async def tell() -> None:
        nonlocal told
        told = True
        await _tell(request, export)

    async with slots, snapshot(request.app.state.engine) as connection:
        try:
            async with aclosing(export.stream(connection, tell)) as chunks:
                async for chunk in chunks:
                    yield chunk
        finally:
            if export.events and not told:  # what left before the export was cut has left too
                await tell()


async def _tell(request: Request, export: Export | SignedPage) -> None:
    """Write the event that somebody took a copy, on an installation that records this."""
    state = request.app.state
    if not state.settings.audit_exports:
        return
    query, by = export.query, export.exported_by
    payload: dict[str, Any] = {
        "event_type": "datastorage.export.created",
        "export_id": str(export.export_id),
        "exported_by": by,
        "format": query.format,
        "query_filters": query.filters(),
        "event_count": export.events,
        "redacted": query.redact_pii,
    }
    positions = {"first_position": export.first_position, "last_position": export.last_position}
    payload |= {name: position for name, position in positions.items() if position is not None}
    event = self_event(_log_name(request), payload, about=export.export_id, **({"actor_id": by} if by else {}))
    await write_self_event(state.writer, event, state.settings.single_deadline_ms)


class Stream(StreamingResponse):
    """Sends what is made as fast as it is taken. What fails on the way breaks the answer off, so that no client takes it for whole."""

    def __init__(self, first: bytes, rest: AsyncGenerator[bytes], media_type: str) -> None:
        super().__init__(rest, media_type=media_type)
        self._first, self._rest = first, rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        async with aclosing(self._rest):
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await _send(send, self._first)
            async for chunk in self._rest:
                if await request.is_disconnected():
                    raise ClientDisconnected
                await _send(send, chunk)
        await send({"type": "http.response.body", "body": b""})


async def _send(send: Send, chunk: bytes) -> None:
    """A client that takes nothing any more must not hold its connection to Postgres."""
    async with asyncio.timeout(STALL_SECONDS):
        await send({"type": "http.response.body", "body": chunk, "more_body": True})


def _log_name(request: Request) -> str:
    return str(request.app.state.writer.store.log_name)


async def _key_pair(request: Request) -> ExportKeyPair:
    try:
        key_pair: ExportKeyPair = await request.app.state.export_signer.key_pair()
    except (OSError, ValueError) as error:
        raise BuildFailed(f"The key pair that signs exports cannot be read: {error}") from error
    return key_pair
