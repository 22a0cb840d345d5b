"""GET of a bundle: all about one correlation with the proofs, as one file that is verified without this service."""

from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from app.api.access import caller_name
from app.api.archived import find_gone
from app.api.export import BOOLEANS, ExportQueryFailed, write_export_event
from app.api.parameters import (
    CORRELATION_ID,
    WITHOUT_ARCHIVE,
    one_of,
    path_correlation_id,
    query_parameters,
    read_fields,
    refuse_unknown,
    true_or_false,
)
from app.api.routes import Router
from app.api.service import service_of
from app.api.timeline import TIMELINE_PARAMETERS, get_timeline
from app.archive.export_row import export_row
from app.errors import DatabaseFailed
from app.export.bundle_read import BundleExport, BundleQuery
from app.verify.snapshot import snapshot

router = Router(tags=["export"])

_READERS = {"redact_pii": true_or_false(BOOLEANS), "archive": one_of("exclude")}
_PREFIX, _SUFFIX = "/api/v1/audit/correlations/", "/bundle"
_REDACT: dict[str, Any] = {
    "name": "redact_pii",
    "in": "query",
    "description": "mask e-mail and IP addresses, telephone and card numbers",
    "schema": {"type": "boolean"},
}


@router.get(
    f"{_PREFIX}{CORRELATION_ID}{_SUFFIX}",
    response_class=Response,
    responses={
        200: {
            "description": "docs/design.md, section 9.5: a JSON object whose last line is its signed manifest",
            "content": {"application/json": {"schema": {"type": "object"}}},
        }
    },
    openapi_extra={"parameters": [_REDACT, WITHOUT_ARCHIVE]},
)
async def get_bundle(request: Request, correlation_id: str) -> Response:
    """All of one correlation as a file for auditors: events, who did it, proofs, holds, notifications, and a page of words."""
    if not request.scope["raw_path"].endswith(_SUFFIX.encode()):  # a correlation whose id ends so: its slash is encoded
        refuse_unknown(request.scope["query_string"], TIMELINE_PARAMETERS)
        return await get_timeline(request, request.scope["path"].partition(_PREFIX)[2])
    refuse_unknown(request.scope["query_string"], _READERS)
    correlation_id = path_correlation_id(request, correlation_id)
    fields = read_fields(query_parameters(request.scope["query_string"], _READERS), _READERS)
    service = service_of(request)
    archived = [] if fields.pop("archive", None) else await find_gone(request, correlation_id)
    rows = [export_row(one) for one in archived]
    export = BundleExport(
        BundleQuery(correlation_id, **fields), caller_name(request), service.log, service.log_key, rows
    )
    try:
        async with snapshot(service.engine, confirm=partial(service.standbys.confirm, service.engine)) as connection:
            content = await export.read(connection)
    except DatabaseFailed as error:
        raise ExportQueryFailed from error
    await write_export_event(service, export)
    return Response(content, media_type="application/json")
