"""The roll-up on a real Postgres: whatever was done to the rows, by whom and when, a total is what counting them gives."""

import asyncio
import os
import random
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from app import db, rollup, schema
from app.db import Engine
from app.events.catalog import Catalog
from app.query import histogram as histograms
from app.query import offset
from app.query import page as pages
from app.query import rows as page_rows
from app.query import total as totals
from app.query.compiled import Statement, fetch_planned_once, planned_once
from app.query.filter import EventFilter, EventQuery
from app.query.histogram import Histogram, HistogramQuery, from_rollup, from_rows, histogram
from app.query.matching_types import matching_types
from app.query.parts import LAG_MAX, counts_with
from app.query.spans import whole_spans
from app.retention import erase, purge
from app.retention.erase import Erasure
from app.rollup import Check, count_portion
from app.settings import Settings
from app.tlog.tiles import SQL as TLOG_SQL
from tests import databases, sealed
from tests.events import make_event
from tests.postgres import log
from tests.services import Service
from tests.waiting import eventually

pytestmark = pytest.mark.damaged  # rows are deleted and changed by SQL
Connection = Any

NOW = datetime.now(UTC)
THIS_MONTH = NOW.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
LAST_MONTH = (THIS_MONTH - timedelta(days=1)).replace(day=1)
MONTH_BEFORE = (LAST_MONTH - timedelta(days=1)).replace(day=1)
TYPES = ("orchestrator.lifecycle.started", "b", "datastorage.ratelimit.denied")
CATEGORIES = ("orchestration", "gateway", "security")
INCLUDED = (None, "self", "kubernetes", "all")
OUTCOMES = ("success", "failure")
SEVERITIES = (None, "warning", "critical")
CLUSTERS = (None, "prod", "test")
NAMESPACES = (None, "payments", "orders")


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[Engine]:
    engine = db.create_engine(settings_of(database_url))
    yield engine
    await engine.dispose()


def settings_of(url: str) -> Settings:
    return Settings(database_url=SecretStr(url), pool_connections_max=2)


def moment(pick: random.Random) -> datetime:
    """A time of the last three months, often one at which an hour, a day or a month begins."""
    month = pick.choice((MONTH_BEFORE, LAST_MONTH, THIS_MONTH))
    days = (NOW - month).days if month == THIS_MONTH else 27
    time = month + timedelta(days=pick.choice((0, 0, 1, pick.randint(0, days))))
    time += pick.choice((0, 1, 5)) * timedelta(hours=1)
    time += pick.choice((0, 0, 1, 1_800_000_000, 3_599_999_999)) * timedelta(microseconds=1)
    return min(time, NOW)


def members(pick: random.Random) -> dict[str, Any]:
    made = {
        "event_timestamp": moment(pick),
        "event_type": pick.choice(TYPES),
        "event_category": pick.choice(CATEGORIES),
        "event_outcome": pick.choice(OUTCOMES),
        "severity": pick.choice(SEVERITIES),
        "cluster_id": pick.choice(CLUSTERS),
        "namespace": pick.choice(NAMESPACES),
        "retention_days": pick.choice((1, 2555, 2555, 2555)),
    }
    return {name: value for name, value in made.items() if value is not None}


def row_of(event: dict[str, Any], pick: random.Random) -> dict[str, Any]:
    return event | {"event_date": event["event_timestamp"].date(), "correlation_id": f"sql-{pick.randint(0, 9)}"}


def queries(pick: random.Random) -> list[EventQuery]:
    made = [EventQuery(include=one) for one in INCLUDED]
    for _ in range(10):
        fields: dict[str, Any] = {}
        if pick.random() < 0.5:
            fields["event_type"] = pick.choice((*TYPES, "datastorage.retention.purged"))
        if pick.random() < 0.3:
            fields["event_category"] = pick.choice((*CATEGORIES, "kubernetes"))
        if pick.random() < 0.3:
            fields = {}  # what is counted by cluster and namespace is not counted by type and category
        if pick.random() < 0.3:
            fields["cluster_id"] = pick.choice(("prod", "test", "nowhere"))
        if pick.random() < 0.2:
            fields["namespace"] = pick.choice(("payments", "orders"))
        if pick.random() < 0.3:
            fields["event_outcome"] = pick.choice(OUTCOMES)
        if pick.random() < 0.3:
            fields["severity"] = pick.choice(("warning", "critical"))
        since, until = sorted((moment(pick), moment(pick)))
        fields |= {"since": since} if pick.random() < 0.6 else {}
        fields |= {"until": until} if pick.random() < 0.6 else {}
        made.append(EventQuery(**fields, include=pick.choice(INCLUDED)))
    return made


COUNTED_BY = {
    "event_type": (*TYPES, "datastorage.x"),
    "event_category": (*CATEGORIES, "kubernetes"),
    "event_outcome": OUTCOMES,
    "severity": ("warning", "critical"),
}
PREFIXES = ("orchestrator.*", "data*", "b*", "z*")


def page_query(pick: random.Random) -> EventQuery:
    """A question of which the roll-up knows the types that have what it asks for."""
    fields: dict[str, Any] = {}
    for name in pick.sample(list(COUNTED_BY), pick.randint(1, 2)):
        suffix = pick.choice(("", "", "_in", "_not"))
        values = pick.sample(COUNTED_BY[name], 2)
        fields[f"{name}{suffix}"] = tuple(values) if suffix else values[0]
    if pick.random() < 0.3:
        fields[pick.choice(("event_type_in", "event_type_not"))] = (pick.choice(PREFIXES), "b")
    since, until = sorted((moment(pick), moment(pick)))
    fields |= {"since": since} if pick.random() < 0.3 else {}
    fields |= {"until": until} if pick.random() < 0.3 else {}
    return EventQuery(**fields, include=pick.choice(INCLUDED), limit=pick.choice((1, 4, 50)), total="none")


async def scanned(connection: Connection, query: EventQuery) -> list[Any]:
    """The rows that the query means, newest first: all rows are looked at, and by Python."""
    rows = await connection.fetch(
        "SELECT event_id, event_type, event_category, event_outcome, severity FROM audit_events"
        " WHERE ($1::timestamptz IS NULL OR (event_timestamp >= $1 AND event_date >= ($1 AT TIME ZONE 'UTC')::date))"
        " AND ($2::timestamptz IS NULL OR (event_timestamp <= $2 AND event_date <= ($2 AT TIME ZONE 'UTC')::date))"
        " ORDER BY event_timestamp DESC, event_id DESC",
        *(query.since, query.until),
    )
    return [row for row in rows if is_meant(query, row)]


def is_meant(query: EventQuery, row: Any) -> bool:
    def is_any(value: str | None, values: tuple[str, ...]) -> bool:
        return any(value == one or (one[-1] == "*" and str(value).startswith(one[:-1])) for one in values)

    for name in COUNTED_BY:
        equal, any_of, none_of = (getattr(query, f"{name}{suffix}") for suffix in ("", "_in", "_not"))
        if (equal and row[name] != equal) or (any_of and not is_any(row[name], any_of)) or is_any(row[name], none_of):
            return False
    if query.event_type or query.event_type_in or query.event_category or query.event_category_in:
        return True
    kind, category = row["event_type"], row["event_category"]
    is_self = category == "security" and kind.startswith("datastorage.") and kind != "datastorage.ratelimit.denied"
    is_kubernetes = category == "kubernetes" or kind.startswith("kubernetes.audit.")
    return (query.include in {"self", "all"} or not is_self) and (
        query.include in {"kubernetes", "all"} or not is_kubernetes
    )


async def matching(connection: Connection, query: EventFilter, columns: str) -> list[Any]:
    """These columns of the rows that the query means, in words of its own."""
    equal = ("event_type", "event_category", "event_outcome", "severity", "cluster_id", "namespace")
    named = query.event_type or query.event_category
    hidden = not (named or query.include in {"self", "all"})
    without_kubernetes = not (named or query.include in {"kubernetes", "all"})
    found: list[Any] = await connection.fetch(
        f"SELECT {columns} FROM audit_events WHERE "
        + " AND ".join(f"(${n}::text IS NULL OR {name} = ${n})" for n, name in enumerate(equal, 1))
        + " AND ($7::timestamptz IS NULL OR event_timestamp >= $7) AND ($8::timestamptz IS NULL OR event_timestamp <= $8)"
        " AND NOT ($9 AND event_category = 'security' AND event_type LIKE 'datastorage.%'"
        " AND event_type <> 'datastorage.ratelimit.denied') AND NOT ($10 AND event_category = 'kubernetes')",
        *(getattr(query, name) for name in equal),
        *(query.since, query.until, hidden, without_kubernetes),
    )
    return found


async def counted(connection: Connection, query: EventQuery) -> int:
    return int((await matching(connection, query, "count(*)"))[0][0])


COLUMN_OF = {
    "outcome": "event_outcome",
    "category": "event_category",
    "type": "event_type",
    "severity": "severity",
    "cluster": "cluster_id",
    "namespace": "namespace",
}


def histogram_query(pick: random.Random) -> HistogramQuery:
    """Between any two times of the last three months; by minutes of a few hours only."""
    since, until = sorted((moment(pick), moment(pick)))
    bucket = pick.choice(("auto", "hour", "day", "week", "month", "minute"))
    if bucket == "minute":
        until = min(until, since + timedelta(hours=5))
    query = next(one for one in queries(pick) if one.include == "self")
    fields = query.model_dump(exclude_unset=True) | {"since": since, "until": until}
    return HistogramQuery(**fields, bucket=bucket, by=pick.choice((None, *COLUMN_OF)))


def summed(found: Histogram, rows: list[Any]) -> list[tuple[int, dict[str, int]]]:
    """For each bucket how many of the rows, (time, group), are between its ends, and how many of each group."""
    sums = []
    for bucket in found.buckets:
        is_last = bucket is found.buckets[-1]
        inside = [
            g for t, g in rows if bucket["start"] <= t and (t < bucket["end"] or (is_last and t == bucket["end"]))
        ]
        sums.append((len(inside), dict(Counter(group or "" for group in inside))))
    return sums


RELEASES = (
    rollup.SQL,
    {name: re.sub(r", (left_over_)?marginals AS \(\n.*\n\)", "", text) for name, text in rollup.SQL.items()},
)
"""The statements of the worker, and those of the release before, which knew nothing of rollup_marginals."""


async def other_sums(connection: Connection) -> list[Any]:
    """What rollup_marginals has otherwise than it is added up from the counts."""
    is_self = (
        "event_category = 'kubernetes' OR event_type LIKE 'kubernetes.audit.%' OR (event_category = 'security'"
        " AND event_type LIKE 'datastorage.%' AND event_type <> 'datastorage.ratelimit.denied')"
    )
    sums = [
        f"SELECT '{name}', span, start, month, {name}::text, {rule} AS is_self_event, sum(events) FROM {table} GROUP BY 1, 2, 3, 4, 5, 6"
        for table, rule, names in (
            ("rollup_counts", is_self, ("event_outcome", "event_category", "event_type", "severity")),
            ("rollup_scopes", "is_self_event", ("cluster_id", "namespace")),
        )
        for name in names
    ]
    # A count of nothing is as good as none.
    expected = f"(SELECT * FROM ({' UNION ALL '.join(sums)}) s WHERE sum <> 0)"
    stored = "(SELECT dimension, span, start, month, value::text, is_self_event, events FROM rollup_marginals WHERE events <> 0)"
    other: list[Any] = await connection.fetch(f"({expected} EXCEPT {stored}) UNION ALL ({stored} EXCEPT {expected})")
    return other


class Story:
    """Something happens to the rows of one database, again and again."""

    def __init__(
        self, url: str, engine: Engine, connection: Connection, other: Connection, pick: random.Random
    ) -> None:
        self._url = url
        self._engine = engine
        self._connection = connection
        self._other = other
        """A session that leaves its transactions open for a while."""
        self._pick = pick
        self.is_open = False
        self.from_rollup = self.nearer = self.histograms = self.by_types = 0
        self._log = 0

    async def step(self) -> str:
        """One step, and its name. Those that lock whole tables wait until nobody has a transaction open."""
        rows = [
            self.write,
            self.write,
            self.insert,
            self.insert_at,
            self.seal,
            self.delete,
            self.delete_directly,
            self.transaction,
        ]
        tables = [
            self.update,
            self.update,
            self.purge,
            self.erase,
            self.truncate,
            self.reattach,
            self.drop,
            self.without_triggers,
            self.as_replica,
        ]
        steps: list[Callable[[], Awaitable[None]]] = [
            *rows,
            *rows,
            *rows,
            *([] if self.is_open else [*tables, self.lose_tail, self.lose_flush, self.count_anew]),
        ]
        chosen = self._pick.choice(steps)
        await chosen()
        return chosen.__name__

    async def write(self) -> None:
        items = [members(self._pick) for _ in range(self._pick.randint(1, 5))]
        await log.write(self._url, *(item | {"event_timestamp": item["event_timestamp"].isoformat()} for item in items))

    async def insert(self) -> None:
        event = members(self._pick) | self._pick.choice(
            ({}, {"event_type": "datastorage.x", "event_category": "security"}, {"event_category": "kubernetes"})
        )
        await sealed.insert(self._connection, sealed.plain_row("sql") | row_of(event, self._pick))

    async def seal(self) -> None:
        if self._log:
            return
        await sealed.seal(
            self._connection,
            "sealed by others",
            *(
                {k: v for k, v in row_of(members(self._pick), self._pick).items() if k != "correlation_id"}
                | self._pick.choice(({}, {"event_category": "kubernetes"}))
                for _ in range(2)
            ),
        )

    async def insert_at(self) -> None:
        """A row at a position that no log has, or far beyond the end of this one; and a flush there."""
        position = self._pick.choice((-1, -7, 1_000_000 + self._pick.randint(0, 9), 2**40))
        # Nothing is added to a closed log, of which are the rows that name none too, but by somebody who forges it.
        log_id = self._pick.choice((1, 1, 6) if self._log else (0, 0, 5, -3, None))
        await sealed.insert(
            self._connection,
            sealed.plain_row("x", log_id=log_id, log_index=position) | row_of(members(self._pick), self._pick),
        )
        await self._connection.execute(
            "INSERT INTO log_flushes (log_id, first_index, count, leaves) VALUES ($2, $1, 1, '') ON CONFLICT DO NOTHING",
            *(max(position, 1_000_000), self._log),
        )

    async def continue_log(self) -> None:
        """The log is closed, and another one opened; once in a story."""
        if not self._log:
            self._log = 1
            await self._connection.execute(TLOG_SQL["index_later_logs"])
            await self._connection.execute(TLOG_SQL["open_next_log"], 0, f"{log.LOG}/1", schema.HEAD)

    async def delete(self, connection: Connection | None = None) -> None:
        await (connection or self._connection).execute(
            "DELETE FROM audit_events e WHERE event_id IN ("
            "SELECT event_id FROM audit_events ORDER BY md5($1 || event_id::text) LIMIT 2 FOR UPDATE SKIP LOCKED)",
            str(self._pick.random()),
        )

    async def delete_directly(self) -> None:
        month = await self._month()
        await self._connection.execute(
            f"DELETE FROM {month} WHERE event_id IN ("
            f"SELECT event_id FROM {month} ORDER BY md5($1 || event_id::text) LIMIT 1 FOR UPDATE SKIP LOCKED)",
            str(self._pick.random()),
        )

    async def update(self, connection: Connection | None = None) -> None:
        """What only somebody can do who switches a guard off; in a transaction, so that nobody else sees it off."""
        connection = connection or self._connection
        changed = self._pick.choice(
            (
                "severity = 'critical'",
                "event_type = 'b', event_outcome = 'failure'",
                "event_category = 'security'",
                "event_category = 'kubernetes'",
                "event_timestamp = event_timestamp + interval '90 min'",
                "event_timestamp = 'infinity'",
                "log_index = NULL",
                "log_index = log_index + 100000",
                "log_index = 0",
                "log_id = 1",
                "log_id = NULL",
                "cluster_id = 'test', namespace = NULL",
                "event_timestamp = event_timestamp + interval '31 days', event_date = (event_timestamp + interval '31 days')::date",
                "event_timestamp = event_timestamp - interval '31 days', event_date = (event_timestamp - interval '31 days')::date",
            )
        )
        async with connection.transaction():
            await connection.execute("SET LOCAL lock_timeout = '2s'")
            await connection.execute("ALTER TABLE audit_events DISABLE TRIGGER refuse_change")
            await connection.execute(
                f"UPDATE audit_events SET {changed} WHERE isfinite(event_timestamp)"
                " AND event_id IN (SELECT event_id FROM audit_events ORDER BY md5($1 || event_id::text) LIMIT 2)",
                str(self._pick.random()),
            )
            await connection.execute("ALTER TABLE audit_events ENABLE TRIGGER refuse_change")

    async def transaction(self) -> None:
        """Begin one and delete, or end the one that is open."""
        if self.is_open:
            await self._other.execute(self._pick.choice(("COMMIT", "COMMIT", "ROLLBACK")))
        else:
            await self._other.execute("BEGIN")
            await self.delete(self._other)
        self.is_open = not self.is_open

    async def purge(self) -> None:
        await purge.run(settings_of(self._url), NOW)
        # A month that was dropped as a whole gets a table again with the next event of the service; here SQL writes too.
        await self._connection.execute("SELECT ensure_partitions($1, $2)", MONTH_BEFORE.date(), THIS_MONTH.date())

    async def erase(self) -> None:
        event_id = await self._connection.fetchval(
            "SELECT event_id FROM audit_events WHERE event_category <> 'security' LIMIT 1"
        )
        if event_id is not None:
            erasure = Erasure("asked for", "eve", event_ids=[event_id])
            await erase.erase(settings_of(self._url), Catalog(), erasure, dry_run=False)

    async def truncate(self) -> None:
        await self._connection.execute(f"TRUNCATE {await self._month()}")

    async def reattach(self) -> None:
        month = await self._month()
        day = await self._connection.fetchval("SELECT to_date(right($1, 7), 'YYYY_MM')", month)
        end = (day + timedelta(days=31)).replace(day=1)
        await self._connection.execute(f"ALTER TABLE audit_events DETACH PARTITION {month}")
        await self._connection.execute(f"DELETE FROM {month} WHERE severity IS NULL")
        await self._connection.execute(
            f"ALTER TABLE audit_events ATTACH PARTITION {month} FOR VALUES FROM ('{day}') TO ('{end}')"
        )

    async def drop(self) -> None:
        month = await self._month()
        await self._connection.execute(f"DROP TABLE {month}")
        await self._connection.execute(
            "SELECT ensure_partitions(day, day) FROM (SELECT to_date(right($1, 7), 'YYYY_MM') AS day) d", month
        )

    async def without_triggers(self) -> None:
        await self._connection.execute("ALTER TABLE audit_events DISABLE TRIGGER ALL")
        await self.delete()
        await self._connection.execute("ALTER TABLE audit_events ENABLE TRIGGER ALL")
        for name in ("deleted", "changed", "moved"):
            await self._connection.execute(f"ALTER TABLE audit_events ENABLE ALWAYS TRIGGER record_{name}")

    async def as_replica(self) -> None:
        """A session in which ordinary triggers do not fire."""
        async with self._connection.transaction():
            await self._connection.execute("SET LOCAL session_replication_role = replica")
            await self.delete()

    async def lose_tail(self) -> None:
        """The end of the log is removed, and the positions are given again."""
        first = await self._connection.fetchval(
            "DELETE FROM log_flushes WHERE log_id = $1 AND first_index = ("
            "SELECT max(first_index) FROM log_flushes WHERE log_id = $1 AND first_index BETWEEN 0 AND 999999) RETURNING first_index",
            self._log,
        )
        await self._connection.execute(
            "DELETE FROM audit_events WHERE log_index >= $1 AND log_id = $2", first or 0, self._log
        )
        await self.write()

    async def lose_flush(self) -> None:
        """A flush before others is removed, with its rows or without them, and its positions may be given again."""
        lost = await self._connection.fetchrow(
            "DELETE FROM log_flushes WHERE log_id = $2 AND first_index = ("
            "SELECT first_index FROM log_flushes WHERE log_id = $2 AND first_index BETWEEN 0 AND 999999"
            " ORDER BY md5($1 || first_index::text) LIMIT 1) RETURNING first_index, first_index + count AS next",
            *(str(self._pick.random()), self._log),
        )
        if lost is not None and self._pick.random() < 0.7:
            await self._connection.execute(
                f"DELETE FROM audit_events WHERE log_index >= $1 AND log_index < $2 AND log_id = {self._log}", *lost
            )
        await self.work()
        await self.write()

    async def count_anew(self) -> None:
        await self._connection.execute(
            self._pick.choice(
                (
                    "DELETE FROM rollup_months",
                    "DELETE FROM rollup_logs",
                    "TRUNCATE rollup_months, rollup_counts, rollup_scopes",
                )
            )
        )

    async def _month(self) -> str:
        """The name of a month's table, which a purge may have dropped."""
        month = self._pick.choice((MONTH_BEFORE, LAST_MONTH, THIS_MONTH))
        await self._connection.execute("SELECT ensure_partitions($1, $1)", month.date())
        return f"audit_events_{month:%Y_%m}"

    async def work(self) -> None:
        """The worker runs for a while: with portions so small that it is interrupted anywhere."""
        release = self._pick.choice(RELEASES)
        for _ in range(self._pick.randint(0, 3)):
            with pytest.MonkeyPatch.context() as patched:
                patched.setattr(rollup, "SQL", release)
                await count_portion(self._connection, rows=self._pick.randint(1, 4))

    async def check(self, *, must_answer: bool = False) -> None:
        assert await other_sums(self._connection) == []
        for _ in range(10 if must_answer else 1):
            await self._check_histogram(must_answer)
            await self._check_page(must_answer)
        for query in queries(self._pick):
            expected = await counted(self._connection, query)
            found = await totals.from_rollup(self._connection, query)
            assert found in {None, expected}, query
            has_answer = (
                counts_with(query.conditions()) is not None and whole_spans(query.since, query.until) is not None
            )
            assert found is not None or not (must_answer and has_answer), query
            self.from_rollup += found is not None
            assert await totals.total(self._connection, query) == (expected, True)
            await self._check_offset(query, expected)

    async def _check_histogram(self, must_answer: bool) -> None:
        query = histogram_query(self._pick)
        column = COLUMN_OF.get(query.by or "", "NULL")
        rows = await matching(self._connection, query, f"event_timestamp, {column}")
        found = await histogram(self._engine, query)
        assert (found.exact, found.buckets[0]["start"], found.buckets[-1]["end"]) == (True, query.since, query.until)
        starts = [bucket["start"] for bucket in found.buckets]
        assert starts[1:] == [bucket["end"] for bucket in found.buckets[:-1]]
        sums = summed(found, rows)
        assert sum(events for events, _ in sums) == len(rows)
        assert [bucket["events"] for bucket in found.buckets] == [events for events, _ in sums], query
        if query.by:
            assert [bucket["groups"] for bucket in found.buckets] == [groups for _, groups in sums], query
        is_from_rollup = await from_rollup(self._connection, query, query.span) is not None
        has_answer = (
            query.span != "minute"
            and counts_with(query.conditions(), *([column] if query.by else [])) is not None
            and whole_spans(query.since, query.until, "day" if query.span == "week" else query.span) is not None
        )
        assert is_from_rollup or not (must_answer and has_answer), query
        self.histograms += is_from_rollup

    async def _check_page(self, must_answer: bool) -> None:
        """A page has the rows that a scan finds, however it is read; and no type is missing that has one of them."""
        query = page_query(self._pick)
        rows = await scanned(self._connection, query)
        async with planned_once(self._connection):
            known = await matching_types(self._connection, query)
        assert known is not None or not must_answer
        self.by_types += known is not None
        assert known is None or {row["event_type"] for row in rows} <= {*known.types}, query
        ids = [row["event_id"] for row in rows]
        for _ in range(3):
            found = await page_rows.rows_of_page(self._connection, query)
            assert [row["event_id"] for row in found.rows] == ids[: query.limit], query
            assert (found.next_cursor is not None) == (len(ids) > query.limit)
            if found.next_cursor is None:
                return
            query, ids = query.model_copy(update={"cursor": found.next_cursor}), ids[query.limit :]

    async def _check_offset(self, query: EventQuery, total: int) -> None:
        """A page that is found by the roll-up is the page that is found by leaving rows out.

        Not where somebody has changed a time and not its day: with a bound of time a total has the row, and a page leaves it out.
        """
        if (query.since or query.until) and await self._connection.fetchval(
            "SELECT EXISTS (SELECT FROM audit_events WHERE event_date <> (event_timestamp AT TIME ZONE 'UTC')::date)"
        ):
            return
        far = query.model_copy(update={"offset": self._pick.randint(1, total + 2), "limit": 3})
        async with self._connection.transaction(isolation="repeatable_read", readonly=True):
            near = await offset.nearer(self._connection, far)
            self.nearer += near != far
            rows = [await page_rows.rows_after_offset(self._connection, one) for one in (far, near)]
        by_offset, by_rollup = ([row["event_id"] for row in one] for one in rows)
        assert by_rollup == by_offset, (far, near)


async def catch_up(connection: Connection) -> None:
    for _ in range(500):
        if not await count_portion(connection, rows=7):
            return
    raise AssertionError("the worker never catches up")


@pytest.mark.parametrize("seed", range(int(os.environ.get("ROLLUP_SEEDS", "1"))))
async def test_totals_are_counts(database_url: str, engine: Engine, connection: Connection, seed: int) -> None:
    """Something that is done to rows makes a total wrong: at once, while the worker is behind, or when it has caught up."""
    pick = random.Random(seed)
    async with databases.connected(database_url) as other:
        story = Story(database_url, engine, connection, other, pick)
        done: list[str] = []
        for number in range(45):
            if number >= 20 and not story.is_open:
                await story.continue_log()
            done.append(await story.step())
            try:
                await story.check()
                await story.work()
                await story.check()
                if number % 10 == 9:
                    await catch_up(connection)
                    await story.check(must_answer=True)
            except AssertionError as error:
                raise AssertionError(f"after {done}") from error
        if story.is_open:
            await other.execute("COMMIT")
        await catch_up(connection)
        await story.check(must_answer=True)
    # How often depends on what happens to which rows; what has to be answered is asserted where nothing is left to count.
    assert min(story.from_rollup, story.nearer, story.histograms, story.by_types) > 0


async def test_most_frequent_groups(engine: Engine, connection: Connection) -> None:
    """Each of thousands of groups is handed over for each bucket; or which are shown depends on how they are counted."""
    times = [LAST_MONTH + timedelta(days=day) for day in range(3)]
    for number in range(60):
        severity = "other" if number == 31 else f"s{number % 30:02}" if number else None
        for time in times[: 1 + (number % 10 < 4)]:
            row = sealed.plain_row("rr-1", severity=severity, event_timestamp=time, event_date=time.date())
            await sealed.insert(connection, row)
    await catch_up(connection)
    query = HistogramQuery(since=times[0], until=times[-1], bucket="day", by="severity")
    counts = await from_rollup(connection, query, "day")
    counted, _ = await from_rows(connection, query, "day")
    assert counts == counted
    groups: set[str] = set().union(*counted.values())
    assert (len(groups), sum(one.total() for one in counted.values())) == (20, 84)
    found = await histogram(engine, query)
    assert sum(bucket["events"] for bucket in found.buckets) == 84


@pytest.mark.parametrize(
    ("fields", "is_once"),
    [
        ({"actor_id": "ada"}, True),
        ({"correlation_id": "rr-1", "severity": "low"}, True),
        ({"namespace": "orders", "severity": "low"}, False),
    ],
)
async def test_what_is_planned_once(
    connection: Connection, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], *, is_once: bool
) -> None:
    """Each portion of what an index has is planned anew; or what none has is read by one, row by row, however long the time is."""
    planned = []

    def watched(one: Connection) -> Any:
        planned.append(one)
        return planned_once(one)

    monkeypatch.setattr(histograms, "planned_once", watched)
    query = HistogramQuery(**fields, since=LAST_MONTH, until=NOW)
    assert (await from_rows(connection, query, "day"))[0] == {}
    assert planned == [connection] * is_once


async def test_counts_are_planned_once(connection: Connection) -> None:
    """All events of the time of a histogram are looked up, to find the few of them that are not counted; or the connection plans so from then on."""
    statement = Statement("SELECT current_setting('plan_cache_mode'), current_setting('enable_bitmapscan')", ())

    async def is_as_usual() -> bool:
        return tuple(await connection.fetchrow(statement.text)) == ("auto", "on")

    async def is_planned_once() -> bool:
        (row,) = await fetch_planned_once(connection, statement, {})
        return tuple(row) == ("force_generic_plan", "off")

    assert await is_as_usual()
    assert await is_planned_once()
    assert await is_as_usual()
    async with connection.transaction():
        assert await is_planned_once()
        assert await is_as_usual()


async def test_every_snapshot_is_right(database_url: str, connection: Connection) -> None:
    """Workers, writers and deleters that run at the same time make a total wrong that somebody reads meanwhile."""
    pick = random.Random(3)
    done = asyncio.Event()

    async def work(worker: Connection) -> None:
        while not done.is_set():
            await count_portion(worker, rows=5)

    async def write() -> None:
        for _ in range(12):
            items = [members(pick) for _ in range(10)]
            await log.write(database_url, *(i | {"event_timestamp": i["event_timestamp"].isoformat()} for i in items))

    async def delete(deleter: Connection) -> None:
        while not done.is_set():
            async with deleter.transaction():
                await deleter.execute(
                    "DELETE FROM audit_events WHERE event_id IN (SELECT event_id FROM audit_events LIMIT 1)"
                )
                await asyncio.sleep(0.01)

    async def read(reader: Connection) -> int:
        found = 0
        while not done.is_set():
            async with reader.transaction(isolation="repeatable_read", readonly=True):
                for query in queries(pick)[:4]:
                    answer = await totals.from_rollup(reader, query)
                    assert answer in {None, await counted(reader, query)}, query
                    found += answer is not None
            async with planned_once(reader):
                page = page_query(pick)
                known = await matching_types(reader, page)
                types = {row["event_type"] for row in await scanned(reader, page)}
                assert known is None or types <= {*known.types}, page
        return found

    async with (
        databases.connected(database_url) as first,
        databases.connected(database_url) as second,
        databases.connected(database_url) as deleter,
    ):
        reading = asyncio.create_task(read(connection))
        others = [asyncio.create_task(one) for one in (work(first), work(second), delete(deleter))]
        await write()
        done.set()
        assert await reading > 20
        await asyncio.gather(*others)
        await catch_up(connection)
        assert await totals.from_rollup(connection, EventQuery()) == await counted(connection, EventQuery())


async def test_a_month_that_is_detached_while_a_total_is_planned(database_url: str, connection: Connection) -> None:
    """Of a month that a purge detaches, a total has the unsealed rows, or those at its ends, and not the counted ones."""
    await log.write(database_url, {}, {"event_timestamp": LAST_MONTH.isoformat()})
    await sealed.insert(
        connection, sealed.plain_row("sql", event_timestamp=LAST_MONTH, event_date=LAST_MONTH.date(), severity="low")
    )
    await catch_up(connection)
    last = await connection.fetchval("SELECT month::regclass::text FROM rollup_tables ORDER BY first_day DESC LIMIT 1")
    locked = "SELECT true FROM pg_locks WHERE NOT granted AND relation = $1::regclass"
    detaching = "SELECT true FROM pg_inherits WHERE inhdetachpending"
    async with (
        databases.connected(database_url) as locker,
        databases.connected(database_url) as reader,
        databases.connected(database_url) as detacher,
    ):
        async with locker.transaction():
            await locker.execute(f"REINDEX INDEX {last}_log_index_idx")  # what is planned waits for it
            reading = asyncio.create_task(totals.from_rollup(reader, EventQuery()))
            await eventually(lambda: connection.fetchval(locked, f"{last}_log_index_idx"))
            detached = asyncio.create_task(
                detacher.execute(
                    f"ALTER TABLE audit_events DETACH PARTITION audit_events_{LAST_MONTH:%Y_%m} CONCURRENTLY"
                )
            )
            await eventually(lambda: connection.fetchval(detaching))
        found, _ = await asyncio.gather(reading, detached)
    assert found in {None, 1, 3}


async def test_a_new_month_has_its_counts(database_url: str, connection: Connection) -> None:
    """For a second after a month was made, also for one late event, every list counts rows."""
    await log.write(database_url, {})
    await catch_up(connection)
    await connection.execute("SELECT ensure_partitions('2020-02-03', '2020-02-03')")
    assert await totals.from_rollup(connection, EventQuery()) == 1


@pytest.mark.parametrize(
    "emptied", ["rollup_months", "rollup_logs", "rollup_months, rollup_logs", "rollup_months, rollup_counts"]
)
async def test_counts_are_made_anew(database_url: str, connection: Connection, emptied: str) -> None:
    """Whoever deletes the rows of rollup_months or rollups, to have it counted anew, has it counted twice or never."""
    await log.write(database_url, *({} for _ in range(3)))
    await catch_up(connection)
    for table in emptied.split(", "):
        await connection.execute(f"DELETE FROM {table}")
    assert await totals.from_rollup(connection, EventQuery()) is None
    await catch_up(connection)
    for query in (EventQuery(), EventQuery(since=NOW - timedelta(days=40))):
        assert await totals.from_rollup(connection, query) == 3


LOSSES = {
    "deleted": "DELETE FROM log_flushes WHERE first_index = 2",
    "moved": "UPDATE log_flushes SET first_index = 900 WHERE first_index = 2",
    "emptied": "TRUNCATE log_flushes; INSERT INTO log_flushes (log_id, first_index, count, leaves) VALUES (0, -1, 1, '')",
}


@pytest.mark.parametrize("worked", [False, True])
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
async def test_positions_that_are_given_again(
    database_url: str, connection: Connection, loss: str, *, worked: bool
) -> None:
    """Flushes are lost before others that are counted, and what is written at their positions is never counted."""
    for number in range(6):
        await log.write(database_url, {"severity": "warning"} if number % 2 else {})
    await catch_up(connection)
    await connection.execute(f"{loss}; DELETE FROM audit_events WHERE log_index >= 2 AND log_index <> 4")
    assert await totals.from_rollup(connection, EventQuery()) is None
    if worked:
        await catch_up(connection)
    await log.write(database_url, {}, {})
    assert await connection.fetchval("SELECT count(*) FROM audit_events WHERE log_index = 2") == 1
    for _ in range(2):
        for query in (EventQuery(), EventQuery(severity="warning"), EventQuery(since=NOW - timedelta(days=40))):
            assert await totals.from_rollup(connection, query) in {None, await counted(connection, query)}
        await catch_up(connection)
    assert await totals.from_rollup(connection, EventQuery()) == 5


async def test_a_loss_is_not_overwritten(database_url: str, connection: Connection) -> None:
    """A worker that counts while somebody deletes flushes says afterwards that the log still has them all."""
    await log.write(database_url, {}, {})
    await catch_up(connection)
    await log.write(database_url, {})
    await connection.execute("SET lock_timeout = '2s'")
    async with databases.connected(database_url) as other:
        async with other.transaction():
            await other.execute("DELETE FROM log_flushes WHERE first_index = 0")
            await catch_up(connection)  # does not wait
            assert await totals.from_rollup(connection, EventQuery()) == 3
        assert await totals.from_rollup(connection, EventQuery()) is None
        await catch_up(connection)
        assert await totals.from_rollup(connection, EventQuery()) == 3


async def test_a_forged_position_is_found(
    database_url: str, connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """A row that SQL inserts at a position that was counted is never counted."""
    await log.write(database_url, {}, {})
    await catch_up(connection)
    await sealed.insert(connection, sealed.plain_row("forged", log_id=0, log_index=0, chain_index=0))
    check = Check()
    assert await totals.from_rollup(connection, EventQuery()) == 2
    await check.run(connection)
    assert "is counted again" in caplog.text
    assert await totals.from_rollup(connection, EventQuery()) is None
    await catch_up(connection)
    assert await totals.from_rollup(connection, EventQuery()) == 3
    await check.run(connection)
    assert await totals.from_rollup(connection, EventQuery()) == 3


async def test_what_another_release_has_counted(database_url: str, connection: Connection) -> None:
    """After a rollback and an upgrade, totals by cluster have audit events of Kubernetes for ever."""
    query = EventQuery(cluster_id="prod")
    await log.write(database_url, {"cluster_id": "prod"})
    await sealed.seal(connection, "kubernetes:a", {"event_category": "kubernetes", "cluster_id": "prod"})
    await catch_up(connection)
    await Check().run(connection)
    assert await totals.from_rollup(connection, query) == 1
    await connection.execute("UPDATE rollup_scopes SET is_self_event = false")
    assert await totals.from_rollup(connection, query) == 2
    await Check().run(connection)
    await catch_up(connection)
    assert await totals.from_rollup(connection, query) == 1


async def test_marginals_that_are_no_sums(database_url: str, connection: Connection) -> None:
    """Somebody changes or deletes sums, and histograms have them for ever."""
    query = HistogramQuery(since=NOW - timedelta(days=2), until=NOW + timedelta(days=1), by="outcome")
    await log.write(database_url, *({} for _ in range(3)))
    await catch_up(connection)
    for change in (
        "UPDATE rollup_marginals SET events = events + 1",
        "DELETE FROM rollup_marginals",
        "TRUNCATE rollup_counts",
    ):
        await connection.execute(change)
        await Check().run(connection)
        assert await totals.from_rollup(connection, EventQuery()) is None
        await catch_up(connection)
        counts = await from_rollup(connection, query, "day")
        assert counts is not None
        assert sum(one.total() for one in counts.values()) == 3
        assert await other_sums(connection) == []


@pytest.mark.parametrize(
    "change",
    ["UPDATE rollup_counts SET severity = 'high'", "DELETE FROM rollup_scopes WHERE event_outcome = 'success'"],
)
async def test_whoever_changes_counts(database_url: str, connection: Connection, change: str) -> None:
    """What is done to counts by SQL is not done to their sums."""
    await log.write(database_url, *({"cluster_id": "prod"} for _ in range(3)))
    await catch_up(connection)
    await connection.execute(f"SET session_replication_role = replica; {change}")
    assert await other_sums(connection) == []


async def test_too_many_rows_to_check(
    database_url: str, connection: Connection, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With many rows their recount keeps events from being counted for minutes, and fails as often as it is tried."""
    await log.write(database_url, {})
    await catch_up(connection)
    others = await connection.fetchval("SHOW statement_timeout")
    with monkeypatch.context() as patched:
        patched.setitem(rollup.SQL, "difference", "SELECT pg_sleep(60)")
        patched.setitem(rollup.SQL, "check_timeout", rollup.SQL["check_timeout"].replace("15s", "10ms"))
        caplog.set_level("INFO")
        await Check().run(connection)
    assert "too many rows" in caplog.text
    assert await connection.fetchval("SHOW statement_timeout") == others
    await log.write(database_url, {})
    await catch_up(connection)
    assert await connection.fetchval("SELECT position FROM rollup_logs") == 2


async def test_what_is_inserted_beyond_the_log(database_url: str, connection: Connection) -> None:
    """One INSERT far beyond the end of the log, or at a negative position, hides what is written from then on, or is not counted."""
    await log.write(database_url, *({} for _ in range(3)))
    await connection.execute("INSERT INTO log_flushes (log_id, first_index, count, leaves) VALUES (0, 200000, 1, '')")
    for position in (200_000, -5, 2**63 - 1):
        await sealed.insert(connection, sealed.plain_row("inserted", log_id=0, log_index=position))
    await catch_up(connection)
    await log.write(database_url, {})
    await catch_up(connection)
    for query in (EventQuery(), EventQuery(until=NOW), EventQuery(since=NOW - timedelta(days=40))):
        assert await totals.from_rollup(connection, query) == await counted(connection, query)
    await connection.execute("DELETE FROM audit_events WHERE log_index < 0")
    assert await totals.from_rollup(connection, EventQuery()) == await counted(connection, EventQuery()) == 6


async def test_far_from_the_end_rows_are_counted(connection: Connection) -> None:
    """After the first migration, or a long outage of the worker, lists read most rows by an index on their positions."""
    await catch_up(connection)
    await connection.execute(
        "INSERT INTO audit_events (event_timestamp, event_date, event_type, event_category, event_action, event_outcome, actor_type,"
        " actor_id, resource_type, resource_id, correlation_id, event_data, log_id, log_index)"
        " SELECT now(), now()::date, 't', 'c', 'a', 'success', '', '', '', '', '', '{}', 0, n FROM generate_series(1, $1) n",
        LAG_MAX + 1,
    )
    assert await totals.from_rollup(connection, EventQuery()) is None
    await connection.execute("DELETE FROM audit_events WHERE log_index = 7")
    assert await totals.from_rollup(connection, EventQuery()) == LAG_MAX


@pytest.mark.parametrize(("name", "end"), [("other", "2019-02-01"), ("audit_events_2019_01", "2019-04-01")])
async def test_a_table_that_cannot_be_counted(
    connection: Connection, caplog: pytest.LogCaptureFixture, name: str, end: str
) -> None:
    """A table that has not the name of a month, or not its days, is counted, in part; or nobody is told why lists are slow."""
    await connection.execute(
        f"CREATE TABLE {name} PARTITION OF audit_events FOR VALUES FROM ('2019-01-01') TO ('{end}')"
    )
    last = datetime.fromisoformat(end).replace(tzinfo=UTC) - timedelta(days=1)
    await sealed.seal(connection, "late", {"event_timestamp": last, "event_date": last.date()})
    await catch_up(connection)
    assert await totals.from_rollup(connection, EventQuery()) is None
    await connection.execute("DELETE FROM audit_events")
    await catch_up(connection)
    await Check().run(connection)
    assert "counted from the rows" in caplog.text


async def test_a_deep_page(engine: Engine, connection: Connection) -> None:
    """A page far from the newest event is another one than by leaving rows out, or its rows are all read."""
    rows = 11_100
    await connection.execute(
        "INSERT INTO audit_events (event_timestamp, event_date, event_type, event_category, event_action, event_outcome, actor_type,"
        " actor_id, resource_type, resource_id, correlation_id, event_data, log_id, log_index)"
        " SELECT at, at::date, 't', 'c', 'a', 'success', '', '', '', '', '', '{}', 0, n"
        " FROM (SELECT n, $1::timestamptz + n / 2 * interval '1 min' AS at FROM generate_series(0, $2 - 1) n) numbered",
        *(MONTH_BEFORE, rows),
    )
    await connection.execute("INSERT INTO log_flushes (log_id, first_index, count, leaves) VALUES (0, 0, $1, '')", rows)
    await catch_up(connection)
    query = EventQuery(offset=11_000, limit=7)
    async with connection.transaction(isolation="repeatable_read"):
        near = await offset.nearer(connection, query)
    assert near.offset < 120
    found = await pages.page(engine, query)
    expected = [str(row["event_id"]) for row in await page_rows.rows_after_offset(connection, query)]
    assert [event["event_id"] for event in found.events] == expected[:7]
    assert (found.total, found.has_more) == (rows, True)


@pytest.mark.parametrize(
    "time", ["-infinity", "0001-01-02T00:00:00Z", "infinity", "9999-12-30T23:00:00Z", "20000-01-01T00:00:00Z"]
)
async def test_deep_pages_with_times_at_the_ends(
    database_url: str, engine: Engine, connection: Connection, time: str
) -> None:
    """One event of a time that Python does not have, or that has no earlier month, makes each deep page an error."""
    await log.write(database_url, {}, {})
    await connection.execute("ALTER TABLE audit_events DISABLE TRIGGER refuse_change")
    await connection.execute(
        "UPDATE audit_events SET event_timestamp = $1::text::timestamptz WHERE log_index = 1", time
    )
    await catch_up(connection)
    found = await pages.page(engine, EventQuery(offset=20_000))
    assert (found.events, found.total) == ([], 2)


async def test_the_service_counts(service: Callable[..., Service], connection: Connection) -> None:
    """Nobody runs the worker."""
    async with httpx.AsyncClient(base_url=service().url, timeout=30) as client:
        posted = await client.post("/api/v1/audit/events/batch", json=[make_event() for _ in range(3)])
        assert posted.status_code == 201

        async def all_counted() -> bool | None:
            return await connection.fetchval("SELECT position FROM rollup_logs") == 3 or None

        await eventually(all_counted)
        page = (await client.get("/api/v1/audit/events")).json()
        assert page["pagination"]["total"] == 3
