"""The roll-up worker: once a second it counts what was written to the logs since, and what was deleted or changed before.

Every replica runs it; a lock in Postgres lets one at a time count. Neither the writer nor any answer depends on it: where its counts
are not current, readers count rows (query/total.py). The rules are in docs/decisions/0036 and 0051.
"""

import logging
from datetime import date
from time import monotonic
from typing import NoReturn

import asyncpg

from app.db import Connection, connect
from app.settings import Settings
from app.sql import load
from app.workers import Reminder, WorkerConnection, run_forever

SQL = load("rollup")
PORTION_ROWS = 20_000
_ROUND_SECONDS = 1.0
_PORTION_SECONDS = 0.05
"""Between portions, so that catching up leaves Postgres room for others."""
_CHECK_SHARE = 0.01
"""Part of the time in which counts are checked, and that only every few seconds."""
_CHECK_SECONDS = 5.0
_STATEMENT_TIMEOUT_MS = 600_000
_TRANSACTION_IDLE_MAX = "15s"

log = logging.getLogger(__name__)


async def follow_forever(settings: Settings) -> NoReturn:
    """Count for as long as the process runs, whenever no other replica does, on a connection of its own."""

    async def open_connection() -> Connection:
        slow = settings.model_copy(update={"statement_timeout_ms": _STATEMENT_TIMEOUT_MS})
        return await connect(slow, lock_timeout="3s", idle_in_transaction_session_timeout=_TRANSACTION_IDLE_MAX)

    connection = WorkerConnection(open_connection)
    check = Check()

    async def do_round() -> float | None:
        async with connection.use() as usable:
            if await count_portion(usable):
                return _PORTION_SECONDS
            await check.run_if_due(usable)
            return None

    await run_forever("rollup", do_round, pause_seconds=_ROUND_SECONDS, failure="events could not be counted")


async def count_portion(connection: Connection, rows: int = PORTION_ROWS) -> bool:
    """Count one portion of about `rows` events, unless another process counts; True when there may be more."""
    async with connection.transaction():
        if not await connection.fetchval(SQL["try_lock"]):
            return False
        work = await connection.fetchrow(SQL["work"])
        assert work is not None
        if not any(work.values()) or not await connection.fetchval(SQL["lock_rollup"]):
            return False
        if work["discard"]:
            await connection.execute(SQL["discard"])
        if work["begin"] or work["discard"]:
            await connection.execute(SQL["begin"])
            return True
        if work["build"] and (month := await connection.fetchrow(SQL["to_build"])) is not None:
            await connection.fetchval(SQL["build"], *month, rows)
            return True
        return any([await connection.fetchval(SQL["follow"], rows, log_id) for log_id in work["follow"] or ()])


class Check:
    """Counts the rows again, in case something happened to them that no trigger has seen."""

    def __init__(self) -> None:
        self._due_at = 0.0
        self._reminder = Reminder()

    async def run_if_due(self, connection: Connection) -> None:
        """Check, unless that was done a moment ago."""
        started = monotonic()
        if started >= self._due_at:
            self._due_at = started + _CHECK_SECONDS
            await self.run(connection)
            self._due_at = started + max(_CHECK_SECONDS, (monotonic() - started) / _CHECK_SHARE)

    async def run(self, connection: Connection) -> None:
        """If counts are wrong, those of their months are discarded, to be made again. Warns of that, and of tables because of
        which the roll-up is not used.
        """
        try:
            async with connection.transaction():
                if await connection.fetchval(SQL["try_lock"]):
                    await self._check(connection)
        except asyncpg.QueryCanceledError:
            log.info("there are too many rows to compare them with their counts")

    async def _check(self, connection: Connection) -> None:
        if (uncounted := await connection.fetchval(SQL["uncounted"])) and self._reminder.is_due():
            log.warning(
                "every total is counted from the rows, since tables lack triggers or have other names or days than months",
                extra={"tables": uncounted},
            )
        await connection.execute(SQL["check_timeout"])
        for month in await connection.fetch(SQL["months_with_other_scopes"]):
            log.info(
                "another release has counted events of a month; it is counted again",
                extra={"month": str(month["first_day"])},
            )
            await connection.execute(SQL["discard_month"], month["month"])
        if await connection.fetchval(SQL["difference"]):
            await connection.execute(SQL["discard_timeout"])
            await _discard_wrong_months(connection)


async def _discard_wrong_months(connection: Connection) -> None:
    day = date.min
    while (month := await connection.fetchrow(SQL["difference_of_month"], day)) is not None:
        day = month["first_day"]
        if month["difference"]:
            extra = {"month": str(day), "rows": int(month["difference"])}
            log.warning("a month has another number of events than was counted; it is counted again", extra=extra)
            await connection.execute(SQL["discard_month"], month["month"])
