"""Reconstruction of a RemediationRequest: POST as in the reference, and GET, which does not require the verb create."""

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response

from app.api.access import authorize
from app.api.body import json_response
from app.api.content_encoding import encoding_of
from app.api.deadline import within_deadline
from app.api.parameters import CORRELATION_ID, path_correlation_id
from app.api.reads import reads_of
from app.errors import DatabaseFailed
from app.query.reconstruct import Unreadable, rebuild

router = APIRouter(tags=["remediation"])


class Validation(BaseModel):
    """How much of the RemediationRequest is known, of nine parts, and what is not."""

    is_valid: bool
    completeness: Annotated[int, Field(description="percent")]
    errors: list[str]
    warnings: list[str]


class Reconstructed(BaseModel):
    """A RemediationRequest as its events tell it. `cluster_id` is left out when unknown."""

    remediation_request_yaml: str
    validation: Validation
    reconstructed_at: datetime
    correlation_id: str
    cluster_id: str | None = None
    sealed: Annotated[
        bool | None,
        Field(description="false: of some events that others inserted by SQL; absent if all are in the log"),
    ] = None


async def _response(request: Request, correlation_id: str) -> Response:
    correlation_id = path_correlation_id(request, correlation_id)
    now = datetime.now(UTC)
    try:
        built = await within_deadline(request, reads_of(request)(lambda pool: rebuild(pool, correlation_id, now)))
    except DatabaseFailed as error:
        raise Unreadable from (error.__cause__ or error)
    answer: dict[str, Any] = {
        "remediation_request_yaml": built.yaml,
        "validation": {
            "is_valid": not built.errors,
            "completeness": built.completeness,
            "errors": built.errors,
            "warnings": built.warnings,
        },
        "reconstructed_at": f"{now:%Y-%m-%dT%H:%M:%SZ}",
        "correlation_id": correlation_id,
    }
    if built.cluster_id:
        answer["cluster_id"] = built.cluster_id
    if not built.is_sealed:
        answer["sealed"] = False
    return json_response(answer)


_PATH = f"/api/v1/audit/remediation-requests/{CORRELATION_ID}/reconstruct"


@router.post(_PATH, response_class=Response, responses={200: {"model": Reconstructed}})
async def reconstruct_remediation(request: Request, correlation_id: str) -> Response:
    """Rebuild a lost RemediationRequest from its events. Nothing is written; the body is not read."""
    encoding_of(request.scope["headers"])  # an unknown one is refused here too
    await authorize(request)
    return await _response(request, correlation_id)


@router.get(_PATH, response_class=Response, responses={200: {"model": Reconstructed}})
async def get_reconstruction(request: Request, correlation_id: str) -> Response:
    """The same answer as to POST."""
    return await _response(request, correlation_id)
