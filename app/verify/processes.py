"""Parts of a verification on all cores: a process for each, with a connection of its own that sees the same snapshot."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from time import process_time
from typing import Any

import asyncpg

from app.db import CONNECTION_ERRORS, Connection, connect
from app.errors import DatabaseAway, Fatal
from app.settings import Settings
from app.verify.database import WORK, Runner, WorkItem

_STATEMENT_TIMEOUT_MS = 3_600_000
_WAITING_FOR_EACH = 2


@dataclass
class _Worker:
    """What a process keeps from part to part."""

    settings: Settings
    snapshot: str
    loop: asyncio.AbstractEventLoop
    connection: Connection | None = None


_worker: list[_Worker] = []
"""One, in a process that works."""


@dataclass(frozen=True, slots=True)
class WorkerPool:
    """The processes, and the CPU time that each of them has used since its start."""

    run: Runner
    cpu_seconds: dict[int, float]


async def snapshot_connection(settings: Settings) -> Connection:
    """A connection that will look at one snapshot_connection. DatabaseAway when none can be had."""
    patient = settings.model_copy(update={"statement_timeout_ms": _STATEMENT_TIMEOUT_MS})
    return await connect(patient, idle_in_transaction_session_timeout="0")


@contextmanager
def worker_pool(settings: Settings, snapshot: str, processes: int) -> Iterator[WorkerPool]:
    """Processes that do parts in the exported `snapshot`. They are gone when this ends."""
    pool = ProcessPoolExecutor(
        processes, mp_context=get_context("spawn"), initializer=_begin, initargs=(settings, snapshot)
    )
    seconds: dict[int, float] = {}
    try:
        yield WorkerPool(lambda parts: _run(pool, seconds, parts, processes * _WAITING_FOR_EACH), seconds)
    finally:
        pool.shutdown(cancel_futures=True)


async def _run(
    pool: ProcessPoolExecutor, seconds: dict[int, float], parts: Sequence[WorkItem], ahead: int
) -> AsyncIterator[tuple[WorkItem, Any]]:
    """Only a few parts wait inside the pool, so that what they need is not copied for all of them at once."""
    loop, waiting, left = asyncio.get_running_loop(), set[asyncio.Future[Any]](), iter(parts)
    try:
        while True:
            while len(waiting) < ahead and (part := next(left, None)) is not None:
                waiting.add(loop.run_in_executor(pool, _do, part))
            if not waiting:
                return
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for future in done:
                part, result, pid, seconds[pid] = await future
                yield part, result
    except BrokenProcessPool:
        raise Fatal("A process of the verification has ended, perhaps for want of memory.") from None
    finally:
        for future in waiting:
            future.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


def _begin(settings: Settings, snapshot: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends the others
    _worker.append(_Worker(settings, snapshot, asyncio.new_event_loop()))


def _do(part: WorkItem) -> tuple[WorkItem, Any, int, float]:
    [worker] = _worker
    try:
        result = worker.loop.run_until_complete(_done(worker, part))
    except (DatabaseAway, *CONNECTION_ERRORS, asyncpg.PostgresError) as error:
        raise Fatal(f"The database could not be read to the end: {error!r}") from None  # the driver's do not travel
    return WorkItem(part.work, (), part.weight), result, os.getpid(), process_time()


async def _done(worker: _Worker, part: WorkItem) -> Any:
    if worker.connection is None:
        worker.connection = await snapshot_connection(worker.settings)
        quoted = await worker.connection.fetchval("SELECT quote_literal($1)", worker.snapshot)
        await worker.connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        await worker.connection.execute("SET TRANSACTION SNAPSHOT " + quoted)
    return await WORK[part.work](worker.connection, *part.arguments)
