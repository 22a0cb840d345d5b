"""The short form of the torture tests: one fault of each cheap kind, under load. `make torture` is the long one."""

import asyncio
import gc
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.torture.faults import KINDS
from tests.torture.postgres import Postgres
from tests.torture.run import Report, one_world, prepared
from tests.torture.world import Needs

# Clients whose connections are cut at any time leave sockets to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """They are collected here, not in another test."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    """A directory on a disk, accessible to the user that Postgres runs as."""
    with tempfile.TemporaryDirectory(prefix="torture-") as made:
        Path(made).chmod(0o755)
        yield Path(made)


@pytest.fixture(scope="module")
def template(directory: Path) -> Postgres:
    return asyncio.run(prepared(directory))


async def _survives(template: Postgres, directory: Path, names: list[str], needs: Needs | None = None) -> None:
    report, missing = Report(), names
    for attempt in range(3):  # a fault may have no effect, or find too few requests in flight
        kinds = [KINDS[name] for name in missing]
        await one_world(report, template, kinds, f"short-{attempt}", directory, needs=needs, batch_sizes=(1, 2, 5))
        if skipped := [line.skipped for line in report.lines.values() if line.skipped]:
            pytest.skip(skipped[0])
        assert report.is_good, report.table()
        if not (missing := [name for name in names if not report.line(name).faults]):
            return
    raise AssertionError(f"never under enough load: {missing}")


async def test_processes_and_connections_end(template: Postgres, directory: Path) -> None:
    """A process or a connection that ends at a bad time, crowds of readers, or a server that refuses to write, loses what was
    acknowledged, or stores it twice; or reads stay broken."""
    names = [
        "service killed while it spools",
        "service killed in replay",
        "postgres killed",
        "answer lost",
        "reader storm",
        "postgres turns read-only",
    ]
    await _survives(template, directory, names, Needs(proxies=True))


async def test_disks_fill_up(template: Postgres, directory: Path) -> None:
    """A full disk of Postgres, then of the spool too, loses what was acknowledged, or is answered other than 503."""
    await _survives(template, directory, ["both disks full"])


async def test_spool_disk_fails(template: Postgres, directory: Path) -> None:
    """What the spool could not make durable is acknowledged, or what it refused is replayed beside its resend."""
    await _survives(template, directory, ["spool disk fails"])
