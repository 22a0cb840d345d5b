"""Distinct, typed events of about 1 KB, made before a measurement begins."""

import json
import os
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

from tests.story import make_story

CORRELATIONS = 2_000
_PHASES = ("Pending", "Processing", "Analyzing", "Executing", "Completed")
_numbers = count()


def event(run: str, pad: int = 380) -> dict[str, Any]:
    """One event of the orchestrator; no two are equal."""
    number = next(_numbers)
    correlation = f"{run}-{number % CORRELATIONS}"
    phase = number % 4
    now = datetime.now(UTC) - timedelta(microseconds=random.randrange(5_000_000))
    return {
        "version": "1.0",
        "event_type": "orchestrator.lifecycle.transitioned",
        "event_timestamp": now.isoformat().replace("+00:00", "Z"),
        "event_category": "orchestration",
        "event_action": "phase_transition",
        "event_outcome": "success",
        "actor_type": "service",
        "actor_id": "remediationorchestrator-controller",
        "actor_ip": f"10.1.{number % 200}.{number % 250}",
        "resource_type": "RemediationRequest",
        "resource_id": correlation,
        "correlation_id": correlation,
        "namespace": "payments",
        "cluster_id": "cluster-a",
        "duration_ms": number % 10_000 + 1,
        "event_data": {
            "event_type": "orchestrator.lifecycle.transitioned",
            "rr_name": correlation,
            "namespace": "payments",
            "from_phase": _PHASES[phase],
            "to_phase": _PHASES[phase + 1],
            "transition_reason": f"step {number}",
            "target_resource": f"payments/Deployment/api-{number % 500}",
            "signal_fingerprint": os.urandom(32).hex(),
            "duration_ms": number,
            "message": os.urandom(pad // 2).hex(),
        },
    }


TARGETS = 100
REMEDIATIONS = 2_000
LONG = "long-0"
LONG_EVENTS = 5_000


def story(number: int) -> list[dict[str, Any]]:
    """A remediation of one of the targets, some of it up to seven days old."""
    start = datetime.now(UTC) - timedelta(minutes=number % 9_000, seconds=30)
    told = make_story(f"story-{number}", start)
    for item in told:
        if "target_resource" in item["event_data"]:
            item["event_data"]["target_resource"] = f"payments/Deployment/story-{number % TARGETS}"
        for key in ("pre_remediation_spec_hash", "post_remediation_spec_hash"):
            if key in item["event_data"]:
                item["event_data"][key] += f"-{number % TARGETS}"
    return told


def stories() -> Iterator[bytes]:
    """Batches that tell of REMEDIATIONS remediations, and one long correlation."""
    for first in range(0, REMEDIATIONS, 20):
        yield _batch([item for number in range(first, first + 20) for item in story(number)])
    now = datetime.now(UTC)
    told = [
        item for number in range(LONG_EVENTS // 10) for item in make_story(LONG, now - timedelta(minutes=number + 1))
    ]
    for first in range(0, LONG_EVENTS, 500):
        yield _batch(told[first : min(first + 500, LONG_EVENTS)])


def _batch(items: list[dict[str, Any]]) -> bytes:
    return request("/api/v1/audit/events/batch", json.dumps(items, separators=(",", ":")).encode())


def request(path: str, body: bytes) -> bytes:
    """The bytes of one POST on a connection that stays open."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def singles(run: str, pad: int = 380) -> Iterator[bytes]:
    while True:
        yield request("/api/v1/audit/events", json.dumps(event(run, pad), separators=(",", ":")).encode())


def batches(run: str, size: int = 100) -> Iterator[bytes]:
    while True:
        items = [event(run) for _ in range(size)]
        yield request("/api/v1/audit/events/batch", json.dumps(items, separators=(",", ":")).encode())


def gets(paths: Iterator[str]) -> Iterator[bytes]:
    return (f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode() for path in paths)


def large(run: str) -> Iterator[bytes]:
    """Events with an error_message of 1 MB."""
    while True:
        item = event(run) | {"error_message": os.urandom(500_000).hex()}
        yield request("/api/v1/audit/events", json.dumps(item).encode())


def largest_batch(run: str) -> bytes:
    """10,000 events, not quite 50 MiB."""
    items = [event(run, pad=4_300) for _ in range(10_000)]
    return request("/api/v1/audit/events/batch", json.dumps(items, separators=(",", ":")).encode())
