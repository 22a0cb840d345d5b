"""What goes wrong with a destination, or with who delivers to it; and whether the destination's copy has every position in the end."""

import asyncio
import contextlib
import random
import signal
from collections import Counter

import asyncpg

from tests.receiver import Answer, SinkReceiver
from tests.torture.world import Replica, World

_DELIVERED_SECONDS = 90.0
_LOCK_HOLDER = """
SELECT pid, client_port FROM pg_locks JOIN pg_stat_activity USING (pid)
WHERE locktype = 'advisory' AND granted AND objid = (hashtextextended('datastorage.sink.soc-0', 0) & 4294967295)::oid
"""


async def _load(world: World) -> SinkReceiver:
    """The receiver, when enough requests are in flight."""
    assert world.receiver is not None
    world.in_flight = max(world.in_flight, await world.load.full())
    return world.receiver


async def destination_killed(world: World, chance: random.Random) -> None:
    """Nobody listens any more, also while a request is under way."""
    found = await _load(world)
    found.one.decide = lambda _: Answer(seconds=chance.choice((0, 0.2)))
    await asyncio.sleep(chance.uniform(0, 0.5))
    found.end()
    await asyncio.sleep(chance.uniform(0.5, 3))
    found.one.decide = lambda _: Answer()
    found.begin()


async def destination_late(world: World, chance: random.Random) -> None:
    """It has stored everything, and answers after the sink has given up; or before it."""
    found = await _load(world)
    found.one.decide = lambda _: Answer(seconds=chance.choice((0, 0.5, 12)))
    await asyncio.sleep(chance.uniform(2, 14))
    found.one.decide = lambda _: Answer()


async def destination_lies(world: World, chance: random.Random) -> None:
    """It answers 500 after it has stored everything, or 503 with Retry-After."""
    found = await _load(world)
    lies = (Answer(500, accepts=True), Answer(503, {"retry-after": "1"}, accepts=True), Answer(500), Answer())
    found.one.decide = lambda _: chance.choice(lies)
    await asyncio.sleep(chance.uniform(1, 4))
    found.one.decide = lambda _: Answer()


async def deliverer_killed(world: World, chance: random.Random) -> None:
    """The replica that delivers is killed or frozen, or loses its connection and with it its lock, while a request is under way."""
    found = await _load(world)
    found.one.decide = lambda _: Answer(seconds=chance.choice((0, 0.1, 0.3)))
    await asyncio.sleep(chance.uniform(0.2, 1))
    how = chance.choice(("killed", "killed", "frozen", "lock lost"))
    if how == "lock lost":
        connection = await asyncpg.connect(world.database_url, timeout=30)
        try:
            for row in await connection.fetch(_LOCK_HOLDER):
                await connection.execute("SELECT pg_terminate_backend($1)", row["pid"])
        finally:
            await connection.close()
    else:
        replica = await _deliverer(world)
        if how == "killed":
            await replica.kill()
            await asyncio.sleep(chance.uniform(0, 3))
            replica.launch()
        else:
            replica.signal(signal.SIGSTOP)
            await asyncio.sleep(chance.uniform(0.5, 4))
            replica.signal(signal.SIGCONT)
    found.one.decide = lambda _: Answer()


async def _deliverer(world: World) -> Replica:
    """The replica that has delivered most, which is the one that delivers now or has just been followed by another one."""
    before = [await _sent(replica) for replica in world.replicas]
    await asyncio.sleep(0.3)
    grown = [await _sent(replica) - count for replica, count in zip(world.replicas, before, strict=True)]
    return world.replicas[max(range(len(grown)), key=lambda number: (grown[number], before[number]))]


async def _sent(replica: Replica) -> float:
    lines = await replica.lines('datastorage_sink_events_total{sink="soc-0"}')
    return float(lines[0].rpartition(" ")[2]) if lines else 0.0


async def wrong_at_destination(world: World) -> list[str]:
    """What is wrong with the destination's copy when everything has been delivered."""
    assert world.receiver is not None
    one = world.receiver.one
    connection = await asyncpg.connect(world.database_url, timeout=30)
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DELIVERED_SECONDS):
                while not await connection.fetchval(
                    "SELECT place = (SELECT max(first_index + greatest(count, 1)) FROM log_flushes) FROM sinks"
                ):
                    await asyncio.sleep(0.1)
        rows = await connection.fetch("SELECT log_index, event_hash FROM audit_events WHERE log_index IS NOT NULL")
    finally:
        await connection.close()
    copy = {record["log_index"]: record["event_hash"] for record in one.records if "log_index" in record}
    expected = {row["log_index"]: row["event_hash"] for row in rows}
    wrong = []
    if missing := expected.keys() - copy.keys():
        wrong.append(f"{len(missing)} of {len(expected)} positions are not at the destination: {sorted(missing)[:5]}")
    if copy.keys() - expected.keys() or any(
        copy[position] != expected[position] for position in copy.keys() & expected
    ):
        wrong.append("the destination has something else than the log")
    if twice := [position for position, times in Counter(one.positions).items() if times > 1]:
        wrong.append(f"{len(twice)} positions came again with another id: {twice[:5]}")
    wrong += [
        f"{len(found)} {what}"
        for what, found in (("refused", one.refused), ("ids with two bodies", one.conflicts))
        if found
    ]
    return wrong
