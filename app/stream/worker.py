"""Delivers to every sink of the file that DATASTORAGE_SINKS names, each in a task of its own, and measures how far they are.

The file is read again when it has changed. A sink whose entry has changed begins anew, from its cursor; the others go on. While
the file is not valid, everything goes on as before, and it is reported: neither that nor anything else here stops the service.
"""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import asyncpg

from app import metrics
from app.db import DATABASE_ERRORS, Connection, connect
from app.errors import DatabaseAway, Fatal
from app.events.log import Log
from app.settings import Settings
from app.standby import confirm_if
from app.stream.cursor import SinkState, read_states
from app.stream.deliver import SinkDelivery
from app.stream.growth import LogGrowth
from app.stream.portion import LogReader
from app.stream.sink import Sink
from app.stream.sinks import read_sinks
from app.tlog.continued import find_log
from app.workers import Reminder, WorkerConnection, run_forever

_CHECK_SECONDS = 1.0
_MEASURE_SECONDS = 5.0
_LOOK_SECONDS, _CLOSE_SECONDS = 60.0, 5.0
_OF_A_SINK = (
    *(metrics.SINK_LAG_EVENTS, metrics.SINK_LAG_SECONDS, metrics.SINK_DELIVERED, metrics.SINK_PAUSED),
    metrics.SINK_CONFIGURED,
)

log = logging.getLogger(__name__)


async def deliver_forever(settings: Settings, of_log: Log, growth: LogGrowth) -> None:
    """Deliver for as long as the process runs. Without a file of sinks, only measure: a cursor that is left holds back retention."""
    deliveries = Deliveries(settings, of_log, growth)
    if settings.sinks is None:
        await deliveries.look_forever()
    try:
        await asyncio.gather(deliveries.follow_file(settings.sinks), deliveries.measure_forever())
    finally:
        await deliveries.end()


class Deliveries:
    """The tasks of this process, one for each sink."""

    def __init__(self, settings: Settings, of_log: Log, growth: LogGrowth) -> None:
        self._settings = settings
        self._reader = LogReader(of_log, find_log(settings), confirm_if(required=settings.require_synchronous_standby))
        self._growth = growth
        self._running: dict[Sink, asyncio.Task[None]] = {}
        self._content: bytes | None = None
        self._reminder = Reminder()
        self._measured: set[str] = set()

    async def follow_file(self, path: Path) -> NoReturn:
        """Have the tasks be those of the file, whenever that changes."""

        async def do_round() -> None:
            if (sinks := self._changed(path)) is not None:
                await self.follow(sinks)

        await run_forever("sinks", do_round, pause_seconds=_CHECK_SECONDS, failure="the file of sinks was not followed")

    def _changed(self, path: Path) -> Sequence[Sink] | None:
        """The sinks of a file that has other bytes than before; None if it has not, or is not valid."""
        try:
            content = path.read_bytes()
            if content == self._content:
                metrics.SINKS_INVALID.set(0)
                return None
            sinks = read_sinks(path)
        except (OSError, Fatal) as error:
            metrics.SINKS_INVALID.set(1)
            if self._reminder.is_due():
                log.error("the file of sinks is not followed", extra={"error": getattr(error, "detail", str(error))})  # noqa: TRY400
            return None
        metrics.SINKS_INVALID.set(0)
        self._content, self._reminder = content, Reminder()
        return sinks

    async def follow(self, sinks: Sequence[Sink]) -> None:
        """Stop what is not among `sinks` any more, or is otherwise now, and start what is new."""
        await self._stop([one for one in self._running if one not in sinks])
        for sink in sinks:
            if sink not in self._running:
                self._running[sink] = asyncio.create_task(self._deliver(sink), name=f"sink {sink.name}")
        log.info("sinks", extra={"sinks": [sink.name for sink in sinks]})

    async def end(self) -> None:
        """Stop everything."""
        await self._stop(list(self._running))

    async def _stop(self, sinks: Sequence[Sink]) -> None:
        tasks = [self._running.pop(sink) for sink in sinks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _deliver(self, sink: Sink) -> None:
        """Deliver to one sink. One that cannot be set up is reported, and set up again when its entry changes."""
        try:
            async with self._growth.follow() as follower:

                async def wait(seconds: float) -> None:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(seconds):
                            await follower.wait()

                await SinkDelivery(sink, self._settings, self._reader, wait).run()
        except Exception as error:
            metrics.SINK_FAILURES.labels(sink=sink.name).inc()
            log.exception("a sink cannot be set up", extra={"sink": sink.name, "error": repr(error)})

    async def measure_forever(self) -> NoReturn:
        """Show in the metrics how far every sink is, whichever replica delivers."""
        connection = WorkerConnection(lambda: connect(self._settings))

        async def do_round() -> None:
            async with connection.use() as usable:
                await self._measure(usable)

        try:
            await run_forever(
                "sinks",
                do_round,
                pause_seconds=_MEASURE_SECONDS,
                failure="the lag of sinks is not known",
                uncounted=(DatabaseAway, *DATABASE_ERRORS),
            )
        finally:
            connection.close()

    async def look_forever(self) -> NoReturn:
        """As measure_forever(), where nothing is delivered: seldom, on a connection that does not stay, and silent without the table."""

        async def do_round() -> None:
            connection = await connect(self._settings)
            try:
                with suppress(asyncpg.UndefinedTableError, asyncpg.InsufficientPrivilegeError):
                    await self._measure(connection)
            finally:
                await connection.close(timeout=_CLOSE_SECONDS)

        await run_forever(
            "sinks",
            do_round,
            pause_seconds=_LOOK_SECONDS,
            failure="it is not known whether sinks are left",
            uncounted=(DatabaseAway, *DATABASE_ERRORS),
        )

    async def _measure(self, connection: Connection) -> None:
        states = await read_states(connection)
        for name in self._measured - {state.name for state in states}:
            for gauge in _OF_A_SINK:
                gauge.remove(name)
        self._measured = {state.name for state in states}
        configured = {sink.name for sink in self._running}
        for state in states:
            _show(state, is_configured=state.name in configured)


def _show(state: SinkState, *, is_configured: bool) -> None:
    metrics.SINK_LAG_EVENTS.labels(sink=state.name).set(state.lag_events)
    metrics.SINK_LAG_SECONDS.labels(sink=state.name).set(state.lag_seconds)
    delivered = 0.0 if state.delivered_at is None else state.delivered_at.timestamp()
    metrics.SINK_DELIVERED.labels(sink=state.name).set(delivered)
    metrics.SINK_PAUSED.labels(sink=state.name).set(state.paused)
    metrics.SINK_CONFIGURED.labels(sink=state.name).set(is_configured)
