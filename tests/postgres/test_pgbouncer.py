"""Through a real PgBouncer: a pool in session mode is as good as the server, a pool by transaction is refused."""

import asyncio
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import httpx
import pytest
from pydantic import SecretStr

from app import db
from app.database_url import TransactionPooling
from app.settings import Settings
from tests.events import make_event
from tests.pgbouncer import needs_pgbouncer, pgbouncer
from tests.services import ROOT, Service

pytestmark = needs_pgbouncer
EVENTS = "/api/v1/audit/events"


def command(url: str, state: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    env = {"DATASTORAGE_DATABASE_URL": url, "DATASTORAGE_UNSAFE_DATABASE": "true", "PYTHONPATH": str(ROOT)}
    env["XDG_STATE_HOME"] = str(state)
    return subprocess.run(
        [sys.executable, "-m", "app", *arguments], env=env, capture_output=True, text=True, timeout=60, check=False
    )


def test_session_pool(service: Callable[..., Service], database_url: str, tmp_path: Path) -> None:
    """The service cannot write or read through a PgBouncer with its own defaults."""
    with pgbouncer(database_url) as pooler:
        running = service(database_url=pooler.url)
        with httpx.Client(base_url=running.url, timeout=30) as client:
            for _ in range(3):
                assert client.post(EVENTS, json=make_event(correlation_id="rr-1")).status_code == 201
            assert client.post(
                f"{EVENTS}/batch", json=[make_event(correlation_id="rr-1") for _ in range(80)]
            ).is_success
            assert len(client.get(EVENTS, params={"correlation_id": "rr-1", "limit": 100}).json()["data"]) == 83
            assert client.get("/readyz").json() == {"status": "ready"}
        verified = command(pooler.url, tmp_path, "verify", "--processes", "2")
        assert (verified.returncode, "no defects found" in verified.stdout) == (0, True), verified
        assert command(pooler.url, tmp_path, "migrate").returncode == 0
        assert "startup parameter" not in pooler.log


async def test_settings_of_a_session(database_url: str) -> None:
    """The writer runs without its timeouts, or with what another client has left in the session."""
    wanted = {"lock_timeout": "3s", "statement_timeout": "10s"}
    wanted |= {"idle_in_transaction_session_timeout": "5s", "plan_cache_mode": "force_generic_plan", "jit": "off"}
    wanted |= {"enable_seqscan": "off"}
    wanted |= {"application_name": "datastorage", "TimeZone": "UTC"}
    if "host=" not in database_url:  # the server has it for connections over TCP only
        wanted |= {"tcp_user_timeout": "15000"}
    with pgbouncer(database_url, default_pool_size=1) as pooler:
        settings = Settings(database_url=SecretStr(pooler.url), statement_timeout_ms=10_000, lock_timeout_ms=3_000)
        pids = set()
        for _ in range(2):
            stranger = await asyncpg.connect(pooler.url)
            await stranger.execute("SET lock_timeout = 1; SET plan_cache_mode = auto; SET timezone = 'Asia/Tokyo'")
            await stranger.close()
            connection = await db.connect_writer(settings)
            try:
                pids.add(await connection.fetchval("SELECT pg_backend_pid()"))
                found = {name: await connection.fetchval("SELECT current_setting($1)", name) for name in wanted}
            finally:
                await connection.close()
            assert found == wanted
        assert len(pids) == 1  # the session was used again


@pytest.mark.parametrize("mode", ["transaction", "statement"])
@pytest.mark.parametrize("order", [0, 1])
async def test_other_pools_are_refused(mode: str, order: int, database_url: str, tmp_path: Path) -> None:
    """Settings, prepared statements and locks get lost between the sessions of the pool, and events with them."""
    with pgbouncer(database_url, pool_mode=mode, server_round_robin=order) as pooler:
        settings = Settings(database_url=SecretStr(pooler.url))
        with pytest.raises(TransactionPooling, match=r"transaction pooling.*session mode"):
            await db.connect(settings)
        if (mode, order) == ("transaction", 0):
            for arguments in (["serve"], ["verify"]):
                refused = command(pooler.url, tmp_path, *arguments)
                assert (
                    refused.returncode == {"serve": 1, "verify": 2}[arguments[0]],
                    "transaction pooling" in refused.stderr,
                ) == (True, True), refused


def test_a_database_that_the_pooler_does_not_know(database_url: str, tmp_path: Path) -> None:
    """The operator is not told what the pooler answers."""
    with pgbouncer(database_url) as pooler:
        refused = command(pooler.url.replace("?", "x?"), tmp_path, "migrate")
        assert refused.returncode == 2
        assert re.search(r"127\.0\.0\.1:\d+: .*(no such database|does not exist)", refused.stderr)


async def test_a_pooler_that_is_killed(service: Callable[..., Service], database_url: str) -> None:
    """Events are lost or doubled when the pooler dies under load, or nobody is told."""
    with pgbouncer(database_url) as pooler:
        running = await asyncio.to_thread(service, database_url=pooler.url)
        async with httpx.AsyncClient(base_url=running.url, timeout=30) as client:
            sent: list[str] = []

            async def post(count: int) -> set[int]:
                ids = [str(uuid4()) for _ in range(count)]
                events = [make_event(correlation_id="rr-1", event_id=event_id) for event_id in ids]
                answers = await asyncio.gather(*(client.post(EVENTS, json=event) for event in events))
                sent.extend(ids)
                return {answer.status_code for answer in answers}

            for _ in range(3):
                load = asyncio.create_task(post(40))
                await asyncio.to_thread(pooler.kill)
                assert await load <= {201, 202}
                assert await post(5) == {202}
                ready = await readiness(client, "unreachable")
                assert urlsplit(pooler.url).netloc.partition("@")[2] in ready["detail"]
                await asyncio.to_thread(pooler.start)
                await readiness(client, None)
            metrics = (await client.get("/metrics")).text
            while "datastorage_spool_events 0.0" not in metrics:
                await asyncio.sleep(0.05)
                metrics = (await client.get("/metrics")).text
            found = (await client.get(EVENTS, params={"correlation_id": "rr-1", "limit": 1000})).json()["data"]
            assert sorted(event["event_id"] for event in found) == sorted(sent)


async def readiness(client: httpx.AsyncClient, database: str | None) -> dict[str, str]:
    for _ in range(600):
        state: dict[str, str] = (await client.get("/readyz")).json()
        if state.get("database") == database:
            return state
        await asyncio.sleep(0.05)
    raise AssertionError(state)
