"""How many events match a query: from the roll-up, which follows the log (app/rollup.py), where it has the answer; else from the rows."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import asyncpg
from sqlalchemy import BigInteger, ColumnElement, FromClause, Select, case, cast, func, select
from sqlalchemy import literal_column as literal

from app.db import Connection, limited
from app.query.compiled import Statement, compile_statement, fetch_planned_once
from app.query.filter import CONDITIONS, EventQuery
from app.query.parts import IS_CURRENT, counts_with, parts_of, rows_of
from app.query.spans import WholeSpans, whole_spans
from app.tables import audit_events

COUNT_SECONDS = 1.0
CAPPED_TOTAL = 10_000


async def total(connection: Connection, query: EventQuery) -> tuple[int | None, bool]:
    """(how many events match or None if that was not asked for, whether it is exact)."""
    if query.total == "none":
        return None, True
    if query.total == "capped":
        count = await from_rows(connection, query, CAPPED_TOTAL + 1)
        return min(count, CAPPED_TOTAL), count <= CAPPED_TOTAL
    try:
        async with limited(connection, COUNT_SECONDS):
            rolled_up = await from_rollup(connection, query)
            return (await from_rows(connection, query) if rolled_up is None else rolled_up), True
    except TimeoutError:
        return await _estimate(connection, query), False


async def from_rollup(connection: Connection, query: EventQuery) -> int | None:
    """How many events match, exactly; None if the roll-up has no answer to this query, or none at this moment."""
    conditions = query.conditions()
    spans = whole_spans(query.since, query.until)
    counts = counts_with(conditions)
    if spans is None or counts is None:
        return None
    statement = _rollup_statement(counts, conditions, spans[0])
    try:
        rows = await fetch_planned_once(connection, statement, query.arguments() | spans[1])
    except asyncpg.InsufficientPrivilegeError:  # roles.sql was not run after the migration
        return None
    count: int | None = rows[0][0]
    return count


async def from_rows(connection: Connection, query: EventQuery, rows_max: int | None = None) -> int:
    """How many events match, counted up to `rows_max` if there is one."""
    statement = _count_statement(query.conditions(), rows_max)
    count: int = await _fetchval(connection, statement, query.arguments())
    return count


async def _fetchval(connection: Connection, statement: Statement, arguments: Mapping[str, object]) -> Any:
    return await connection.fetchval(statement.text, *statement.bind(arguments))


async def _estimate(connection: Connection, query: EventQuery) -> int:
    """How many rows the planner expects to match, without counting them."""
    matching = _matching_statement(query.conditions())
    explain = Statement(f"EXPLAIN (FORMAT JSON) {matching.text}", matching.parameters)
    # SQLAlchemy has set its own codec for json on the connections of its pool.
    return int((await _fetchval(connection, explain, query.arguments()))[0]["Plan"]["Plan Rows"])


@lru_cache(256)
def _matching_statement(conditions: tuple[str, ...]) -> Statement:
    return compile_statement(_matching(conditions))


@lru_cache(256)
def _count_statement(conditions: tuple[str, ...], rows_max: int | None) -> Statement:
    if rows_max is None:
        return compile_statement(rows_of(conditions))
    bounded = _matching(conditions).limit(literal(str(rows_max))).subquery()
    return compile_statement(select(func.count()).select_from(bounded))


def _matching(conditions: tuple[str, ...]) -> Select[Any]:
    return select(literal("1")).select_from(audit_events).where(*(CONDITIONS[name] for name in conditions))


@lru_cache(256)
def _rollup_statement(counts: FromClause, conditions: tuple[str, ...], spans: WholeSpans) -> Statement:
    """The number of events that meet `conditions`; NULL while the counts are not current."""
    number: ColumnElement[int] = literal("0", BigInteger)
    for part in parts_of(counts, conditions, spans):
        number += part.scalar_subquery()
    return compile_statement(select(case((IS_CURRENT, cast(number, BigInteger)))))
