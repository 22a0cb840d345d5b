"""A replica that stops under load: clients with connections of their own lose no request, since each answer tells them to go."""

import json
import signal
import threading
from collections.abc import Callable
from http.client import HTTPConnection, HTTPException

import httpx
import pytest

from tests.events import make_event
from tests.services import Service, is_ready
from tests.waiting import until

CLIENTS = 8
EVENTS = "/api/v1/audit/events"


class Load:
    """Clients that post one event after the other, each on a connection that it leaves only when an answer says so.

    What they connect to is the first replica that is ready, as routers have it.
    """

    def __init__(self, urls: list[str]) -> None:
        self._urls = urls
        self._is_over = threading.Event()
        self.faults: list[str] = []
        self.acknowledged: list[str] = []
        self.farewells: list[str] = []
        """The URL of each connection that an answer has ended."""
        self._threads = [threading.Thread(target=self._post) for _ in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def _post(self) -> None:
        while not self._is_over.is_set() and not self.faults:
            url = until(lambda: next((url for url in self._urls if is_ready(url)), None))
            connection = HTTPConnection(url.removeprefix("http://"), timeout=20)
            try:
                while not self._is_over.is_set() and self._post_one(connection):
                    pass
                if not self._is_over.is_set():
                    self.farewells.append(url)
            except (OSError, HTTPException) as error:
                self.faults.append(f"{url}: {error!r}")
            finally:
                connection.close()

    def _post_one(self, connection: HTTPConnection) -> bool:
        """Whether the connection stays."""
        body = json.dumps(make_event(correlation_id="rr-load"))
        connection.request("POST", EVENTS, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        document = json.loads(answer.read())
        if answer.status != 201:
            self.faults.append(f"{answer.status} {document}")
            return False
        self.acknowledged.append(document["event_id"])
        return (answer.getheader("connection") or "").lower() != "close"


@pytest.mark.every_pod
def test_keep_alive_clients_lose_nothing(service: Callable[..., Service]) -> None:
    """A request fails on a connection that the replica closes while it stops, or a client stays there until that."""
    first, second = service(propagation_delay_ms=30_000), service()
    load = Load([first.url, second.url])
    try:
        until(lambda: len(load.acknowledged) > 5 * CLIENTS or None)
        with httpx.Client(base_url=first.url) as idle, httpx.Client(base_url=first.url) as asked:
            assert idle.get("/healthz").headers.get("connection") is None
            assert asked.get("/healthz").headers.get("connection") is None
            first.process.send_signal(signal.SIGTERM)
            until(lambda: None if is_ready(first.url) else True)
            assert asked.get("/healthz").headers["connection"] == "close"
            until(lambda: load.farewells.count(first.url) >= CLIENTS or None)
            first.process.send_signal(signal.SIGTERM)  # the second one ends the delay
            assert first.process.wait(60) == 0  # with the other one's connection still open
    finally:
        load.end()
    assert load.faults == []
    assert load.farewells == [first.url] * len(load.farewells)
    with httpx.Client(base_url=second.url, timeout=30) as client:
        found = client.get(EVENTS, params={"correlation_id": "rr-load", "limit": 1}).json()["pagination"]["total"]
    assert found == len(set(load.acknowledged)) == len(load.acknowledged)
