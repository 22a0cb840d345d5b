"""The log in its order, portion by portion: each event once from any place, and a word where there is none."""

from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

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
from app.tlog.evidence import Evidence, read_evidence
from tests.logs import FIRST_LOG
from tests.postgres.log import write
from tests.postgres.test_continue import NEXT, continued
from tests.sealed import insert, plain_row, seal

Connection = asyncpg.Connection
EVERYTHING = EventFilter(include="self")
_READ = "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = 'log_flushes'"


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
    """A hole that the log does not know of passes for a purge, or what somebody put in an event's place for the log's or for nothing."""
    await owner.execute("DELETE FROM audit_events WHERE log_index IN (3, 4, 9)")
    await owner.execute("UPDATE audit_events SET event_hash = repeat('0', 64) WHERE log_index = 12")
    items = await read_all(owner)
    assert [item for item in items if isinstance(item, Absent)] == [
        Absent(3, 5, "unknown"),
        Absent(9, 10, "unknown"),
        Absent(12, 13, "unknown"),
    ]
    assert places(items) == [n for n in range(20) if n not in {3, 4, 9, 12}]


@pytest.mark.damaged
async def test_what_somebody_changed_is_told_under_a_filter(owner: Connection) -> None:
    """A changed row leaves the stream of a filter without a word; or a row that was put beside the log's says that it is gone."""
    await owner.execute("UPDATE audit_events SET event_hash = repeat('0', 64) WHERE log_index = 7")  # of rr-1
    await insert(owner, plain_row("rr-1", log_id=0, log_index=2, event_hash="1" * 64))  # the log's there is of rr-0
    await insert(owner, plain_row("rr-1", log_id=0, log_index=6, event_hash="1" * 64))
    items = await read_all(owner, query=EventFilter(correlation_id="rr-1"))
    assert [item for item in items if isinstance(item, Absent)] == [Absent(7, 8, "unknown")]
    assert places(items) == [5, 6, 8, 9, *range(15, 20)]
    for events_max in (1, 2, 3):
        cut = await read_all(owner, query=EventFilter(correlation_id="rr-1"), events_max=events_max)
        assert [item[0] for item in cut] == [item[0] for item in items]


@pytest.mark.damaged
@pytest.mark.parametrize("bounds", [{"events_max": 1}, {"events_max": 2}, {"events_max": 3}, {"bytes_max": 110}])
async def test_what_is_absent_fills_a_portion(owner: Connection, bounds: dict[str, int]) -> None:
    """After a purge of every other event a portion has tens of thousands of items; or one is skipped or repeated where it was cut."""
    await owner.execute("DELETE FROM audit_events WHERE log_index % 3 = 0 OR log_index IN (7, 11)")
    await owner.execute("UPDATE audit_events SET event_hash = repeat('0', 64) WHERE log_index IN (4, 5, 8, 13)")
    whole = [item if isinstance(item, Absent) else item.place for item in await read_all(owner)]
    reader, first, positions = LogReader(FIRST_LOG, newest_log), 0, list[tuple[int, str]]()
    while first < 20:
        portion = await reader.read(owner, first, EVERYTHING, **bounds)
        assert 0 < len(portion.items) <= bounds.get("events_max", 4)
        for item in portion.items:
            reason, end = (item.reason, item.end) if isinstance(item, Absent) else ("", item[0] + 1)
            positions += [(position, reason) for position in range(item[0], end)]
        assert portion.next == positions[-1][0] + 1
        first = portion.next
    assert portion.is_end
    gone = {0, 3, 6, 9, 12, 15, 18, 7, 11, 4, 5, 8, 13}
    assert positions == [(position, "unknown" if position in gone else "") for position in range(20)]
    assert [one for one in whole if isinstance(one, int)] == sorted(set(range(20)) - gone)


@pytest.mark.damaged
@pytest.mark.parametrize("forged", [[(17, 1000)], [(12, 2000)], [(17, 1000), (16, 1000)], [(-7, 9000)]])
@pytest.mark.parametrize("known", ["read", "signed", "nothing"])
async def test_a_flush_beside_the_log_moves_no_end(
    owner: Connection, forged: list[tuple[int, int]], known: str
) -> None:
    """By one row inside of the last flush a stream is told that positions are gone that the log has not given yet, and skips their events."""
    reader = LogReader(FIRST_LOG, newest_log)
    if known == "read":
        assert (await reader.read(owner, 0, EVERYTHING)).next == 20
    elif known == "signed":
        signed = "INSERT INTO log_signers VALUES (0, $1) ON CONFLICT (log_id) DO UPDATE SET note = $1"
        await owner.execute(signed, "log\n20\nAAAA\n\n")
    for row in forged:
        await owner.execute("INSERT INTO log_flushes (log_id, first_index, count, leaves) VALUES (0, $1, $2, '')", *row)
    for place in (0, 12, 19, 20):
        portion = await reader.read(owner, place, EVERYTHING)
        assert (portion.next, portion.is_end) == (20, True)
    assert await reader.end(owner) == 20
    with pytest.raises(NotThereYet):
        await reader.read(owner, 21, EVERYTHING)


async def test_few_flushes_are_read_for_the_end(connection: Connection) -> None:
    """At each wake, or for a place beyond the end, all flushes of the log are read."""
    for _ in range(300):
        await seal(connection, "rr-1", {})
    reader = LogReader(FIRST_LOG, newest_log)
    assert await reader.end(connection) == 300
    async with connection.transaction(isolation="repeatable_read"):
        await connection.execute("SELECT pg_stat_clear_snapshot()")
        before = await connection.fetchval(_READ)
        for place in (300, 301, 10**9):
            with suppress(NotThereYet):
                assert (await reader.read(connection, place, EVERYTHING)).is_end
        assert await connection.fetchval(_READ) - before < 30


@pytest.mark.damaged
async def test_evidence_is_read_when_the_log_has_grown(owner: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gap that stays unexplained costs a reading of all self events for each portion."""
    readings = list[int]()

    async def counted(*arguments: Any) -> Evidence:
        readings.append(1)
        return await read_evidence(*arguments)

    monkeypatch.setattr("app.stream.portion.read_evidence", counted)
    await owner.execute("DELETE FROM audit_events WHERE log_index % 2 = 0")
    reader, first = LogReader(FIRST_LOG, newest_log), 0
    while first < 20:
        first = (await reader.read(owner, first, EVERYTHING, events_max=2)).next
    assert len(readings) == 1
    await seal(owner, "rr-1", {})
    await reader.read(owner, 0, EVERYTHING)
    assert len(readings) == 2


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
