"""`datastorage tail`: the log as it is written, on a terminal's side."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO

import httpx

from app.cli.exits import Exit
from tests.events import make_event
from tests.services import ROOT, Service, free_port, stop

EVENTS = "/api/v1/audit/events"
COMMAND = [sys.executable, "-m", "app", "tail"]


def post(url: str, number: int) -> list[str]:
    answers = [httpx.post(url + EVENTS, json=make_event(), timeout=60) for _ in range(number)]
    assert {answer.status_code for answer in answers} == {201}
    return [answer.json()["event_id"] for answer in answers]


@contextmanager
def tail(url: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [*COMMAND, "--url", url, *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def events_of(output: IO[str] | None, number: int) -> list[str]:
    """The ids of the next events that are printed."""
    assert output is not None
    found: list[str] = []
    while len(found) < number:
        record = json.loads(output.readline())
        if "event_id" in record:
            found.append(record["event_id"])
    return found


def test_it_goes_on_where_it_was(service: Callable[..., Service]) -> None:
    """A service that starts again costs the copy an event, or gives it one twice."""
    port = free_port()
    first = service(port=port)
    ids = post(first.url, 3)
    with tail(first.url, "--json", "--from", "start") as process:
        found = events_of(process.stdout, 3)
        for _ in range(2):
            stop([first])
            first = service(port=port)
            ids += post(first.url, 2)
            found += events_of(process.stdout, 2)
        assert found == ids
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == Exit.INTERRUPTED
        assert process.stderr is not None
        said = process.stderr.read().splitlines()
        assert "Traceback" not in "".join(said)
        assert any("trying again" in line for line in said) == any("connected again" in line for line in said)


def test_from_the_empty_log_on(service: Callable[..., Service]) -> None:
    """What is written to an empty log while the connection is lost is never shown."""
    port = free_port()
    first = service(port=port)
    with tail(first.url, "--json") as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline()) == {"stream": "position", "place": "0:0"}
        first.process.kill()
        first.process.wait()
        ids = post(service(port=port).url, 2)
        assert events_of(process.stdout, 2) == ids


def test_columns(service: Callable[..., Service]) -> None:
    """People see JSON, or nothing until a buffer is full."""
    url = service().url
    with tail(url, "--from", "start", "--outcome", "failure") as process:
        ids = []
        for outcome in ("failure", "success", "failure"):
            answer = httpx.post(url + EVENTS, json=make_event(event_outcome=outcome), timeout=60)
            ids.append(answer.json()["event_id"])
        assert process.stdout is not None
        head, *rows = [process.stdout.readline().split() for _ in range(3)]
        assert (head[0], head[-1]) == ("happened", "id")
        assert [row[-1] for row in rows] == [ids[0], ids[2]]


def test_a_reader_that_goes(service: Callable[..., Service]) -> None:
    """`| head` ends with a traceback, or tail stays when its reader is gone."""
    url = service().url
    post(url, 2)
    with tail(url, "--json", "--from", "start") as process:
        events_of(process.stdout, 2)
        assert process.stdout is not None
        process.stdout.close()
        post(url, 1)
        assert process.wait(60) == Exit.NO_READER
        assert process.stderr is not None
        assert process.stderr.read() == ""
