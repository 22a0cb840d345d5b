"""Where the service's time goes, by sampling it under load: python -m bench.where. Needs `py-spy` (from PyPI) on PATH."""

import subprocess
import tempfile
from collections import Counter
from pathlib import Path

from app.embedded import EmbeddedPostgres
from bench import bodies
from bench.client import drive, prepared
from bench.processes import service

SECONDS = 8
# The innermost frame that belongs to one of these parts decides.
PARTS = {
    "envelope and payload checks": ("check_payload", "check_envelope", "events/envelope", "events/catalog"),
    "JSON in, canonical form out": ("canonical",),
    "links and leaf hashes": ("ingest/link", "record_leaf_hash"),
    "rows, records, commitments, ids": ("ingest/accept", "events/record", "events/ids"),
    "asyncpg: encoding and protocol": ("asyncpg", "app/db.py"),
    "flush: the rest of it": ("ingest/store",),
    "writer and receipts": ("ingest/writer", "ingest/submission"),
    "access log and metrics": ("logs.py", "prometheus"),
}
REST = "HTTP: uvicorn, starlette, front, event loop"


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="datastorage-bench-") as directory:
        Path(directory).chmod(0o711)
        with (
            EmbeddedPostgres.start(Path(directory) / "data") as postgres,
            service(database_url=postgres.url, migrate=True) as server,
        ):
            drive(server.port, bodies.singles("warm"), 16, 1)
            for name, requests, connections in (
                ("single at 64", prepared(bodies.singles("where"), 5_500 * SECONDS), 64),
                ("batch at 16", prepared(bodies.batches("where"), 180 * SECONDS), 16),
            ):
                stacks = Path(directory) / "stacks"
                command = ("py-spy", "record", "--rate", "400", "--format", "raw", "--duration", str(SECONDS))
                sampler = subprocess.Popen(
                    [*command, "--output", str(stacks), "--pid", str(server.pid)],
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
                load = drive(server.port, requests, connections, SECONDS + 1)
                sampler.wait()
                report(f"{name}, {load.rate:,.0f} requests/s while sampled", stacks.read_text())


def report(title: str, stacks: str) -> None:
    found: Counter[str] = Counter()
    for line in stacks.splitlines():
        stack, _, samples = line.rpartition(" ")
        found[part(stack.split(";"))] += int(samples)
    print(title)
    for name, number in found.most_common():
        print(f"  {name:45} {100 * number / found.total():5.1f} %")


def part(stack: list[str]) -> str:
    for frame in reversed(stack):
        for name, marks in PARTS.items():
            if any(mark in frame for mark in marks):
                return name
    return REST


if __name__ == "__main__":
    main()
