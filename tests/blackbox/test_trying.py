"""`datastorage try`: one event through the whole service, as `helm test` runs it."""

import json
import re
import ssl
import subprocess
import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx

from tests.certificates import Authority
from tests.listening import listening
from tests.services import ROOT, Service, free_port, spawn, stop, wait_until_ready

TRY = [sys.executable, "-m", "app", "try"]


def started(directory: Path, *options: object) -> "subprocess.Popen[str]":
    env = {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [*TRY, *map(str, options)], cwd=directory, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def tried(directory: Path, *options: object) -> tuple[int, str, str]:
    """Exit code, output and errors."""
    process = started(directory, *options)
    output, errors = process.communicate()
    return process.returncode, output, errors


def test_event_is_followed(service: Callable[..., Service], tmp_path: Path) -> None:
    """`helm test` passes although nothing was posted, found or proved; or it fails where the certificate is no authority's."""
    authority = Authority(tmp_path)
    authority.write_pair(tmp_path / "tls", "localhost")
    subprocess.run(
        [sys.executable, "-m", "app", "checkpoint-key", "log.pem"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        check=True,
    )
    health_port = free_port()
    running = service(
        tls_dir=tmp_path / "tls",
        checkpoint_key_file=tmp_path / "log.pem",
        health_port=health_port,
        wait_for=f"http://127.0.0.1:{health_port}",
    )
    url = running.url.replace("http://127.0.0.1", "https://localhost")
    with httpx.Client(base_url=url, verify=ssl.create_default_context(cafile=authority.path)) as client:
        for trusted in (authority.path, tmp_path / "tls" / "tls.crt"):
            code, output, errors = tried(
                tmp_path, "--url", url, "--ca-file", trusted, "--purpose", "to see", "--wait", "60"
            )
            assert (code, errors) == (0, "")
            assert [line.split()[0] for line in output.splitlines()] == ["posted", "found", "verified", "proved"]
            posted = re.findall(r"[0-9a-f-]{36}", output)[0]
            event = client.get(f"/api/v1/audit/events/{posted}").json()
            assert event["event_data"] == {"event_type": "datastorage.service.tried", "purpose": "to see"}
    assert tried(tmp_path, "--url", url, "--wait", 0)[0] == 2
    Authority(tmp_path).write_pair(tmp_path / "other", "localhost")
    code, _, errors = tried(tmp_path, "--url", url, "--ca-file", tmp_path / "other" / "tls.crt", "--wait", 0)
    assert code == 2
    assert "CERTIFICATE_VERIFY_FAILED" in errors


def test_waits_for_the_service(database_url: str, tmp_path: Path) -> None:
    """`helm test` right after `helm install` fails, or a log that nobody signs fails it, or passes as if it were proved."""
    port = free_port()
    waiting = started(tmp_path, "--url", f"http://127.0.0.1:{port}", "--wait", "60")
    running = spawn({"database_url": database_url, "unsafe_database": True, "port": port}, tmp_path / "service")
    try:
        output, errors = waiting.communicate()
        assert (waiting.returncode, errors) == (0, "")
        assert "NOT proved: No checkpoints are signed" in output
        wait_until_ready(running)
    finally:
        assert stop([running]) == [0]


class _Forgetful(BaseHTTPRequestHandler):
    """Answers every event with 201 and finds another one."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(201, {})

    def do_GET(self) -> None:
        self._answer(200, {"events": [{"event_id": "another", "log_index": 7}]})

    def _answer(self, status: int, document: object) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(document).encode())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the base class's name
        pass


def test_another_event_is_found(tmp_path: Path) -> None:
    """A service that loses what it has acknowledged passes its test."""
    with listening(ThreadingHTTPServer(("127.0.0.1", 0), _Forgetful)) as url:
        code, output, errors = tried(tmp_path, "--url", url)
    assert code == 1
    assert "has the events ['another'] instead of this one" in errors
    assert output.startswith("posted")
