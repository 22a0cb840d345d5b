"""Statements of SQLAlchemy Core as text for the driver, which costs a read a third of what it costs through the engine."""

from typing import Any, NamedTuple

from sqlalchemy import Select
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg

_DIALECT = PGDialect_asyncpg()  # type: ignore[no-untyped-call]  # untyped there


class Statement(NamedTuple):
    """SQL for the driver, and the names of its parameters in their order."""

    text: str
    parameters: tuple[str, ...]


def compiled(statement: Select[Any]) -> Statement:
    compiled = statement.compile(dialect=_DIALECT)
    return Statement(str(compiled), tuple(compiled.positiontup or ()))
