"""`datastorage tail`: the log as it is written, for people and for programs."""

import argparse
import json
import select
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from app.cli import client, filters, output
from app.cli.client import Parameters, Service
from app.cli.output import Output
from app.cli.parser import Commands
from app.cli.searching import EVENT_HEAD, event_row
from app.cli.times import Clock
from app.errors import Fatal, Usage

if TYPE_CHECKING:
    import httpx

_STREAM = "/api/v1/audit/stream"
_SILENCE_SECONDS = 45.0
"""Three times as long as the service is silent at most."""
_PAUSE_SECONDS, _PAUSE_SECONDS_MAX = 0.5, 10.0


def add(commands: Commands) -> None:
    tail = commands.add_parser("tail", help="follow the log as it is written")
    tail.description = (
        "Each event of the log once, in its order, until Ctrl-C. A connection that breaks is opened again, and goes on "
        "where it was."
    )
    filters.add_filters(tail, "the event's time", unsealed=False)  # what is unsealed has no position
    tail.add_argument(
        "--from",
        dest="start",
        metavar="PLACE",
        default="now",
        help="where to begin: start, now, or LOG:POSITION such as 0:4711, whose event is the first one (now)",
    )
    output.add_output(tail)
    client.add_service(tail)
    tail.set_defaults(run=_tail)


class _Record(NamedTuple):
    name: str
    line: str
    """A JSON object."""


def _tail(arguments: argparse.Namespace) -> None:
    clock = Clock(arguments.zone)
    arguments.no_pager = True  # a pager would wait for the end
    following = _Following(
        Service.of(arguments), filters.parameters_of(arguments, clock.zone_name) | {"from": arguments.start}
    )
    with output.shown(arguments) as out:
        shown = _Lines(out) if out.is_json else _Rows(out, clock)
        for records in following.records():
            for record in records:
                shown.show(record)
            out.flush()
            _stop_without_reader()


class _Lines:
    """For programs: the lines of the stream as they are, but for those about the connection."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self._place = ""

    def show(self, record: _Record) -> None:
        if record.name == "closed":
            return
        if record.name == "position":  # also says that the service lives, and once more where a connection goes on
            if record.line == self._place:
                return
            self._place = record.line
        self._out.json_line(record.line)


class _Rows:
    """For people: a row for each event, and words for what is missing."""

    def __init__(self, out: Output, clock: Clock) -> None:
        self._out, self._clock = out, clock
        self._is_first = True

    def show(self, record: _Record) -> None:
        if record.name == "audit":
            self._out.row(EVENT_HEAD, event_row(json.loads(record.line), self._clock), header=self._is_first)
            self._is_first = False
        elif record.name == "absent":
            what = json.loads(record.line)
            text = f"no events from position {what['first']} up to {what['end']}: {what['reason']}"
            self._out.aside(text, "" if what["reason"] == "purged" else output.WARNING)
        elif record.name == "seam":
            what = json.loads(record.line)
            self._out.aside(f"the log {what['closed']} was closed here, {what['log']} continues it", output.WARNING)


class _Following:
    """The stream over as many connections as it needs."""

    def __init__(self, service: Service, wanted: Parameters) -> None:
        self._service = service
        self._wanted = dict(wanted)
        self._last = ""
        """The place that was seen last; empty before the first."""
        self._has_begun = False
        self._is_connected = False
        self._pause = _PAUSE_SECONDS

    def records(self) -> Iterator[list[_Record]]:
        """Records, as many together as have arrived together. Raises Fatal, and Usage for what the service refuses."""
        http = self._service.http
        import httpx

        while True:
            try:
                headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": self._last} if self._last else {})
                timeout = httpx.Timeout(10.0, read=_SILENCE_SECONDS)
                with http.stream("GET", _STREAM, params=self._wanted, headers=headers, timeout=timeout) as answer:
                    self._check(answer)
                    yield from self._read(answer)
            except httpx.HTTPError as error:
                if not self._has_begun:
                    with self._service.errors():
                        raise
                self._note(f"the connection was lost ({type(error).__name__})")
            time.sleep(self._pause)
            self._pause = min(2 * self._pause, _PAUSE_SECONDS_MAX)

    def _check(self, answer: "httpx.Response") -> None:
        if answer.is_success:
            if self._has_begun and not self._is_connected:
                output.note("connected again")
            self._has_begun = self._is_connected = True
            return
        answer.read()
        error = client.refusal(answer)
        if not self._has_begun:
            raise error
        if answer.status_code >= 500 or answer.status_code == 429:
            self._note(error.detail)
            self._pause = max(self._pause, client.pause_seconds(answer.headers.get("retry-after", "")))
        elif isinstance(error, Usage):  # it was none at first: the log is not the one that it was
            raise Fatal(error.detail)
        else:
            raise error

    def _note(self, text: str) -> None:
        """Say once that there is no connection."""
        if self._is_connected:
            output.note(f"{text}; trying again")
        self._is_connected = False

    def _read(self, answer: "httpx.Response") -> Iterator[list[_Record]]:
        """What arrives. A record counts once it is whole."""
        if answer.is_error:
            return
        name = line = last = ""
        rest = b""
        for chunk in answer.iter_bytes():
            self._pause = _PAUSE_SECONDS
            found = list[_Record]()
            *lines, rest = (rest + chunk).split(b"\n")
            for text in (one.decode() for one in lines):
                field, _, value = text.partition(": ")
                if field == "event":
                    name = value
                elif field == "data":
                    line = value
                elif field == "id":
                    last = value
                elif not text and name:
                    found.append(_Record(name, line))
                    self._seen(name, line, last)
                    name = line = last = ""
            yield found

    def _seen(self, name: str, line: str, last: str) -> None:
        self._last = last or self._last
        if name == "position" and not self._last:  # before the first position of a log there is none to go on after
            place: dict[str, Any] = json.loads(line)
            self._wanted["from"] = place["place"]


def _stop_without_reader() -> None:
    """BrokenPipeError if nobody reads the output any more, also while there is nothing to write."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    if any(event & select.POLLERR for _, event in poll.poll(0)):
        raise BrokenPipeError
