"""Which addresses the service listens on, and that it is asked and told of them right."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests import starting
from tests.certificates import Authority
from tests.services import ROOT, Service, free_port, spawn, wait_until_ready


def health(**settings: object) -> "subprocess.CompletedProcess[str]":
    """What the image's health check does."""
    env = {f"DATASTORAGE_{name.upper()}": str(value) for name, value in settings.items()} | {"PYTHONPATH": str(ROOT)}
    env["http_proxy"] = "http://127.0.0.1:9"  # on which nobody listens
    command = [sys.executable, "-m", "app", "health"]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=30, check=False)


def test_both_families(service: Callable[..., Service]) -> None:
    """With both wildcards, one family is not served, on one of the ports, or a client's IPv6 address is not logged."""
    ports = {"health_port": free_port(), "metrics_port": free_port()}
    running = service(host="0.0.0.0, [::]", allow_unauthenticated=True, **ports)
    for host in ("127.0.0.1", "[::1]"):
        assert httpx.get(f"http://{host}:{running.url.rpartition(':')[2]}/readyz").status_code == 200
        assert httpx.get(f"http://{host}:{ports['health_port']}/healthz").status_code == 200
        assert httpx.get(f"http://{host}:{ports['metrics_port']}/metrics").status_code == 200
        assert httpx.get(f"http://{host}:{ports['metrics_port']}/readyz").status_code == 404
    asked = health(host="0.0.0.0,::", port=running.url.rpartition(":")[2])
    assert (asked.returncode, '"healthy"' in asked.stdout) == (0, True), asked.stderr
    assert '"remote_addr":"::1"' in running.log.read_text()


def test_ipv6_only_with_tls(database_url: str, tmp_path: Path) -> None:
    """A service on IPv6 alone is not served with TLS, or its health check asks elsewhere."""
    Authority(tmp_path).write_pair(tmp_path / "tls", "localhost")
    health_port = free_port()
    settings = {"database_url": database_url, "unsafe_database": True, "host": "::1", "tls_dir": tmp_path / "tls"}
    running = spawn(settings | {"health_port": health_port}, tmp_path / "service")
    wait_until_ready(running, f"http://[::1]:{health_port}")
    port = running.url.rpartition(":")[2]
    asked = health(host="::1", port=port, tls_dir=tmp_path / "tls")
    assert (asked.returncode, asked.stderr) == (0, "")
    elsewhere = health(host="127.0.0.1", port=port)
    assert (elsewhere.returncode, elsewhere.stderr.startswith("datastorage: ")) == (1, True)
    running.process.terminate()
    assert running.process.wait(30) == 0


NAMELESS = {
    "serve": ("There is no directory for what this command stores: HOME is not set", {}),
    "serve with a directory": (
        "Postgres cannot be set up by user 12345, who has no entry in passwd",
        {"DATA_DIR": "state"},
    ),
    "verify": ("There is no directory for what this command stores", {}),
    "openapi": ("", {}),
    "settings": ("", {}),
}


def test_neither_home_nor_passwd(tmp_path: Path) -> None:
    """A command that needs no directory of its own does not run in a container without users, or one that does has a traceback."""
    starts = {}
    for number, (name, (_, settings)) in enumerate(NAMELESS.items()):
        (tmp_path / str(number)).mkdir()
        environment = {f"DATASTORAGE_{key}": value for key, value in settings.items()}
        environment["DATASTORAGE_PORT"] = str(free_port())
        starts[name] = starting.Start(str(tmp_path / str(number)), environment, name.split()[:1], nameless=True)
    for name, outcome in starting.run(starts).items():
        expected, code = NAMELESS[name][0], {"openapi": 0, "settings": 0, "verify": 2}.get(name, 1)
        assert (outcome.code, expected in outcome.errors) == (code, True), outcome
        assert outcome.errors.count("\n") == (1 if code else 0)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1,localhost"])
def test_names_and_repeated_addresses(host: str) -> None:
    """A name is not resolved, or an address that is named twice is refused as taken."""
    from app.serve import listening
    from app.settings import Settings

    with listening(Settings(host=host, port=free_port())) as sockets:
        addresses = [one.getsockname()[0] for one in sockets]
    assert "127.0.0.1" in addresses
    assert len(addresses) == len(set(addresses))
