"""The archive in a bucket of an S3-compatible store (moto)."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from pydantic import SecretStr

from app.archive import run
from app.archive.finding import archive_search
from app.archive.reading import ArchiveAway, ArchiveReader
from app.archive.session import Selection
from app.archive.storage import Storage, StorageAway
from app.archive.versions import Bucket
from app.db import create_engine
from app.errors import Fatal
from app.events.catalog import Catalog
from app.query.filter import EventQuery
from app.retention import purge
from app.retention.erase import Erasure, erase
from app.settings import Settings
from tests.archive.archived import ALL, NOW, OLD, OLDER, PEM, Connection, fill, parts_of, problems, verified
from tests.destinations.bucket import BUCKET, moto, stored
from tests.logs import FIRST_LOG
from tests.services import free_port


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[str]:
    with moto(tmp_path) as endpoint:
        yield endpoint


def settings_of(url: str, endpoint: str, directory: Path) -> Settings:
    (directory / "id").write_text("access-key\n")
    (directory / "secret").write_text("secret-key\n")
    return Settings(
        database_url=SecretStr(url),
        checkpoint_key=SecretStr(PEM),
        archive_url=f"s3://{BUCKET}/deep/archive",
        archive_s3_endpoint=endpoint,
        archive_s3_access_key_file=directory / "id",
        archive_s3_secret_key_file=directory / "secret",
    )


def client_of(endpoint: str) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id="access-key",
        aws_secret_access_key="secret-key",
    )


@pytest.mark.damaged  # the verification at the end of every test does not know purges
async def test_reading(database_url: str, connection: Connection, endpoint: str, tmp_path: Path) -> None:
    """The service reads directories only, or does not end when the bucket does not answer."""
    await fill(connection, rounds=2)
    settings = settings_of(database_url, endpoint, tmp_path)
    await run.run(settings, NOW, ALL)
    rows = await connection.fetch("SELECT event_id FROM audit_events WHERE event_date < $1", NOW.date())
    terms = {"retention_floor_days": 30, "retention_ceiling_days": 30}
    await purge.run(settings.model_copy(update=terms), NOW)
    engine, reader = create_engine(settings), ArchiveReader(settings)
    away = ArchiveReader(settings.model_copy(update={"archive_s3_endpoint": f"http://127.0.0.1:{free_port()}"}))
    try:
        found = await reader.read(engine, FIRST_LOG, EventQuery(limit=1000), None, 20)
        assert {event["event_id"] for _, event in found.events} == {str(row["event_id"]) for row in rows}
        with pytest.raises((ArchiveAway, TimeoutError)):
            async with asyncio.timeout(5):
                await away.read(engine, FIRST_LOG, EventQuery(limit=1000), None, 20)
    finally:
        await away.close()
        await reader.close()
        await engine.dispose()


async def test_many_parts(
    database_url: str, connection: Connection, endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a bucket the table is not written anew: neither when it has all snapshots that it may have, nor when its metadata is missing."""
    monkeypatch.setattr("app.archive.table.SNAPSHOTS_MAX", 2)
    await fill(connection, rounds=1)
    settings = settings_of(database_url, endpoint, tmp_path)
    done = await run.run(settings, NOW, Selection(month=OLD.date().replace(day=1), part_events=6))
    assert len(done.parts) == 5
    metadata = [key for key in stored(endpoint) if "/metadata/" in key and not key.endswith("/")]
    ids = [str(part.archive_id) for part in done.parts]
    assert {one for one in ids if any(one in key for key in metadata)} == {*ids[2:]}
    for key in metadata:
        client_of(endpoint).delete_object(Bucket=BUCKET, Key=key)
    assert any("removed: " in one for one in await problems(settings))
    done = await run.run(settings, NOW, ALL)
    assert ([part.events for part in done.parts], done.pending, await problems(settings)) == ([30], [], [])


async def test_bucket(database_url: str, connection: Connection, endpoint: str, tmp_path: Path) -> None:
    """A bucket is no archive: something is written, read, listed or deleted in a way that only directories know."""
    await fill(connection, rounds=2)
    settings = settings_of(database_url, endpoint, tmp_path)
    steps: list[str] = []

    def fail_once(step: str) -> None:
        steps.append(step)
        if steps.count("manifest written") == 1 and step == "manifest written":
            raise Fatal("for the test")

    with pytest.raises(Fatal, match="for the test"):
        await run.run(settings, NOW, ALL, on_step=fail_once)
    done = await run.run(settings, NOW, ALL)
    assert (done.deleted_attempts, [part.events for part in done.parts]) == (1, [60, 60])
    assert await problems(settings) == []
    assert (await verified(settings)).verified == 120
    ids = {str(part.archive_id) for part in await parts_of(settings)}
    assert [key for key in stored(endpoint) if not any(one in key for one in ids) and not key.endswith("/")] == []
    event_id = await connection.fetchval("SELECT event_id FROM audit_events WHERE log_index = 33")
    await erase(settings, Catalog(), Erasure("asked for", "tests", event_ids=[event_id]), dry_run=False)
    done = await run.run(settings, NOW, ALL)
    assert (len(done.rewritten), done.pending, await problems(settings)) == (1, [], [])
    ids = {str(part.archive_id) for part in await parts_of(settings)}
    assert [key for key in stored(endpoint) if not any(one in key for one in ids) and not key.endswith("/")] == []
    client = client_of(endpoint)
    [tiles, *_] = [key for key in stored(endpoint) if key.endswith("/tiles")]
    client.delete_object(Bucket=BUCKET, Key=tiles)
    assert "removed: tiles is missing" in await problems(settings)


async def test_locked_versions(database_url: str, connection: Connection, endpoint: str, tmp_path: Path) -> None:
    """What was erased stays in a bucket as an old version, under lock or not, and nobody is told."""
    client = client_of(endpoint)
    client.create_bucket(Bucket="locked", ObjectLockEnabledForBucket=True)
    await fill(connection, rounds=2)
    settings = settings_of(database_url, endpoint, tmp_path).model_copy(
        update={"archive_url": "s3://locked/the archive"}
    )
    await run.run(settings, NOW, ALL)
    old = (await parts_of(settings))[1]

    def versions() -> list[dict[str, Any]]:
        listed = client.list_object_versions(Bucket="locked")
        return [*listed.get("Versions", []), *listed.get("DeleteMarkers", [])]

    def hold(status: str) -> None:
        for one in versions():
            if one["Key"].endswith(f"{old.archive_id}/events-0.parquet") and "Size" in one:
                client.put_object_legal_hold(
                    Bucket="locked", Key=one["Key"], VersionId=one["VersionId"], LegalHold={"Status": status}
                )

    hold("ON")
    event_id = await connection.fetchval("SELECT event_id FROM audit_events WHERE log_index = 33")
    await erase(settings, Catalog(), Erasure("asked for", "tests", event_ids=[event_id]), dry_run=False)
    done = await run.run(settings, NOW, ALL)
    assert len(done.rewritten) == 1
    [why] = done.pending
    assert "the bucket keeps 1 version(s), first the archive/parts" in why
    result = await verified(settings)
    assert (result.problem_count, result.undeleted) == (0, [old.location])
    hold("OFF")
    assert (await run.run(settings, NOW, ALL)).pending == []
    assert (await verified(settings)).undeleted == []
    ids = {str(part.archive_id) for part in await parts_of(settings)}
    left = [one["Key"] for one in versions() if not any(part in one["Key"] for part in ids)]
    assert [key for key in left if not key.endswith("/")] == []


def test_signatures_are_those_of_amazon() -> None:
    """Stores that verify signatures, as moto does not, refuse every request about versions."""
    options = {"access_key": "access-key", "secret_key": "secret-key", "region": "eu-central-1"}
    client = Bucket(Storage("s3://bucket/the archive", options))
    path, digest = "/bucket/the%20archive/a%2Bb", sha256(b"<LegalHold/>").hexdigest()
    for method, query, more in (
        ("GET", "prefix=the%20archive%2Fparts%2F&versions=", ()),
        ("PUT", "legal-hold=&versionId=a%2Bb", (digest,)),
    ):
        headers = client._signed(method, path, query, *more)
        authorization = headers.pop("authorization")
        request = AWSRequest(method, f"https://s3.eu-central-1.amazonaws.com{path}?{query}", headers)
        request.context["timestamp"] = headers["x-amz-date"]
        auth = S3SigV4Auth(Credentials("access-key", "secret-key"), "s3", "eu-central-1")
        expected = auth.signature(auth.string_to_sign(request, auth.canonical_request(request)), request)
        assert authorization.endswith(f"SignedHeaders=host;x-amz-content-sha256;x-amz-date, Signature={expected}")


async def test_store_that_is_away(database_url: str, connection: Connection, tmp_path: Path) -> None:
    """A store that does not answer looks like an archive that somebody has changed, or ends in a traceback."""
    await fill(connection, rounds=2)
    settings = settings_of(database_url, f"http://127.0.0.1:{free_port()}", tmp_path)
    with pytest.raises(StorageAway):
        await run.run(settings, NOW, Selection(month=OLD.date().replace(day=1)))
    assert await parts_of(settings) == []


@pytest.mark.damaged  # the verification at the end of every test does not know purges
async def test_removal(database_url: str, connection: Connection, endpoint: str, tmp_path: Path) -> None:
    """From a bucket nothing can be removed or erased; or rows go although it does not answer, or an object of it is gone."""
    await fill(connection, rounds=2)
    settings = settings_of(database_url, endpoint, tmp_path)
    await run.run(settings, NOW, ALL)
    away = settings.model_copy(update={"archive_s3_endpoint": f"http://127.0.0.1:{free_port()}"})
    with pytest.raises(StorageAway):
        await run.run(away, NOW, replace(ALL, remove=True))
    [_, old] = await parts_of(settings)
    folder = old.location.removeprefix(f"s3://{BUCKET}/")
    client_of(endpoint).delete_object(Bucket=BUCKET, Key=f"{folder}/tiles")
    done = (await run.run(settings, NOW, replace(ALL, remove=True))).removal
    assert done is not None
    assert [(one.part.month, one.events) for one in done.removed] == [(f"{OLDER:%Y-%m}", 60)]
    assert len(done.refused) == 1
    order = Erasure("asked for", "tests", correlation_id=f"rr-{OLDER:%m}-0")
    with pytest.raises(StorageAway):
        await erase(settings, Catalog(), order, dry_run=False, search_archive=archive_search(away))
    erased = await erase(settings, Catalog(), order, dry_run=False, search_archive=archive_search(settings))
    assert erased.archived == 30
    assert [part.erased for part in (await run.run(settings, NOW, ALL)).rewritten] == [30]
