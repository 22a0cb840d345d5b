"""A service of several processes: it is one service, and the end of any of its processes loses and doubles nothing."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests import pods
from tests.events import make_event
from tests.framing.cases import PROBE, WENT_ON
from tests.framing.wire import answers_to
from tests.services import Service
from tests.waiting import eventually, until

EVENTS, BATCH = "/api/v1/audit/events", "/api/v1/audit/events/batch"
_CLIENTS = 6


@pytest.mark.parametrize("processes", [8], indirect=True)
def test_every_route_of_a_large_pod(service: Callable[..., Service]) -> None:
    """A request ends in a process that cannot answer it, or large batches do not fit between two processes."""
    running = service()
    fronts = len(pods.pids(running, "front"))
    assert fronts == 5
    with ExitStack() as stack:
        clients = [stack.enter_context(httpx.Client(base_url=running.url, timeout=30)) for _ in range(2 * fronts)]
        for number, client in enumerate(clients):
            _check_routes(client, f"rr-{number}", batch_size=1200 if number == 0 else 2)
        posts = (
            'datastorage_http_request_duration_seconds_count{method="POST",route="/api/v1/audit/events",status="201"}'
        )
        assert _metric(clients[0], posts) == len(clients)


def _check_routes(client: httpx.Client, correlation: str, batch_size: int) -> None:
    sent = client.post(EVENTS, json=make_event(correlation_id=correlation))
    assert sent.status_code == 201
    batch = [make_event(correlation_id=correlation) for _ in range(batch_size)]
    assert client.post(BATCH, json=batch).status_code == 201
    assert client.get(f"{EVENTS}/{sent.json()['event_id']}").status_code == 200
    found = client.get(EVENTS, params={"correlation_id": correlation, "limit": 1000})
    assert len(found.json()["data"]) == min(1 + batch_size, 1000)
    hold = {"correlation_id": correlation, "reason": "inquiry"}
    assert client.post("/api/v1/audit/legal-hold", json=hold).status_code == 200
    assert [client.get(path).status_code for path in ("/healthz", "/readyz", "/health", "/nope")] == [200] * 3 + [404]
    assert client.post(EVENTS, content=b"{").status_code == 400
    assert client.delete(EVENTS).status_code == 405


@pytest.mark.parametrize(("processes", "role"), [(2, "reader"), (4, "reader"), (4, "front")], indirect=["processes"])
async def test_end_of_a_front_or_reader(service: Callable[..., Service], role: str) -> None:
    """The crash of one request's process takes the service down, or costs an event."""
    running = await asyncio.to_thread(service)
    async with _load(running) as load:
        for _ in range(2):
            await load.progress()
            before = set(pods.pids(running, role))
            pods.kill(min(before))
            await asyncio.to_thread(until, lambda: len(set(pods.pids(running, role)) - before) or None)  # noqa: B023
            await load.progress()
    await load.check(running)
    assert running.process.poll() is None


@pytest.mark.parametrize(
    ("processes", "role"), [(2, "writer"), (4, "writer"), (2, "supervisor"), (4, "supervisor")], indirect=["processes"]
)
async def test_end_of_the_writer_or_supervisor(service: Callable[..., Service], role: str) -> None:
    """Events that were answered are gone, or processes stay that hold the port, the spool or connections."""
    running = await asyncio.to_thread(service)
    async with _load(running) as load:
        await load.progress()
        processes = pods.children(running)
        pods.kill(running.process.pid if role == "supervisor" else pods.pids(running, role)[0])
        code = await asyncio.to_thread(running.process.wait)
    assert code == (-signal.SIGKILL if role == "supervisor" else 1)
    until(lambda: True if not any(pods.is_running(pid) for pid in processes) else None)
    await load.check(await asyncio.to_thread(service))


@pytest.mark.parametrize("processes", [3], indirect=True)
async def test_writer_that_hangs(service: Callable[..., Service]) -> None:
    """A post waits longer than its deadline, or the resend that follows is stored as another event."""
    running = await asyncio.to_thread(lambda: service(single_deadline_ms=1_000))
    event = make_event(event_id=str(uuid4()))
    writer = pods.pids(running, "writer")[0]
    async with httpx.AsyncClient(base_url=running.url, timeout=30) as client:
        pods.kill(writer, signal.SIGSTOP)
        try:
            started = time.monotonic()
            answer = await client.post(EVENTS, json=event)
            assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
            assert time.monotonic() - started >= 1
        finally:
            pods.kill(writer, signal.SIGCONT)
        assert (await client.post(EVENTS, json=event)).status_code == 201
        found = await client.get(EVENTS, params={"correlation_id": event["correlation_id"]})
        assert [one["event_id"] for one in found.json()["data"]] == [event["event_id"]]


@pytest.mark.parametrize("processes", [2, 3], indirect=True)
async def test_reader_that_hangs(service: Callable[..., Service]) -> None:
    """Reads, whatever they do, cost a writer or a probe something."""
    running = await asyncio.to_thread(service)
    reader = pods.pids(running, "reader")[0]
    async with httpx.AsyncClient(base_url=running.url, timeout=30) as client:

        async def all_are_answered() -> bool | None:
            pods.kill(reader, signal.SIGSTOP)
            try:
                read = asyncio.create_task(client.get(EVENTS))
                for path in ("/healthz", "/readyz", "/metrics", "/health"):
                    assert (await client.get(path)).status_code == 200
                assert (await client.post(EVENTS, json=make_event())).status_code == 201
                waits = not read.done()
            finally:
                pods.kill(reader, signal.SIGCONT)
            return True if (await read).status_code == 200 and waits else None  # else the time of a read was over first

        await eventually(all_are_answered)


@pytest.mark.parametrize("processes", [2, 4], indirect=True)
async def test_metrics_of_ended_processes(service: Callable[..., Service]) -> None:
    """A counter falls, which Prometheus takes for a restart, or requests of one process are missing."""
    running = await asyncio.to_thread(service)
    lists = 'datastorage_http_request_duration_seconds_count{method="GET",route="/api/v1/audit/events",status="200"}'
    with httpx.Client(base_url=running.url) as client:
        for total in (3, 6):
            for _ in range(3):
                await asyncio.to_thread(lambda: client.get(EVENTS).raise_for_status())
            await asyncio.to_thread(until, lambda: True if _metric(client, lists) == total else None)  # noqa: B023
            before = set(pods.pids(running, "reader"))
            pods.kill(min(before))
            await asyncio.to_thread(until, lambda: len(set(pods.pids(running, "reader")) - before) or None)  # noqa: B023
        assert _metric(client, lists) == 6


@pytest.mark.parametrize("processes", [2, 4], indirect=True)
async def test_no_reader(service: Callable[..., Service]) -> None:
    """A read for which there is no process waits for ever, or is answered as a fault of the server."""
    running = await asyncio.to_thread(service)
    async with httpx.AsyncClient(base_url=running.url, timeout=30) as client:
        await client.get(EVENTS)
        answer = None
        for _ in range(8):  # each restart waits longer
            before = set(pods.pids(running, "reader"))
            for pid in before:
                pods.kill(pid)
            answer = await client.get(EVENTS)
            if answer.status_code != 200:
                break
            await asyncio.to_thread(until, lambda: len(set(pods.pids(running, "reader")) - before) or None)  # noqa: B023
        assert answer is not None
        assert (answer.status_code, answer.headers.get("Retry-After")) == (503, "1")
        assert answer.json()["type"] == "https://kubernaut.ai/problems/service-unavailable"
        assert answer.headers["X-Request-Id"]


async def test_stop_while_a_client_reads_slowly(service: Callable[..., Service]) -> None:
    """A shutdown cuts an answer off that it could have waited for."""
    running = await asyncio.to_thread(lambda: service(processes=2))
    async with httpx.AsyncClient(base_url=running.url, timeout=30) as client:
        for _ in range(4):
            batch = [make_event(correlation_id="rr-1") for _ in range(500)]
            (await client.post(BATCH, json=batch)).raise_for_status()
        async with client.stream("GET", "/api/v1/audit/export", params={"correlation_id": "rr-1"}) as export:
            parts = export.aiter_bytes(1024)
            await anext(parts)
            running.process.send_signal(signal.SIGTERM)
            size = 1024
            async for part in parts:
                size += len(part)
    assert size > 1_000_000
    assert await asyncio.to_thread(running.process.wait) == 0


def _metric(client: httpx.Client, name: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} ")), 0.0)


class _Load:
    """Clients that post events with ids of their own, and send each until it is answered."""

    def __init__(self, running: Service) -> None:
        self.answered: list[str] = []
        self._sent: list[dict[str, Any]] = []
        self._running = running
        self._is_over = False

    async def post(self, number: int) -> None:
        while not self._is_over:
            async with httpx.AsyncClient(base_url=self._running.url, timeout=5) as client:
                try:
                    while not self._is_over:
                        event = make_event(event_id=str(uuid4()), correlation_id=f"rr-{number}")
                        self._sent.append(event)
                        await self._post(client, event)
                        await client.get(EVENTS, params={"limit": 5})
                except httpx.TransportError:
                    await asyncio.sleep(0.05)

    async def _post(self, client: httpx.AsyncClient, event: dict[str, Any]) -> None:
        answer = await client.post(EVENTS, json=event)
        assert answer.status_code in {201, 202, 503}, answer.text
        if answer.status_code != 503:
            self.answered.append(event["event_id"])

    def end(self) -> None:
        self._is_over = True

    async def progress(self) -> None:
        """Wait until further events were answered."""
        enough = len(self.answered) + 2 * _CLIENTS
        while len(self.answered) < enough:  # noqa: ASYNC110 -- of several tasks
            await asyncio.sleep(0.01)

    async def check(self, running: Service) -> None:
        """Send everything again: what was answered is stored once, and so is what was not."""
        async with httpx.AsyncClient(base_url=running.url, timeout=30) as client:
            for event_id in self.answered:
                assert (await client.get(f"{EVENTS}/{event_id}")).status_code == 200
            for event in self._sent:
                assert (await client.post(EVENTS, json=event)).status_code == 201
            total = (await client.get(EVENTS, params={"limit": 1})).json()["pagination"]["total"]
            assert total == len(self._sent)


@asynccontextmanager
async def _load(running: Service) -> AsyncIterator[_Load]:
    load = _Load(running)
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for number in range(_CLIENTS):
            group.create_task(load.post(number))
        try:
            yield load
        finally:
            load.end()


@pytest.mark.parametrize("processes", [2, 4], indirect=True)
def test_what_is_not_http_in_a_pod(service: Callable[..., Service]) -> None:
    """A request that is not HTTP gets no answer, or another one, because another process would answer it if it were."""
    port = int(service().url.rpartition(":")[2])
    head = b"HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"

    def statuses(sent: bytes) -> list[int]:
        return [answer.status for answer in answers_to(port, sent + PROBE)]

    for path in (b"/api/v1/audit/events", b"/api/v1/audit/verify-chain", b"/api/v1/audit/notifications"):
        assert statuses(b"GET %b HTTP/1.1\r\nHost: x\r\nno field\r\n\r\n" % path) == [400]
        for body in (b"zz\r\n", b"2\r\n{}\r\nzz\r\n", b"2\r\n{}zz\r\n"):
            assert statuses(b"POST %b %bTransfer-Encoding: chunked\r\n\r\n%b" % (path, head, body)) == [400]
        assert statuses(b"POST %b %bContent-Length: 2\r\n\r\n{}" % (path, head)) == [400, WENT_ON]
