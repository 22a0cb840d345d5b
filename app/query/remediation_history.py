"""What was done to one target before, and whether it helped (docs/contract.md, section 17): an agent reads it before it acts.

Two tiers, near and far; entries of the far one have fewer members. The column event_type decides what a row is: payloads of rows
inserted by SQL have no event_type.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import asyncpg

from app.db import Pool, driver_connection
from app.events.canonical import loads
from app.query.effectiveness import Effectiveness, number_or_none, text_or_empty
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
    """The resource whose history is asked for, and the hash of its current spec."""

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
    """What the assessments of one remediation add to its history; they are added in the order of their times."""

    effectiveness: Effectiveness = field(default_factory=Effectiveness)
    alerts: int = 0
    resolved: bool | None = None
    health: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)

    def add(self, event_type: str, payload: Any) -> None:
        """Add one assessment; the payload may be any JSON value."""
        self.effectiveness.add(event_type, payload)
        members = payload if isinstance(payload, dict) else {}
        if event_type == "effectiveness.alert.assessed":
            self.alerts += 1
            if self.alerts == 1:
                resolved = _object(members, "alert_resolution").get("alert_resolved")
                self.resolved = resolved if isinstance(resolved, bool) else None
        elif event_type == "effectiveness.health.assessed":
            self.health = _health(_object(members, "health_checks")) or self.health
        elif event_type == "effectiveness.metrics.assessed":
            self.metrics = _metrics(_object(members, "metric_deltas")) or self.metrics


async def history(pool: Pool, target: Target, edges: Sequence[datetime]) -> list[list[Mapping[str, Any]]]:
    """For each tier, nearest first, what was done between two of the times `edges` (newest first); read in one snapshot.

    The entries of a tier come oldest first, with every member that is known. DatabaseAway or DatabaseFailed when Postgres does
    not answer.
    """
    async with (
        driver_connection(pool) as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        tiers = [
            await connection.fetch(
                SQL["remediations"], target.resource, target.cluster_id, since, until, target.spec_hash
            )
            for until, since in pairwise(edges)
        ]
        by_correlation = await _assessments(
            connection, list({row["correlation_id"]: None for rows in tiers for row in rows})
        )
    return [
        [_entry(row, by_correlation.get(row["correlation_id"], Assessments()), target.spec_hash) for row in rows]
        for rows in tiers
    ]


async def _assessments(connection: Any, correlation_ids: list[str]) -> dict[str, Assessments]:
    by_correlation: dict[str, Assessments] = {}
    if correlation_ids:
        rows_max = min(_ASSESSMENTS_EACH * len(correlation_ids), _ASSESSMENTS_MAX)
        async for row in connection.cursor(SQL["assessments"], correlation_ids, rows_max, prefetch=_ROWS_AT_ONCE):
            by_correlation.setdefault(row["correlation_id"], Assessments()).add(
                row["event_type"], loads(row["payload"])
            )
    return by_correlation


def _entry(row: asyncpg.Record, assessments: Assessments, current: str) -> Mapping[str, Any]:
    """Members in the contract's order; an unknown one is left out."""
    payload = loads(row["payload"])
    before = text_or_empty(payload["pre_remediation_spec_hash"])
    after = text_or_empty(assessments.effectiveness.hashes.get("post_remediation_spec_hash"))
    entry = {
        "remediationUID": row["correlation_id"],
        "completedAt": f"{row['event_timestamp'].astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "signalType": text_or_empty(payload["signal_type"]) or None,
        "signalFingerprint": text_or_empty(payload["signal_fingerprint"]) or None,
        "actionType": text_or_empty(payload["action_type"]) or None,
        "outcome": text_or_empty(payload["outcome"]) or None,
        "effectivenessScore": assessments.effectiveness.score,
        "assessmentReason": assessments.effectiveness.known_reason or None,
        "preRemediationSpecHash": before or None,
        "postRemediationSpecHash": after or None,
        "signalResolved": assessments.resolved,
        "healthChecks": assessments.health or None,
        "metricDeltas": assessments.metrics or None,
        "sideEffects": [],
        "hashMatch": hash_match(current, before, after),
    }
    return {name: value for name, value in entry.items() if value is not None}


def hash_match(current: str, before: str, after: str) -> str:
    """Which state the target is in: `preRemediation`, `postRemediation` (also if the hash after it is unknown), or `none` of them."""
    if current == before:
        return "preRemediation"
    return "postRemediation" if after in {"", current} else "none"


FAR_MEMBERS = (
    *("remediationUID", "completedAt", "signalType", "actionType", "outcome", "effectivenessScore"),
    *("signalResolved", "hashMatch", "assessmentReason"),
)
"""Members of an entry of the far tier."""


def regression(*tiers: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the target is again in the state that it had before one of the remediations."""
    return any(entry["hashMatch"] == "preRemediation" for chain in tiers for entry in chain)


def _object(members: dict[str, Any], name: str) -> dict[str, Any]:
    value = members.get(name)
    return value if isinstance(value, dict) else {}


def _health(checks: dict[str, Any]) -> dict[str, Any]:
    known = {name: checks[name] for name, kind in _HEALTH.items() if type(checks.get(name)) is kind}
    return {_camel(name): value for name, value in known.items()}


def _metrics(deltas: dict[str, Any]) -> dict[str, Any]:
    return {_camel(name): value for name in _METRICS if (value := number_or_none(deltas.get(name))) is not None}


def _camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(part.capitalize() for part in others)
