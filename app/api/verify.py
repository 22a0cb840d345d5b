"""POST verify-chain: what is stored of one correlation, recomputed."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import orjson
from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from app.api.body import read_json_body
from app.errors import AuditError, BadRequest, DatabaseAway, DatabaseFailed
from app.events.canonical import kind_of, parse
from app.events.explain import bad_fields
from app.integrity.chain import Finding
from app.integrity.reference import moment
from app.integrity.verify import Report, snapshot, verify_correlation

router = APIRouter(tags=["verification"])

_BODY_BYTES_MAX = 64 * 1024
_CORRELATION_BYTES_MAX = 256


class VerifyChain(BaseModel):
    """Which chain to verify."""

    correlation_id: str


class TamperedEvent(BaseModel):
    """One thing that is wrong with one event. Both hashes are empty when it is its place that is wrong."""

    event_id: UUID
    event_timestamp: datetime
    expected_hash: str
    actual_hash: str
    previous_hash: str
    message: str


class ChainVerified(BaseModel):
    """What was found. What is absent is left out; nothing is null."""

    correlation_id: str
    is_valid: bool
    total_events: int
    verified_events: int
    skipped_null_hash: int | None = None
    unsealed_events: int | None = None
    tampered_events: list[TamperedEvent] | None = None
    unsealed_findings: list[TamperedEvent] | None = None
    verification_time: datetime
    message: str


class VerificationFailed(AuditError):
    """The chain could not be read; the service's log says why."""

    slug = "verify-chain/internal-error"
    title = "Verification Failed"


@router.post(
    "/api/v1/audit/verify-chain",
    response_class=Response,
    responses={200: {"model": ChainVerified}},
    openapi_extra={
        "requestBody": {"required": True, "content": {"application/json": {"schema": VerifyChain.model_json_schema()}}}
    },
)
async def verify_chain(request: Request) -> Response:
    """Verify the chain of one correlation: edited, removed, inserted and truncated events show."""
    correlation_id = _correlation_id(parse(await read_json_body(request, _BODY_BYTES_MAX)).value)
    state = request.app.state
    if state.writer is None:
        raise DatabaseAway
    try:
        async with snapshot(state.engine) as connection:
            report = await verify_correlation(connection, correlation_id, state.writer.store.log_name)
    except DatabaseFailed as error:
        raise VerificationFailed from error
    return Response(orjson.dumps(_answer(correlation_id, report)), media_type="application/json")


def _correlation_id(body: Any) -> str:
    if not isinstance(body, dict):
        raise bad_fields({"": f"expected an object with a correlation_id, got {kind_of(body)}"})
    correlation_id = body.get("correlation_id")
    if not isinstance(correlation_id, str):
        came = kind_of(correlation_id) if "correlation_id" in body else "nothing"
        raise bad_fields({"/correlation_id": f"expected a string, got {came}"})
    if not correlation_id:
        raise _MissingCorrelationId("correlation_id: expected the id of a correlation, got an empty string")
    if len(correlation_id.encode()) > _CORRELATION_BYTES_MAX:
        raise BadRequest(
            f"correlation_id: expected at most {_CORRELATION_BYTES_MAX} bytes, got {len(correlation_id.encode())}",
            slug="invalid-correlation-id",
        )
    return correlation_id


class _MissingCorrelationId(BadRequest):
    """The correlation_id is empty."""

    slug = "missing-correlation-id"
    title = "Missing Required Field"


def _answer(correlation_id: str, report: Report) -> dict[str, Any]:
    total = report.sealed.length + report.unsealed
    tampered = report.sealed.findings + ([] if report.is_sealed else report.unsealed_findings)
    apart = report.unsealed_findings if report.is_sealed else []
    optional = {
        "skipped_null_hash": report.unhashed,
        "unsealed_events": report.unsealed,
        "tampered_events": [_tampered(finding) for finding in tampered],
        "unsealed_findings": [_tampered(finding) for finding in apart],
    }
    return {
        "correlation_id": correlation_id,
        "is_valid": report.is_valid,
        "total_events": total,
        "verified_events": report.sealed.verified + report.unsealed_verified,
        **{name: value for name, value in optional.items() if value},
        "verification_time": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        "message": _message(report, total),
    }


def _tampered(finding: Finding) -> dict[str, str]:
    return {
        "event_id": str(finding.event_id),
        "event_timestamp": moment(finding.event_timestamp),
        "expected_hash": finding.expected_hash,
        "actual_hash": finding.actual_hash,
        "previous_hash": finding.previous_hash,
        "message": finding.message,
    }


def _message(report: Report, total: int) -> str:
    if report.head_finding:
        verdict = f"The chain is broken: {report.head_finding}"
    elif not report.is_valid:
        verdict = "The chain is broken: see tampered_events"
    elif not total:
        verdict = "No hashed events were found for this correlation"
    else:
        verdict = f"All {total} events are as they were stored"
        if report.unsealed_findings:
            verdict = f"The chain holds; of {report.unsealed} unsealed events some do not: see unsealed_findings"
    return f"{verdict}; {report.unhashed} events without hash were left out" if report.unhashed else verdict
