"""Workers: one reads the findings of the log, so that every replica shows those that stand, and one records what the writer finds."""

from time import monotonic
from typing import NoReturn

from app.db import DATABASE_ERRORS
from app.errors import Unavailable
from app.findings.recorder import Recorder
from app.findings.register import Register
from app.tlog.alarm import PendingAlarms
from app.workers import run_forever

_PAUSE_SECONDS = 2.0
_PAUSE_TIMES = 20
"""How many times longer than a reading the pause after it is at least."""


async def follow_forever(register: Register) -> NoReturn:
    """Read the log's findings into `register` every few seconds, for as long as the process runs."""

    async def do_round() -> float:
        started = monotonic()
        await register.read()
        return max(_PAUSE_SECONDS, _PAUSE_TIMES * (monotonic() - started))

    await run_forever(
        "findings",
        do_round,
        pause_seconds=_PAUSE_SECONDS,
        failure="the findings of the log could not be read",
        uncounted=(Unavailable, *DATABASE_ERRORS),  # Postgres is away or busy
    )


async def record_forever(recorder: Recorder, pending: PendingAlarms) -> NoReturn:
    """Record the writer's alarms as findings every few seconds, beside what it writes, for as long as the process runs."""

    async def do_round() -> None:
        await recorder.record_pending(pending)

    await run_forever(
        "alarms",
        do_round,
        pause_seconds=_PAUSE_SECONDS,
        failure="an alarm of the writer could not be recorded in the log",
        uncounted=(Unavailable, *DATABASE_ERRORS),  # as above
    )
