"""A connection that a cancelled reader gives back is idle or closed, wherever and however often the reader is cancelled."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import nullcontext, suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from pydantic import SecretStr

from app import db
from app.db import Engine
from app.errors import AuditError
from app.export.parts import Export
from app.export.select import ExportQuery
from app.query import correlations, effectiveness, notifications, page, reconstruct, remediation_history, timeline
from app.query.filter import EventQuery
from app.retention.holds import holds
from app.settings import Settings
from app.tlog.prove import prove_consistency, prove_event
from app.verify.correlation import verify_correlation
from app.verify.snapshot import snapshot
from app.workers import WorkerConnection
from tests.logs import FIRST_LOG
from tests.sealed import seal

Connection = Any
Read = Callable[[Engine], Awaitable[object]]
ID = UUID(int=7)
TARGET = remediation_history.Target("Deployment", "api", "payments", "sha256:0", None)


async def export(engine: Engine) -> None:
    async def nothing() -> None:
        pass

    async with snapshot(engine) as connection:
        async for _ in Export(ExportQuery(format="ndjson"), "ada", FIRST_LOG, None, None).stream(connection, nothing):
            pass


async def verify(engine: Engine) -> None:
    async with snapshot(engine) as connection:
        await verify_correlation(connection, "rr-1", FIRST_LOG, None)


def history(engine: Engine) -> Awaitable[object]:
    now = datetime.now(UTC)
    return remediation_history.history(engine, TARGET, [now + timedelta(days=1), now - timedelta(days=1)])


async def rebuild(engine: Engine) -> None:
    with suppress(reconstruct.NoEvents):
        await reconstruct.rebuild(engine, "rr-1", datetime.now(UTC))


READS: dict[str, Read] = {
    "page": lambda engine: page.page(engine, EventQuery(correlation_id="rr-1")),
    "page with exact total": lambda engine: page.page(engine, EventQuery(total="exact")),
    "event": lambda engine: page.event_by_id(engine, ID),
    "correlations": lambda engine: correlations.page(engine, correlations.CorrelationQuery()),
    "effectiveness": lambda engine: effectiveness.effectiveness(engine, "rr-1"),
    "history": history,
    "notifications": lambda engine: notifications.page(engine, notifications.NotificationQuery()),
    "reconstruction": rebuild,
    "timeline": lambda engine: timeline.timeline(engine, "rr-1", 10, 0),
    "proof": lambda engine: prove_event(engine, ID, FIRST_LOG),
    "consistency": lambda engine: prove_consistency(engine, FIRST_LOG, 1, None),
    "holds": lambda engine: holds(engine, history=True),
    "export": export,
    "verification": verify,
}


@pytest.fixture
async def engine(database_url: str, connection: Connection) -> AsyncIterator[Engine]:
    """A pool of one connection, so that the next reader gets what the last one gave back."""
    await seal(
        connection,
        "rr-1",
        *({"event_type": "effectiveness.health.assessed", "event_category": "effectiveness"} for _ in range(3)),
    )
    engine = db.create_engine(Settings(database_url=SecretStr(database_url), pool_connections_max=1))
    await page.event_by_id(engine, ID)  # so that no reader is cancelled while the first connection is opened
    yield engine
    await engine.dispose()


class CancelledAt:
    """Awaits `work`, and cancels the task when it waits for the `count`-th time, and again after `again_seconds`."""

    def __init__(self, work: Awaitable[object], count: int, again_seconds: float | None) -> None:
        self._work = work
        self._count = count
        self._again_seconds = again_seconds
        self.waits = 0

    def __await__(self) -> Generator[Any, Any, None]:
        steps = self._work.__await__()
        task = asyncio.current_task()
        assert task is not None
        received: BaseException | None = None
        while True:
            try:
                waiting_for = next(steps) if received is None else steps.throw(received)
            except StopIteration:
                return
            self.waits += 1
            if self.waits == self._count:
                asyncio.get_running_loop().call_soon(task.cancel)
                if self._again_seconds is not None:
                    asyncio.get_running_loop().call_later(self._again_seconds, task.cancel)
            try:
                received = None
                yield waiting_for
            except asyncio.CancelledError as error:
                received = error


async def cancel(read: Read, engine: Engine, count: int, again_seconds: float | None) -> bool:
    """Cancel one read at its `count`-th wait. Whether it has waited so often."""
    cancelled = CancelledAt(read(engine), count, again_seconds)

    async def run() -> None:
        with suppress(AuditError):  # some have nothing to find
            await cancelled

    await asyncio.gather(asyncio.create_task(run()), return_exceptions=True)
    return cancelled.waits >= count


@pytest.mark.parametrize("name", READS)
async def test_cancelled_at_every_wait(name: str, engine: Engine) -> None:
    """A reader that was cancelled leaves its transaction, or its query, to the next one."""
    for again_seconds in (None, 0, 0.003):
        count = 1
        while await cancel(READS[name], engine, count, again_seconds):
            async with db.driver_connection(engine) as connection:
                assert db.is_idle(connection)
                async with connection.transaction(isolation="repeatable_read", readonly=True):
                    assert await connection.fetchval("SHOW transaction_isolation") == "repeatable read"
                assert not await connection.fetchval(
                    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in%'"
                )
            count += 1
        assert count > 1
    async with db.driver_connection(engine) as same:
        assert same is connection  # only what is in doubt is closed


async def test_whatever_a_reader_leaves_behind(engine: Engine) -> None:
    """A reader that ends normally, but in the middle of something, leaves it to the next one."""

    async def begin(connection: db.Connection) -> None:
        await connection.execute("BEGIN")

    async def fail_in_transaction(connection: db.Connection) -> None:
        await connection.execute("BEGIN")
        with suppress(Exception):
            await connection.execute("SELECT 1/0")

    async def stop_waiting(connection: db.Connection) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(0.01):
                await connection.execute("SELECT pg_sleep(60)")

    async def stop_waiting_for_transaction(connection: db.Connection) -> None:
        await connection.transaction().start()

    for leave in (begin, fail_in_transaction, stop_waiting, stop_waiting_for_transaction):
        async with db.driver_connection(engine) as connection:
            await leave(connection)
        async with db.driver_connection(engine) as connection:
            assert db.is_idle(connection), leave.__name__
            assert await connection.fetchval("SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%sleep(60)'") == 0


@pytest.mark.parametrize("in_transaction", [False, True])
@pytest.mark.parametrize("at_once", [False, True])
async def test_reader_goes_on_after_its_own_limit(engine: Engine, in_transaction: bool, at_once: bool) -> None:
    """A limit that ends a statement which was only prepared, or a BEGIN, leaves a transaction that the next BEGIN finds begun already."""

    async def stop(connection: db.Connection) -> None:
        context = connection.transaction() if in_transaction else nullcontext()
        async with db.limited(connection, 0 if at_once else 60), context:
            await connection.prepare("SELECT count(*) FROM audit_events")  # as fetch() does before it executes
            raise TimeoutError  # as when the time is over here

    async with db.driver_connection(engine) as connection:
        with pytest.raises(TimeoutError):
            await stop(connection)
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            assert await connection.fetchval("SHOW transaction_isolation") == "repeatable read"
        assert db.is_idle(connection)


async def test_reader_goes_on_with_its_transaction(engine: Engine) -> None:
    async with db.driver_connection(engine) as connection, connection.transaction():
        with pytest.raises(TimeoutError):
            async with db.limited(connection, 0.01):
                await connection.execute("SELECT pg_sleep(60)")
        await connection.execute("ROLLBACK; BEGIN")  # it had failed


async def test_workers_connection(database_url: str) -> None:
    """A worker's round that ends in the middle of something leaves it to the next round."""
    settings = Settings(database_url=SecretStr(database_url))
    worker = WorkerConnection(lambda: db.connect(settings))
    async with worker.use() as connection:
        first = connection
    async with worker.use() as connection:
        assert connection is first
        await connection.execute("BEGIN")
    async with worker.use() as connection:
        assert connection is not first
        assert first.is_closed()
        await connection.close()
