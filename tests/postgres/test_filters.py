"""Each filter of events on a real Postgres, alone and in pairs, against what Python says of the same hostile events."""

import itertools
import json
import os
import random
import re
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from uuid import uuid4

import pytest
from pydantic import SecretStr

from app import db, schema
from app.db import Engine
from app.errors import DatabaseBusy
from app.query import correlations, page_statements
from app.query import page as pages
from app.query import rows as page_rows
from app.query.correlations import CorrelationQuery
from app.query.filter import EventQuery
from app.settings import Settings
from app.tlog.tiles import SQL as TLOG_SQL
from tests import sealed

PAIRS = int(os.environ.get("FILTER_PAIRS", "40"))
NOW = datetime.now(UTC).replace(microsecond=0)
SINCE, UNTIL = NOW - timedelta(minutes=40), NOW - timedelta(minutes=10)
HOSTILE = ("a", "A", "ab", "ä", "Ä", "a%", "a_", "a*", "a\\", 'a"b', "a\nb", "\u202ea", "", "' OR true --")
TYPES = ("orchestrator.x", "orchestrator.y", "orchestratorx", "ORCHESTRATOR.x", "orchestrator._", "a*", "b%")
TEXTS = {
    **dict.fromkeys(("actor_id", "resource_id", "event_action", "actor_type", "resource_type"), HOSTILE),
    **dict.fromkeys(("namespace", "cluster_id"), (None, *HOSTILE)),
    "severity": (None, "a", "A", "a%"),
    "event_category": ("a", "A", "security"),
    "event_type": TYPES,
    "correlation_id": ("rr-1", "rr-2", "rr_%", "RR-1"),
}
PARENTS = (None, uuid4(), uuid4())
PAYLOADS: tuple[dict[str, Any], ...] = (
    {},
    {"k": "STRAßE"},
    {"k": 'say "ÄH"\n'},
    {"a": {"b": ["\\", "%", "_"]}},
    {"k": "\u202eabc"},
    {"k": 1.5},
)
Row = dict[str, Any]


class Filter(NamedTuple):
    """What is asked for, and which rows match."""

    fields: dict[str, Any]
    matches: Callable[[Row], bool]


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[Engine]:
    engine = db.create_engine(Settings(database_url=SecretStr(database_url), pool_connections_max=2))
    yield engine
    await engine.dispose()


def columns(pick: random.Random) -> Row:
    time = NOW - timedelta(minutes=pick.randint(0, 50))
    made = {name: pick.choice(values) for name, values in TEXTS.items() if name != "correlation_id"}
    more = {
        "event_outcome": pick.choice(("success", "failure", "pending")),
        "error_message": pick.choice((None, "Überlauf", "50% of *")),
        "event_data": json.dumps(pick.choice(PAYLOADS), ensure_ascii=False),
    }
    return made | more | {"event_timestamp": time, "event_date": time.date(), "event_id": uuid4()}


async def fill(connection: Any, pick: random.Random) -> list[Row]:
    """Hostile events, sealed and inserted by SQL. Rows as Postgres has them."""
    for correlation_id in TEXTS["correlation_id"]:
        await sealed.seal(connection, str(correlation_id), *(columns(pick) for _ in range(8)))
    for number in range(12):
        of_sql = {"trace_id": pick.choice((None, "t", "T")), "parent_event_id": pick.choice(PARENTS)}
        await sealed.insert(connection, sealed.plain_row(f"sql-{number % 3}", **columns(pick), **of_sql))
    rows = await connection.fetch("SELECT *, event_data::text AS payload FROM audit_events")
    return [dict(row) for row in rows]


def equal(name: str, value: Any) -> Filter:
    return Filter({name: value}, lambda row: row[name] == value)


def any_of(name: str, values: tuple[Any, ...]) -> Filter:
    return Filter({f"{name}_in": values}, lambda row: row[name] in values)


def none_of(name: str, values: tuple[Any, ...]) -> Filter:
    return Filter({f"{name}_not": values}, lambda row: row[name] not in values)


def types(values: tuple[str, ...]) -> tuple[Filter, Filter]:
    def has_one(row: Row) -> bool:
        kind = row["event_type"]
        return any(kind == value or (value.endswith("*") and kind.startswith(value[:-1])) for value in values)

    return Filter({"event_type_in": values}, has_one), Filter({"event_type_not": values}, lambda row: not has_one(row))


def contains(text: str | None, q: str) -> bool:
    """Whether `text` has `q` in any case, letter by letter."""
    if text is None:
        return False
    places = range(len(text) - len(q) + 1)
    return any(
        all(there in {one, one.lower(), one.upper()} for one, there in zip(q, text[start:], strict=False))
        for start in places
    )


def text(q: str) -> Filter:
    names = ("event_type", "event_action", "actor_id", "resource_id", "error_message")
    in_payload = json.dumps(q, ensure_ascii=False)[1:-1]
    return Filter(
        {"q": q, "since": NOW - timedelta(days=1)},
        lambda row: any(contains(row[name], q) for name in names) or contains(row["payload"], in_payload),
    )


def filters() -> Iterator[Filter]:
    for name, values in TEXTS.items():
        present = tuple(value for value in values if value)  # an empty parameter is none
        yield from (equal(name, value) for value in present)
        if name != "event_type":
            yield from (any_of(name, present[:2]), none_of(name, present[1:3]))
    for values in (("orchestrator.*",), ("orchestrator.x", "b%"), ("a*", "ORCH*"), ("*",), ("orchestrator._", "%*")):
        yield from types(values)
    for parent in PARENTS[1:]:
        yield from (equal("parent_event_id", parent), any_of("parent_event_id", (parent,)))
        yield none_of("parent_event_id", (parent,))
    yield from (equal("trace_id", "t"), none_of("trace_id", ("t", "x")), any_of("trace_id", ("t", "T")))
    yield from (equal("event_outcome", "failure"), any_of("event_outcome", ("failure", "pending")))
    yield none_of("event_outcome", ("failure", "success"))
    yield Filter({"since": SINCE}, lambda row: row["event_timestamp"] >= SINCE)
    yield Filter({"until": UNTIL}, lambda row: row["event_timestamp"] <= UNTIL)
    yield Filter({"sealed": True}, lambda row: row["log_index"] is not None)
    yield Filter({"sealed": False}, lambda row: row["log_index"] is None)
    yield Filter({"detail_key": "k", "detail_value": "1.5"}, lambda row: json.loads(row["payload"]).get("k") == 1.5)
    for q in (
        "a",
        "straße",
        "ähä",
        'ÄH"',
        "\n",
        "\\",
        "%",
        "_",
        "*",
        "überLAUF",
        "50% OF *",
        "[a",
        "\u202eA",
        "ORCH",
        "(?i)",
    ):
        yield text(q)


def pairs(pick: random.Random, single: list[Filter]) -> list[Filter]:
    """Two filters at once, of different fields."""
    drawn = (pick.sample(single, 2) for _ in range(2 * PAIRS))
    return [both(*two) for two in drawn if two[0].fields.keys().isdisjoint(two[1].fields)][:PAIRS]


def both(first: Filter, second: Filter) -> Filter:
    return Filter(first.fields | second.fields, lambda row: first.matches(row) and second.matches(row))


def expected(rows: list[Row], matches: Callable[[Row], bool], order: str) -> list[str]:
    def key(row: Row) -> tuple[Any, ...]:
        by_time = row["event_timestamp"], row["event_id"].int
        if order == "time":
            return by_time
        return (1, row["log_index"]) if row["log_index"] is not None else (0, *by_time)

    return [str(row["event_id"]) for row in sorted(rows, key=key, reverse=True) if matches(row)]


async def walk(engine: Engine, **fields: Any) -> tuple[list[str], int]:
    """The ids on all pages, and how many pages were cut."""
    ids, cut, cursor = list[str](), 0, None
    while True:
        found = await pages.page(engine, EventQuery(cursor=cursor, include="self", total="none", **fields))
        assert len(found.events) <= fields["limit"]
        assert found.scanned_until is None or (found.has_more and len(found.events) <= fields["limit"])
        ids += [event["event_id"] for event in found.events]
        cut += found.scanned_until is not None
        if found.next_cursor is None:
            return ids, cut
        assert str(type(found.next_cursor).parse(str(found.next_cursor))) == str(found.next_cursor)
        cursor = found.next_cursor


async def test_filters(engine: Engine, connection: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A filter shows what does not match, hides what does, or a cursor loses or doubles an event; in either order, however short
    the scan of a page is.
    """
    pick = random.Random(22)
    rows = await fill(connection, pick)
    single = list(filters())
    monkeypatch.setattr(page_rows, "SCANNED_FIRST", 5)
    ticks = itertools.count()
    tick = page_rows.SCAN_SECONDS / 5
    monkeypatch.setattr(page_rows, "monotonic", lambda: next(ticks) * tick)  # a scan ends after a few portions
    cut = 0
    for filter_, order in itertools.product([*single, *pairs(pick, single)], ("time", "log")):
        ids, cut_here = await walk(engine, order=order, limit=7, **filter_.fields)
        assert ids == expected(rows, filter_.matches, order), (filter_.fields, order)
        cut += cut_here
    assert cut > 100
    for filter_ in single:
        found = await pages.page(engine, EventQuery(include="self", limit=1, **filter_.fields))
        assert (found.total, found.total_exact) == (len(expected(rows, filter_.matches, "time")), True), filter_.fields


@pytest.mark.parametrize("first", [1, 3, 5, 16, 17, 1000])
async def test_a_first_portion_that_takes_too_long(engine: Engine, monkeypatch: pytest.MonkeyPatch, first: int) -> None:
    """It is tried again with no events at all, which Postgres refuses, or for ever."""
    tried = list[int]()

    async def edge(*parts: Any) -> None:
        tried.append(parts[-1])
        raise TimeoutError

    monkeypatch.setattr(page_rows._Reading, "_edge", edge)
    monkeypatch.setattr(page_rows, "SCANNED_FIRST", first)
    with pytest.raises(DatabaseBusy):
        await pages.page(engine, EventQuery(actor_type="a", order="log", include="self", total="none"))
    assert tried[0] == first
    assert min(tried) > 0


def place_in_logs(row: Row) -> tuple[Any, ...]:
    """Where a row stands in the order of two logs: those that name a third one before them, those that name none with the first."""
    if row["log_index"] is None:
        return (-1, row["event_timestamp"], row["event_id"].int)
    return min(max(row["log_id"] or 0, 0), 2), row["log_index"], row["event_id"].int


@pytest.mark.damaged
async def test_pages_of_several_logs(engine: Engine, connection: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page of a continued log reads the whole database, or loses rows that name a log which there is not."""
    pick = random.Random(24)
    await fill(connection, pick)
    without_index = await connection.fetch(f"EXPLAIN ANALYZE {page_rows.SQL['unknown_log']}", 1)
    assert "never executed" in "".join(row[0] for row in without_index)
    await connection.execute(TLOG_SQL["index_later_logs"])
    await connection.execute(TLOG_SQL["open_next_log"], 0, f"{sealed.LOG}/1", schema.HEAD)
    for log_id, positions in ((1, (*range(9), 1)), (2, (3, 50)), (7, (4, 40)), (-3, (5, 60)), (None, (6, 70))):
        for position in positions:
            place = {"log_id": log_id, "log_index": position}
            await sealed.insert(connection, sealed.plain_row("rr-later", **columns(pick), **place))
    await connection.execute("ANALYZE audit_events")
    rows = [dict(row) for row in await connection.fetch("SELECT * FROM audit_events")]
    ordered = sorted(rows, key=place_in_logs, reverse=True)
    ids, _ = await walk(engine, order="log", limit=7)
    assert ids == [str(row["event_id"]) for row in ordered]
    monkeypatch.setattr(page_rows, "SCANNED_FIRST", 5)
    ids, _ = await walk(engine, order="log", limit=7, severity="a")
    assert ids == [str(row["event_id"]) for row in ordered if row["severity"] == "a"]

    indexes = {
        row["relname"]
        for row in await connection.fetch(
            "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid "
            "WHERE i.inhparent = 'audit_events_later_logs'::regclass"
        )
    }
    unknown, second, first = await page_rows._of_logs(connection)
    assert [phase.log_id for phase in (unknown, second, first)] == [2, 1, 0]
    await connection.execute("SET enable_seqscan = off")
    page = page_statements.page_statement((), second)
    for text, arguments in ((page.text, page.bind({"rows": 7})), (page_rows.SQL["unknown_log"], [1])):
        plan = "\n".join(row[0] for row in await connection.fetch(f"EXPLAIN {text}", *arguments))
        used = set(re.findall(r"(?:using|Bitmap Index Scan on) (audit_events_\S+)", plan))
        assert used, plan
        assert indexes >= used, plan


async def test_correlations(engine: Engine, connection: Any) -> None:
    """A correlation is not found by an event that it has, or is found by what no single event of it has."""
    pick = random.Random(23)
    rows = await fill(connection, pick)
    ids = {str(row["correlation_id"]) for row in rows}
    of_newest = {"since", "until", "event_outcome", "event_outcome_in", "event_outcome_not"}
    single = [one for one in filters() if of_newest.isdisjoint(one.fields)]
    for filter_ in [*single, *pairs(pick, single)]:
        found = await correlations.page(engine, CorrelationQuery(include="self", limit=100, **filter_.fields))
        shown = {one["correlation_id"] for one in found.correlations}
        assert shown == {one for one in ids if any(filter_.matches(r) for r in rows if r["correlation_id"] == one)}, (
            filter_.fields
        )
