"""GET of findings, and POST of their acknowledgement: what verification found, until somebody who may place holds has seen it."""

from datetime import datetime
from typing import Annotated, NotRequired
from uuid import UUID

from fastapi import Path
from pydantic import ConfigDict, Field, with_config
from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import TypedDict

from app.api.access import ANONYMOUS, authorize, caller_name
from app.api.body import json_response
from app.api.checked_body import read_checked_body, request_body_of
from app.api.deadline import within_deadline
from app.api.parameters import query_parameters
from app.api.routes import Router
from app.api.service import service_of
from app.events.explain import bad_fields
from app.findings.acknowledge import acknowledge
from app.findings.register import findings_of

router = Router(tags=["findings"])
_PATH = "/api/v1/audit/findings"


class ListedFinding(TypedDict):
    """What was found at once, of one kind: positions in the log `log_id`, and subjects that have none. The last three are those of an
    acknowledged one.
    """

    finding_id: UUID
    kind: str
    alarm: NotRequired[str]
    detail: str
    defect_count: int
    log_id: int
    positions: str
    subjects: NotRequired[list[str]]
    correlation_ids: NotRequired[list[str]]
    recorded_at: datetime
    log_index: int
    acknowledged_by: NotRequired[str]
    reason: NotRequired[str]
    acknowledged_at: NotRequired[datetime]


class Findings(TypedDict):
    """Newest first."""

    findings: list[ListedFinding]
    total: int


@with_config(ConfigDict(strict=True, extra="ignore"))
class FindingToAcknowledge(TypedDict):
    """What the finding was, and what was done about it."""

    reason: Annotated[str, Field(min_length=1, max_length=10_000, json_schema_extra={"pattern": r"\S"})]


@router.get(
    _PATH,
    response_class=Response,
    responses={200: {"model": Findings}},
    openapi_extra={
        "parameters": [
            {
                "name": "include",
                "in": "query",
                "description": "acknowledged: findings that somebody has acknowledged too",
                "schema": {"type": "string", "enum": ["acknowledged"]},
            }
        ]
    },
)
async def list_findings(request: Request) -> Response:
    """Every finding that nobody has acknowledged, newest first, as the log has it."""
    include = query_parameters(request.scope["query_string"], {"include"}).get("include")
    if include not in {None, "", "acknowledged"}:
        raise bad_fields({"include": f"expected acknowledged, got {include[:60]!r}"})
    service = service_of(request)
    findings = await within_deadline(request, findings_of(service.engine, service.log))
    shown = [one.listed() for one in reversed(findings) if include or one.acknowledgement is None]
    return json_response({"findings": shown, "total": len(shown)})


@router.post(
    _PATH + "/{finding_id}/acknowledgement",
    response_class=Response,
    responses={200: {"model": ListedFinding}},
    openapi_extra=request_body_of(FindingToAcknowledge),
)
async def acknowledge_finding(
    request: Request, finding_id: Annotated[str, Path(json_schema_extra={"format": "uuid"})]
) -> Response:
    """Say what a finding was: it stands no longer. Who says so, and why, is an event of the log."""
    service = service_of(request)
    body: FindingToAcknowledge = await read_checked_body(request, FindingToAcknowledge)
    reason = body["reason"]
    try:
        parsed = UUID(finding_id)
    except ValueError:
        raise bad_fields({"finding_id": f"expected a UUID, got {finding_id[:60]!r}"}) from None
    if not reason.strip():
        raise bad_fields({"/reason": "expected what the finding was and what was done about it, got only white space"})
    await authorize(request)
    by = caller_name(request) or ANONYMOUS
    ended = await acknowledge(service.settings, service.log, parsed, by, reason)
    return json_response(ended.listed())
