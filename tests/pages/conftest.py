"""A service with data, a browser, and readers: one of each for the tests of a module."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from playwright.sync_api import Browser

from tests import databases, services
from tests.conftest import verify
from tests.pages.browser import PROGRAM, Reader, aside, chromium
from tests.waiting import until

REMEDIATIONS = 12


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if PROGRAM is None and os.environ.get("DATASTORAGE_TEST_CHROMIUM") != "required":
        for item in items:
            if "browser" in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.skip(reason="there is no Chromium"))


@pytest.fixture(scope="module")
def pages_database(server_url: str, template_database: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """URL of a database for the tests of one module, verified at their end, unless the module is marked `damaged`."""
    url = aside(lambda: databases.create(server_url, template=template_database))
    yield url
    try:
        if request.node.get_closest_marker("damaged") is None:
            aside(lambda: verify(url))
    finally:
        aside(lambda: databases.drop(server_url, url))


@pytest.fixture(scope="module")
def pages_service(pages_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[services.Service]:
    """A service without authentication, which signs, with the events of some simulated remediations of the last day."""
    directory = tmp_path_factory.mktemp("pages")
    key = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (directory / "key.pem").write_bytes(key)
    settings: dict[str, object] = {"database_url": pages_database, "unsafe_database": True}
    settings["checkpoint_key_file"] = directory / "key.pem"
    with services.lasting(settings, directory / "service") as service:
        simulate(service.url)
        yield service


def simulate(url: str, *arguments: str) -> None:
    """Post the events of REMEDIATIONS remediations, the same ones each time."""
    command = [sys.executable, "-m", "app", "simulate", "--url", url, "--remediations", str(REMEDIATIONS), *arguments]
    subprocess.run([*command, "--hours", "20", "--post-only"], cwd=services.ROOT, capture_output=True, check=True)


def wait_for_proofs(client: httpx.Client) -> None:
    """Return when a signed checkpoint has every event that was posted before."""
    size = client.get("/api/v1/audit/trust").json()["log"]["size"]
    until(lambda: _checkpoint_size(client) >= size or None)


def _checkpoint_size(client: httpx.Client) -> int:
    answer = client.get("/tlog/checkpoint")
    return int(answer.text.split("\n")[1]) if answer.status_code == 200 else 0


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture
def reader(browser: Browser, pages_service: services.Service) -> Iterator[Callable[..., Reader]]:
    """Makes readers of the service, or of another one by its `url`: `reader(javascript=False, width=360, scheme="dark")`.

    At the end none of their pages may have made a request to another host, or reported an error: a refused script is one.
    """
    readers: list[Reader] = []

    def make(url: str = "", *, javascript: bool = True, width: int = 1280, scheme: str = "light") -> Reader:
        readers.append(Reader(browser, url or pages_service.url, javascript=javascript, width=width, scheme=scheme))
        return readers[-1]

    yield make
    for one in readers:
        one.context.close()
    assert [fault for one in readers for fault in one.faults] == []


def picture_path(name: str) -> Path | None:
    """Where the picture of this name is written for the README, if DATASTORAGE_TEST_PICTURES asks for it."""
    return services.ROOT / "docs" / "pictures" / f"{name}.png" if os.environ.get("DATASTORAGE_TEST_PICTURES") else None
