"""How long after its database a service is ready: the milliseconds from the first connection that Postgres could take to `/readyz` 200.

python -m bench.behind [--processes 2] [--runs 5]
"""

import argparse
import asyncio
import statistics
import tempfile
from pathlib import Path
from time import monotonic
from urllib.parse import urlsplit

import httpx

from app import schema
from tests import databases
from tests.proxy import proxy
from tests.services import spawn, stop

_LOG_NAME = "bench.example/behind"
_REFUSED = 3
"""Connections that the service has tried in vain before Postgres is there."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.behind", description=__doc__)
    parser.add_argument("--processes", type=int, default=2, help="of the service (2, as in the chart)")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    with (
        databases.server() as server,
        databases.migrated(server, lambda url: schema.upgrade(url, _LOG_NAME)) as name,
        tempfile.TemporaryDirectory() as directory,
    ):
        url = urlsplit(server)._replace(path=f"/{name}").geturl()
        runs = [asyncio.run(_behind(url, options.processes, Path(directory) / str(run))) for run in range(options.runs)]
    shown = ", ".join(f"{one:.0f}" for one in sorted(runs))
    print(f"{options.processes} processes: ready {statistics.median(runs):.0f} ms behind the database ({shown})")


async def _behind(url: str, processes: int, directory: Path) -> float:
    async with proxy(url) as between:
        await between.refuse(True)
        settings = {"database_url": between.url, "unsafe_database": True, "processes": processes}
        running = await asyncio.to_thread(spawn, settings, directory)
        try:
            for _ in range(_REFUSED):
                await between.refused.acquire()
            async with httpx.AsyncClient(base_url=running.url, timeout=60) as client:
                await client.get("/healthz")
                await between.refuse(False)
                started = monotonic()
                while (await client.get("/readyz")).status_code != 200:  # noqa: ASYNC110 -- the state of another process
                    await asyncio.sleep(0.01)
                return (monotonic() - started) * 1000
        finally:
            await asyncio.to_thread(stop, [running])


if __name__ == "__main__":
    main()
