"""Postgres goes away and comes back: what is answered meanwhile, and what is stored afterwards."""

import asyncio
import contextlib
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.databases import name_of
from tests.events import make_event
from tests.proxy import Proxy, proxy
from tests.services import ROOT, Service, spawn, stop, wait_until_ready
from tests.waiting import eventually, until

EVENTS, BATCH = "/api/v1/audit/events", "/api/v1/audit/events/batch"


class Outage:
    """A service whose connection to Postgres can be cut."""

    def __init__(self, between: Proxy, running: Service, client: httpx.AsyncClient) -> None:
        self.between, self.running, self.client = between, running, client

    async def begin(self) -> None:
        await self.between.refuse(True)

    async def end(self) -> None:
        await self.between.refuse(False)

    async def post(self, **members: Any) -> httpx.Response:
        return await self.client.post(EVENTS, json=make_event(**members))

    async def actions(self, correlation_id: str) -> list[str]:
        """What Postgres has stored, in the order of the chain."""
        found = await self.client.get(EVENTS, params={"correlation_id": correlation_id, "limit": 1000})
        return [event["event_action"] for event in found.json()["data"]]

    async def metric(self, name: str) -> float:
        lines = (await self.client.get("/metrics")).text.splitlines()
        return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} "))

    async def balance(self) -> float:
        """Events that were accepted, less those that another counter accounts for."""
        ends = ("events_committed_total", "resends_total", "spool_events", "spool_quarantined_events")
        text = (await self.client.get("/metrics")).text
        refused = sum(
            float(value) for value in re.findall(r"^datastorage_events_refused_total\{.*\} (.*)$", text, re.MULTILINE)
        )
        accepted = await self.metric("datastorage_events_accepted_total")
        return accepted - refused - sum([await self.metric(f"datastorage_{name}") for name in ends])

    async def drained(self) -> None:
        for _ in range(500):
            if not await self.metric("datastorage_spool_events"):
                return
            await asyncio.sleep(0.02)
        raise AssertionError("the spool is not replayed")


@pytest.fixture
async def outage(service: Callable[..., Service], database_url: str) -> AsyncIterator[Outage]:
    async with started(service, database_url) as one:
        yield one


@asynccontextmanager
async def started(service: Callable[..., Service], database_url: str, **settings: object) -> AsyncIterator[Outage]:
    async with proxy(database_url) as between:
        running = await asyncio.to_thread(lambda: service(database_url=between.url, **settings))
        async with httpx.AsyncClient(base_url=running.url, timeout=30) as client:
            yield Outage(between, running, client)


@pytest.mark.every_pod
async def test_answers_while_postgres_is_away(outage: Outage) -> None:
    """An event that is safe on disk is not acknowledged, or the service is taken out of service."""
    await outage.begin()
    single = await outage.post(correlation_id="rr-1")
    assert (single.status_code, single.json()["status"]) == (202, "accepted")
    event_id = single.json()["event_id"]
    batch = await outage.client.post(BATCH, json=[make_event(correlation_id="rr-1") for _ in range(3)])
    assert (batch.status_code, len(batch.json()["event_ids"])) == (201, 3)
    assert batch.json()["message"] == "3 audit events accepted: the database is away, and they are queued on disk"
    assert (await outage.client.get(f"{EVENTS}/{event_id}")).json()["correlation_id"] == "rr-1"
    for _ in range(100):
        ready = await outage.client.get("/readyz")
        if "database" in ready.json():
            break
        await asyncio.sleep(0.05)
    state = ready.json()
    assert (ready.status_code, state.pop("detail") != "", state) == (
        200,
        True,
        {"status": "ready", "database": "unreachable"},
    )
    age = await outage.metric("datastorage_spool_oldest_age_seconds")
    assert 0 < age < await outage.metric("datastorage_spool_oldest_age_seconds")
    await outage.end()
    await outage.drained()
    assert await outage.metric("datastorage_spool_oldest_age_seconds") == 0
    found = await outage.client.get(EVENTS, params={"correlation_id": "rr-1"})
    assert {event["event_id"] for event in found.json()["data"]} == {event_id, *batch.json()["event_ids"]}
    verified = await outage.client.post("/api/v1/audit/verify-chain", json={"correlation_id": "rr-1"})
    assert verified.json()["is_valid"]


async def test_an_outage_in_the_log(outage: Outage) -> None:
    """The log is silent about an outage, repeats it with every round of a worker, or does not say how it ended."""
    await outage.begin()
    assert (await outage.post(correlation_id="rr-1")).status_code == 202
    assert (
        await outage.client.post(BATCH, json=[make_event(correlation_id="rr-1") for _ in range(3)])
    ).status_code == 201
    for _ in range(8):  # tries of the watch, and rounds of the workers beside them
        async with asyncio.timeout(60):
            await outage.between.refused.acquire()
    assert (
        outage.between.url.partition("@")[2].partition("/")[0] in (await outage.client.get("/readyz")).json()["detail"]
    )
    await outage.end()
    await outage.drained()
    await readiness(outage.client, None)
    lines = [json.loads(line) for line in outage.running.log.read_text().splitlines() if line.startswith("{")]
    told = [line for line in lines if line["level"] != "info"]
    [begin] = [line for line in told if line["message"] == "Postgres cannot commit"]
    [end] = [line for line in told if line["message"] == "Postgres commits again"]
    assert begin["server"] == end["server"] == outage.between.url.partition("@")[2].partition("/")[0]
    assert (begin["events_are"], end["replayed_events"]) == ("spooled", 4)
    rounds = [line["message"] for line in told if line["logger"] == "app.workers"]
    assert len(rounds) == len(set(rounds)), rounds  # a round may have failed before the outage was known


async def readiness(client: httpx.AsyncClient, database: str | None) -> dict[str, str]:
    """What /readyz says as soon as it says `database`."""
    for _ in range(600):
        ready = await client.get("/readyz")
        if ready.json().get("database") == database:
            state: dict[str, str] = ready.json()
            assert ready.status_code == 200
            return state
        await asyncio.sleep(0.05)
    raise AssertionError(ready.text)


async def test_a_server_that_turns_read_only(
    service: Callable[..., Service], database_url: str, connection: Any
) -> None:
    """The service calls itself ready without a word while nothing can be committed, or does not notice that it can again."""
    name = name_of(database_url)
    others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1 AND pid <> pg_backend_pid()"

    running = await asyncio.to_thread(service)
    async with httpx.AsyncClient(base_url=running.url, timeout=30) as client:
        await connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        await connection.execute(others, name)
        assert "read-only" in (await readiness(client, "unreachable"))["detail"]
        assert (await client.post(EVENTS, json=make_event(correlation_id="rr-1"))).status_code == 202
        assert (await client.get("/health")).status_code == 503
        await connection.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
        await connection.execute(others, name)
        await Outage(Proxy(database_url), running, client).drained()
        await readiness(client, None)
        assert len((await client.get(EVENTS, params={"correlation_id": "rr-1"})).json()["data"]) == 1


def test_a_wrong_database_is_named(database_url: str, tmp_path: Path) -> None:
    """A service whose role, password or database is wrong waits without saying so."""
    wrong = database_url.replace(name_of(database_url), "nothing")
    one = spawn({"database_url": wrong, "unsafe_database": True}, tmp_path / "service")

    def words() -> str | None:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{one.url}/readyz").json().get("detail") if one.log.stat().st_size else None
        return None

    until(lambda: 'database "nothing" does not exist' in (words() or "") or None)
    assert 'database \\"nothing\\" does not exist' in one.log.read_text()
    assert stop([one]) == [0]


async def test_order_is_kept(outage: Outage) -> None:
    """Events of a correlation that waits in the spool are overtaken by later ones."""
    await outage.begin()
    for step in range(5):
        assert (await outage.post(correlation_id="rr-1", event_action=f"step-{step}")).status_code == 202
    await outage.end()
    statuses = [(await outage.post(correlation_id="rr-1", event_action=f"step-{s}")).status_code for s in range(5, 12)]
    assert set(statuses) <= {201, 202}
    await outage.drained()
    found = await outage.client.get(EVENTS, params={"correlation_id": "rr-1"})
    chain = {event["previous_event_hash"]: event for event in found.json()["data"]}
    order, at = [], ""
    while at in chain:
        order.append(chain[at]["event_action"])
        at = chain[at]["event_hash"]
    assert order == [f"step-{step}" for step in range(12)]


async def test_resend_after_an_outage(outage: Outage) -> None:
    """A client that resends what was answered 202 stores it twice."""
    batch = [make_event(correlation_id="rr-1") for _ in range(3)]
    event = make_event(correlation_id="rr-1", event_id=str(uuid4()))
    keyed = make_event(correlation_id="rr-1")
    key = {"Idempotency-Key": f'"{uuid4()}"'}
    answers = []
    for _ in range(2):
        await outage.begin()
        for _ in range(2):
            answers.append((await outage.client.post(BATCH, json=batch)).json()["event_ids"])
            answers.append([(await outage.client.post(EVENTS, json=event)).json()["event_id"]])
            answers.append([(await outage.client.post(EVENTS, json=keyed, headers=key)).json()["event_id"]])
        await outage.end()
        await outage.drained()
    assert all(answer == answers[n % 3] for n, answer in enumerate(answers))
    assert (await outage.client.post(BATCH, json=batch)).json()["event_ids"] == answers[0]
    assert len(await outage.actions("rr-1")) == 5


async def test_conflict_found_at_replay_is_quarantined(
    outage: Outage, service: Callable[..., Service], database_url: str
) -> None:
    """An acknowledged event that conflicts stops the replay, or the rest of its batch is not stored."""
    other = await asyncio.to_thread(service, database_url=database_url)
    event_id = str(uuid4())
    async with httpx.AsyncClient(base_url=other.url, timeout=30) as elsewhere:
        assert (
            await elsewhere.post(EVENTS, json=make_event(event_id=event_id, event_action="first"))
        ).status_code == 201
    await outage.begin()
    batch = [
        make_event(correlation_id="rr-2"),
        make_event(correlation_id="rr-2", event_id=event_id),
        make_event(correlation_id="rr-2"),
    ]
    assert (await outage.client.post(BATCH, json=batch)).status_code == 201
    assert (await outage.post(correlation_id="rr-2")).status_code == 202
    await outage.end()
    await outage.drained()
    assert len(await outage.actions("rr-2")) == 3
    assert await outage.metric("datastorage_spool_quarantined_events") == 1
    assert await outage.metric("datastorage_spool_oldest_age_seconds") == 0
    assert await outage.metric("datastorage_quarantined_events_total") == 1


async def test_parents_while_postgres_is_away(outage: Outage) -> None:
    """A child is refused since its parent cannot be looked up."""
    before = (await outage.post(correlation_id="rr-1")).json()["event_id"]
    await outage.begin()
    waiting = (await outage.post(correlation_id="rr-1")).json()["event_id"]
    for parent in (before, waiting):
        assert (await outage.post(correlation_id="rr-1", parent_event_id=parent)).status_code == 202
    await outage.end()
    await outage.drained()
    found = (await outage.client.get(EVENTS, params={"correlation_id": "rr-1"})).json()["data"]
    assert {event["parent_event_id"] for event in found} == {None, before, waiting}


async def test_killed_in_an_outage(database_url: str, tmp_path: Any) -> None:
    """What was acknowledged from the spool is lost with the process."""
    async with proxy(database_url) as between:
        settings = {"database_url": between.url, "unsafe_database": True, "spool_dir": tmp_path / "spool"}
        first = await asyncio.to_thread(spawn, settings, tmp_path / "first")
        await asyncio.to_thread(wait_until_ready, first)
        await between.refuse(True)
        async with httpx.AsyncClient(base_url=first.url, timeout=30) as client:
            posts = [client.post(EVENTS, json=make_event(correlation_id=f"rr-{n % 5}")) for n in range(100)]
            answers = await asyncio.gather(*posts)
        first.process.send_signal(signal.SIGKILL)
        first.process.wait()
        ids = {answer.json()["event_id"] for answer in answers if answer.status_code == 202}
        assert len(ids) == 100
        await between.refuse(False)
        second = await asyncio.to_thread(spawn, settings, tmp_path / "second")
        await asyncio.to_thread(wait_until_ready, second)
        async with httpx.AsyncClient(base_url=second.url, timeout=30) as client:
            there = Outage(between, second, client)
            await there.drained()
            found = (await client.get(EVENTS, params={"limit": 1000})).json()["data"]
        second.process.send_signal(signal.SIGTERM)
        assert second.process.wait(30) == 0
    assert {event["event_id"] for event in found} == ids


async def test_spool_of_a_pod_that_never_comes_back(database_url: str, tmp_path: Any) -> None:
    """The events on a dead pod's volume cannot be listed, or cannot be replayed."""
    spool = tmp_path / "spool"
    async with proxy(database_url) as between:
        settings = {"database_url": between.url, "unsafe_database": True, "spool_dir": spool}
        dead = await asyncio.to_thread(spawn, settings, tmp_path / "dead")
        await asyncio.to_thread(wait_until_ready, dead)
        await between.refuse(True)
        async with httpx.AsyncClient(base_url=dead.url, timeout=30) as client:
            for n in range(3):
                event = make_event(correlation_id="rr-1", event_action=f"step-{n}")
                assert (await client.post(EVENTS, json=event)).status_code == 202
        dead.process.send_signal(signal.SIGKILL)
        dead.process.wait()
    assert run("list", spool, database_url).count("waiting") == 3
    assert [json.loads(line)["event_action"] for line in run("export", spool, database_url).splitlines()] == [
        f"step-{n}" for n in range(3)
    ]
    assert "3 events and 0 notifications replayed from the spool; 0 events" in run("replay", spool, database_url)
    assert run("list", spool, database_url) == ""


def run(act: str, directory: Path, database_url: str) -> str:
    env = {"DATASTORAGE_DATABASE_URL": database_url, "DATASTORAGE_UNSAFE_DATABASE": "true", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "app", "spool", act, str(directory)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=True).stdout


async def test_shutdown_in_an_outage(database_url: str, connection: Any, tmp_path: Any) -> None:
    """Requests in flight are lost when the service is stopped, or it does not stop, since Postgres does not answer."""
    # A worker waits for a lock, so that it has a query to cancel.
    await connection.execute("SELECT pg_advisory_lock(audit_event_lock_id('datastorage:partitions'))")
    async with proxy(database_url) as between:
        settings = {"database_url": between.url, "unsafe_database": True, "spool_dir": tmp_path / "spool"}
        one = await asyncio.to_thread(spawn, settings, tmp_path / "one")
        await asyncio.to_thread(wait_until_ready, one)
        for _ in range(500):
            if await connection.fetchval("SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"):
                break
            await asyncio.sleep(0.01)
        between.silent = True
        async with httpx.AsyncClient(base_url=one.url, timeout=30) as client:
            posting = [asyncio.create_task(client.post(EVENTS, json=make_event())) for _ in range(20)]

            async def are_taken() -> bool | None:
                return (
                    True if "\ndatastorage_events_accepted_total 20.0" in (await client.get("/metrics")).text else None
                )

            await eventually(are_taken)
            one.process.send_signal(signal.SIGTERM)
            answers = await asyncio.gather(*posting)
            assert await asyncio.to_thread(one.process.wait, 30) == 0
    await connection.execute("SELECT pg_advisory_unlock_all()")
    assert [answer.status_code for answer in answers] == [202] * 20
    assert run("list", tmp_path / "spool", database_url).count("waiting") >= 1
    assert "20 events and 0 notifications" in run("replay", tmp_path / "spool", database_url)


async def test_start_without_postgres(database_url: str, tmp_path: Any) -> None:
    """A service that starts before its database exits, or does not log what it waits for, or does not see the database when it comes."""
    async with proxy(database_url) as between:
        await between.refuse(True)
        settings = {"database_url": between.url, "unsafe_database": True}
        one = await asyncio.to_thread(spawn, settings, tmp_path / "one")
        async with httpx.AsyncClient(base_url=one.url, timeout=30) as client:
            for _ in range(200):
                with contextlib.suppress(httpx.ConnectError):
                    answer = await client.get("/readyz")
                    if "127.0.0.1" in answer.json().get("detail", ""):
                        break
                await asyncio.sleep(0.05)
            assert (answer.status_code, answer.json()["reason"]) == (503, "database_unreachable")
            await between.refuse(False)
            await asyncio.to_thread(wait_until_ready, one)
        one.process.send_signal(signal.SIGTERM)
        assert one.process.wait(30) == 0
    assert "waiting for Postgres" in one.log.read_text()


@pytest.mark.every_pod
async def test_every_event_is_accounted_for(outage: Outage) -> None:
    """The counters do not add up: a loss could not be seen."""
    await outage.post()
    event = make_event(event_id=str(uuid4()))
    for _ in range(2):
        await outage.client.post(EVENTS, json=event)
    await outage.client.post(EVENTS, json=event | {"event_action": "other"})
    await outage.begin()
    for _ in range(5):
        await outage.post()
    assert await outage.balance() == 0
    await outage.end()
    await outage.drained()
    assert await outage.balance() == 0


def test_one_process_for_each_spool(service: Callable[..., Service], database_url: str, tmp_path: Any) -> None:
    """Two processes share a spool and replay each other's events."""
    service(spool_dir=tmp_path / "spool")
    second = spawn(
        {"database_url": database_url, "unsafe_database": True, "spool_dir": tmp_path / "spool"}, tmp_path / "second"
    )
    assert second.process.wait(20) == 1
    assert "Another DataStorage uses the spool" in second.log.read_text()


async def test_full_spool_refuses(service: Callable[..., Service], database_url: str) -> None:
    """A full spool acknowledges what it cannot store, or the service reports that it is ready."""
    async with started(service, database_url, spool_bytes_max=1 << 20) as outage:
        await outage.begin()
        statuses = []
        for _ in range(8):
            answer = await outage.post(error_message="x" * 200_000)
            statuses.append(answer.status_code)
        assert statuses.count(202) in range(1, 8)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        await outage.end()
        await outage.drained()
        assert len(await outage.actions("rr-1")) in {0, statuses.count(202)}


async def test_postgres_that_stops_answering(
    service: Callable[..., Service], database_url: str, connection: Any
) -> None:
    """A server that receives statements and never answers delays every request to its deadline, for ever."""
    async with started(service, database_url, single_deadline_ms=2_000) as outage:
        await outage.post()
        outage.between.silent = True
        started_at = time.monotonic()
        answers = await asyncio.gather(*(outage.post(correlation_id=f"rr-{n}") for n in range(20)))
        assert [answer.status_code for answer in answers] == [202] * 20
        assert time.monotonic() - started_at < 20  # one after the other they would take 40
        outage.between.silent = False
        await outage.between.refuse(True)
        await outage.end()
        await outage.drained()
    assert await connection.fetchval("SELECT count(*) FROM audit_events") == 21


async def test_room_for_batches(service: Callable[..., Service], database_url: str) -> None:
    """Large batches gather in memory without bound while Postgres does not answer, or shut out all others."""
    batch = [make_event(error_message="x" * 3_000) for _ in range(220)]
    async with started(service, database_url, inbox_bytes_max=1 << 20, batch_deadline_ms=2_000) as outage:
        outage.between.silent = True
        first = asyncio.create_task(outage.client.post(BATCH, json=batch))
        while not first.done() and not await outage.metric("datastorage_inbox_events"):  # noqa: ASYNC110 - another process's
            await asyncio.sleep(0.01)
        body = json.dumps(batch).encode()
        for content in (body, chunks(body)):
            refused = await outage.client.post(BATCH, content=content, headers={"Content-Type": "application/json"})
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        small = asyncio.create_task(outage.client.post(BATCH, json=[make_event()]))
        await asyncio.sleep(0.3)
        outage.between.silent = False
        assert ((await first).status_code, (await small).status_code) == (201, 201)
        assert (await outage.client.post(BATCH, json=batch * 2)).status_code == 201


async def chunks(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), 1 << 16):
        yield body[start : start + (1 << 16)]
