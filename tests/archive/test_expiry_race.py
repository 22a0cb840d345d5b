"""The expiry of a part beside a hold, in every possible order of their statements, as test_removal_race.py does for the removal."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from app.archive import run
from app.archive.expiring import Expiries, ExpiryOfPart
from app.archive.recorded import RecordedPart
from app.archive.removing import retention_session
from app.archive.session import open_session
from app.errors import NotFound, Unavailable
from app.retention.holds import HoldOrder, Placement, Selector, place
from app.settings import Settings
from app.sql import load
from app.tlog.keys import SigningKey
from tests.archive.archived import (
    ALL,
    DAYS,
    KEY,
    NOW,
    OLD,
    PUBLIC,
    Connection,
    parts_of,
    publish,
    settings_of,
    verified,
)
from tests.archive.test_removal import database_result
from tests.logs import FIRST_LOG
from tests.postgres.test_hold_race import FULL, HOLD_GATES, INGEST, SESSION, STAGE, Stage
from tests.postgres.test_hold_race import gated as gated  # noqa: PLC0414 -- a fixture
from tests.sealed import seal

pytestmark = pytest.mark.damaged  # the verification at the end of every test does not know purges
ARCHIVE, RETENTION = load("archive"), load("retention")
GATES = {"h": HOLD_GATES, "x": {ARCHIVE["active_selectors"], INGEST["flush"], ARCHIVE["move_pointer"], "COMMIT"}}
STEPS = {"h": 7 if FULL else 5, "x": 4}


def orders() -> list[str]:
    """Orders of the statements of a hold (h) and an expiry (x): every one with RACE_ORDERS=full, else every tenth, with the first and the last."""
    count = sum(STEPS.values())
    every = [
        "".join("h" if at in places else "x" for at in range(count))
        for places in combinations(range(count), STEPS["h"])
    ]
    return every if FULL else [*every[:-1:10], every[-1]]


class Case:
    """One event that is a part of its own, and what competes for it."""

    def __init__(self, settings: Settings, number: int, part: RecordedPart) -> None:
        self.settings = settings
        self.correlation = f"rr-{number}"
        self.part = part

    async def hold(self) -> Placement:
        return await place(self.settings, FIRST_LOG, Selector(correlation_id=self.correlation), HoldOrder("eve", "why"))

    async def expire(self) -> int:
        """How many parts have expired. The orders of before are not in the race."""
        name = SESSION.set("")
        result = Expiries()
        async with open_session(self.settings, NOW, ALL) as session:
            for lock in (ARCHIVE["lock_archive"], RETENTION["lock_retention"]):
                assert await session.connection.fetchval(lock)
            retention = await retention_session(session, self.settings, NOW)
            await retention.refresh()
            part = ExpiryOfPart(session, retention, self.part)
            SESSION.reset(name)
            await part.expire(SigningKey(KEY, PUBLIC), result)
        assert (result.waiting, result.refused) == ([], [])
        return len(result.expired)

    @property
    def works(self) -> dict[str, Callable[[], Awaitable[Any]]]:
        return {"h": self.hold, "x": self.expire}


async def cases_of(settings: Settings, connection: Connection, count: int) -> list[Case]:
    for number in range(count):
        await seal(connection, f"rr-{number}", {"event_timestamp": OLD, "event_date": OLD.date()})
    await publish(connection)
    await run.run(settings, NOW, replace(ALL, remove=True, part_events=1))
    return [Case(settings, *one) for one in enumerate(await parts_of(settings))]


async def test_no_held_event_expires(database_url: str, connection: Connection, tmp_path: Path) -> None:
    """A hold that is placed while its part expires loses its events."""
    schedules, outcomes = orders(), {"held": 0, "expired": 0, "both": 0}
    settings = settings_of(database_url, tmp_path, **DAYS)
    cases = await cases_of(settings, connection, len(schedules) + 1)
    # One more part, so that the archive has something to the end, and a correlation may be in it.
    for case, schedule in zip(cases[:-1], schedules, strict=True):
        stage = Stage(GATES, connection)
        STAGE.append(stage)
        try:
            answers = await stage.play(case.works, schedule)
        finally:
            STAGE.clear()
        placed_at = await connection.fetchval(
            "SELECT placed_index FROM holds WHERE correlation_id = $1", case.correlation
        )
        expired_at = await connection.fetchval(
            "SELECT log_index FROM audit_events WHERE event_type = 'datastorage.archive.expired' "
            "AND event_data->>'archive_id' = $1",
            str(case.part.archive_id),
        )
        assert isinstance(answers["h"], Placement | NotFound | Unavailable), (schedule, answers)
        assert (answers["x"], placed_at is not None) == (
            int(expired_at is not None),
            isinstance(answers["h"], Placement),
        ), (schedule, answers)
        assert expired_at is not None or placed_at is not None, (schedule, answers)
        if expired_at is not None and placed_at is not None:
            assert expired_at < placed_at, schedule
        outcomes["held" if expired_at is None else "expired" if placed_at is None else "both"] += 1
    assert outcomes["held"], outcomes
    assert outcomes["expired"] + outcomes["both"], outcomes
    result = await database_result(connection)
    assert (result.defects.listed, result.events.archived) == ([], outcomes["held"] + 1)
    after = await verified(settings)
    assert (after.problem_count, len(after.expired), after.undeleted) == (
        0,
        outcomes["expired"] + outcomes["both"],
        [],
    )
