"""What indexes cost a write: python -m bench.index_cost audit_events_actor audit_events_resource

COPY of rows as the service writes them, by turns into a database with all indexes and into one without those that are named; CPU time of
the server's process for each row.
"""

import asyncio
import random
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from app import schema
from app.db import Connection, connect_writer
from app.embedded import EmbeddedPostgres
from app.ingest.store import COPY_COLUMNS
from app.settings import Settings
from bench.copy import ROWS_AT_ONCE, rows
from bench.processes import create_databases, database_url

ROUNDS, PORTIONS = 15, 6
_ACTOR, _RESOURCE = COPY_COLUMNS.index("actor_id"), COPY_COLUMNS.index("resource_id")


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/schedstat").read_text().split()
    return int(fields[0]) / 1e9


def varied(made: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """The rows as of 60 controllers, and of remediations of 10 events each of one of 10,000 resources."""
    changed = []
    for number, row in enumerate(made):
        values = list(row)
        if number % 10 == 0:
            resource = f"payments/deployment-{random.randrange(10_000)}"
        values[_ACTOR], values[_RESOURCE] = f"controller-{random.randrange(60)}", resource
        changed.append(tuple(values))
    return changed


async def cost(connection: Connection, pid: int) -> float:
    """Microseconds of CPU for each row."""
    made = varied(rows(ROWS_AT_ONCE * PORTIONS))
    before = cpu_seconds(pid)
    for at in range(0, len(made), ROWS_AT_ONCE):
        await connection.copy_records_to_table(
            "audit_events", records=made[at : at + ROWS_AT_ONCE], columns=COPY_COLUMNS
        )
    return (cpu_seconds(pid) - before) / len(made) * 1e6


async def measure(urls: dict[str, str], indexes: list[str]) -> None:
    connections = {}
    for name, url in urls.items():
        await schema.upgrade(url, "bench")
        connections[name] = await connect_writer(Settings(database_url=SecretStr(url)))
        if name == "without":
            for index in indexes:
                await connections[name].execute(f'DROP INDEX "{index}"')
    pids = {name: await connection.fetchval("SELECT pg_backend_pid()") for name, connection in connections.items()}
    costs: dict[str, list[float]] = {name: [] for name in urls}
    for turn in range(ROUNDS):
        for name in sorted(urls, reverse=bool(turn % 2)):
            costs[name].append(await cost(connections[name], pids[name]))
    for name, values in costs.items():
        print(f"{name:8} median {statistics.median(values):6.1f} µs of Postgres's CPU a row, least {min(values):6.1f}")
    ratios = [one / other for one, other in zip(costs["with"], costs["without"], strict=True)]
    print(f"ratio of the pairs: median {statistics.median(ratios):.3f}")
    for index in indexes:
        size = await connections["with"].fetchval(
            "SELECT sum(pg_relation_size(inhrelid)) FROM pg_inherits WHERE inhparent = $1::text::regclass", index
        )
        number = await connections["with"].fetchval("SELECT count(*) FROM audit_events")
        print(f"{index}: {int(size) / number:.0f} bytes a row, of {number:,} rows")


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="datastorage-bench-", ignore_cleanup_errors=True) as directory:
        Path(directory).chmod(0o711)
        with EmbeddedPostgres.start(Path(directory) / "data") as postgres:
            create_databases(postgres.url, "with_all", "without_some")
            urls = {
                "with": database_url(postgres.url, "with_all"),
                "without": database_url(postgres.url, "without_some"),
            }
            asyncio.run(measure(urls, sys.argv[1:]))


if __name__ == "__main__":
    main()
