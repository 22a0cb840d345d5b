"""Posts events as a client that knows every replica and asks each one's /readyz once a second, until it is told to stop.

load.py STOP URL...: ends when the file STOP exists. Prints how many events were acknowledged. Fails when a post is answered by
anything but 201, or when afterwards not exactly the acknowledged events are stored. Needs nothing but Python.
"""

import json
import os
import sys
import threading
import time
from datetime import UTC, datetime
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from urllib.request import urlopen

THREADS = 8
LIFE_SECONDS = 180
"""Whatever happens to the one who should make STOP."""
TIMEOUT_SECONDS = 10


class Load:
    """What the threads share: which replicas are ready, what was acknowledged, and what went wrong."""

    def __init__(self, stop: Path, urls: list[str]) -> None:
        self.stop = stop
        self.urls = urls
        self.ready: list[str] = []
        self.faults: list[str] = []
        self.acknowledged = [0] * THREADS
        self.end = time.monotonic() + LIFE_SECONDS

    @property
    def over(self) -> bool:
        """Whether to send no more."""
        return bool(self.faults) or self.stop.exists() or time.monotonic() > self.end

    def watch(self) -> None:
        """Ask each replica once a second whether it is ready."""
        while not self.over:
            self.ready = [url for url in self.urls if is_ready(url)]
            time.sleep(1)

    def post(self, thread: int) -> None:
        """Post one event after the other to a replica that is ready; leave it when it no longer is."""
        while not self.over:
            ready = self.ready
            if not ready:
                time.sleep(0.02)
                continue
            url = ready[thread % len(ready)]
            connection = HTTPConnection(url.removeprefix("http://"), timeout=TIMEOUT_SECONDS)
            try:
                while url in self.ready and not self.over:
                    self.acknowledged[thread] += post_one(connection, correlation_id(thread))
            except (HTTPException, OSError, ValueError) as error:
                self.faults.append(f"{url}: {error!r}")
            finally:
                connection.close()


def is_ready(url: str) -> bool:
    try:
        with urlopen(f"{url}/readyz", timeout=1) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def correlation_id(thread: int) -> str:
    return f"rr-load-{os.getpid()}-{thread}"


def post_one(connection: HTTPConnection, correlation: str) -> int:
    event = {
        "version": "1.0",
        "event_type": "orchestrator.phase.transitioned",
        "event_timestamp": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        "event_category": "orchestration",
        "event_action": "transitioned",
        "event_outcome": "success",
        "correlation_id": correlation,
        "event_data": {"from_phase": "Pending", "to_phase": "Processing"},
    }
    headers = {"Content-Type": "application/json"}
    connection.request("POST", "/api/v1/audit/events", json.dumps(event), headers)
    answer = connection.getresponse()
    body = answer.read()
    if answer.status != 201:
        raise ValueError(f"{answer.status} {body.decode(errors='replace')[:200]}")
    return 1


def stored(url: str, correlation: str) -> int:
    with urlopen(f"{url}/api/v1/audit/events?correlation_id={correlation}&limit=1", timeout=TIMEOUT_SECONDS) as answer:
        return int(json.load(answer)["pagination"]["total"])


def main(stop: Path, asked: str, urls: list[str]) -> int:
    load = Load(stop, urls)
    threads = [threading.Thread(target=load.watch)]
    threads += [threading.Thread(target=load.post, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, acknowledged in enumerate(load.acknowledged):
        found = stored(asked, correlation_id(number))
        if found != acknowledged:
            load.faults.append(f"{acknowledged} events were acknowledged and {found} are stored")
    print(f"{sum(load.acknowledged)} events acknowledged and stored, {len(load.faults)} faults")
    print("\n".join(load.faults), file=sys.stderr)
    return 1 if load.faults or not all(load.acknowledged) else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:]))
