"""One event that only the archive has: read by its id, shown in the browser, and proved."""

import asyncio
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from app.archive import run
from app.archive.reading import ArchivedRow, ArchiveReader
from app.db import create_engine
from app.errors import DatabaseBusy
from app.events.catalog import Catalog
from app.events.ids import random_event_id
from app.retention.erase import Erasure, erase
from app.settings import Settings
from app.tlog.proof import verify_proof_file
from tests.archive.archived import ALL, NOW, OLD, PUBLIC, Connection, fill, folder_of, parts_of, publish, settings_of
from tests.archive.test_reading import (
    BETWEEN,
    DAMAGES,
    EVENTS,
    archived,
    break_row,
    change_file,
    client_of,
    fill_with_all,
    hostile,
    purge_before,
    walked,
    without_mark,
)
from tests.logs import FIRST_LOG
from tests.sealed import seal
from tests.services import ROOT, Service

pytestmark = pytest.mark.damaged  # the verification at the end of every test does not know purges
Start = Callable[..., Service]


def id_of(time: Any) -> UUID:
    """An id as the service gives it to an event that arrives at a time."""
    return random_event_id(int(time.timestamp() * 1000), uuid4().bytes[:10])


async def test_as_before(database_url: str, connection: Connection, tmp_path: Path, service: Start) -> None:
    """An event that was removed from Postgres is 404 by its id, or another one is shown than before, or its proof proves nothing."""
    await fill_with_all(connection)
    timed = await seal(connection, "rr-timed", *(hostile(n, event_id=id_of(OLD)) for n in range(3)))
    strays = await seal(connection, "rr-stray", hostile(1, event_id=id_of(NOW)), hostile(2, event_id=UUID(int=0)))
    await publish(connection)
    settings = settings_of(database_url, tmp_path)
    await run.run(settings, NOW, ALL)
    with client_of(service, settings, tmp_path) as client:
        every = [
            UUID(event["event_id"]) for event in walked(client, {"include": "all", "until": BETWEEN.isoformat()}, 1000)
        ]
        wanted = [*timed, *strays, *every[::25]]
        before = {one: client.get(f"{EVENTS}/{one}").json() for one in wanted}
        proved = {one: client.get(f"{EVENTS}/{one}/proof").text for one in wanted}
        pages = {one: client.get(f"/ui/events/{one}").text for one in wanted}
        await purge_before(settings, BETWEEN)
        for one in wanted:
            found = client.get(f"{EVENTS}/{one}").json()
            assert UUID(found["archive_id"])
            assert without_mark([found]) == [before[one]]
            proof = client.get(f"{EVENTS}/{one}/proof")
            assert (proof.status_code, verify_proof_file(proof.content, [PUBLIC]).record["event_id"]) == (200, str(one))
            assert proof.text.splitlines()[:2] == proved[one].splitlines()[:2]
            opened = client.get(f"{EVENTS}/{one}/proof", params={"open": "true"})
            verified = verify_proof_file(opened.content, [PUBLIC])
            assert verified.committed is not None
            page = client.get(f"/ui/events/{one}")
            assert page.status_code == 200
            assert '<span class="mark ">archived</span>' in page.text
            assert members_on(page.text) == members_on(pages[one])
        for missing in (uuid4(), id_of(OLD), id_of(NOW), UUID(int=2**128 - 1)):
            for path in (f"{EVENTS}/{missing}", f"{EVENTS}/{missing}/proof", f"/ui/events/{missing}"):
                assert client.get(path).status_code == 404
        command = [sys.executable, "-m", "app", "event", "--url", str(client.base_url), str(timed[0])]
        done = await asyncio.to_thread(subprocess.run, command, check=True, cwd=ROOT, capture_output=True, text=True)
        assert client.get(f"{EVENTS}/{timed[0]}").json()["archive_id"] in done.stdout
    with client_of(service, settings.model_copy(update={"archive_url": None}), tmp_path) as client:
        for path in (f"{EVENTS}/{timed[0]}", f"{EVENTS}/{uuid4()}/proof"):
            answer = client.get(path)
            assert (answer.status_code, "DATASTORAGE_ARCHIVE_URL" in answer.json()["detail"]) == (404, True)


def members_on(page: str) -> list[tuple[str, str]]:
    """The members that a page shows, with their texts."""
    return re.findall(r'data-member="([^"]*)"[^>]*>([^<]*)<', page)


async def test_erased(database_url: str, connection: Connection, tmp_path: Path, service: Start) -> None:
    """By its id an event is shown as it was before it was erased, as long as a file has that still; or it cannot be proved any more."""
    secret = {
        "actor_id": "secret-ada",
        "event_data": '{"event_type": "x", "who": "secret-ada"}',
        "event_id": id_of(OLD),
    }
    await fill(connection, rounds=2)
    [event_id] = await seal(connection, "rr-secret", hostile(1, **secret))
    await publish(connection)
    settings = settings_of(database_url, tmp_path)
    await run.run(settings, NOW, ALL)
    await erase(settings, Catalog(), Erasure("asked for", "tests", event_ids=[event_id]), dry_run=False)
    await purge_before(settings, BETWEEN)
    with client_of(service, settings, tmp_path) as client:
        for _ in range(2):
            shown = client.get(f"{EVENTS}/{event_id}").json()
            assert (shown["actor_id"], shown["event_data"], "sealed" in shown) == ("erased", {"event_type": "x"}, False)
            opened = client.get(f"{EVENTS}/{event_id}/proof", params={"open": "true"})
            assert verify_proof_file(opened.content, [PUBLIC]).committed is None
            page = client.get(f"/ui/events/{event_id}")
            assert '<span class="mark ">erased</span>' in page.text
            assert "secret-ada" not in str(shown) + opened.text + page.text
            await run.run(settings, NOW, ALL)  # its files are written again


async def test_damaged(database_url: str, connection: Connection, tmp_path: Path, service: Start) -> None:
    """An event of a file that was changed is shown as if the log had it, or one of a file that is gone as if it had never been."""
    await fill(connection, rounds=2)
    [victim] = await seal(connection, "a-first", hostile(1, event_id=id_of(OLD)))  # the first row of its file
    await publish(connection)
    settings = settings_of(database_url, tmp_path)
    await run.run(settings, NOW, ALL)
    await purge_before(settings, BETWEEN)
    folder, copy = folder_of((await parts_of(settings))[1]), tmp_path / "copy"
    shutil.copytree(folder, copy)
    for damage, error in DAMAGES:
        damage(folder)
        async with finder_of(settings) as find:
            with pytest.raises(error):
                await find(victim)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(copy, folder)
    break_row(folder)
    with client_of(service, settings, tmp_path) as client:
        shown = client.get(f"{EVENTS}/{victim}").json()
        assert (shown["actor_id"], shown["sealed"]) == ("y", False)
        answer = client.get(f"{EVENTS}/{victim}/proof")
        assert (answer.status_code, "not as it was logged" in answer.json()["detail"]) == (409, True)
        page = client.get(f"/ui/events/{victim}")
        assert '<span class="mark bad">changed</span>' in page.text


async def test_same_id(database_url: str, connection: Connection, tmp_path: Path) -> None:
    """Somebody gives a row of the archive the id of another event, and hides that."""
    await fill(connection, rounds=2)
    event_id = id_of(OLD)
    await seal(connection, "rr-true", hostile(1, event_id=event_id))
    await seal(connection, "rr-later", hostile(30))
    await publish(connection)
    settings = settings_of(database_url, tmp_path)
    await run.run(settings, NOW, ALL)
    await purge_before(settings, BETWEEN)
    change_file(folder_of((await parts_of(settings))[1]), "event_id", "rr-later", event_id.bytes)
    async with finder_of(settings) as find:
        found = await find(event_id)
        assert found is not None
        assert (found.is_logged, found.row["correlation_id"]) == (True, "rr-true")


async def test_time(database_url: str, connection: Connection, tmp_path: Path) -> None:
    """Where there is no time for all of the archive, an event is said not to be there."""
    settings = await archived(database_url, connection, tmp_path)
    async with finder_of(settings) as find:
        for event_id in (UUID(int=2**127), UUID(int=2**127 + 2**120)):  # statistics rule out neither
            with pytest.raises(DatabaseBusy, match="archive=include"):
                await find(event_id, seconds=-1)
            assert await find(event_id) is None


@asynccontextmanager
async def finder_of(settings: Settings) -> AsyncIterator[Callable[..., Awaitable[ArchivedRow | None]]]:
    engine, reader = create_engine(settings), ArchiveReader(settings)

    async def find(event_id: UUID, seconds: float = 20) -> ArchivedRow | None:
        return await reader.find(engine, FIRST_LOG, event_id, seconds)

    try:
        yield find
    finally:
        await reader.close()
        await engine.dispose()


async def test_no_json(database_url: str, connection: Connection, tmp_path: Path, service: Start) -> None:
    """A payload of the archive that somebody has made no JSON is an error that nobody understands, or one in the middle of an answer."""
    await fill(connection, rounds=2)
    [victim] = await seal(connection, "rr-victim", hostile(1))
    await publish(connection)
    settings = settings_of(database_url, tmp_path)
    await run.run(settings, NOW, ALL)
    await purge_before(settings, BETWEEN)
    change_file(folder_of((await parts_of(settings))[1]), "event_data", "rr-victim", '{"a": ')
    with client_of(service, settings, tmp_path) as client:
        for path in (f"{EVENTS}/{victim}", f"{EVENTS}/{victim}/proof", f"{EVENTS}?archive=include&limit=1000"):
            answer = client.get(path)
            assert (answer.status_code, "is not JSON" in answer.json()["detail"]) == (500, True), path
        assert client.get(f"/ui/events/{victim}").status_code == 500
