"""The timeline of one correlation: its events in the order of the log, phases, decisions, notifications, holds, last verdict.

Payloads are left out, so that an answer of ten thousand events fits into memory; each event can be read by its id.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import lt
from typing import Any

import asyncpg

from app.db import Pool, driver_connection
from app.events.log import place_of
from app.events.record import Row
from app.query.notifications import notification
from app.query.postgres_time import rfc3339_or_none
from app.sql import load

SQL = load("reports")
EVENTS_DEFAULT = 1_000
EVENTS_MAX = 10_000

_TRANSITIONS = (
    *("orchestrator.lifecycle.transitioned", "orchestrator.phase.transitioned"),
    "remediationorchestrator.phase.transitioned",
)
_BEGINNINGS = ("orchestrator.lifecycle.created", "orchestrator.lifecycle.started")
_ENDS = ("orchestrator.lifecycle.completed", "orchestrator.lifecycle.failed")
_FIRST_PHASE = "Pending"
_LAST_PHASES = frozenset({"Completed", "Failed", "TimedOut", "Skipped", "Cancelled"})
_DECISIONS = {
    "orchestrator.approval.approved": "Approved",
    "orchestrator.approval.rejected": "Rejected",
    "orchestrator.approval.expired": "Expired",
    "orchestrator.routing.blocked": "Blocked",
    "webhook.remediationapprovalrequest.decided": "Decided",
    "webhook.remediationrequest.timeout_modified": "TimeoutModified",
    "webhook.notification.acknowledged": "NotificationAcknowledged",
    "webhook.notification.cancelled": "NotificationCancelled",
    "aianalysis.approval.decision": "Decided",
    "apifrontend.user.decision": "Decided",
    "workflowexecution.selection.completed": "WorkflowSelected",
    "workflowexecution.block.cleared": "BlockCleared",
}
"""Types of events that record a decision, each with the decision that is shown if the payload has none."""
PHASE_TYPES = [*_TRANSITIONS, *_BEGINNINGS, *_ENDS]
DECISION_TYPES = list(_DECISIONS)
_TIE_BREAKERS = (
    *("event_type", "from_phase", "to_phase", "decision", "decided_by", "reason", "decided_workflow", "actor_id"),
    "actor_type",
)


@dataclass(frozen=True, slots=True)
class Timeline:
    """What is stored about one correlation. `events` are the part that was asked for; all other fields are about all events."""

    extent: Mapping[str, Any]
    head: asyncpg.Record | None
    events: str
    """A JSON array of objects."""
    has_more: bool
    steps: Sequence[Row]
    """What phases and decisions are told from."""
    phases: list[dict[str, Any]]
    decisions: list[dict[str, Any]]
    notifications: list[dict[str, Any]]
    holds: list[dict[str, Any]]
    verdict: asyncpg.Record | None
    """The last result of the background verifier about the chain."""

    @property
    def is_incomplete(self) -> bool:
        """Whether the chain has events that Postgres does not have; of a timeline of all events, or of the sealed ones."""
        return self.head is not None and self.extent["logged"] < self.head["length"]

    @property
    def is_empty(self) -> bool:
        return not (self.extent["count"] or self.head or self.notifications)


async def timeline(pool: Pool, correlation_id: str, limit: int, offset: int, *, sealed: bool | None = None) -> Timeline:
    """The timeline of one correlation, read in one snapshot: at most `limit` of its events, after the first `offset`.

    With `sealed` it is made of those events only that are sealed, or of those that are not.
    """
    async with (
        driver_connection(pool) as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        events = await connection.fetchval(SQL["timeline"], correlation_id, limit, offset, sealed) or "[]"
        steps = by_time(await connection.fetch(SQL["steps"], correlation_id, PHASE_TYPES, DECISION_TYPES, sealed))
        [extent] = map(dict, await connection.fetch(SQL["extent"], correlation_id, sealed))
        holds = await connection.fetch(SQL["holds"], correlation_id, sealed) if extent["with_hold"] else []
        return Timeline(
            extent,
            await connection.fetchrow(SQL["chain_head"], correlation_id),
            events,
            offset + limit < extent["count"],
            steps,
            phases(steps),
            decisions(steps),
            [notification(row) for row in await connection.fetch(SQL["notifications"], correlation_id)],
            [_hold(row) for row in holds],
            await connection.fetchrow(SQL["last_verdict"], correlation_id),
        )


@dataclass(frozen=True, slots=True)
class Gone:
    """The events of a chain that Postgres does not have."""

    count: int
    """By the length that the chain's head says."""
    stored: frozenset[int]
    """The places (place_of) of those that it has. What the log says was removed may be there for a moment still."""


async def gone_events(pool: Pool, correlation_id: str) -> Gone:
    """What Postgres does not have of the chain of a correlation."""
    async with (
        driver_connection(pool) as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        head = await connection.fetchrow(SQL["chain_head"], correlation_id)
        rows = await connection.fetch(SQL["stored_places"], correlation_id) if head is not None else []
    stored = frozenset(place_of(row["log_id"], row["log_index"]) for row in rows)
    return Gone(0 if head is None else max(0, head["length"] - len(stored)), stored)


def by_time(steps: Sequence[Row]) -> Sequence[Row]:
    """Sorted by time, and those of equal times by content, so that the answer does not depend on the order of arrival."""
    times = [step["event_timestamp"] for step in steps]
    if all(map(lt, times, times[1:])):
        return steps
    return sorted(steps, key=lambda step: (step["event_timestamp"], *(step[name] or "" for name in _TIE_BREAKERS)))


def phases(steps: Iterable[Row]) -> list[dict[str, Any]]:
    """The phases in the order in which they were entered. One that has not ended has no left_at; one without a start, no entered_at."""
    entered: list[dict[str, Any]] = []
    for step in steps:
        event_type, time = step["event_type"], step["event_timestamp"]
        if event_type in _TRANSITIONS:
            if not entered and step["from_phase"]:
                entered.append({"phase": step["from_phase"]})
            _end_last(entered, time)
            entered.append({"phase": step["to_phase"] or "", "entered_at": time})
        elif event_type in _BEGINNINGS and not entered:
            entered.append({"phase": _FIRST_PHASE, "entered_at": time})
        elif event_type in _ENDS and entered and entered[-1]["phase"] not in _LAST_PHASES:
            _end_last(entered, time)
    return entered


def _end_last(entered: list[dict[str, Any]], time: datetime) -> None:
    if not entered or "left_at" in entered[-1]:
        return
    phase = entered[-1]
    phase["left_at"] = time
    entered_at = phase.get("entered_at")
    if entered_at is not None:
        phase["duration_ms"] = round((time - entered_at).total_seconds() * 1000)


def decisions(steps: Iterable[Row]) -> list[dict[str, Any]]:
    """Who decided what, in the order of the events' times. A person that the payload names is shown rather than the event's actor."""
    shown = []
    for step in steps:
        if step["event_type"] in _DECISIONS:
            decision = {
                "event_id": step["event_id"],
                "event_timestamp": step["event_timestamp"],
                "event_type": step["event_type"],
                "decision": step["decision"] or _DECISIONS[step["event_type"]],
                "decided_by": step["decided_by"] or step["actor_id"],
                "actor_type": step["actor_type"],
            }
            optional = {"workflow_id": step["decided_workflow"], "reason": step["reason"]}
            shown.append(decision | {name: value for name, value in optional.items() if value})
    return shown


def _hold(row: asyncpg.Record) -> dict[str, Any]:
    hold = {
        "active": row["active"],
        "reason": row["reason"] or "",
        "placed_by": row["placed_by"] or "",
        "events": row["events"],
    }
    placed_at = rfc3339_or_none(row["placed_at"] or "")
    return hold if placed_at is None else hold | {"placed_at": placed_at}
