"""Walks what is stored: one correlation against its head, the log against the rows.

Everything is read in one snapshot, so that a concurrent write is no defect, and streamed, so that size has no limit.
"""

from asyncio import sleep
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from time import perf_counter

import asyncpg
from sqlalchemy.ext.asyncio import AsyncEngine

from app.db import Connection, driver_connection
from app.integrity.chain import Chain, Defect, Defects, defect_of
from app.integrity.reference import KEYED, UNKEYED, reference_hash
from app.sql import load

SQL = load("integrity")
_ROWS_AT_ONCE = 64
_BYTES_AT_ONCE = 4 * 1024**2
_FETCH_TIMEOUT_SECONDS = 600.0
_SLICE_SECONDS = 0.005
_LEAF_BYTES = 32


@dataclass(slots=True)
class ChainReport:
    """What verification found about one correlation."""

    sealed: Chain
    head_defect: Defect | None = None
    unsealed_total: int = 0
    unsealed_verified: int = 0
    unsealed_defects: Defects = field(default_factory=Defects)
    unhashed_total: int = 0

    @property
    def is_sealed(self) -> bool:
        """Whether this service ever wrote an event of the correlation."""
        return self.sealed.total > 0 or self.head_defect is not None

    @property
    def is_valid(self) -> bool:
        """Unsealed rows say nothing about a chain of ours. Where there is none, they are all that was asked about."""
        if self.is_sealed:
            return not self.sealed.defects.count and self.head_defect is None
        return not self.unsealed_defects.count


@asynccontextmanager
async def snapshot(engine: AsyncEngine) -> AsyncIterator[Connection]:
    """A connection that sees one moment, whatever is written meanwhile. DatabaseAway or DatabaseFailed when it breaks."""
    async with (
        driver_connection(engine) as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        await connection.execute(SQL["unhurried"])
        yield connection


async def verify_chain(
    connection: Connection, correlation_id: str, log: str, hmac_key: bytes | None = None
) -> ChainReport:
    """Verify all that is stored of one correlation in the log named `log`. `connection` is in a snapshot."""
    report = ChainReport(Chain(log))
    async for row in _stream(connection, "sealed_rows", "event_data", correlation_id):
        report.sealed.take(row)
    head = await connection.fetchrow(SQL["head"], correlation_id)
    report.head_defect = report.sealed.finish(None if head is None else (head["length"], head["hash"]))
    begun = False
    async for row in _stream(connection, "unsealed_rows", "event_data", correlation_id):
        _take_unsealed(report, row, hmac_key, begun=begun)
        begun = begun or not row["previous_event_hash"]
    report.unhashed_total = await connection.fetchval(SQL["unhashed_count"], correlation_id)
    return report


async def verify_log(connection: Connection) -> AsyncIterator[Defect]:
    """What is wrong with the log: positions missing or doubled, and leaves that are not the hash of their row."""
    rows = _stream(connection, "positions", "event_hash")
    row = await anext(rows, None)
    async for leaf in _leaves(connection):
        if isinstance(leaf, Defect):
            yield leaf
            continue
        index, leaf_hash = leaf
        while row is not None and row["log_index"] < index:
            yield _misplaced(row)
            row = await anext(rows, None)
        if row is None or row["log_index"] > index:
            yield Defect(
                "removed", f"removed: there is no event at position {index} of the log", expected_hash=leaf_hash
            )
            continue
        if row["event_hash"] != leaf_hash:
            message = f"edited: the event at position {index} of the log is not the one that was logged"
            yield defect_of(row, "edited", message, leaf_hash, row["event_hash"] or "")
        row = await anext(rows, None)
    while row is not None:
        yield _misplaced(row)
        row = await anext(rows, None)


async def _leaves(connection: Connection) -> AsyncIterator[tuple[int, str] | Defect]:
    """Positions of the log in their order with their leaves, and what is wrong with the flushes that hold them."""
    end: int | None = None
    async for flush in _stream(connection, "flushes", "leaves"):
        first, count, leaves = flush["first_index"], flush["count"], flush["leaves"]
        if end is None and first == -1:  # stands before the first flush and holds no event
            end = 0
            continue
        if end is None or first > end:
            yield Defect("removed", f"removed: flushes between positions {end or 0} and {first} of the log are missing")
        elif first < end:
            yield Defect("inserted", f"inserted: positions {first} to {end - 1} of the log are held by two flushes")
        if len(leaves) != count * _LEAF_BYTES:
            yield Defect("edited", f"edited: the flush at {first} has {len(leaves)} bytes of leaves for {count} events")
        for place in range(min(count, len(leaves) // _LEAF_BYTES)):
            if end is None or first + place >= end:
                yield first + place, leaves[place * _LEAF_BYTES : (place + 1) * _LEAF_BYTES].hex()
        end = max(end or 0, first + count)
    if end is None:
        yield Defect("removed", "removed: the log has no beginning")


def _misplaced(row: asyncpg.Record) -> Defect:
    message = f"inserted: position {row['log_index']} of the log belongs to another event, or to none"
    return defect_of(row, "inserted", message, "", row["event_hash"] or "")


async def _stream(
    connection: Connection, statement: str, widest: str, *arguments: object
) -> AsyncIterator[asyncpg.Record]:
    """Rows of a statement in portions that fit into memory, with turns for other requests between.

    `widest` names the column that makes a row large. Each portion is as large as the widest row of the last one allows.
    """
    cursor = await connection.cursor(SQL[statement], *arguments)
    portion = _ROWS_AT_ONCE // 8
    slice_end = perf_counter() + _SLICE_SECONDS
    while rows := await cursor.fetch(portion, timeout=_FETCH_TIMEOUT_SECONDS):
        for row in rows:
            yield row
            if perf_counter() > slice_end:
                await sleep(0)
                slice_end = perf_counter() + _SLICE_SECONDS
        width = max(len(row[widest] or "") for row in rows)
        portion = max(1, min(_ROWS_AT_ONCE, _BYTES_AT_ONCE // (width + 1)))


def _take_unsealed(report: ChainReport, row: asyncpg.Record, hmac_key: bytes | None, *, begun: bool) -> None:
    """Such a row links to any row of its correlation that has a hash; only the first of them may link to none."""
    report.unsealed_total += 1
    previous, algorithm, defects = row["previous_event_hash"] or "", row["hash_algorithm"], report.unsealed_defects
    if previous and not row["linked"]:
        defects.add(defect_of(row, "removed", "removed: no event has the previous hash of this one"))
    if begun and not previous:
        defects.add(defect_of(row, "removed", "removed: only the first event may have no previous hash"))
    if algorithm not in UNKEYED and (algorithm != KEYED or hmac_key is None):
        reason = "needs a key that is not configured" if algorithm == KEYED else "is none that this service knows"
        defects.add(defect_of(row, "unverifiable", f"cannot be verified: hash_algorithm {algorithm!r} {reason}"))
        return
    try:
        expected = reference_hash(row, previous, None if algorithm in UNKEYED else hmac_key)
    except ValueError as error:
        defects.add(defect_of(row, "unverifiable", f"cannot be verified: {error}"))
        return
    if expected == row["event_hash"]:
        report.unsealed_verified += 1
    else:
        message = "edited: the event does not have the hash that was stored with it"
        defects.add(defect_of(row, "edited", message, expected, row["event_hash"]))
