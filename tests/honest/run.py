"""Honest traffic raises no alarm: remediations of some hours, with 50 events for each second of their time, sent as fast as possible.

Meanwhile everything runs that changes or removes rows, each by its command or its route: holds, policies, purges, erasure, exports. The
background verifier never pauses. At the end everything is verified, and nothing may be wrong.
"""

import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests import services
from tests.services import ROOT

EVENTS_PER_SECOND = 50
EVENTS_PER_LIFE = 9.7
VERIFIER_EVENTS_PER_SECOND = 20_000
PAUSE_SECONDS = 0.5
ROUNDS_BETWEEN_REPORTS = 10
QUIET_SECONDS = 600
METRIC = re.compile(r"^(datastorage_[a-z_]+)(\{.*\})? (\S+)$", re.MULTILINE)


@dataclass
class Outcome:
    """What was done during the traffic, and the result of the verification."""

    acts: dict[str, int] = field(default_factory=dict)
    verification: str = ""
    """Output of `datastorage verify`."""
    alarms: list[str] = field(default_factory=list)

    def number(self, pattern: str) -> int:
        """A number in the output of the verification."""
        found = re.search(pattern, self.verification)
        return int(found[1].replace(",", "")) if found else 0


def run(database_url: str, hours: float) -> Outcome:
    """Play `hours` on an empty database."""
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
            return _Play(service.url, settings, directory).play(hours)
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
    def __init__(self, url: str, settings: dict[str, object], directory: Path) -> None:
        self._url = url
        self._directory = directory
        self._env = {n: v for n, v in os.environ.items() if not n.startswith("DATASTORAGE_")}
        self._env |= {f"DATASTORAGE_{n.upper()}": str(v) for n, v in settings.items()} | {"PYTHONPATH": str(ROOT)}
        self._outcome = Outcome()
        self._policy_turns = itertools.count()

    def play(self, hours: float) -> Outcome:
        lives = max(1, round(hours * 3600 * EVENTS_PER_SECOND / EVENTS_PER_LIFE))
        posting = self._start("simulate", "--post-only", "--remediations", lives, "--hours", hours, "--url", self._url)
        for turn in itertools.count():
            self._round(turn)
            if not turn % ROUNDS_BETWEEN_REPORTS:
                self._print_progress(hours)
            if posting.poll() is not None:
                break
            time.sleep(PAUSE_SECONDS)
        output, _ = posting.communicate()
        assert posting.returncode == 0, output
        self._round(-1)
        self._wait_for_a_whole_round()
        self._outcome.verification = self._command(
            "verify", "--key", self._get("/tlog/key").decode().strip(), "--checkpoint", self._directory / "checkpoints"
        )
        self._outcome.alarms = self._alarms()
        return self._outcome

    def _print_progress(self, hours: float) -> None:
        committed, expected = self._metrics()["datastorage_events_committed_total"], hours * 3600 * EVENTS_PER_SECOND
        sys.stderr.write(f"{committed:,.0f} of about {expected:,.0f} events, {self._outcome.acts}\n")

    def _round(self, turn: int) -> None:
        """One action of each kind, on the correlations with the latest events."""
        answer = json.loads(self._get("/api/v1/audit/correlations?limit=20"))
        names = [
            one["correlation_id"] for one in answer["data"] if not one["correlation_id"].startswith("datastorage:")
        ]
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
        done = self._start(*arguments)
        output, _ = done.communicate(timeout=3600)
        assert not re.search("hold (removed|invented|edited)|policy edited", output), output
        busy = done.returncode == 1 and ("hold" in output or "Another" in output or "again" in output)
        assert done.returncode == 0 or (busy and arguments[0] != "verify"), f"{arguments}: {done.returncode}\n{output}"
        if done.returncode == 0:
            self._outcome.acts[str(arguments[0])] = self._outcome.acts.get(str(arguments[0]), 0) + 1
        return output

    def _start(self, *arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "app", *map(str, arguments)]
        return subprocess.Popen(
            command, env=self._env, cwd=self._directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def _get(self, path: str) -> bytes:
        with urlopen(self._url + path, timeout=60) as answer:
            return bytes(answer.read())

    def _metrics(self) -> dict[str, float]:
        return {n + (labels or ""): float(v) for n, labels, v in METRIC.findall(self._get("/metrics").decode())}

    def _wait_for_a_whole_round(self) -> None:
        """The verifier's current round may have passed the last changes already; the next one has not."""
        rounds = self._metrics()["datastorage_verifier_rounds_total"]
        deadline = time.monotonic() + QUIET_SECONDS + 3600
        while self._metrics()["datastorage_verifier_rounds_total"] < rounds + 2:
            assert time.monotonic() < deadline, "the background verifier does not finish a round"
            time.sleep(0.5)

    def _alarms(self) -> list[str]:
        watched = (
            "datastorage_verifier_findings",
            "datastorage_verifier_defects_total",
            "datastorage_open_findings",
            "datastorage_log_alarms_total",
        )
        return [f"{n} {v}" for n, v in self._metrics().items() if n.startswith(watched) and v]
