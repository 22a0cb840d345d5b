"""A simulated story in a service and in the archive, and what is erased of it between two questions."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx

from app.archive import run
from app.events.catalog import Catalog
from app.retention.erase import Erasure, erase
from app.settings import Settings
from app.simulate.orchestrator import simulate_remediations
from tests.archive.archived import ALL, NOW
from tests.waiting import eventually

MONTHS = (1, 2, 3)
"""How many months of 30 days ago the story ends that is told three times."""
_PORTION = 100
LATER = NOW + timedelta(days=150)
"""When all that was recorded until now is due."""


def post_story(api: httpx.Client, remediations: int) -> dict[str, Any]:
    """Import so many simulated remediations of each of three months; the values of the questions' parameters."""
    now = datetime.now(UTC)
    events = [
        event
        for months in MONTHS
        for remediation in simulate_remediations(
            months, remediations, now - timedelta(days=30 * months), f"sim-{months}", timedelta(days=5)
        )
        for event in remediation
    ]
    for start in range(0, len(events), _PORTION):
        answer = api.post("/api/v1/audit/import", json=events[start : start + _PORTION])
        answer.raise_for_status()
        assert {item["status"] for item in answer.json()["items"]} == {201}
    approval = next(event for event in events if event["event_type"] == "orchestrator.approval.rejected")
    day = now.replace(hour=0, minute=0, second=0, microsecond=0)
    return {
        "correlation_id": approval["correlation_id"],
        "resource_id": events[0]["resource_id"],
        "workflow_id": "restart-deployment",
        "text": "Change WINDOW",
        "since": day - timedelta(days=100),
        "until": day - timedelta(days=31),
    }


async def archive_all(settings: Settings) -> run.ArchiveRun:
    """Archive all events, the newest too, once a checkpoint covers them."""

    async def is_signed() -> bool | None:
        return not any(month.unsigned for month in await run.plan(settings, LATER, ALL)) or None

    await eventually(is_signed)
    done = await run.run(settings, LATER, ALL)
    assert not done.left.count
    return done


async def erase_some(settings: Settings, *event_ids: str) -> None:
    """Erase what these events say of people."""
    erasure = Erasure("asked for", "tests", event_ids=[UUID(one) for one in event_ids])
    done = await erase(settings, Catalog(), erasure, dry_run=False)
    assert sorted(map(str, done.events)) == sorted(event_ids)
