"""Errors on the wire: problem documents as contract section 3 wants them, and what routing itself refuses."""

from typing import Any

import orjson
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match

from app import metrics
from app.errors import AuditError, BadRequest, TooLarge, Unavailable

CONTENT_TYPE = "application/problem+json"


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
    headers = {}
    if isinstance(error, BadRequest):
        metrics.VALIDATION_FAILURES.labels("openapi_middleware", "validation_error").inc()
        if "x-request-id" in request.headers:
            body["instance"] = request.url.path
    if isinstance(error, Unavailable):
        headers["Retry-After"] = str(error.retry_after_seconds)
    if isinstance(error, TooLarge):
        headers["Connection"] = "close"  # the body was not read
    return Response(orjson.dumps(body | error.extra) + b"\n", error.status, headers, CONTENT_TYPE)


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
    if error.status_code == 405:
        return Response(status_code=405, headers={"Allow": ", ".join(sorted(_allowed(request)))})
    if error.status_code == 404:
        return Response("404 page not found\n", 404, media_type="text/plain")
    return respond(request, AuditError(str(error.detail)))


def _allowed(request: Request) -> set[str]:
    """Methods of every route that this path belongs to."""
    matching = (r for r in request.app.router.routes if r.matches(request.scope)[0] is not Match.NONE)
    return {method for route in matching for method in getattr(route, "methods", None) or ()}


async def _unexpected(request: Request, error: Exception) -> Response:
    del error  # logged by the server
    return respond(request, AuditError())
