"""Walks stored rows and reports what is wrong with them: one correlation against its head, the log against the rows.

Everything is read in one snapshot and streamed, so that size has no limit and a concurrent write is no finding.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import asyncpg
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as SQLAlchemyTimeout
from sqlalchemy.ext.asyncio import AsyncEngine

from app.db import CONNECTION_ERRORS, Connection
from app.errors import DatabaseAway, DatabaseFailed
from app.integrity.chain import Chain, Finding
from app.integrity.reference import reference_hash
from app.sql import load

SQL = load("integrity")
_ROWS_AT_ONCE = 100
_LEAF = 32
_UNKEYED = frozenset({"", "sha256-unkeyed"})


@dataclass(slots=True)
class Report:
    """What verification found about one correlation."""

    sealed: Chain
    head_finding: str | None = None
    unsealed: int = 0
    unsealed_verified: int = 0
    unsealed_findings: list[Finding] = field(default_factory=list)
    unhashed: int = 0

    @property
    def is_valid(self) -> bool:
        """Unsealed rows do not make a chain invalid; where there is no chain, they are what is asked about."""
        sealed_is_valid = not self.sealed.findings and self.head_finding is None
        return sealed_is_valid and (self.is_sealed or not self.unsealed_findings)

    @property
    def is_sealed(self) -> bool:
        """Whether this service ever wrote events of the correlation."""
        return self.sealed.length > 0 or self.head_finding is not None


@asynccontextmanager
async def snapshot(engine: AsyncEngine) -> AsyncIterator[Connection]:
    """A connection that sees one moment, whatever is written meanwhile."""
    try:
        async with engine.connect() as pooled:
            raw = await pooled.get_raw_connection()
            connection = raw.driver_connection
            assert connection is not None
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                yield connection
    except (*CONNECTION_ERRORS, SQLAlchemyTimeout) as error:
        raise DatabaseAway from error
    except (asyncpg.PostgresError, DBAPIError) as error:
        raise DatabaseFailed from error


async def verify_correlation(connection: Connection, correlation_id: str, log: str) -> Report:
    """Verify what is stored of one correlation. `connection` is in a transaction that sees one moment."""
    report = Report(Chain(log))
    async for row in _stream(connection, "sealed_rows", correlation_id):
        report.sealed.take(row)
    head = await connection.fetchrow(SQL["head"], correlation_id)
    report.head_finding = report.sealed.finish(None if head is None else (head["length"], head["hash"]))
    hashes: set[str] | None = None
    async for row in _stream(connection, "unsealed_rows", correlation_id):
        if hashes is None:
            hashes = {r["event_hash"] for r in await connection.fetch(SQL["hashes"], correlation_id)}
        _take_unsealed(report, row, hashes)
    report.unhashed = await connection.fetchval(SQL["unhashed_count"], correlation_id)
    return report


async def verify_log(connection: Connection) -> AsyncIterator[str]:
    """What is wrong with the log: gaps, wrong lengths, and leaves that are not the hash of the row at their position."""
    end = 0
    genesis = False
    async for flush in _stream(connection, "flushes"):
        first, count, leaves = flush["first_index"], flush["count"], flush["leaves"]
        if not genesis and first == -1:
            genesis = True
            continue
        if first != end:
            yield f"positions {min(first, end)} to {max(first, end) - 1} are {'missing' if first > end else 'doubled'}"
        end = first + count
        if len(leaves) != count * _LEAF:
            yield f"the flush at {first} has {len(leaves)} bytes of leaves for {count} events"
        stored = [leaves[i : i + _LEAF].hex() for i in range(0, len(leaves), _LEAF)]
        rows = await connection.fetch(SQL["leaf_rows"], first, end)
        found = {row["log_index"]: row["event_hash"] for row in rows}
        if len(found) != len(rows):
            yield f"positions of the flush at {first} are taken twice"
        for index, leaf in enumerate(stored, first):
            if found.get(index) != leaf:
                yield f"the event at {index} is {'missing' if index not in found else 'not the one that was logged'}"
    if not genesis:
        yield "the log has no beginning"
    for row in await connection.fetch(SQL["leaf_rows"], end, 2**62):
        yield f"the event at {row['log_index']} stands behind the end of the log"


async def _stream(connection: Connection, statement: str, *arguments: object) -> AsyncIterator[asyncpg.Record]:
    """Rows of a statement, with a turn for other requests between portions."""
    cursor = await connection.cursor(SQL[statement], *arguments)
    while rows := await cursor.fetch(_ROWS_AT_ONCE):
        for row in rows:
            yield row
        await asyncio.sleep(0)


def _take_unsealed(report: Report, row: asyncpg.Record, hashes: set[str]) -> None:
    """Such a row is hashed by the older rules and links to any row of its correlation that has a hash."""
    report.unsealed += 1
    actual, previous = row["event_hash"], row["previous_event_hash"] or ""
    identity = (row["event_id"], row["event_timestamp"])
    if row["hash_algorithm"] not in _UNKEYED:
        report.unsealed_findings.append(
            Finding(*identity, f"cannot be checked: its algorithm is {row['hash_algorithm']}", previous)
        )
        return
    if previous and previous not in hashes:
        report.unsealed_findings.append(Finding(*identity, "the previous hash belongs to no event here", previous))
    expected = reference_hash(row, previous)
    if expected == actual:
        report.unsealed_verified += 1
    else:
        message = "edited: the event does not have the hash that was stored with it"
        report.unsealed_findings.append(Finding(*identity, message, previous, expected, actual))
