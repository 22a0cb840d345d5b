"""Statements of SQLAlchemy Core as text for the driver: a read through the driver costs a third of one through the engine."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, NamedTuple

import asyncpg
from sqlalchemy import CompoundSelect, Select
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg

from app.db import Connection
from app.sql import load

_DIALECT = PGDialect_asyncpg()  # type: ignore[no-untyped-call]  # untyped there


class Statement(NamedTuple):
    """SQL for the driver, and the names of its parameters in the order of `$1`, `$2`, …"""

    text: str
    parameters: tuple[str, ...]

    def bind(self, arguments: Mapping[str, object]) -> list[object]:
        """The values for `$1`, `$2`, … from `arguments`, which may have more names than the statement uses."""
        return [arguments[name] for name in self.parameters]


async def fetch_planned_once(
    connection: Connection, statement: Statement, arguments: Mapping[str, object]
) -> list[asyncpg.Record]:
    """The rows of a statement whose plan does not depend on its arguments: over many partitions planning takes longer than the rest.

    By an index, as planned_once() has it: of the few rows that are not counted yet, and of a time, Postgres would look up all of the time too, to
    have what is in both. What is done here is undone, so that a transaction around it plans as before, and goes on after an error.
    """
    transaction = connection.transaction()
    await transaction.start()
    try:
        await connection.execute(_PLANNED_ONCE)
        return await connection.fetch(statement.text, *statement.bind(arguments))
    finally:
        await transaction.rollback()


_BEGIN = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
_PLANNED_ONCE = f"{load('reports')['use_generic_plans']}; SET LOCAL enable_bitmapscan = off"
_BEGIN_PLANNED_ONCE = f"{_BEGIN}; {_PLANNED_ONCE}"
_IN_ORDER = f"{load('reports')['use_generic_plans']}; {load('reports')['follow_index']}"


def planned_once(connection: Connection) -> AbstractAsyncContextManager[None]:
    """A transaction of one snapshot, on a connection without one, in which statements are planned once for all arguments, and read by
    indexes in their order.
    """
    return _transaction(connection, _BEGIN_PLANNED_ONCE)


@asynccontextmanager
async def in_order(connection: Connection) -> AsyncIterator[None]:
    """The same, for statements that ask for rows in the order of an index, as far as their LIMIT: nothing is sorted instead. Inside of a
    transaction: for the rest of it.
    """
    if connection.is_in_transaction():
        await connection.execute(_IN_ORDER)
        yield
    else:
        async with _transaction(connection, f"{_BEGIN}; {_IN_ORDER}"):
            yield


@asynccontextmanager
async def _transaction(connection: Connection, begin: str) -> AsyncIterator[None]:
    """It begins in one message: each is a way to the server and back."""
    assert not connection.is_in_transaction(), "it would be ended here"
    try:
        await connection.execute(begin)
        yield
    finally:  # where it was cancelled before it began Postgres only warns
        await connection.execute("ROLLBACK")


def compile_statement(statement: Select[Any] | CompoundSelect[Any]) -> Statement:
    compiled = statement.compile(dialect=_DIALECT)
    return Statement(str(compiled), tuple(compiled.positiontup or ()))
