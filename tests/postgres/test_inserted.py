"""Rows that anybody who may INSERT puts where the log has no position: named, and never followed. Triggers are on."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import asyncpg
import orjson
import pytest
from pydantic import SecretStr

from app.db import create_engine
from app.errors import NotFound
from app.events.catalog import Catalog
from app.events.log import Log
from app.ingest.accept import Acceptance, Event, accept, check_item, single_id
from app.ingest.store import Store
from app.metrics import LOG_ALARMS
from app.retention.holds import HoldOrder, Selector, place
from app.settings import Settings
from app.sql import load
from app.stream.portion import LogReader
from app.tlog import merkle
from app.tlog.continued import newest_log
from app.tlog.keys import SigningKey
from app.tlog.note import Checkpoint, verified_checkpoint
from app.tlog.prove import prove_event
from app.tlog.signer import RowsInserted, Signer, signed_size
from app.tlog.tiles import SQL as TLOG_SQL
from app.tlog.tiles import HashesMissing
from app.verify.database import TrustAnchors, sequential_runner, verify_database
from app.verify.extent import log_size
from app.verify.worker import Verifier
from tests.events import make_event
from tests.logs import FIRST_LOG
from tests.postgres.log import LOG, write
from tests.postgres.test_background import a_round, findings
from tests.postgres.test_checkpoints import leaves, new_key, no_heartbeat, worker
from tests.postgres.test_checkpoints import write as write_leaves
from tests.postgres.test_tampering import KEY, PUBLIC, found, found_in, sign, verified
from tests.sealed import insert, plain_row

pytestmark = pytest.mark.damaged

Connection = asyncpg.Connection
FAR = 4_611_686_018_427_387_903
Forge = Callable[[Connection], Awaitable[Any]]


def event(position: int | None, log_id: int | None = 0, **columns: Any) -> Forge:
    """An INSERT of an event that says that it is at this position."""

    async def forge(connection: Connection) -> None:
        row = plain_row("rr-9", log_index=position, log_id=log_id, recorded_at=datetime.now(UTC), event_hash="ab" * 32)
        await insert(connection, row | columns)

    return forge


def flush(first: int, count: int = 1, leaves: bytes = bytes(32), log_id: int = 0) -> Forge:
    """An INSERT into log_flushes."""

    async def forge(connection: Connection) -> None:
        values = log_id, first, count, leaves
        await connection.execute(
            "INSERT INTO log_flushes (log_id, first_index, count, leaves) VALUES ($1, $2, $3, $4)", *values
        )

    return forge


FORGERIES = {
    "an event far beyond the end": event(FAR, chain_index=0),
    "an event at the greatest position": event(2**63 - 1),
    "an event one beyond the end": event(4),
    "a negative position": event(-7),
    "the smallest position": event(-(2**63)),
    "another event at a position": event(1),
    "a chain position alone": event(None, None, chain_index=0),
    "a log alone": event(None, 0),
    "no log": event(FAR, None),
    "no log at a position": event(1, None),
    "another log": event(FAR, 7),
    "another log at a position": event(1, -1),
    "a flush far beyond the end": flush(FAR),
    "a flush of nothing": flush(FAR, 0, b""),
    "a flush without an end": flush(2**63 - 1),
    "a flush that ends before it begins": flush(-(2**63), -(2**31)),
    "a negative flush": flush(-9),
    "a flush of another log": flush(3, log_id=1),
    "a flush of a negative log": flush(3, log_id=-1),
}


@pytest.fixture(params=FORGERIES)
def forge(request: pytest.FixtureRequest) -> Forge:
    return FORGERIES[request.param]


@pytest.fixture
async def log(connection: Connection, database_url: str) -> Connection:
    """A log of three events."""
    await write(database_url, {}, {}, {})
    return connection


async def positions(connection: Connection, ids: list[UUID]) -> list[int]:
    rows = await connection.fetch("SELECT log_index FROM audit_events WHERE event_id = ANY($1) ORDER BY 1", ids)
    return [row["log_index"] for row in rows]


async def test_is_named(log: Connection, forge: Forge) -> None:
    """A row that the service never wrote is not found, or is found under another name, with an anchor or without one."""
    outside = await sign(log)
    await log.execute("DELETE FROM log_checkpoints")  # only the one outside, and log_signers
    await forge(log)
    with_all = await found(log, outside)
    await log.execute("UPDATE log_signers SET note = NULL")
    async with log.transaction(isolation="repeatable_read", readonly=True):
        nothing_known = await verify_database(log, sequential_runner(log), TrustAnchors())
    for kinds in (with_all, {defect.kind for defect in nothing_known.defects.listed}):
        assert "inserted" in kinds
        assert kinds <= {"inserted", "removed", "edited"}  # its chain has no head, or its flush no event
    verifier = Verifier(FIRST_LOG, (), 2)
    await a_round(verifier, log)
    assert "inserted" in {kind for kind, _, _ in await findings(log)}
    # What was logged is not blamed: the three events match the log.
    assert (await verified(log)).events.verified == 3


async def test_is_never_followed(log: Connection, database_url: str, forge: Forge) -> None:
    """The next events go to positions behind a row that somebody inserted, in this process or in a new one, or a hold misses them."""
    await forge(log)
    ids = await write(database_url, {})
    await place(settings_of(database_url), FIRST_LOG, Selector(correlation_id="rr-1"), HoldOrder("Ada", "x"))
    ids += await write(database_url, {}, {})
    assert await positions(log, ids) == [3, 5, 6]  # 4 is that of the hold
    rows = await log.fetch("SELECT legal_hold FROM audit_events WHERE event_id = ANY($1)", ids)
    assert all(row["legal_hold"] for row in rows)


async def test_signing_goes_on(log: Connection, database_url: str, forge: Forge) -> None:
    """One INSERT stops the service from signing, or nobody is told of it."""
    key = new_key(LOG)
    signing = worker(Signer(key))
    await signing.run_round(log, no_heartbeat)
    await forge(log)
    ids = await write(database_url, {}, {})
    assert await positions(log, ids) == [3, 4]
    told = False
    try:
        await signing.run_round(log, no_heartbeat)
    except RowsInserted:
        told = True
    assert await signed_size(log, FIRST_LOG, key.all_public) == 5
    # At a position of the log, or at none: only who reads every row can see it.
    at = await log.fetchval("SELECT log_index FROM audit_events WHERE correlation_id = 'rr-9'")
    is_event = await log.fetchval("SELECT EXISTS (SELECT FROM audit_events WHERE correlation_id = 'rr-9')")
    assert told or (is_event and at in {None, 1, 4})


def settings_of(database_url: str) -> Settings:
    return Settings(database_url=SecretStr(database_url))


@pytest.mark.parametrize("place", [1, 2, 5, 8])
async def test_flush_between(connection: Connection, database_url: str, place: int) -> None:
    """A flush that somebody inserts between others, or where the next ones will be, hides leaves from who signs and who verifies."""
    key = SigningKey(KEY, PUBLIC)
    signing = worker(Signer(key))
    store = Store(settings_of(database_url), FIRST_LOG)
    await store.commit([made() for _ in range(4)], [], deadline())
    await flush(place)(connection)
    await store.commit([made() for _ in range(6)], [], deadline())
    await store.close()
    await signing.run_round(connection, no_heartbeat)
    assert await signed_size(connection, FIRST_LOG, key.all_public) == 10
    assert await found(connection) == {"inserted"}
    verifier = Verifier(FIRST_LOG, key.all_public, 3)
    await a_round(verifier, connection)
    assert {kind for kind, _, _ in await findings(connection)} == {"inserted"}
    assert (await found_in(connection, "rr-1"))[0] == set()


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("forged", [7, -5])
async def test_flush_beside_the_last(connection: Connection, database_url: str, signed: bool, forged: int) -> None:
    """A flush that somebody inserts before the log's end makes exports, signers and streams believe in events that there are not."""
    store = Store(settings_of(database_url), FIRST_LOG)
    for _ in range(2):
        await store.commit([made() for _ in range(5)], [], deadline())
    await store.close()
    if signed:
        await worker(Signer(SigningKey(KEY, PUBLIC))).run_round(connection, no_heartbeat)
    await flush(forged, 1000, b"")(connection)
    end = await connection.fetchrow(TLOG_SQL.of(FIRST_LOG)["log_end"])
    assert end is not None
    assert end["size"] == await connection.fetchval(load("export").of(FIRST_LOG)["log_size"]) == 10
    assert await LogReader(FIRST_LOG, newest_log).end(connection) == 10


@pytest.mark.parametrize("leaves_there", [0, 1])
async def test_flush_of_all_positions(log: Connection, database_url: str, leaves_there: int) -> None:
    """A flush that claims two thousand million positions ends verification with an error, as a log of that size would."""
    await flush(3, 2**31 - 1, bytes(32 * leaves_there))(log)
    assert await positions(log, await write(database_url, {})) == [2**31 + 2]
    assert await found(log) >= {"removed" if leaves_there == 0 else "edited"}
    assert (await found_in(log, "rr-1"))[0] == set()
    rows = await log.fetch(TLOG_SQL.of(FIRST_LOG)["leaves"], 2**31 - 9, 2**31 + 3)
    assert [len(row["leaves"]) for row in rows] == [0, 32]
    verifier = Verifier(FIRST_LOG, (), 2**32)
    await verifier.verify_next_part(log)
    assert await verifier.verify_next_part(log) == 0
    assert await findings(log)


def made() -> Event:
    now = datetime.now(UTC)
    draft = check_item(Catalog(), make_event(correlation_id="rr-1"), "", plain=False, depth=3)
    return accept([draft], [single_id(draft)], Acceptance(now, {}, LOG))[0]


def deadline() -> float:
    return asyncio.get_running_loop().time() + 30


async def test_start_behind_a_forged_run(log: Connection, database_url: str) -> None:
    """A process that starts takes for the log what somebody inserted as a run of flushes, tiles and a checkpoint of their own."""
    key = new_key(LOG)
    await worker(Signer(key)).run_round(log, no_heartbeat)
    for first in range(FAR, FAR + 30):
        await flush(first)(log)
    await log.execute("INSERT INTO log_tiles VALUES (0, 1, $1, $2)", FAR // 65536, bytes(32 * 200))
    await log.execute("INSERT INTO log_checkpoints (log_id, size, note) VALUES (0, $1, 'mine')", FAR + 5)

    async def signed(connection: Any, of_log: Log) -> int:
        return await signed_size(connection, of_log, key.all_public)

    for reader in (signed, None):
        store = Store(settings_of(database_url), FIRST_LOG, reader)
        assert await store._read_tail(await store.connection()) == (2, 1)
        await store.close()


@pytest.mark.parametrize("size", [3, 300, 255 * 256, 256 * 256, 256 * 256 + 300])
async def test_tile_and_flush(connection: Connection, database_url: str, size: int) -> None:
    """Two INSERTs, of a tile and of the flush that it promises, move the log's end: positions run away, or signing ends."""
    key = SigningKey(KEY, PUBLIC)
    written = leaves(size + 3)
    await write_leaves(connection, written[:size])
    await worker(Signer(key) if size % 2 else None).run_round(connection, no_heartbeat)
    for index in range(4):
        values = index, bytes(32 * 100)
        await connection.execute("INSERT INTO log_tiles VALUES (0, 1, $1, $2) ON CONFLICT DO NOTHING", *values)
        await flush((index * 256 + 100) * 256 - 1)(connection)
    await connection.execute(
        "INSERT INTO log_flushes (log_id, first_index, count, leaves) VALUES (0, $1, 3, $2)",
        size,
        b"".join(written[size:]),
    )
    store = Store(settings_of(database_url), FIRST_LOG)
    assert await store._read_tail(await store.connection()) == (size, 3)
    await store.close()
    with pytest.raises(RowsInserted):
        await worker(Signer(key)).run_round(connection, no_heartbeat)
    note = await connection.fetchval("SELECT note FROM log_signers")
    assert verified_checkpoint(note, [PUBLIC]) == Checkpoint(LOG, size + 3, merkle.root(written))


@pytest.mark.parametrize(
    ("level", "index", "hashes"),
    [(1, 0, 300), (1, 1, 2), (1, 7, 256), (1, -1, 4), (1, FAR, 1), (2, 0, 1), (2, 3, 1), (5, 0, 9)],
)
async def test_inserted_tile(connection: Connection, level: int, index: int, hashes: int) -> None:
    """A tile that somebody inserts ends signing, or becomes part of a root."""
    key = SigningKey(KEY, PUBLIC)
    signing = worker(Signer(key))
    written = leaves(600)
    await write_leaves(connection, written[:100])
    await signing.run_round(connection, no_heartbeat)
    put = "INSERT INTO log_tiles VALUES (0, $1, $2, $3) ON CONFLICT (log_id, level, index) DO UPDATE SET hashes = excluded.hashes"
    await connection.execute(put, level, index, bytes(32 * hashes))
    for start in (100, 400):
        await write_leaves(connection, written[start : start + 300 if start == 100 else 600])
        await signing.run_round(connection, no_heartbeat)
    note = await connection.fetchval("SELECT note FROM log_signers")
    assert verified_checkpoint(note, [PUBLIC]) == Checkpoint(LOG, 600, merkle.root(written))


async def test_proof_of_a_forgery(log: Connection, database_url: str) -> None:
    """Who asks for the proof of a row that was inserted beyond the end is told to wait for it."""
    await worker(Signer(SigningKey(KEY, PUBLIC))).run_round(log, no_heartbeat)
    engine = create_engine(settings_of(database_url))
    for position in (FAR, -7, None):
        await event(position, chain_index=0)(log)
    for row in await log.fetch("SELECT event_id FROM audit_events WHERE correlation_id = 'rr-9'"):
        with pytest.raises(NotFound):
            await prove_event(engine, row["event_id"], FIRST_LOG)
    await engine.dispose()


async def test_lost_flushes(log: Connection, database_url: str) -> None:
    """Where rows of log_flushes are missing, positions are given twice by a process that knows them, or nobody is told."""
    store = Store(settings_of(database_url), FIRST_LOG)
    assert await store._read_tail(await store.connection()) == (2, 1)
    before = LOG_ALARMS.labels(alarm="damaged")._value.get()
    await log.execute("DELETE FROM log_flushes WHERE first_index >= 1")
    store._tail = None
    first, count = await store._read_tail(await store.connection())
    assert first + count == 3
    assert LOG_ALARMS.labels(alarm="damaged")._value.get() == before + 1
    await store.close()
    [event_id] = await write(database_url, {})  # a new process comes to the same end
    assert await positions(log, [event_id]) == [3]
    assert await found(log) == {"removed", "inserted"}
    with pytest.raises(HashesMissing):
        await worker(Signer(new_key(LOG))).run_round(log, no_heartbeat)


async def test_events_of_another_replica(log: Connection, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that starts while others write takes their events for ones that have lost their flushes, and raises an alarm."""
    before = LOG_ALARMS.labels(alarm="damaged")._value.get()
    store = Store(settings_of(database_url), FIRST_LOG)
    original = store._end_of_events

    async def meanwhile(connection: Any, end: int) -> int:
        if end == 3:
            await write(database_url, {}, {})
        return await original(connection, end)

    monkeypatch.setattr(store, "_end_of_events", meanwhile)
    assert await store._read_tail(await store.connection()) == (4, 1)
    await store.close()
    assert LOG_ALARMS.labels(alarm="damaged")._value.get() == before
    assert await log.fetchval("SELECT count(*) FROM log_flushes WHERE leaves = ''") == 1  # the one before the first


async def test_lost_flushes_that_were_signed(log: Connection, database_url: str) -> None:
    """A new process gives positions again that a checkpoint covers, since their flushes are missing."""
    key = new_key(LOG)
    await worker(Signer(key)).run_round(log, no_heartbeat)
    await log.execute("DELETE FROM log_flushes WHERE first_index >= 1")

    async def signed(connection: Any, of_log: Log) -> int:
        return await signed_size(connection, of_log, key.all_public)

    store = Store(settings_of(database_url), FIRST_LOG, signed)
    first, count = await store._read_tail(await store.connection())
    await store.close()
    assert first + count == 3


async def test_restored_database(log: Connection, database_url: str) -> None:
    """After a consistent rollback a process that has seen more cannot go on, or does not tell."""
    store = Store(settings_of(database_url), FIRST_LOG)
    await store._read_tail(await store.connection())
    before = LOG_ALARMS.labels(alarm="rolled_back")._value.get()
    await log.execute("SET session_replication_role = replica")
    await log.execute("DELETE FROM log_flushes WHERE first_index >= 1; DELETE FROM audit_events WHERE log_index >= 1")
    store._tail = None
    assert await store._read_tail(await store.connection()) == (0, 1)
    assert LOG_ALARMS.labels(alarm="rolled_back")._value.get() == before + 1
    await store.close()


@pytest.mark.usefixtures("log")
async def test_a_long_way_to_the_end(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has not read the log for long does not come to its end."""
    monkeypatch.setattr("app.ingest.store._TAIL_STEPS", 2)
    store = Store(settings_of(database_url), FIRST_LOG)
    assert await store._read_tail(await store.connection()) == (2, 1)
    await write(database_url, *({} for _ in range(6)))
    assert await store._read_tail(await store.connection()) == (8, 1)
    await store.close()


async def test_end_of_a_log_without_key(connection: Connection) -> None:
    """Without a key the verifier walks from where its round is to the log's end, part by part, or ends its round at a lost flush."""
    written = leaves(900)
    for start in (0, 300, 600):
        await write_leaves(connection, written[start : start + 300])
    await worker(None).run_round(connection, no_heartbeat)
    await connection.execute("DELETE FROM log_flushes WHERE first_index = 300")
    assert {await log_size(connection, FIRST_LOG, [], (), known) for known in (0, 100, 300)} == {900}


async def test_few_flushes_are_read_for_a_leaf(connection: Connection) -> None:
    """For each event by its id, each resend and each row of a page all flushes before it are read and sorted."""
    written = leaves(300)
    for start in range(300):
        await write_leaves(connection, written[start : start + 1])
    await connection.execute("ANALYZE log_flushes")
    plans = await connection.fetchval(
        "EXPLAIN (ANALYZE, FORMAT JSON) " + TLOG_SQL.of(FIRST_LOG)["leaves_at"], [290, 295]
    )
    pending, read = [orjson.loads(plans)[0]["Plan"]], []
    while pending:
        node = pending.pop()
        pending += node.get("Plans", [])
        if "flushes" in node.get("Index Name", node.get("Relation Name", "")):
            read.append(node["Actual Rows"])
    assert 0 < max(read) <= 4


async def test_no_table_is_read_for_what_lies_beyond(connection: Connection) -> None:
    """Once a second the checkpoint worker reads whole months to find that nothing lies beyond the log's end."""
    await connection.execute("SET plan_cache_mode = force_generic_plan")
    plan = await connection.fetch("EXPLAIN " + TLOG_SQL.of(FIRST_LOG)["beyond_log"])
    of_rows = [line for (line,) in plan if re.search(r" on audit_events_\d", line)]
    assert of_rows
    assert [line for line in of_rows if "Index Only Scan" not in line] == []


async def test_correlation_of_a_forgery(log: Connection) -> None:
    """verify-chain of the correlation that a forged row names says that it is whole."""
    await event(FAR, chain_index=0)(log)
    kinds, _, _ = await found_in(log, "rr-9")
    assert kinds
    assert (await found_in(log, "rr-1"))[0] == set()
