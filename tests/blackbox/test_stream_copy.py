"""What a client keeps of the stream is a copy of the log: it says what was purged and what was signed, and verifies."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from pydantic import SecretStr

from app.retention.purge import run
from app.settings import Settings
from tests.blackbox.test_stream import post
from tests.postgres.log import write
from tests.services import ROOT, Service
from tests.streams import NO_TIMEOUT, STREAM

OLD = datetime(2019, 1, 2, tzinfo=UTC).isoformat()


async def kept_until_signed(url: str, file: Path, size: int) -> list[dict[str, Any]]:
    """What a client keeps until a checkpoint covers `size` positions."""
    kept = []
    async with httpx.AsyncClient(base_url=url, timeout=NO_TIMEOUT) as client:
        headers = {"Accept": "application/x-ndjson"}
        async with client.stream("GET", f"{STREAM}?from=start&include=self", headers=headers) as answer:
            with file.open("w") as copy:
                async for line in answer.aiter_lines():
                    copy.write(f"{line}\n")
                    kept.append(json.loads(line))
                    if kept[-1].get("stream") == "checkpoint" and int(kept[-1]["place"].split(":")[1]) >= size:
                        break
    return kept


@pytest.mark.damaged  # a purge is no damage, but the fixture's own counts of rows do not know it
async def test_a_purge_is_told_and_the_copy_verifies(
    service: Callable[..., Service], connection: asyncpg.Connection, database_url: str, tmp_path: Path
) -> None:
    """A copy takes what retention purged for tampering, has nothing that was signed, or differs from the log that it is of."""
    pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "checkpoint.pem").write_bytes(pem)
    url = service(checkpoint_key_file=tmp_path / "checkpoint.pem").url
    await connection.execute("SELECT ensure_partitions('2019-01-01', '2019-01-31')")
    await write(database_url, {"event_timestamp": OLD})
    purged = await connection.fetchval("SELECT log_index FROM audit_events WHERE event_timestamp < '2020-01-01'")
    await run(Settings(database_url=SecretStr(database_url)), datetime.now(UTC))
    await post(url, 3)
    size = await connection.fetchval("SELECT max(log_index) + 1 FROM audit_events")
    copy = tmp_path / "copy.ndjson"
    kept = await kept_until_signed(url, copy, size)
    absent = [record for record in kept if record.get("stream") == "absent"]
    assert absent == [
        {"stream": "absent", "reason": "purged", "first": f"0:{purged}", "end": f"0:{purged + 1}"},
    ]
    assert {record["log_index"] for record in kept if "log_index" in record} >= set(range(size)) - {purged}
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        key = (await client.get("/tlog/key")).text.strip()
    done = subprocess.run(  # noqa: ASYNC221 -- the service is another process
        [sys.executable, "-m", "app", "verify", "--copy", str(copy), "--key", key],
        cwd=ROOT,
        env=os.environ | {"DATASTORAGE_DATABASE_URL": database_url},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["no differences"]), done.stdout + done.stderr
