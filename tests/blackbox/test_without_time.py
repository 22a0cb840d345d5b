"""Events whose emitter never sets a time, as the platform's approval emitters of December 2025 send them."""

import asyncio
import io
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import httpx

from app.cli.output import Output
from app.cli.show import timeline as show_timeline
from app.cli.times import Clock
from tests.blackbox.test_outage import Outage
from tests.events import make_event
from tests.proxy import proxy
from tests.services import Service

EVENTS, BATCH = "/api/v1/audit/events", "/api/v1/audit/events/batch"
ZERO = "0001-01-01T00:00:00Z"


def cloud_event() -> dict[str, Any]:
    return {
        "specversion": "1.0",
        "id": "1",
        "source": "/approvals",
        "type": "orchestrator.approval.requested",
        "time": ZERO,
        "correlationid": "rr-1",
        "eventoutcome": "success",
        "data": {
            "event_type": "orchestrator.approval.requested",
            "rr_name": "rr-1",
            "namespace": "payments",
            "workflow_id": "w",
            "workflow_version": "1",
            "target_resource": "t",
        },
    }


async def test_event_without_a_time(service: Callable[..., Service]) -> None:
    """An approval is refused because its emitter set no time, or is shown as if it had told one."""
    url = (await asyncio.to_thread(service)).url
    async with httpx.AsyncClient(base_url=url, timeout=30) as client:
        one = {"correlation_id": "rr-1", "event_timestamp": ZERO}
        before = datetime.now(UTC).replace(microsecond=0)
        single = await client.post(EVENTS, json=make_event(**one))
        assert single.status_code == 201, single.text
        assert before <= datetime.fromisoformat(single.json()["event_timestamp"]) <= datetime.now(UTC)
        batch = await client.post(BATCH, json=[make_event(correlation_id="rr-1"), make_event(**one)])
        assert batch.status_code == 201, batch.text
        cloud = await client.post(
            EVENTS, content=json.dumps(cloud_event()), headers={"Content-Type": "application/cloudevents+json"}
        )
        assert cloud.status_code == 201, cloud.text
        for other in ("0001-01-01T00:00:00.1Z", "0001-01-01T00:00:00+01:00", "0001-01-02T00:00:00Z"):
            assert (await client.post(EVENTS, json=make_event(event_timestamp=other))).status_code == 400, other
        keyed = {"Idempotency-Key": "k"}
        answers = [await client.post(EVENTS, json=make_event(**one) | {"event_action": "keyed"}, headers=keyed)]
        answered = datetime.fromisoformat(answers[0].json()["event_timestamp"])
        while datetime.now(UTC).replace(microsecond=0) == answered:  # noqa: ASYNC110 -- answers have whole seconds
            await asyncio.sleep(0.05)
        answers.append(await client.post(EVENTS, json=json.loads(answers[0].request.content), headers=keyed))
        assert answers[0].json() == answers[1].json()
        timeline = (await client.get("/api/v1/audit/correlations/rr-1")).json()
        metrics = (await client.get("/metrics")).text
    received = {"event_timestamp": "received"}
    assert [event.get("event_metadata") for event in timeline["events"]] == [
        received,
        None,
        received,
        received,
        received,
    ]
    shown = io.StringIO()
    show_timeline(Output(shown, is_json=False, console=None, pager=None), timeline, Clock(), verified_now=False)
    assert shown.getvalue().count("(received)") == 4
    assert "datastorage_events_without_time_total 5.0" in metrics


async def test_event_without_a_time_through_the_spool(service: Callable[..., Service], database_url: str) -> None:
    """Replay gives an event its own time, or a resend in the outage is stored beside it."""
    async with proxy(database_url) as between:
        running = await asyncio.to_thread(lambda: service(database_url=between.url))
        async with httpx.AsyncClient(base_url=running.url, timeout=30) as client:
            outage = Outage(between, running, client)
            await outage.begin()
            batch = [make_event(correlation_id="rr-1", event_timestamp=ZERO) for _ in range(2)]
            spooled = [await client.post(BATCH, json=batch) for _ in range(2)]
            assert [answer.status_code for answer in spooled] == [201, 201]
            ids = spooled[0].json()["event_ids"]
            assert spooled[1].json()["event_ids"] == ids
            waiting = (await client.get(f"{EVENTS}/{ids[0]}")).json()
            await outage.end()
            await outage.drained()
            assert (await client.post(BATCH, json=batch)).json()["event_ids"] == ids
            stored = (await client.get(f"{EVENTS}/{ids[0]}")).json()
            assert stored["event_timestamp"] == waiting["event_timestamp"]
            timeline = (await client.get("/api/v1/audit/correlations/rr-1")).json()
    assert [event["event_id"] for event in timeline["events"]] == ids
    assert all(event["event_metadata"] == {"event_timestamp": "received"} for event in timeline["events"])
