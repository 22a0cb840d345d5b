"""A real Collector, configured as docs/receivers.md has it, sends log records to a service. `make collector` builds it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from tests.blackbox.test_access import bearer, write_tokens
from tests.blackbox.test_otlp_sdk import is_free
from tests.collector.otelcol import needs_program, running
from tests.log_records import PROTOBUF, record, request
from tests.services import Service, free_port, wait_until_ready
from tests.waiting import until

pytestmark = needs_program
REQUESTS, RECORDS = 60, 20


@contextmanager
def otelcol(directory: Path, service_url: str, token: str, **changes: str) -> Iterator[str]:
    """A Collector that sends to the service; its URL for log records. `changes` replace text of the documented configuration."""
    port = free_port()
    used = {"0.0.0.0:4318": f"127.0.0.1:{port}", "https://datastorage.example": service_url} | changes
    with running(directory, "receivers.md", used, DATASTORAGE_TOKEN=token):
        until(lambda: not is_free(port) or None)
        yield f"http://127.0.0.1:{port}/v1/logs"


def send(url: str, body: bytes) -> None:
    """Post until it is taken."""

    def post() -> bool | None:
        with suppress(httpx.TransportError):
            return (
                httpx.post(url, content=body, headers={"Content-Type": PROTOBUF}, timeout=60).status_code == 200 or None
            )
        return None

    until(post)


@pytest.mark.parametrize("encoding", ["proto", "json"])
def test_the_service_is_killed(service: Callable[..., Service], tmp_path: Path, encoding: str) -> None:
    """What a Collector was sending while the service was killed is lost, or stored twice when it cuts its queue anew."""
    path, port = tmp_path / "tokens.yaml", free_port()
    token = write_tokens(path, collector="writer")["collector"]
    settings = {"port": port, "spool_dir": tmp_path / "spool", "auth": "tokens", "tokens_file": path, "processes": 2}
    running = service(**settings)

    def stored() -> int:
        with suppress(httpx.TransportError):
            page = httpx.get(
                f"{running.url}/api/v1/audit/events", params={"limit": 1}, headers=bearer(token), timeout=60
            )
            return int(page.json()["pagination"]["total"]) if page.status_code == 200 else -1
        return -1

    changes = {"    sending_queue:": "    encoding: json\n    sending_queue:"} if encoding == "json" else {}
    with otelcol(tmp_path, running.url, token, **changes) as url:
        for number in range(REQUESTS):
            correlation = {"audit.correlation_id": f"rr-{number % 3}"}
            send(url, request(*(record(attributes=correlation) for _ in range(RECORDS))).SerializeToString())
            if number in {20, 40}:
                until(lambda: stored() > 0 or None)
                running.process.kill()
                running.process.wait()
                until(lambda: is_free(port) or None)
                running = service(**settings)
                wait_until_ready(running)
        until(lambda: stored() >= REQUESTS * RECORDS or None)
    assert stored() == REQUESTS * RECORDS


def test_partial_success(service: Callable[..., Service], tmp_path: Path) -> None:
    """A Collector sends a request with a bad record for ever, or does not say which one was not stored and why."""
    path = tmp_path / "tokens.yaml"
    token = write_tokens(path, collector="writer")["collector"]
    running = service(auth="tokens", tokens_file=path)
    with otelcol(tmp_path, running.url, token) as url:
        send(url, request(record(), record(attributes={"audit.event_outcome": None}), record()).SerializeToString())
        output = tmp_path / "output"
        until(lambda: "audit.event_outcome: required, but missing" in output.read_text() or None)
        assert "1 of 3 log records are not stored" in output.read_text()
    page = httpx.get(f"{running.url}/api/v1/audit/events", headers=bearer(token)).json()
    assert page["pagination"]["total"] == 2
