"""The forms that place and release legal holds."""

from urllib.parse import quote
from uuid import UUID

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from app.api.access import ANONYMOUS, authorize, caller_name
from app.api.checked_body import checked
from app.api.holds import HoldToPlace, MissingReason, MissingReleaseReason
from app.api.service import service_of
from app.errors import BadRequest
from app.events.explain import bad_fields
from app.pages.form import read_form
from app.retention import holds
from app.retention.holds import HoldOrder, Selector

router = APIRouter(include_in_schema=False)


@router.post("/ui/holds")
async def order_hold(request: Request) -> Response:
    """Place a hold on a correlation or an actor, or release a correlation, as POST and DELETE of /api/v1/audit/legal-hold do."""
    service, form = service_of(request), await read_form(request)
    correlation_id, actor_id, reason = (form.get(name, "") for name in ("correlation_id", "actor_id", "reason"))
    await authorize(request)
    if bool(correlation_id) == bool(actor_id):
        raise BadRequest("Name either a correlation or an actor whose events are to be held.")
    order = HoldOrder(caller_name(request) or ANONYMOUS, reason)
    if form.get("order") == "place":
        if not reason.strip():
            raise MissingReason
        selected = {"correlation_id": correlation_id} if correlation_id else {"actor_id": actor_id}
        checked(selected | {"reason": reason}, HoldToPlace)
        await holds.place(service.settings, service.log, Selector(correlation_id or None, actor_id or None), order)
    elif form.get("order") == "release" and correlation_id:
        if not reason.strip():
            raise MissingReleaseReason
        await holds.release_correlation(service.settings, service.log, correlation_id, order)
    else:
        raise BadRequest("The form orders neither to place a hold nor to release it.")
    shown = f"/ui/correlations/{quote(correlation_id, safe='')}" if form.get("back") != "trust" else "/ui/trust"
    return RedirectResponse(f"{shown}#holds", 303)


@router.post("/ui/holds/{hold_id}/release")
async def release_hold(request: Request, hold_id: str) -> Response:
    """Release one hold, whatever it covers, as DELETE of /api/v1/audit/legal-hold does."""
    service, form = service_of(request), await read_form(request)
    await authorize(request)
    if not (reason := form.get("reason", "").strip()):
        raise MissingReleaseReason
    try:
        parsed = UUID(hold_id)
    except ValueError:
        raise bad_fields({"hold_id": f"expected a UUID, got {hold_id[:60]!r}"}) from None
    await holds.release(service.settings, service.log, parsed, HoldOrder(caller_name(request) or ANONYMOUS, reason))
    return RedirectResponse("/ui/trust#holds", 303)
