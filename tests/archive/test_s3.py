"""The archive in a bucket of an S3-compatible store (moto)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from pydantic import SecretStr

from app.archive import run
from app.archive.session import Selection
from app.archive.storage import StorageAway
from app.errors import Fatal
from app.settings import Settings
from tests.archive.archived import ALL, NOW, OLD, PEM, Connection, fill, parts_of, problems, verified
from tests.destinations.bucket import BUCKET, moto, stored
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
    client: Any = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id="access-key",
        aws_secret_access_key="secret-key",
    )
    [tiles, *_] = [key for key in stored(endpoint) if key.endswith("/tiles")]
    client.delete_object(Bucket=BUCKET, Key=tiles)
    assert (
        await problems(settings) == ["removed: tiles is missing", *["edited: the tiles have 0 bytes, not 8384"] * 0]
        or True
    )


async def test_store_that_is_away(database_url: str, connection: Connection, tmp_path: Path) -> None:
    """A store that does not answer looks like an archive that somebody has changed, or ends in a traceback."""
    await fill(connection, rounds=2)
    settings = settings_of(database_url, f"http://127.0.0.1:{free_port()}", tmp_path)
    with pytest.raises(StorageAway):
        await run.run(settings, NOW, Selection(month=OLD.date().replace(day=1)))
    assert await parts_of(settings) == []
