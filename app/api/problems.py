"""Errors on the wire: problem documents as contract section 3 wants them, and what routing itself refuses."""

import asyncio
import logging
from contextlib import suppress
from typing import Any

import orjson
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Receive, Scope, Send

from app import metrics
from app.errors import AccessRefused, AuditError, BadRequest, Conflict, RateLimited, TooLarge, Unavailable

CONTENT_TYPE = "application/problem+json"
_DRAIN_SECONDS = 0.5

log = logging.getLogger(__name__)


class Problem(BaseModel):
    """What went wrong, RFC 9457. `detail` names the field, what was expected and what came."""

    type: str
    title: str
    status: int
    detail: str
    instance: str | None = None
    field_errors: dict[str, str] | None = None


def respond(request: Request, error: AuditError) -> Response:
    """The answer to a request that failed with `error`."""
    body: dict[str, Any] = {"type": error.type, "title": error.title, "status": error.status, "detail": error.detail}
    headers: dict[str, str] = {}
    option = orjson.OPT_APPEND_NEWLINE
    if isinstance(error, BadRequest):
        metrics.VALIDATION_FAILURES.labels("openapi_middleware", "validation_error").inc()
    if isinstance(error, (BadRequest, Conflict)):
        option |= orjson.OPT_SORT_KEYS
        if isinstance(error, Conflict) or "x-request-id" in request.headers:
            body["instance"] = request.url.path
    if isinstance(error, AccessRefused):
        option |= orjson.OPT_SORT_KEYS
    if isinstance(error, RateLimited):
        headers = error.headers
    if isinstance(error, Unavailable):
        headers["Retry-After"] = str(error.retry_after_seconds)
    elif error.status >= 500 and error.__cause__ is not None:
        log.error("a request failed", extra={"path": request.url.path, "error": repr(error.__cause__)})
    answer = _Unread if isinstance(error, TooLarge) else Response
    return answer(orjson.dumps(body | error.extra, option=option), error.status, headers, CONTENT_TYPE)


class _Unread(Response):
    """Answers a request whose body was not read, and closes the connection.

    Closing at once would reset it, and a client that is still sending (Go's, Python's) would lose the answer to the reset.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del scope
        self.headers["Connection"] = "close"
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        with suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_SECONDS):
                while (await receive()).get("more_body", False):
                    pass
        await send({"type": "http.response.body", "body": b""})


def install(app: FastAPI) -> None:
    """Have the application answer with problems; unknown paths and methods as the reference's router does."""
    app.add_exception_handler(AuditError, _audit_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _routing)
    app.add_exception_handler(Exception, _unexpected)


async def _audit_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, AuditError)
    return respond(request, error)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    fields = {"/".join(str(part) for part in e["loc"]): e["msg"] for e in error.errors()}
    return respond(request, BadRequest("; ".join(f"{k}: {v}" for k, v in fields.items()), field_errors=fields))


async def _routing(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405 and (allowed := _allowed(request)):
        return Response(status_code=405, headers={"Allow": ", ".join(sorted(allowed))})
    if error.status_code in {404, 405}:
        return Response("404 page not found\n", 404, media_type="text/plain")
    return respond(request, AuditError(str(error.detail)))


def _allowed(request: Request) -> set[str]:
    """Methods of every route that this path belongs to; a route of exactly this path stands before a pattern."""
    if request.url.path.endswith("/"):
        return set()  # a path of its own, and none of ours, whatever a pattern says
    matching = [r for r in request.app.router.routes if r.matches(request.scope)[0] is not Match.NONE]
    exact = [r for r in matching if getattr(r, "path", None) == request.url.path]
    return {method for route in exact or matching for method in getattr(route, "methods", None) or ()}


async def _unexpected(request: Request, error: Exception) -> Response:
    del error  # logged by the server
    return respond(request, AuditError())
