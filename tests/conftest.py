"""Fixtures of every test: a server for the session, a migrated database for each test, and the service as processes."""

import signal
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import hypothesis
import pytest
from httpx._transports import default as transports

from tests import databases, services

if TYPE_CHECKING:
    from tests.apiserver import ApiServer
    from tests.issuer import Issuer

LOG_NAME = "test.example/datastorage"


hypothesis.settings.register_profile("unhurried", deadline=None)  # a busy machine is no defect
hypothesis.settings.load_profile("unhurried")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--each-case",
        type=int,
        default=1,
        metavar="N",
        help="of a test with many cases the first, and each Nth after it",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    every, cases = config.getoption("--each-case"), defaultdict[str, list[pytest.Item]](list)
    for item in items:
        cases[item.nodeid.partition("[")[0]].append(item)
    chosen = {item for of_one in cases.values() for item in of_one[::every]}
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = [item for item in items if item in chosen]


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # by the shell that has started this in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)  # commands inherit it, and tests interrupt some
    # Each client of httpx would read the certificates of all authorities, which is 40 ms of CPU.
    transports.create_ssl_context = cache(transports.create_ssl_context)  # type: ignore[attr-defined]
    config.addinivalue_line(
        "markers", "damaged: the test damages the data on purpose, so it is not verified at its end"
    )
    config.addinivalue_line("markers", "every_pod: the test runs on a service of one, of two and of four processes")


@pytest.fixture(autouse=True)
def no_process_stays() -> Iterator[None]:
    """One test that fails must not make others fail."""
    yield
    services.kill_running()


@pytest.fixture(scope="session", autouse=True)
def no_stray_spools() -> Iterator[None]:
    """Nothing is left where a service of the machine's user has its spool: a later one on the port would replay it."""
    yield
    assert services.stray_spools() == []


@pytest.fixture(scope="session")
def server_url() -> Iterator[str]:
    """A Postgres on which databases may be made; see tests/databases.py for where it comes from."""
    with databases.server() as url:
        yield url


@pytest.fixture(scope="session")
def template_database(server_url: str) -> Iterator[str]:
    """Name of a database with the schema and no event. Not to be connected to."""
    from app import schema

    with databases.migrated(server_url, lambda url: schema.upgrade(url, log_name=LOG_NAME)) as name:
        yield name


@pytest.fixture
async def database_url(server_url: str, template_database: str, request: pytest.FixtureRequest) -> AsyncIterator[str]:
    """A fresh database with the schema. After the test all that was written to it is verified."""
    url = await databases.create(server_url, template=template_database)
    yield url
    try:
        if request.node.get_closest_marker("damaged") is None:
            await verify(url)
    finally:
        await databases.drop(server_url, url)


async def verify(database_url: str) -> None:
    from tests.verification import verify_everything

    async with databases.connected(database_url) as connection:
        await verify_everything(connection)


@pytest.fixture
async def connection(database_url: str) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """A connection to the database of `database_url`, with asyncpg's own conversions."""
    async with databases.connected(database_url) as connection:
        yield connection


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.definition.get_closest_marker("every_pod") is not None:
        metafunc.parametrize("processes", [1, 2, 4], indirect=True)


@pytest.fixture
def processes(request: pytest.FixtureRequest) -> int:
    """Of each service of the test that is not started with another number."""
    return int(getattr(request, "param", services.PROCESSES))


@pytest.fixture
def service(database_url: str, tmp_path: Path, processes: int) -> Iterator[Callable[..., services.Service]]:
    """Starts one `datastorage serve` per call on the test's database, and returns when it is ready.

    Keywords are further settings, without their prefix: `service(batch_events_max=5)`; None removes one. `wait_for` is
    the URL to ask for readiness, if not the service's. At the end each one is stopped and
    has to exit with 0, except those that the test has ended itself.
    """
    started: list[services.Service] = []

    def start(wait_for: str | None = None, **settings: object) -> services.Service:
        # The embedded server of the tests does not wait for the disk.
        settings = {"database_url": database_url, "unsafe_database": True, "processes": processes} | settings
        started.append(services.spawn(settings, tmp_path / f"service-{len(started)}"))
        services.wait_until_ready(started[-1], wait_for)
        return started[-1]

    try:
        yield start
    finally:
        codes = services.stop(started)
    assert set(codes) <= {0}, "\n".join(one.log.read_text() for one in started)


@pytest.fixture
def api() -> "Iterator[ApiServer]":
    """A Kubernetes API server that reviews tokens and access."""
    from tests.apiserver import api_server

    with api_server() as server:
        yield server


@pytest.fixture
def idp() -> "Iterator[Issuer]":
    """An OpenID Connect issuer."""
    from tests.issuer import issuer

    with issuer() as made:
        yield made
