"""Each subscriber of the stream gets each position exactly once, whatever writers, commits and connections do meanwhile."""

import asyncio
import random
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
from pydantic import SecretStr

from app.db import Connection as DriverConnection
from app.events.catalog import Catalog
from app.ingest.accept import Acceptance, accept, check_item, single_id
from app.ingest.link import Flush
from app.ingest.store import LostRace, Store
from app.settings import Settings
from app.tlog.continued import newest_log
from tests.events import make_event
from tests.logs import FIRST_LOG
from tests.services import Service, spawn, stop, wait_until_ready
from tests.streams import STREAM, records

Connection = asyncpg.Connection
EVENTS = 40
SEED = 1
"""Positions at least; and as many subscribers."""


async def write_slowly(url: str, number: int, chance: random.Random, stopped: asyncio.Event) -> None:
    """Flushes of another replica, whose commits come late: the log is locked, and nothing of it can be seen meanwhile."""
    store = Store(Settings(database_url=SecretStr(url)), FIRST_LOG, find_log=newest_log)

    async def wait(connection: DriverConnection, flush: Flush) -> None:
        del connection, flush
        await asyncio.sleep(chance.random() * 0.05)

    try:
        for _ in range(number):
            now = datetime.now(UTC)
            drafts = [
                check_item(Catalog(), make_event(), "", plain=False, depth=3) for _ in range(chance.randint(1, 4))
            ]
            events = accept(drafts, [single_id(draft) for draft in drafts], Acceptance(now, {}, FIRST_LOG.name))
            while True:
                try:
                    await store.commit(events, [], asyncio.get_running_loop().time() + 60, wait)
                    break
                except LostRace:
                    store.reset_after_lost_race()
            await asyncio.sleep(chance.random() * 0.02)
    finally:
        store.disconnect()
        stopped.set()


async def post(urls: list[str], chance: random.Random, stopped: asyncio.Event) -> None:
    """Events through the services, until the others have written theirs; one that is away is left out."""
    async with httpx.AsyncClient(timeout=60) as client:
        while not stopped.is_set():
            try:
                await client.post(chance.choice(urls) + "/api/v1/audit/events", json=make_event())
            except httpx.HTTPError:
                await asyncio.sleep(0.05)
            await asyncio.sleep(chance.random() * 0.05)


async def subscribe(
    client: httpx.AsyncClient, urls: list[str], first: int, end: asyncio.Future[int], chance: random.Random
) -> list[int]:
    """The positions that somebody gets who begins at `first`, and comes and goes until he has all before `end`."""
    found: list[int] = []
    while not (end.done() and first + len(found) >= end.result()):
        last = found[-1] if found else first - 1
        where: dict[str, Any] = {"params": {"include": "self", "from": f"0:{first}"}}
        if found:
            where["headers"] = {"Last-Event-ID": f"0:{last}"}
        patience = chance.randint(1, 40)
        try:
            async with asyncio.timeout(5), client.stream("GET", chance.choice(urls) + STREAM, **where) as answer:
                if answer.status_code != 200:  # it stops, or the first event is not there yet
                    await asyncio.sleep(0.05)
                    continue
                async for record in records(answer):
                    if record.name == "audit":
                        assert record.id == f"0:{record.data['log_index']}"
                        found.append(record.data["log_index"])
                        patience -= 1
                    if not patience or (end.done() and first + len(found) >= end.result()):
                        break
        except (httpx.HTTPError, TimeoutError):
            continue
    return found


@pytest.mark.every_pod
async def test_every_position_exactly_once(
    service: Callable[..., Service], database_url: str, connection: Connection, processes: int, tmp_path: Path
) -> None:
    """A late commit is overtaken by a later one and skipped, a subscriber gets an event twice after a restart, or one too few."""
    chance = random.Random(SEED)
    lasting = service()
    settings: dict[str, object] = {"database_url": database_url, "unsafe_database": True, "processes": processes}
    other = await asyncio.to_thread(spawn, settings, tmp_path / "other-0")
    await asyncio.to_thread(wait_until_ready, other)
    port = other.url.rpartition(":")[2]
    urls, stopped = [lasting.url, other.url], asyncio.Event()
    end: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=60, limits=limits) as client, asyncio.TaskGroup() as group:
        subscribers = [
            group.create_task(subscribe(client, urls, first, end, random.Random(SEED + first)))
            for first in range(EVENTS)
        ]
        writers = [
            group.create_task(write_slowly(database_url, EVENTS // 4, random.Random(SEED), stopped)),
            group.create_task(write_slowly(database_url, EVENTS // 4, random.Random(SEED + 1), stopped)),
            group.create_task(post(urls, chance, stopped)),
        ]
        for number in range(2):
            await asyncio.sleep(0.5)
            if number:
                other.process.kill()
                await asyncio.to_thread(other.process.wait)
            else:
                await asyncio.to_thread(stop, [other])
            other = await asyncio.to_thread(spawn, settings | {"port": port}, tmp_path / f"other-{number + 1}")
            await asyncio.to_thread(wait_until_ready, other)
        await asyncio.wait(writers)
        size: int = await connection.fetchval("SELECT max(first_index + count) FROM log_flushes")
        end.set_result(max(size, EVENTS))
    assert size >= EVENTS
    for first, task in enumerate(subscribers):
        found = task.result()
        assert found[: size - first] == list(range(first, size)), first
    await asyncio.to_thread(stop, [other])
