"""A database with two months that are due for the archive, and what is in the archive."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pyarrow as pa
import pyarrow.parquet as pq
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from pydantic import SecretStr

from app.archive.compare import ArchiveResult, list_parts, verify_archive
from app.archive.recorded import RecordedPart
from app.archive.session import Selection
from app.settings import Settings
from app.tlog.note import PublicKey
from app.tlog.tiles import extend_tiles
from tests.logs import FIRST_LOG
from tests.postgres.test_tampering import sign
from tests.sealed import LOG, seal

Connection = asyncpg.Connection


def within_a_day(time: datetime) -> datetime:
    """The time, or near midnight one a little earlier: what fill() makes around it is all of one day, and of one month."""
    around = timedelta(minutes=10)
    return time if (time - around).date() == (time + around).date() else time - 2 * around


NOW = within_a_day(datetime.fromisoformat(os.environ.setdefault("DATASTORAGE_TEST_NOW", datetime.now(UTC).isoformat())))
"""The same in processes that a test starts, also after the end of a month."""
KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))  # the same in every process
PUBLIC = PublicKey(LOG, KEY.public_key().public_bytes_raw())
PEM = KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
ALL = Selection()
DAYS = {"retention_floor_days": 1, "retention_ceiling_days": 30}
"""Settings with which all that is due for the archive is over."""


def month_ago(count: int) -> datetime:
    """The tenth of the month so many months ago, at noon."""
    first = NOW.replace(day=1, hour=12, minute=0, second=0, microsecond=123456)
    for _ in range(count):
        first = (first - timedelta(days=1)).replace(day=1)
    return first.replace(day=10)


OLDER, OLD = month_ago(7), month_ago(6)


def settings_of(url: str, directory: Path, **more: Any) -> Settings:
    return Settings(
        database_url=SecretStr(url), archive_url=f"file://{directory}/archive", checkpoint_key=SecretStr(PEM), **more
    )


ODD = {
    "event_type": "orchestrator.phase.transitioned",  # free-form: any payload
    "event_data": {"big": 12345678901234567890123, "small": 0.1, "\ue000": 2, "\U0001f600": 1, "nested": [{"a": None}]},
}


async def fill(connection: Connection, rounds: int = 10, per_round: int = 30) -> None:
    """Events of two months in turn, of two correlations each; and as many of now."""
    for turn in range(rounds):
        for time in (OLDER, OLD, NOW):
            columns = [_columns(time + timedelta(seconds=turn * 60 - number), number) for number in range(per_round)]
            await seal(connection, f"rr-{time:%m}-{turn % 2}", *columns)
    await publish(connection)


def _columns(time: datetime, number: int) -> dict[str, Any]:
    """Every kind of value that a column can have, and NULL where it can."""
    every = {
        "actor_ip": "2001:db8::1" if number % 2 else "192.0.2.7",
        "resource_name": "ä" * (number % 3),
        "namespace": "payments",
        "cluster_id": "c-1",
        "severity": "info",
        "duration_ms": number,
        "error_code": "E1",
        "error_message": 'no "room"\n\u202e',
        "trace_id": "t",
        "span_id": "s",
        "retention_days": 30,
    }
    event_data = f'{{"b": {number}.50, "a": "\\u00fc \U0001f600", "n": null}}'
    return {"event_timestamp": time, "event_date": time.date(), "event_data": event_data} | (
        every if number % 3 else {}
    )


async def publish(connection: Connection) -> str:
    """Build the tiles, and sign and publish a checkpoint, as the service does once a second."""
    async with connection.transaction():
        while await extend_tiles(connection, FIRST_LOG):
            pass
    note = await sign(connection, KEY)
    await connection.execute("UPDATE log_checkpoints SET published_at = now()")
    return note


async def parts_of(settings: Settings) -> list[RecordedPart]:
    return await list_parts(settings)


async def verified(settings: Settings, depth: Any = "all") -> ArchiveResult:
    return await verify_archive(settings, [PUBLIC], depth)


async def problems(settings: Settings, depth: Any = "all") -> list[str]:
    """All that is wrong with the archive."""
    result = await verified(settings, depth)
    return (
        result.table_problems
        + result.expired_problems
        + [problem for _, one in result.parts for problem in one.problems]
    )


def folder_of(part: RecordedPart) -> Path:
    return Path(part.location.removeprefix("file://"))


def rows_of(part: RecordedPart) -> list[dict[str, Any]]:
    files = sorted(folder_of(part).glob("*.parquet"))
    return list(pa.concat_tables([pq.read_table(file) for file in files]).to_pylist())


def files_of(directory: Path) -> set[str]:
    archive = directory / "archive"
    return {str(one.relative_to(archive)) for one in archive.rglob("*") if one.is_file()}
