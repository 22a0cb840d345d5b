"""The events of a part come back as the log has them, in a file."""

import argparse
import asyncio
import stat
from datetime import date
from pathlib import Path
from typing import Any
from uuid import uuid4

import orjson
import pytest

from app.archive import run
from app.archive.restoring import Restored, Wanted, restore
from app.cli import copying
from app.errors import Fatal
from app.events.catalog import Catalog
from app.export.file import event_record
from app.export.row import exported_event
from app.export.select import sealed_rows
from app.query.filter import EventFilter
from app.retention.erase import Erasure, erase
from app.settings import Settings
from app.verify.processes import connect_for_verification
from tests.archive.archived import ALL, NOW, OLD, PUBLIC, Connection, fill, folder_of, parts_of, publish, settings_of
from tests.archive.test_reading import BETWEEN, fill_with_all, hostile, purge_before
from tests.logs import FIRST_LOG
from tests.sealed import seal

pytestmark = pytest.mark.damaged  # the verification at the end of every test does not know purges
MONTH = OLD.date().replace(day=1)


async def restored(settings: Settings, file: Path, month: date = MONTH) -> Restored:
    return await restore(settings, [PUBLIC], Wanted(month), file)


def lines_of(file: Path) -> dict[int, dict[str, Any]]:
    return {event["log_index"]: event for event in map(orjson.loads, file.read_bytes().splitlines())}


async def exported(settings: Settings) -> dict[int, dict[str, Any]]:
    """The month's events as an export has them."""
    connection = await connect_for_verification(settings)
    found = {}
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            async for rows in sealed_rows(connection, EventFilter(include="all"), FIRST_LOG, 0, 10_000):
                for row in rows:
                    event = orjson.loads(event_record("ndjson", exported_event(row, redacted=False)))
                    if event["event_date"].startswith(f"{MONTH:%Y-%m}"):
                        found[event["log_index"]] = event
    finally:
        await connection.close()
    return found


async def test_as_exported(database_url: str, connection: Connection, tmp_path: Path) -> None:
    """A member of a restored event is missing, or not what an export has; or the file is not one that `verify --copy` reads."""
    await fill_with_all(connection)
    settings = settings_of(database_url, tmp_path)
    await run.run(settings, NOW, ALL)
    known, file = await exported(settings), tmp_path / "month.ndjson"
    done = await restored(settings, file)
    assert (done.events, done.erased, done.problems) == (len(known), 0, [])
    assert lines_of(file) == known
    assert list(orjson.loads(file.read_bytes().split(b"\n")[0])) == list(next(iter(known.values())))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert sorted(one.name for one in tmp_path.iterdir()) == ["archive", "month.ndjson"]
    assert (await compared(settings, file)).count == 0
    await purge_before(settings, BETWEEN)
    result = await compared(settings, file)
    assert (result.count, result.counts["purged"]) == (0, len(known))
    with pytest.raises(Fatal, match="is there already"):
        await restored(settings, file)
    again = tmp_path / "again.ndjson"
    assert (await restored(settings, again)).events == len(known)
    assert again.read_bytes() == file.read_bytes()


async def compared(settings: Settings, file: Path) -> Any:
    arguments = argparse.Namespace(copy=[file], key=None, filtered=True)
    return await copying._check(arguments, settings)


async def test_erased(database_url: str, connection: Connection, tmp_path: Path) -> None:
    """What was erased comes back from files that have it still."""
    await fill(connection, rounds=2)
    secret = {"actor_id": "secret-ada", "event_data": '{"event_type": "x", "who": "secret-ada"}'}
    [event_id] = await seal(connection, "rr-secret", hostile(1, **secret))
    await publish(connection)
    settings = settings_of(database_url, tmp_path)
    await run.run(settings, NOW, ALL)
    await erase(settings, Catalog(), Erasure("asked for", "tests", event_ids=[event_id]), dry_run=False)
    assert b"secret-ada" in b"".join(one.read_bytes() for one in (tmp_path / "archive").rglob("*.parquet"))
    file = tmp_path / "month.ndjson"
    done = await restored(settings, file)
    assert (done.events, done.erased) == (61, 1)
    assert b"secret-ada" not in file.read_bytes()
    [event] = [one for one in lines_of(file).values() if one["event_id"] == str(event_id)]
    assert (event["actor_id"], event["payload_salt"], event["event_data"]) == ("erased", None, {"event_type": "x"})
    assert len(event["payload_commitment"]) == 64
    assert (await compared(settings, file)).count == 0


async def test_refused(database_url: str, connection: Connection, tmp_path: Path) -> None:
    """A part that somebody has changed is restored, or half a file stays, or what is asked for is not there and nobody says so."""
    await fill(connection, rounds=2)
    settings = settings_of(database_url, tmp_path)
    await run.run(settings, NOW, ALL)
    file = tmp_path / "month.ndjson"
    for wanted in (Wanted(date(2001, 1, 1)), Wanted(archive_id=uuid4()), Wanted()):
        with pytest.raises(Fatal, match="no such part"):
            await restore(settings, [PUBLIC], wanted, file)
    [_, part] = await parts_of(settings)
    assert (await restore(settings, [PUBLIC], Wanted(archive_id=part.archive_id), file)).events == 60
    file.unlink()
    events = folder_of(part) / "events-0.parquet"
    content = bytearray(events.read_bytes())
    content[100] ^= 1
    events.write_bytes(content)
    done = await restored(settings, file)
    assert done.events == 0
    assert any(one.startswith("edited: events-0.parquet") for one in done.problems[0].problems)
    assert [one.name for one in tmp_path.iterdir()] == ["archive"]
    content[100] ^= 1
    events.write_bytes(content)
    elsewhere = settings.model_copy(update={"archive_url": f"file://{tmp_path}/elsewhere"})
    assert "not in this archive" in (await restored(elsewhere, file)).problems[0].problems[0]
    both = await asyncio.gather(restored(settings, file), restored(settings, file), return_exceptions=True)
    assert sum(isinstance(one, Restored) for one in both) >= 1
    assert len(lines_of(file)) == 60
