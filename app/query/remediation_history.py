"""What was done to one target before, and whether it helped (contract section 17): read by an agent before it acts.

Two tiers, near and far, of which the far one tells less. Rows are routed by their event_type column: some were inserted
by SQL, with payloads that have no event_type.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import asyncpg
from sqlalchemy.ext.asyncio import AsyncEngine

from app.db import driver_connection
from app.events.canonical import loads
from app.query.effectiveness import Effectiveness, number, text
from app.sql import load

SQL = load("reports")
_ASSESSMENTS_MAX = 50_000
_ASSESSMENTS_EACH = 100
_ROWS_AT_ONCE = 256
_HEALTH = {
    **dict.fromkeys(("pod_running", "readiness_pass", "crash_loops", "oom_killed"), bool),
    **dict.fromkeys(("restart_delta", "pending_count"), int),
}
_PAIRS = (
    *("cpu{}", "memory{}", "latency_p95{}_ms", "error_rate{}", "throughput{}_rps", "node_not_ready{}"),
    *("node_memory_pressure{}", "node_disk_pressure{}", "pv_phase_failed{}", "pv_phase_pending{}", "pv_usage_ratio{}"),
)
_METRICS = tuple(pair.format(end) for pair in _PAIRS for end in ("_before", "_after"))


@dataclass(frozen=True, slots=True)
class Target:
    """Of which resource, and in which state of it, the history is asked for."""

    kind: str
    name: str
    namespace: str
    spec_hash: str
    cluster_id: str | None

    @property
    def resource(self) -> str:
        return f"{self.namespace}/{self.kind}/{self.name}"


@dataclass(slots=True)
class Assessments:
    """What the assessments of one remediation add to its history, taken in the order of their times."""

    effectiveness: Effectiveness = field(default_factory=Effectiveness)
    alerts: int = 0
    resolved: bool | None = None
    health: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)

    def take(self, event_type: str, payload: Any) -> None:
        self.effectiveness.take(event_type, payload)
        said = payload if isinstance(payload, dict) else {}
        if event_type == "effectiveness.alert.assessed":
            self.alerts += 1
            if self.alerts == 1:
                resolved = _object(said, "alert_resolution").get("alert_resolved")
                self.resolved = resolved if isinstance(resolved, bool) else None
        elif event_type == "effectiveness.health.assessed":
            self.health = _health(_object(said, "health_checks")) or self.health
        elif event_type == "effectiveness.metrics.assessed":
            self.metrics = _metrics(_object(said, "metric_deltas")) or self.metrics


async def history(engine: AsyncEngine, target: Target, edges: Sequence[datetime]) -> list[list[Mapping[str, Any]]]:
    """For each tier, nearest first, what was done before its edge and not before the next one's; all of one moment.

    Entries stand oldest first, with every member that is known.
    """
    async with (
        driver_connection(engine) as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        tiers = [
            await connection.fetch(
                SQL["remediations"], target.resource, target.cluster_id, since, until, target.spec_hash
            )
            for until, since in pairwise(edges)
        ]
        found = await _assessments(connection, list({row["correlation_id"]: None for rows in tiers for row in rows}))
    return [
        [_entry(row, found.get(row["correlation_id"], Assessments()), target.spec_hash) for row in rows]
        for rows in tiers
    ]


async def _assessments(connection: Any, correlation_ids: list[str]) -> dict[str, Assessments]:
    found: dict[str, Assessments] = {}
    if correlation_ids:
        most = min(_ASSESSMENTS_EACH * len(correlation_ids), _ASSESSMENTS_MAX)
        async for row in connection.cursor(SQL["assessments"], correlation_ids, most, prefetch=_ROWS_AT_ONCE):
            found.setdefault(row["correlation_id"], Assessments()).take(row["event_type"], loads(row["payload"]))
    return found


def _entry(row: asyncpg.Record, assessed: Assessments, current: str) -> Mapping[str, Any]:
    """Members in the contract's order; what is unknown is left out."""
    said = loads(row["payload"])
    before = text(said["pre_remediation_spec_hash"])
    after = text(assessed.effectiveness.hashes.get("post_remediation_spec_hash"))
    entry = {
        "remediationUID": row["correlation_id"],
        "completedAt": f"{row['event_timestamp'].astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "signalType": text(said["signal_type"]) or None,
        "signalFingerprint": text(said["signal_fingerprint"]) or None,
        "actionType": text(said["action_type"]) or None,
        "outcome": text(said["outcome"]) or None,
        "effectivenessScore": assessed.effectiveness.score,
        "assessmentReason": assessed.effectiveness.known_reason or None,
        "preRemediationSpecHash": before or None,
        "postRemediationSpecHash": after or None,
        "signalResolved": assessed.resolved,
        "healthChecks": assessed.health or None,
        "metricDeltas": assessed.metrics or None,
        "sideEffects": [],
        "hashMatch": hash_match(current, before, after),
    }
    return {name: value for name, value in entry.items() if value is not None}


def hash_match(current: str, before: str, after: str) -> str:
    """Whether the target is as it was before the remediation, or as it was after it."""
    if current == before:
        return "preRemediation"
    return "postRemediation" if after in {"", current} else "none"


FAR = (
    *("remediationUID", "completedAt", "signalType", "actionType", "outcome", "effectivenessScore"),
    *("signalResolved", "hashMatch", "assessmentReason"),
)
"""Members of an entry of the far tier."""


def regression(*tiers: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the target is again as it was before some remediation."""
    return any(entry["hashMatch"] == "preRemediation" for chain in tiers for entry in chain)


def _object(said: dict[str, Any], name: str) -> dict[str, Any]:
    value = said.get(name)
    return value if isinstance(value, dict) else {}


def _health(checks: dict[str, Any]) -> dict[str, Any]:
    known = {name: checks[name] for name, kind in _HEALTH.items() if type(checks.get(name)) is kind}
    return {_camel(name): value for name, value in known.items()}


def _metrics(deltas: dict[str, Any]) -> dict[str, Any]:
    return {_camel(name): value for name in _METRICS if (value := number(deltas.get(name))) is not None}


def _camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(part.capitalize() for part in others)
