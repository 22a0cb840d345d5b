"""`datastorage try`: posts one event that says what it is, and follows it through the service until it is proved."""

import argparse
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TypeVar
from uuid import uuid4

from app.cli import client, output
from app.cli.client import NotThere, Service
from app.cli.exits import Exit
from app.cli.parser import Commands
from app.cli.show import CORRELATIONS, EVENTS
from app.errors import Fatal, Usage

_TYPE = "datastorage.service.tried"
_PAUSE_SECONDS = 0.5

_Answer = TypeVar("_Answer")


class _Wrong(Exception):
    """What the service shows is not what was sent to it."""


def add(commands: Commands) -> None:
    trial = commands.add_parser(
        "try", help="post an event, find it, verify its chain and its proof: does the service work"
    )
    trial.description = (
        f"One event of the type {_TYPE} stays. Exit code 1: the service has stored or proved something else."
    )
    trial.add_argument("--purpose", default="datastorage try", metavar="TEXT", help="why; it stands in the event")
    trial.add_argument(
        "--key", help="of the log as /tlog/key shows it, or a file that holds it; else as the service shows it"
    )
    trial.add_argument(
        "--wait",
        type=float,
        default=10,
        metavar="SECONDS",
        help="for a service that does not answer yet, and for the first checkpoint (10)",
    )
    client.add_service(trial)
    trial.set_defaults(run=_try)


def _try(arguments: argparse.Namespace) -> Exit:
    trial = _Trial(Service.of(arguments), arguments.purpose, time.monotonic() + arguments.wait)
    try:
        for step in (trial.post, trial.find, trial.verify_chain):
            _report(trial.patiently(step))
        _report(trial.patiently(lambda: trial.verify_proof(arguments.key)))
    except _Wrong as error:
        output.note(f"datastorage: {error}")
        return Exit.DEFECT
    return Exit.AS_ASKED


def _report(text: str) -> None:
    """At once: somebody follows the log of a pod."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


class _Trial:
    """One event and what becomes of it. Each step returns a line about itself."""

    def __init__(self, service: Service, purpose: str, end: float) -> None:
        self._service = service
        self._end = end
        event_id = str(uuid4())
        self._event = {
            "event_id": event_id,
            "version": "1.0",
            "event_type": _TYPE,
            "event_timestamp": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "event_category": "security",
            "event_action": "tried",
            "event_outcome": "success",
            "correlation_id": f"try-{event_id}",
            "event_data": {"event_type": _TYPE, "purpose": purpose},
        }
        self._path = f"{EVENTS}/{event_id}"
        self._position = -1

    def post(self) -> str:
        self._service.send("POST", EVENTS, self._event)
        return f"posted   {_TYPE} {self._event['event_id']} to {self._service.shown_url}"

    def find(self) -> str:
        """In its correlation, once it is committed; by its id, and by a filter."""
        correlation = str(self._event["correlation_id"])
        story = self._service.json(f"{CORRELATIONS}/{client.segment(correlation)}")
        ids = [one["event_id"] for one in story["events"]]
        if ids != [self._event["event_id"]] or "log_index" not in story["events"][0]:
            raise _Wrong(
                f"its correlation {correlation} has the events {ids} instead of this one, or it has no position"
            )
        self._position = int(story["events"][0]["log_index"])
        listed = self._service.json(EVENTS, {"correlation_id": correlation})["data"]
        for shown in (self._service.json(self._path), *listed):
            for name in ("event_id", "event_type", "correlation_id", "event_data"):
                if shown[name] != self._event[name]:
                    raise _Wrong(f"{name} was {self._event[name]!r} when it was posted, and is {shown[name]!r} now")
        return f"found    at position {self._position} of the log, by its id and by its correlation"

    def verify_chain(self) -> str:
        wanted = {"correlation_id": self._event["correlation_id"]}
        result = self._service.send("POST", "/api/v1/audit/verify-chain", wanted)
        if not result["is_valid"] or result["verified_events"] != 1:
            raise _Wrong(f"its chain is not valid: {result['message']}")
        return "verified its chain: the event has the hash that it was stored with"

    def verify_proof(self, key: str | None) -> str:
        """Where the log is signed: its position in the log, computed here from the proof and the key."""
        try:
            keys = key or self._service.get("/tlog/key").text
        except NotThere as error:
            return f"NOT proved: {error.detail}"
        from app.tlog.keys import read_public_keys
        from app.tlog.note import MalformedNote, NoValidSignature
        from app.tlog.proof import verify_proof_file

        answer = self._service.get_once_covered(f"{self._path}/proof", {})
        try:
            proved = verify_proof_file(answer.content, read_public_keys(keys))
        except (MalformedNote, NoValidSignature) as error:
            raise _Wrong(f"its proof does not prove it: {error}") from None
        if (proved.record["event_id"], proved.record["log_index"]) != (self._event["event_id"], self._position):
            raise _Wrong("its proof is that of another event")
        whose = "the key that was given" if key else "the key that the service shows"
        return f"proved   in a log of {proved.checkpoint.size} events, with {whose}"

    def patiently(self, step: Callable[[], _Answer]) -> _Answer:
        """The step's result. Until the time is over, it is repeated if it fails: a service or a permission may be new."""
        while True:
            try:
                return step()
            except Usage:
                raise
            except Fatal:
                if time.monotonic() + _PAUSE_SECONDS > self._end:
                    raise
            time.sleep(_PAUSE_SECONDS)
