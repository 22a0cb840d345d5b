"""The form that places or releases the legal hold of a remediation."""

from urllib.parse import quote

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from app.api.access import ANONYMOUS, authorize, caller_name
from app.api.holds import MissingReason, MissingReleaseReason
from app.api.service import service_of
from app.errors import BadRequest
from app.pages.form import read_form
from app.retention import holds
from app.retention.holds import HoldOrder, Selector

router = APIRouter(include_in_schema=False)


@router.post("/ui/holds")
async def order_hold(request: Request) -> Response:
    """Place a hold on a correlation, or release it, as POST and DELETE of /api/v1/audit/legal-hold do; then show the correlation."""
    service, form = service_of(request), await read_form(request)
    correlation_id, reason = form.get("correlation_id", ""), form.get("reason", "").strip()
    await authorize(request)
    order = HoldOrder(caller_name(request) or ANONYMOUS, reason)
    if form.get("order") == "place":
        if not reason:
            raise MissingReason
        await holds.place(service.settings, service.log, Selector(correlation_id=correlation_id), order)
    elif form.get("order") == "release":
        if not reason:
            raise MissingReleaseReason
        await holds.release_correlation(service.settings, service.log, correlation_id, order)
    else:
        raise BadRequest("The form orders neither to place a hold nor to release it.")
    return RedirectResponse(f"/ui/correlations/{quote(correlation_id, safe='')}#holds", 303)
