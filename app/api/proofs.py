"""GET of proofs: of one event (inclusion), and of the log's growth (consistency). They are verified without this service."""

from typing import Annotated
from uuid import UUID

from fastapi import Path, Query
from pydantic import Field
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from app.api.archived import find_archived
from app.api.body import json_response
from app.api.deadline import within_deadline
from app.api.routes import Answer, Router
from app.api.service import service_of
from app.errors import NotFound
from app.events.explain import bad_fields
from app.events.record import Row
from app.tlog.note import encoded_base64
from app.tlog.prove import EventProof, prove_consistency, prove_row, stored_row

router = Router(tags=["log"])


class ConsistencyProof(Answer):
    """Base64 hashes that prove the log of `from` leaves to be a prefix of that of `to` (RFC 9162), and a checkpoint."""

    from_: Annotated[int, Field(alias="from")]
    to: int
    proof: list[str]
    checkpoint: str


@router.get("/api/v1/audit/events/{event_id}/proof", response_class=PlainTextResponse)
async def event_proof(
    request: Request,
    event_id: Annotated[str, Path(json_schema_extra={"format": "uuid"})],
    open: bool = False,  # noqa: A002 - the parameter's name
    timestamped: bool = False,
) -> Response:
    """The event's proof file (C2SP tlog-proof). With open=true a JSON document that also shows what can be erased of it.

    With timestamped=true a JSON document under the earliest checkpoint that a timestamp authority has stamped, with its token.
    Of an event of a log that was continued after a loss, if no signed checkpoint has it, a JSON document in any case.
    """
    try:
        parsed = UUID(event_id)
    except ValueError:
        raise bad_fields({"event_id": f"expected a UUID, got {event_id[:60]!r}"}) from None
    found = await within_deadline(request, _proof(request, parsed, timestamped=timestamped))
    if open or timestamped or found.seam is not None:
        return Response(found.document(open=open), media_type="application/json")
    return PlainTextResponse(str(found.proof))


async def _proof(request: Request, event_id: UUID, *, timestamped: bool) -> EventProof:
    """Of an event that is in the archive alone too: the log's hashes are in Postgres for all events."""
    service = service_of(request)
    row: Row | None = await stored_row(service.engine, event_id, service.log)
    if row is None and (archived := await find_archived(request, event_id)) is not None:
        row = archived.row
    if row is None:
        raise NotFound(f"There is no event {event_id}.")
    return await prove_row(service.engine, row, service.log, timestamped=timestamped)


@router.get("/api/v1/audit/consistency", response_class=Response, responses={200: {"model": ConsistencyProof}})
async def consistency_proof(
    request: Request,
    from_: Annotated[int, Query(alias="from", ge=0)],
    to: Annotated[int | None, Query(ge=0)] = None,
) -> Response:
    """Prove that nothing was changed since the log had `from` leaves; `to` is by default the newest checkpoint's size."""
    service = service_of(request)
    found = await within_deadline(request, prove_consistency(service.engine, service.log, from_, to))
    if isinstance(found, int):
        raise bad_fields({"to": f"expected from <= to <= {found}, the size of the newest checkpoint"})
    document = {
        "from": found.old,
        "to": found.new,
        "proof": [encoded_base64(one) for one in found.hashes],
        "checkpoint": found.checkpoint,
    }
    return json_response(document)
