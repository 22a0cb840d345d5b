"""The log in its order, portion by portion: each event once from any place, and a word where there is none."""

from datetime import UTC, datetime

import asyncpg
import orjson
import pytest
from pydantic import SecretStr

from app.events.log import LOG_POSITIONS, Log
from app.export.file import MEMBERS
from app.query.filter import EventFilter
from app.retention.purge import run
from app.settings import Settings
from app.stream.place import parse_place, place_text
from app.stream.portion import Absent, Item, LogReader, NotThereYet, Seam, StreamedEvent
from app.stream.records import ndjson_line
from app.tlog.continued import newest_log
from tests.logs import FIRST_LOG
from tests.postgres.log import write
from tests.postgres.test_continue import NEXT, continued

Connection = asyncpg.Connection
EVERYTHING = EventFilter(include="self")


async def read_all(
    connection: Connection, first: int = 0, query: EventFilter = EVERYTHING, **bounds: int
) -> list[Item]:
    """All items from a place on, in however many portions."""
    reader, items = LogReader(FIRST_LOG, newest_log), list[Item]()
    while True:
        portion = await reader.read(connection, first, query, **bounds)
        items += portion.items
        assert portion.is_end or portion.next > first
        first = portion.next
        if portion.is_end:
            return items


def places(items: list[Item]) -> list[int]:
    return [item.place for item in items if isinstance(item, StreamedEvent)]


@pytest.mark.parametrize("bounds", [{}, {"events_max": 1}, {"events_max": 3}, {"bytes_max": 1}])
async def test_every_event_once_from_any_place(
    connection: Connection, database_url: str, bounds: dict[str, int]
) -> None:
    """A portion skips an event at its edge, or repeats one."""
    await write(database_url, *({"correlation_id": f"rr-{n % 3}"} for n in range(10)))
    for first in range(11):
        assert places(await read_all(connection, first, EVERYTHING, **bounds)) == list(range(first, 10))


async def test_a_filter_tells_nothing_of_what_it_leaves_out(connection: Connection, database_url: str) -> None:
    """An event that a filter leaves out looks as if it were missing, or stops the stream."""
    await write(database_url, *({"correlation_id": f"rr-{n % 3}"} for n in range(10)))
    items = await read_all(connection, query=EventFilter(correlation_id="rr-1"), events_max=1)
    assert [type(item) for item in items] == [StreamedEvent] * 3
    assert places(items) == [1, 4, 7]


async def test_the_end_and_what_lies_beyond(connection: Connection, database_url: str) -> None:
    """A stream that waits at the end is refused, or one from beyond it waits for ever."""
    reader = LogReader(FIRST_LOG, newest_log)
    assert (await reader.read(connection, 0, EVERYTHING)).next == await reader.end(connection) == 0
    await write(database_url, {}, {})
    assert await reader.end(connection) == 2
    waiting = await reader.read(connection, 2, EVERYTHING)
    assert (waiting.items, waiting.next, waiting.is_end) == ((), 2, True)
    for beyond in (3, 10**9, LOG_POSITIONS, 7 * LOG_POSITIONS + 3):
        with pytest.raises(NotThereYet) as refused:
            await reader.read(connection, beyond, EVERYTHING)
        assert refused.value.end == 2


@pytest.mark.damaged  # a purge is no damage, but the test's own counts of rows do not know it
async def test_what_was_purged_is_told(connection: Connection, database_url: str) -> None:
    """A reader from before a purge sees a hole without a word, or takes it for tampering."""
    old = datetime(2019, 1, 2, tzinfo=UTC).isoformat()
    for member in ("old", "new"):
        await connection.execute("SELECT ensure_partitions('2019-01-01', '2019-01-31')")
        await write(database_url, {"event_timestamp": old} if member == "old" else {}, {})
    settings = Settings(database_url=SecretStr(database_url))
    await run(settings, datetime.now(UTC))
    items = await read_all(connection)
    assert items[0] == Absent(0, 1, "purged")
    assert places(items)[:3] == [1, 2, 3]


@pytest.mark.damaged
async def test_what_somebody_deleted_is_told(owner: Connection) -> None:
    """A hole that the log does not know of passes for a purge, or an event that somebody put there for the log's."""
    await owner.execute("DELETE FROM audit_events WHERE log_index IN (3, 4, 9)")
    await owner.execute("UPDATE audit_events SET event_hash = repeat('0', 64) WHERE log_index = 12")
    items = await read_all(owner)
    assert [item for item in items if isinstance(item, Absent)] == [
        Absent(3, 5, "unknown"),
        Absent(9, 10, "unknown"),
    ]
    assert places(items) == [n for n in range(20) if n not in {3, 4, 9, 12}]


@pytest.mark.damaged
@pytest.mark.parametrize("events_max", [1, 500])
async def test_over_the_seam(connection: Connection, database_url: str, events_max: int) -> None:
    """A stream stops at the end of a log that was continued, or does not say where the next one begins."""
    await continued(connection, database_url)
    items = await read_all(connection, events_max=events_max)
    seams = [item for item in items if isinstance(item, Seam)]
    assert seams == [Seam(LOG_POSITIONS, NEXT.name, FIRST_LOG.name, 6)]
    assert places(await read_all(connection, 8)) == [place for place in places(items) if place >= LOG_POSITIONS]
    assert (await read_all(connection, 8))[0] == seams[0]  # for whoever has got what was lost
    rows = await connection.fetch("SELECT log_id, log_index FROM audit_events ORDER BY 1, 2")
    assert places(items) == [Log(row["log_id"], "").place(row["log_index"]) for row in rows]
    assert [item.place if not isinstance(item, Absent) else item.first for item in items] == sorted(
        item[0] for item in items
    )


@pytest.mark.damaged
async def test_checkpoints_and_lines(connection: Connection, database_url: str) -> None:
    """A stream shows a checkpoint of what it has not sent yet, or a line by which an event and a word about the log are mixed up."""
    _, worker = await continued(connection, database_url)
    reader = LogReader(NEXT, newest_log)
    assert await reader.checkpoint(connection, LOG_POSITIONS + 2) is None
    signed = await reader.checkpoint(connection, LOG_POSITIONS + 3)
    assert signed is not None
    assert signed.place == LOG_POSITIONS + 3
    assert signed.note.startswith(f"{NEXT.name}\n3\n")
    records = [orjson.loads(ndjson_line(item)) for item in [*await read_all(connection), signed]]
    of_log = [record for record in records if "stream" in record]
    assert [record["stream"] for record in of_log][-2:] == ["seam", "checkpoint"]
    assert {"stream": "seam", "place": "1:0", "log": NEXT.name, "closed": FIRST_LOG.name, "size": 6} in of_log
    assert {frozenset(record) for record in records if "stream" not in record} == {frozenset(MEMBERS)}
    assert worker.log == NEXT


@pytest.mark.parametrize(("place", "text"), [(0, "0:0"), (4711, "0:4711"), (LOG_POSITIONS + 2, "1:2")])
def test_text_of_a_place(place: int, text: str) -> None:
    """A place that was sent is not understood when it comes back."""
    assert place_text(place) == text
    assert parse_place(text) == place


@pytest.mark.parametrize("text", ["", "4711", "0:", ":1", "0:-1", "0:1 ", "0:٣", "0:999999999999999", "x:1", "0:1:2"])
def test_text_that_is_no_place(text: str) -> None:
    """A misspelled place begins somewhere."""
    with pytest.raises(ValueError, match="expected LOG:POSITION"):
        parse_place(text)
