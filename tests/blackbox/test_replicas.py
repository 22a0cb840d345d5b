"""Two replicas on one database under load: what was acknowledged is stored once, at its position."""

import asyncio
import os
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any

import httpx

from tests.events import make_event
from tests.services import Service

WRITERS = 64
CORRELATIONS = 50
SECONDS = float(os.environ.get("DATASTORAGE_TEST_LOAD_SECONDS", "8"))


def skewed(chance: random.Random) -> str:
    """From six days back to 59 minutes ahead."""
    return (datetime.now(UTC) + timedelta(seconds=chance.uniform(-6 * 86400, 59 * 60))).isoformat()


async def write(clients: list[httpx.AsyncClient], number: int) -> list[str]:
    """Post until the time is over, mostly single events, some batches. Returns the acknowledged ids."""
    chance = random.Random(number)
    acknowledged: list[str] = []
    end = monotonic() + SECONDS
    while monotonic() < end:
        client = chance.choice(clients)
        items = [
            make_event(correlation_id=f"load-{chance.randrange(CORRELATIONS)}", event_timestamp=skewed(chance))
            for _ in range(chance.choice((1, 1, 1, 1, 20)))
        ]
        if len(items) == 1:
            answer = await client.post("/api/v1/audit/events", json=items[0])
            ids = [answer.json().get("event_id")]
        else:
            answer = await client.post("/api/v1/audit/events/batch", json=items)
            ids = answer.json().get("event_ids")
        assert answer.status_code == 201, answer.text
        acknowledged += ids
    return acknowledged


async def test_two_replicas_under_load(service: Callable[..., Service], connection: Any) -> None:
    """Replicas on one database lose, double or misplace events. Every chain and the log are verified after the test."""
    replicas = [service(), service()]
    limits = httpx.Limits(max_connections=WRITERS)
    async with (
        httpx.AsyncClient(base_url=replicas[0].url, limits=limits, timeout=30) as one,
        httpx.AsyncClient(base_url=replicas[1].url, limits=limits, timeout=30) as other,
    ):
        answers = await asyncio.gather(*(write([one, other], number) for number in range(WRITERS)))
    acknowledged = [event_id for answer in answers for event_id in answer]
    stored = [str(r[0]) for r in await connection.fetch("SELECT event_id FROM audit_events")]
    assert len(acknowledged) > WRITERS
    assert sorted(stored) == sorted(acknowledged)
    positions = await connection.fetchrow(
        "SELECT min(log_index), max(log_index), count(DISTINCT log_index) FROM audit_events"
    )
    assert tuple(positions) == (0, len(acknowledged) - 1, len(acknowledged))
