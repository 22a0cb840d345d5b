"""Retention and sinks: what a sink has yet to be sent is not purged, whatever the sink does, and the sink is named."""

import asyncio
from typing import Any

import asyncpg
import pytest

from app.retention import purge
from app.retention.awaited import AwaitedSinks
from app.stream import cursor
from tests.postgres.test_retention import NOW, self_events, settings_of, stored, write

pytestmark = pytest.mark.damaged  # the verification at the end of every test does not know purges
Connection = asyncpg.Connection
DUE = {"retention_days": 10}


async def positions(connection: Connection) -> list[int]:
    rows = await connection.fetch(
        "SELECT log_index FROM audit_events WHERE event_category <> 'security' ORDER BY log_index"
    )
    return [row["log_index"] for row in rows]


@pytest.mark.parametrize("is_whole", [True, False])
@pytest.mark.parametrize("paused", [True, False])
async def test_what_a_sink_awaits_stays(
    connection: Connection, database_url: str, is_whole: bool, paused: bool
) -> None:
    """A purge, of single rows or of a whole month, takes what a sink has yet to be sent; or nobody is told who holds it back."""
    await write(database_url, *(DUE for _ in range(6)))
    if not is_whole:
        await write(database_url, {"retention_days": 2555})
    await cursor.create_cursor(connection, "soc", "webhook", "https://h", 4)
    await cursor.create_cursor(connection, "ahead", "webhook", "https://h", 7)
    await cursor.pause(connection, "soc", paused=paused)
    done = await purge.run(settings_of(database_url), NOW)
    stays = [4, 5] if is_whole else [4, 5, 6]
    assert (await positions(connection), done.rows_deleted, done.dropped) == (stays, 4, [])
    assert [(one.name, one.place, one.paused) for one in done.held_back_by] == [("soc", 4, paused)]
    message = await connection.fetchval("SELECT error_message FROM retention_operations")
    assert "Sink soc" in message
    assert "from 0:4 on" in message
    assert [one["positions"] for one in await self_events(connection, "purged")] == ["{[0,4)}"]
    await cursor.rewind(connection, "soc", 6)
    assert (await purge.run(settings_of(database_url), NOW)).held_back_by == []
    assert await positions(connection) == stays[2:]


async def test_whoever_does_not_want_to_wait(connection: Connection, database_url: str) -> None:
    """A forgotten sink keeps events for ever although it was removed, or although the settings say not to wait."""
    await write(database_url, *(DUE for _ in range(3)))
    await cursor.create_cursor(connection, "soc", "webhook", "https://h", 1)
    done = await purge.run(settings_of(database_url, retention_awaits_sinks=False), NOW)
    assert (await stored(connection), done.held_back_by) == (set(), [])
    await write(database_url, *(DUE for _ in range(3)))
    assert (await purge.run(settings_of(database_url), NOW)).held_back_by
    await cursor.remove(connection, "soc")
    assert (await purge.run(settings_of(database_url), NOW)).held_back_by == []
    assert await stored(connection) == set()


@pytest.mark.parametrize("is_whole", [True, False])
@pytest.mark.parametrize("order", ["rewind", "create"])
async def test_rewound_between_reading_and_purging(
    connection: Connection, database_url: str, monkeypatch: pytest.MonkeyPatch, is_whole: bool, order: str
) -> None:
    """A sink that was rewound, or made, after a run has looked and before it commits loses what is purged then."""
    await write(database_url, *(DUE for _ in range(3)))
    if not is_whole:
        await write(database_url, {"retention_days": 2555})
    if order == "rewind":
        await cursor.create_cursor(connection, "soc", "webhook", "https://h", 4)
    require_sent, calls = AwaitedSinks.require_sent, 0

    async def interfere(self: AwaitedSinks, own: Any, end: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 1 and order == "rewind":
            await cursor.rewind(connection, "soc", 0)
        elif calls == 1:
            await cursor.create_cursor(connection, "soc", "webhook", "https://h", 0)
        await require_sent(self, own, end)

    monkeypatch.setattr(AwaitedSinks, "require_sent", interfere)
    done = await purge.run(settings_of(database_url), NOW)
    assert (done.rows_deleted, done.dropped) == (0, [])
    assert [one.name for one in done.held_back_by] == ["soc"]
    assert (await positions(connection))[:3] == [0, 1, 2]


async def test_a_cursor_waits_for_the_purge(connection: Connection, database_url: str) -> None:
    """A sink is rewound while a purge is about to be committed, and neither finds the events nor learns that they were purged."""
    await cursor.create_cursor(connection, "soc", "webhook", "https://h", 4)
    other = await asyncpg.connect(database_url)
    try:
        async with connection.transaction():
            await AwaitedSinks(is_awaited=True).require_sent(connection, 3)
            rewinding = asyncio.create_task(cursor.rewind(other, "soc", 0))
            await asyncio.sleep(0.2)
            assert not rewinding.done()
        assert await rewinding
    finally:
        await other.close()
