"""Clients that are not ours, as they come, over plain HTTP and over TLS. Each needs its runtime."""

import json
import os
import shutil
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.certificates import Authority
from tests.events import make_event
from tests.services import Service, free_port

HERE = Path(__file__).parent
CURL = ["curl", "--silent", "--show-error", "--cacert", "{ca}", "-o", "/dev/null", "-w", "%{{http_code}}\n", "-H"]
COMMANDS = {
    "java": [
        "java",
        "-Xshare:auto",
        "-XX:TieredStopAtLevel=1",
        str(HERE / "Client.java"),
        "{url}",
        "{ca}",
        "{0}",
        "{1}",
    ],
    "node": ["node", str(HERE / "client.mjs"), "{url}", "{ca}", "{0}", "{1}"],
    "go": ["go", "run", str(HERE / "client.go"), "{url}", "{ca}", "{0}", "{1}"],
    "curl-http2": [*CURL, "Content-Type: application/json", "--http2", "-d", "@{0}", "{url}"],
    "curl-100": [*CURL, "Content-Type: application/json", "-H", "Expect: 100-continue", "-d", "@{0}", "{url}"],
}


def run(client: str, url: str, ca: Path, directory: Path) -> list[str]:
    """The statuses that `client` got for its posts."""
    program = COMMANDS[client][0]
    if shutil.which(program) is None:
        pytest.skip(f"there is no {program}")
    if program == "go" and "DATASTORAGE_TEST_GO" not in os.environ:
        pytest.skip("compiles for a minute; `make clients` runs it")
    files = [directory / f"{client}-{number}.json" for number in range(2)]
    for file in files:
        file.write_text(json.dumps(make_event()))
    command = [part.format(*files, url=url, ca=ca) for part in COMMANDS[client]]
    env = os.environ | {"NODE_EXTRA_CA_CERTS": str(ca), "SSL_CERT_FILE": str(ca)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_posts(service: Callable[..., Service], tmp_path: Path, subtests: pytest.Subtests) -> None:
    """A stock client cannot post: its offer to upgrade costs the body, or what it waits for does not come."""
    authority = Authority(tmp_path)
    authority.write_pair(tmp_path / "pair", "service")
    health_port = free_port()
    secured = service(tls_dir=tmp_path / "pair", health_port=health_port, wait_for=f"http://127.0.0.1:{health_port}")
    for url in (service().url, secured.url.replace("http", "https")):
        events = f"{url}/api/v1/audit/events"
        for client in COMMANDS:
            with subtests.test(client, url=url):
                assert {*run(client, events, authority.path, tmp_path)} == {"201"}
        with (
            subtests.test("httpx", url=url),
            httpx.Client(verify=ssl.create_default_context(cafile=authority.path)) as own,
        ):
            assert {own.post(events, json=make_event()).status_code for _ in range(2)} == {201}
