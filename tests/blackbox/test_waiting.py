"""The time between listening and the first sight of Postgres: what waits, what is spooled, and for which log."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from app import schema
from app.ingest.spool import Spool
from tests import databases
from tests.conftest import LOG_NAME
from tests.events import make_event
from tests.proxy import Proxy, proxy
from tests.services import ROOT, Service, spawn, wait_until_ready
from tests.waiting import eventually

EVENTS, BATCH, NOTIFICATIONS = "/api/v1/audit/events", "/api/v1/audit/events/batch", "/api/v1/audit/notifications"
NOTIFICATION = {
    "remediation_id": "rr-1",
    "recipient": "sre@example.com",
    "channel": "email",
    "message_summary": "done",
    "status": "sent",
    "sent_at": "2026-01-02T03:04:05Z",
}


class Pod:
    """Services that start one after the other on one spool, with a Postgres that can be away."""

    def __init__(self, between: Proxy, directory: Path) -> None:
        self.between, self._directory = between, directory
        self._count = 0
        self.spool = directory / "spool"

    async def start(self, **settings: object) -> Service:
        """A service that listens; whether it is ready is another question."""
        self._count += 1
        base = {"database_url": self.between.url, "unsafe_database": True, "spool_dir": self.spool}
        running = await asyncio.to_thread(spawn, base | settings, self._directory / f"service-{self._count}")

        async def listens() -> Service | None:
            assert running.process.poll() is None, running.log.read_text()
            try:
                await client.get("/healthz")
            except httpx.ConnectError:
                return None
            return running

        async with client_of(running) as client:
            return await eventually(listens)

    async def learn_the_log(self) -> None:
        """What a first start with Postgres does."""
        spool = Spool(self.spool, 1 << 30)
        await spool.belong_to(LOG_NAME)
        spool.close()


@pytest.fixture
async def pod(database_url: str, tmp_path: Path) -> AsyncIterator[Pod]:
    async with proxy(database_url) as between:
        yield Pod(between, tmp_path)


def client_of(running: Service) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=running.url, timeout=60)


async def stop(running: Service, number: int = signal.SIGTERM) -> int:
    running.process.send_signal(number)
    return await asyncio.to_thread(running.process.wait, 45)


async def drained(client: httpx.AsyncClient) -> None:
    """Returns when Postgres is there and everything that waited in the spool is in it."""

    async def is_drained() -> bool | None:
        text = (await client.get("/metrics")).text
        is_empty = "\ndatastorage_spool_events 0.0\n" in text and "\ndatastorage_spool_quarantined_events 0.0\n" in text
        is_read = (await client.get(NOTIFICATIONS)).status_code == 200
        return (is_empty and is_read and (await client.get("/readyz")).json() == {"status": "ready"}) or None

    await eventually(is_drained)


async def both_told(client: httpx.AsyncClient) -> bool | None:
    """Whether both notifications are there; each is replayed by itself."""
    return len((await client.get(NOTIFICATIONS)).json()["data"]) == 2 or None


async def test_posts_wait_for_the_first_sight_of_postgres(pod: Pod) -> None:
    """A client that posts while the service starts is told 503, gives up, and its events are lost."""
    await pod.between.refuse(True)
    running = await pod.start(single_deadline_ms=60_000)
    async with client_of(running) as client:
        parent = make_event(event_id="01a20e0c-7ce0-710e-bfce-35434f8305e9")
        posts = [
            asyncio.create_task(client.post(EVENTS, json=parent)),
            asyncio.create_task(client.post(BATCH, json=[make_event(), make_event()])),
            asyncio.create_task(client.post(NOTIFICATIONS, json=NOTIFICATION | {"notification_id": "n-1"})),
        ]
        assert (await client.post(EVENTS, json={})).status_code == 400  # what is not valid does not wait
        assert (await client.get(EVENTS)).status_code == 503
        for _ in range(2):
            await pod.between.refused.acquire()
        assert not any(post.done() for post in posts)
        await pod.between.refuse(False)
        assert [(await post).status_code for post in posts] == [201, 201, 201]
    assert await stop(running) == 0


async def test_waiting_ends(pod: Pod) -> None:
    """Posts gather in memory without bound, wait beyond their deadline, or delay a stop of the service."""
    await pod.between.refuse(True)
    running = await pod.start(processes=1, inbox_events_max=2, single_deadline_ms=500, batch_deadline_ms=60_000)
    async with client_of(running) as client:
        late = await client.post(EVENTS, json=make_event())
        assert (late.status_code, late.headers["retry-after"]) == (503, "1")
        assert "Postgres cannot be reached" in late.text
        batches = {asyncio.create_task(client.post(BATCH, json=[make_event(), make_event()])) for _ in range(2)}
        [full], [waiting] = await asyncio.wait(batches, return_when=asyncio.FIRST_COMPLETED)
        assert (full.result().status_code, full.result().headers["retry-after"]) == (503, "1")
        assert "Too many events" in full.result().text
        running.process.send_signal(signal.SIGTERM)
        assert (await waiting).status_code == 503
    assert await asyncio.to_thread(running.process.wait, 45) == 0


@pytest.mark.every_pod
async def test_waits_for_the_schema(server_url: str, tmp_path: Path, processes: int) -> None:
    """A service that comes before its schema ends, again and again, later each time; or it is ready without it."""
    empty = await databases.create(server_url)
    async with proxy(empty) as between:
        pod = Pod(between, tmp_path)
        await pod.learn_the_log()  # so that its spool could take events
        running = await pod.start(processes=processes, away_patience_ms=100)
        async with client_of(running) as client:

            async def waits() -> dict[str, str] | None:
                state: dict[str, str] = (await client.get("/readyz")).json()
                return state if state.get("reason") == "schema_missing" else None

            assert "run `datastorage migrate`" in (await eventually(waits))["detail"]
            assert (await client.post(EVENTS, json=make_event())).status_code in {202, 503}
            assert (await waits()) is not None
            assert (await client.get("/healthz")).status_code == 200
            assert "waiting for the schema" in running.log.read_text()
            await schema.upgrade(empty, LOG_NAME)
            await asyncio.to_thread(wait_until_ready, running)

            async def is_committed() -> bool | None:  # at first behind what waits in the spool
                return (await client.post(EVENTS, json=make_event())).status_code == 201 or None

            await eventually(is_committed)
        assert await stop(running) == 0
    await databases.drop(server_url, empty)


async def test_service_first_postgres_an_hour_later(pod: Pod) -> None:
    """A pod whose spool knows its log refuses events until Postgres is there, or loses those of a start that was killed."""
    running = await pod.start()
    await asyncio.to_thread(wait_until_ready, running)
    assert await stop(running) == 0
    await pod.between.refuse(True)
    expected = set()
    for life in range(2):
        running = await pod.start()
        async with client_of(running) as client:
            single = await client.post(EVENTS, json=make_event(correlation_id="rr-1"))
            assert (single.status_code, single.json()["status"]) == (202, "accepted")
            event_id = single.json()["event_id"]
            child = await client.post(EVENTS, json=make_event(correlation_id="rr-1", parent_event_id=event_id))
            batch = await client.post(BATCH, json=[make_event(correlation_id=f"rr-{life}") for _ in range(3)])
            told = await client.post(NOTIFICATIONS, json=NOTIFICATION | {"notification_id": f"n-{life}"})
            assert (child.status_code, batch.status_code, told.status_code) == (202, 201, 202)
            expected |= {event_id, child.json()["event_id"], *batch.json()["event_ids"]}
            ready = await client.get("/readyz")
            assert (ready.status_code, ready.json()["database"]) == (200, "unreachable")
            assert (await client.get(f"{EVENTS}/{event_id}")).status_code == 200
            assert (await client.get(EVENTS)).status_code == 503
        await pod.between.refused.acquire()
        assert await stop(running, signal.SIGKILL) == -signal.SIGKILL
    running = await pod.start()
    async with client_of(running) as client:
        assert (await client.post(EVENTS, json=make_event(correlation_id="rr-1"))).status_code == 202
        await pod.between.refuse(False)
        await drained(client)
        found = (await client.get(EVENTS, params={"limit": 1000})).json()["data"]
        assert len(found) == len(expected) + 1
        assert {event["event_id"] for event in found} > expected
        await eventually(lambda: both_told(client))
        assert (await client.post(EVENTS, json=make_event())).status_code == 201
    assert await stop(running) == 0


async def test_silent_postgres_at_the_start(pod: Pod) -> None:
    """Events wait for a Postgres that takes connections and never answers, although the spool could have them."""
    await pod.learn_the_log()
    pod.between.silent = True
    running = await pod.start()
    async with client_of(running) as client:
        assert (await client.post(EVENTS, json=make_event())).status_code == 202
        pod.between.silent = False
        await pod.between.refuse(True)
        await pod.between.refuse(False)
        await drained(client)
    assert await stop(running) == 0


async def test_postgres_that_holds_another_log(pod: Pod, server_url: str) -> None:
    """Events that were accepted for one log are written to another one, or are lost with the spool."""
    await pod.learn_the_log()
    other_url = await databases.create(server_url)
    try:
        await schema.upgrade(other_url, log_name="other.example/log")
        async with proxy(other_url) as other:
            await other.refuse(True)
            running = await pod.start(database_url=other.url)
            async with client_of(running) as client:
                assert (await client.post(EVENTS, json=make_event(event_action="spooled"))).status_code == 202
            await other.refuse(False)
            assert await asyncio.to_thread(running.process.wait, 45) == 1
        reason = running.log.read_text().splitlines()[-1]
        assert reason.startswith("datastorage: The spool ")
        assert "'test.example/datastorage'" in reason
        assert "'other.example/log'" in reason
        assert "1 events" in spool_command("list", pod.spool, other_url).stdout
        replayed = spool_command("replay", pod.spool, other_url)
        assert (replayed.returncode, replayed.stderr) == (2, reason + "\n")
        async with databases.connected(other_url) as connection:
            assert await connection.fetchval("SELECT count(*) FROM audit_events") == 0
    finally:
        await databases.drop(server_url, other_url)
    running = await pod.start()
    async with client_of(running) as client:
        await drained(client)
        found = (await client.get(EVENTS)).json()["data"]
        assert [event["event_action"] for event in found] == ["spooled"]
    assert await stop(running) == 0


def spool_command(act: str, directory: Path, database_url: str) -> "subprocess.CompletedProcess[str]":
    env = {"DATASTORAGE_DATABASE_URL": database_url, "DATASTORAGE_UNSAFE_DATABASE": "true", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "app", "spool", act, str(directory)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
