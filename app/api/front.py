"""The front: the outermost ASGI application, which every request passes first and every response last.

In this order it gives the request an id, reads the client's address and trace context, answers CORS preflights, refuses
heads and queries that are too large and bodies whose Content-Length is too large, and has access control admit the request
(app/api/access.py). Then it calls the handler: for the two POST paths of events directly, for all others through the
framework, for reads once they have a slot (app/api/reading.py), and compresses what that answers (app/api/compression.py).
Errors become problem documents. On the way back it adds headers to the response, and records the request in the metrics and
the access log.

It works under any ASGI server: what the specification calls optional in a scope may be absent.
"""

import logging
import os
import re
from collections.abc import Mapping
from functools import cache
from time import perf_counter
from urllib.parse import quote

from prometheus_client import Histogram
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from app import metrics, tracing
from app.api import kubernetes
from app.api.access import AccessControl, caller_name, client_address, is_guarded
from app.api.body import ClientDisconnected, Reservation, too_large
from app.api.body_formats import BATCH_PATH
from app.api.browser import BrowserHeaders
from app.api.compression import CompressedAnswers
from app.api.health import OWN_PATHS
from app.api.otlp_answers import LOGS_PATH
from app.api.problems import problem_response
from app.api.proxies import TrustedProxies
from app.api.reading import Arrivals, is_endless, is_long, needs_slot, wait_reports
from app.api.service import Application, Endpoint
from app.api.streaming import PacedSend
from app.bookmark import HEADER, NOW
from app.errors import AuditError, HeadTooLarge, QueryTooLong
from app.logs import AccessLog
from app.settings import Settings, comma_separated

_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")
# W3C trace context: ids of zeros and version ff are invalid, and later versions may have further fields.
_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]{2}(?:-.*)?")
# Headers in which proxies name the user. Here only a token does, so nothing after the front may see one of these.
_IDENTITY_HEADERS = (b"x-auth-request-", b"impersonate-", b"x-remote-", b"x-user-id", b"x-forwarded-user")
_ID_PREFIXES = (
    *(b"/api/v1/audit/correlations/", b"/api/v1/audit/legal-hold/", b"/api/v1/audit/remediation-requests/"),
    *(b"/api/v1/effectiveness/", b"/ui/correlations/"),
)
"""After these follows a correlation id, in which a slash can be encoded."""
_BATCHES = frozenset({BATCH_PATH, LOGS_PATH, kubernetes.PATH})
_ERRORS = 400
_WITH_BODY = frozenset({"POST", "PUT", "PATCH", "DELETE"})

log = logging.getLogger(__name__)


class Front:
    """Wraps the framework's application.

    `direct_endpoints` maps (method, path) to endpoints that are called without the framework's middleware, which costs a third
    of the rate of single posts. They are routes of `app` too, so that the OpenAPI document shows them.
    """

    def __init__(
        self,
        app: Application,
        direct_endpoints: dict[tuple[str, str], Endpoint],
        access_control: AccessControl,
        settings: Settings,
    ) -> None:
        self.app = app
        self._compressed_app = CompressedAnswers(app)
        self._direct_endpoints = direct_endpoints
        self._access_control = access_control
        self._read_slots, self._byte_budget = app.service.read_slots, app.service.byte_budget
        self._settings = settings
        self._gives_bookmarks = settings.read_database_url is not None
        self._browser_headers = BrowserHeaders(settings)
        networks = comma_separated(settings.trusted_proxies)
        self._trusted_proxies = TrustedProxies(networks) if networks else None
        self._access_log = AccessLog(enabled=settings.access_log, with_probes=settings.log_level == "DEBUG")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            self._access_log.flush()  # the lifespan is over
            return
        started = perf_counter()
        request_headers = self._prepare(scope)
        extra_headers: list[tuple[bytes, bytes]] = [(b"x-request-id", scope["state"]["request_id"].encode())]
        status, size = 499, 0  # if the client disconnects before it is answered

        async def send_with_headers(message: Message) -> None:
            nonlocal status, size
            if message["type"] == "http.response.start":
                scope["state"]["reservation"].release()  # first: the client may send its next body once it is answered
                status = message["status"]
                if self._gives_bookmarks:
                    extra_headers.extend(_bookmark(scope, status))
                own_headers = message["headers"]
                message["headers"] = [
                    *own_headers,
                    *extra_headers,
                    *self._browser_headers.headers(request_headers, own_headers),
                ]
            else:
                size += len(message.get("body", b""))
            await send(message)

        try:
            with tracing.request(scope["method"], scope["state"].get("trace")) as span:
                request = Request(scope, receive)
                response = await self._respond(request, request_headers, extra_headers)
                if response is not None:
                    await response(scope, receive, send_with_headers)
                else:
                    await self._call_framework(request, send_with_headers)
                if span is not None:
                    scope["state"]["trace_id"] = tracing.trace_id()
                    span.update_name(f"{scope['method']} {self._route(scope)}")
                    span.set_attribute("http.response.status_code", status)
        except ClientDisconnected:
            pass
        finally:
            scope["state"]["reservation"].release()
            self._record(scope, status, size, perf_counter() - started)

    def _prepare(self, scope: Scope) -> Mapping[bytes, bytes]:
        """Complete the scope: request id, trace context, client address, bytes of the body. Returns the headers, the first of repeated ones."""
        state = scope.setdefault("state", {})  # optional in ASGI, as are raw_path and client
        if scope.get("raw_path") is None:
            scope["raw_path"] = quote(scope["path"]).encode()
        elif b"%2" in (raw := scope["raw_path"]) and b"%2f" in raw.lower() and not raw.startswith(_ID_PREFIXES):
            # What separates segments is never encoded: without this, a proxy that checks paths could be evaded.
            scope["path"] = raw.decode("latin-1")
        headers = dict(reversed(scope["headers"]))
        if any(name.startswith(_IDENTITY_HEADERS) for name in headers):
            scope["headers"] = [pair for pair in scope["headers"] if not pair[0].startswith(_IDENTITY_HEADERS)]
        sent_id = headers.get(b"x-request-id", b"")
        state["is_endless"] = is_endless(scope["path"])  # who has such an answer is gone with his last byte
        state["reservation"] = Reservation(self._byte_budget)
        state["request_id"] = sent_id.decode() if _REQUEST_ID.fullmatch(sent_id) else os.urandom(8).hex()
        if trace := _TRACEPARENT.fullmatch(headers.get(b"traceparent", b"")):
            state["trace"] = trace[1].decode(), trace[2].decode()
            state["trace_id"] = trace[1].decode()
        scope["app"] = self.app
        if self._trusted_proxies is not None and (client := scope.get("client")):
            # All addresses, also if they came in several headers.
            hops = b",".join(value for name, value in scope["headers"] if name == b"x-forwarded-for").decode("latin-1")
            scope["client"] = (self._trusted_proxies.client_address(client[0], hops), client[1])
        return headers

    async def _respond(
        self, request: Request, request_headers: Mapping[bytes, bytes], extra_headers: list[tuple[bytes, bytes]]
    ) -> Response | None:
        """The response of a preflight, a refusal or a direct endpoint. None if the request goes to the framework.

        Appends to `extra_headers` those that access control gives.
        """
        scope = request.scope
        try:
            _check_refusal(scope)
            if (preflight := self._browser_headers.preflight(request, request_headers)) is not None:
                return preflight
            self._check_head(scope)
            self._check_content_length(request, request_headers)
            if is_guarded(scope["path"]):
                fields = await self._access_control.admit(request, request_headers.get(b"authorization"))
                extra_headers += [(name.lower().encode(), value.encode()) for name, value in fields.items()]
            endpoint = self._direct_endpoints.get((scope["method"], scope["path"]))
            if endpoint is not None:
                return await endpoint(request)
        except AuditError as error:
            return problem_response(request, error)
        except ClientDisconnected:
            raise
        except Exception:  # the client gets a problem document whatever failed, and the log has the cause
            log.exception("a request failed unexpectedly")
            return problem_response(request, AuditError())
        return None

    async def _call_framework(self, request: Request, send: Send) -> None:
        """Pass the request on; a read has a slot until its response has been sent."""
        scope = request.scope
        if not needs_slot(scope["method"], scope["path"]):
            await self._compressed_app(scope, request.receive, send)
            return
        caller = caller_name(request) or client_address(scope)
        arrivals = Arrivals(request.receive)
        try:
            async with self._read_slots.slot(
                caller,
                arrivals,
                is_long=is_long(scope["path"], scope["query_string"]),
                report=wait_reports(scope, send),
            ) as turn:
                await self._compressed_app(scope, arrivals, PacedSend(send, turn))
        except AuditError as error:  # of the slot: the framework answers those of its routes
            await problem_response(request, error)(scope, request.receive, send)

    def _check_head(self, scope: Scope) -> None:
        query = len(scope["raw_path"]) + len(scope["query_string"])
        if query > self._settings.query_bytes_max:
            raise QueryTooLong
        if query + sum(len(name) + len(value) for name, value in scope["headers"]) > self._settings.head_bytes_max:
            raise HeadTooLarge

    def _check_content_length(self, request: Request, request_headers: Mapping[bytes, bytes]) -> None:
        if request.scope["method"] not in _WITH_BODY:
            return
        is_batch, length = request.scope["path"] in _BATCHES, request_headers.get(b"content-length", b"")
        bytes_max = self._settings.batch_bytes_max if is_batch else self._settings.body_bytes_max
        if length.isdigit() and int(length) > bytes_max:
            raise too_large(request, bytes_max)

    def _route(self, scope: Scope) -> str:
        is_direct = (scope["method"], scope["path"]) in self._direct_endpoints
        return scope["path"] if is_direct else getattr(scope.get("route"), "path", "unknown")

    def _record(self, scope: Scope, status: int, size: int, seconds: float) -> None:
        """One observation in the metrics and one line in the access log."""
        method, route = scope["method"], self._route(scope)
        _request_duration(method if route != "unknown" else "any", route, str(status)).observe(seconds)
        self._access_log.write(scope, status, size, seconds, is_probe=scope["path"] in OWN_PATHS)


def _bookmark(scope: Scope, status: int) -> list[tuple[bytes, bytes]]:
    """The header that says what the caller knows now; after a write of which no position is known, it is all that there is."""
    state = scope["state"]
    known = state.get("bookmark") or (state["reads"].bookmark if "reads" in state else None)
    if known is None and scope["method"] in _WITH_BODY and status < _ERRORS:
        known = NOW
    is_page = scope["path"].startswith("/ui/")
    return [] if known is None or is_page else [(HEADER.lower().encode(), str(known).encode())]


def _check_refusal(scope: Scope) -> None:
    """Raise the refusal of what is not HTTP (app/connection.py), or of what another process should have answered (app/pod/dispatch.py)."""
    refusal: AuditError | None = scope["state"].get("refusal")
    if refusal is not None:
        raise refusal


@cache  # to find the time series of three values again costs more than to observe it
def _request_duration(method: str, route: str, status: str) -> Histogram:
    return metrics.REQUEST_DURATION.labels(method, route, status)
