"""Audit events of Kubernetes that stand before nearly everything that a page shows, in a real Postgres."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from app.db import Engine, driver_connection
from app.query import correlations, page_statements
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
EXPECTED = """
    SELECT event_id FROM audit_events WHERE event_category NOT IN ('kubernetes', 'security')
    ORDER BY event_timestamp DESC, event_id DESC LIMIT $1 OFFSET $2
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


async def page(engine: Engine, **fields: Any) -> tuple[list[Any], bool]:
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
async def test_pages(engine: Engine, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]) -> None:
    """A page that is read by types, since it took too long, has other events than one that is read in the order of time."""
    queries = [fields | {"limit": limit, "offset": offset} for limit in (7, 1000) for offset in (0, 5, 33)]
    with monkeypatch.context() as patched:
        patched.setattr(page_rows, "_leaves_out_many", _never)
        in_time = [await page(engine, **query) for query in queries]
    monkeypatch.setattr(page_rows, "_AT_ONCE_SECONDS", 0)
    monkeypatch.setattr(page_rows, "SCAN_SECONDS", 0)
    by_types = _watched(monkeypatch)
    assert [await page(engine, **query) for query in queries] == in_time
    assert by_types.count(True) == len(queries)


async def _never(*_: object) -> bool:
    return False


def _watched(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each statement that reads a page from now on, whether it does so by types."""
    by_types = list[bool]()
    statement = page_statements.page_statement

    def watched(*parts: Any, **ways: Any) -> Statement:
        by_types.append(ways["merged"] == "types of others")
        return statement(*parts, **ways)

    monkeypatch.setattr(page_rows, "page_statement", watched)
    return by_types


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize("fields", [{}, {"since": LONG_AGO}, {"offset": 50}])
async def test_the_default_question_waits_for_nothing(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    """Each page without filters reads over audit events of Kubernetes, in vain, for a quarter of a second or more."""
    monkeypatch.setattr(page_rows, "_AT_ONCE_SECONDS", 3600)
    monkeypatch.setattr(page_rows, "SCAN_SECONDS", 3600)
    by_types = _watched(monkeypatch)
    await page(engine, limit=7, **fields)
    assert by_types == [False, True]


async def test_a_page_among_the_newest(connection: Any, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page whose events are all among the newest ones is another one than in the order of time, or is read twice."""
    for number, (event_type, category) in enumerate(OTHERS):
        await connection.execute(INSERT, 50, event_type, category, "rr-", None, number)
    await connection.execute(INSERT, 9, "kubernetes.audit.panic", "kubernetes", "kubernetes:", None, 100)
    by_types = _watched(monkeypatch)
    for fields in (
        {"limit": 20},
        {"limit": 20, "offset": 30},
        {"limit": 20, "until": datetime.now(UTC) + timedelta(days=1)},
    ):
        by_types.clear()
        found, has_more = await page(engine, **fields)
        assert has_more
        assert by_types == [False]
        expected = await connection.fetch(EXPECTED, fields["limit"], fields.get("offset", 0))
        assert found == [row["event_id"] for row in expected]


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize("fields", [{}, {"severity": "critical"}, {"severity": "none"}])
async def test_cost(connection: Any, fields: dict[str, Any]) -> None:
    """What a page of the others costs grows with the number of audit events of Kubernetes, up to an answer that never comes."""
    query = EventQuery(limit=50, **fields)
    statement = page_statements.page_statement(query.page_conditions(), page_rows._ALL, merged="types of others")
    arguments = statement.bind(query.arguments() | {"rows": 51, "offset": 0})
    text = await connection.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement.text}", *arguments)
    plan = json.loads(text)[0]["Plan"]
    assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < ROWS / 10, plan


@pytest.mark.usefixtures("rows")
async def test_correlations_are_bounded(engine: Engine) -> None:
    """The list of correlations reads over any number of events that it leaves out before it answers."""
    found = await correlations.page(engine, CorrelationQuery(limit=5))
    assert (found.correlations, found.scanned_until is not None) == ([], True)
    shown = set[str]()
    while found.next_cursor is not None:
        found = await correlations.page(engine, CorrelationQuery(limit=5, cursor=found.next_cursor))
        shown |= {one["correlation_id"] for one in found.correlations}
    assert shown == {f"rr-{n}" for n in range(1, 21)}


@pytest.mark.usefixtures("rows")
async def test_newest_of_those_that_are_shown(connection: Any, engine: Engine) -> None:
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
