"""POST verify-chain: the stored chain of one correlation, verified by computing its hashes again."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response

from app.api.access import authorize, authorize_large_body, caller_name, client_address
from app.api.body import json_response, read_json_body
from app.api.checked_body import request_body_of
from app.api.reading import Arrivals
from app.api.routes import Answer, Router
from app.api.service import foundation_of, service_of
from app.archive.chain import verify_whole
from app.archive.reading import ARCHIVE_SHARE
from app.errors import AuditError, BadRequest, DatabaseFailed
from app.events.canonical import kind_of, parse
from app.events.explain import bad_fields
from app.events.reference import trimmed_rfc3339
from app.verify.correlation import CorrelationResult
from app.verify.row import Defect, Defects

_CORRELATION_BYTES_MAX = 256


class ChainToVerify(BaseModel):
    """Which chain to verify. Other members are ignored."""

    correlation_id: Annotated[str, Field(min_length=1, description="at most 256 bytes")]


class TamperedEvent(Answer):
    """One thing that is wrong with one event. Both hashes are empty when it is not its own hash that is wrong."""

    event_id: UUID
    event_timestamp: datetime
    expected_hash: str
    actual_hash: str
    previous_hash: str
    message: str


class ChainVerified(BaseModel):
    """What was found. What is absent is left out; nothing is null.

    Events that others wrote by SQL (unsealed) are verified by the rules they were hashed by. Where the service has a chain,
    they do not make it invalid, and what is wrong with them stands apart, in `unsealed_defects`. Where it has none, they
    are all there is, and count as a chain of their own.
    """

    correlation_id: str
    is_valid: bool
    total_events: Annotated[int, Field(description="events that have a hash, unsealed ones too")]
    verified_events: Annotated[int, Field(description="those whose own hash is right")]
    skipped_null_hash: Annotated[int, Field(description="events without a hash")] = 0
    unsealed_events: Annotated[int, Field(description="of total_events, those that others wrote by SQL")] = 0
    purged_events: Annotated[int, Field(description="events of the chain that retention removed, as the log says")] = 0
    archived_events: Annotated[
        int,
        Field(
            description="events of the chain that are in the archive only, as the log says; where the service reads the archive, they are among total_events"
        ),
    ] = 0
    erased_events: Annotated[
        int, Field(description="of verified_events, those whose personal data was erased, as the log says")
    ] = 0
    tampered_events: Annotated[list[TamperedEvent], Field(description="the first 10000 are listed")] = []
    unsealed_defects: Annotated[list[TamperedEvent], Field(description="the first 10000 are listed")] = []
    verification_time: datetime
    message: str


class VerificationFailed(AuditError):
    """The chain could not be read; see the service's log."""

    slug = "verify-chain/internal-error"
    title = "Verification Failed"


class MissingCorrelationId(BadRequest):
    """correlation_id: expected the id of a correlation, got an empty string."""

    slug = "missing-correlation-id"
    title = "Missing Required Field"


class InvalidCorrelationId(BadRequest):
    """The correlation_id is too long."""

    slug = "invalid-correlation-id"
    title = "Invalid Correlation ID"


async def post_verify_chain(request: Request) -> Response:
    """Verify the chain of one correlation: edited, removed, inserted and truncated events show. 200 whatever is found."""
    await authorize_large_body(request)
    body = await read_json_body(request, foundation_of(request).settings.body_bytes_max)
    correlation_id = _correlation_id(parse(body).value)
    await authorize(request)
    _check_length(correlation_id)
    caller, slots = caller_name(request) or client_address(request.scope), foundation_of(request).read_slots
    async with slots.slot(caller, Arrivals(request.receive), is_long=True):
        report = await verify_correlation(request, correlation_id)
    if report.unsealed.unknown and not report.is_sealed:
        raise VerificationFailed(report.unsealed.unknown)
    return json_response(chain_verified(correlation_id, report))


async def verify_correlation(request: Request, correlation_id: str) -> CorrelationResult:
    """Verify the chain of one correlation now, with its events that are in the archive alone, if this service can read that."""
    service = service_of(request)
    seconds = service.settings.query_deadline_ms / 1000 * ARCHIVE_SHARE
    try:
        return await verify_whole(
            *(service.engine, service.archive, service.log, correlation_id),
            hmac_key=service.settings.hmac_key,
            seconds=seconds,
        )
    except DatabaseFailed as error:
        raise VerificationFailed from error


router = Router(tags=["verification"])
router.add_api_route(
    "/api/v1/audit/verify-chain",
    post_verify_chain,
    name="verify_chain",
    methods=["POST"],
    response_class=Response,
    responses={200: {"model": ChainVerified}},
    openapi_extra=request_body_of(ChainToVerify),
)


def _correlation_id(body: Any) -> str:
    if not isinstance(body, dict):
        raise bad_fields({"": f"expected an object with a correlation_id, got {kind_of(body)}"})
    if "correlation_id" not in body:
        raise bad_fields({"/correlation_id": "required, but missing"})
    correlation_id = body["correlation_id"]
    if not isinstance(correlation_id, str):
        raise bad_fields({"/correlation_id": f"expected a string, got {kind_of(correlation_id)}"})
    return correlation_id


def _check_length(correlation_id: str) -> None:
    if not correlation_id:
        raise MissingCorrelationId
    size = len(correlation_id.encode())
    if size > _CORRELATION_BYTES_MAX:
        raise InvalidCorrelationId(f"correlation_id: expected at most {_CORRELATION_BYTES_MAX} bytes, got {size}")


def chain_verified(correlation_id: str, report: CorrelationResult) -> dict[str, Any]:
    """The members of ChainVerified, in the contract's order."""
    unsealed = report.unsealed.defects if report.is_sealed else Defects()
    tampered = report.defects
    left_out_when_empty = {
        "skipped_null_hash": report.unsealed.unhashed,
        "unsealed_events": report.unsealed.total,
        "purged_events": report.purged_total,
        "archived_events": report.archived_total + report.archived_read,
        "erased_events": report.sealed.erased_total,
        "tampered_events": _events(tampered),
        "unsealed_defects": _events(unsealed),
    }
    return {
        "correlation_id": correlation_id,
        "is_valid": report.is_valid,
        "total_events": report.sealed.total + report.unsealed.total,
        "verified_events": report.sealed.verified + report.unsealed.verified,
        **{name: value for name, value in left_out_when_empty.items() if value},
        "verification_time": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%fZ}",
        "message": "; ".join(_sentences(report, tampered, unsealed)),
    }


def _events(defects: Defects) -> list[dict[str, str]]:
    return [_event(defect) for defect in defects.listed]


def _event(defect: Defect) -> dict[str, str]:
    assert defect.event_timestamp is not None
    return {
        "event_id": str(defect.event_id),
        "event_timestamp": trimmed_rfc3339(defect.event_timestamp),
        "expected_hash": defect.expected_hash,
        "actual_hash": defect.actual_hash,
        "previous_hash": defect.previous_hash,
        "message": defect.message,
    }


def _sentences(report: CorrelationResult, tampered: Defects, unsealed: Defects) -> list[str]:
    """The sentences of the message: the verdict first."""
    total = report.sealed.total + report.unsealed.total
    sentences = []
    if not report.is_valid:
        sentences.append(f"the chain is broken: {tampered.count} defect(s) of single events")
    elif total or report.gone_total:
        sentences.append(f"the chain is whole: {report.sealed.verified + report.unsealed.verified} event(s) verified")
    else:
        sentences.append("no hashed events were found for this correlation")
    sentences += _gone(report)
    if report.sealed.erased_total:
        sentences.append(f"{report.sealed.erased_total} event(s) were erased")
    if report.head_defect is not None:
        sentences.append(report.head_defect.message)
    if unsealed.count:
        sentences.append(f"{unsealed.count} defect(s) of unsealed events, which are no part of the chain")
    if report.unsealed.unhashed:
        sentences.append(f"{report.unsealed.unhashed} event(s) without a hash were left out")
    return sentences


def _gone(report: CorrelationResult) -> Iterator[str]:
    """What Postgres has no longer, and where that is."""
    if report.purged_total:
        yield f"{report.purged_total} event(s) were purged"
    if report.archived_read:
        yield f"{report.archived_read} event(s) of these were read in the archive, which alone has them"
    if report.archived_total:
        yield f"{report.archived_total} event(s) are in the archive only"
    if report.archive_unread and report.archived_total:
        yield f"the archive was not read: {report.archive_unread}"
