"""Audit events of Kubernetes that stand before nearly everything that a page shows, in a real Postgres."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from app.db import driver_connection
from app.query import correlations
from app.query import rows as page_rows
from app.query.compiled import Statement
from app.query.correlations import CorrelationQuery
from app.query.filter import EventQuery
from app.query.rows import rows_of_page

ROWS = 20_000
LONG_AGO = datetime.now(UTC) - timedelta(days=2)
INSERT = """
    INSERT INTO audit_events (event_timestamp, event_date, event_type, event_category, event_action, event_outcome, actor_type,
        actor_id, resource_type, resource_id, correlation_id, event_data, severity)
    SELECT date_trunc('day', now()) + make_interval(secs => $6) + n * interval '1 ms', current_date, $2, $3, '', 'success', '', '', '', '', $4 || n, '{}', $5
    FROM generate_series(1, $1) n
"""
OTHERS = (("a", "gateway"), ("kubernetes", "gateway"), ("zz", "workflow"), ("datastorage.x", "security"))


@pytest.fixture
async def rows(connection: Any) -> None:
    """Others of equal times, then many of Kubernetes, and among them one that only SQL can make."""
    for number, (event_type, category) in enumerate(OTHERS):
        of = "datastorage:" if category == "security" else "rr-"
        await connection.execute(INSERT, 20, event_type, category, of, "low" if number else "critical", 0)
    await connection.execute(INSERT, ROWS, "kubernetes.audit.panic", "kubernetes", "kubernetes:", None, 100)
    await connection.execute(INSERT, 1, "kubernetes.audit.panic", "gateway", "odd-", None, 200)
    await connection.execute("ANALYZE audit_events")


async def page(engine: AsyncEngine, **fields: Any) -> tuple[list[Any], bool]:
    async with driver_connection(engine) as connection:
        found = await rows_of_page(connection, EventQuery(total="none", **fields))
        return [row["event_id"] for row in found.rows][: fields["limit"]], found.next_cursor is not None


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"severity": "critical"},
        {"event_outcome": "success"},
        {"event_outcome": "failure"},
        {"since": LONG_AGO},
        {"include": "self"},
        {"severity": "low", "include": "self"},
    ],
)
async def test_pages(engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]) -> None:
    """A page that is read by types, since it took too long, has other events than one that is read in the order of time."""
    queries = [fields | {"limit": limit, "offset": offset} for limit in (7, 1000) for offset in (0, 5, 33)]
    in_time = [await page(engine, **query) for query in queries]
    monkeypatch.setattr(page_rows, "_AT_ONCE_SECONDS", 0)
    monkeypatch.setattr(page_rows, "SCAN_SECONDS", 0)
    by_types = list[bool]()
    statement = page_rows._page_statement

    def watched(*parts: Any, **ways: Any) -> Statement:
        by_types.append(ways["is_by_types"])
        return statement(*parts, **ways)

    monkeypatch.setattr(page_rows, "_page_statement", watched)
    assert [await page(engine, **query) for query in queries] == in_time
    assert by_types.count(True) == len(queries)


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize("fields", [{}, {"severity": "critical"}, {"severity": "none"}])
async def test_cost(connection: Any, fields: dict[str, Any]) -> None:
    """What a page of the others costs grows with the number of audit events of Kubernetes, up to an answer that never comes."""
    query = EventQuery(limit=50, **fields)
    statement = page_rows._page_statement(query.page_conditions(), page_rows._ALL, is_by_types=True)
    arguments = statement.bind(query.arguments() | {"rows": 51, "offset": 0})
    text = await connection.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement.text}", *arguments)
    plan = json.loads(text)[0]["Plan"]
    assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < ROWS / 10, plan


@pytest.mark.usefixtures("rows")
async def test_correlations_are_bounded(engine: AsyncEngine) -> None:
    """The list of correlations reads over any number of events that it leaves out before it answers."""
    found = await correlations.page(engine, CorrelationQuery(limit=5))
    assert (found.correlations, found.scanned_until is not None) == ([], True)
    shown = set[str]()
    while found.next_cursor is not None:
        found = await correlations.page(engine, CorrelationQuery(limit=5, cursor=found.next_cursor))
        shown |= {one["correlation_id"] for one in found.correlations}
    assert shown == {f"rr-{n}" for n in range(1, 21)}


@pytest.mark.usefixtures("rows")
async def test_newest_of_those_that_are_shown(connection: Any, engine: AsyncEngine) -> None:
    """A correlation is on no page at all, since an event that is left out is newer than what the page would show it by."""
    for event_type, category in (("datastorage.x", "security"), ("kubernetes.audit.panic", "kubernetes")):
        await connection.execute(INSERT, 3, event_type, category, "rr-", None, 300)
    shown, query = list[str](), CorrelationQuery(limit=5)
    while True:
        found = await correlations.page(engine, query)
        shown += [one["correlation_id"] for one in found.correlations]
        if found.next_cursor is None:
            break
        query = query.model_copy(update={"cursor": found.next_cursor})
    assert sorted(shown) == sorted(f"rr-{n}" for n in range(1, 21))
