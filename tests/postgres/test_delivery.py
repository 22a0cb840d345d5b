"""Delivery to sinks: everything arrives at least once and in order, whatever ends, and a repeat is recognised."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import orjson
import pytest
from prometheus_client import generate_latest
from pydantic import SecretStr

from app import metrics
from app.events.log import Log
from app.settings import Settings
from app.stream import cursor, deliver, worker
from app.stream.cursor import SinkState, read_states
from app.stream.destination import Delivery, NotDelivered
from app.stream.growth import LogGrowth
from app.stream.webhook import Webhook
from app.stream.worker import deliver_forever
from tests.logs import FIRST_LOG
from tests.postgres.log import write
from tests.postgres.test_continue import NEXT, continued
from tests.receiver import Answer, Receiver, new_secret, receiver, records_of, sinks_file
from tests.waiting import eventually

Connection = asyncpg.Connection


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses that a test would have to wait for."""
    monkeypatch.setattr(deliver, "_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(deliver, "_LOOK_SECONDS", 0.2)
    monkeypatch.setattr(deliver, "STANDBY_SECONDS", 0.2)


@asynccontextmanager
async def delivering(url: str, file: Path) -> AsyncIterator[asyncio.Task[None]]:
    """A replica that delivers, until the block ends."""
    settings = Settings(database_url=SecretStr(url), sinks=file)
    task = asyncio.create_task(deliver_forever(settings, FIRST_LOG, LogGrowth(settings)))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(condition: Callable[[], object]) -> None:
    async def poll() -> object | None:
        return condition() or None

    await eventually(poll)


async def state(connection: Connection, name: str = "soc-0") -> SinkState:
    return next(one for one in await read_states(connection) if one.name == name)


async def until_delivered(connection: Connection, name: str = "soc-0") -> None:
    """The sink has come to the end of the log."""

    async def poll() -> bool | None:
        states = [one for one in await read_states(connection) if one.name == name]
        return (bool(states) and not states[0].lag_events) or None

    await eventually(poll)


async def until_failing(connection: Connection, name: str = "soc-0") -> SinkState:
    async def poll() -> SinkState | None:
        states = [one for one in await read_states(connection) if one.name == name and one.failures]
        return states[0] if states else None

    return await eventually(poll)


@pytest.mark.parametrize("fields", [{}, {"events_max": 1}, {"events_max": 3}, {"wait_ms": 300}])
async def test_everything_arrives_once_and_in_order(
    connection: Connection, database_url: str, tmp_path: Path, fields: dict[str, Any]
) -> None:
    """A destination misses an event at the edge of a portion or of a wait, or gets one twice although nothing went wrong."""
    await write(database_url, *({"correlation_id": f"rr-{n % 3}"} for n in range(10)))
    with receiver() as one:
        async with delivering(database_url, sinks_file(tmp_path, one, **fields)):
            await until_delivered(connection)
            await write(database_url, *({} for _ in range(5)))
            await until(lambda: len(one.positions) >= 15)
    assert one.positions == list(range(15))
    assert (one.refused, one.controls, one.conflicts) == ([], [], [])
    assert len(one.ids) == len(set(one.ids))


async def test_cloudevents(connection: Connection, database_url: str, tmp_path: Path) -> None:
    """A receiver of CloudEvents gets something else than a batch of them."""
    await write(database_url, {}, {})
    with receiver() as one:
        async with delivering(database_url, sinks_file(tmp_path, one, format="cloudevents")):
            await until_delivered(connection)
    assert one.media_types == {"application/cloudevents-batch+json"}
    assert [record["eventplace"] for record in one.records if "eventplace" in record] == ["0:0", "0:1"]
    assert {record["specversion"] for record in one.records} == {"1.0"}


async def test_now_is_the_end_of_the_log(connection: Connection, database_url: str, tmp_path: Path) -> None:
    """A new sink gets what was there before, or misses what came right after it was made."""
    await write(database_url, {}, {})
    with receiver() as one:
        async with delivering(database_url, sinks_file(tmp_path, one, **{"from": "now"})):
            await until_delivered(connection)
            await write(database_url, {})
            await until(lambda: one.positions)
    assert one.positions == [2]


async def test_what_the_filter_leaves_out_moves_the_cursor(
    connection: Connection, database_url: str, tmp_path: Path
) -> None:
    """A sink whose filter takes nothing reads the log again at each start, holds back retention, and looks as if it were behind."""
    await write(database_url, *({} for _ in range(5)))
    with receiver() as one:
        async with delivering(database_url, sinks_file(tmp_path, one, filter={"event_type": "no.such"})):
            await until_delivered(connection)
            await write(database_url, {})
            await until_delivered(connection)
    assert one.positions == []
    assert (await state(connection)).place == 6


async def test_a_dead_destination_stops_only_itself(connection: Connection, database_url: str, tmp_path: Path) -> None:
    """While one destination is away another one gets nothing; or the first one misses what was written meanwhile."""
    away = Receiver(new_secret(), 1)
    with receiver() as one, receiver() as other:
        away = other
        file = sinks_file(tmp_path, one, other)
    with receiver(of=one):
        async with delivering(database_url, file):
            await write(database_url, *({} for _ in range(5)))
            failing = await until_failing(connection, "soc-1")
            assert failing.last_error is not None
            assert "hidden" not in failing.last_error
            await until(lambda: len(one.positions) == 5)
            with receiver(of=away):
                await until_delivered(connection, "soc-1")
    assert away.positions == one.positions == [0, 1, 2, 3, 4]
    assert (await state(connection, "soc-1")).state == "delivering"


async def test_a_lie_is_a_repeat_with_the_same_id(connection: Connection, database_url: str, tmp_path: Path) -> None:
    """A destination that answers 500 after it has stored everything cannot recognise the repeat, although the log has grown meanwhile."""
    with receiver() as one:
        one.decide = lambda number: Answer(500, accepts=True) if number < 3 else Answer()
        file = sinks_file(tmp_path, one)
        await write(database_url, {}, {})
        async with delivering(database_url, file):
            await until(lambda: one.requests)
            await write(database_url, {}, {})
        async with delivering(database_url, file):  # another process knows the portion only by its row
            await until_delivered(connection)
    assert len(set(one.ids[:4])) == 1
    assert one.positions == [0, 1, 2, 3]
    assert one.conflicts == []


async def test_retry_after_is_respected(connection: Connection, database_url: str, tmp_path: Path) -> None:
    """A destination that asks for an hour is asked again at once."""
    await write(database_url, {})
    with receiver() as one:
        one.decide = lambda _: Answer(429, {"retry-after": "3600"})
        async with delivering(database_url, sinks_file(tmp_path, one)):
            assert (await until_failing(connection)).last_error == "the receiver has answered 429 Too Many Requests"
            await asyncio.sleep(0.5)
            assert one.requests == 1
            one.decide = lambda _: Answer()
            await cursor.rewind(connection, "soc-0", 0)  # an operator need not wait for it
            await until_delivered(connection)


async def test_a_portion_too_large_is_cut(connection: Connection, database_url: str, tmp_path: Path) -> None:
    """A destination with a limit below ours never gets anything again."""
    await write(database_url, *({} for _ in range(8)))
    with receiver() as one:
        one.decide = lambda number: Answer(413 if number < 2 else 200)
        async with delivering(database_url, sinks_file(tmp_path, one, events_max=8)):
            await until_delivered(connection)
    assert one.positions == list(range(8))
    assert len(one.bodies) >= 3


@pytest.mark.parametrize("late", [(TimeoutError(), [8, 4]), (NotDelivered("late", is_late=True), [8, 8, 8, 4])])
async def test_a_portion_that_takes_too_long_is_cut(
    connection: Connection,
    database_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    late: tuple[Exception, list[int]],
) -> None:
    """A destination that cannot take a portion in time gets the same one for ever; or a smaller one at once, which is no repeat."""
    error, sizes = late
    sent: list[Delivery] = []

    async def take_four(_: Webhook, delivery: Delivery) -> None:
        sent.append(delivery)
        if len(delivery.items) > 4:
            raise error

    monkeypatch.setattr(Webhook, "deliver", take_four)
    await write(database_url, *({} for _ in range(8)))
    with receiver() as one:
        async with delivering(database_url, sinks_file(tmp_path, one)):
            await until_delivered(connection)
    assert [len(one.items) for one in sent][: len(sizes)] == sizes
    assert len({one.id for one in sent[: len(sizes)]}) == 2
    assert [item[0] for one in sent[len(sizes) - 1 :] for item in one.items if len(one.items) <= 4][:4] == [0, 1, 2, 3]


async def test_what_a_destination_says_of_a_portion(
    connection: Connection, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a Collector has rejected is shown until the next portion, a moment later, or the sink is taken to fail."""
    said = ["rejected", None]

    async def confirm(*_: object) -> str | None:
        return said.pop(0) if said else None

    monkeypatch.setattr(Webhook, "deliver", confirm)
    await write(database_url, {}, {})
    with receiver() as one:
        async with delivering(database_url, sinks_file(tmp_path, one, events_max=1)):
            await until_delivered(connection)
            shown = await state(connection)
    assert (shown.state, shown.last_error, shown.last_error_at is None) == ("delivering", "rejected", False)


async def test_a_cursor_that_is_left_is_measured(
    connection: Connection, database_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a file of sinks nobody sees the cursor that holds back retention; or a database without the table fills the log."""
    monkeypatch.setattr(worker, "_LOOK_SECONDS", 0.05)
    rounds = 0

    async def counted(usable: Connection) -> list[SinkState]:
        nonlocal rounds
        rounds += 1
        return await read_states(usable)

    monkeypatch.setattr(worker, "read_states", counted)
    await cursor.create_cursor(connection, "left", "webhook", "https://h", 0)
    settings = Settings(database_url=SecretStr(database_url))
    task = asyncio.create_task(deliver_forever(settings, FIRST_LOG, LogGrowth(settings)))
    try:
        await until(lambda: b'datastorage_sink_configured{sink="left"} 0.0' in generate_latest())
        await connection.execute("ALTER TABLE sinks RENAME TO none")
        seen = rounds
        await until(lambda: rounds >= seen + 3)
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await connection.execute("ALTER TABLE IF EXISTS none RENAME TO sinks")
    assert [record.message for record in caplog.records if record.levelname in {"WARNING", "ERROR"}] == []


async def test_one_replica_delivers_and_another_takes_over(
    connection: Connection, database_url: str, tmp_path: Path
) -> None:
    """Two replicas send everything twice, or nobody sends when the one that did has ended."""
    with receiver() as one:
        file = sinks_file(tmp_path, one, events_max=1)
        async with delivering(database_url, file):
            async with delivering(database_url, file):
                await write(database_url, *({} for _ in range(10)))
                await until(lambda: len(one.positions) == 10)
                holders = await connection.fetch(
                    "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted AND database ="
                    " (SELECT oid FROM pg_database WHERE datname = current_database())"
                )
                assert len(holders) == 1
                await connection.execute("SELECT pg_terminate_backend($1)", holders[0]["pid"])
                await write(database_url, *({} for _ in range(5)))
                await until(lambda: len(one.positions) == 15)
            await write(database_url, {})
            await until(lambda: len(one.positions) == 16)
    assert one.positions == list(range(16))
    assert len(one.ids) == len(set(one.ids))


async def test_a_lock_lost_while_sending(connection: Connection, database_url: str, tmp_path: Path) -> None:
    """Who has lost its lock in the middle of a delivery moves the cursor over what was not delivered, or back."""
    await write(database_url, *({} for _ in range(4)))
    with receiver() as one:
        one.decide = lambda number: Answer(seconds=1.5) if number == 0 else Answer()
        file = sinks_file(tmp_path, one, events_max=2)
        async with delivering(database_url, file), delivering(database_url, file):
            await until(lambda: one.requests)
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted AND database ="
                " (SELECT oid FROM pg_database WHERE datname = current_database())"
            )
            await until_delivered(connection)
            await asyncio.sleep(1.5)  # the first one's answer has come
            await write(database_url, {})
            await until_delivered(connection)
    assert one.positions == [0, 1, 2, 3, 4]
    assert one.conflicts == []
    assert (await state(connection)).place == 5


async def test_rewound_while_sending(connection: Connection, database_url: str, tmp_path: Path) -> None:
    """A portion that was on its way when somebody rewound the sink moves the cursor forward again: nothing is sent again."""
    await write(database_url, *({} for _ in range(4)))
    with receiver() as one:
        async with delivering(database_url, sinks_file(tmp_path, one)):
            await until_delivered(connection)
            one.decide = lambda _: Answer(seconds=0.5)
            await write(database_url, {})
            sent = one.requests
            await until(lambda: one.requests > sent)
            assert await cursor.rewind(connection, "soc-0", 1)
            await until_delivered(connection)
    assert one.positions[-4:] == [1, 2, 3, 4]
    assert (await state(connection)).place == 5


async def test_paused_and_resumed(connection: Connection, database_url: str, tmp_path: Path) -> None:
    """A paused sink goes on, or does not when it is resumed."""
    with receiver() as one:
        async with delivering(database_url, sinks_file(tmp_path, one)):
            await until_delivered(connection)
            assert await cursor.pause(connection, "soc-0", paused=True)
            await asyncio.sleep(0.5)
            await write(database_url, {})
            await asyncio.sleep(0.5)
            assert one.positions == []
            assert (await state(connection)).state == "paused"
            await cursor.pause(connection, "soc-0", paused=False)
            await until(lambda: one.positions == [0])


async def test_a_file_that_breaks_and_changes(connection: Connection, database_url: str, tmp_path: Path) -> None:
    """A mistake in the file stops what was delivered before it; or a corrected, renamed or removed sink has no effect."""
    with receiver() as one:
        file = sinks_file(tmp_path, one)
        document = orjson.loads(file.read_bytes())
        async with delivering(database_url, file) as task:
            await until_delivered(connection)
            file.write_text("sinks: [")
            await asyncio.sleep(1.5)
            await write(database_url, {})
            await until_delivered(connection)
            assert one.positions == [0]
            assert metrics.SINKS_INVALID._value.get() == 1
            file.write_bytes(orjson.dumps(document))
            await until(lambda: not metrics.SINKS_INVALID._value.get())
            document["sinks"][0] |= {"name": "renamed", "filter": {"event_type": "no.such"}}
            file.write_bytes(orjson.dumps(document))
            await until_delivered(connection, "renamed")
            await write(database_url, {})
            await until_delivered(connection, "renamed")
            assert one.positions == [0]
            assert not task.done()
    assert {one.name: one.place for one in await read_states(connection)} == {"soc-0": 1, "renamed": 2}


async def test_a_secret_that_rotates(database_url: str, tmp_path: Path) -> None:
    """A receiver that knows one of two secrets refuses, or a changed file of a secret has no effect until a restart."""
    new = new_secret(b"b")
    with receiver() as one:
        file = sinks_file(tmp_path, one)
        (tmp_path / "new").write_text(new)
        document = orjson.loads(file.read_bytes())
        document["sinks"][0]["secret_files"].append(str(tmp_path / "new"))
        file.write_bytes(orjson.dumps(document))
        async with delivering(database_url, file):
            await write(database_url, {})
            await until(lambda: one.positions == [0])
            one.secret = new
            await write(database_url, {})
            await until(lambda: one.positions == [0, 1])
            assert one.refused == []
            one.secret = newest = new_secret(b"c")
            (tmp_path / "new").write_text(newest)
            await write(database_url, {})
            await until(lambda: one.positions == [0, 1, 2])


@pytest.mark.damaged
async def test_over_the_seam(connection: Connection, database_url: str, tmp_path: Path) -> None:
    """A sink stops for ever at the end of a log that was continued, above all if it had delivered what is lost."""
    await continued(connection, database_url)
    with receiver() as one:
        async with delivering(database_url, sinks_file(tmp_path, one)):
            await until_delivered(connection)
            assert {
                "stream": "seam",
                "place": "1:0",
                "log": NEXT.name,
                "closed": FIRST_LOG.name,
                "size": 6,
            } in one.controls
            await cursor.rewind(connection, "soc-0", 100)
            before = len(one.controls)
            await until_delivered(connection)
    assert [record["stream"] for record in one.controls[before:]] == ["seam"]


@pytest.mark.damaged
async def test_a_gap_is_said(connection: Connection, owner: Connection, database_url: str, tmp_path: Path) -> None:
    """What somebody deleted is left out without a word."""
    await owner.execute("DELETE FROM audit_events WHERE log_index IN (3, 4)")
    with receiver() as one:
        async with delivering(database_url, sinks_file(tmp_path, one, events_max=2)):
            await until_delivered(connection)
    assert one.positions == [n for n in range(20) if n not in {3, 4}]
    assert one.controls == [{"stream": "absent", "reason": "unknown", "first": "0:3", "end": "0:5"}]


async def test_removed_while_delivering(connection: Connection, database_url: str, tmp_path: Path) -> None:
    """A sink that was removed and begins anew goes on where it was, or its deliveries have the ids of those before."""
    await write(database_url, *({} for _ in range(4)))
    with receiver() as one:
        async with delivering(database_url, sinks_file(tmp_path, one)):
            await until_delivered(connection)
            assert await cursor.remove(connection, "soc-0")
            await until(lambda: len(one.positions) >= 8)
            await until_delivered(connection)
    assert one.positions == [0, 1, 2, 3] * 2
    assert one.repeats == 0


@pytest.mark.damaged
async def test_other_events_at_the_same_places(connection: Connection, database_url: str, tmp_path: Path) -> None:
    """After a failover or a restore other events have the places: a receiver takes them for the repeat of what it has, and drops them."""
    await write(database_url, {}, {})
    with receiver() as one:
        one.decide = lambda _: Answer(500, accepts=True)
        file = sinks_file(tmp_path, one)
        async with delivering(database_url, file):
            await until(lambda: one.requests)
        await connection.execute("SET session_replication_role = replica")
        await connection.execute("UPDATE audit_events SET event_hash = repeat('0', 64) WHERE log_index = 1")
        await connection.execute(
            "UPDATE log_flushes SET leaves = decode(repeat('00', 32), 'hex') WHERE first_index = 1"
        )
        one.decide = lambda _: Answer()
        async with delivering(database_url, file):
            await until_delivered(connection)
    assert one.conflicts == []
    assert one.records[-1]["event_hash"] == "0" * 64


def one_more(one: Receiver, before: int) -> bool:
    return one.requests > before


async def test_ids_are_of_one_log(database_url: str, tmp_path: Path) -> None:
    """Two installations that have a sink of the same name deliver under the same id, and one receiver drops what the second one sends."""
    await write(database_url, {})
    with receiver() as one:
        one.decide = lambda _: Answer(500)
        file = sinks_file(tmp_path, one)
        settings = Settings(database_url=SecretStr(database_url), sinks=file)
        for log in (FIRST_LOG, Log(0, "another.example/log")):
            before = one.requests
            task = asyncio.create_task(deliver_forever(settings, log, LogGrowth(settings)))
            await until(partial(one_more, one, before))
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    assert len(set(one.ids)) == 2


@pytest.mark.damaged
async def test_a_checkpoint_is_a_delivery_of_its_own(connection: Connection, database_url: str, tmp_path: Path) -> None:
    """A portion is sent once with a checkpoint and once without, under one id; or no checkpoint is sent."""
    await write(database_url, {}, {})
    await connection.execute(
        "INSERT INTO log_checkpoints (log_id, size, note, published_at) VALUES (0, 2, 'a note', now())"
    )
    with receiver() as one:
        one.decide = lambda number: (
            Answer(500, accepts=True) if number < 1 else Answer()
        )  # the repeat comes when a checkpoint is due
        async with delivering(database_url, sinks_file(tmp_path, one)):
            await until_delivered(connection)
            await until(lambda: len(one.bodies) == 2)
    assert one.conflicts == []
    events, checkpoint = (records_of(body) for body in one.bodies.values())
    assert [event["log_index"] for event in events] == [0, 1]
    assert checkpoint == [{"stream": "checkpoint", "place": "0:2", "note": "a note"}]


async def test_a_beginning_beyond_the_end(connection: Connection, database_url: str, tmp_path: Path) -> None:
    """A sink whose `from` is beyond the end of the log gets a cursor there, and nobody is told."""
    await write(database_url, {})
    with receiver() as one:
        file = sinks_file(tmp_path, one, **{"from": "0:3"})
        failures = metrics.SINK_FAILURES.labels(sink="soc-0")._value.get
        before = failures()
        async with delivering(database_url, file):
            await until(lambda: failures() > before)
            assert await read_states(connection) == []
            await write(database_url, {}, {}, {})
            await until(lambda: one.positions == [3])


async def test_beyond_the_end_until_somebody_rewinds(connection: Connection, database_url: str, tmp_path: Path) -> None:
    """A cursor that was beyond the end goes on by itself when the log has come there: what was written in between is skipped."""
    await write(database_url, {})
    with receiver() as one:
        file = sinks_file(tmp_path, one)
        async with delivering(database_url, file):
            await until_delivered(connection)
            await cursor.rewind(connection, "soc-0", 3)
            await until_failing(connection)
            await write(database_url, *({} for _ in range(4)))
            failures = (await state(connection)).failures
            await eventually(lambda: _more_failures(connection, failures))
        async with delivering(database_url, file):  # another process knows it only by its row
            failures = (await state(connection)).failures
            await eventually(lambda: _more_failures(connection, failures))
            assert one.positions == [0]
            await cursor.rewind(connection, "soc-0", 1)
            await until_delivered(connection)
    assert one.positions == [0, 1, 2, 3, 4]


async def _more_failures(connection: Connection, than: int) -> bool | None:
    return (await state(connection)).failures > than or None


async def test_beyond_the_end(connection: Connection, database_url: str, tmp_path: Path) -> None:
    """A cursor from before a backup was restored fails without a word, or skips what is written at its positions."""
    await write(database_url, {})
    with receiver() as one:
        async with delivering(database_url, sinks_file(tmp_path, one)):
            await until_delivered(connection)
            await cursor.rewind(connection, "soc-0", 7)
            assert "beyond the end of the log" in str((await until_failing(connection)).last_error)
            await cursor.rewind(connection, "soc-0", 0)
            await until_delivered(connection)
    assert one.positions == [0, 0]
