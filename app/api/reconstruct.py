"""Reconstruction of a RemediationRequest: POST as in the reference, and GET, which does not require the verb create."""

from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from app.api.access import authorize
from app.api.archived import find_report
from app.api.body import json_response
from app.api.content_encoding import encoding_of
from app.api.deadline import within_deadline
from app.api.parameters import CORRELATION_ID, WITHOUT_ARCHIVE, excludes_archive, path_correlation_id
from app.api.routes import Answer, Router
from app.errors import DatabaseFailed
from app.query.reconstruct import EVENT_TYPES, Unreadable, rebuild

router = Router(tags=["remediation"])


class Validation(Answer):
    """How much of the RemediationRequest is known, of nine parts, and what is not."""

    is_valid: bool
    completeness: Annotated[int, Field(description="percent")]
    errors: list[str]
    warnings: list[str]


class Reconstructed(Answer):
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
    with_archive = not excludes_archive(request)
    now = datetime.now(UTC)
    try:
        read = find_report(
            *(
                request,
                correlation_id,
                EVENT_TYPES,
                lambda pool, archived: rebuild(pool, correlation_id, now, archived),
            ),
            with_archive=with_archive,
        )
        built = await within_deadline(request, read)
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


_EXTRA = {"parameters": [WITHOUT_ARCHIVE]}
_PATH = f"/api/v1/audit/remediation-requests/{CORRELATION_ID}/reconstruct"


@router.post(_PATH, response_class=Response, responses={200: {"model": Reconstructed}}, openapi_extra=_EXTRA)
async def reconstruct_remediation(request: Request, correlation_id: str) -> Response:
    """Rebuild a lost RemediationRequest from its events. Nothing is written; the body is not read."""
    encoding_of(request.scope["headers"])  # an unknown one is refused here too
    await authorize(request)
    return await _response(request, correlation_id)


@router.get(_PATH, response_class=Response, responses={200: {"model": Reconstructed}}, openapi_extra=_EXTRA)
async def get_reconstruction(request: Request, correlation_id: str) -> Response:
    """The same answer as to POST."""
    return await _response(request, correlation_id)
