"""The write path on a real Postgres, with the sequences of docs/design.md, section 6, that a wrong design would fail."""

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic, sleep
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from pydantic import SecretStr

from app.db import connect_writer
from app.errors import BadRequest, Conflict, DatabaseAway, KeyReused
from app.events.canonical import canonical
from app.events.catalog import Catalog
from app.ingest import partitions
from app.ingest.accept import Acceptance, check_item, computed_ids, other_ids, single_id
from app.ingest.claim import Claim
from app.ingest.event_writer import OwnState, busy_seconds_until
from app.ingest.spool import Spool
from app.ingest.store import SQL, LostRace, MonthDetached, Store, _claim_columns
from app.ingest.submission import new_submission
from app.ingest.writer import Writer
from app.settings import Settings
from tests.logs import FIRST_LOG
from tests.proxy import proxy

CATALOG = Catalog()
LOG = "test.example/datastorage"


def item(correlation_id: str = "rr-1", **members: Any) -> dict[str, Any]:
    return {
        "version": "1.0",
        "event_type": "orchestrator.lifecycle.started",
        "event_timestamp": datetime.now(UTC).isoformat(),
        "event_category": "orchestration",
        "event_action": "started",
        "event_outcome": "success",
        "correlation_id": correlation_id,
        "event_data": {"event_type": "orchestrator.lifecycle.started", "rr_name": "rr", "namespace": "payments"},
    } | members


def deadline(ms: int) -> float:
    return asyncio.get_running_loop().time() + ms / 1000


class Replica:
    """One process's writer, and the two ways to post to it."""

    def __init__(self, writer: Writer) -> None:
        self.writer = writer

    async def post(self, posted: dict[str, Any]) -> UUID:
        one = check_item(CATALOG, posted, "", plain=False, depth=3)
        return (await self._submit([one], [single_id(one)], 5_000))[0]

    async def batch(self, *posted: dict[str, Any], now: datetime | None = None, key: str = "") -> list[UUID]:
        now = now or datetime.now(UTC)
        drafts = [check_item(CATALOG, p, f"/{i}", plain=False, depth=3) for i, p in enumerate(posted)]
        source = ("key", key) if key else ("body", hashlib.sha256(canonical(list(posted))).hexdigest())
        ids = computed_ids(drafts, "", source, now)
        return await self._submit(drafts, ids, 30_000, now, other_ids(drafts, "", source, now))

    async def _submit(
        self,
        drafts: list[Any],
        ids: list[UUID],
        deadline_ms: int,
        now: datetime | None = None,
        others: dict[UUID, tuple[UUID, ...]] | None = None,
    ) -> list[UUID]:
        acceptance = Acceptance(now or datetime.now(UTC), {}, LOG, other_ids=others or {})
        submission = await new_submission(drafts, ids, acceptance)
        await self.writer.submit(submission, deadline(deadline_ms))
        return [submission.stored_as.get(one, one) for one in ids]


@asynccontextmanager
async def replica(database_url: str) -> AsyncIterator[Replica]:
    settings = Settings(database_url=SecretStr(database_url))
    writer = Writer(Store(settings, FIRST_LOG), settings)
    writer.start()
    yield Replica(writer)
    await writer.close()


async def count(connection: "asyncpg.Connection[asyncpg.Record]") -> int:
    return int(await connection.fetchval("SELECT count(*) FROM audit_events"))


async def test_positions_follow_each_other(database_url: str, connection: Any) -> None:
    """Events of one correlation are not chained in the order in which they were answered."""
    async with replica(database_url) as one:
        ids = [await one.post(item(event_action=f"step-{i}")) for i in range(3)]
    rows = await connection.fetch("SELECT event_id, log_index, chain_index FROM audit_events ORDER BY log_index")
    assert [tuple(row) for row in rows] == [(ids[i], i, i) for i in range(3)]


async def test_large_flush_goes_by_copy(database_url: str, connection: Any) -> None:
    """A flush that is sent by COPY is stored differently from one that is sent in the statement."""
    async with replica(database_url) as one:
        ids = await one.batch(*(item(f"rr-{i % 7}", actor_ip="10.0.0.1", duration_ms=i) for i in range(300)))
    rows = await connection.fetch("SELECT event_id, host(actor_ip) AS ip FROM audit_events ORDER BY log_index")
    assert [row["event_id"] for row in rows] == ids
    assert {row["ip"] for row in rows} == {"10.0.0.1"}


async def test_flush_scans_no_table(database_url: str) -> None:
    """On a new database each flush reads all chain heads, until Postgres has statistics of them."""
    writer = await connect_writer(Settings(database_url=SecretStr(database_url)))
    try:
        await writer.execute("PREPARE flush AS " + SQL.of(FIRST_LOG)["flush"])
        plan = await writer.fetch(f"EXPLAIN EXECUTE flush ({', '.join(['NULL'] * 20)})")
    finally:
        await writer.close()
    scans = [
        line.split("(")[0].strip(" ->") for (line,) in plan if re.search("Scan.* on (log_flushes|chain_heads)", line)
    ]
    assert scans == [
        "Index Scan using log_flushes_pkey on log_flushes p",
        "Index Scan using chain_heads_pkey on chain_heads c",
    ]


async def test_batch_sent_again_is_one_batch(database_url: str, connection: Any) -> None:
    """A Go client that resends a whole batch after a timeout stores it twice."""
    posted = [item(f"rr-{i}") for i in range(5)]
    async with replica(database_url) as one, replica(database_url) as other:
        assert await one.batch(*posted) == await other.batch(*posted) == await one.batch(*posted)
    assert await count(connection) == 5


async def test_equal_batches_at_the_same_time_are_one(database_url: str, connection: Any) -> None:
    """Two equal batches in one inbox collide in the flush, or are stored twice."""
    posted = [item(f"rr-{i}") for i in range(5)]
    async with replica(database_url) as one, replica(database_url) as other:
        answers = await asyncio.gather(*(r.batch(*posted) for r in (one, other, one, other, one)))
    assert all(answer == answers[0] for answer in answers)
    assert await count(connection) == 5


async def test_batch_of_which_one_item_is_stored(database_url: str, connection: Any) -> None:
    """One stored item makes the rest of the batch disappear, or is stored twice, or leaves a gap in the log."""
    known = item("rr-known", event_id=str(uuid4()))
    async with replica(database_url) as one:
        await one.post(known)
        ids = await one.batch(item("rr-a"), known, item("rr-b"))
        await one.post(item("rr-c"))
    assert str(ids[1]) == known["event_id"]
    assert [r[0] for r in await connection.fetch("SELECT log_index FROM audit_events ORDER BY 1")] == [0, 1, 2, 3]


async def test_id_sent_again_with_another_date_and_correlation(database_url: str, connection: Any) -> None:
    """An event_id is unique only within its day and correlation, as the primary key alone would have it."""
    event_id = str(uuid4())
    yesterday = (datetime.now(UTC) - timedelta(days=1)).isoformat()
    async with replica(database_url) as one:
        await one.post(item("rr-1", event_id=event_id))
        with pytest.raises(Conflict, match=event_id):
            await one.post(item("rr-2", event_id=event_id, event_timestamp=yesterday))
    assert await count(connection) == 1


async def test_same_content_in_another_key_order_is_a_resend(database_url: str, connection: Any) -> None:
    """Go writes map keys in random order: a resend is refused as another event."""
    posted = item(event_id=str(uuid4()))
    async with replica(database_url) as one:
        assert await one.post(posted) == await one.post(dict(reversed(posted.items())))
    assert await count(connection) == 1


async def test_a_different_event_refuses_the_whole_batch(database_url: str, connection: Any) -> None:
    """Part of a refused batch is stored."""
    event_id = str(uuid4())
    async with replica(database_url) as one:
        await one.post(item(event_id=event_id))
        with pytest.raises(Conflict):
            await one.batch(item("rr-a"), item("rr-b", event_id=event_id))
    assert await count(connection) == 1


async def test_computed_id_that_a_client_has_chosen(database_url: str, connection: Any) -> None:
    """Who knows what another client will send makes the service answer that it is stored, by an event of his own under its id."""

    def computed(posted: dict[str, Any]) -> UUID:
        source = ("body", hashlib.sha256(canonical([posted])).hexdigest())
        drafts = [check_item(CATALOG, posted, "/0", plain=False, depth=3)]
        return computed_ids(drafts, "", source, datetime.now(UTC))[0]

    taken, same = item("rr-1"), item("rr-2")
    async with replica(database_url) as one:
        await one.post(taken | {"event_id": str(computed(taken)), "event_action": "other"})
        with pytest.raises(Conflict, match="differs in event_action"):
            await one.batch(taken)
        await one.post(same | {"event_id": str(computed(same))})
        assert await one.batch(same) == [computed(same)]
    assert await count(connection) == 2


async def test_id_twice_in_one_batch(database_url: str, connection: Any) -> None:
    """Equal items under one id are not collapsed, or different ones are not refused."""
    twice = item(event_id=str(uuid4()))
    async with replica(database_url) as one:
        ids = await one.batch(twice, twice)
        with pytest.raises(Conflict, match="twice"):
            await one.batch(item(event_id=str(ids[0])), item("rr-2", event_id=str(ids[0])))
    assert ids[0] == ids[1]
    assert await count(connection) == 1


async def test_resend_is_recognised_before_the_window(database_url: str, connection: Any) -> None:
    """A resend is refused because its time has run out since it was accepted."""
    posted = item(event_id=str(uuid4()))
    drafted = check_item(CATALOG, posted, "", plain=False, depth=3)
    async with replica(database_url) as one:
        await one.post(posted)
        later = Acceptance(datetime.now(UTC) + timedelta(days=8), {}, LOG)
        resent = await new_submission([drafted], [single_id(drafted)], later)
        await one.writer.submit(resent, deadline(5_000))
        fresh = check_item(CATALOG, item(event_id=str(uuid4())), "", plain=False, depth=3)
        refused = await new_submission([fresh], [single_id(fresh)], later)
        with pytest.raises(BadRequest, match="7 days"):
            await one.writer.submit(refused, deadline(5_000))
    assert await count(connection) == 1


@pytest.mark.damaged
async def test_claim_counts_only_while_its_row_exists(database_url: str, connection: Any) -> None:
    """An event that somebody deleted can never be sent again under its id."""
    posted = item(event_id=str(uuid4()))
    async with replica(database_url) as one:
        await one.post(posted)
        await connection.execute("DELETE FROM audit_events")
        await one.post(posted)
    assert await count(connection) == 1


async def test_stalled_between_snapshot_and_insert(database_url: str, connection: Any) -> None:
    """A replica that read the log's end, then stalled, writes at positions that another replica has written to."""
    settings = Settings(database_url=SecretStr(database_url))
    stalled = Store(settings, FIRST_LOG)
    drafted = check_item(CATALOG, item("rr-1", event_action="stalled"), "", plain=False, depth=3)
    submission = await new_submission([drafted], [single_id(drafted)], Acceptance(datetime.now(UTC), {}, LOG))
    postgres = await stalled.connection()
    flush = await stalled._link(postgres, submission.events)
    async with replica(database_url) as other:
        await other.post(item("rr-1"))
    with pytest.raises((LostRace, asyncpg.UniqueViolationError)):
        await stalled._send(postgres, flush, _claim_columns(flush.events, []))
    assert await count(connection) == 1
    stalled.reset_after_lost_race()
    await stalled.commit(submission.events, [], asyncio.get_running_loop().time() + 5)
    await stalled.close()
    assert await connection.fetchval("SELECT max(chain_index) FROM audit_events") == 1


@pytest.mark.parametrize("lost", ["lose_question", "lose_answer"])
@pytest.mark.parametrize("size", [0, 1, 200])
async def test_unknown_outcome_while_another_replica_writes_on(
    database_url: str, connection: Any, lost: str, size: int
) -> None:
    """A connection that is cut during COMMIT loses an event, or stores it twice; size 0 is a plain single event."""
    async with proxy(database_url) as between, replica(between.url) as one, replica(database_url) as other:
        await one.post(item("rr-1"))
        setattr(between, lost, True)
        posted = [item("rr-1", event_action=f"step-{i}") for i in range(size)]
        sending = asyncio.create_task(one.batch(*posted) if posted else one.post(item("rr-1")))
        for _ in range(20):
            await other.post(item("rr-1"))
        await sending
    assert await count(connection) == 1 + max(size, 1) + 20


async def test_three_replicas_at_once(database_url: str, connection: Any) -> None:
    """Replicas that race for the log's end lose events, or break a chain."""

    async def work(post: Callable[[dict[str, Any]], Awaitable[UUID]], name: str) -> list[UUID]:
        return [await post(item(f"rr-{i % 5}", event_action=f"{name}-{i}")) for i in range(40)]

    async with replica(database_url) as a, replica(database_url) as b, replica(database_url) as c:
        answers = await asyncio.gather(*(work(r.post, str(n)) for n, r in enumerate((a, b, c, a, b, c))))
    assert await count(connection) == len({i for answer in answers for i in answer}) == 240


async def test_the_writer_shows_when_it_writes(database_url: str, connection: Any, tmp_path: Path) -> None:
    """Reads do not yield to a long flush or to a replay before its end, or yield to events that are only spooled."""
    settings, state = Settings(database_url=SecretStr(database_url)), OwnState()
    spool = Spool(tmp_path, 1 << 20)
    writer = Writer(Store(settings, FIRST_LOG), settings, spool, state, away=True)
    writer.start()
    one = Replica(writer)
    await one.post(item())
    assert state.busy_seconds == 0
    written = 0.0
    for write in (lambda: writer.on_presence(""), lambda: one.post(item())):
        async with connection.transaction(), asyncio.timeout(20):
            await connection.execute("LOCK TABLE log_flushes IN EXCLUSIVE MODE")
            writing = asyncio.create_task(write())
            while state.busy_seconds >= 0:  # noqa: ASYNC110 -- the writer's loop sets it
                await asyncio.sleep(0.01)
            assert busy_seconds_until(monotonic(), state) < busy_seconds_until(monotonic() + 1, state)
        await writing
        async with asyncio.timeout(20):
            while state.busy_seconds < 0:  # noqa: ASYNC110 -- as above
                await asyncio.sleep(0.01)
        assert state.busy_seconds > written
        written = state.busy_seconds
    await writer.close()
    spool.close()


async def hanging_post(connection: Any, writer: Writer, milliseconds: int) -> asyncio.Task[bool]:
    """A post with a deadline whose flush hangs until the transaction of `connection` ends."""
    draft = check_item(CATALOG, item(), "", plain=False, depth=3)
    submission = await new_submission([draft], [single_id(draft)], Acceptance(datetime.now(UTC), {}, LOG))
    await connection.execute("LOCK TABLE log_flushes IN EXCLUSIVE MODE")
    posting = asyncio.create_task(writer.submit(submission, deadline(milliseconds)))
    while not await connection.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):  # noqa: ASYNC110 -- of the writer
        await asyncio.sleep(0.01)
    return posting


async def test_commit_that_hangs_on_a_frozen_primary(database_url: str, connection: Any, tmp_path: Path) -> None:
    """After a failover everybody waits, until the deadline of a batch, for a commit of a primary that is frozen, while another one leads."""
    settings, state = Settings(database_url=SecretStr(database_url), single_deadline_ms=100_000), OwnState()
    spool = Spool(tmp_path, 1 << 20)
    writer = Writer(Store(settings, FIRST_LOG), settings, spool, state)
    writer.start()
    async with connection.transaction(), asyncio.timeout(50):
        posting = await hanging_post(connection, writer, 100_000)
        for failure in ("no answer within 2 s", ""):  # as when the watch reaches the new primary
            await writer.on_presence(failure)
        assert await posting  # to the spool
    async with asyncio.timeout(50):
        while spool.depth.requests:
            await writer.on_presence("")
            await asyncio.sleep(0.01)
    assert await count(connection) == 1
    await writer.close()
    spool.close()


async def test_a_process_that_stands_still_until_the_deadline(
    database_url: str, connection: Any, tmp_path: Path
) -> None:
    """What could have been spooled is refused, since the process did not run in the last quarter of a second before the deadline."""
    settings = Settings(database_url=SecretStr(database_url))
    spool = Spool(tmp_path, 1 << 20)
    writer = Writer(Store(settings, FIRST_LOG), settings, spool, OwnState())
    writer.start()
    async with connection.transaction(), asyncio.timeout(50):
        posting = await hanging_post(connection, writer, 2_000)
        sleep(3)  # noqa: ASYNC251 -- that is what is tested
        assert await posting  # to the spool
    await writer.close()
    spool.close()


async def test_what_waits_in_the_spool_has_its_id_and_key(database_url: str, connection: Any, tmp_path: Path) -> None:
    """An acknowledged event is refused at replay, since its id, or its key, was given to another one while it waited in the spool."""
    settings, state = Settings(database_url=SecretStr(database_url)), OwnState()
    spool = Spool(tmp_path, 1 << 20)
    writer = Writer(Store(settings, FIRST_LOG), settings, spool, state, away=True)
    writer.start()
    expires = datetime.now(UTC) + timedelta(days=1)
    chosen = str(uuid4())

    async def send(digest: bytes = b"", **members: Any) -> bool:
        draft = check_item(CATALOG, item(**members), "", plain=False, depth=3)
        claim = Claim("POST", "k", digest, expires) if digest else None
        acceptance = Acceptance(datetime.now(UTC), {}, LOG)
        return await writer.submit(
            await new_submission([draft], [single_id(draft)], acceptance, claim), deadline(5_000)
        )

    assert await send(event_id=chosen, correlation_id="rr-1")
    assert await send(b"first", correlation_id="rr-2")
    state.away, writer._spool_failed = False, True  # Postgres is back, and nothing is replayed yet
    with pytest.raises(Conflict):
        await send(event_id=chosen, correlation_id="rr-3")
    with pytest.raises(KeyReused):
        await send(b"other", correlation_id="rr-4")
    assert not await send(event_id=str(uuid4()), correlation_id="rr-5")
    await writer.on_presence("")
    async with asyncio.timeout(20):
        while spool.depth.requests:  # noqa: ASYNC110 -- the writer's loop sets it
            await asyncio.sleep(0.01)
    assert spool.depth.quarantined == 0
    stored = await connection.fetch("SELECT correlation_id FROM audit_events ORDER BY 1")
    assert [row["correlation_id"] for row in stored] == ["rr-1", "rr-2", "rr-5"]
    await writer.close()
    spool.close()


async def test_missing_partition_is_made(database_url: str, connection: Any) -> None:
    """An event for whose month no partition exists is refused."""
    month = datetime.now(UTC).strftime("audit_events_%Y_%m")
    await connection.execute(f"DROP TABLE {month}")
    async with replica(database_url) as one:
        await one.post(item())
    assert await count(connection) == 1


async def test_postgres_away_is_reported_at_once() -> None:
    """Without a server, a request waits for its deadline, or is acknowledged."""
    nowhere = "postgresql://nobody@127.0.0.1:1/nothing"
    async with replica(nowhere) as one:
        with pytest.raises(DatabaseAway):
            await asyncio.wait_for(one.post(item()), 2)


@pytest.mark.damaged
async def test_emptied_log_is_continued(database_url: str, connection: Any) -> None:
    """Emptying log_flushes stops the service, or positions are used a second time."""
    async with replica(database_url) as one:
        await one.batch(*(item(f"rr-{i}") for i in range(5)))
        await connection.execute("DELETE FROM log_flushes")
        await one.post(item("rr-1"))
        await one.post(item("rr-2"))
    assert [r[0] for r in await connection.fetch("SELECT log_index FROM audit_events ORDER BY 1")] == [
        0,
        1,
        2,
        3,
        4,
        5,
        6,
    ]


@pytest.mark.damaged
@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE log_flushes SET count = 0 WHERE first_index = (SELECT max(first_index) FROM log_flushes)",
        "DELETE FROM log_flushes WHERE first_index >= 0",
        "UPDATE chain_heads SET length = 0",
        "UPDATE chain_heads SET length = -7",
        "UPDATE chain_heads SET length = 9223372036854775807",
        "DELETE FROM chain_heads",
    ],
)
async def test_damage_to_log_and_heads_stops_nobody(database_url: str, connection: Any, damage: str) -> None:
    """Damage to the log by SQL stops the service from writing, or makes it use positions again."""
    async with replica(database_url) as one:
        await one.batch(*(item(f"rr-{i}") for i in range(5)))
    await connection.execute(damage)
    async with replica(database_url) as fresh:
        for _ in range(2):
            await asyncio.wait_for(asyncio.gather(*(fresh.post(item(f"rr-{i}")) for i in range(6))), 3)
    positions = [row[0] for row in await connection.fetch("SELECT log_index FROM audit_events")]
    assert len(positions) == len(set(positions)) == 17


async def test_connection_lost_while_ids_are_looked_up(database_url: str, connection: Any) -> None:
    """One lost connection fails every request of the flush, also those that have no id to look up."""
    async with proxy(database_url) as between, replica(between.url) as one:
        await one.post(item())
        between.lose_answer = True
        await asyncio.gather(one.post(item()), one.post(item(event_id=str(uuid4()))), one.batch(item(), item()))
    assert await count(connection) == 5


async def test_month_behind_a_lock_is_waited_for(database_url: str, connection: Any) -> None:
    """A VACUUM or ANALYZE that runs while a partition is missing fails the events of that month."""
    month = datetime.now(UTC).strftime("audit_events_%Y_%m")
    await connection.execute(f"DROP TABLE {month}")
    async with replica(database_url) as one:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("LOCK TABLE audit_events IN SHARE UPDATE EXCLUSIVE MODE")
        posting = asyncio.create_task(one.post(item()))
        await asyncio.sleep(2.5)
        await transaction.rollback()
        await posting
    assert await count(connection) == 1


async def test_month_that_is_being_removed_refuses_only_its_own(database_url: str, connection: Any) -> None:
    """A half done retention run makes the service refuse events of every month, or answer that the client is at fault."""
    now = datetime.now(UTC)
    month = now.strftime("audit_events_%Y_%m")
    other = (now - timedelta(days=6)).isoformat()
    await connection.execute(f"ALTER TABLE audit_events DETACH PARTITION {month}")
    async with replica(database_url) as one:
        late, current = one.post(item(event_timestamp=other)), one.post(item())
        answers = await asyncio.gather(late, current, return_exceptions=True)
    await connection.execute(f"DROP TABLE {month}")
    assert isinstance(answers[1], MonthDetached)
    assert (other[:7] == now.isoformat()[:7]) or not isinstance(answers[0], BaseException)


async def test_large_batch_against_many_small_flushes(database_url: str) -> None:
    """A replica with many small flushes wins every race against the other one's large batch, which is never stored."""
    async with replica(database_url) as one, replica(database_url) as other:
        sending = asyncio.create_task(one.batch(*(item(f"rr-{i % 50}") for i in range(5_000))))
        posted = 0
        while not sending.done():
            await other.post(item(f"small-{posted % 5}"))
            posted += 1
        await sending
    assert posted


async def test_frozen_replica_is_ended(database_url: str, connection: Any) -> None:
    """A replica that is stopped while it has locked the log stops all others."""
    frozen = await asyncpg.connect(database_url, server_settings={"application_name": "datastorage"})
    await frozen.execute("BEGIN")
    await frozen.execute("INSERT INTO log_flushes (log_id, first_index, count, leaves) VALUES (0, 0, 1, '')")
    going_on = asyncio.Event()

    async def rows() -> AsyncIterator[bytes]:
        await going_on.wait()
        yield b""

    copying = asyncio.create_task(frozen.copy_to_table("audit_events", source=rows()))
    async with replica(database_url) as one:
        await one.batch(item(), item())
    going_on.set()
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
        await copying
    frozen.terminate()
    assert await count(connection) == 2


MIDNIGHT = datetime(2026, 11, 25, tzinfo=UTC)
"""An edge of a ten-minute window too."""


def without_time(correlation_id: str) -> dict[str, Any]:
    return item(correlation_id, event_timestamp="0001-01-01T00:00:00Z")


async def test_resends_without_a_time_are_one(database_url: str, connection: Any) -> None:
    """A batch whose events have no time is stored again by another replica, after the edge of a window, or on another day."""
    await partitions.ensure(connection, MIDNIGHT.date(), MIDNIGHT.date())
    posted = [without_time("rr-a"), item("rr-b", event_timestamp="2026-11-24T23:00:00Z"), without_time("rr-a")]
    async with replica(database_url) as one, replica(database_url) as other:
        answers = []
        for seconds in (-300, 0, 200):  # the first sends, and resends in the window after it
            now = MIDNIGHT + timedelta(seconds=seconds)
            answers += await asyncio.gather(*(r.batch(*posted, now=now) for r in (one, other, one)))
    assert answers == [answers[0]] * 9
    rows = await connection.fetch(
        "SELECT event_id, event_timestamp, event_metadata FROM audit_events ORDER BY log_index"
    )
    assert [row["event_id"] for row in rows] == answers[0]
    received = MIDNIGHT - timedelta(seconds=300)
    assert [row["event_timestamp"] for row in rows] == [received, MIDNIGHT - timedelta(hours=1), received]
    marked = '{"event_timestamp": "received"}'
    assert [row["event_metadata"] for row in rows] == [marked, None, marked]


async def test_sends_without_a_time_on_both_sides_of_an_edge(database_url: str, connection: Any) -> None:
    """Two replicas that get the same batch at once, one just before the edge of a window and one just after it, store it twice."""
    async with replica(database_url) as one, replica(database_url) as other:
        for i in range(20):
            posted = [without_time(f"rr-{i}")]
            first, second = await asyncio.gather(
                one.batch(*posted, now=MIDNIGHT - timedelta(milliseconds=1)), other.batch(*posted, now=MIDNIGHT)
            )
            assert first == second
    assert await count(connection) == 20


async def test_equal_batches_without_a_time_an_hour_apart_are_two(database_url: str, connection: Any) -> None:
    """The second of two honest approvals that look alike is taken for a resend."""
    async with replica(database_url) as one:
        first = await one.batch(without_time("rr-a"), now=MIDNIGHT)
        assert await one.batch(without_time("rr-a"), now=MIDNIGHT + timedelta(hours=1)) != first
    assert await count(connection) == 2


async def test_resends_without_a_time_under_a_key(database_url: str, connection: Any) -> None:
    """Under a key a resend is recognised only for twenty minutes, or another body after the key's end is taken for a resend."""
    async with replica(database_url) as one, replica(database_url) as other:
        first = await one.batch(without_time("rr-a"), now=MIDNIGHT, key="k")
        assert await other.batch(without_time("rr-a"), now=MIDNIGHT + timedelta(days=3), key="k") == first
        with pytest.raises(Conflict):
            await one.batch(without_time("rr-b"), now=MIDNIGHT + timedelta(days=9), key="k")
    assert await count(connection) == 1
    assert first[0].bytes[:6] == bytes(6)
