"""One simulated remediation: its names, its position in time, and the events that it has emitted so far."""

import random
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any


@dataclass
class Remediation:
    """The state of one remediation while its events are made. All its random values come from `rng`."""

    rng: random.Random
    correlation_id: str
    typed: bool
    phase: str = "Pending"
    elapsed: float = 0.0
    """Seconds since it began."""
    emitted: list[tuple[float, dict[str, Any]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        draw = self.rng
        self.namespace = draw.choice(("payments", "checkout", "search", "ledger"))
        self.name = f"rr-{draw.choice(('podcrashlooping', 'oomkilled', 'diskpressure'))}-{draw.getrandbits(40):010x}"
        self.workflow_id = draw.choice(("restart-deployment", "increase-memory", "clean-volume", "rollback-release"))
        self.target = f"{self.namespace}/Deployment/{draw.choice(('api', 'worker', 'gateway'))}"
        self.approval_name = f"rar-{self.name}"
        self.fingerprint = f"{draw.getrandbits(256):064x}"
        self.spec_before = self.spec_after = ""
        self.names = {"rr_name": self.name, "namespace": self.namespace}

    @property
    def duration_ms(self) -> int:
        return int(self.elapsed * 1000)

    def wait(self, seconds: float) -> None:
        self.elapsed += seconds

    def emit(self, event_type: str, outcome: str, payload: dict[str, Any], *, action: str = "", **members: Any) -> None:
        """Add an event a few milliseconds later. Its payload names the event type if the remediation is of the typed generation."""
        self.wait(self.rng.uniform(0.002, 0.05))
        event = {
            "version": "1.0",
            "event_type": event_type,
            "event_category": "orchestration",
            "event_action": action or event_type.rpartition(".")[2],
            "event_outcome": outcome,
            "actor_type": "service",
            "actor_id": "remediationorchestrator-controller",
            "resource_type": "RemediationRequest",
            "resource_id": self.name,
            "correlation_id": self.correlation_id,
            "namespace": self.namespace,
            "cluster_id": "prod-eu-1",
        }
        kind = {"event_type": event_type} if self.typed else {}
        self.emitted.append((self.elapsed, event | members | {"event_data": kind | payload}))

    def events(self, end: datetime) -> list[dict[str, Any]]:
        """All emitted events, the last at `end`. A timedelta in a payload becomes the time that much later than its event."""
        start = end - timedelta(seconds=self.elapsed)
        return [_dated(event, start + timedelta(seconds=at)) for at, event in self.emitted]


def _dated(event: dict[str, Any], time: datetime) -> dict[str, Any]:
    payload = event["event_data"].items()
    data = {key: _text(time + value) if isinstance(value, timedelta) else value for key, value in payload}
    return event | {"event_timestamp": _text(time), "event_data": data}


def _text(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
