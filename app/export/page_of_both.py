"""Which events are on a page of format=json, if the archive has some that Postgres has no more: as many of each as the order of time puts there."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from app.db import Connection
from app.events.log import Log, place_of
from app.events.record import Row
from app.export.archived import Key, OldestArchived
from app.export.select import ExportQuery, page_keys
from app.query.filter import OFFSET_MAX
from app.tlog.evidence import leaves_at

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Page:
    """Events of Postgres that follow each other in the order of time, and those of the archive beside them."""

    offset: int
    limit: int
    """Of those of Postgres."""
    archived: Sequence[int] = ()
    """Numbers of those of the archive."""


async def find_page(connection: Connection, query: ExportQuery, log: Log, oldest: OldestArchived | None) -> Page:
    """The page of `query`. `oldest` has as many events as can be before its end."""
    if oldest is None:
        return Page(query.offset, query.limit)
    end = query.offset + query.limit
    rank = before = count = 0
    archived = list[int]()
    async with aclosing(_in_time(connection, query, log, oldest)) as runs:
        async for run in runs:
            size = 1 if run is None else len(run)
            skipped, taken = min(size, max(0, query.offset - rank)), min(size, end - rank)
            if run is None:
                before += skipped
                count += taken - skipped
            else:
                archived += run[skipped:taken]
            rank += taken
            if rank == end:
                break
    # All that comes after is of Postgres.
    return Page(before + max(0, query.offset - rank), count + end - max(rank, query.offset), archived)


async def _in_time(
    connection: Connection, query: ExportQuery, log: Log, oldest: OldestArchived
) -> AsyncGenerator[Sequence[int] | None]:
    """The events of both in the order of time, down to the last one of the archive: numbers of those that follow each other, or None for one of Postgres.

    One that is in both, since it is about to be removed, is of Postgres, if it is there what the log has.
    """
    start = 0
    doubles = set[int]()
    async with aclosing(page_keys(connection, query, min(query.offset + query.limit, OFFSET_MAX))) as portions:
        async for rows in portions:
            doubles |= await _still_stored(connection, log, rows, oldest)
            for row in rows:
                end = oldest.before(key_of(row))
                yield _without(doubles, oldest, range(start, end))
                start = end
                if start == len(oldest):
                    return
                yield None
    yield _without(doubles, oldest, range(start, len(oldest)))


def _without(doubles: set[int], oldest: OldestArchived, run: range) -> Sequence[int]:
    return [number for number in run if oldest.place(number) not in doubles] if doubles else run


def key_of(row: Row) -> Key:
    """Of a row of Postgres, with its `time`."""
    event_id: Any = row["event_id"]
    return (row["time"] - _EPOCH) // _MICROSECOND, event_id.bytes


async def _still_stored(connection: Connection, log: Log, rows: Sequence[Row], oldest: OldestArchived) -> set[int]:
    """The places of those rows that were removed, as the log records it, and are there as the log has them."""
    found = {
        place_of(row["log_id"], row["log_index"]): row["event_hash"]
        for row in rows
        if row["log_index"] is not None and oldest.is_gone(row["log_id"] or 0, row["log_index"])
    }
    leaves = await leaves_at(connection, log, list(found)) if found else {}
    return {place for place, event_hash in found.items() if leaves.get(place) == event_hash}
