"""A removal beside a hold or an erasure, in every possible order of their statements, as tests/postgres/test_hold_race.py does for a purge.

All events of a test are in one part, so that a case costs no run of the archive; each case is about one event.
"""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from app.archive import run
from app.archive.finding import archive_search
from app.archive.recorded import RecordedPart
from app.archive.removing import Removal, RowsOfPart, retention_session
from app.archive.session import open_session
from app.errors import NotFound, Unavailable
from app.events.catalog import Catalog
from app.events.positions import Positions
from app.retention.erase import Erased, Erasure, EventsChanged, UnderHold, erase
from app.retention.holds import HoldOrder, Placement, Selector, place
from app.settings import Settings
from app.sql import load
from tests.archive.archived import ALL, NOW, OLD, Connection, parts_of, publish, settings_of, verified
from tests.archive.test_removal import database_result
from tests.logs import FIRST_LOG
from tests.postgres.test_hold_race import FULL, HOLD_GATES, INGEST, SESSION, STAGE, Stage
from tests.postgres.test_hold_race import gated as gated  # noqa: PLC0414 -- a fixture
from tests.sealed import seal

pytestmark = pytest.mark.damaged  # the verification at the end of every test does not know purges
OF_LOG = load("retention").of(FIRST_LOG)
REMOVAL_GATES = {load("archive").of(FIRST_LOG)["removable"], INGEST["flush"], OF_LOG["purge"], "COMMIT"}
ERASURE_GATES = {"BEGIN ISOLATION LEVEL REPEATABLE READ", OF_LOG["to_erase"], INGEST["flush"], OF_LOG["erase"]}
STEPS = {"h": 7 if FULL else 5, "r": 4, "e": 4}
GATES = {"h": HOLD_GATES, "r": REMOVAL_GATES, "e": ERASURE_GATES}


def orders(first: str, second: str) -> list[str]:
    """Orders of the statements of two sessions: every one with RACE_ORDERS=full, else every tenth, with the first and the last."""
    count = STEPS[first] + STEPS[second]
    every = [
        "".join(first if place in places else second for place in range(count))
        for places in combinations(range(count), STEPS[first])
    ]
    return every if FULL else [*every[:-1:10], every[-1]]


class Case:
    """One event that is archived, and what competes for it."""

    def __init__(self, settings: Settings, number: int, event_id: UUID) -> None:
        self.settings = settings
        self.position = number
        self.correlation = f"rr-{number}"
        self.event_id = event_id
        self.part: RecordedPart
        """One that has this event alone."""

    async def hold(self) -> Placement:
        return await place(self.settings, FIRST_LOG, Selector(correlation_id=self.correlation), HoldOrder("eve", "why"))

    async def erase(self) -> Erased:
        order, search = Erasure("asked for", "eve", event_ids=[self.event_id]), archive_search(self.settings)
        return await erase(self.settings, Catalog(), order, dry_run=False, search_archive=search)

    async def remove(self) -> int:
        """The removal of the event. That files are read, and the orders of before, is not in the race."""
        name = SESSION.set("")
        async with open_session(self.settings, NOW, ALL) as session:
            retention = await retention_session(session, self.settings, NOW)
            await retention.refresh()
            rows = RowsOfPart(session, retention, self.settings.archive_after_days, self.part, Removal())
            await rows.read_erasures()
            SESSION.reset(name)
            return await rows.remove()

    @property
    def works(self) -> dict[str, Callable[[], Awaitable[Any]]]:
        return {"h": self.hold, "r": self.remove, "e": self.erase}


async def archived_cases(settings: Settings, connection: Connection, count: int) -> list[Case]:
    cases = []
    for number in range(count):
        old = {"event_timestamp": OLD, "event_date": OLD.date(), "event_data": f'{{"secret": "of {number}"}}'}
        cases.append(Case(settings, number, (await seal(connection, f"rr-{number}", old))[0]))
    await publish(connection)
    await run.run(settings, NOW, ALL)
    [part] = await parts_of(settings)
    for case in cases:
        case.part = replace(part, positions=Positions([(case.position, case.position + 1)]))
    return cases


async def play(case: Case, connection: Connection, schedule: str) -> dict[str, Any]:
    names = sorted(set(schedule))
    stage = Stage({name: GATES[name] for name in names}, connection)
    STAGE.append(stage)
    try:
        return await stage.play({name: case.works[name] for name in names}, schedule)
    finally:
        STAGE.clear()


async def row_of(connection: Connection, case: Case) -> Any:
    return await connection.fetchrow("SELECT * FROM audit_events WHERE event_id = $1", case.event_id)


async def recorded(connection: Connection, case: Case, event_type: str) -> list[int]:
    """Where the log says that this event was purged, or erased."""
    rows = await connection.fetch(
        "SELECT log_index FROM audit_events WHERE event_type = $1 AND (event_data->>'positions')::int8multirange @> $2::bigint",
        event_type,
        case.position,
    )
    return [row["log_index"] for row in rows]


async def test_no_held_event_is_removed(database_url: str, connection: Connection, tmp_path: Path) -> None:
    """A hold that is placed while a removal runs loses its events; or one is gone without a purge."""
    schedules, outcomes = orders("h", "r"), {"held": 0, "removed": 0}
    for case, schedule in zip(
        await archived_cases(settings_of(database_url, tmp_path), connection, len(schedules)), schedules, strict=True
    ):
        answers = await play(case, connection, schedule)
        row, purges = await row_of(connection, case), await recorded(connection, case, "datastorage.retention.purged")
        assert not isinstance(answers["r"], BaseException), (schedule, answers)
        assert (len(purges), row is None) == (answers["r"], bool(answers["r"])), (schedule, answers)
        if row is not None:
            assert isinstance(answers["h"], Placement), (schedule, answers)
            assert (row["legal_hold"], answers["h"].events) == (True, 1), (schedule, answers)
            outcomes["held"] += 1
        else:  # held as what is in the archive only, or nothing of it is marked any more
            assert isinstance(answers["h"], Placement | NotFound | Unavailable), (schedule, answers)
            outcomes["removed"] += 1
    assert all(outcomes.values()), outcomes
    assert (await database_result(connection)).defects.listed == []


async def test_what_is_erased_is_erased_everywhere(database_url: str, connection: Connection, tmp_path: Path) -> None:
    """An erasure beside a removal leaves the content in the archive for ever, or says that it has erased what it has not."""
    schedules, settings = orders("e", "r"), settings_of(database_url, tmp_path)
    outcomes = {"stays": 0, "removed": 0, "in the archive": 0}
    erased = set()
    for case, schedule in zip(await archived_cases(settings, connection, len(schedules)), schedules, strict=True):
        answers = await play(case, connection, schedule)
        row, purges = await row_of(connection, case), await recorded(connection, case, "datastorage.retention.purged")
        erasures = await recorded(connection, case, "datastorage.event.erased")
        assert not isinstance(answers["r"], BaseException), (schedule, answers)
        assert (len(purges), row is None) == (answers["r"], bool(answers["r"])), (schedule, answers)
        if isinstance(answers["e"], Erased):
            assert (answers["e"].events, len(erasures)) == ([case.event_id], 1), (schedule, answers)
            assert row is None or row["payload_commitment"] is not None, schedule
            assert row is None or not purges, schedule
            assert (row is None) == bool(answers["e"].archived), (schedule, answers)
            erased.add(case.position)
            outcomes["stays" if row is not None else "in the archive"] += 1
        else:
            assert isinstance(answers["e"], EventsChanged), (schedule, answers)
            assert (erasures, row) == ([], None), (schedule, answers)
            outcomes["removed"] += 1
    assert all(outcomes.values()), outcomes
    assert (await database_result(connection)).defects.listed == []
    await run.run(settings, NOW, ALL)
    after = await verified(settings)
    assert (after.problem_count, after.pending) == (0, [])
    assert sum(one.erased for _, one in after.parts) == len(erased)


async def test_no_held_event_of_the_archive_is_erased(
    database_url: str, connection: Connection, tmp_path: Path
) -> None:
    """An event that is in the archive only is erased although a hold covered it then."""
    schedules, settings = orders("h", "e"), settings_of(database_url, tmp_path)
    cases = await archived_cases(settings, connection, len(schedules))
    done = (await run.run(settings, NOW, replace(ALL, remove=True))).removal
    assert done is not None
    assert [one.events for one in done.removed] == [len(schedules)]
    outcomes = {"held": 0, "erased": 0}
    for case, schedule in zip(cases, schedules, strict=True):
        answers = await play(case, connection, schedule)
        erasures = await recorded(connection, case, "datastorage.event.erased")
        placed_at = await connection.fetchval(
            "SELECT placed_index FROM holds WHERE correlation_id = $1", case.correlation
        )
        assert isinstance(answers["h"], Placement), (schedule, answers)
        if isinstance(answers["e"], Erased):
            assert erasures[0] < placed_at, (schedule, answers)
            outcomes["erased"] += 1
        else:
            assert isinstance(answers["e"], UnderHold), (schedule, answers)
            assert erasures == [], (schedule, answers)
            outcomes["held"] += 1
    assert all(outcomes.values()), outcomes
    assert (await database_result(connection)).defects.listed == []
