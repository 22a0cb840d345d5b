"""Pages that are planned once, and those that are read by the types that the roll-up names, on a real Postgres.

That they have the rows that a scan finds, whatever happened to them, is tested in test_rollup.py.
"""

import itertools
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from app import db
from app.query import matching_types as types
from app.query import rows as page_rows
from app.query.compiled import Statement, planned_once
from app.query.filter import EventQuery
from app.query.page_statements import Phase, page_statement
from app.query.rows import rows_of_page
from app.query.ways import values_of, way_of
from app.rollup import count_portion

pytestmark = pytest.mark.damaged  # rows of no chain
ROWS, TYPES = 20_000, 20
INSERT = """
    INSERT INTO audit_events (event_timestamp, event_date, event_type, event_category, event_action, event_outcome,
        actor_type, actor_id, resource_type, resource_id, correlation_id, event_data, log_id, log_index)
    SELECT time, (time AT TIME ZONE 'UTC')::date, $3, $4, 'a', $5, '', $6, '', $6, $6, '{}', 0, n
    FROM (SELECT now() - $2::bigint * interval '1 ms' AS time) before, generate_series($1::bigint, $2 - 1) n
"""


@pytest.fixture
async def rows(connection: Any) -> None:
    """Seven events, and after them many others of several types; all are counted."""
    await connection.execute(INSERT, 0, 7, "old.type", "old", "failure", "ada")
    for number in range(TYPES):
        first, last = (7 + (ROWS - 7) * one // TYPES for one in (number, number + 1))
        await connection.execute(INSERT, first, last, f"new.{number}", "new", "success", "bob")
    await connection.execute("INSERT INTO log_flushes (log_id, first_index, count, leaves) VALUES (0, 0, $1, '')", ROWS)
    while await count_portion(connection):
        pass


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize("has_statistics", [True, False])  # a month that has just begun has none
@pytest.mark.parametrize(
    "fields",
    [
        {"actor_id": "ada"},
        {"resource_id": "ada"},
        {"event_type": "old.type"},
        {"actor_id_in": ("ada", "ada", "eve")},
        {"actor_id": "ada", "event_outcome": "failure"},
        {"actor_id": "ada", "actor_id_in": ("eve", "ada")},
        {"event_type": "old.type", "event_type_in": ("old.*",), "namespace_not": ("x",)},
    ],
)
async def test_the_index_is_read_whatever_is_expected(
    connection: Any, fields: dict[str, Any], has_statistics: bool
) -> None:
    """A plan that is made once, without the argument, reads over all events that are newer than those of a rare actor, or sorts a month."""
    if has_statistics:
        await connection.execute("ANALYZE")
    now = datetime.now(UTC)
    for limit, times in itertools.product((50, 1000), ({}, {"since": now - timedelta(days=1), "until": now})):
        query = EventQuery(**fields, **times, limit=limit, total="none")
        merged = way_of(query).merged
        assert merged is not None
        statement = page_statement(query.page_conditions(), Phase("time"), merged=merged)
        arguments = statement.bind(query.arguments() | {"rows": limit + 1, "values": values_of(query, merged)})
        async with planned_once(connection):
            text = await connection.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement.text}", *arguments)
        plan = json.loads(text)[0]["Plan"]
        assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < 100, plan
        assert len((await rows_of_page(connection, query)).rows) == 7


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize(
    ("fields", "number"),
    [
        ({"event_category": "old"}, 7),
        ({"event_outcome": "failure"}, 7),
        ({"event_type_in": ("old.*",)}, 7),
        ({"event_category": "new", "event_outcome": "failure"}, 0),
        ({"severity": "none"}, 0),
    ],
)
async def test_rare_things_are_not_scanned_for(
    connection: Any, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], number: int
) -> None:
    """A page of what few types have, or none, reads over all events of others."""
    assert await read(connection, monkeypatch, **fields) == (number, [("event_type", None)])


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize("fields", [{"event_category": "new"}, {"event_outcome_not": ("failure",)}])
async def test_common_things_are_read_in_the_order_of_time(
    connection: Any, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    """A page of what nearly every event has is read by types, of which there may be a hundred."""
    assert await read(connection, monkeypatch, **fields) == (50, [(None, page_rows._NEWEST_MATCHING)])


async def read(connection: Any, monkeypatch: pytest.MonkeyPatch, **fields: Any) -> tuple[int, list[tuple[Any, Any]]]:
    """How many rows a page has, and how each of its statements reads them."""
    ways = list[tuple[Any, Any]]()

    def watched(*parts: Any, **how: Any) -> Statement:
        ways.append((how["merged"], how["newest"]))
        return page_statement(*parts, **how)

    monkeypatch.setattr(page_rows, "_AT_ONCE_SECONDS", 600)
    monkeypatch.setattr(page_rows, "page_statement", watched)
    return len((await rows_of_page(connection, EventQuery(**fields))).rows), ways


@pytest.mark.usefixtures("rows")
async def test_too_many_uncounted_rows(connection: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the roll-up has not counted yet is not on the page; or all of it is read for each page, however much it is."""
    monkeypatch.setattr(types, "UNCOUNTED_MAX", 3)
    types._uncounted_statement.cache_clear()
    query = EventQuery(event_category="late")
    for number in range(1, 6):
        await connection.execute(INSERT, ROWS + number, ROWS + number + 1, "late.type", "late", "success", "ada")
        async with planned_once(connection):
            known = await types.matching_types(connection, query)
        assert (known and known.types) == (["late.type"] if number <= 3 else None)
        assert len((await rows_of_page(connection, query)).rows) == number
    types._uncounted_statement.cache_clear()


@pytest.mark.usefixtures("rows")
async def test_what_takes_too_long_is_scanned_for(connection: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that is not read by types in time leaves its connection in a transaction, or has other events."""
    monkeypatch.setattr(page_rows, "_AT_ONCE_SECONDS", 0)
    for fields in ({"event_category": "old"}, {"actor_id": "ada", "event_outcome": "failure"}):
        assert len((await rows_of_page(connection, EventQuery(**fields))).rows) == 7
        assert db.is_idle(connection)
    assert await connection.fetchval("SHOW plan_cache_mode") == "auto"
