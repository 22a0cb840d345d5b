"""How long the proof of an event takes: of the first and the last one of a log, with many leaves without rows between them."""

import asyncio
import itertools
import os
from pathlib import Path
from time import monotonic, sleep

import asyncpg
import httpx

from app.embedded import EmbeddedPostgres
from app.tlog import keys
from bench import bodies
from bench.client import Load, drive, prepared
from bench.processes import Running, create_databases, database_url, service

_FLUSH_LEAVES = 100
_PATIENCE_SECONDS = 600
_PROOFS = 1_000


def measure(postgres: EmbeddedPostgres, directory: Path, leaves: int) -> tuple[float, dict[str, Load]]:
    """Seconds until the whole log was signed, and the loads of asking for the proofs of the first and the last event."""
    keys.create_key_file(directory / "checkpoint.pem")
    create_databases(postgres.url, "proving")
    url = database_url(postgres.url, "proving")
    with service(database_url=url, migrate=True, checkpoint_key_file=directory / "checkpoint.pem") as server:
        first = _post(server)
        asyncio.run(_fill(url, leaves))
        begun = monotonic()
        last = _post(server)
        _wait_until_signed(server, leaves + 2)
        seconds = monotonic() - begun
        return seconds, {"first": _proofs(server, first), "last": _proofs(server, last)}


def _proofs(server: Running, event_id: str) -> Load:
    paths = itertools.repeat(f"/api/v1/audit/events/{event_id}/proof")
    return drive(server.port, prepared(bodies.gets(paths), _PROOFS), 1, 60)


def _post(server: Running) -> str:
    answer = httpx.post(f"http://127.0.0.1:{server.port}/api/v1/audit/events", json=bodies.event("proof"))
    return str(answer.raise_for_status().json()["event_id"])


async def _fill(url: str, leaves: int) -> None:
    connection = await asyncpg.connect(url)
    end: int = await connection.fetchval("SELECT max(first_index + count) FROM log_flushes")
    flushes = (
        (0, end + place, _FLUSH_LEAVES, os.urandom(32 * _FLUSH_LEAVES)) for place in range(0, leaves, _FLUSH_LEAVES)
    )
    columns = ("log_id", "first_index", "count", "leaves")
    await connection.copy_records_to_table("log_flushes", records=flushes, columns=columns)
    await connection.execute("VACUUM ANALYZE log_flushes")
    await connection.close()


def _wait_until_signed(server: Running, size: int) -> None:
    deadline = monotonic() + _PATIENCE_SECONDS
    while True:
        answer = httpx.get(f"http://127.0.0.1:{server.port}/tlog/checkpoint", timeout=60)
        # 404 until the first one is signed.
        if answer.status_code == httpx.codes.OK and int(answer.text.split("\n")[1]) >= size:
            return
        if monotonic() > deadline:
            raise SystemExit("bench: the log is not signed")
        sleep(0.1)
