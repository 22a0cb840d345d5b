"""Reads the findings of the log again and again, so that every replica shows those that stand, also after a start."""

from time import monotonic
from typing import NoReturn

from app.db import DATABASE_ERRORS
from app.errors import Unavailable
from app.findings.register import Register
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
