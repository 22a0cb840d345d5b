"""Work items on all cores: a process for each core, with a connection of its own that sees the same snapshot."""

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

from app.db import DATABASE_ERRORS, Connection, connect
from app.errors import DatabaseAway, Fatal
from app.settings import Settings
from app.verify.database import TASKS, Runner, WorkItem

_STATEMENT_TIMEOUT_MS = 3_600_000
_QUEUED_PER_PROCESS = 2


@dataclass
class _ProcessState:
    """What a process of the pool has for all its work items."""

    settings: Settings
    snapshot: str
    loop: asyncio.AbstractEventLoop
    connection: Connection | None = None


_process_state: list[_ProcessState] = []
"""Has one element in a process of the pool, none elsewhere."""


@dataclass(frozen=True, slots=True)
class ProcessPool:
    """The pool's runner, and the CPU seconds that each process has used since its start, by process id."""

    run: Runner
    cpu_seconds: dict[int, float]


async def connect_for_verification(settings: Settings) -> Connection:
    """A connection whose timeouts allow one long snapshot, which the caller opens. DatabaseAway when Postgres cannot be reached."""
    patient = settings.model_copy(update={"statement_timeout_ms": _STATEMENT_TIMEOUT_MS})
    return await connect(patient, idle_in_transaction_session_timeout="0")


@contextmanager
def process_pool(settings: Settings, snapshot: str, processes: int) -> Iterator[ProcessPool]:
    """Processes that run work items in the exported `snapshot`. They have ended when the context ends."""
    pool = ProcessPoolExecutor(
        processes, mp_context=get_context("spawn"), initializer=_start_process, initargs=(settings, snapshot)
    )
    cpu_seconds: dict[int, float] = {}
    try:
        yield ProcessPool(lambda items: _run(pool, cpu_seconds, items, processes * _QUEUED_PER_PROCESS), cpu_seconds)
    finally:
        pool.shutdown(cancel_futures=True)


async def _run(
    pool: ProcessPoolExecutor, cpu_seconds: dict[int, float], items: Sequence[WorkItem], queued_max: int
) -> AsyncIterator[tuple[WorkItem, Any]]:
    """Only a few items are in the pool at a time, so that not all their arguments are copied at once."""
    loop, waiting, remaining = asyncio.get_running_loop(), set[asyncio.Future[Any]](), iter(items)
    try:
        while True:
            while len(waiting) < queued_max and (item := next(remaining, None)) is not None:
                waiting.add(loop.run_in_executor(pool, _run_item, item))
            if not waiting:
                return
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for future in done:
                item, result, pid, cpu_seconds[pid] = await future
                yield item, result
    except BrokenProcessPool:
        raise Fatal("A process of the verification has ended, perhaps for lack of memory.") from None
    finally:
        for future in waiting:
            future.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


# In a process of the pool.


def _start_process(settings: Settings, snapshot: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process ends the others
    _process_state.append(_ProcessState(settings, snapshot, asyncio.new_event_loop()))


def _run_item(item: WorkItem) -> tuple[WorkItem, Any, int, float]:
    """The item without its arguments, its result, and this process's id and CPU seconds."""
    [state] = _process_state
    try:
        result = state.loop.run_until_complete(_run_on_connection(state, item))
    except (DatabaseAway, *DATABASE_ERRORS) as error:
        raise Fatal(f"The database could not be read to the end: {error!r}") from None  # the driver's cannot be pickled
    return WorkItem(item.task, (), item.weight, item.log_id), result, os.getpid(), process_time()


async def _run_on_connection(state: _ProcessState, item: WorkItem) -> Any:
    if state.connection is None:
        state.connection = await connect_for_verification(state.settings)
        quoted = await state.connection.fetchval("SELECT quote_literal($1)", state.snapshot)
        await state.connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        await state.connection.execute("SET TRANSACTION SNAPSHOT " + quoted)
    return await TASKS[item.task](state.connection, *item.arguments)
