"""Whoever follows the log hears of its growth, whatever happens to the connection on which he hears it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import asyncpg
import httpx
import pytest
from pydantic import SecretStr

from app.settings import Settings
from app.stream import growth as growth_module
from app.stream.growth import CHANNEL, Follower, LogGrowth, announce_forever
from tests.events import make_event
from tests.services import Service
from tests.waiting import eventually

Connection = asyncpg.Connection
LISTENERS = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND query = 'SELECT' AND pid <> pg_backend_pid()"


@pytest.fixture(autouse=True)
def no_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody hears of anything because he looks anyway."""
    monkeypatch.setattr(growth_module, "_LOOK_SECONDS", 3600.0)


def settings_of(database_url: str) -> Settings:
    return Settings(database_url=SecretStr(database_url))


@asynccontextmanager
async def announcing(database_url: str, committed: asyncio.Event) -> AsyncIterator[None]:
    worker = asyncio.create_task(announce_forever(settings_of(database_url), committed))
    try:
        yield
    finally:
        worker.cancel()
        await asyncio.wait([worker])


async def listener(connection: Connection) -> int:
    """The process of the connection on which this process listens, once it does."""

    async def poll() -> int | None:
        pid: int | None = await connection.fetchval(LISTENERS)
        return pid

    return await eventually(poll)


async def hears(follower: Follower) -> None:
    async with asyncio.timeout(30):
        await follower.wait()


async def heard_first(follower: Follower, connection: Connection) -> None:
    """Wait until the connection is there, and for what is heard because of that."""
    await listener(connection)
    await hears(follower)


async def test_an_announcement_wakes_all_who_follow(database_url: str, connection: Connection) -> None:
    """A follower sleeps although the log has grown, or only the first one is woken."""
    growth, committed = LogGrowth(settings_of(database_url)), asyncio.Event()
    async with announcing(database_url, committed), growth.follow() as one, growth.follow() as other:
        await heard_first(one, connection)
        await hears(other)
        heard = growth.count
        committed.set()
        await asyncio.gather(hears(one), hears(other))
        assert growth.count > heard


async def test_growth_while_one_reads_is_not_waited_for(database_url: str, connection: Connection) -> None:
    """What is committed between the read of the end and the wait is heard too late."""
    growth = LogGrowth(settings_of(database_url))
    async with growth.follow() as follower:
        await heard_first(follower, connection)
        heard = growth.count
        await connection.execute("SELECT pg_notify($1, '')", CHANNEL)

        async def grown() -> bool | None:
            return True if growth.count > heard else None

        await eventually(grown)
        with pytest.raises(StopIteration):
            follower.wait().send(None)  # returns without having waited


async def test_one_connection_while_anybody_follows(database_url: str, connection: Connection) -> None:
    """Each follower has a connection of Postgres, or one stays when nobody follows any more, or there is none the second time."""
    growth = LogGrowth(settings_of(database_url))

    async def nobody_listens() -> bool | None:
        return True if await connection.fetchval(LISTENERS) is None else None

    for _ in range(2):
        async with growth.follow() as first:
            await heard_first(first, connection)
            async with growth.follow(), growth.follow():
                await connection.execute("SELECT pg_notify($1, '')", CHANNEL)
                await hears(first)
                assert len(await connection.fetch(LISTENERS)) == 1
        await eventually(nobody_listens)


async def test_one_look_wakes_once(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """While nothing comes, each look has everybody who follows read the end of the log twice."""
    looks = 0

    class Counted(dict[str, str]):
        def __getitem__(self, name: str) -> str:
            nonlocal looks
            looks += name == "alive"
            return super().__getitem__(name)

    monkeypatch.setattr(growth_module, "SQL", Counted(growth_module.SQL))
    monkeypatch.setattr(growth_module, "_LOOK_SECONDS", 0.01)
    growth = LogGrowth(settings_of(database_url))
    async with growth.follow() as follower:
        while looks < 10:
            await hears(follower)
        assert growth.count in {looks - 1, looks}


async def test_a_lost_connection_is_opened_again(database_url: str, connection: Connection) -> None:
    """Followers sleep for ever once Postgres was restarted."""
    growth = LogGrowth(settings_of(database_url))
    async with growth.follow() as follower:
        await heard_first(follower, connection)
        pid = await listener(connection)
        await connection.execute("SELECT pg_terminate_backend($1)", pid)
        await hears(follower)

        async def again() -> bool | None:
            found = await connection.fetchval(LISTENERS)
            return True if found not in {None, pid} else None

        await eventually(again)
        heard = growth.count
        await connection.execute("SELECT pg_notify($1, '')", CHANNEL)
        while growth.count == heard:
            await hears(follower)


async def test_an_announcement_that_failed_is_made_again(database_url: str, connection: Connection) -> None:
    """The log grew while the connection of announcements was lost, and nobody ever hears of it."""
    heard = asyncio.Queue[str]()
    await connection.add_listener(CHANNEL, lambda *_: heard.put_nowait("grown"))
    committed = asyncio.Event()
    async with announcing(database_url, committed):
        committed.set()
        await asyncio.wait_for(heard.get(), 30)
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'SELECT pg_notify%' AND pid <> pg_backend_pid()"
        )
        committed.set()
        await asyncio.wait_for(heard.get(), 30)


async def test_who_posts_is_heard(service: Callable[..., Service], connection: Connection) -> None:
    """The process that writes announces nothing."""
    heard = asyncio.Queue[str]()
    await connection.add_listener(CHANNEL, lambda *_: heard.put_nowait("grown"))
    async with httpx.AsyncClient(base_url=service().url) as client:
        while not heard.empty():
            heard.get_nowait()
        assert (await client.post("/api/v1/audit/events", json=make_event())).status_code == 201
        await asyncio.wait_for(heard.get(), 30)
