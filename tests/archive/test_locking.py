"""Holds on files: in a bucket with object lock (moto) nobody can delete what a hold covers, until it is released."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from app.archive import compare, run
from app.archive.finding import archive_search
from app.archive.locking import Locks
from app.archive.recorded import RecordedPart
from app.archive.versions import Bucket
from app.errors import Fatal
from app.events.catalog import Catalog
from app.retention import holds
from app.retention.erase import Erasure, erase
from app.retention.holds import HoldOrder, Placement
from app.settings import Settings
from tests.archive.archived import (
    ALL,
    DAYS,
    NOW,
    OLD,
    OLDER,
    Connection,
    fill,
    parts_of,
    problems,
    verified,
)
from tests.archive.test_expiry import EXPIRING, counts
from tests.archive.test_removal import database_result, hold
from tests.archive.test_s3 import client_of
from tests.archive.test_s3 import settings_of as settings_of_bucket
from tests.destinations.bucket import moto, stored
from tests.logs import FIRST_LOG

pytestmark = pytest.mark.damaged  # the verification at the end of every test does not know purges
BUCKET = "locked"


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[str]:
    with moto(tmp_path) as endpoint:
        yield endpoint


@pytest.fixture
async def archive(database_url: str, connection: Connection, endpoint: str, tmp_path: Path) -> Settings:
    """An archive of two parts in a bucket with object lock; Postgres has their events no longer, and they are over."""
    client_of(endpoint).create_bucket(Bucket=BUCKET, ObjectLockEnabledForBucket=True)
    await fill(connection, rounds=2)
    terms = DAYS | {"archive_url": f"s3://{BUCKET}/the archive"}
    settings = settings_of_bucket(database_url, endpoint, tmp_path).model_copy(update=terms)
    await run.run(settings, NOW, replace(ALL, remove=True))
    return settings


async def ran(settings: Settings) -> Locks:
    return (await run.run(settings, NOW, ALL)).locks


async def release(settings: Settings, placed: Placement) -> None:
    await holds.release(settings, FIRST_LOG, placed.hold_id, HoldOrder("eve", "over"))


def held(endpoint: str, part: RecordedPart) -> dict[str, str]:
    """By name, what the bucket says of the locks of a part's files."""
    client, folder = client_of(endpoint), part.location.removeprefix(f"s3://{BUCKET}/")
    found = {}
    for one in client.list_object_versions(Bucket=BUCKET, Prefix=folder).get("Versions", []):
        named = {"Bucket": BUCKET, "Key": one["Key"], "VersionId": one["VersionId"]}
        if not one["Key"].endswith("/"):
            head = client.head_object(**named)
            found[one["Key"].rpartition("/")[2]] = head.get("ObjectLockLegalHoldStatus", "OFF")
    return found


ALL_ON = dict.fromkeys(("events-0.parquet", "manifest.json", "tiles"), "ON")
ALL_OFF = dict.fromkeys(ALL_ON, "OFF")


async def no_hold(_: Settings) -> frozenset[str]:
    return frozenset()


async def test_holds_lock_files(
    archive: Settings, connection: Connection, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files of what is held can be deleted, or those of others cannot; they stay locked for ever; or somebody lifts a lock, and nobody is told."""
    older, old = await parts_of(archive)
    assert await ran(archive) == Locks()
    first = await hold(archive, time_from=OLD.replace(hour=0), time_to=OLD.replace(hour=23))
    await hold(archive, actor_id="nobody")
    before = await verified(archive)
    assert (before.problem_count, before.locked, before.locks_unseen) == (0, {}, "")
    assert [one.archive_id for one in before.lock_pending] == [old.archive_id]
    done = await ran(archive)
    assert ([one.archive_id for one in done.locked], done.lifted, done.problems) == ([old.archive_id], [], [])
    assert (held(endpoint, old), held(endpoint, older)) == (ALL_ON, ALL_OFF)
    after = await verified(archive)
    of_first = {old.archive_id: frozenset([str(first.hold_id)])}
    assert (after.problem_count, after.locked, after.lock_pending) == (0, of_first, [])
    assert await ran(archive) == Locks()

    key = f"{old.location.removeprefix(f's3://{BUCKET}/')}/events-0.parquet"
    for status, expected in (
        (
            "OFF",
            [
                f"hold removed: {key.removeprefix('the archive/')} is under no legal hold, but the log records one, for hold {first.hold_id}"
            ],
        ),
        ("ON", []),
    ):
        client_of(endpoint).put_object_legal_hold(Bucket=BUCKET, Key=key, LegalHold={"Status": status})
        assert await problems(archive, "manifests") == expected

    with monkeypatch.context() as patch:  # as if the hold had been released, and lifted, while the archive was verified
        patch.setattr(compare, "_active_holds", no_hold)
        client_of(endpoint).put_object_legal_hold(Bucket=BUCKET, Key=key, LegalHold={"Status": "OFF"})
        assert await problems(archive, "manifests") == []
        client_of(endpoint).put_object_legal_hold(Bucket=BUCKET, Key=key, LegalHold={"Status": "ON"})

    second = await hold(archive, correlation_id=f"rr-{OLD:%m}-1")
    assert len((await ran(archive)).locked) == 1
    assert (await verified(archive)).locked == {old.archive_id: frozenset([str(first.hold_id), str(second.hold_id)])}
    await release(archive, first)
    assert len((await ran(archive)).locked) == 1
    assert held(endpoint, old) == ALL_ON
    assert (await verified(archive)).locked == {old.archive_id: frozenset([str(second.hold_id)])}
    await release(archive, second)
    before = await verified(archive)
    assert (before.problem_count, [one.archive_id for one in before.lock_pending]) == (0, [old.archive_id])
    done = await ran(archive)
    assert ([one.archive_id for one in done.lifted], done.locked, done.problems) == ([old.archive_id], [], [])
    assert held(endpoint, old) == ALL_OFF
    after = await verified(archive)
    assert (after.problem_count, after.locked, after.lock_pending) == (0, {}, [])
    assert (await database_result(connection)).defects.listed == []


async def test_erased_and_expired_under_a_lock(archive: Settings, connection: Connection, endpoint: str) -> None:
    """What is erased of a locked part is not pending, or stays when the lock has ended; or a held part expires."""
    older, old = await parts_of(archive)
    placed = await hold(archive, correlation_id=f"rr-{OLD:%m}-0")
    await ran(archive)
    order = Erasure("asked for", "tests", correlation_id=f"rr-{OLD:%m}-1")
    erased = await erase(archive, Catalog(), order, dry_run=False, search_archive=archive_search(archive))
    assert erased.archived == 30
    done = await run.run(archive, NOW, EXPIRING)
    assert done.expiries is not None
    assert [one.part.archive_id for one in done.expiries.expired] == [older.archive_id]
    [why] = done.pending
    assert f"files of part {old.archive_id}, which are to be deleted, stay: the bucket keeps 3 version(s)" in why
    [new] = await parts_of(archive)
    assert [one.archive_id for one in done.locks.locked] == [new.archive_id]
    assert (held(endpoint, new), held(endpoint, old)) == (ALL_ON, ALL_ON)
    after = await verified(archive)
    assert (after.problem_count, after.undeleted) == (0, [old.location])
    assert len((await run.run(archive, NOW, EXPIRING)).pending) == 1
    await release(archive, placed)
    done = await run.run(archive, NOW, EXPIRING)
    assert done.expiries is not None
    assert (done.pending, {one.archive_id for one in done.locks.lifted}) == ([], {new.archive_id, old.archive_id})
    assert [one.part.archive_id for one in done.expiries.expired] == [new.archive_id]
    assert await counts(connection) == (0, 120)
    versions = client_of(endpoint).list_object_versions(Bucket=BUCKET, Prefix="the archive/parts/")
    left = [one for one in [*versions.get("Versions", []), *versions.get("DeleteMarkers", [])] if one["Key"][-1] != "/"]
    assert [one["Key"].rpartition("/")[2] for one in left] == ["expired.json"] * 2
    after = await verified(archive)
    assert (after.problem_count, after.undeleted, after.unknown, after.locked) == (0, [], [], {})


async def test_a_store_that_refuses(archive: Settings, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are said to be locked that are not, where the store refuses, or the run ends before the log says so."""
    _, old = await parts_of(archive)
    placed = await hold(archive, correlation_id=f"rr-{OLD:%m}-0")
    request = Bucket._request

    def refuse(self: Bucket, method: str, path: str, query: dict[str, str], sent: bytes = b"") -> tuple[int, bytes]:
        if "legal-hold" in query and method == "PUT" and path.endswith("/tiles"):
            return 403, b"no"
        return request(self, method, path, query, sent)

    monkeypatch.setattr(Bucket, "_request", refuse)
    [why] = (await ran(archive)).problems
    assert "is not locked as holds want it: the bucket refuses 1 legal hold(s)" in why
    found = await verified(archive)
    assert (found.problem_count, found.locked, len(found.lock_pending)) == (0, {}, 1)
    older, _ = await parts_of(archive)
    key = f"{older.location.removeprefix(f's3://{BUCKET}/')}/events-0.parquet"
    client = client_of(endpoint)
    content = client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
    await hold(archive, actor_id="nobody")
    client.put_object(Bucket=BUCKET, Key=key, Body=content[:4] + bytes(len(content) - 4000) + content[-3996:])
    assert [
        text.rpartition("holds want it: ")[2] for text in (await ran(archive)).problems if str(older.archive_id) in text
    ] == ["edited: events-0.parquet is not as it was signed"]
    client.put_object(Bucket=BUCKET, Key=key, Body=content)
    monkeypatch.setattr(Bucket, "_request", lambda *_: (403, b"no"))
    [why] = (await ran(archive)).problems
    assert "whether the bucket has object lock, it does not say: 403 no" in why
    assert "403" in (await verified(archive)).locks_unseen
    monkeypatch.undo()

    for step, end in (
        ("files locked", "lock"),
        ("lock recorded", "lock"),
        ("files unlocked", "lift"),
        ("lock recorded", "lift"),
    ):
        await _ends_at(archive, step)
        found = await verified(archive)
        is_recorded = step == "lock recorded"
        assert (found.problem_count, len(found.lock_pending)) == (0, not is_recorded), (step, end)
        done = await ran(archive)
        assert len(done.locked if end == "lock" else done.lifted) == (not is_recorded), (step, end)
        assert held(endpoint, old) == (ALL_ON if end == "lock" else ALL_OFF), (step, end)
        if (step, end) == ("files locked", "lock"):  # once more, for the step after it
            await release(archive, placed)
            assert len((await ran(archive)).lifted) == 1
            placed = await hold(archive, correlation_id=f"rr-{OLD:%m}-0")
        elif end == "lock":
            await release(archive, placed)
        elif step == "files unlocked":
            placed = await hold(archive, correlation_id=f"rr-{OLD:%m}-0")
            await ran(archive)
            await release(archive, placed)


async def _ends_at(settings: Settings, wanted: str) -> None:
    """A run that ends at a step."""

    def fail(step: str) -> None:
        if step == wanted:
            raise Fatal("for the test")

    with pytest.raises(Fatal, match="for the test"):
        await run.run(settings, NOW, ALL, on_step=fail)


async def test_a_bucket_without_object_lock(
    database_url: str, connection: Connection, endpoint: str, tmp_path: Path
) -> None:
    """A store that cannot lock is called a defect, or what is held expires there."""
    await fill(connection, rounds=2)
    settings = settings_of_bucket(database_url, endpoint, tmp_path).model_copy(update=DAYS)
    await run.run(settings, NOW, replace(ALL, remove=True))
    await hold(settings, correlation_id=f"rr-{OLD:%m}-0")
    done = await run.run(settings, NOW, EXPIRING)
    assert done.expiries is not None
    assert (done.locks, [one.part.month for one in done.expiries.expired]) == (Locks(), [f"{OLDER:%Y-%m}"])
    found = await verified(settings)
    assert (found.problem_count, found.lock_pending, found.locks_unseen) == (0, [], "")
    left = [key for key in stored(endpoint) if f"/{OLDER:%Y-%m}/" in key and not key.endswith("/")]
    assert [key.rpartition("/")[2] for key in left] == ["expired.json"]
