"""The log for everybody's tools: checkpoint, tiles and key (C2SP tlog-tiles). Hashes and sizes only, so it needs no credentials."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from app.api.deadline import in_time
from app.db import driver_connection, fetch
from app.errors import NotFound
from app.tlog.tiles import SQL, WIDTH, Tile, read_tile

router = APIRouter(tags=["log"])

_FOR_EVER = "public, max-age=31536000, immutable"
_SHORTLY = "public, max-age=1"
_MINUTES = "public, max-age=300"


@router.get("/tlog/checkpoint", response_class=PlainTextResponse)
async def checkpoint(request: Request) -> Response:
    """The newest signed checkpoint of the log, with the cosignatures of witnesses."""
    _refuse_closed(request)
    rows = await in_time(request, fetch(request.app.state.engine, SQL["published_checkpoint"]))
    if not rows:
        raise no_checkpoint(request)
    return PlainTextResponse(rows[0]["note"], headers={"Cache-Control": _SHORTLY})


@router.get(
    "/tlog/tile/{tile:path}",
    response_class=Response,
    responses={200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}},
)
async def tile(request: Request, tile: str) -> Response:
    """Up to 256 hashes of 32 bytes, at `L/N` or, for the first W of them, `L/N.p/W`; N above 999 in groups: x001/234."""
    _refuse_closed(request)
    asked = Tile.parse(tile)
    hashes = None if asked is None else await in_time(request, _read(request, asked))
    if asked is None or hashes is None:
        raise NotFound(f"The log has no tile {tile[:60]!r}.")
    cache = _FOR_EVER if asked.width == WIDTH else _MINUTES
    return Response(hashes, headers={"Cache-Control": cache}, media_type="application/octet-stream")


@router.get("/tlog/key", response_class=PlainTextResponse)
async def key(request: Request) -> Response:
    """The public keys that checkpoints are verified with, as vkeys of C2SP signed-note, the one in use first."""
    _refuse_closed(request)
    signing_key = request.app.state.signing_key
    if signing_key is None:
        raise no_checkpoint(request)
    text = "".join(f"{one}\n" for one in signing_key.all_public)
    return PlainTextResponse(text, headers={"Cache-Control": _MINUTES})


def no_checkpoint(request: Request) -> NotFound:
    """Why there is no checkpoint."""
    if request.app.state.signing_key is None:
        return NotFound("No checkpoints are signed: the service has no DATASTORAGE_CHECKPOINT_KEY_FILE.")
    return NotFound("No checkpoint was signed yet: nothing was written so far.")


async def _read(request: Request, asked: Tile) -> bytes | None:
    async with driver_connection(request.app.state.engine) as connection:
        return await read_tile(connection, asked)


def _refuse_closed(request: Request) -> None:
    if not request.app.state.settings.tlog_public:
        raise NotFound("This service does not show its log: DATASTORAGE_TLOG_PUBLIC is false.")
