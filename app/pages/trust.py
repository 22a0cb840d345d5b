"""The page of what the log's trust rests on, and the form that acknowledges a finding."""

from typing import Any
from uuid import UUID

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from app.api.access import ANONYMOUS, authorize, caller_name, may
from app.api.checked_body import checked
from app.api.findings import FindingToAcknowledge
from app.api.service import service_of
from app.api.trust import trust
from app.errors import BadRequest
from app.events.explain import bad_fields
from app.findings.acknowledge import acknowledge
from app.pages.form import read_form
from app.pages.rendering import page

router = APIRouter(include_in_schema=False)
_API = "/api/v1/audit/trust"


@router.get("/ui/trust")
async def trust_page(request: Request) -> Response:
    """What GET /api/v1/audit/trust answers, in words."""
    found: dict[str, Any] = await trust(request)
    return page(request, "trust.html", title="Trust", twin=_API, may_hold=await may(request, "update"), trust=found)


@router.post("/ui/findings/{finding_id}/acknowledgement")
async def acknowledge_finding(request: Request, finding_id: str) -> Response:
    """Say what a finding was, as POST /api/v1/audit/findings/{finding_id}/acknowledgement does."""
    service, form = service_of(request), await read_form(request)
    await authorize(request)
    if not (reason := form.get("reason", "").strip()):
        raise BadRequest("Say what the finding was and what was done about it.")
    try:
        parsed = UUID(finding_id)
    except ValueError:
        raise bad_fields({"finding_id": f"expected a UUID, got {finding_id[:60]!r}"}) from None
    checked({"reason": reason}, FindingToAcknowledge)
    await acknowledge(service.settings, service.log, parsed, caller_name(request) or ANONYMOUS, reason)
    return RedirectResponse("/ui/trust#findings", 303)
