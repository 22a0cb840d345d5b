"""GET of the transparency log as public tools read it: checkpoint, tiles and keys (C2SP tlog-tiles).

Hashes and sizes only, so no credentials are needed; the setting tlog_public closes it.
"""

from typing import Annotated

from fastapi import Query
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from app.api.body import json_response
from app.api.deadline import within_deadline
from app.api.routes import Answer, Router
from app.api.service import foundation_of, service_of
from app.db import driver_connection, fetch
from app.errors import NotFound
from app.tlog.note import encoded_base64
from app.tlog.tiles import SQL, WIDTH, Tile, read_tile

router = Router(tags=["log"])


class TimestampedCheckpoint(Answer):
    """A signed checkpoint as a timestamp authority has stamped it, and its TimeStampToken (RFC 3161, DER) in base64."""

    checkpoint: str
    token: str


_CACHE_FOREVER = "public, max-age=31536000, immutable"
_CACHE_MINUTES = "public, max-age=300"
_CACHE_A_SECOND = "public, max-age=1"


@router.get("/tlog/checkpoint", response_class=PlainTextResponse)
async def checkpoint(request: Request) -> Response:
    """The newest signed checkpoint of the log, with the cosignatures of witnesses."""
    _refuse_if_closed(request)
    service = service_of(request)
    rows = await within_deadline(request, fetch(service.engine, SQL.of(service.log)["published_checkpoint"]))
    if not rows:
        raise no_checkpoint(request)
    return PlainTextResponse(rows[0]["note"], headers={"Cache-Control": _CACHE_A_SECOND})


@router.get(
    "/tlog/tile/{tile:path}",
    response_class=Response,
    responses={200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}},
)
async def tile(request: Request, tile: str) -> Response:
    """Up to 256 hashes of 32 bytes, at `L/N` or, for the first W of them, `L/N.p/W`; N above 999 in groups: x001/234."""
    _refuse_if_closed(request)
    parsed = Tile.parse(tile)
    hashes = None if parsed is None else await within_deadline(request, _read(request, parsed))
    if parsed is None or hashes is None:
        raise NotFound(f"The log has no tile {tile[:60]!r}.")
    cache = _CACHE_FOREVER if parsed.width == WIDTH else _CACHE_MINUTES
    return Response(hashes, headers={"Cache-Control": cache}, media_type="application/octet-stream")


@router.get("/tlog/timestamp", response_class=Response, responses={200: {"model": TimestampedCheckpoint}})
async def timestamp(request: Request, size: Annotated[int | None, Query(ge=0, le=2**63 - 1)] = None) -> Response:
    """The newest checkpoint that a timestamp authority (RFC 3161) has stamped; with `size` the first one of at least so many events."""
    _refuse_if_closed(request)
    service = service_of(request)
    name, argument = ("newest_timestamp", 2**63 - 1) if size is None else ("timestamp_covering", size)
    rows = await within_deadline(request, fetch(service.engine, SQL.of(service.log)[name], argument))
    if not rows:
        raise NotFound(
            "No checkpoint of that size has a timestamp: one is made each hour if DATASTORAGE_TSA_URL is set."
        )
    document = {"checkpoint": rows[0]["note"], "token": encoded_base64(rows[0]["token"])}
    return json_response(document, headers={"Cache-Control": _CACHE_MINUTES})


@router.get("/tlog/key", response_class=PlainTextResponse)
async def key(request: Request) -> Response:
    """The public keys that checkpoints are verified with, as vkeys of C2SP signed-note, the one in use first; then those of closed logs."""
    _refuse_if_closed(request)
    service = service_of(request)
    if service.signing_key is None:
        raise no_checkpoint(request)
    logs = reversed(list(service.log.and_earlier()))
    text = "".join(f"{one}\n" for log in logs for one in service.signing_key.of(log).all_public)
    return PlainTextResponse(text, headers={"Cache-Control": _CACHE_MINUTES})


def no_checkpoint(request: Request) -> NotFound:
    """The answer to a request for a checkpoint that does not exist, with the reason."""
    if service_of(request).signing_key is None:
        return NotFound("No checkpoints are signed: the service has no DATASTORAGE_CHECKPOINT_KEY_FILE.")
    return NotFound("No checkpoint was signed yet: nothing was written so far.")


async def _read(request: Request, tile: Tile) -> bytes | None:
    service = service_of(request)
    async with driver_connection(service.engine) as connection:
        return await read_tile(connection, service.log, tile)


def _refuse_if_closed(request: Request) -> None:
    if not foundation_of(request).settings.tlog_public:
        raise NotFound("This service does not show its log: DATASTORAGE_TLOG_PUBLIC is false.")
