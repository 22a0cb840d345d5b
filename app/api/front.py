"""In front of the application: who calls, request id, access log, metrics, errors as problems, and the short way for the two POST paths."""

import logging
import os
import re
from collections.abc import Awaitable, Callable, Mapping
from time import perf_counter

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from app import metrics, tracing
from app.api.access import GUARDED, AccessControl
from app.api.body import ClientDisconnected, too_large
from app.api.body_formats import BATCH_PATH
from app.api.browser import Browser
from app.api.problems import respond
from app.api.proxies import Proxies
from app.errors import AuditError, HeadTooLarge, QueryTooLong
from app.logs import AccessLog
from app.settings import Settings, split_list

Endpoint = Callable[[Request], Awaitable[Response]]
_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")
# W3C trace context; ids of zeros and version ff mean nothing, further fields belong to later versions.
_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]{2}(?:-.*)?")
# Headers by which proxies tell who somebody is. Here only a token does, so nothing behind this line may ever see one.
_IDENTITY = (b"x-auth-request-", b"impersonate-", b"x-remote-", b"x-user-id", b"x-forwarded-user")
_WITH_BODY = frozenset({"POST", "PUT", "PATCH", "DELETE"})

log = logging.getLogger(__name__)


class Front:
    """The outermost ASGI application.

    `direct` maps (method, path) to endpoints that are called without the framework's middleware, which costs a third of the
    rate of single posts. They are routes of `app` too, so that the OpenAPI document shows them.
    """

    def __init__(
        self, app: FastAPI, direct: dict[tuple[str, str], Endpoint], door: AccessControl, settings: Settings
    ) -> None:
        self.app = app
        self._direct = direct
        self._door = door
        self._settings = settings
        self._browser = Browser(settings)
        self._proxies = Proxies(split_list(settings.trusted_proxies))
        self._access_log = AccessLog(enabled=settings.access_log)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = perf_counter()
        sent = self._look_at(scope)
        added: list[tuple[bytes, bytes]] = [(b"x-request-id", scope["state"]["request_id"].encode())]
        status, size = 499, 0  # the client went away before there was an answer

        async def send_with_headers(message: Message) -> None:
            nonlocal status, size
            if message["type"] == "http.response.start":
                status = message["status"]
                answered = message["headers"]
                message["headers"] = [*answered, *added, *self._browser.headers(sent, answered)]
            else:
                size += len(message.get("body", b""))
            await send(message)

        try:
            with tracing.request(scope["method"], scope["state"].get("trace")) as span:
                response = await self._answer(Request(scope, receive), sent, added)
                await (response or self.app)(scope, receive, send_with_headers)
                if span is not None:
                    scope["state"]["trace_id"] = tracing.trace_id()
                    span.update_name(f"{scope['method']} {self._route(scope)}")
                    span.set_attribute("http.response.status_code", status)
        except ClientDisconnected:
            pass
        finally:
            self._write_down(scope, status, size, perf_counter() - started)

    def _look_at(self, scope: Scope) -> Mapping[bytes, bytes]:
        """The request's headers, of repeated ones the first. Sets its id and where it comes from."""
        sent = dict(reversed(scope["headers"]))
        if any(name.startswith(_IDENTITY) for name in sent):
            scope["headers"] = [pair for pair in scope["headers"] if not pair[0].startswith(_IDENTITY)]
        sent_id = sent.get(b"x-request-id", b"")
        scope["state"]["request_id"] = sent_id.decode() if _REQUEST_ID.fullmatch(sent_id) else os.urandom(8).hex()
        if traced := _TRACEPARENT.fullmatch(sent.get(b"traceparent", b"")):
            scope["state"]["trace"] = traced[1].decode(), traced[2].decode()
            scope["state"]["trace_id"] = traced[1].decode()
        scope["app"] = self.app
        if self._proxies and scope["client"]:
            # The whole list, should it have come in several headers.
            hops = b",".join(value for name, value in scope["headers"] if name == b"x-forwarded-for").decode("latin-1")
            scope["client"] = (self._proxies.origin(scope["client"][0], hops), scope["client"][1])
        return sent

    async def _answer(
        self, request: Request, sent: Mapping[bytes, bytes], added: list[tuple[bytes, bytes]]
    ) -> Response | None:
        """What is answered without the application, or None. Appends to `added` what its answer has to carry besides."""
        scope = request.scope
        try:
            if (preflight := self._browser.preflight(request, sent)) is not None:
                return preflight
            self._check_head(scope)
            self._refuse_large(request, sent)
            if scope["path"].startswith(GUARDED):
                fields = await self._door.admit(scope, sent.get(b"authorization"))
                added += [(name.lower().encode(), value.encode()) for name, value in fields.items()]
            endpoint = self._direct.get((scope["method"], scope["path"]))
            if endpoint is not None:
                return await endpoint(request)
        except AuditError as error:
            return respond(request, error)
        except ClientDisconnected:
            raise
        except Exception:  # whatever it is, the client gets a problem document and the log says why
            log.exception("a request failed unexpectedly")
            return respond(request, AuditError())
        return None

    def _check_head(self, scope: Scope) -> None:
        query = len(scope["raw_path"]) + len(scope["query_string"])
        if query > self._settings.query_bytes_max:
            raise QueryTooLong
        if query + sum(len(name) + len(value) for name, value in scope["headers"]) > self._settings.head_bytes_max:
            raise HeadTooLarge

    def _refuse_large(self, request: Request, sent: Mapping[bytes, bytes]) -> None:
        if request.scope["method"] not in _WITH_BODY:
            return
        is_batch, length = request.scope["path"] == BATCH_PATH, sent.get(b"content-length", b"")
        bytes_max = self._settings.batch_bytes_max if is_batch else self._settings.body_bytes_max
        if length.isdigit() and int(length) > bytes_max:
            raise too_large(request, bytes_max)

    def _route(self, scope: Scope) -> str:
        direct = (scope["method"], scope["path"]) in self._direct
        return scope["path"] if direct else getattr(scope.get("route"), "path", "unknown")

    def _write_down(self, scope: Scope, status: int, size: int, seconds: float) -> None:
        method, route = scope["method"], self._route(scope)
        metrics.REQUEST_DURATION.labels(method if route != "unknown" else "any", route, str(status)).observe(seconds)
        self._access_log.write(scope, status, size, seconds)
