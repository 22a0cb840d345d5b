"""Liveness, readiness and metrics: without credentials, and never rate limited."""

from datetime import UTC, datetime
from typing import Any

import orjson
from prometheus_client import REGISTRY, generate_latest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api import profile
from app.api.routes import Router
from app.api.service import foundation_of

router = Router(tags=["health"], default_response_class=PlainTextResponse)


def _status_response(body: dict[str, Any], status: int = 200) -> Response:
    """JSON under the reference's media type."""
    return Response(orjson.dumps(body), status, media_type="text/plain")


@router.get("/healthz")
async def healthz() -> Response:
    """The process is up, whatever the state of the database."""
    return _status_response({"status": "healthy", "timestamp": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"})


@router.get("/livez", include_in_schema=False)
@router.get("/health/live")
async def live() -> Response:
    """The process is up."""
    return _status_response({"status": "alive"})


@router.get("/readyz")
@router.get("/health/ready", include_in_schema=False)
async def ready(request: Request) -> Response:
    """The service can take an event durably; else 503 and the reason. While Postgres can commit nothing, the detail says why.

    `findings` is how many findings nobody has acknowledged; it is absent if there are none.
    After a loss `continuation_needed` says why nothing is signed until `datastorage log continue`; `signing_waits` says why
    nothing is signed while synchronous standbys do not have what would be.
    """
    presence = foundation_of(request).presence
    failure = presence.database_failure
    detail: dict[str, Any] = {"detail": failure} if failure else {}
    if reason := presence.not_ready:
        shown = {} if presence.shutting_down else detail
        return _status_response({"status": "not_ready", "reason": reason} | shown, 503)
    findings = presence.open_findings()
    shown = ({"database": "unreachable"} | detail if failure else {}) | ({"findings": findings} if findings else {})
    shown |= {"continuation_needed": loss} if (loss := presence.loss()) else {}
    shown |= {"signing_waits": waits} if (waits := presence.signing_waits()) else {}
    return _status_response({"status": "ready"} | shown)


@router.get("/health")
async def health(request: Request) -> Response:
    """The service and its database."""
    failure = foundation_of(request).presence.database_failure
    if not failure:
        return _status_response({"status": "healthy", "database": "connected"})
    body = {"status": "unhealthy", "database": "unreachable", "error": failure}
    return _status_response(body, 503)


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Every metric, as Prometheus text."""
    text = await foundation_of(request).metrics_text()
    return Response(text, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})


async def own_metrics() -> bytes:
    """The metrics of this process."""
    return generate_latest(REGISTRY)


class ExtraPorts:
    """Serves only health on the health port and only metrics on the metrics port, by any method (docs/contract.md, section 18).

    `app` serves every other port. With a profile port, /debug/profile is served on it too.
    """

    def __init__(self, app: ASGIApp, paths_by_port: dict[int, frozenset[str]], profile_port: int | None) -> None:
        self._app = app
        self._paths_by_port = paths_by_port
        self._profile_port = profile_port

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        port: Any = (scope.get("server") or ("", None))[1]  # optional in ASGI
        if port is not None and port == self._profile_port and scope["path"] == profile.PATH:
            await (await profile.profile(Request(scope, receive)))(scope, receive, send)
            return
        paths = self._paths_by_port.get(port)
        if paths is not None:
            # A copy: uvicorn reads the method again, to leave out the body of an answer to HEAD.
            scope = {**scope, "method": "GET", "path": scope["path"] if scope["path"] in paths else "/404"}
        await self._app(scope, receive, send)


HEALTH_PATHS = frozenset({"/healthz", "/readyz"})
METRICS_PATHS = frozenset({"/metrics"})
OWN_PATHS = HEALTH_PATHS | METRICS_PATHS | {"/livez", "/health", "/health/live", "/health/ready"}
"""What shows the state of the process that writes."""
