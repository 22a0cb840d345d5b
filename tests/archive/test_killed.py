"""Runs that end at every step: the next one goes on, nothing is archived twice or only half, and nothing is left that nobody names."""

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from app.archive import run
from app.archive.run import Selection
from app.events.catalog import Catalog
from app.retention.erase import Erased, Erasure, erase
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


async def _run(step: str, url: str, directory: Path) -> tuple[int, list[str]]:
    """The exit code of a run that is to be killed at a step, and the steps that it has come to."""
    command = [sys.executable, "-m", "tests.archive.killed", step, url, str(directory)]
    done = await asyncio.to_thread(subprocess.run, command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode in {0, -9}, done.stderr
    return done.returncode, done.stdout.splitlines()


async def test_killed_at_every_step(database_url: str, connection: Connection, tmp_path: Path) -> None:
    """A run that was killed leaves files for ever, a part that is recorded but not whole, or an event in two parts."""
    await fill(connection)
    settings = settings_of(database_url, tmp_path)
    met = set()
    for step in (*STEPS[:-1], "begun", *STEPS[-1:], *STEPS[:3]):
        code, steps = await _run(step, database_url, tmp_path)
        assert (code, steps[-1]) == (-9, step)
        met |= set(steps)
        assert await problems(settings) == [], step
    assert met == set(STEPS)
    code, steps = await _run("", database_url, tmp_path)
    assert code == 0
    assert set(steps) <= met
    result = await verified(settings)
    assert (result.verified, result.problem_count) == (300, 0)
    assert sum(part.positions.size for part, _ in result.parts) == 300
    assert await connection.fetchval("SELECT count(*) FROM archive_attempts") == 0
    archive, recorded = tmp_path / "archive", await parts_of(settings)
    folders = {str(folder_of(part).relative_to(archive)) for part in recorded}
    ids = {str(part.archive_id) for part in recorded}
    for name in files_of(tmp_path):
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

    verify = run._verify

    def verify_later(*arguments: Any) -> Any:
        until(lambda: erasures[0].done() or None)  # in a thread: it goes on meanwhile
        return verify(*arguments)

    monkeypatch.setattr(run, "_verify", verify_later)
    done = await run.run(settings, NOW, Selection(month=OLD.date().replace(day=1)), on_step=on_step)
    assert (await erasures[0]).events == [event_id]
    [part] = done.parts
    assert (part.events, part.erased) == (60, 1)
    assert await problems(settings) == []
    assert (await verified(settings)).erased_since == 0
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
    assert (await verified(settings)).erased_since == 1
