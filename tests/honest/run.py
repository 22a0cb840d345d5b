"""Honest traffic raises no alarm: remediations of some hours, with 50 events for each second of their time, sent as fast as possible.

Meanwhile everything runs that changes or removes rows, each by its command or its route: holds, policies, purges, erasure, exports. The
background verifier never pauses. After half of it a standby takes over that missed acknowledged events: that is named, the log is
continued, and the rest of the traffic goes to the next log. At the end everything is verified. Nothing may be wrong but the loss, and
nothing at all once that is acknowledged.
"""

import asyncio
import itertools
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests import databases, forkserver, services
from tests.services import ROOT
from tests.waiting import until

EVENTS_PER_SECOND = 50
EVENTS_PER_LIFE = 9.7
VERIFIER_EVENTS_PER_SECOND = 20_000
PAUSE_SECONDS = 0.5
ROUNDS_BETWEEN_REPORTS = 10
QUIET_SECONDS = 600
COMMAND_SECONDS = 3600
LIVES_LOST = 20
"""Remediations that the standby missed."""
LOGS = 2
ALARMS_OF_A_LOSS = {"rolled_back", "rewritten", "incomplete"}
FINDINGS_OF_A_LOSS = {"rolled back", "edited", "removed"}
METRIC = re.compile(r"^(datastorage_[a-z_]+)(\{.*\})? (\S+)$", re.MULTILINE)
WATCHED = (
    "datastorage_verifier_findings",
    "datastorage_open_findings",
    "datastorage_log_alarms_total",
    "datastorage_log_continuation_needed",
)


@dataclass
class Outcome:
    """What was done during the traffic, and the result of the verification."""

    acts: dict[str, int] = field(default_factory=dict)
    verification: str = ""
    """Output of `datastorage verify`."""
    loss: list[str] = field(default_factory=list)
    """The alarms and findings of the loss."""
    alarms: list[str] = field(default_factory=list)
    """All others."""

    def number(self, pattern: str) -> int:
        """The sum of a number in the output of the verification, which has some of each log."""
        return sum(int(found.replace(",", "")) for found in re.findall(pattern, self.verification))


def run(server_url: str, database_url: str, hours: float) -> Outcome:
    """Play `hours` on an empty database of the server, on which others can be made."""
    with tempfile.TemporaryDirectory(prefix="datastorage-honest-") as name:
        directory = Path(name)
        key = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (directory / "key.pem").write_bytes(key)
        settings: dict[str, object] = {
            "database_url": database_url,
            "unsafe_database": True,
            "migrate": True,
            "checkpoint_key_file": directory / "key.pem",
            "checkpoint_file": directory / "checkpoints",
            "verifier_events_per_second": VERIFIER_EVENTS_PER_SECOND,
            "retention_floor_days": 1,  # events that arrive more than a day late are due
            "retention_ceiling_days": 1,
        }
        service = services.spawn(settings, directory / "service")
        try:
            services.wait_until_ready(service)
            return _Play(service.url, settings, directory, server_url).play(hours)
        finally:
            services.stop([service])


def _notification(correlation: str, turn: int) -> dict[str, Any]:
    return {
        "remediation_id": correlation,
        "notification_id": f"{correlation}-{turn}",
        "recipient": "#payments",
        "channel": "slack",
        "message_summary": f"turn {turn}",
        "status": "sent",
        "sent_at": "2026-11-23T02:00:00Z",
    }


class _Play:
    def __init__(self, url: str, settings: dict[str, object], directory: Path, server_url: str) -> None:
        self._url = url
        self._directory = directory
        self._server_url, self._database_url = server_url, str(settings["database_url"])
        self._env = {n: v for n, v in os.environ.items() if not n.startswith("DATASTORAGE_")}
        self._env |= {f"DATASTORAGE_{n.upper()}": str(v) for n, v in settings.items()} | {"PYTHONPATH": str(ROOT)}
        self._outcome = Outcome()
        self._turns, self._files = itertools.count(), itertools.count()
        self._policy_turns = itertools.count()
        self._seeds = itertools.count(1)
        self._before: dict[str, float] = {}
        """The alarms that the loss has raised."""

    def play(self, hours: float) -> Outcome:
        expected = hours * 3600 * EVENTS_PER_SECOND
        lives = max(1, round(expected / EVENTS_PER_LIFE / 2))
        self._rounds_while(self._post(lives, hours), expected)
        hold = {"correlation_id": self._newest_correlations()[0], "reason": "over the seam"}
        self._act("holds", "POST", "/api/v1/audit/legal-hold", hold)
        self._lose()
        posting = self._post(lives, hours)
        self._continue()
        self._rounds_while(posting, expected)
        path = f"/api/v1/audit/legal-hold/{hold['correlation_id']}"
        self._act("releases", "DELETE", path, {"release_reason": "over", "released_by": "ada"})
        # The verifier's current round of a log may have passed the last changes already; the next one of each log has not.
        self._wait_for_rounds(LOGS + 1)
        self._outcome.loss += self._acknowledge_loss()
        if self._has("datastorage_verifier_findings"):
            self._wait_for_rounds(2 * LOGS)  # it is deleted once another round of the log has not found it
        until(lambda: None if self._has("datastorage_open_findings") else True)
        self._outcome.verification = self._verify()
        self._outcome.alarms = [f"{n} {v}" for n, v in self._alarms().items() if v != self._before.get(n)]
        return self._outcome

    def _post(self, lives: int, hours: float) -> "_Command":
        options = "--remediations", lives, "--hours", hours, "--seed", next(self._seeds), "--url", self._url
        return self._start("simulate", "--post-only", *options)

    def _rounds_while(self, posting: "_Command", expected: float) -> None:
        """Rounds until everything is posted, and one more."""
        for turn in itertools.count():
            has_ended = posting.process.poll() is not None
            self._round(next(self._turns))
            if not turn % ROUNDS_BETWEEN_REPORTS:
                self._print_progress(expected)
            if has_ended:
                break
            time.sleep(PAUSE_SECONDS)
        assert posting.wait() == 0, posting.output

    def _lose(self) -> None:
        """What is acknowledged and signed from here on, a round of everything too, is missing where the service is in the end."""
        assert self._alarms() == {}, "an alarm before the loss"
        standby = asyncio.run(databases.copy_of(self._server_url, self._database_url))
        size = asyncio.run(_size(standby))
        assert (posting := self._post(LIVES_LOST, 0)).wait() == 0, posting.output
        self._round(next(self._turns))
        until(lambda: int(self._get("/tlog/checkpoint").split(b"\n")[1]) > size or None)
        asyncio.run(databases.fail_over(self._server_url, self._database_url, standby))

    def _continue(self) -> None:
        """What has to be done after a loss (docs/operations.md), while events are still sent."""
        until(lambda: self._metrics().get("datastorage_log_continuation_needed") or None)
        checkpoint = ("--checkpoint", self._directory / "checkpoints")
        output = self._command("log", "continue", "--by", "ada", "--reason", "the standby missed events", *checkpoint)
        until(lambda: None if self._metrics()["datastorage_log_continuation_needed"] else True)
        self._outcome.loss = [output, *self._acknowledge_loss()]
        self._before = {n: v for n, v in self._metrics().items() if n.startswith("datastorage_log_alarms_total") and v}
        assert {one for n in self._before for one in re.findall('"(.*)"', n)} <= ALARMS_OF_A_LOSS, self._before

    def _acknowledge_loss(self) -> Iterator[str]:
        """Acknowledge all findings, and fail if one is about anything but the loss. Yields them."""
        for finding in json.loads(self._get("/api/v1/audit/findings"))["findings"]:
            assert finding["kind"] in FINDINGS_OF_A_LOSS, finding
            assert "correlation_ids" not in finding, finding
            path = f"/api/v1/audit/findings/{finding['finding_id']}/acknowledgement"
            self._act("acknowledgements", "POST", path, {"reason": "the loss"})
            yield f"{finding['kind']}: {finding['detail']}"

    def _verify(self) -> str:
        keys = self._directory / "keys"
        keys.write_bytes(self._get("/tlog/key"))
        return self._command("verify", "--key", keys, "--checkpoint", self._directory / "checkpoints")

    def _print_progress(self, expected: float) -> None:
        committed = self._metrics()["datastorage_events_committed_total"]
        sys.stderr.write(f"{committed:,.0f} of about {expected:,.0f} events, {self._outcome.acts}\n")

    def _round(self, turn: int) -> None:
        """One action of each kind, on the correlations with the latest events."""
        names = self._newest_correlations()
        if len(names) < 2:
            return
        held, erased = names[0], names[1]
        self._act("holds", "POST", "/api/v1/audit/legal-hold", {"correlation_id": held, "reason": f"turn {turn}"})
        self._command("erase", "--correlation-id", erased, "--reason", f"turn {turn}")
        self._change_policy()
        self._command("retention", "run")
        self._act("notifications", "POST", "/api/v1/audit/notifications", _notification(held, turn))
        self._act("exports", "GET", f"/api/v1/audit/export?format=json&correlation_id={held}")
        reason = {"release_reason": f"turn {turn}", "released_by": "ada"}
        self._act("releases", "DELETE", f"/api/v1/audit/legal-hold/{held}", reason)

    def _newest_correlations(self) -> list[str]:
        answer = json.loads(self._get("/api/v1/audit/correlations?limit=20"))
        return [one["correlation_id"] for one in answer["data"] if not one["correlation_id"].startswith("datastorage:")]

    def _change_policy(self) -> None:
        """Of a category that is purged meanwhile: set by the route, set by the command, removed."""
        turn = next(self._policy_turns)
        path, days = "/api/v1/audit/retention-policies/orchestration", 1 + turn % 5
        if turn % 3 == 0:
            self._act("policies", "PUT", path, {"retention_days": days, "floor_days": 1, "reason": f"turn {turn}"})
        elif turn % 3 == 1:
            self._command("retention", "policy", "set", "orchestration", "--days", days, "--reason", f"turn {turn}")
        else:
            self._act("policies", "DELETE", path, {"reason": f"turn {turn}"})

    def _act(self, name: str, method: str, path: str, body: dict[str, Any] | None = None) -> None:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "X-User-ID": "ada"}
        try:
            with urlopen(Request(self._url + path, data, headers, method=method), timeout=60):
                self._outcome.acts[name] = self._outcome.acts.get(name, 0) + 1
        except HTTPError as error:
            answer = error.read().decode()
            if error.code not in {404, 503}:  # no such hold, or busy
                raise AssertionError(method, path, error.code, answer) from None

    def _command(self, *arguments: object) -> str:
        command = self._start(*arguments)
        code, output = command.wait(), command.output
        assert not re.search("hold (removed|invented|edited)|policy edited", output), output
        busy = code in {1, 2} and ("hold" in output or "Another" in output or "again" in output)
        assert code == 0 or (busy and arguments[0] not in {"verify", "log"}), f"{arguments}: {code}\n{output}"
        if code == 0:
            self._outcome.acts[str(arguments[0])] = self._outcome.acts.get(str(arguments[0]), 0) + 1
        return output

    def _start(self, *arguments: object) -> "_Command":
        file = self._directory / f"output-{next(self._files)}"
        with file.open("wb") as output:
            process = forkserver.start(list(map(str, arguments)), self._directory, self._env, output)
        return _Command(process, file)

    def _get(self, path: str) -> bytes:
        with urlopen(self._url + path, timeout=60) as answer:
            return bytes(answer.read())

    def _metrics(self) -> dict[str, float]:
        return {n + (labels or ""): float(v) for n, labels, v in METRIC.findall(self._get("/metrics").decode())}

    def _wait_for_rounds(self, number: int) -> None:
        """Wait until the verifier has ended so many more rounds, each of one log."""
        rounds = self._metrics()["datastorage_verifier_rounds_total"]
        deadline = time.monotonic() + QUIET_SECONDS + 3600
        while self._metrics()["datastorage_verifier_rounds_total"] < rounds + number:
            assert time.monotonic() < deadline, "the background verifier does not finish a round"
            time.sleep(PAUSE_SECONDS)

    def _has(self, metric: str) -> bool:
        return any(name.startswith(metric) for name in self._alarms())

    def _alarms(self) -> dict[str, float]:
        return {n: v for n, v in self._metrics().items() if n.startswith(WATCHED) and v}


@dataclass(frozen=True)
class _Command:
    """A command that runs."""

    process: forkserver.Process
    file: Path
    """Its output."""

    def wait(self) -> int:
        return self.process.wait(COMMAND_SECONDS)

    @property
    def output(self) -> str:
        return self.file.read_text("utf-8")


async def _size(database_url: str) -> int:
    """How many events the log of the database has."""
    async with databases.connected(database_url) as connection:
        return int(await connection.fetchval("SELECT max(first_index + count) FROM log_flushes"))
