"""The style sheet and the script of the pages, which a browser keeps for a year: their URLs change with their content."""

from functools import cache
from pathlib import Path

from fastapi import APIRouter, HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from app.pages.rendering import STATIC, static_content, static_digest

router = APIRouter(include_in_schema=False)
_TYPES = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}


@router.get("/ui")
async def home(request: Request) -> Response:
    """The page that is opened first."""
    del request
    return RedirectResponse("/ui/events", 303)


@router.get("/ui/static/{digest}/{name}")
async def static_file(digest: str, name: str) -> Response:
    """One file of the pages; under another digest than its own, as a page of another release asks for it, only for now."""
    if name not in _names():
        raise HTTPException(404)
    age = "public, max-age=31536000, immutable" if digest == static_digest(name) else "no-store"
    return Response(static_content(name), headers={"Cache-Control": age, "Content-Type": _TYPES[Path(name).suffix]})


@cache
def _names() -> frozenset[str]:
    return frozenset(path.name for path in STATIC.iterdir() if path.suffix in _TYPES)
