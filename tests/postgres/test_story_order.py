"""The order in which events arrive changes no answer about a remediation."""

import json
import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import SecretStr

from app import main
from app.api.histogram import parse_histogram_query
from app.db import Engine, create_engine, driver_connection
from app.query import histogram, warming
from app.query.effectiveness import answer, effectiveness
from app.query.reconstruct import rebuild
from app.query.remediation_history import Target, history
from app.query.timeline import timeline
from app.settings import Settings
from app.sql import load
from tests.logs import FIRST_LOG
from tests.story import AFTER, INSERT, TARGET, make_story

ORDERS = 12
PREPARED = "SELECT statement FROM pg_prepared_statements WHERE statement NOT LIKE '%pg_prepared_statements%' ORDER BY 1"


def contradictory(now: datetime) -> list[dict[str, Any]]:
    """Two tellings of one remediation that differ in every part, at the same times."""
    one, other = make_story("rr-1", now - timedelta(hours=1)), make_story("rr-1", now - timedelta(hours=1))
    for event in other:
        event["cluster_id"] = "c2"
        payload = event["event_data"]
        payload |= {
            key: value + " too" for key, value in payload.items() if isinstance(value, str) and "hash" not in key
        }
        payload |= {"score": 0.3} if "score" in payload else {}
        payload |= {"signal_labels": {"team": "other"}} if "signal_labels" in payload else {}
        if "target_resource" in payload:
            payload["target_resource"] = TARGET
    return one + other


async def answers(engine: Engine, now: datetime) -> list[Any]:
    shown = await timeline(engine, "rr-1", 100, 0)
    decisions = [{name: value for name, value in one.items() if name != "event_id"} for one in shown.decisions]
    target = Target("Deployment", "api", "payments", AFTER, None)
    return [
        await rebuild(engine, "rr-1", now),
        answer("rr-1", await effectiveness(engine, "rr-1"), ""),
        (await history(engine, target, (now, now - timedelta(days=1))))[0],
        shown.phases,
        decisions,
    ]


async def test_order_of_arrival(engine: Engine, connection: Any) -> None:
    """Events of equal times count in the order in which they came."""
    now = datetime.now(UTC)
    events = contradictory(now)
    for event in events:
        if event["event_type"] == "orchestrator.lifecycle.created":
            event["event_data"]["timeout_config"] = {"global": "1h"}
    seen = []
    for seed in range(ORDERS):
        random.Random(seed).shuffle(events)
        for event in events:
            await connection.execute(INSERT, json.dumps([event]))
        seen.append(await answers(engine, now))
        await connection.execute("DELETE FROM audit_events")
    assert all(one == seen[0] for one in seen)
    assert len(seen[0][2]) == 2


async def test_every_statement_is_warmed(engine: Engine) -> None:
    """The first answer of a kind pays for its plan, or warming fails at the start of the service."""
    assert list(warming.ARGUMENTS) == list(load("reports"))
    await warming.warm(engine)


async def test_the_first_histogram(engine: Engine) -> None:
    """The first page of events on a connection waits for the plan of its histogram."""
    await histogram.warm(engine)
    now = datetime.now(UTC).replace(
        second=30
    )  # in the last second of an hour another statement counts whole hours alone
    of_all, of_actor = (parse_histogram_query(filters, now) for filters in (b"by=outcome", b"by=outcome&actor_id=ada"))
    async with driver_connection(engine) as connection:
        prepared = await connection.fetch(PREPARED)
        await histogram.from_rollup(connection, of_all, of_all.span)
        await histogram.from_rows(connection, of_actor, of_actor.span)
        assert await connection.fetch(PREPARED) == prepared


async def test_busy_while_it_is_warmed(database_url: str, connection: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The service ends at its start where Postgres is too busy to plan its queries in time."""
    hurried = create_engine(Settings(database_url=SecretStr(database_url), statement_timeout_ms=100))
    async with connection.transaction():
        await connection.execute("LOCK TABLE audit_events IN ACCESS EXCLUSIVE MODE")
        await main._warm(hurried, FIRST_LOG)
    await hurried.dispose()
    assert "too busy" in caplog.text
