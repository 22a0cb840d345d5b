"""A year of events in the archive: python -m bench.archive_year --rows 10000000 --directory /var/tmp/year

Fills a database with twelve months of events, archives them, verifies, removes them from Postgres, verifies again, and reads
what only the archive has, as the service reads it. The directory stays: `--steps` repeats single ones. `purge` is instead of `remove`:
months are dropped as a whole, which takes a tenth of the time.
"""

import argparse
import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

from pydantic import SecretStr

from app.embedded import EmbeddedPostgres
from app.settings import Settings
from bench import archive
from bench.export import make_key
from bench.processes import create_databases, database_url

_MONTHS = 12
_STEPS = ("fill", "archive", "files", "verify", "remove", "read")
_ALL_STEPS = (*_STEPS, "purge")
_NAME = "year"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.archive_year", description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--steps", nargs="+", choices=_ALL_STEPS, default=_STEPS)
    options = parser.parse_args()
    directory: Path = options.directory
    directory.mkdir(mode=0o711, exist_ok=True)
    with EmbeddedPostgres.start(directory / "data") as postgres:
        url, target = database_url(postgres.url, _NAME), directory / "archive"
        if "fill" in options.steps:
            make_key(directory / "log.pem")
            create_databases(postgres.url, _NAME)
            seconds = asyncio.run(archive.fill(url, directory, options.rows, _MONTHS, _show(options.rows)))
            print(f"{options.rows:,} events written in {seconds:.0f} s", flush=True)
        environment = os.environ | archive.environment(url, directory, target)
        steps: dict[str, list[tuple[str, ...]]] = {
            "archive": [("archive", "run")],
            "files": [("archive", "verify")],
            "verify": [("verify",)],
            "remove": [("archive", "run", "--remove"), ("verify",)],
        }
        for step, commands in steps.items():
            for command in commands if step in options.steps else ():
                peak = archive.run(environment, options.rows, " ".join(command), *command)
                print(f"  {' '.join(command)}: {peak:.0f} MB", flush=True)
        settings = Settings(database_url=SecretStr(url), archive_url=f"file://{target}")
        if "purge" in options.steps:
            asyncio.run(archive.purge_all(settings, options.rows))
        if "read" in options.steps:
            asyncio.run(archive.print_reads(settings, options.rows))


def _show(rows: int) -> Callable[[int], None]:
    started = perf_counter()

    def show(written: int) -> None:
        if written % 100_000 == 0:
            left = (rows - written) * (perf_counter() - started) / written
            print(f"{written:,} events written, {left:.0f} s left", file=sys.stderr, flush=True)

    return show


if __name__ == "__main__":
    main()
