"""Which events can be imported: those with a time of their own whose retention is not over.

Others would be purged by the next retention run, and so a month that was purged does not come back. The days of an event are those
of app/retention/policy.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from app.db import Engine, fetch
from app.errors import BadRequest
from app.events.explain import bad_fields
from app.ingest.accept import RETENTION_DAYS, Draft
from app.settings import Settings
from app.sql import load

SQL = load("ingest")
_NO_POLICY: Mapping[str, Any] = {"floor_days": None, "ceiling_days": None, "retention_days": 0}


@dataclass(frozen=True, slots=True)
class ImportRules:
    """What decides about the events of one request."""

    policies: Mapping[str, Mapping[str, Any]]
    """Rows of audit_retention_policies by category."""
    settings: Settings
    now: datetime

    def refusal(self, draft: Draft) -> BadRequest | None:
        """Why this event cannot be imported, or None."""
        pointer = draft.pointer + "/event_timestamp"
        if draft.timestamp is None:
            return bad_fields({pointer: "expected the event's own time"})
        days = self._retention_days(draft)
        if draft.timestamp >= self.now - timedelta(days=days):
            return None
        return bad_fields(
            {
                pointer: f"expected a time of at most {days} days ago, since its retention is over then, got {draft.timestamp.isoformat()}"
            }
        )

    def _retention_days(self, draft: Draft) -> int:
        policy, settings = self.policies.get(draft.posted["event_category"], _NO_POLICY), self.settings
        own_days = draft.posted.get("retention_days") or 0
        floor, ceiling = policy["floor_days"], policy["ceiling_days"]
        days = max(
            settings.retention_floor_days if floor is None else floor,
            own_days if own_days > 0 else RETENTION_DAYS,
            policy["retention_days"] or 0,
        )
        return min(settings.retention_ceiling_days if ceiling is None else ceiling, days)


async def read(engine: Engine, settings: Settings, now: datetime) -> ImportRules:
    """The rules at `now`. Raises DatabaseAway or DatabaseFailed."""
    rows = await fetch(engine, SQL["retention_policies"])
    return ImportRules({row["event_category"]: dict(row) for row in rows}, settings, now)
