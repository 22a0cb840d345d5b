"""In front of the application: request id, access log, metrics, errors as problems, and the short way for the two POST paths."""

import logging
import os
import re
from collections.abc import Awaitable, Callable
from time import perf_counter

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from app import metrics
from app.api.body import ClientGone, too_large
from app.api.problems import respond
from app.errors import AuditError
from app.logs import AccessLog

Endpoint = Callable[[Request], Awaitable[Response]]
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")

log = logging.getLogger(__name__)


class Front:
    """The outermost ASGI application.

    `direct` maps (method, path) to endpoints that are called without the framework's middleware, which costs a third of the
    rate of single posts. They are routes of `app` too, so that the OpenAPI document shows them.
    """

    def __init__(self, app: FastAPI, direct: dict[tuple[str, str], Endpoint], access_log: AccessLog) -> None:
        self.app = app
        self._direct = direct
        self._access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = perf_counter()
        method, path = scope["method"], scope["path"]
        sent_id = _header(scope, b"x-request-id")
        request_id = sent_id if _REQUEST_ID.fullmatch(sent_id) else os.urandom(8).hex()
        scope["state"]["request_id"] = request_id
        added = ((b"x-request-id", request_id.encode()), (b"vary", b"Origin"))
        status = 499  # the client went away before there was an answer

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *added]
            await send(message)

        endpoint = self._direct.get((method, path)) or self._before_routing(scope)
        try:
            if endpoint is None:
                await self.app(scope, receive, send_with_id)
            else:
                scope["app"] = self.app
                request = Request(scope, receive)
                response = await _answer(endpoint, request)
                await response(scope, receive, send_with_id)
        except ClientGone:
            pass
        finally:
            seconds = perf_counter() - started
            route = path if (method, path) in self._direct else getattr(scope.get("route"), "path", "unknown")
            metrics.REQUEST_DURATION.labels(method if route != "unknown" else "any", route, str(status)).observe(
                seconds
            )
            self._access_log.write(scope, status, seconds)

    def _before_routing(self, scope: Scope) -> Endpoint | None:
        """What answers whatever the path is: preflights, and bodies that no route takes."""
        if scope["method"] == "OPTIONS" and _is_preflight(scope):
            return _preflight
        length = _header(scope, b"content-length")
        if length.isdecimal() and int(length) > self.app.state.settings.body_bytes_max:
            return _too_large
        return None


def _is_preflight(scope: Scope) -> bool:
    return bool(_header(scope, b"origin") and _header(scope, b"access-control-request-method"))


async def _preflight(_: Request) -> Response:
    """No origin is allowed until a setting names some: 200 without the header that would say so."""
    return Response()


async def _too_large(request: Request) -> Response:
    raise too_large(request, request.app.state.settings.body_bytes_max)


async def _answer(endpoint: Endpoint, request: Request) -> Response:
    try:
        return await endpoint(request)
    except AuditError as error:
        return respond(request, error)
    except ClientGone:
        raise
    except Exception:  # whatever it is, the client gets a problem document and the log says why
        log.exception("a request failed unexpectedly")
        return respond(request, AuditError())


def _header(scope: Scope, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")
