"""Bodies that are withheld, too many, or from somebody who may not send them, over a socket."""

import hashlib
import socket
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.events import make_event
from tests.services import Service

EVENTS, BATCH = "/api/v1/audit/events", "/api/v1/audit/events/batch"
OTHERS = ("/api/v1/audit/notifications", "/api/v1/audit/verify-chain", "/api/v1/audit/legal-hold")
LARGE = 800_000
TOKEN = "a-token-of-a-reader-which-is-long-enough-to-be-one"


class Sender:
    """One connection that sends the head of a POST, and of its body what it is told to."""

    def __init__(self, service: Service, path: str, length: str = f"Content-Length: {LARGE}", token: str = "") -> None:
        port = int(service.url.rpartition(":")[2])
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{length}\r\n"
        self.socket.sendall((head + (f"Authorization: Bearer {token}\r\n" if token else "") + "\r\n").encode())

    def answer(self) -> tuple[int, str]:
        """Status and everything of the answer, up to the end of the connection."""
        with self.socket:
            received = b"".join(iter(lambda: self.socket.recv(1 << 16), b""))
        return int(received[9:12]), received.decode().lower()


def post_small(service: Service) -> None:
    """What was sent before it has arrived once it is answered."""
    assert httpx.post(service.url + EVENTS, json=make_event(), timeout=60).status_code == 201


@pytest.mark.parametrize("path", [EVENTS, BATCH, *OTHERS])
def test_withheld_bodies(service: Callable[..., Service], path: str) -> None:
    """Connections that hold back the end of their bodies fill the memory, or cost the events of others."""
    running = service(inbox_bytes_max=1024 * 1024)
    withheld = Sender(running, path)
    withheld.socket.sendall(b" " * (LARGE - 1))
    post_small(running)
    chunked = Sender(running, path, "Transfer-Encoding: chunked")
    chunked.socket.sendall(b"40000\r\n" + b" " * 0x40000 + b"\r\n")
    announced = Sender(running, path)
    for refused in (chunked, announced):
        status, text = refused.answer()
        assert (status, "retry-after: 1\r\n" in text, "connection: close\r\n" in text) == (503, True, True)
    post_small(running)
    withheld.socket.sendall(b" ")
    assert withheld.socket.recv(12) == b"HTTP/1.1 400"
    withheld.socket.close()
    large = make_event(error_message="x" * LARGE)
    assert httpx.post(running.url + EVENTS, json=large, timeout=60).status_code == 201  # there is space again


def test_who_may_not_write_sends_no_body(service: Callable[..., Service], tmp_path: Path) -> None:
    """The token of a mere reader is enough to fill the memory."""
    tokens = tmp_path / "tokens.yaml"
    tokens.write_text(f"- {{name: jane, role: reader, sha256: {hashlib.sha256(TOKEN.encode()).hexdigest()}}}")
    running = service(auth="tokens", tokens_file=tokens)
    for path in (EVENTS, BATCH, *OTHERS):
        for length in (f"Content-Length: {LARGE}", "Transfer-Encoding: chunked"):
            sender = Sender(running, path, length, TOKEN)  # and not one byte of the body
            assert sender.socket.recv(12) == b"HTTP/1.1 403"
            sender.socket.close()
