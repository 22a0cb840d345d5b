"""Nothing is acknowledged or signed that synchronous standbys do not have: a real pair of servers, whose standby is frozen."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import SecretStr

from app import db, standby
from app.api.streams import Streams
from app.errors import DatabaseAway
from app.events.catalog import Catalog
from app.events.log import Log
from app.ingest.accept import Acceptance, check_item, single_id
from app.ingest.event_writer import OwnState
from app.ingest.spool import Spool
from app.ingest.store import Store
from app.ingest.submission import new_submission
from app.ingest.writer import Writer
from app.presence import Presence
from app.query.filter import EventFilter
from app.settings import Settings
from app.stream import deliver
from app.stream.cursor import read_states
from app.stream.growth import LogGrowth
from app.stream.portion import LogReader
from app.stream.worker import deliver_forever
from app.tlog.continued import newest_log
from app.tlog.keys import SigningKey
from app.tlog.note import PublicKey
from app.tlog.seen import FILE_NAME
from app.tlog.signer import Signer
from app.tlog.tiles import extend_tiles
from app.tlog.worker import CheckpointWorker
from tests.receiver import receiver, sinks_file
from tests.services import spawn, stop, wait_until_ready
from tests.torture.postgres import LOG_NAME, Postgres, binaries
from tests.waiting import eventually

# Connections that are closed in the middle of a COMMIT leave sockets to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

LOG = Log(0, LOG_NAME)
NOW = datetime.now(UTC)
LOCKS = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted"
WAITING = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query NOT LIKE '%pg_stat_activity%'"


@dataclass
class Pair:
    """A primary whose commits wait for its standby."""

    primary: Postgres
    standby: Postgres
    observer: "asyncpg.Connection[asyncpg.Record]"
    """A session on the primary that waits for nobody."""
    promoted: bool = False

    async def fail_over(self) -> None:
        """The standby goes on where the primary has stopped for ever."""
        self.promoted = True
        self.primary.freeze()
        self.standby.thaw()
        await self.standby.promote()

    def settings(self, postgres: Postgres | None = None, **more: Any) -> Settings:
        url = SecretStr((postgres or self.primary).url)
        return Settings(database_url=url, require_synchronous_standby=True, single_deadline_ms=1_500, **more)

    async def waiting(self) -> int:
        """The process of a session that waits for the standby."""

        async def find() -> int | None:
            pid: int | None = await self.observer.fetchval(WAITING)
            return pid

        return await eventually(find)

    async def visible(self, event_id: UUID, postgres: Postgres | None = None) -> int:
        connection = await asyncpg.connect((postgres or self.primary).url)
        try:
            return int(await connection.fetchval("SELECT count(*) FROM audit_events WHERE event_id = $1", event_id))
        finally:
            await connection.close()


@pytest.fixture(scope="module")
def template() -> Iterator[Postgres]:
    with tempfile.TemporaryDirectory(prefix="standby-") as made:
        Path(made).chmod(0o755)
        postgres = Postgres(binaries(18), Path(made) / "template")
        asyncio.run(postgres.initialise())
        yield postgres


@pytest.fixture(scope="module")
def servers() -> Iterator[list[Postgres]]:
    """Primary and standby of the tests before; empty if one has promoted the standby."""
    running: list[Postgres] = []
    yield running
    _kill(running)


@pytest.fixture
async def pair(template: Postgres, servers: list[Postgres]) -> AsyncIterator[Pair]:
    if not servers:
        directory = template.directory.with_name(f"pair-{uuid4().hex}")
        servers.append(template.copy(directory / "primary"))
        await servers[0].start()
        servers.append(servers[0].standby(directory / "standby"))
        await servers[1].start()
    primary, second = servers
    await primary.set_standbys("*")
    observer = await asyncpg.connect(primary.url, server_settings={"synchronous_commit": "local"})
    await observer.execute("DELETE FROM log_checkpoints; UPDATE log_signers SET note = NULL")
    await eventually(lambda: _streams(observer))
    made = Pair(primary, second, observer)
    yield made
    second.thaw()
    primary.thaw()
    await observer.close()
    await asyncio.sleep(0.05)  # until what was terminated is closed
    if made.promoted:
        _kill(servers)


def _kill(servers: list[Postgres]) -> None:
    for one in servers:
        one.close()
    servers.clear()


async def _streams(observer: "asyncpg.Connection[asyncpg.Record]") -> bool | None:
    found = await standby.read(observer)
    return True if found.flushed else None


@asynccontextmanager
async def writing(settings: Settings, spool: Spool | None = None) -> AsyncIterator[Writer]:
    writer = Writer(Store(settings, LOG), settings, spool)
    writer.start()
    try:
        yield writer
    finally:
        await writer.close()


async def post(writer: Writer, event_id: UUID) -> bool:
    """Whether the event is in the spool, instead of committed."""
    posted = {
        "version": "1.0",
        "event_id": str(event_id),
        "event_type": "orchestrator.lifecycle.started",
        "event_timestamp": NOW.isoformat(),
        "event_category": "orchestration",
        "event_action": "started",
        "event_outcome": "success",
        "correlation_id": "rr-1",
        "event_data": {"event_type": "orchestrator.lifecycle.started", "rr_name": "rr", "namespace": "payments"},
    }
    draft = check_item(Catalog(), posted, "", plain=False, depth=3)
    submission = await new_submission([draft], [single_id(draft)], Acceptance(NOW, {}, LOG_NAME))
    return await writer.submit(submission, asyncio.get_running_loop().time() + 2)


async def test_commit_that_waited_is_acknowledged(pair: Pair) -> None:
    """With a standby that keeps up, nothing is ever committed; or what is acknowledged is not on the standby."""
    one = uuid4()
    async with writing(pair.settings()) as writer:
        assert not await post(writer, one)
        await pair.fail_over()
        assert await pair.visible(one, pair.standby) == 1


@pytest.mark.parametrize(
    ("statement", "why"),
    [
        ("ALTER SYSTEM SET synchronous_standby_names = ''", "synchronous_standby_names is empty"),
        ("ALTER SYSTEM SET synchronous_standby_names = 'FIRST 2 (*)'", "1 synchronous standbys are connected"),
        ("ALTER DATABASE datastorage SET synchronous_commit = local", "synchronous_commit is local"),
    ],
)
async def test_server_that_would_not_wait(pair: Pair, statement: str, why: str) -> None:
    """Something is committed where the server's COMMIT waits for no standby, or for more than there are."""
    one = uuid4()
    connection = await asyncpg.connect(pair.primary.maintenance_url)
    await connection.execute(statement)
    await connection.execute("SELECT pg_reload_conf()")
    await connection.close()
    async with writing(pair.settings()) as writer:
        with pytest.raises(DatabaseAway):
            await post(writer, one)
        assert why in writer.failure
    assert await pair.visible(one) == 0
    await pair.observer.execute("ALTER DATABASE datastorage RESET synchronous_commit")


async def test_role_that_cannot_see_standbys(pair: Pair) -> None:
    """A role that may not see how far standbys are is believed to have asked."""
    await pair.observer.execute("CREATE ROLE blind LOGIN; GRANT ALL ON ALL TABLES IN SCHEMA public TO blind")
    url = SecretStr(pair.primary.url.replace("//datastorage@", "//blind@"))
    connection = await db.connect(Settings(database_url=url))
    with pytest.raises(standby.StandbyMissing, match="pg_read_all_stats"):
        await standby.require(connection)
    await pair.observer.execute("GRANT pg_read_all_stats TO blind")
    await standby.require(connection)
    await connection.close()


@pytest.mark.parametrize("how", ["cancel", "terminate", "empty"])
async def test_wait_that_ends_early(pair: Pair, how: str) -> None:
    """A commit whose wait for the standby somebody ends is acknowledged, also as a resend, or signed; then a failover loses it."""
    one = uuid4()
    async with writing(pair.settings()) as writer:
        pair.standby.freeze()
        sent = asyncio.create_task(post(writer, one))
        pid = await pair.waiting()
        if how == "empty":
            await pair.primary.set_standbys("")
        else:
            await pair.observer.fetchval(f"SELECT pg_{how}_backend($1)", pid)
        with pytest.raises(DatabaseAway):
            await sent
        assert await pair.visible(one) == 1  # else this test shows nothing
        with pytest.raises(DatabaseAway):
            await post(writer, one)
        await _assert_not_signed(pair)
        pair.standby.thaw()
        await pair.primary.set_standbys("*")
        assert not await post(writer, one)
        assert await pair.visible(one) == 1


def new_key() -> SigningKey:
    private = Ed25519PrivateKey.generate()
    return SigningKey(private, PublicKey(LOG_NAME, private.public_key().public_bytes_raw()))


async def _assert_not_signed(pair: Pair) -> None:
    key = new_key()
    signer = Signer(key, of_log=LOG, confirm=standby.confirm_soon)
    async with pair.observer.transaction():
        await extend_tiles(pair.observer, LOG)
    with pytest.raises(standby.StandbyMissing):
        await signer.sign(pair.observer)
    assert await pair.observer.fetchval("SELECT count(*) FROM log_checkpoints") == 0


async def test_note_of_another_process(pair: Pair, tmp_path: Path) -> None:
    """A checkpoint that `log continue` has signed is noted and published before a standby has it; then a failover contradicts it."""
    async with writing(pair.settings()) as writer:
        await post(writer, uuid4())
    async with pair.observer.transaction():
        await extend_tiles(pair.observer, LOG)
    key, file = new_key(), tmp_path / "copies"
    settings = pair.settings(checkpoint_file=file, heartbeat_interval_s=0)
    worker, connection = CheckpointWorker.create(settings, LOG, key, tmp_path), await db.connect(settings)
    pair.standby.freeze()
    assert await Signer(key, of_log=LOG).sign(pair.observer) is not None
    await worker.run_round(connection, _no_heartbeat)
    assert "lag" in worker.signing_waits
    assert not file.exists()
    assert not (tmp_path / FILE_NAME).exists()
    with pytest.raises(standby.StandbyMissing):
        await worker._publish(connection)
    pair.standby.thaw()
    await worker.run_round(connection, _no_heartbeat)
    assert worker.signing_waits == ""
    assert file.read_text().strip() == (tmp_path / FILE_NAME).read_text().strip()
    await connection.close()


async def _no_heartbeat(*_: object) -> None:
    raise AssertionError


async def test_exports_have_what_standbys_have(pair: Pair, tmp_path: Path) -> None:
    """An event leaves signed, in an export or a bundle, that no standby has: after a failover another one has its place."""
    paths = [f"/api/v1/audit/export?correlation_id=rr-1&format={name}" for name in ("json", "ndjson", "csv")]
    paths.append("/api/v1/audit/correlations/rr-1/bundle")
    async with writing(pair.settings()) as writer:
        await post(writer, uuid4())
    settings = {"database_url": pair.primary.url, "require_synchronous_standby": True, "log_name": LOG_NAME}
    service = spawn(settings, tmp_path / "service")
    await asyncio.to_thread(wait_until_ready, service)
    async with httpx.AsyncClient(base_url=service.url, timeout=30) as client:
        assert [(await client.get(path)).status_code for path in paths] == [200] * len(paths)
        pair.standby.freeze()
        await pair.observer.execute("CREATE TABLE what_no_standby_has ()")
        for path in paths:
            answer = await client.get(path)
            assert answer.status_code == 503
            assert "retry-after" in answer.headers
        pair.standby.thaw()
        assert [(await client.get(path)).status_code for path in paths] == [200] * len(paths)
    assert await asyncio.to_thread(stop, [service]) == [0]


async def _commit_without_standby(pair: Pair, writer: Writer) -> None:
    """Have an event on the primary, visible to all, that the standby, which is frozen, does not have."""
    one = uuid4()
    sent = asyncio.create_task(post(writer, one))
    await pair.observer.fetchval("SELECT pg_cancel_backend($1)", await pair.waiting())
    with pytest.raises(DatabaseAway):
        await sent
    assert await pair.visible(one) == 1


async def test_portions_have_what_standbys_have(pair: Pair) -> None:
    """Whoever follows the log has a position that no standby has: after a failover another event has it, and he never gets that one."""
    settings = pair.settings()
    reader = LogReader(LOG, newest_log, standby.confirm_if(required=True))
    connection = await db.connect(settings)
    async with writing(settings) as writer:
        await post(writer, uuid4())
        end = await reader.end(connection)
        pair.standby.freeze()
        await _commit_without_standby(pair, writer)
        for ask in (partial(reader.read, connection, 0, EventFilter()), partial(reader.end, connection)):
            with pytest.raises(standby.StandbyMissing):
                await ask()
        pair.standby.thaw()
        portion = await reader.read(connection, end, EventFilter())
        assert (len(portion.items), portion.next) == (1, end + 1)
        assert await reader.end(connection) == end + 1
    await connection.close()


async def test_streams_and_sinks_have_what_standbys_have(
    pair: Pair, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream, or a sink, is not asked to wait for standbys; or a sink that waits gives its place to another replica, or ends."""
    monkeypatch.setattr(deliver, "_LOOK_SECONDS", 0.1)
    settings = pair.settings(log_name=LOG_NAME)
    streams = Streams(settings, LogGrowth(settings), Presence(), OwnState(), readers=1)
    async with writing(settings) as writer:
        await post(writer, uuid4())
        place = await LogReader(LOG, newest_log).end(pair.observer)
        with receiver() as one:
            sinks = settings.model_copy(update={"sinks": sinks_file(tmp_path, one)})
            delivering = asyncio.create_task(deliver_forever(sinks, LOG, LogGrowth(settings)))
            async with streams.seat("ada", EventFilter(), LOG_NAME, None):
                assert (await streams.portion(EventFilter(), place, "ada")).is_end
                await eventually(lambda: _came_to(pair, place))
                pair.standby.freeze()
                await _commit_without_standby(pair, writer)
                with pytest.raises(standby.StandbyMissing):
                    await streams.portion(EventFilter(), place, "ada")
                await eventually(lambda: _told(caplog, "nothing was delivered", "synchronous standbys do not have"))
                assert one.positions[-1] == place - 1
                has_lock = await pair.observer.fetch(LOCKS)
                pair.standby.thaw()
                await eventually(lambda: _came_to(pair, place + 1))
                assert (await streams.portion(EventFilter(), place, "ada")).next == place + 1
                assert await pair.observer.fetch(LOCKS) == has_lock
            delivering.cancel()
            await asyncio.wait([delivering])


async def _came_to(pair: Pair, place: int) -> bool | None:
    return [one.place for one in await read_states(pair.observer)] == [place] or None


async def _told(caplog: pytest.LogCaptureFixture, message: str, error: str) -> bool | None:
    found = [one for one in caplog.records if one.message == message]
    return any(error in getattr(one, "error", "") for one in found) or None


async def test_our_own_timeouts_end_no_wait(pair: Pair) -> None:
    """A deadline, the server's or the driver's timeout cancels a wait for the standby: readers see what a failover takes away."""
    one = uuid4()
    settings = pair.settings(statement_timeout_ms=100)
    connection = await db.connect_writer(settings)
    pair.standby.freeze()
    await connection.execute("BEGIN; CREATE TABLE seen_early ()")
    with pytest.raises(TimeoutError):
        await connection.execute("COMMIT", timeout=0.5)
    async with writing(settings) as writer:
        sent = asyncio.create_task(post(writer, one))
        with pytest.raises(DatabaseAway):
            await sent
        writer.store.disconnect()
        rows = await pair.observer.fetch(WAITING)
        assert len(rows) >= 2
        assert await pair.visible(one) == 0
        assert await pair.observer.fetchval("SELECT to_regclass('seen_early')") is None
        pair.standby.thaw()


async def test_failover_after_a_cancelled_wait(pair: Pair, tmp_path: Path) -> None:
    """An event that only the old primary has is believed to be stored, and lost, although it waits in the spool."""
    one = uuid4()
    spool = Spool(tmp_path / "spool", 64 << 20)
    async with writing(pair.settings(), spool) as writer:
        pair.standby.freeze()
        sent = asyncio.create_task(post(writer, one))
        await pair.observer.fetchval("SELECT pg_cancel_backend($1)", await pair.waiting())
        assert await sent
        assert await pair.visible(one) == 1
        await writer.on_presence("")  # as if the watch had seen nothing: replay finds the event stored
        await eventually(lambda: _replay_ended(writer, spool))
        assert spool.depth.requests == 1
    await pair.fail_over()
    await pair.standby.set_standbys("")
    settings = pair.settings(pair.standby).model_copy(update={"require_synchronous_standby": False})
    async with writing(settings, spool) as writer:
        await writer.on_presence("")
        await eventually(lambda: _drained(spool))
    assert await pair.visible(one, pair.standby) == 1
    spool.close()


async def _replay_ended(writer: Writer, spool: Spool) -> bool | None:
    return True if writer.away or not spool.depth.requests else None


async def _drained(spool: Spool) -> bool | None:
    return None if spool.depth.requests else True


async def test_probe_names_the_standby(pair: Pair) -> None:
    """While a standby is frozen the service believes that Postgres can commit, and every post waits for its deadline."""
    presence, seen = Presence(), list[str]()

    async def on_presence(failure: str) -> None:
        seen.append(failure)

    watch = asyncio.create_task(presence.watch(pair.settings(), on_presence))
    try:
        await eventually(lambda: _last(seen, ""))
        pair.standby.freeze()
        await pair.observer.execute("CREATE TABLE something_new ()")
        await eventually(lambda: _last(seen, "synchronous standbys do not have on disk what was committed, and lag"))
        pair.standby.thaw()
        await eventually(lambda: _last(seen, ""))
    finally:
        watch.cancel()


async def _last(seen: list[str], expected: str) -> bool | None:
    return True if seen and seen[-1] == expected else None
