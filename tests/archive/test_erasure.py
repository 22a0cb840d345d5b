"""Events that are erased after they were archived: the next run has them gone from all files, and all of it still proves itself."""

import asyncio
import shutil
import sys
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import orjson
import pyarrow.parquet as pq
import pytest
from pyiceberg.io.pyarrow import PyArrowFileIO
from pyiceberg.serializers import FromInputFile

from app.archive import compare, erasing, event_file, run
from app.archive.check import Checker, check_chain
from app.archive.manifest import PartManifest, open_manifest
from app.archive.recorded import count_in_archive
from app.archive.session import read_back
from app.archive.storage import Storage, directory_storage
from app.cli import main
from app.errors import Fatal
from app.events.catalog import Catalog
from app.retention.erase import Erasure, erase
from app.settings import Settings
from tests.archive.archived import (
    ALL,
    NOW,
    OLD,
    PEM,
    PUBLIC,
    Connection,
    files_of,
    fill,
    folder_of,
    parts_of,
    problems,
    publish,
    rows_of,
    settings_of,
    verified,
)
from tests.sealed import seal
from tests.waiting import until

SECRET = "zz-secret-of-ada"  # sorts last, so that it is the largest value of each column
SALT = b"a salt of 16 byt"
COLUMNS: dict[str, Any] = {
    "event_timestamp": OLD,
    "event_date": OLD.date(),
    "actor_id": SECRET,
    "resource_id": SECRET,
    "resource_name": SECRET,
    "error_message": SECRET,
    "payload_salt": SALT,
    "event_data": f'{{"event_type": "gateway.signal.received", "who": "{SECRET}"}}',
}


async def fill_with_secret(connection: Connection) -> UUID:
    """Events of two months, and one of the second with a secret in every column that an erasure empties."""
    await fill(connection, rounds=2)
    await seal(connection, "rr-secret", COLUMNS)
    await publish(connection)
    event_id: UUID = await connection.fetchval("SELECT event_id FROM audit_events WHERE actor_id = $1", SECRET)
    return event_id


async def erase_one(settings: Settings, event_id: UUID) -> UUID:
    done = await erase(settings, Catalog(), Erasure("asked for", "tests", event_ids=[event_id]), dry_run=False)
    assert done.events == [event_id]
    return done.erasure_id


def everything_in(directory: Path) -> str:
    """All that can be read in the archive's files: rows, smallest and largest values, entries of the table, JSON, and names."""
    archive, found = directory / "archive", [str(sorted(files_of(directory)))]
    for path in sorted(one for one in archive.rglob("*") if one.is_file()):
        found.append(path.read_bytes().decode("latin-1"))
        if path.suffix == ".parquet":
            found += [repr(pq.read_table(path).to_pylist()), repr(pq.read_metadata(path).to_dict())]
        if path.name.endswith(".metadata.json"):
            io = PyArrowFileIO()
            for snapshot in FromInputFile.table_metadata(io.new_input(str(path))).snapshots:
                for manifest in snapshot.manifests(io):
                    found += [str(dict(one.data_file.upper_bounds)) for one in manifest.fetch_manifest_entry(io)]
    return "\n".join(found)


def manifest_of(folder: Path) -> PartManifest:
    return open_manifest((folder / "manifest.json").read_bytes(), [PUBLIC])[0]


def offline(directory: Path) -> list[str]:
    """What is wrong with the files by themselves, for whoever has the key alone."""
    storage = directory_storage(directory / "archive")
    with Checker([PUBLIC], 1) as checker:
        results = [checker.check(storage, folder) for folder in storage.part_folders()]
    return [one for result in results for one in result.problems] + [problem for _, problem in check_chain(results)]


async def test_erasure_reaches_the_archive(database_url: str, connection: Connection, tmp_path: Path) -> None:
    """What was erased can still be read in the archive; or its record, the table, or the log does not hold any more."""
    event_id = await fill_with_secret(connection)
    settings = settings_of(database_url, tmp_path)
    await run.run(settings, NOW, ALL)
    [other, old] = await parts_of(settings)
    before = everything_in(tmp_path)
    assert SECRET in before
    assert repr(SALT) in before
    uuid = _table_uuid(tmp_path)
    erasure_id = await erase_one(settings, event_id)
    assert await count_in_archive(settings, erasure_id) == 1
    assert [(one.month, one.erased) for one in await run.plan(settings, NOW, ALL) if one.erased] == [
        (OLD.date().replace(day=1), 1)
    ]
    [(pending, erased)] = (await verified(settings)).pending
    assert (pending.archive_id, erased.size) == (old.archive_id, 1)

    done = await run.run(settings, NOW, ALL)
    assert (done.parts, done.pending, done.deleted_attempts) == ([], [], 0)
    [manifest] = done.rewritten
    assert await problems(settings) == []
    result = await verified(settings)
    assert (result.pending, result.undeleted, result.verified) == ([], [], 121)
    assert offline(tmp_path) == []
    after = everything_in(tmp_path)
    assert SECRET not in after
    assert repr(SALT) not in after
    assert str(old.archive_id) not in str(files_of(tmp_path))
    assert _table_uuid(tmp_path) == uuid

    assert await count_in_archive(settings, erasure_id) == 0
    [same, new] = await parts_of(settings)
    assert (same.archive_id, same.replaced) == (other.archive_id, ())
    assert (new.archive_id, new.positions.ranges) == (manifest.archive_id, old.positions.ranges)
    assert manifest == manifest_of(folder_of(new))
    [replaced] = manifest.replaces
    assert (replaced.archive_id, replaced.manifest_sha256) == (old.archive_id, old.manifest_sha256)
    [because] = replaced.erased
    erasure = await connection.fetchrow(
        "SELECT log_index FROM audit_events WHERE event_type = 'datastorage.event.erased'"
    )
    assert erasure is not None
    assert (because.erasure_id, because.log_index, because.positions) == (
        erasure_id,
        erasure["log_index"],
        str(erased),
    )
    [row] = [row for row in rows_of(new) if row["event_id"] == event_id]
    stored = await connection.fetchrow("SELECT * FROM audit_events WHERE event_id = $1", event_id)
    assert stored is not None
    assert (row["actor_id"], row["payload_salt"]) == ("erased", None)
    assert row["payload_commitment"] == stored["payload_commitment"]
    assert orjson.loads(row["event_data"]) == orjson.loads(stored["event_data"])
    event = await connection.fetchval(
        "SELECT event_data FROM audit_events WHERE event_data->>'replaces' = $1", str(old.archive_id)
    )
    assert orjson.loads(event)["erased_count"] == 1

    names = files_of(tmp_path)
    again = await run.run(settings, NOW, ALL)
    assert (again.rewritten, again.parts, files_of(tmp_path)) == ([], [], names)


def _table_uuid(directory: Path) -> str:
    """By which engines know the table."""
    [newest] = sorted((directory / "archive" / "metadata").glob("*.metadata.json"))[-1:]
    return str(orjson.loads(newest.read_bytes())["table-uuid"])


async def test_erased_in_turns(database_url: str, connection: Connection, tmp_path: Path) -> None:
    """A second erasure of a part, or a part that is archived after one, breaks the line of manifests or of snapshots."""
    event_id = await fill_with_secret(connection)
    settings = settings_of(database_url, tmp_path)
    await run.run(settings, NOW, ALL)
    first = await connection.fetchval("SELECT event_id FROM audit_events WHERE log_index = 30")
    await erase_one(settings, first)
    await run.run(settings, NOW, ALL)
    await seal(connection, "rr-late", COLUMNS | {"actor_id": "late"})
    await publish(connection)
    [late] = (await run.run(settings, NOW, ALL)).parts
    await erase_one(settings, event_id)
    [manifest] = (await run.run(settings, NOW, ALL)).rewritten
    assert [one.erased_count for one in manifest.replaces] == [1, 1]
    assert manifest.erased == 2
    assert late.previous is not None
    assert late.previous.archive_id == manifest.replaces[-1].archive_id
    assert await problems(settings) == []
    assert offline(tmp_path) == []
    assert (await verified(settings)).verified == 122
    assert "late" in everything_in(tmp_path)
    await erase_one(settings, await connection.fetchval("SELECT event_id FROM audit_events WHERE actor_id = 'late'"))
    await run.run(settings, NOW, ALL)
    assert await problems(settings) == []
    assert SECRET not in everything_in(tmp_path)


async def test_part_of_several_files(
    database_url: str, connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a part with several files, or row groups, a row is lost or stays as it was, or one is in a file that the table does not have."""
    for name, value in {"_BATCH_EVENTS": 8, "GROUP_EVENTS": 16, "FILE_BYTES": 1}.items():
        monkeypatch.setattr(event_file, name, value)
    monkeypatch.setattr(erasing, "_ROWS_AT_ONCE", 5)
    await fill_with_secret(connection)
    settings = settings_of(database_url, tmp_path)
    await run.run(settings, NOW, ALL)
    old = (await parts_of(settings))[1]
    ids = [
        row["event_id"]
        for row in await connection.fetch(
            "SELECT event_id FROM audit_events WHERE log_index % 7 = 0 AND correlation_id LIKE $1 OR actor_id = $2",
            f"rr-{OLD:%m}-%",
            SECRET,
        )
    ]
    await erase(settings, Catalog(), Erasure("asked for", "tests", event_ids=ids), dry_run=False)
    [manifest] = (await run.run(settings, NOW, ALL)).rewritten
    assert len(manifest.event_files) == 4
    assert manifest.erased == len(ids) > 8
    result = await verified(settings)
    assert (result.problem_count, result.verified) == (0, 121)
    rows = rows_of((await parts_of(settings))[1])
    assert {row["event_id"] for row in rows if row["payload_commitment"]} == set(ids)
    assert (SECRET in everything_in(tmp_path), str(old.archive_id) in str(files_of(tmp_path))) == (False, False)


async def test_another_is_erased_meanwhile(
    database_url: str, connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is erased while its part is written again stays in the new part, and nobody knows."""
    event_id = await fill_with_secret(connection)
    settings = settings_of(database_url, tmp_path)
    await run.run(settings, NOW, ALL)
    await erase_one(settings, await connection.fetchval("SELECT event_id FROM audit_events WHERE log_index = 30"))
    erasures: list[asyncio.Task[UUID]] = []

    def on_step(name: str) -> None:
        if name == "manifest written" and not erasures:
            erasures.append(asyncio.create_task(erase_one(settings, event_id)))

    def verify_later(*arguments: Any) -> Any:
        until(lambda: erasures[0].done() or None)  # in a thread: it goes on meanwhile
        return read_back(*arguments)

    monkeypatch.setattr("app.archive.erasing.read_back", verify_later)
    [manifest] = (await run.run(settings, NOW, ALL, on_step=on_step)).rewritten
    await erasures[0]
    assert [one.erased_count for one in manifest.replaces] == [2]
    assert len(manifest.replaces[0].erased) == 2
    result = await verified(settings)
    assert (result.problem_count, result.pending, result.undeleted) == (0, [], [])
    assert SECRET not in everything_in(tmp_path)
    assert await connection.fetchval("SELECT count(*) FROM archive_attempts") == 0


@pytest.mark.damaged
async def test_what_was_replaced_comes_back(database_url: str, connection: Connection, tmp_path: Path) -> None:
    """Whoever kept the files puts them, or the old snapshot, back, and nobody notices that what was erased can be read again."""
    event_id = await fill_with_secret(connection)
    settings = settings_of(database_url, tmp_path)
    await run.run(settings, NOW, ALL)
    kept, archive = tmp_path / "kept", tmp_path / "archive"
    shutil.copytree(archive, kept)
    old = (await parts_of(settings))[1]
    pointer = await connection.fetchval("SELECT metadata_location FROM iceberg_tables")
    await erase_one(settings, event_id)
    await run.run(settings, NOW, ALL)
    new = (await parts_of(settings))[1]
    now = await connection.fetchval("SELECT metadata_location FROM iceberg_tables")
    whole = tmp_path / "whole"
    shutil.copytree(archive, whole)

    def anew() -> None:
        shutil.rmtree(archive)
        shutil.copytree(whole, archive)

    part = folder_of(old).relative_to(archive)
    shutil.copytree(kept / part, archive / part)
    assert [one.partition(": ")[0] for one in await problems(settings)] == ["inserted"]
    assert any("it was replaced by another part" in one for one in offline(tmp_path))
    anew()
    shutil.copytree(kept / "metadata", archive / "metadata", dirs_exist_ok=True)
    found = await problems(settings, "manifests")
    assert found
    assert all(one.startswith("inserted: metadata/") for one in found)
    shutil.copytree(kept / part, archive / part)
    await connection.execute("UPDATE iceberg_tables SET metadata_location = $1", pointer)
    found = await problems(settings, "manifests")
    assert any(one.startswith("rolled back: the newest snapshot of the table does not have") for one in found)
    assert any(one.startswith("inserted: the table has") for one in found)
    anew()
    await connection.execute("UPDATE iceberg_tables SET metadata_location = $1", now)
    shutil.copy(kept / part / "manifest.json", folder_of(new) / "manifest.json")
    found = await problems(settings, "manifests")
    assert any(one.startswith("edited: the manifest has the SHA-256") for one in found)


async def test_verified_while_a_run_is_under_way(
    database_url: str, connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a run writes while the archive is verified looks as if somebody had put it there."""
    event_id = await fill_with_secret(connection)
    settings = settings_of(database_url, tmp_path)
    await run.run(settings, NOW, ALL)
    await erase_one(settings, event_id)
    await run.run(settings, NOW, ALL)
    begun = uuid4()
    (tmp_path / "archive" / "metadata" / f"{begun}-m0.avro").write_bytes(b"")
    assert await problems(settings) == [
        f"inserted: metadata/{begun}-m0.avro is of the table before a part was replaced, or has expired"
    ]
    check = compare._check_former
    written = asyncio.get_running_loop().create_future()

    def check_later(*arguments: Any) -> None:
        check(*arguments)
        insert = "INSERT INTO archive_attempts (archive_id, location) VALUES ($1, 'file:///x')"
        asyncio.ensure_future(connection.execute(insert, begun)).add_done_callback(written.set_result)

    real = compare._require_unchanged

    async def require_later(*arguments: Any) -> None:
        await written
        await real(*arguments)

    monkeypatch.setattr(compare, "_check_former", check_later)
    monkeypatch.setattr(compare, "_require_unchanged", require_later)
    with pytest.raises(Fatal, match="has changed it meanwhile"):
        await problems(settings)


@pytest.mark.damaged
async def test_part_that_is_not_as_signed(database_url: str, connection: Connection, tmp_path: Path) -> None:
    """A part that somebody has changed is signed again as it is; or it keeps erasures from all others."""
    event_id = await fill_with_secret(connection)
    settings = settings_of(database_url, tmp_path)
    await run.run(settings, NOW, ALL)
    first = (await parts_of(settings))[0]
    await erase_one(settings, event_id)
    await erase_one(settings, await connection.fetchval("SELECT event_id FROM audit_events WHERE log_index = 3"))
    file = folder_of(first) / "events-0.parquet"
    file.write_bytes(file.read_bytes()[:-9])
    done = await run.run(settings, NOW, ALL)
    assert [one.month for one in done.rewritten] == [f"{OLD:%Y-%m}"]
    [why] = done.pending
    assert "edited: events-0.parquet is not as it was signed" in why
    assert (await parts_of(settings))[0].archive_id == first.archive_id
    assert [part.archive_id for part, _ in (await verified(settings)).pending] == [first.archive_id]
    assert await connection.fetchval("SELECT count(*) FROM archive_attempts") == 0


async def test_store_that_keeps_files(
    database_url: str, connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that deletes nothing is believed to have deleted what was erased; or the run after the lock's end does not."""
    event_id = await fill_with_secret(connection)
    settings = settings_of(database_url, tmp_path)
    await run.run(settings, NOW, ALL)
    old = (await parts_of(settings))[1]
    await erase_one(settings, event_id)

    def refuse(self: Storage, name: str) -> None:
        raise OSError(f"{self.url} is locked: {name}")

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "delete_folder", refuse)
        done = await run.run(settings, NOW, ALL)
        assert len(done.rewritten) == 1
        [why] = done.pending
        assert "is locked" in why
        assert (await run.run(settings, NOW, ALL)).pending == done.pending
    result = await verified(settings)
    assert (result.problem_count, result.pending, result.undeleted) == (0, [], [old.location])
    assert SECRET in everything_in(tmp_path)
    assert (await run.run(settings, NOW, ALL)).pending == []
    assert (await verified(settings)).undeleted == []
    assert SECRET not in everything_in(tmp_path)


async def test_erased_and_purged(database_url: str, connection: Connection, tmp_path: Path) -> None:
    """An event whose row is gone from Postgres by now stays in the archive as it was."""
    event_id = await fill_with_secret(connection)
    settings = settings_of(database_url, tmp_path)
    await run.run(settings, NOW, ALL)
    await erase_one(settings, event_id)
    await connection.execute("SET session_replication_role = replica")
    row = await connection.fetchrow("SELECT * FROM audit_events WHERE event_id = $1", event_id)
    await connection.execute('UPDATE audit_events SET event_data = \'{"who": "eve"}\' WHERE event_id = $1', event_id)
    await run.run(settings, NOW, ALL)
    await connection.execute(
        "UPDATE audit_events SET event_data = $2 WHERE event_id = $1", event_id, row and row["event_data"]
    )
    assert await problems(settings) == []
    [found] = [one for one in rows_of((await parts_of(settings))[1]) if one["event_id"] == event_id]
    assert found["event_data"] == '{"event_type":"gateway.signal.received"}'


async def test_whoever_erases_is_told(
    database_url: str,
    connection: Connection,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whoever erases, or verifies, believes that the content is gone while the archive has it; or two runs at once are no error."""
    event_id = await fill_with_secret(connection)
    settings = settings_of(database_url, tmp_path)
    await run.run(settings, NOW, ALL)
    monkeypatch.setattr("signal.signal", lambda *_: None)  # not in the main thread, which has the connection
    key = tmp_path / "key.pem"
    key.write_text(PEM)
    monkeypatch.setenv("DATASTORAGE_DATABASE_URL", database_url)
    monkeypatch.setenv("DATASTORAGE_ARCHIVE_URL", settings.archive_url or "")
    monkeypatch.setenv("DATASTORAGE_CHECKPOINT_KEY_FILE", str(key))

    async def told(*command: str, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["datastorage", *command])
        assert await asyncio.to_thread(main) == code
        return "".join(capsys.readouterr())

    erased = await told("erase", "--event-id", str(event_id), "--reason", "asked for")
    assert "1 of them are in the archive until the next `datastorage archive run`." in erased
    verified = await told("archive", "verify", "--manifests")
    assert "1 event(s), at {[180,181)}, were erased since: they are in the archive until the next" in verified
    await connection.execute("SELECT pg_advisory_lock(hashtextextended('datastorage.archive', 0))")
    assert "Another run of the archive is under way" in await told("archive", "run", code=2)
    await connection.execute("SELECT pg_advisory_unlock_all()")
    assert "1 erased events are gone" in await told("archive", "run")
    assert "erased since" not in await told("archive", "verify", "--manifests")
