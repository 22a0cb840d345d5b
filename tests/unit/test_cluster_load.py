"""The load of `make cluster`: its zeros are worth nothing unless it sees what is not zero."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

from tests.cluster.load import Load, Target, load
from tests.listening import listening


@dataclass
class _State:
    stored: list[tuple[str, str]] = field(default_factory=list)
    """Correlation and id."""
    forgotten: int = 0
    failed: int = 0
    posts: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class _Service(BaseHTTPRequestHandler):
    """Acknowledges events, of which it forgets each tenth; refuses each seventh, and hangs up on each eleventh."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one packet an answer: the kernel waits 40 ms between two
    state: _State

    def do_POST(self) -> None:
        event = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.state.lock:
            self.state.posts += 1
            status, event_id = self._decide(self.state.posts, event["correlation_id"])
        if status:
            self._answer(status, {"event_id": event_id})
        else:
            self.close_connection = True

    def _decide(self, number: int, correlation_id: str) -> tuple[int, str]:
        """Status, 0 for none, and id."""
        event_id = str(uuid4())
        if number % 7 == 0 or number % 11 == 0:
            self.state.failed += 1
            return (503 if number % 7 == 0 else 0), event_id
        if number % 10:
            self.state.stored.append((correlation_id, event_id))
        else:
            self.state.forgotten += 1
        return 201, event_id

    def do_GET(self) -> None:
        asked = parse_qs(urlsplit(self.path).query)
        ids = [
            event_id for correlation_id, event_id in self.state.stored if [correlation_id] == asked["correlation_id"]
        ]
        page = ids[int(asked["offset"][0]) :][: int(asked["limit"][0])]
        self._answer(200, {"data": [{"event_id": one} for one in page]})

    def _answer(self, status: int, body: Any) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the base class's name
        pass


@contextmanager
def _service() -> Iterator[tuple[Target, _State]]:
    state = _State()
    with listening(ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Service,), {"state": state}))) as url:
        yield Target(url), state


def test_what_is_lost_and_what_fails_is_counted() -> None:
    """An event that was acknowledged and not stored counts as stored, or a request without an answer as none at all."""
    with _service() as (target, state):
        with load(target, pause_seconds=0.001, after_seconds=0) as running:
            pass
        assert running.lost(patience_seconds=0) == state.forgotten > 0
        assert len(running.failures) == state.failed > 0
        assert running.total + state.failed == state.posts


def test_a_whole_page_is_followed_by_the_next() -> None:
    """Events beyond the first thousand of a correlation count as lost."""
    with _service() as (target, state):
        state.stored += [("rr-many", str(number)) for number in range(2500)]
        running = Load(target, acknowledged={"rr-many": {str(number) for number in range(2501)}})
        assert running.lost(patience_seconds=0) == 1
