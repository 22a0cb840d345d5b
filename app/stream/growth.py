"""Who follows the log is woken when it has grown, instead of asking again and again.

The process that writes announces it beside its flushes, on a connection of its own: a NOTIFY inside of a flush would have all flushes of
all replicas wait for one lock. An announcement can be lost with the process that owes it, and is not made by commands that write, so who
waits also looks every few seconds. It carries nothing: what there is to read, the log itself says.
"""

import asyncio
import contextvars
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, NoReturn

from app.db import DATABASE_ERRORS, Connection, connect
from app.errors import Unavailable
from app.settings import Settings
from app.sql import load
from app.workers import WorkerConnection, run_forever

SQL = load("stream")
CHANNEL = "datastorage_log"
_ANNOUNCE_SECONDS = 0.05
"""Between two announcements, however often the log grows."""
_LOOK_SECONDS = 5.0
_RETRY_SECONDS = 1.0
_AWAY = (Unavailable, *DATABASE_ERRORS)


async def announce_forever(settings: Settings, committed: asyncio.Event) -> NoReturn:
    """Announce that the log has grown whenever `committed` was set, for as long as the process runs."""
    # The announcement itself need not survive a crash: it would cost a write to the disk.
    connection = WorkerConnection(lambda: connect(settings, synchronous_commit="off"))

    async def do_round() -> None:
        await committed.wait()
        committed.clear()
        try:
            async with connection.use() as usable:
                await usable.execute(SQL["announce"], CHANNEL)
        except BaseException:
            committed.set()  # it is still owed
            raise

    try:
        await run_forever(
            "growth",
            do_round,
            pause_seconds=_ANNOUNCE_SECONDS,
            retry_seconds=_RETRY_SECONDS,
            failure="the growth of the log could not be announced",
            uncounted=_AWAY,
        )
    finally:
        connection.close()


class LogGrowth:
    """What this process hears of the growth of the log, on one connection, which is open while anybody follows."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._count = 0
        """How often the log may have grown."""
        self._changed = asyncio.Event()
        self._followers = 0
        self._listening: asyncio.Task[NoReturn] | None = None

    @asynccontextmanager
    async def follow(self) -> AsyncIterator["Follower"]:
        """For one who reads the log to its end and waits for more, again and again."""
        self._followers += 1
        if self._listening is None:
            # Outside of the context of the request that came first, which may be part of a trace.
            self._listening = asyncio.create_task(self._listen_forever(), name="growth", context=contextvars.Context())
        try:
            yield Follower(self)
        finally:
            self._followers -= 1
            if not self._followers and self._listening is not None:
                self._listening.cancel()
                self._listening = None

    @property
    def count(self) -> int:
        """Grows when the log may have grown."""
        return self._count

    async def changed(self, count: int) -> None:
        """Return when `count` is over: at once, if it has been for some time."""
        while self._count == count:
            await self._changed.wait()

    def _wake(self, *_: Any) -> None:
        self._count += 1
        self._changed.set()
        self._changed = asyncio.Event()

    async def _listen_forever(self) -> NoReturn:
        lost = asyncio.Event()

        async def listen(connection: Connection) -> None:
            lost.clear()
            connection.add_termination_listener(lambda _: lost.set())
            await connection.add_listener(CHANNEL, self._wake)

        async def do_round() -> None:
            try:
                async with connection.use() as usable:
                    await usable.execute(SQL["alive"])  # a network may be broken without either end knowing
                    self._wake()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(_LOOK_SECONDS):
                            await lost.wait()
            except BaseException:
                self._wake()  # whoever can read, looks
                raise

        connection = WorkerConnection(lambda: connect(self._settings), listen)
        try:
            await run_forever(
                "growth",
                do_round,
                pause_seconds=0.0,
                retry_seconds=_RETRY_SECONDS,
                failure="the growth of the log is not heard of",
                uncounted=_AWAY,
            )
        finally:
            connection.close()


class Follower:
    """One who waits for the growth of the log. What grows while he reads, he does not wait for."""

    def __init__(self, growth: LogGrowth) -> None:
        self._growth = growth
        self._count = growth.count

    async def wait(self) -> None:
        """Return when the log may have grown since the last return, or since the beginning; at the latest after a few seconds."""
        await self._growth.changed(self._count)
        self._count = self._growth.count
