"""Is it up, can it take an event, and what do its numbers say: no credentials, never rate limited."""

from datetime import UTC, datetime

import orjson
from fastapi import APIRouter
from prometheus_client import REGISTRY, generate_latest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api import profile

router = APIRouter(tags=["health"], default_response_class=PlainTextResponse)


def _answer(body: dict[str, str], status: int = 200) -> Response:
    return Response(orjson.dumps(body), status, media_type="text/plain")


@router.get("/healthz")
async def healthz() -> Response:
    """The process is up, whatever the state of the database."""
    return _answer({"status": "healthy", "timestamp": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"})


@router.get("/livez", include_in_schema=False)
@router.get("/health/live")
async def live() -> Response:
    """The process is up."""
    return _answer({"status": "alive"})


@router.get("/readyz")
@router.get("/health/ready", include_in_schema=False)
async def ready(request: Request) -> Response:
    """The service can take an event durably; else 503 and the reason."""
    presence = request.app.state.presence
    if reason := presence.not_ready:
        why = {"detail": presence.waiting_for} if presence.waiting_for else {}
        return _answer({"status": "not_ready", "reason": reason} | why, 503)
    return _answer({"status": "ready"} | ({} if presence.database_up else {"database": "unreachable"}))


@router.get("/health")
async def health(request: Request) -> Response:
    """The service and its database."""
    if request.app.state.presence.database_up:
        return _answer({"status": "healthy", "database": "connected"})
    body = {"status": "unhealthy", "database": "unreachable", "error": "Postgres does not answer"}
    return _answer(body, 503)


@router.get("/metrics")
async def metrics() -> Response:
    """Every metric, as Prometheus text."""
    return Response(generate_latest(REGISTRY), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})


class ExtraPorts:
    """Serves nothing but health on the health port and metrics on the metrics port, by any method (contract section 18)."""

    def __init__(self, app: ASGIApp, paths_by_port: dict[int, frozenset[str]], profile_port: int | None) -> None:
        self._app = app
        self._paths_by_port = paths_by_port
        self._profile_port = profile_port

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["server"][1] == self._profile_port and scope["path"] == profile.PATH:
            await (await profile.profile(Request(scope, receive)))(scope, receive, send)
            return
        paths = self._paths_by_port.get(scope["server"][1]) if scope["type"] == "http" else None
        if paths is not None:
            # A copy: uvicorn itself looks at the method again, to leave out the body of an answer to HEAD.
            scope = {**scope, "method": "GET", "path": scope["path"] if scope["path"] in paths else "/404"}
        await self._app(scope, receive, send)


HEALTH_PATHS = frozenset({"/healthz", "/readyz"})
METRICS_PATHS = frozenset({"/metrics"})
