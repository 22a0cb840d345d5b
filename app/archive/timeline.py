"""Events of the archive as the timeline of a correlation has them, and that timeline with those of Postgres."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import orjson

from app.archive.jsonb import member_text
from app.archive.reading import ArchivedRow
from app.events.canonical import loads
from app.query.page import postgres_text
from app.query.timeline import DECISION_TYPES, PHASE_TYPES, Timeline, by_time, decisions, phases

STEP_TYPES = frozenset((*PHASE_TYPES, *DECISION_TYPES))
"""Of events whose payloads a timeline needs."""
_MEMBERS = (
    *("event_category", "event_action", "event_outcome", "actor_type", "actor_id", "resource_type", "resource_id"),
    *("severity", "duration_ms", "error_code"),
)
_DECIDED_BY = ("approved_by", "rejected_by", "decided_by", "modified_by", "cancelled_by")
_REASONS = ("rejection_reason", "decision_message", "message", "clear_reason", "block_message", "reason")
_NOT_LOGGED = 2**63


def with_archived(found: Timeline, archived: Sequence[ArchivedRow], offset: int, limit: int) -> Timeline:
    """The timeline of both: `limit` events from `offset` on, of all that Postgres and the archive have.

    `found` was asked for by stored_window(): it has those of Postgres that can be among them.
    """
    start, _ = stored_window(len(archived), offset, limit)
    stored = orjson.loads(found.events)
    others = sorted(map(_event, archived), key=_place)
    if start and stored:  # those before the first one are before the window too
        first = _place(stored[0])
        before = [one for one in others if _place(one) < first]
        others, skipped = others[len(before) :], offset - start - len(before)
    else:
        skipped = offset - start
    events = sorted([*stored, *others], key=_place)[skipped : skipped + limit] if stored or not start else []
    steps = by_time([*found.steps, *(_step(one.row) for one in archived if one.row["event_type"] in STEP_TYPES)])
    times = [one.row["event_timestamp"] for one in archived]
    count = found.extent["count"] + len(archived)
    edges = {
        "first": min([*times, found.extent["first"]] if found.extent["count"] else times),
        "last": max([*times, found.extent["last"]] if found.extent["count"] else times),
    }
    return replace(
        found,
        extent={**found.extent, "count": count, **edges},
        events=orjson.dumps(events).decode(),
        has_more=offset + limit < count,
        steps=steps,
        phases=phases(steps),
        decisions=decisions(steps),
    )


def stored_window(archived: int, offset: int, limit: int) -> tuple[int, int]:
    """Offset and limit in Postgres of those events that can be among `limit` from `offset` on, with so many of the archive between them."""
    start = max(0, offset - archived)
    return start, limit + offset - start


def _place(event: Mapping[str, Any]) -> tuple[int, str, str]:
    """In the order of the log, as the statement `timeline` has it."""
    return event.get("log_index", _NOT_LOGGED), event["event_timestamp"], event["event_id"]


def _event(one: ArchivedRow) -> dict[str, Any]:
    """As the statement `timeline` writes one."""
    row = one.row
    metadata = row["event_metadata"]
    event = {
        "event_id": str(row["event_id"]),
        "event_timestamp": _time(row["event_timestamp"]),
        "event_type": row["event_type"],
        "recorded_at": _time(row["recorded_at"]),
        "log_index": row["log_index"],
        "chain_index": row["chain_index"],
        **{name: row[name] for name in _MEMBERS},
        "parent_event_id": row["parent_event_id"] and str(row["parent_event_id"]),
        "event_metadata": None if metadata is None else orjson.Fragment(metadata),
        "sealed": None if one.is_logged else False,
        "archive_id": str(row["archive_id"]),
    }
    return {name: value for name, value in event.items() if value is not None}


def _time(time: Any) -> str:
    return f"{postgres_text(time).replace(' ', 'T')}Z"


def _step(row: Mapping[str, Any]) -> dict[str, Any]:
    """As the statement `steps` has one."""
    payload = loads(row["event_data"])
    payload = payload if isinstance(payload, dict) else {}
    phase = payload if row["event_type"] in PHASE_TYPES else {}
    decided = payload if row["event_type"] in DECISION_TYPES else {}
    return {
        **{name: row[name] for name in ("event_timestamp", "event_type", "actor_type", "actor_id")},
        "event_id": str(row["event_id"]),
        "from_phase": _first(phase, ("from_phase",), 100),
        "to_phase": _first(phase, ("to_phase",), 100),
        "decision": _first(decided, ("decision",), 100),
        "decided_workflow": _first(decided, ("workflow_id",), 255),
        "decided_by": _first(decided, _DECIDED_BY, 255),
        "reason": _first(decided, _REASONS, 1000),
    }


def _first(payload: Mapping[str, Any], names: Sequence[str], length: int) -> str | None:
    """The first of some members that is not null, as text, cut."""
    texts = (member_text(payload.get(name)) for name in names)
    return next((text[:length] for text in texts if text is not None), None)
