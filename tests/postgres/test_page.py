"""Pages of events on a real Postgres: order, totals, and rows that only SQL can make."""

import os
from typing import Any

import orjson
import pytest

from app import db
from app.db import Engine
from app.errors import DatabaseFailed
from app.query import page as pages
from app.query import page_statements
from app.query import total as totals
from app.query.filter import EventQuery

INSERT = """
    INSERT INTO audit_events (event_timestamp, event_date, event_type, event_category, event_action, event_outcome,
        actor_type, actor_id, actor_ip, resource_type, resource_id, correlation_id, event_data, severity)
    SELECT $1::text::timestamptz, ($1::text::timestamptz AT TIME ZONE 'UTC')::date, $2, 'test', 'a', 'success', '', '', $3::text::inet, '', '', $4, $5::text::jsonb, NULL
    FROM generate_series(1, $6)
"""


async def insert(connection: Any, **row: Any) -> None:
    values = {"at": "now", "type": "t", "ip": None, "correlation": "c", "payload": "{}", "rows": 1} | row
    await connection.execute(INSERT, *values.values())


def ids(page: pages.Page) -> list[str]:
    return [event["event_id"] for event in page.events]


async def test_cursor_walks_as_offset_does(engine: Engine, connection: Any) -> None:
    """Events with equal times are lost or shown twice between pages."""
    for time in ("yesterday", "now"):
        await insert(connection, at=time, rows=7)
    walked: list[str] = []
    query = EventQuery(correlation_id="c", limit=4)
    while True:
        found = await pages.page(engine, query)
        walked += ids(found)
        assert found.has_more == (found.next_cursor is not None)
        if found.next_cursor is None:
            break
        query = EventQuery(correlation_id="c", limit=4, cursor=found.next_cursor)
    skipped = [await pages.page(engine, EventQuery(correlation_id="c", limit=4, offset=n)) for n in (0, 4, 8, 12)]
    assert walked == [event_id for found in skipped for event_id in ids(found)]
    assert (len(walked), skipped[3].has_more) == (14, False)
    assert {found.total for found in skipped} == {14}


async def test_totals(engine: Engine, connection: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A total is wrong, holds the page up, or does not say that it is an estimate."""
    await insert(connection, rows=20)
    await connection.execute("ANALYZE audit_events")
    monkeypatch.setattr(totals, "CAPPED_TOTAL", 12)
    exact, capped, none = [await pages.page(engine, EventQuery(total=t, limit=2)) for t in ("exact", "capped", "none")]
    assert [(p.total, p.total_exact) for p in (exact, capped, none)] == [(20, True), (12, False), (None, True)]
    monkeypatch.setattr(totals, "COUNT_SECONDS", 0)
    late = await pages.page(engine, EventQuery(limit=2))
    assert (late.total_exact, len(late.events)) == (False, 2)
    assert late.total is not None


async def test_an_estimate_is_right(engine: Engine, connection: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An estimate is what one of several workers of a parallel plan is expected to count."""
    await insert(connection, rows=20_000)
    await connection.execute("ANALYZE audit_events")
    for setting in ("min_parallel_table_scan_size", "parallel_setup_cost", "parallel_tuple_cost"):
        await connection.execute(
            f"DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET {setting} = 0', current_database()); END $$"
        )
    monkeypatch.setattr(totals, "COUNT_SECONDS", 0)
    found = await pages.page(engine, EventQuery(limit=1))
    (plan,) = await db.fetch(
        engine, "EXPLAIN (FORMAT JSON) SELECT 1 FROM audit_events WHERE event_category <> 'security'"
    )
    assert "Gather" in str(plan[0])
    assert found.total == pytest.approx(20_000, rel=0.02)
    assert not found.total_exact


async def test_own_events_are_left_out_until_asked_for(engine: Engine, connection: Any) -> None:
    """The service's own events change the counts that clients know."""
    await insert(connection, type="datastorage.log.heartbeat")
    await insert(connection, type="datastorage.ratelimit.denied")
    await insert(connection)
    await connection.execute("UPDATE audit_events SET severity = 'info'")
    async with connection.transaction():
        await connection.execute("ALTER TABLE audit_events DISABLE TRIGGER refuse_change")
        await connection.execute("UPDATE audit_events SET event_category = 'security' WHERE event_type <> 't'")
        await connection.execute("ALTER TABLE audit_events ENABLE TRIGGER refuse_change")
    totals = [
        (await pages.page(engine, query)).total
        for query in (EventQuery(), EventQuery(include="self"), EventQuery(event_category="security"))
    ]
    assert totals == [2, 3, 2]


async def test_rows_that_only_sql_makes(engine: Engine, connection: Any) -> None:
    """A strange row that somebody inserted stops the page that it is on."""
    for payload in ("null", "[1]", '"text"', '{"n": 1e400}', '{"b": 1, "aa": 12345678901234567890.5}'):
        await insert(connection, payload=payload)
    await insert(connection, ip="10.0.0.0/8")
    await connection.execute("UPDATE audit_events SET event_timestamp = 'infinity' WHERE event_data = 'null'")
    await connection.execute("UPDATE audit_events SET event_timestamp = '20000-01-01' WHERE event_data = '[1]'")
    found = await pages.page(engine, EventQuery(limit=2))
    rest = await pages.page(engine, EventQuery(limit=10, cursor=found.next_cursor))
    assert len(found.events) + len(rest.events) == 6
    text = orjson.dumps(found.events + rest.events).decode()
    assert '"event_data":{"aa":12345678901234567890.5,"b":1}' in text
    assert '"actor_ip":"10.0.0.0"' in text


async def test_detail_filter(engine: Engine, connection: Any) -> None:
    """A member of the payload cannot be found, also after 200 characters of an indexed one."""
    long = "x" * 200
    for payload in ('{"k": 5}', '{"k": "5"}', f'{{"target_resource": "{long}a"}}', f'{{"target_resource": "{long}b"}}'):
        await insert(connection, payload=payload)
    found = [
        (await pages.page(engine, EventQuery(detail_key=key, detail_value=value))).total
        for key, value in (("k", "5"), ("k", "6"), ("target_resource", long + "b"), ("target_resource", long))
    ]
    assert found == [2, 0, 1, 0]


RANDOM = os.urandom(160_000).hex()
REPEATED = "x" * 320_000


@pytest.mark.parametrize("text", [RANDOM, REPEATED], ids=["random", "repeated"])
async def test_large_payloads_come_in_portions(engine: Engine, connection: Any, text: str) -> None:
    """A page of large payloads is in memory as a whole, or an event of it is lost, doubled or without its payload."""
    await insert(connection, rows=31, payload=f'{{"text": "{text}"}}')
    await connection.execute("UPDATE audit_events SET error_message = repeat('e', 100)")
    found = await pages.page(engine, EventQuery(limit=30, offset=1))
    portions = [found.events, *[portion async for portion in pages.rest_of_page(lambda read: read(engine), found)]]
    shown = [event for portion in portions for event in portion]
    assert len(portions) > 1
    times = 4 if text == RANDOM else 9  # lz4, where Postgres has it, makes the repeated text 248 times smaller
    assert max(len(orjson.dumps(portion)) for portion in portions) < times * page_statements.PORTION_BYTES
    assert (len(shown), found.has_more, found.total) == (30, False, 31)
    for event in shown:
        alone = await pages.event_by_id(engine, event["event_id"])
        assert orjson.dumps(event) == orjson.dumps(alone)
        assert event["error_message"] == "e" * 100


async def test_a_page_that_fits_is_read_at_once(engine: Engine, connection: Any) -> None:
    """An ordinary page costs a second statement."""
    await insert(connection, rows=1000, payload='{"text": "%s"}' % ("x" * 700))
    found = await pages.page(engine, EventQuery(limit=1000))
    assert (len(found.events), found.rest) == (1000, [])


async def test_an_event_that_is_gone_meanwhile(engine: Engine, connection: Any) -> None:
    """A page ends well although an event of it is missing."""
    await insert(connection, rows=10, payload=f'{{"text": "{RANDOM}"}}')
    found = await pages.page(engine, EventQuery(limit=10))
    await connection.execute("DELETE FROM audit_events")
    with pytest.raises(DatabaseFailed):
        await anext(pages.rest_of_page(lambda read: read(engine), found))
