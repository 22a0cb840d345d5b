"""The service under another ASGI host than its own server: httpx, which leaves out what ASGI calls optional in a scope."""

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.main import create_app
from app.presence import Presence
from app.settings import Settings

EVENTS = "/api/v1/audit/events"
TYPE = "orchestrator.lifecycle.started"


def posted() -> dict[str, Any]:
    return {
        "version": "1.0",
        "event_type": TYPE,
        "event_timestamp": datetime.now(UTC).isoformat(),
        "event_category": "orchestration",
        "event_action": "started",
        "event_outcome": "success",
        "correlation_id": "rr-1",
        "event_data": {"event_type": TYPE, "rr_name": "rr", "namespace": "payments"},
    }


@asynccontextmanager
async def lifespan(app: ASGIApp) -> AsyncIterator[None]:
    """What a server does around the requests; httpx does not."""
    to_app, from_app = asyncio.Queue[Message](), asyncio.Queue[Message]()

    async def run() -> None:
        await app({"type": "lifespan", "asgi": {"version": "3.0"}}, to_app.get, from_app.put)

    running = asyncio.create_task(run())
    await to_app.put({"type": "lifespan.startup"})
    assert (await from_app.get())["type"] == "lifespan.startup.complete"
    try:
        yield
    finally:
        await to_app.put({"type": "lifespan.shutdown"})
        assert (await from_app.get())["type"] == "lifespan.shutdown.complete"
        await running


@asynccontextmanager
async def collector_as_before() -> AsyncIterator[None]:
    """The service sets up Python's garbage collector for a process of its own."""
    thresholds = gc.get_threshold()
    try:
        yield
    finally:
        gc.unfreeze()
        gc.set_threshold(*thresholds)
        gc.collect()


def bare(app: ASGIApp) -> ASGIApp:
    """A host that gives only what ASGI requires."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        optional = {"state", "client", "server", "raw_path", "root_path", "extensions"}
        await app({name: value for name, value in scope.items() if name not in optional}, receive, send)

    return call


@pytest.mark.filterwarnings(
    # Workers leave their connections to the end of the process.
    "ignore:Exception ignored in. <function Connection.__del__:pytest.PytestUnraisableExceptionWarning"
)
async def test_events_through_httpx(database_url: str, tmp_path: Path) -> None:
    """The service fails under a host that leaves out optional members of a scope, or answers as if it had started."""
    settings = Settings(
        database_url=SecretStr(database_url),
        unsafe_database=True,
        spool_dir=tmp_path / "spool",
        signer_cert_dir=tmp_path / "certificate",
        access_log=False,
        single_deadline_ms=60_000,
        trusted_proxies="10.0.0.0/8",
    )
    presence = Presence()
    app = create_app(settings, presence)
    for host in (app, bare(app)):
        async with client_of(host) as client:
            assert (await client.get("/readyz")).status_code == 503
            assert (await client.get("/api/v1/audit/event-types")).status_code == 200
            assert (await client.post(EVENTS, json={})).status_code == 400
            refused = await client.get(EVENTS)
            assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
    async with collector_as_before(), client_of(app) as early_client:
        waiting = asyncio.create_task(early_client.post(EVENTS, json=posted()))
        await asyncio.sleep(0)
        async with lifespan(app):
            async with asyncio.timeout(20):
                while presence.not_ready:  # noqa: ASYNC110 -- probes ask too
                    await asyncio.sleep(0.01)
            ids = [(await waiting).json()["event_id"]]
            await posts_and_reads(app, ids)


async def posts_and_reads(app: ASGIApp, ids: list[str]) -> None:
    """`ids` are those of the events that are stored already."""
    for host in (app, bare(app)):
        async with client_of(host) as client:
            answer = await client.post(EVENTS, json=posted())
            assert answer.status_code == 201, answer.text
            ids.append(answer.json()["event_id"])
            page = await client.get(EVENTS, params={"correlation_id": "rr-1"})
            assert {event["event_id"] for event in page.json()["data"]} == set(ids)
            assert (await client.get(f"{EVENTS}/{ids[-1]}")).json()["event_type"] == TYPE


def client_of(app: ASGIApp) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://audit.test")
