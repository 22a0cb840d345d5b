"""An archive of many parts: what a part, a run and a question cost does not grow with their number more than it has to."""

import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.archive import run, session
from app.archive.in_time import find_oldest
from app.archive.question import ALL_READ, Found, PartToRead, Question
from app.archive.reader import Search
from app.archive.session import Selection
from app.archive.storage import Storage, archive_storage
from app.archive.table import ArchiveTable
from app.db import portions
from app.errors import Fatal
from app.events.positions import NO_POSITIONS
from app.settings import Settings
from app.tlog import evidence
from tests.archive.archived import (
    ALL,
    DAYS,
    NOW,
    OLD,
    OLDER,
    Connection,
    fill,
    folder_of,
    parts_of,
    problems,
    publish,
    settings_of,
    verified,
)
from tests.archive.test_expiry import EXPIRING
from tests.logs import FIRST_LOG
from tests.sealed import seal

pytestmark = pytest.mark.damaged  # the verification at the end of every test does not know purges
TINY = Selection(part_events=5)
MONTHS = f"{OLDER:%Y-%m}", f"{OLD:%Y-%m}"


class Counted:
    """How often some functions are called."""

    def __init__(self, patch: pytest.MonkeyPatch, *functions: tuple[Any, str]) -> None:
        self.calls: list[str] = []
        for owner, name in functions:
            patch.setattr(owner, name, self._counted(getattr(owner, name), name))

    def _counted(self, real: Any, name: str) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            self.calls.append(name)
            return real(*arguments, **named)

        return call

    def since_last(self) -> list[str]:
        """The calls since this was asked last."""
        calls, self.calls = self.calls, []
        return calls


async def archived(
    database_url: str, connection: Connection, tmp_path: Path, selection: Selection, *, rounds: int
) -> Settings:
    """Archive two months of events. The settings of who did."""
    await fill(connection, rounds=rounds)
    settings = settings_of(database_url, tmp_path)
    await run.run(settings, NOW, selection)
    return settings


async def test_the_metadata_of_the_table(
    database_url: str, connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each part adds a snapshot and three files that all later ones have to read, for ever; or an engine that reads a snapshot loses it."""
    monkeypatch.setattr("app.archive.table.SNAPSHOTS_MAX", 4)
    await fill(connection, rounds=1)
    settings, metadata = settings_of(database_url, tmp_path), tmp_path / "archive" / "metadata"
    storage, pointers, snapshots, files = archive_storage(settings), list[str](), list[int](), list[int]()

    async def add_one(selection: Selection) -> None:
        class OneIsEnough(Exception): ...

        def stop(step: str) -> None:
            if step == "recorded":
                raise OneIsEnough

        with pytest.raises(OneIsEnough):
            await run.run(settings, NOW, selection, on_step=stop)

    for count in range(1, 13):
        await add_one(TINY)
        pointers.append(await connection.fetchval("SELECT metadata_location FROM iceberg_tables"))
        table = ArchiveTable.load(storage, pointers[-1])
        snapshots.append(len(table.writers))
        files.append(len([*metadata.iterdir()]))
        assert len([*table.files()]) == count
        for pointer in pointers[-4:]:  # of the snapshots that it has, and of those before it was written anew
            assert [*ArchiveTable.load(storage, pointer).files()]
    assert snapshots == [1, 2, 3, 4] * 3
    assert files[4:8] == files[8:12], files  # it has come to its end
    assert await problems(settings) == []
    assert (await verified(settings)).verified == 60


@pytest.mark.parametrize("missing", ["all of it", "manifest lists", "what the pointer names"])
@pytest.mark.parametrize("act", ["a part", "an expiry"])
async def test_metadata_that_is_missing(
    database_url: str, connection: Connection, tmp_path: Path, missing: str, act: str
) -> None:
    """Once files of the table are gone, as for a Postgres that was restored from before an expiry, no run ends any more."""
    await fill(connection, rounds=1)
    settings, metadata = settings_of(database_url, tmp_path, **DAYS), tmp_path / "archive" / "metadata"
    await run.run(settings, NOW, replace(ALL, remove=act == "an expiry"))
    if act == "a part":
        old = {"event_timestamp": OLD, "event_date": OLD.date()}
        await seal(connection, "rr-late", old, old)
        await publish(connection)
    wanted = {"all of it": "*", "manifest lists": "snap-*", "what the pointer names": "00001-*"}[missing]
    gone = [*metadata.glob(wanted)]
    assert gone
    for one in gone:
        one.unlink()
    assert any("removed: " in one for one in await problems(settings))
    if act == "a part":
        done = await run.run(settings, NOW, ALL)
        assert len(done.parts) == 1
    else:
        done = await run.run(settings, NOW, replace(EXPIRING, month=OLD.date().replace(day=1)))
        assert done.expiries is not None
        assert len(done.expiries.expired) == 1
    assert done.pending == []
    assert await problems(settings) == []
    assert len((await verified(settings)).parts) == (3 if act == "a part" else 1)


async def test_parts_that_are_missing_too(database_url: str, connection: Connection, tmp_path: Path) -> None:
    """A table is made anew without a part whose files are missing, and nobody is told; or one of an archive that is not mounted."""
    await fill(connection, rounds=1)
    settings, archive = settings_of(database_url, tmp_path), tmp_path / "archive"
    await run.run(settings, NOW, ALL)
    [older, _] = await parts_of(settings)
    old = {"event_timestamp": OLD, "event_date": OLD.date()}
    await seal(connection, "rr-late", old, old)
    await publish(connection)
    archive.rename(tmp_path / "not mounted")
    with pytest.raises(Fatal, match=f"is file://{archive} the archive"):
        await run.run(settings, NOW, ALL)
    shutil.rmtree(archive)
    (tmp_path / "not mounted").rename(archive)
    shutil.rmtree(archive / "metadata")
    (folder_of(older) / "events-0.parquet").rename(tmp_path / "kept")
    done = await run.run(settings, NOW, ALL)
    assert done.pending == [
        f"part {older.archive_id} of {older.month} is not in the table any more: its files are not there"
    ]
    (tmp_path / "kept").rename(folder_of(older) / "events-0.parquet")
    assert [one.partition(":")[0] for one in await problems(settings)] == ["rolled back"]


async def test_how_often_a_run_reads_the_log(
    database_url: str, connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run reads all that the log records of parts once for each month, and a run with much to remove once for each part."""
    await fill(connection, rounds=1)
    settings = settings_of(database_url, tmp_path)
    counted = Counted(monkeypatch, (session, "read_recorded"), (session, "read_erased"))
    await run.run(settings, NOW, TINY)
    assert sorted(counted.since_last()) == ["read_erased"] + ["read_recorded"] * 13  # before the first, and after each
    await run.run(settings, NOW, TINY)
    assert counted.since_last() == ["read_recorded"]
    done = await run.run(settings, NOW, replace(TINY, remove=True))
    assert done.removal is not None
    assert len(done.removal.removed) == 12
    assert sorted(counted.since_last()) == ["read_erased", "read_recorded"]


async def test_in_how_many_portions_the_log_is_read(
    database_url: str, connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the log records of a hundred parts is asked for a few at a time, which takes a round trip for each few."""
    await archived(database_url, connection, tmp_path, replace(TINY, part_events=2), rounds=2)
    sizes = list[int]()

    async def counted(*arguments: Any, **named: Any) -> Any:
        async for rows in portions(*arguments, **named):
            sizes.append(len(rows))
            yield rows

    monkeypatch.setattr("app.tlog.evidence.portions", counted)
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        await evidence.read_evidence(connection, FIRST_LOG)
    assert sum(sizes) == 60
    assert len(sizes) <= 6, sizes


async def to_read(settings: Settings) -> tuple[PartToRead, ...]:
    """All parts, as if Postgres had nothing of them."""
    return tuple(
        PartToRead(
            *(one.archive_id, one.location, one.manifest_sha256, one.month, one.log_id, FIRST_LOG.name),
            *(one.positions, NO_POSITIONS),
        )
        for one in await parts_of(settings)
    )


def asked(search: Search, parts: tuple[PartToRead, ...], correlation_id: str) -> int:
    """How many events are found of a correlation."""
    question = Question(
        *(("correlation_id",), {"correlation_id": correlation_id}, "", None, ALL_READ, 100, parts, 60.0, 2**20)
    )
    found = search.answer(question)
    assert isinstance(found, Found), found
    return len(found.rows)


async def test_what_a_question_reads(
    database_url: str, connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each question reads something of each part, also of those of which it is known that they have nothing of it."""
    settings = await archived(database_url, connection, tmp_path, TINY, rounds=2)
    parts = await to_read(settings)
    search = Search(archive_storage(settings))
    counted = Counted(monkeypatch, (Storage, "read"), (Storage, "open"))

    def ask(correlation_id: str) -> int:
        return asked(search, parts, correlation_id)

    assert ask("rr-nobody") == 0
    assert sorted(counted.since_last()) == ["open"] * 24 + ["read"] * 24
    assert ask("rr-nobody either") == 0
    assert counted.since_last() == []
    assert ask(f"rr-{OLD:%m}-0") == 30
    # Of the six files that have some: the footer, the columns of the keys, and the rows.
    assert counted.since_last() == ["open"] * 18


async def test_what_was_read_ahead(
    database_url: str, connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that failed when a part was read ahead is said to be away although it answers when the part's turn comes."""
    settings = await archived(database_url, connection, tmp_path, ALL, rounds=1)
    parts = await to_read(settings)
    really_open, failed = Storage.open, list[str]()

    def fails_ahead(storage: Storage, name: str) -> Any:
        if threading.current_thread() is threading.main_thread():
            return really_open(storage, name)
        failed.append(storage.url)
        raise OSError("away")

    monkeypatch.setattr(Storage, "open", fails_ahead)
    assert asked(Search(archive_storage(settings)), parts, f"rr-{OLDER:%m}-0") == 30
    assert failed == [min(parts, key=lambda one: one.month).location]


async def test_what_is_read_ahead_too_slowly(
    database_url: str, connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A question lasts longer than it may, because the storage is slow where it was to be read ahead."""
    settings = await archived(database_url, connection, tmp_path, ALL, rounds=1)
    search, parts = Search(archive_storage(settings)), await to_read(settings)
    really_open, is_fast = Storage.open, threading.Event()

    def waits_ahead(storage: Storage, name: str) -> Any:
        if threading.current_thread() is not threading.main_thread():
            is_fast.wait()
        return really_open(storage, name)

    monkeypatch.setattr(Storage, "open", waits_ahead)
    monkeypatch.setattr("app.archive.reader.monotonic", lambda: 0.0)
    try:
        found = search.answer(Question((), {}, "", None, ALL_READ, 100, parts, 0.0, 2**20))
    finally:
        is_fast.set()
    assert isinstance(found, Found)
    assert (len(found.rows), found.read_to > ALL_READ) == (30, True)  # of the newer month alone, and it says so
    assert asked(search, parts, f"rr-{OLDER:%m}-0") == 30


async def test_what_later_questions_read_ahead(
    database_url: str, connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part that was read ahead for a question that ended before it is read anew for the next one."""
    settings = await archived(database_url, connection, tmp_path, TINY, rounds=2)
    search, parts = Search(archive_storage(settings)), of_many_months(await to_read(settings))
    counted = Counted(monkeypatch, (Storage, "read"))
    question = Question((), {}, "", None, ALL_READ, 8, parts, 60.0, 2**20)
    assert isinstance(search.answer(question), Found)
    assert search._coming
    assert asked(search, parts, "rr-nobody") == 0
    assert len(counted.calls) == len(parts)


async def test_the_oldest_of_many_parts(
    database_url: str, connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first page of an export reads something of each month of the archive."""
    settings = await archived(database_url, connection, tmp_path, TINY, rounds=2)
    search, parts = Search(archive_storage(settings)), of_many_months(await to_read(settings))
    counted = Counted(monkeypatch, (Storage, "read"))
    for count, months in ((5, 1), (6, 2), (1_000, len(parts))):
        found = find_oldest(search, Question((), {}, "", None, ALL_READ, count, parts, 60.0, 2**20)).oldest()
        assert len(found.times) == min(count, 5 * len(parts))
        assert len(counted.calls) == months


def of_many_months(parts: tuple[PartToRead, ...]) -> tuple[PartToRead, ...]:
    """Parts as if each were of a month of its own: two of the newest ones of theirs, the others of years before."""
    newest = [max((one for one in parts if one.month == month), key=lambda one: one.wanted.ranges) for month in MONTHS]
    others = [one for one in parts if one not in newest]
    return (*newest, *(one._replace(month=f"{year}-01") for year, one in enumerate(others, 1990)))


def test_statistics_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics of all files that were ever read stay in memory."""
    monkeypatch.setattr("app.archive.reader._GROUPS_MAX", 10)
    search = Search(Storage("file:///nowhere"))
    for number in range(9):
        search._statistics_of((str(number), ""), lambda: _Footer(3))
        assert search._groups == sum(one.groups for one in search._statistics.values()) <= 10
    assert [name for name, _ in search._statistics] == ["6", "7", "8"]
    search._statistics_of(("large", ""), lambda: _Footer(30))
    assert [name for name, _ in search._statistics] == ["large"]


class _Footer:
    def __init__(self, groups: int) -> None:
        self.num_row_groups = groups
