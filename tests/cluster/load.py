"""Clients that post events with connections that stay open, note what was acknowledged, and look it up afterwards."""

import json
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from itertools import count
from typing import Any
from urllib.parse import urlencode, urlsplit

import httpx

from tests.cluster.kube import Failed, until
from tests.events import make_event

CLIENTS = 4
PAUSE_SECONDS = 0.01
"""Of a client between two events."""
AFTER_SECONDS = 4
"""The load goes on for so long after what it is there for."""
FOUND_SECONDS = 120
"""Afterwards all events have to be found within this time: those of a spool come late."""
_TIMEOUT_SECONDS = 10
_POLL_SECONDS = 0.2
_PAGE = 1000
_ACKNOWLEDGED = {httpx.codes.CREATED, httpx.codes.ACCEPTED}
_numbers = count()


@dataclass
class Target:
    """The service as one caller reaches it."""

    url: str
    token: str = ""
    trusted: ssl.SSLContext | None = None

    def connect(self) -> HTTPConnection:
        where = urlsplit(self.url)
        assert where.hostname
        if where.scheme == "https":
            return HTTPSConnection(where.hostname, where.port, timeout=_TIMEOUT_SECONDS, context=self.trusted)
        return HTTPConnection(where.hostname, where.port, timeout=_TIMEOUT_SECONDS)

    @property
    def headers(self) -> dict[str, str]:
        return {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.token}"} if self.token else {})

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, str]:
        """Status and body of the answer, on a connection of its own."""
        connection = self.connect()
        try:
            connection.request(method, path, None if body is None else json.dumps(body), self.headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def stored(self, correlation_id: str) -> set[str]:
        """The ids of all events of one correlation."""
        found: set[str] = set()
        for offset in count(0, _PAGE):
            query = urlencode({"correlation_id": correlation_id, "limit": _PAGE, "offset": offset})
            status, body = self.ask("GET", f"/api/v1/audit/events?{query}")
            if status != httpx.codes.OK:
                raise Failed(f"search: {status} {body[:200]}")
            page = {event["event_id"] for event in json.loads(body)["data"]}
            found |= page
            if len(page) < _PAGE:
                break
        return found


@dataclass
class Load:
    """What the clients of one load have seen."""

    target: Target
    pause_seconds: float = PAUSE_SECONDS
    acknowledged: dict[str, set[str]] = field(default_factory=dict)
    """Ids by correlation, each of which is one client's."""
    answers: Counter[int] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    """Requests that were refused, or had no answer; nothing is sent twice."""
    longest_gap_seconds: float = 0.0
    """Between two acknowledgements, of whichever clients."""
    _last: float = field(default_factory=time.monotonic)
    _over: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def total(self) -> int:
        return sum(map(len, self.acknowledged.values()))

    def post(self, correlation_id: str) -> None:
        """Be one client, until the load is over."""
        connection = self.target.connect()
        self.acknowledged[correlation_id] = set()
        while not self._over.wait(self.pause_seconds):
            try:
                body = json.dumps(make_event(correlation_id=correlation_id))
                connection.request("POST", "/api/v1/audit/events", body, self.target.headers)
                answer = connection.getresponse()
                self._note(correlation_id, answer.status, answer.read())
            except (HTTPException, OSError) as error:
                with self._lock:
                    self.failures.append(repr(error))
                connection.close()
        connection.close()

    def _note(self, correlation_id: str, status: int, body: bytes) -> None:
        with self._lock:
            self.answers[status] += 1
            if status not in _ACKNOWLEDGED:
                self.failures.append(f"{status} {body[:200].decode(errors='replace')}")
                return
            now = time.monotonic()
            self.longest_gap_seconds = max(self.longest_gap_seconds, now - self._last)
            self._last = now
            self.acknowledged[correlation_id].add(json.loads(body)["event_id"])

    def lost(self, patience_seconds: float = FOUND_SECONDS) -> int:
        """Events that were acknowledged and cannot be found."""
        missing = set[str]().union(*self.acknowledged.values())
        end = time.monotonic() + patience_seconds
        while missing:
            for correlation_id in self.acknowledged:
                with suppress(Failed, HTTPException, OSError):  # the service may be about to come back
                    missing -= self.target.stored(correlation_id)
            if time.monotonic() > end:
                break
            time.sleep(_POLL_SECONDS)
        return len(missing)

    def over(self) -> None:
        self._over.set()


@contextmanager
def load(target: Target, pause_seconds: float = PAUSE_SECONDS, after_seconds: float = AFTER_SECONDS) -> Iterator[Load]:
    """Clients that post during the block and for a few seconds after it, as long as it does not fail."""
    running = Load(target, pause_seconds)
    names = [f"rr-cluster-{next(_numbers)}-{time.time_ns()}" for _ in range(CLIENTS)]
    clients = [threading.Thread(target=running.post, args=(name,)) for name in names]
    for client in clients:
        client.start()
    try:
        until("the first events", lambda: running.total > 10 * CLIENTS)
        yield running
        time.sleep(after_seconds)
    finally:
        running.over()
        for client in clients:
            client.join()
