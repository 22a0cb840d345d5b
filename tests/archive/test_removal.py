"""What is archived is removed from Postgres: never in neither place, and found by verification where it is."""

import asyncio
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import orjson
import pytest
from pydantic import SecretStr

from app.archive import run
from app.archive.compare import verify_archive
from app.archive.finding import archive_search
from app.archive.manifest import open_manifest
from app.archive.part_files import MANIFEST_NAME
from app.archive.removing import Removal
from app.archive.session import Selection
from app.archive.storage import StorageAway
from app.cli import main
from app.cli.archiving import print_parts
from app.continuing import continue_log
from app.errors import AuditError, Fatal, NotFound
from app.events.catalog import Catalog
from app.ingest.self_events import self_event
from app.retention import holds, purge
from app.retention.erase import ArchiveNotSearched, Erased, Erasure, UnderHold, erase
from app.retention.holds import HoldOrder, Selector
from app.retention.logged import action_store, commit_action
from app.retention.policies import PolicyOrder, set_policy
from app.settings import Settings
from app.stream import cursor
from app.tlog.keys import SigningKey
from app.tlog.orders import Policy
from app.verify.correlation import verify_correlation
from app.verify.database import DatabaseResult, TrustAnchors, sequential_runner, verify_database
from tests.archive.archived import (
    ALL,
    KEY,
    NOW,
    OLD,
    OLDER,
    PEM,
    PUBLIC,
    Connection,
    fill,
    folder_of,
    parts_of,
    publish,
    settings_of,
    verified,
)
from tests.archive.test_erasure import SECRET, everything_in, fill_with_secret
from tests.archive.test_faults import Faults
from tests.archive.test_killed import Killed
from tests.archive.test_killed import killed as killed  # noqa: PLC0414 -- a fixture
from tests.archive.test_tampering import set_column
from tests.logs import FIRST_LOG
from tests.postgres.log import write
from tests.postgres.test_continue import LOSE, continued
from tests.postgres.test_continue import settings_of as settings_of_continued
from tests.postgres.test_retention import self_events
from tests.postgres.test_roles import roles as roles  # noqa: PLC0414 -- a fixture
from tests.sealed import insert, plain_row, seal

pytestmark = pytest.mark.damaged  # the verification at the end of every test does not know purges
REMOVING = Selection(remove=True)
REMOVING_STEPS = ("part verified", "removing", "removed")


async def database_result(connection: Connection) -> DatabaseResult:
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        return await verify_database(connection, sequential_runner(connection), TrustAnchors())


async def nothing_is_lost(connection: Connection, settings: Settings, archived: int) -> None:
    """Verification finds nothing wrong, and each event is in Postgres or in the archive."""
    result = await database_result(connection)
    assert result.defects.listed == []
    assert (result.events.archived, result.events.purged) == (archived, 0)
    assert result.events.total + archived == result.size
    after = await verified(settings)
    assert [one for _, part in after.parts for one in part.problems] + after.table_problems == []
    assert sum(after.removed.values()) == archived


async def remove(settings: Settings, **more: Any) -> Removal:
    done = (await run.run(settings, NOW, Selection(remove=True, **more))).removal
    assert done is not None
    return done


async def test_archived_events_are_removed(database_url: str, connection: Connection, tmp_path: Path) -> None:
    """An event is removed that is not archived, or one is removed and nobody knows where it is."""
    await fill(connection, rounds=2)
    settings = settings_of(database_url, tmp_path)
    done = await remove(settings)
    assert [(one.part.month, one.events) for one in done.removed] == [(f"{OLD:%Y-%m}", 60), (f"{OLDER:%Y-%m}", 60)]
    assert (done.refused, done.left.count) == ([], 0)
    assert await connection.fetchval("SELECT count(*) FROM audit_events WHERE correlation_id LIKE 'rr-%'") == 60
    await nothing_is_lost(connection, settings, 120)
    purges = await self_events(connection, "purged")
    parts = {str(part.archive_id): part for part in await parts_of(settings)}
    assert len(purges) == 2
    for one in purges:
        [named] = one["archives"]
        part = parts[named["archive_id"]]
        assert (named["manifest_sha256"], one["positions"]) == (part.manifest_sha256, str(part.positions))
    again = await run.run(settings, NOW, REMOVING)
    assert again.parts == []
    assert again.removal is not None
    assert again.removal.removed == []
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        chain = await verify_correlation(connection, f"rr-{OLD:%m}-0", FIRST_LOG)
    assert (chain.is_valid, chain.archived_total, chain.purged_total) == (True, 30, 0)


async def erase_some(settings: Settings, **which: Any) -> Erased:
    search = archive_search(settings)
    return await erase(
        settings, Catalog(), Erasure("asked for", "tests", **which), dry_run=False, search_archive=search
    )


async def hold(settings: Settings, **selector: Any) -> holds.Placement:
    return await holds.place(settings, FIRST_LOG, Selector(**selector), HoldOrder("eve", "a case"))


async def test_what_stays(database_url: str, connection: Connection, tmp_path: Path) -> None:
    """What is held, young, unsealed, changed, judged by, or kept by its category's policy is removed with the rest."""
    old = {"event_timestamp": OLD, "event_date": OLD.date()}
    await seal(connection, "rr-free", old, old)
    await seal(connection, "rr-held", old)
    await seal(connection, "rr-edited", old)
    await seal(connection, "rr-judging", old | {"event_type": "datastorage.notification.stored"})
    await seal(connection, "rr-kept", old | {"event_category": "kept"})
    timed = {"event_timestamp": OLD.isoformat(), "correlation_id": "rr-parent"}
    [parent] = await write(database_url, timed)
    await write(database_url, {"parent_event_id": str(parent), "correlation_id": "rr-child"})
    settings = settings_of(database_url, tmp_path)
    await set_policy(
        settings, FIRST_LOG, "kept", Policy(400, floor_days=400), PolicyOrder("eve", "the auditors read it")
    )
    await publish(connection)
    assert [part.events for part in (await run.run(settings, NOW, ALL)).parts] == [7]
    await hold(settings, correlation_id="rr-held")
    await connection.execute("SET session_replication_role = replica")
    await connection.execute("UPDATE audit_events SET error_code = 'eve' WHERE correlation_id = 'rr-edited'")
    await insert(connection, plain_row("rr-copied", log_index=0, log_id=0))
    await insert(connection, plain_row("rr-unsealed", **old))
    await connection.execute("SET session_replication_role = origin")
    assert (await remove(settings.model_copy(update={"archive_after_days": 2555}))).removed == []
    done = await remove(settings)
    assert [one.events for one in done.removed] == [1]
    assert {(one.kind, one.position) for one in done.left.listed} == {("edited", 3), ("inserted", 0)}
    stays = await connection.fetch(
        "SELECT correlation_id FROM audit_events WHERE event_date = $1 ORDER BY 1", OLD.date()
    )
    names = ["edited", "free", "held", "judging", "kept", "parent", "unsealed"]
    assert [row[0] for row in stays] == [f"rr-{name}" for name in names]
    assert (await database_result(connection)).events.archived == 1


async def test_parents_go_after_their_children(database_url: str, connection: Connection, tmp_path: Path) -> None:
    """A parent is removed before its child, which Postgres refuses, or it stays for ever."""
    parent: dict[str, Any] = {}
    for time in (OLDER, OLDER, OLD):
        [event_id] = await write(database_url, {"event_timestamp": time.isoformat()} | parent)
        parent = {"parent_event_id": str(event_id)}
    await publish(connection)
    settings = settings_of(database_url, tmp_path)
    done = await remove(settings)
    assert [one.events for one in done.removed] == [1, 2]
    await nothing_is_lost(connection, settings, 3)


@pytest.mark.parametrize("act", ["manifest", "events", "tiles", "gone", "elsewhere", "added"])
async def test_a_part_that_is_not_as_it_was_signed(
    database_url: str, connection: Connection, tmp_path: Path, act: str
) -> None:
    """Rows are removed although the files that should have them are changed, missing, or in another archive."""
    await fill(connection, rounds=2)
    settings = settings_of(database_url, tmp_path)
    await run.run(settings, NOW, ALL)
    [_, old] = await parts_of(settings)
    folder = folder_of(old)
    match act:
        case "gone":
            shutil.rmtree(folder)
        case "elsewhere":
            settings = settings.model_copy(update={"archive_url": f"file://{tmp_path}/other"})
        case "added":
            (folder / "events-7.parquet").write_bytes(b"x")
        case _:
            file = folder / {"manifest": "manifest.json", "events": "events-0.parquet", "tiles": "tiles"}[act]
            content = bytearray(file.read_bytes())
            content[len(content) // 2] ^= 1
            file.write_bytes(content)
    done = await remove(settings)
    removed = [] if act == "elsewhere" else [60]
    assert [one.events for one in done.removed] == removed
    assert [str(old.archive_id) in why for why in done.refused if f"{OLD:%Y-%m}" in why] == [True]
    result = await database_result(connection)
    assert (result.defects.listed, result.events.archived) == ([], sum(removed))


async def test_a_manifest_that_was_signed_again(database_url: str, connection: Connection, tmp_path: Path) -> None:
    """Whoever has the key leaves events out of a part, signs it again, and has Postgres forget them."""
    await fill(connection, rounds=2)
    settings = settings_of(database_url, tmp_path)
    await run.run(settings, NOW, ALL)
    [_, old] = await parts_of(settings)
    path = folder_of(old) / MANIFEST_NAME
    manifest = open_manifest(path.read_bytes(), [PUBLIC])[0]
    path.write_bytes(replace(manifest, archived_at="2026-01-01T00:00:00.000000Z").signed(SigningKey(KEY, PUBLIC)))
    done = await remove(settings)
    assert [one.events for one in done.removed] == [60]
    [why] = done.refused
    assert "but the log records" in why


async def test_the_storage_fails_in_the_middle(
    database_url: str, connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A storage that goes away while a part is read again has rows removed that nobody has read."""
    await fill(connection, rounds=2)
    settings = settings_of(database_url, tmp_path)
    await run.run(settings, NOW, ALL)
    faults, at = Faults(monkeypatch), 0
    while True:
        at += 1
        faults.begin(at)
        try:
            done = await remove(settings)
        except StorageAway:
            done = None
        made = faults.count
        faults.begin(0)
        archived = (await database_result(connection)).events.archived
        await nothing_is_lost(connection, settings, archived)
        if done is not None and made < at:
            break
    assert at > 5
    assert archived == 120


async def test_a_sink_that_has_yet_to_be_sent_it(database_url: str, connection: Connection, tmp_path: Path) -> None:
    """What a sink awaits is removed, which then gets it never; or nobody is told who holds it back."""
    await fill(connection, rounds=2)
    settings = settings_of(database_url, tmp_path)
    await cursor.create_cursor(connection, "soc", "webhook", "https://h", 40)
    done = await remove(settings)
    assert [one.name for one in done.held_back_by] == ["soc"]
    assert [one.events for one in done.removed] == [10, 30]
    await cursor.rewind(connection, "soc", 10**6)
    assert [one.events for one in (await remove(settings)).removed] == [50, 30]
    await nothing_is_lost(connection, settings, 120)


async def test_removal_and_retention_exclude_each_other(
    database_url: str, connection: Connection, tmp_path: Path
) -> None:
    """A retention run and a removal work on the same rows at once."""
    await fill(connection, rounds=1)
    settings = settings_of(database_url, tmp_path)
    await connection.execute("SELECT pg_advisory_lock(hashtextextended('datastorage.retention', 0))")
    with pytest.raises(Fatal, match="A retention run is under way"):
        await remove(settings)
    await connection.execute("SELECT pg_advisory_unlock_all()")
    assert len((await remove(settings)).removed) == 2


async def test_retention_and_removal_take_turns(database_url: str, connection: Connection, tmp_path: Path) -> None:
    """What retention purges later of a month that was removed in part is lost, or what the archive has is called purged."""
    old = {"event_timestamp": OLD, "event_date": OLD.date(), "retention_days": 30}
    await seal(connection, "rr-1", old, old)
    await publish(connection)
    settings = settings_of(database_url, tmp_path)
    assert [one.events for one in (await remove(settings)).removed] == [2]
    await seal(connection, "rr-late", old)
    assert (await purge.run(settings, NOW)).rows_deleted == 1
    result = await database_result(connection)
    assert (result.defects.listed, result.events.archived, result.events.purged) == ([], 2, 1)


async def test_a_purge_that_names_what_is_not_archived(
    database_url: str, connection: Connection, tmp_path: Path
) -> None:
    """Somebody with the role for retention removes what is young, and says that it is archived."""
    await fill(connection, rounds=1)
    settings = settings_of(database_url, tmp_path)
    await run.run(settings, NOW, ALL)
    [part, _] = await parts_of(settings)
    named = {"archive_id": str(part.archive_id), "manifest_sha256": part.manifest_sha256}
    async with action_store(settings, FIRST_LOG) as store:
        for positions, archive in (("{[60,62)}", named), ("{[0,1)}", named | {"manifest_sha256": "0" * 64})):
            operation = uuid4()
            payload = {"event_type": "datastorage.retention.purged", "operation_id": str(operation), "event_count": 1}
            payload |= {
                "positions": positions,
                "log_id": 0,
                "cutoff": NOW.isoformat(),
                "policies": [],
                "archives": [archive],
            }
            await commit_action(store, [self_event(FIRST_LOG.name, payload, about=operation)], nothing_else)
    found = [one for one in (await database_result(connection)).defects.listed if one.kind == "early purge"]
    assert len(found) == 2
    assert "2 of its events are in no part of the archive that it names" in found[0].message
    assert "with the manifest 0000" in found[1].message


async def nothing_else(connection: Connection, flush: Any) -> None:
    """No rows are changed."""


async def test_a_removed_part_is_damaged(
    database_url: str,
    connection: Connection,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`datastorage verify` does not look where the only copy is, or does not say that it is the only one."""
    await fill(connection, rounds=2)
    settings = settings_of(database_url, tmp_path)
    await remove(settings)
    key = tmp_path / "key.pem"
    key.write_text(PEM)
    monkeypatch.setattr("signal.signal", lambda *_: None)  # not in the main thread, which has the connection
    for name, value in (("DATABASE_URL", database_url), ("CHECKPOINT_KEY_FILE", str(key))):
        monkeypatch.setenv(f"DATASTORAGE_{name}", value)

    async def told(*command: str, code: int = 0) -> str:
        more = ["--processes", "1"] if command[0] == "verify" else []
        monkeypatch.setattr(sys, "argv", ["datastorage", *command, *more])
        ended = await asyncio.to_thread(main)
        said = "".join(capsys.readouterr())
        assert ended == code, said
        return said

    said = await told("verify")
    assert "archived: 120 events that are in the archive only" in said
    assert "NOT verified: 120 events" in said
    await told("verify", "--archive", "all", code=2)
    monkeypatch.setenv("DATASTORAGE_ARCHIVE_URL", f"file://{tmp_path}/archive")
    for depth, rows in (("all", 120), ("sample", 120), ("manifests", 0)):
        said = await told("verify", "--archive", depth)
        assert f"have 120 events that Postgres has no longer; {rows} rows were verified: no problem" in said
    one_chain = "verify", f"rr-{OLD:%m}-0"
    assert "archived: 30 of these events were read in the archive" in await told(*one_chain)
    assert "archived: 30 events that are in the archive only" in await told(*one_chain, "--archive", "none")
    [_, old] = await parts_of(settings)
    (folder_of(old) / "events-0.parquet").unlink()
    assert "NOT verified: what is in the archive only" in await told(*one_chain, code=2)
    await told("verify", "--archive", "none")
    said = await told("verify", "--archive", "manifests", code=1)
    assert "removed: events-0.parquet is missing" in said
    assert "Postgres has 60 of its events no longer: this is their only copy" in said
    assert "this is their only copy" in await told("archive", "verify", code=1)
    listed = (await told("archive", "list", "--json")).splitlines()
    assert [orjson.loads(line)["removed"] for line in listed] == [60, 60]
    shutil.rmtree(tmp_path / "archive")
    assert "removed: manifest.json is missing" in await told("verify", code=1)
    monkeypatch.delenv("DATASTORAGE_ARCHIVE_URL")
    said = await told(*one_chain)
    assert "archived: 30 events that are in the archive only" in said
    assert "NOT verified" in said
    monkeypatch.setenv("DATASTORAGE_ARCHIVE_URL", f"file://{tmp_path}/archive")
    assert "Nothing was removed from Postgres" in await told("archive", "run", "--remove")


async def test_a_removed_event_is_erased(database_url: str, connection: Connection, tmp_path: Path) -> None:
    """What is in the archive only cannot be erased, or stays in its files, or does not verify any more."""
    event_id = await fill_with_secret(connection)
    settings = settings_of(database_url, tmp_path)
    await remove(settings)
    order = Erasure("asked for", "tests", actor_id=SECRET)
    with pytest.raises(ArchiveNotSearched, match="DATASTORAGE_ARCHIVE_URL"):
        await erase(settings, Catalog(), order, dry_run=False)
    tried = await erase(settings, Catalog(), order, dry_run=True, search_archive=archive_search(settings))
    assert (tried.events, tried.archived) == ([event_id], 1)
    assert (await erase_some(settings, event_ids=[event_id])).events == [event_id]
    assert (await erase_some(settings, actor_id=SECRET)).events == []
    assert SECRET in everything_in(tmp_path)
    [(pending, erased)] = (await verified(settings)).pending
    assert (pending.month, erased.size) == (f"{OLD:%Y-%m}", 1)
    done = await run.run(settings, NOW, REMOVING)
    assert [part.erased for part in done.rewritten] == [1]
    assert SECRET not in everything_in(tmp_path)
    await nothing_is_lost(connection, settings, 121)
    assert (await erase_some(settings, event_ids=[event_id])).events == []
    assert (await erase_some(settings, correlation_id=f"rr-{OLD:%m}-0")).archived == 30
    assert [part.erased for part in (await run.run(settings, NOW, ALL)).rewritten] == [31]
    await nothing_is_lost(connection, settings, 121)


async def test_what_is_erased_but_in_the_archive_still_stays(
    database_url: str, connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row is removed whose content was erased, while the archive has the content."""
    event_id = await fill_with_secret(connection)
    settings = settings_of(database_url, tmp_path)
    await run.run(settings, NOW, ALL)
    await erase_some(settings, event_ids=[event_id])
    monkeypatch.setattr("app.archive.run.erase_parts", no_parts)
    done = await remove(settings)
    assert [one.events for one in done.removed] == [60]
    assert [why.rpartition(": ")[2] for why in done.refused] == ["something of it was erased, and is in it still"]
    monkeypatch.undo()
    assert [one.events for one in (await remove(settings)).removed] == [61]
    await nothing_is_lost(connection, settings, 121)


async def no_parts(*_: Any) -> tuple[list[Any], list[str]]:
    return [], []


async def test_a_file_that_was_changed_is_not_searched(
    database_url: str, connection: Connection, tmp_path: Path
) -> None:
    """Whoever changes a file decides which events an erasure finds."""
    event_id = await fill_with_secret(connection)
    settings = settings_of(database_url, tmp_path)
    await remove(settings)
    [_, old] = await parts_of(settings)
    set_column("actor_id", 0, "somebody")(folder_of(old))
    with pytest.raises(Fatal, match="is not as it was signed"):
        await erase_some(settings, event_ids=[event_id])
    assert await connection.fetchval("SELECT count(*) FROM audit_events WHERE event_type LIKE '%erased'") == 0


async def test_a_removed_event_is_held(database_url: str, connection: Connection, tmp_path: Path) -> None:
    """What is in the archive only cannot be held, or is erased although it is."""
    event_id = await fill_with_secret(connection)
    settings = settings_of(database_url, tmp_path)
    await remove(settings)
    with pytest.raises(NotFound):
        await hold(settings, correlation_id="rr-never")
    placed = await hold(settings, correlation_id="rr-secret")
    assert placed.events == 0
    for which in ({"event_ids": [event_id]}, {"actor_id": SECRET}):
        with pytest.raises(UnderHold, match="rr-secret"):
            await erase_some(settings, **which)
    await holds.release(settings, FIRST_LOG, placed.hold_id, HoldOrder("eve", "over"))
    other = await hold(settings, actor_id=SECRET)
    with pytest.raises(UnderHold):
        await erase_some(settings, event_ids=[event_id])
    await holds.release(settings, FIRST_LOG, other.hold_id, HoldOrder("eve", "over"))
    assert (await erase_some(settings, actor_id=SECRET)).archived == 1
    result = await database_result(connection)
    assert result.defects.listed == []


async def test_killed_at_every_step(database_url: str, connection: Connection, tmp_path: Path, killed: Killed) -> None:
    """A run that was killed while it removed has lost an event, or the next one does not go on."""
    await fill(connection, rounds=2)
    settings = settings_of(database_url, tmp_path)
    met, removed = set(), 0
    for step in ("recorded", *REMOVING_STEPS, "removing"):
        code, steps = await killed(f"remove {step}")
        assert (code, steps[-1]) == (-9, step)
        met |= set(steps)
        found = await connection.fetchval(
            "SELECT 60 - count(*) FROM audit_events WHERE correlation_id LIKE $1", f"rr-{OLD:%m}-%"
        )
        assert found == removed + 10 * (step == "removed"), step
        removed = found
        await nothing_is_lost(connection, settings, removed)
    assert met >= set(REMOVING_STEPS)
    code, steps = await killed("remove ")
    assert code == 0
    await nothing_is_lost(connection, settings, 60)
    assert sum(part.positions.size for part in await parts_of(settings)) == 60
    code, steps = await killed("remove ")
    assert (code, steps) == (0, [])


async def test_a_continued_log(database_url: str, connection: Connection, tmp_path: Path) -> None:
    """Events of a log that is closed are not removed, or are looked for in the other one."""
    await continued(connection, database_url)
    settings = settings_of_continued(database_url).model_copy(update={"archive_url": f"file://{tmp_path}/archive"})
    later = NOW + timedelta(days=200)  # so that all of it is due
    before = await connection.fetchval("SELECT count(*) FROM audit_events")
    done = (await run.run(settings, later, REMOVING)).removal
    assert done is not None
    assert (done.refused, done.left.count) == ([], 0)
    assert {one.part.log_id for one in done.removed} == {0, 1}
    removed = sum(one.events for one in done.removed)
    result = await database_result(connection)
    assert {one.message.partition(": it ")[2][:24] for one in result.defects.listed} == {"purged what is due at 20"}
    assert result.events.archived == removed
    purges = await connection.fetchval("SELECT count(*) FROM audit_events WHERE event_type LIKE '%retention.purged'")
    stored = await connection.fetchval("SELECT count(*) FROM audit_events WHERE event_type LIKE '%archive.stored'")
    assert await connection.fetchval("SELECT count(*) FROM audit_events") == before - removed + purges + stored
    search = archive_search(settings)
    order = Erasure("asked for", "tests", correlation_id="rr-2")
    erased = await erase(settings, Catalog(), order, dry_run=False, search_archive=search)
    assert (erased.archived, len(erased.events)) == (
        1,
        2,
    )  # the other one is behind what was agreed, and never archived
    again = await run.run(settings, later, ALL)
    assert sum(part.erased for part in again.rewritten) == erased.archived
    assert (again.pending, again.left.count) == ([], 0)


async def test_with_roles(
    roles: Callable[[str], str], database_url: str, connection: Connection, tmp_path: Path
) -> None:
    """The role for retention cannot remove, or erase, or the service's role can."""
    event_id = await fill_with_secret(connection)
    urls = {name: SecretStr(roles(f"datastorage_{name}")) for name in ("service", "retention")}
    settings = settings_of(database_url, tmp_path).model_copy(update={"database_url": urls["service"]})
    with pytest.raises(AuditError):
        await remove(settings)
    settings = settings.model_copy(update={"retention_url": urls["retention"]})
    assert [one.events for one in (await remove(settings)).removed] == [61, 60]
    placed = await hold(settings, correlation_id="rr-secret")
    await holds.release(settings, FIRST_LOG, placed.hold_id, HoldOrder("eve", "over"))
    assert (await erase_some(settings, event_ids=[event_id])).archived == 1
    assert len((await run.run(settings, NOW, REMOVING)).rewritten) == 1
    assert (await database_result(connection)).defects.listed == []


async def test_a_part_that_is_gone_is_not_searched(database_url: str, connection: Connection, tmp_path: Path) -> None:
    """An erasure says that there is no such event where the only copy of it is missing, or is in another archive."""
    event_id = await fill_with_secret(connection)
    settings = settings_of(database_url, tmp_path)
    await remove(settings)
    elsewhere = settings.model_copy(update={"archive_url": f"file://{tmp_path}/other"})
    with pytest.raises(Fatal, match="not in this archive"):
        await erase_some(elsewhere, event_ids=[event_id])
    (folder_of((await parts_of(settings))[1]) / "events-0.parquet").unlink()
    with pytest.raises(Fatal, match="is missing"):
        await erase_some(settings, actor_id=SECRET)


async def test_another_part_takes_the_place_of_one(
    database_url: str, connection: Connection, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Somebody with the role for retention records, in place of a part that is the only copy, one that has less, and nothing is missed."""
    event_id = await fill_with_secret(connection)
    settings = settings_of(database_url, tmp_path)
    await remove(settings)
    other, old = await parts_of(settings)
    less = uuid4()
    payload = {
        "event_type": "datastorage.archive.stored",
        "archive_id": str(less),
        "log_id": 0,
        "month": old.month,
        "location": other.location,
        "manifest_sha256": other.manifest_sha256,
        "tree_size": other.tree_size,
        "positions": "{}",
        "event_count": 0,
        "replaces": str(old.archive_id),
        "erased_count": 0,
    }
    async with action_store(settings, FIRST_LOG) as store:
        event = self_event(FIRST_LOG.name, payload, about=less)
        await commit_action(store, [event], nothing_else)
    result = await verify_archive(settings, [PUBLIC], "manifests", only_removed=True)
    assert (result.in_no_part, result.problem_count) == (61, 1)
    print_parts(result)
    assert "removed: 61 events that Postgres has no longer are in no part any more" in capsys.readouterr().out
    with pytest.raises(Fatal, match="61 events that were archived are in no part any more"):
        await erase_some(settings, event_ids=[event_id])


async def test_what_was_lost_is_erased_in_the_archive(
    database_url: str, connection: Connection, tmp_path: Path
) -> None:
    """The content of rows that were lost stays in the archive, and can be read there, although it was erased."""
    event_id = await fill_with_secret(connection)
    settings = settings_of(database_url, tmp_path)
    await run.run(settings, NOW, ALL)
    await publish(connection)
    size = await connection.fetchval("SELECT max(log_index) + 1 FROM audit_events")
    await write(database_url, {})
    outside = await publish(connection)
    await connection.execute("SET session_replication_role = replica")
    await connection.execute("DELETE FROM audit_events WHERE event_id = $1", event_id)
    await connection.execute(LOSE.format(size=size))
    await continue_log(settings, "Ada", "failover", [outside], dry_run=False)
    result = await database_result(connection)
    assert (result.defects.listed, result.events.archived, result.events.lost) == ([], 1, 0)
    with pytest.raises(ArchiveNotSearched):
        await erase(settings, Catalog(), Erasure("asked for", "tests", actor_id=SECRET), dry_run=False)
    assert (await erase_some(settings, actor_id=SECRET)).archived == 1
    assert [part.erased for part in (await run.run(settings, NOW, ALL)).rewritten] == [1]
    assert SECRET not in everything_in(tmp_path)
    after = await verified(settings)
    assert (after.problem_count, sum(after.removed.values())) == (0, 1)


@pytest.mark.parametrize("named", ["the part", "its folder", "all parts"])
async def test_a_part_that_is_said_to_be_begun(
    database_url: str, connection: Connection, tmp_path: Path, named: str
) -> None:
    """Whoever may write a row of archive_attempts has the next run delete the only copy of events."""
    await fill(connection, rounds=2)
    settings = settings_of(database_url, tmp_path)
    await remove(settings)
    part = (await parts_of(settings))[1]
    archive_id = part.archive_id if named == "the part" else uuid4()
    location = part.location.rpartition("/parts/")[0] + "/parts" if named == "all parts" else part.location
    await connection.execute(
        "INSERT INTO archive_attempts (archive_id, location) VALUES ($1, $2)", archive_id, location
    )
    done = await run.run(settings, NOW, ALL)
    assert done.deleted_attempts == 0
    [why] = done.pending
    assert ("the log records it" if named == "the part" else "is not its folder") in why
    await nothing_is_lost(connection, settings, 120)


async def test_postgres_from_before_a_part_was_recorded(
    database_url: str, connection: Connection, tmp_path: Path
) -> None:
    """After a failover that forgets the part which replaced another, the next run deletes it, when the other one is deleted already."""
    event_id = await fill_with_secret(connection)
    settings = settings_of(database_url, tmp_path)
    await remove(settings)
    await erase_some(settings, event_ids=[event_id])
    [_, old] = await parts_of(settings)

    def fail(step: str) -> None:
        if step == "verified":
            raise Fatal("for the test")

    with pytest.raises(Fatal, match="for the test"):
        await run.run(settings, NOW, ALL, on_step=fail)
    [begun] = [one for one in folder_of(old).parent.iterdir() if one != folder_of(old)]
    (folder_of(old) / "events-0.parquet").rename(tmp_path / "kept")
    done = await run.run(settings, NOW, ALL)
    assert done.deleted_attempts == 0
    assert any(f"the part {old.archive_id}, which it replaces, and that is not there" in why for why in done.pending)
    assert (begun / MANIFEST_NAME).exists()
    (tmp_path / "kept").rename(folder_of(old) / "events-0.parquet")
    done = await run.run(settings, NOW, ALL)
    assert (done.deleted_attempts, len(done.rewritten), done.pending) == (1, 1, [])
    await nothing_is_lost(connection, settings, 121)


async def test_a_folder_that_no_part_has(database_url: str, connection: Connection, tmp_path: Path) -> None:
    """After a restore nobody knows of a part that was recorded later, though what is erased stays in it."""
    await fill(connection, rounds=1)
    settings = settings_of(database_url, tmp_path)
    await run.run(settings, NOW, ALL)
    assert (await verified(settings)).unknown == []
    [part, _] = await parts_of(settings)
    archive_id = uuid4()
    other = folder_of(part).parent / str(archive_id)
    shutil.copytree(folder_of(part), other)
    after = await verified(settings)
    assert (after.unknown, after.problem_count) == ([f"file://{other}"], 0)
    await connection.execute(
        "INSERT INTO archive_attempts (archive_id, location) VALUES ($1, $2)", archive_id, f"file://{other}"
    )
    assert (await verified(settings)).unknown == []
