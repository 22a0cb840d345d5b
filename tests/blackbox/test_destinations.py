"""Events of a service on their way to a real rsyslog, a receiver of OTLP and a real S3-compatible store, while all of them end."""

import gzip
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from tests.certificates import Authority
from tests.destinations import rsyslog
from tests.destinations.bucket import BUCKET, moto, stored
from tests.destinations.collector import Reply, collector
from tests.events import make_event
from tests.services import ROOT, Service
from tests.waiting import until

NASTY = {"x": 'line\nfeed \x1b[31m \x7f \x85 "quote" \\ ] ü 🎉 \u202e'}


def sinks_file(directory: Path, **sinks: dict[str, Any]) -> Path:
    path = directory / "sinks.yaml"
    path.write_bytes(orjson.dumps({"sinks": [{"name": name, "from": "start"} | sink for name, sink in sinks.items()]}))
    return path


def positions(lines: Iterable[bytes]) -> set[int]:
    return {found["log_index"] for line in lines if "log_index" in (found := orjson.loads(line))}


def assert_verified(database_url: str, *files: Path) -> None:
    """`datastorage verify --copy` finds no difference between a copy and the database."""
    environment = os.environ | {"DATASTORAGE_DATABASE_URL": database_url}
    command = [sys.executable, "-m", "app", "verify", "--copy", *map(str, files)]
    found = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.skipif(
    rsyslog.PROGRAM is None and not os.environ.get("DATASTORAGE_TEST_RSYSLOG"), reason="there is no rsyslog"
)
def test_every_copy_is_that_of_the_log(service: Callable[..., Service], database_url: str, tmp_path: Path) -> None:
    """A copy has a hole where service, receiver or connection ended, or its events are not those of the log any more."""
    authority = Authority(tmp_path)
    for name in ("access", "secret"):
        (tmp_path / name).write_text(f"{name}-key")
    lies = [Reply(503), Reply(503, stores=True), Reply(None, stores=True)]
    with (
        rsyslog.rsyslog(tmp_path / "rsyslog", authority) as syslog,
        collector(*lies) as otlp,
        moto(tmp_path) as endpoint,
    ):
        keys = {"access_key_file": str(tmp_path / "access"), "secret_key_file": str(tmp_path / "secret")}
        sinks = sinks_file(
            tmp_path,
            syslog={"type": "syslog", "host": "localhost", "port": syslog.port, "ca_file": str(authority.path)},
            otlp={"type": "otlp", "url": otlp.url},
            bucket={"type": "s3", "bucket": BUCKET, "endpoint": endpoint, "wait_ms": 700, **keys},
        )
        for _ in range(3):
            running = service(sinks=sinks)
            for number in range(20):
                events = [make_event(correlation_id=f"rr-{number % 3}", error_message=NASTY["x"]) for _ in range(10)]
                assert httpx.post(f"{running.url}/api/v1/audit/events/batch", json=events).status_code == 201
                if number == 10:
                    syslog.kill()
                    syslog.start()
            running.process.kill()
            running.process.wait()
        service(sinks=sinks)
        expected = set(range(600))

        def syslog_lines() -> list[bytes]:
            # One that is killed while it writes leaves a part of a message, and the next one begins in the same line.
            parts = b"\n".join(syslog.lines()).split(b'{"event_id":')
            return [b'{"event_id":' + one.strip() for one in parts if one.strip().endswith(b'"sealed":true}')]

        def objects() -> dict[str, bytes]:
            return {key: body for key, body in stored(endpoint).items() if not key.startswith("manifests/")}

        def written(name: str, bodies: Iterable[bytes]) -> list[Path]:
            files = []
            for number, body in enumerate(bodies):
                files.append(tmp_path / f"{name}-{number}")
                files[-1].write_bytes(body)
            return files

        until(lambda: positions(syslog_lines()) >= expected or None)
        until(lambda: positions(record.body.string_value.encode() for record in otlp.records) >= expected or None)
        until(lambda: sum(gzip.decompress(body).count(b"\n") for body in objects().values()) >= 600 or None)
        assert_verified(database_url, *written("bucket", objects().values()))
        bodies = [record.body.string_value.encode() for record in otlp.records]
        assert_verified(database_url, *written("otlp", [b"\n".join(bodies) + b"\n"]))
        assert_verified(database_url, *written("syslog", [b"\n".join(syslog_lines()) + b"\n"]))
