"""Whoever decides what is over by a wrong clock destroys what should stay: then nothing is decided."""

import asyncio
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path

import pytest

from app.archive import run
from app.cli import main
from app.retention import clock
from app.retention.clock import agreed_time
from tests.archive.archived import ALL, DAYS, NOW, PEM, Connection, files_of, fill, settings_of, within_a_day

pytestmark = pytest.mark.damaged  # the verification at the end of every test does not know purges
COMMANDS = (
    ("retention", "plan"),
    ("retention", "run"),
    ("archive", "plan"),
    ("archive", "plan", "--expire"),
    ("archive", "run", "--remove", "--expire"),
)


def by(difference: timedelta) -> Callable[[], datetime]:
    return lambda: datetime.now(UTC) + difference


async def test_a_clock_that_is_wrong(
    database_url: str,
    connection: Connection,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A machine whose clock is a year ahead purges, removes and deletes what has a year to stay."""
    await fill(connection, rounds=1)
    settings = settings_of(database_url, tmp_path, **DAYS)
    await run.run(settings, NOW, replace(ALL, remove=True))
    await fill(connection, rounds=1)
    key = tmp_path / "key"
    key.write_text(PEM)
    named = {"database_url": database_url, "archive_url": str(settings.archive_url), "checkpoint_key_file": key}
    for name, value in (named | DAYS).items():
        monkeypatch.setenv(f"DATASTORAGE_{name.upper()}", str(value))
    monkeypatch.setattr("signal.signal", lambda *_: None)  # not in the main thread, which has the connection

    async def state() -> tuple[int, set[str]]:
        return await connection.fetchval("SELECT count(*) FROM audit_events"), files_of(tmp_path)

    before = await state()
    for days, command in product((365, -365), COMMANDS):
        monkeypatch.setattr(clock, "machine_time", by(timedelta(days=days)))
        monkeypatch.setattr(sys, "argv", ["datastorage", *command])
        assert await asyncio.to_thread(main) == 2, command
        assert "The clock of this machine is at" in "".join(capsys.readouterr()), command
        assert await state() == before, command
    monkeypatch.setattr(clock, "machine_time", by(timedelta()))
    for command in COMMANDS:
        monkeypatch.setattr(sys, "argv", ["datastorage", *command])
        assert await asyncio.to_thread(main) == 0, command
    assert await state() != before


async def test_the_earlier_time_counts(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clocks that differ a little are an error; or the one that is ahead decides."""
    settings = settings_of(database_url, tmp_path)
    shown = list[datetime]()

    def shows(seconds: int) -> Callable[[], datetime]:
        def show() -> datetime:
            shown.append(datetime.now(UTC) + timedelta(seconds=seconds))
            return shown[-1]

        return show

    monkeypatch.setattr(clock, "machine_time", shows(-100))
    assert await agreed_time(settings) == shown[0]
    monkeypatch.setattr(clock, "machine_time", shows(100))
    assert await agreed_time(settings) < shown[2]


def test_the_tests_own_time() -> None:
    """Tests that begin within minutes of midnight have events of now in two days, or in two months, and fail."""
    for seconds in range(0, 86400, 5):
        time = within_a_day(datetime(2028, 3, 1, tzinfo=UTC) + timedelta(seconds=seconds))
        assert (time - timedelta(seconds=30)).date() == (time + timedelta(minutes=9)).date()
