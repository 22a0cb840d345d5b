"""GET /api/v1/audit/stream, from outside: what it sends, where it begins and goes on, whom it refuses, and how it ends."""

import asyncio
import hashlib
import json
import signal
import socket
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import httpx
import pytest

from tests.events import make_event
from tests.postgres.log import write
from tests.services import Service
from tests.streams import STREAM, Record, events_of, following
from tests.waiting import eventually, until

Start = Callable[..., Service]
EVENTS = "/api/v1/audit/events"


async def post(url: str, number: int = 1, **members: object) -> list[str]:
    """The ids of events that were posted one after another."""
    ids = []
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        for _ in range(number):
            answer = await client.post(EVENTS, json=make_event(**members))
            assert answer.status_code == 201, answer.text
            ids.append(answer.json()["event_id"])
    return ids


async def get(url: str, headers: dict[str, str] | None = None) -> httpx.Response:
    async with httpx.AsyncClient(timeout=60) as client:
        return await client.get(url, headers=headers)


def ids_of(found: list[Record]) -> list[str]:
    return [record.data["event_id"] for record in found]


@pytest.mark.every_pod
async def test_what_is_there_and_what_comes(service: Start) -> None:
    """A stream skips what is committed while it goes from the past to the present, or needs a poll to see it."""
    url = service().url
    ids = await post(url, 3)
    async with following(url, start="start") as stream, following(url) as live:
        first = await anext(stream)
        assert (first.name, first.data) == ("position", {"stream": "position", "place": "0:0"})
        assert (await anext(live)).data["place"] == "0:3"
        found = await events_of(stream, 3)
        assert [record.id for record in found] == ["0:0", "0:1", "0:2"]
        ids += await post(url, 2)
        assert ids_of(found + await events_of(stream, 2)) == ids
        assert ids_of(await events_of(live, 2)) == ids[3:]


async def test_where_it_goes_on(service: Start) -> None:
    """A client that was disconnected gets an event twice, or misses one."""
    url = service().url
    ids = await post(url, 5)
    for last in range(5):
        async with following(url, last=f"0:{last}", start="start") as stream:
            assert (await anext(stream)).id == f"0:{last}"
            if last < 4:
                assert ids_of(await events_of(stream, 4 - last)) == ids[last + 1 :]
        async with following(url, start=f"0:{last}") as stream:
            assert ids_of(await events_of(stream, 5 - last)) == ids[last:]


async def test_lines(service: Start) -> None:
    """Accept is ignored, or a line of ndjson is another form than an export's."""
    url = service().url
    await post(url, 2)
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        exported = (await client.get("/api/v1/audit/export?format=ndjson")).text.splitlines()
        asked = client.stream("GET", f"{STREAM}?from=start", headers={"Accept": "application/x-ndjson"})
        async with asked as answer:
            assert answer.headers["content-type"] == "application/x-ndjson"
            lines = answer.aiter_lines()
            assert json.loads(await anext(lines)) == {"stream": "position", "place": "0:0"}
            assert [await anext(lines) for _ in range(2)] == exported[:2]


async def test_nothing_is_held_back_for_compression(service: Start) -> None:
    """An event waits in a compressor until more of them have come."""
    url = service().url
    async with following(url, start="start", headers={"Accept-Encoding": "gzip"}) as stream:
        for _ in range(3):
            ids = await post(url)
            assert ids_of(await events_of(stream, 1)) == ids


async def test_filters(service: Start) -> None:
    """A stream sends what its filter leaves out, or one filter's events to those with another."""
    url = service().url
    own = f"rr-own-{'x' * 8}"
    async with following(url, correlation_id=own) as filtered, following(url, event_outcome="failure") as failures:
        assert (await anext(filtered)).name == "position"
        assert (await anext(failures)).name == "position"
        await post(url, 2)
        ids = await post(url, 2, correlation_id=own)
        failed = await post(url, 1, event_outcome="failure")
        assert ids_of(await events_of(filtered, 2)) == ids
        assert ids_of(await events_of(failures, 1)) == failed


@pytest.mark.parametrize(
    ("query", "field", "text"),
    [
        ("from=0:9", "from", "the next event will be 0:2"),
        ("from=7:0", "from", "the next event will be 0:2"),
        ("from=yesterday", "from", "LOG:POSITION"),
        ("sealed=false", "sealed", "sealed events only"),
        ("limit=5", "limit", "belongs to pages"),
        ("order=log", "order", "belongs to pages"),
        ("cursor=x", "cursor", "belongs to pages"),
        ("correlationid=x", "correlationid", "the nearest is correlation_id"),
        ("q=x", "q", "since"),
    ],
)
async def test_what_is_refused(service: Start, query: str, field: str, text: str) -> None:
    """Somebody follows something else than what was asked for, or is not told what is wrong."""
    url = service().url
    await post(url, 2)
    answer = await get(f"{url}{STREAM}?{query}")
    assert answer.status_code == 400
    assert text in answer.json()["field_errors"][field]
    assert (await get(url + STREAM, {"Last-Event-ID": "x"})).status_code == 400


async def test_no_more_than_fit(service: Start) -> None:
    """Streams fill the process, or one caller takes all of them; one that has ended still counts."""
    url = service(streams_max=2).url  # one caller has half
    async with following(url) as stream:
        await anext(stream)
        refused = await get(url + STREAM)
        assert (refused.status_code, "retry-after" in refused.headers) == (503, True)
        assert (await get(url + EVENTS)).status_code == 200

    async def again() -> bool | None:
        async with httpx.AsyncClient(timeout=60) as client, client.stream("GET", url + STREAM) as answer:
            return True if answer.status_code == 200 else None

    await eventually(again)


@pytest.mark.every_pod
async def test_the_service_stops(service: Start) -> None:
    """A stop waits for streams, or cuts them without a word of where they were."""
    one = service()
    await post(one.url, 2)
    async with following(one.url, start="start") as stream:
        await events_of(stream, 2)
        one.process.send_signal(signal.SIGTERM)
        last = [record async for record in stream][-1]
        assert last.data == {"stream": "closed", "place": "0:2", "reason": "shutdown"}
    assert await asyncio.to_thread(one.process.wait, 60) == 0


async def test_it_ends_after_its_time(service: Start) -> None:
    """A stream is for ever, so that a client that has lost its role follows on, or its client does not hear that it may go on."""
    url = service(stream_seconds_max=1).url
    async with following(url) as stream:
        last = [record async for record in stream][-1]
    assert last.data == {"stream": "closed", "place": "0:0", "reason": "time"}


async def test_it_ends_with_its_token(service: Start, tmp_path: Path) -> None:
    """Who has a token that is out follows on; or somebody's reads are audited, but not what they follow."""
    tokens = tmp_path / "tokens.yaml"

    def write(name: str, expires: datetime) -> dict[str, str]:
        token = f"ds_{name}"
        digest = hashlib.sha256(token.encode()).hexdigest()
        until_then = f"{expires:%Y-%m-%dT%H:%M:%SZ}"
        tokens.write_text(f"- name: {name}\n  role: auditor\n  sha256: {digest}\n  expires: {until_then}\n")
        return {"Authorization": f"Bearer {token}"}

    write("first", datetime.now(UTC) + timedelta(days=1))
    url = service(auth="tokens", tokens_file=tokens, audit_reads=True).url
    headers = write("ada", datetime.now(UTC) + timedelta(seconds=15))
    await eventually(partial(is_admitted, url, headers))
    async with following(url, start="start", include="self", headers=headers) as stream:
        found = [record async for record in stream]
    assert found[-1].data["reason"] == "token"
    read = [record.data for record in found if record.data.get("event_type") == "datastorage.read.audited"][-1]
    assert (read["actor_id"], read["event_data"]["http_path"]) == ("ada", STREAM)


async def is_admitted(url: str, headers: dict[str, str]) -> bool | None:
    return True if (await get(url + EVENTS, headers=headers)).status_code == 200 else None


@pytest.mark.every_pod
async def test_clients_that_go_leave_nothing(service: Start) -> None:
    """A stream stays when its client is gone: after a day of them the process is full."""
    url = service().url
    await post(url)
    for _ in range(5):
        async with following(url, start="start") as stream:
            await events_of(stream, 1)

    async def none_left() -> bool | None:
        return True if "\ndatastorage_streams 0.0" in (await get(f"{url}/metrics")).text else None

    await eventually(none_left)


async def test_a_client_that_does_not_read(service: Start) -> None:
    """One client that reads nothing keeps its stream for ever, or others wait for it."""
    one = service(stream_stall_ms=1_000)
    big = {"event_type": "orchestrator.lifecycle.started", "rr_name": "rr", "namespace": "x" * 100_000}
    async with httpx.AsyncClient(base_url=one.url, timeout=60) as client:
        for _ in range(4):  # more than the buffers of two sockets have space for
            batch = [make_event(event_type=big["event_type"], event_data=big) for _ in range(30)]
            assert (await client.post(f"{EVENTS}/batch", json=batch)).status_code == 201
    address = urlsplit(one.url)
    with socket.create_connection((address.hostname, address.port)) as idle:
        idle.sendall(f"GET {STREAM}?from=start HTTP/1.1\r\nHost: {address.netloc}\r\n\r\n".encode())
        until(lambda: True if "receives too slowly" in one.log.read_text() else None)
        async with following(one.url, start="0:119") as stream:
            assert len(await events_of(stream, 1)) == 1


@pytest.mark.every_pod
async def test_a_hundred_who_wait(service: Start) -> None:
    """Who waits with many others is not woken, or gets what the others have."""
    url = service().url
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=httpx.Limits(max_connections=None)) as client:
        begun, ends = asyncio.Semaphore(0), list[str]()

        async def follow() -> list[str]:
            found = list[str]()
            async with client.stream("GET", STREAM) as answer:
                if answer.status_code == 200:
                    begun.release()
                async for line in answer.aiter_lines():
                    if line.startswith("data: ") and '"event_id"' in line:
                        found.append(json.loads(line[6:])["event_id"])
                    if len(found) == 3:
                        return found
            assert answer.status_code == 503  # there were too many at once, or the machine is busy
            await asyncio.sleep(1)
            return await follow()

        tasks = [asyncio.create_task(follow()) for _ in range(120)]
        for _ in tasks:
            await begun.acquire()
        ends = await post(url, 3)
        assert await asyncio.gather(*tasks) == [ends] * 120


async def test_what_nobody_announces(service: Start, database_url: str) -> None:
    """What was committed by a command, or by a writer that was killed before it could announce it, is not sent until something else comes."""
    async with following(service().url) as stream:
        await anext(stream)
        ids = await write(database_url, {})
        assert ids_of(await events_of(stream, 1)) == [str(one) for one in ids]


@pytest.mark.every_pod
async def test_postgres_ends_every_connection(service: Start, connection: asyncpg.Connection) -> None:
    """A restart of Postgres ends streams, or has them repeat or skip what was committed around it."""
    url = service().url
    ids = await post(url, 3)
    async with following(url, start="start") as stream, following(url) as other:
        found = await events_of(stream, 3)
        await anext(other)
        for _ in range(3):
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            ids += await post(url, 2)
        found += await events_of(stream, 6)
        assert ids_of(found) == ids
        assert ids_of(await events_of(other, 6)) == ids[3:]
