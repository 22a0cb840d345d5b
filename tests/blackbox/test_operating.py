"""Health, readiness, metrics, ports and shutdown, as probes and operators see them."""

import asyncio
import gzip
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest

from tests import starting
from tests.databases import create, drop, scratch
from tests.events import make_event
from tests.proxy import proxy
from tests.services import Service, free_port, spawn, stop, wait_until_ready

ROOT = Path(__file__).parent.parent.parent


def test_health_endpoints(service: Callable[..., Service]) -> None:
    """A probe does not get the words of the contract."""
    with httpx.Client(base_url=service().url) as client:
        healthz = client.get("/healthz").json()
        assert healthz["status"] == "healthy"
        assert datetime.fromisoformat(healthz["timestamp"])
        assert client.get("/readyz").json() == client.get("/health/ready").json() == {"status": "ready"}
        assert client.get("/livez").json() == client.get("/health/live").json() == {"status": "alive"}
        assert client.get("/health").json() == {"status": "healthy", "database": "connected"}


SECTION_23 = """
    write_duration_seconds audit_lag_seconds validation_failures_total dlq_validation_failures_total dlq_stream_xadd_total
    workflow_validation_duration_seconds dlq_drain_batch_total retention_purge_total shutdown_dlq_drain_errors_total
    dlq_pel_pending retention_enabled dlq_warning dlq_critical dlq_trim_total
"""


def test_metrics(service: Callable[..., Service]) -> None:
    """The platform's dashboards miss a metric that they query."""
    with httpx.Client(base_url=service().url) as client:
        event = make_event(event_category="gateway")
        assert client.post("/api/v1/audit/events", json=event).status_code == 201
        assert client.post("/api/v1/audit/events", json={}).status_code == 400
        answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    text = answer.text
    assert "# HELP" in text
    assert "# TYPE" in text
    assert "go_goroutines" in text
    assert re.search(r'^datastorage_audit_lag_seconds_count\{service="gateway"\} 1', text, re.MULTILINE)
    assert re.search(r'^datastorage_write_duration_seconds_count\{table="audit_events"\} 1', text, re.MULTILINE)
    failures = r'^datastorage_validation_failures_total\{reason="validation_error",source="openapi_middleware"\} 1'
    assert re.search(failures, text, re.MULTILINE)
    for name in ("http_request_duration_seconds", "inbox_events", "flush_events", "flush_duration_seconds"):
        assert f"datastorage_{name}" in text
    known = {line.split()[2]: line.split()[3] for line in text.splitlines() if line.startswith("# TYPE")}
    kinds = {"_total": "counter", "_seconds": "histogram"}
    for name in SECTION_23.split():
        kind = next((kind for suffix, kind in kinds.items() if name.endswith(suffix)), "gauge")
        assert known[f"datastorage_{name}"] == kind, name
    assert "_created" not in text


@pytest.mark.every_pod
def test_extra_ports(service: Callable[..., Service]) -> None:
    """The health port or the metrics port serves something else, or not at all."""
    health_port, metrics_port = free_port(), free_port()
    service(health_port=health_port, metrics_port=metrics_port)
    health, metrics = f"http://127.0.0.1:{health_port}", f"http://127.0.0.1:{metrics_port}"
    assert httpx.post(f"{health}/readyz").status_code == httpx.get(f"{health}/healthz").status_code == 200
    assert httpx.get(f"{metrics}/metrics").status_code == 200
    for url in (f"{health}/metrics", f"{health}/api/v1/audit/events", f"{metrics}/readyz", f"{metrics}/healthz"):
        assert httpx.get(url).status_code == 404


@pytest.mark.parametrize("log_level", ["INFO", "DEBUG"])
def test_probes_in_the_log(service: Callable[..., Service], log_level: str) -> None:
    """What a log has to say is pushed out of sight by a line for each probe; or nobody can see them when they are wanted."""
    metrics_port = free_port()
    running = service(log_level=log_level, metrics_port=metrics_port)
    paths = ("/healthz", "/readyz", "/livez", "/health", "/health/live", "/health/ready", "/metrics")
    with httpx.Client(base_url=running.url) as client:
        for path in paths:
            assert client.get(path).status_code == 200
        httpx.get(f"http://127.0.0.1:{metrics_port}/metrics")
        assert client.get("/api/v1/audit/events").status_code == 200
    assert stop([running]) == [0]
    lines = [json.loads(line) for line in running.log.read_text().splitlines() if '"logger":"access"' in line]
    shown = {(line["path"], line["level"]) for line in lines}
    probes = {(path, "debug") for path in paths}
    assert shown == {("/api/v1/audit/events", "info")} | (probes if log_level == "DEBUG" else set())


async def test_postgres_away_and_back(service: Callable[..., Service], database_url: str) -> None:
    """Without Postgres the service says that it is ready, or it does not come back by itself."""
    async with proxy(database_url) as between, httpx.AsyncClient(timeout=20) as client:
        url = (await asyncio.to_thread(service, database_url=between.url, spool=False)).url
        await between.refuse(True)
        answer = await client.post(f"{url}/api/v1/audit/events", json=make_event())
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert answer.headers["content-type"] == "application/problem+json"
        state = await until(client, f"{url}/readyz", 503)
        assert state.pop("detail")
        assert state == {"status": "not_ready", "reason": "database_unreachable"}
        assert (await client.get(f"{url}/healthz")).status_code == 200
        await between.refuse(False)
        assert await until(client, f"{url}/readyz", 200) == {"status": "ready"}
        await takes_and_reads(client, url)


async def test_connections_ended_by_the_server(service: Callable[..., Service], connection: Any) -> None:
    """A pool of lost connections answers 503 for ever, while the probe answers ready."""
    url = (await asyncio.to_thread(service)).url
    async with httpx.AsyncClient(timeout=20) as client:
        await takes_and_reads(client, url)
        ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = current_database()"
        await connection.execute(ended)
        await until(client, f"{url}/readyz", 200)
        await takes_and_reads(client, url)


async def takes_and_reads(client: httpx.AsyncClient, url: str) -> None:
    """More often than the pool has connections."""
    posted = await client.post(f"{url}/api/v1/audit/events", json=make_event(correlation_id="here"))
    assert posted.status_code == 201
    parent = posted.json()["event_id"]
    for _ in range(10):
        child = make_event(correlation_id="here", parent_event_id=parent)
        assert (await client.post(f"{url}/api/v1/audit/events", json=child)).status_code == 201
        assert (await client.get(f"{url}/api/v1/audit/events/{parent}")).status_code == 200
        assert (await client.get(f"{url}/api/v1/audit/events?correlation_id=here")).status_code == 200
        verified = await client.post(f"{url}/api/v1/audit/verify-chain", json={"correlation_id": "here"})
        assert verified.json()["is_valid"]


async def test_deadlines_hold_behind_a_lock(service: Callable[..., Service], connection: Any) -> None:
    """A request for a locked table waits longer than the contract says, or its answer does not say what to do."""
    running = await asyncio.to_thread(service, query_deadline_ms=300, single_deadline_ms=300)
    async with httpx.AsyncClient(base_url=running.url, timeout=5) as client, connection.transaction():
        await connection.execute("LOCK TABLE audit_events IN ACCESS EXCLUSIVE MODE")
        parent = "01a20e0c-7ce0-710e-bfce-35434f8305e9"
        found = await client.get("/api/v1/audit/events")
        one = await client.get(f"/api/v1/audit/events/{parent}")
        single = await client.post("/api/v1/audit/events", json=make_event())
        child = await client.post("/api/v1/audit/events", json=make_event(parent_event_id=parent))
    assert (found.status_code, one.status_code) == (503, 503)
    assert found.headers["retry-after"] == "1"
    assert "narrow the query" in found.json()["detail"]
    assert (single.status_code, child.status_code) == (202, 202)


async def test_the_log_says_why(service: Callable[..., Service], connection: Any) -> None:
    """An answer of 500 sends the operator to a log that has no entry for it."""
    running = await asyncio.to_thread(service)
    async with httpx.AsyncClient(base_url=running.url, timeout=5) as client:
        await connection.execute("ALTER TABLE audit_events RENAME COLUMN severity TO gone")
        answer = await client.get("/api/v1/audit/events")
        await connection.execute("ALTER TABLE audit_events RENAME COLUMN gone TO severity")
    assert (answer.status_code, answer.json()["title"]) == (500, "Database Error")
    assert "severity" not in answer.text
    assert "severity does not exist" in running.log.read_text()


async def until(client: httpx.AsyncClient, url: str, status: int) -> Any:
    for _ in range(200):
        answer = await client.get(url)
        if answer.status_code == status:
            return answer.json()
        await asyncio.sleep(0.02)
    raise AssertionError(f"{url} does not answer {status}")


@pytest.mark.every_pod
def test_shutdown_answers_what_is_in_flight(service: Callable[..., Service]) -> None:
    """A request that was accepted before SIGTERM is not answered, or readiness does not end before the service does."""
    running = service(propagation_delay_ms=30_000)
    statuses: list[int] = []
    posted, is_over = threading.Event(), threading.Event()

    def post() -> None:
        with httpx.Client(base_url=running.url) as client:
            while not is_over.is_set():
                statuses.append(client.post("/api/v1/audit/events", json=make_event()).status_code)
                posted.set()

    poster = threading.Thread(target=post)
    poster.start()
    posted.wait()
    running.process.send_signal(signal.SIGTERM)
    while (answer := httpx.get(f"{running.url}/readyz")).status_code == 200:
        pass
    is_over.set()
    poster.join()
    running.process.send_signal(signal.SIGTERM)  # the second one ends the delay
    assert running.process.wait(30) == 0
    assert (answer.status_code, answer.json()) == (503, {"status": "not_ready", "reason": "shutting_down"})
    assert set(statuses) == {201}


def test_unauthenticated_beyond_loopback_is_refused(tmp_path: Path) -> None:
    """Everybody on the network can write without a token, and no setting has allowed it."""
    command = [sys.executable, "-m", "app", "serve"]
    env = {"DATASTORAGE_HOST": "0.0.0.0", "PYTHONPATH": str(ROOT), "XDG_STATE_HOME": str(tmp_path)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert "DATASTORAGE_ALLOW_UNAUTHENTICATED" in done.stderr


def test_a_service_that_cannot_start_says_why(database_url: str, tmp_path: Path) -> None:
    """A start that fails exits with 0, or does not say what to do."""
    command = [sys.executable, "-m", "app", "serve"]
    env = {"DATASTORAGE_DATABASE_URL": database_url, "DATASTORAGE_UNSAFE_DATABASE": "true", "PYTHONPATH": str(ROOT)}
    env |= {"DATASTORAGE_PORT": str(free_port()), "XDG_STATE_HOME": str(tmp_path), "DATASTORAGE_LOG_NAME": "another"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "unset it or set it to that name" in done.stderr


async def test_migration_waits_for_postgres(server_url: str) -> None:
    """The chart's migration fails, or is put off for longer each time, when its Postgres comes up a little later."""
    database = await create(server_url)
    try:
        async with proxy(database) as between:
            await between.refuse(True)
            migration = await _migrate(between.url, "--wait", "60")
            for _ in range(4):  # it was turned away, and tries again
                await between.refused.acquire()
            assert migration.returncode is None
            await between.refuse(False)
            said, _ = await migration.communicate()
            assert (await migration.wait(), said[:16]) == (0, b"The schema is at")
    finally:
        await drop(server_url, database)


async def test_migration_without_postgres_says_so() -> None:
    """An operator gets a traceback instead of what to do."""
    migration = await _migrate(f"postgresql://u:hunter2@127.0.0.1:{free_port()}/d")
    _, said = await migration.communicate()
    assert migration.returncode == 2
    assert said.startswith(b"datastorage: The database cannot be migrated: ")
    assert b"hunter2" not in said


async def _migrate(database_url: str, *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "app", "migrate", *arguments),
        env={"DATASTORAGE_DATABASE_URL": database_url, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_embedded_postgres_that_dies_ends_the_service(tmp_path: Path) -> None:
    """The service runs for ever without the Postgres that only it can start, or commands do not find that one while it runs."""
    commands = (
        "verify",
        "retention plan",
        "retention policy list",
        "erase --actor nobody --reason r --dry-run",
        "findings list",
    )
    with scratch() as directory:
        environment = {"DATASTORAGE_DATA_DIR": str(directory)}
        starts = {}
        for name in commands:
            (tmp_path / name).mkdir()
            starts[name] = starting.Start(str(tmp_path / name), environment, name.split())
        assert {one.code for one in starting.run(starts).values()} == {2}
        running = spawn({"data_dir": directory}, tmp_path / "service")
        wait_until_ready(running)
        for name in commands:
            (tmp_path / name / "errors").write_text("")
        assert {name: one.errors for name, one in starting.run(starts).items() if one.code} == {}
        os.kill(int((directory / "postgres" / "postmaster.pid").read_text().split()[0]), signal.SIGKILL)
        assert running.process.wait(15) == 1
    assert "The embedded Postgres has ended" in running.log.read_text()


def test_settings_are_printed_without_secrets() -> None:
    """A password is in the output that operators paste into tickets."""
    env = {
        "DATASTORAGE_DATABASE_URL": "postgresql://u:hunter2@127.0.0.1/d",
        "DATASTORAGE_CHECKPOINT_URL": "https://u:hunter2@copies.example/x?token=hunter2",
        "DATASTORAGE_WITNESSES": '["w.example+1b2c3d4e+BAAA https://u:hunter2@w.example/a"]',
        "DATASTORAGE_OTEL_ENDPOINT": "http://hunter2@collector:4318",
        "DATASTORAGE_OIDC_JWKS_URL": "https://issuer.example/keys?key=hunter2",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "app", "settings"]
    shown = subprocess.run(command, env=env, capture_output=True, text=True, timeout=30, check=True).stdout
    assert "hunter2" not in shown
    assert "DATASTORAGE_BATCH_EVENTS_MAX=10000" in shown
    assert "DATASTORAGE_CHECKPOINT_URL=https://***@copies.example/x?token=***" in shown


def test_profile(service: Callable[..., Service]) -> None:
    """An operator cannot profile the service, or everybody can."""
    health_port = free_port()
    running = service(health_port=health_port, profile=True)
    shown = httpx.get(f"http://127.0.0.1:{health_port}/debug/profile?seconds=0.2", timeout=20)
    assert re.search(r"^\S+;\S*run\S* \d+$", shown.text, re.MULTILINE)
    assert httpx.get(f"http://127.0.0.1:{health_port}/debug/profile?seconds=61").status_code == 400
    assert httpx.get(f"{running.url}/debug/profile").status_code == 404
    other_port = free_port()
    service(health_port=other_port)
    assert httpx.get(f"http://127.0.0.1:{other_port}/debug/profile").status_code == 404


class _Collector(BaseHTTPRequestHandler):
    received: ClassVar[list[bytes]] = []

    def do_POST(self) -> None:
        self.received.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the base class's name
        pass


def test_spans_reach_a_collector(service: Callable[..., Service]) -> None:
    """With tracing on, spans or lines of the log are missing."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Collector) as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        running = service(otel_endpoint=f"http://127.0.0.1:{collector.server_address[1]}")
        trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
        headers = {"traceparent": f"00-{trace_id}-00f067aa0ba902b7-01", "X-Request-ID": "traced"}
        answer = httpx.post(f"{running.url}/api/v1/audit/events", json=make_event(), headers=headers)
        assert answer.status_code == 201
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(30) == 0
        collector.shutdown()
    text = b"".join(gzip.decompress(one) if one.startswith(b"\x1f\x8b") else one for one in _Collector.received)
    for part in (b"POST /api/v1/audit/events", b"flush", b"transaction", bytes.fromhex(trace_id)):
        assert part in text
    line = next(line for line in running.log.read_text().splitlines() if '"request_id":"traced"' in line)
    assert f'"trace_id":"{trace_id}"' in line
