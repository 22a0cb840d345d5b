"""Runs that end at every step: the next one goes on, nothing is archived twice or only half, and nothing is left that nobody names."""

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from subprocess import PIPE
from typing import IO, Any

import pytest

from app.archive import run
from app.archive.compare import list_recorded
from app.archive.session import Selection, read_back
from app.events.catalog import Catalog
from app.retention.erase import Erased, Erasure, erase
from app.settings import Settings
from tests.archive.archived import (
    ALL,
    NOW,
    OLD,
    Connection,
    files_of,
    fill,
    folder_of,
    parts_of,
    problems,
    settings_of,
    verified,
)
from tests.services import ROOT
from tests.waiting import until

SELECTION = Selection(month=OLD.date().replace(day=1), part_events=25)
STEPS = (
    *("begun", "rows written", "events written", "tiles written", "manifest written", "verified", "table written"),
    *("committing", "recorded", "attempt deleted"),
)
"""The last one needs something that another one has left."""


ERASING = (
    *("begun", "rows written", "events written", "tiles written", "manifest written", "verified", "table written"),
    *("committing", "recorded", "replaced deleted", "attempt deleted"),
)
Killed = Callable[[str], Awaitable[tuple[int, list[str]]]]
"""Of a step at which a run is to be killed: how it has ended, and the steps that it has come to."""


@pytest.fixture
def killed(database_url: str, tmp_path: Path) -> Iterator[Killed]:
    command = [sys.executable, "-m", "tests.archive.killed", database_url, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=PIPE, stdout=PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        asked, told = process.stdin, process.stdout

        def one(step: str) -> tuple[int, list[str]]:
            asked.write(f"{step}\n")
            asked.flush()
            lines = _until_end(told)
            return int(lines[-1].removeprefix("= ")), lines[:-1]

        yield lambda step: asyncio.to_thread(one, step)
        asked.close()


def _until_end(told: IO[str]) -> list[str]:
    lines: list[str] = []
    while not lines or not lines[-1].startswith("= "):
        line = told.readline()
        assert line, "the process that makes the runs has ended"
        lines.append(line.rstrip("\n"))
    return lines


async def test_killed_at_every_step(database_url: str, connection: Connection, tmp_path: Path, killed: Killed) -> None:
    """A run that was killed leaves files for ever, a part that is recorded but not whole, or an event in two parts."""
    await fill(connection)
    settings = settings_of(database_url, tmp_path)
    met = set()
    for step in (*STEPS[:-1], "begun", *STEPS[-1:]):
        code, steps = await killed(step)
        assert (code, steps[-1]) == (-9, step)
        met |= set(steps)
        assert await problems(settings) == [], step
    assert met == set(STEPS)
    code, steps = await killed("")
    assert code == 0
    assert set(steps) <= met
    result = await verified(settings)
    assert (result.verified, result.problem_count) == (300, 0)
    assert sum(part.positions.size for part, _ in result.parts) == 300
    await nothing_else_is_there(settings, connection, tmp_path)


async def test_killed_at_every_step_of_an_erasure(
    database_url: str, connection: Connection, tmp_path: Path, killed: Killed
) -> None:
    """What was erased stays in the archive after a run was killed, a part of it is gone, or it is written again twice."""
    await fill(connection, rounds=2)
    settings = settings_of(database_url, tmp_path)
    await run.run(settings, NOW, ALL)
    before = await parts_of(settings)
    erased = [row[0] for row in await connection.fetch("SELECT event_id FROM audit_events WHERE log_index IN (3, 33)")]
    await erase(settings, Catalog(), Erasure("asked for", "tests", event_ids=erased), dry_run=False)
    met = set()
    for step in (*ERASING[:-1], "begun", *ERASING[-1:]):
        code, steps = await killed(step)
        assert (code, steps[-1]) == (-9, step)
        met |= set(steps)
        assert await problems(settings) == [], step
        assert (await verified(settings)).verified == 120
    assert met == set(ERASING)
    code, steps = await killed("")
    assert (code, steps.count("recorded")) == (0, 1)
    after = await verified(settings)
    assert (after.problem_count, after.pending, after.undeleted) == (0, [], [])
    assert [[one.archive_id for one in part.replaced] for part, _ in after.parts] == [
        [one.archive_id] for one in before
    ]
    assert sum(one.erased for _, one in after.parts) == 2
    assert (
        await connection.fetchval("SELECT count(*) FROM audit_events WHERE event_type = 'datastorage.archive.stored'")
        == 4
    )
    await nothing_else_is_there(settings, connection, tmp_path)


async def nothing_else_is_there(settings: Settings, connection: Connection, directory: Path) -> None:
    """All files are of parts that are recorded, and no run has left something to do."""
    assert await connection.fetchval("SELECT count(*) FROM archive_attempts") == 0
    archive, recorded = directory / "archive", (await list_recorded(settings))[0]
    folders = {str(folder_of(part).relative_to(archive)) for part in recorded.parts}
    ids = {str(part.archive_id) for part in recorded.parts} | {str(one) for one in recorded.metadata_ids() or ()}
    notices = {f"parts/{one.part.month}/{one.part.log_id}/{one.expiry_id}/expired.json" for one in recorded.expired}
    assert notices <= files_of(directory)
    for name in files_of(directory) - notices:
        assert name.rpartition("/")[0] in folders or (
            name.startswith("metadata/") and any(one in name for one in ids)
        ), name


async def test_an_event_that_is_erased_meanwhile(
    database_url: str, connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was erased while its part was written is recorded as archived, with its content."""
    await fill(connection, rounds=2)
    settings = settings_of(database_url, tmp_path)
    event_id = await connection.fetchval("SELECT event_id FROM audit_events WHERE log_index = 30")
    order = Erasure("asked for", "tests", event_ids=[event_id])
    erasures: list[asyncio.Task[Erased]] = []

    def on_step(name: str) -> None:
        if name == "manifest written" and not erasures:
            erasures.append(asyncio.create_task(erase(settings, Catalog(), order, dry_run=False)))

    verify = read_back

    def verify_later(*arguments: Any) -> Any:
        until(lambda: erasures[0].done() or None)  # in a thread: it goes on meanwhile
        return verify(*arguments)

    monkeypatch.setattr("app.archive.run.read_back", verify_later)
    done = await run.run(settings, NOW, Selection(month=OLD.date().replace(day=1)), on_step=on_step)
    assert (await erasures[0]).events == [event_id]
    [part] = done.parts
    assert (part.events, part.erased) == (60, 1)
    assert await problems(settings) == []
    assert (await verified(settings)).pending == []
    assert len(await parts_of(settings)) == 1
    assert await connection.fetchval("SELECT count(*) FROM archive_attempts") == 0


async def test_an_event_that_is_erased_later(database_url: str, connection: Connection, tmp_path: Path) -> None:
    """Nobody is told that the archive still has what was erased since."""
    await fill(connection, rounds=2)
    settings = settings_of(database_url, tmp_path)
    await run.run(settings, NOW, ALL)
    event_id = await connection.fetchval("SELECT event_id FROM audit_events WHERE log_index = 30")
    await erase(settings, Catalog(), Erasure("asked for", "tests", event_ids=[event_id]), dry_run=False)
    assert await problems(settings) == []
    [(part, erased)] = (await verified(settings)).pending
    assert (part.month, str(erased)) == (f"{OLD:%Y-%m}", "{[30,31)}")
