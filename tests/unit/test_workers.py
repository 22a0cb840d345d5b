"""What workers and the watch on the database do when it is away: who logs, and how often it is asked."""

import asyncio
import logging

import asyncpg
import pytest

from app import workers
from app.db import next_pause
from app.errors import DatabaseAway
from app.workers import Reminder, database_is_away, run_forever


def test_refusals_are_asked_less_and_less() -> None:
    """A wrong password is tried four times a second for ever; or a server that was away is noticed late."""
    refusals = (
        *(asyncpg.InvalidPasswordError("password"), asyncpg.InvalidCatalogNameError("database")),
        *(asyncpg.InvalidAuthorizationSpecificationError("role"), asyncpg.InsufficientPrivilegeError("connect")),
    )
    for refusal in refusals:
        pauses = [0.25]
        for _ in range(9):
            pauses.append(next_pause(pauses[-1], refusal, 0.25))
        assert pauses == [0.25, 0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    for other in (None, OSError("refused"), asyncpg.CannotConnectNowError("starting up")):
        assert next_pause(30, other, 0.25) == 0.25


def test_reminder(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line is repeated with every try, or told once and never again."""
    now = 0.0
    monkeypatch.setattr(workers, "monotonic", lambda: now)
    reminder = Reminder()
    due = []
    for seconds in (0, 0.5, 59.9, 60, 60.5, 119, 120):
        now = seconds
        due.append(reminder.is_due())
    assert due == [True, False, False, True, False, False, True]


@pytest.mark.parametrize("away", [False, True])
async def test_rounds_are_silent_while_the_database_is_away(away: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Each round of each worker logs what is known already, or hides what is not."""
    caplog.set_level(logging.INFO)
    rounds = 0
    enough = asyncio.Event()

    async def fail() -> None:
        nonlocal rounds
        rounds += 1
        if rounds > 3:
            enough.set()
            await asyncio.Event().wait()
        raise DatabaseAway

    async def run() -> None:
        database_is_away.set(lambda: away)
        await run_forever("claims", fail, pause_seconds=0, failure="it failed")

    task = asyncio.create_task(run())
    await enough.wait()
    task.cancel()
    assert caplog.messages == ([] if away else ["it failed"] * 3)
