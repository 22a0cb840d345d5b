"""Errors as responses: problem documents (RFC 9457; docs/contract.md, section 3), and the refusals of routing itself."""

import asyncio
import logging
from contextlib import suppress
from typing import Any

import orjson
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Receive, Scope, Send

from app import metrics
from app.api.otlp_answers import LOGS_PATH, status_body, status_of
from app.api.routes import Answer
from app.errors import (
    AccessRefused,
    AuditError,
    BadRequest,
    BodiesFull,
    Conflict,
    RateLimited,
    TooLarge,
    Unavailable,
    UnsupportedEncoding,
)

CONTENT_TYPE = "application/problem+json"
_DRAIN_SECONDS = 0.5

log = logging.getLogger(__name__)


class Problem(Answer):
    """What went wrong, RFC 9457. `detail` names the field, what was expected and what came."""

    type: str
    title: str
    status: int
    detail: str
    instance: str | None = None
    field_errors: dict[str, str] | None = None


def problem_response(request: Request, error: AuditError) -> Response:
    """The problem document of `error`, as the response to `request`."""
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
    if isinstance(error, UnsupportedEncoding):
        headers["Accept-Encoding"] = "gzip"
    if isinstance(error, Unavailable):
        headers["Retry-After"] = str(error.retry_after_seconds)
    elif error.status >= 500 and error.__cause__ is not None:
        log.error("a request failed", extra={"path": request.url.path, "error": repr(error.__cause__)})
    kind = _ClosingResponse if isinstance(error, (TooLarge, BodiesFull)) else Response
    if request.scope["path"] == LOGS_PATH:
        message, media_type, retry = status_body(request, error)
        return kind(message, status_of(error), headers | retry, media_type)
    return kind(orjson.dumps(body | error.extra, option=option), error.status, headers, CONTENT_TYPE)


class _ClosingResponse(Response):
    """Answers a request whose body was not read, and closes the connection after a while.

    Closing at once would reset the connection, and clients that are still sending (Go's, Python's) would not get the answer.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del scope
        self.headers["Connection"] = "close"
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        with suppress(TimeoutError, AuditError):  # the latter if the rest is not framed as HTTP has it
            async with asyncio.timeout(_DRAIN_SECONDS):
                while (await receive()).get("more_body", False):
                    pass
        await send({"type": "http.response.body", "body": b""})


def install_handlers(app: FastAPI) -> None:
    """Make the application answer errors with problem documents, and unknown paths and methods as the reference's router."""
    app.add_exception_handler(AuditError, _on_audit_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_parameter)
    app.add_exception_handler(HTTPException, _on_routing_error)
    app.add_exception_handler(Exception, _on_unexpected_error)


async def _on_audit_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, AuditError)
    return problem_response(request, error)


async def _on_invalid_parameter(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    fields = {"/".join(str(part) for part in e["loc"]): e["msg"] for e in error.errors()}
    return problem_response(request, BadRequest("; ".join(f"{k}: {v}" for k, v in fields.items()), field_errors=fields))


async def _on_routing_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405 and (allowed := _allowed_methods(request)):
        return Response(status_code=405, headers={"Allow": ", ".join(sorted(allowed))})
    if error.status_code in {404, 405}:
        return Response("404 page not found\n", 404, media_type="text/plain")
    return problem_response(request, AuditError(str(error.detail)))


def _allowed_methods(request: Request) -> set[str]:
    """Methods of the routes that match this path: of those with exactly this path, else of those with a pattern."""
    if request.url.path.endswith("/"):
        return set()  # an unknown path, although a pattern matches it
    matching = [r for r in request.app.router.routes if r.matches(request.scope)[0] is not Match.NONE]
    exact = [r for r in matching if getattr(r, "path", None) == request.url.path]
    return {method for route in exact or matching for method in getattr(route, "methods", None) or ()}


async def _on_unexpected_error(request: Request, error: Exception) -> Response:
    del error  # logged by the server
    return problem_response(request, AuditError())
