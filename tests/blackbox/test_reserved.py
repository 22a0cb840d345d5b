"""Correlation ids that only the service itself uses: refused at every door, and written if a spool has acknowledged them."""

import asyncio
import gzip
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from app.events.catalog import Catalog
from app.ingest.accept import Acceptance, check_item, single_id
from app.ingest.notifications import check_notification, parse_notification
from app.ingest.spool import Spool
from app.ingest.submission import new_submission
from tests.blackbox import test_cloudevents, test_notifications
from tests.blackbox.test_outage import run
from tests.events import make_event, make_freeform
from tests.postgres.log import LOG
from tests.services import Service

EVENTS, BATCH, IMPORT = "/api/v1/audit/events", "/api/v1/audit/events/batch", "/api/v1/audit/import"
NOTIFICATIONS = "/api/v1/audit/notifications"
RESERVED = f"datastorage:event:{uuid4()}"
GOOD = make_event()
CLOUD = test_cloudevents.attributes(correlationid=RESERVED) | {"data": test_cloudevents.DATA}
HEADERS = {f"ce-{name}": str(value) for name, value in CLOUD.items() if name != "data"} | {"ce-specversion": "1.0"}


@pytest.fixture
def client(service: Callable[..., Service]) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service(processes=3, unknown_event_types="accept").url, timeout=30) as client:
        yield client


def dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


def lines(*events: Any) -> bytes:
    return b"\n".join(map(dumped, events))


def typed(media_type: str, **headers: str) -> dict[str, str]:
    return {"Content-Type": media_type} | headers


JSON = typed("application/json")
BAD = make_event(correlation_id=RESERVED)
DOORS: dict[str, tuple[str, bytes, dict[str, str], str]] = {
    "single": (EVENTS, dumped(BAD), JSON, "/correlation_id"),
    "free form": (EVENTS, dumped(make_freeform(correlation_id=RESERVED)), JSON, "/correlation_id"),
    "unknown type": (EVENTS, dumped(BAD | {"event_type": "x", "event_data": {}}), JSON, "/correlation_id"),
    "the prefix alone": (EVENTS, dumped(BAD | {"correlation_id": "datastorage:"}), JSON, "/correlation_id"),
    "with a key": (EVENTS, dumped(BAD), JSON | {"Idempotency-Key": "k"}, "/correlation_id"),
    "compressed": (EVENTS, gzip.compress(dumped(BAD)), JSON | {"Content-Encoding": "gzip"}, "/correlation_id"),
    "batch": (BATCH, dumped([GOOD, BAD]), JSON, "/1/correlation_id"),
    "ndjson": (BATCH, lines(GOOD, BAD), typed("application/x-ndjson"), "/1/correlation_id"),
    "with another fault": (BATCH, dumped([BAD | {"event_outcome": "x"}]), JSON, "/0/correlation_id"),
    "structured": (EVENTS, dumped(CLOUD | {"specversion": "1.0"}), test_cloudevents.STRUCTURED, "/correlationid"),
    "structured batch": (BATCH, dumped([CLOUD | {"specversion": "1.0"}]), test_cloudevents.MANY, "/0/correlationid"),
    "binary": (EVENTS, dumped(CLOUD["data"]), JSON | HEADERS, "ce-correlationid"),
    "notification": (
        NOTIFICATIONS,
        dumped(test_notifications.make(remediation_id=RESERVED)),
        JSON,
        "remediation_id",
    ),
}


def test_doors(client: httpx.Client) -> None:
    """A client posts under a correlation of the service, where what it says stands beside evidence."""
    for name, (path, body, headers, pointer) in DOORS.items():
        answer = client.post(path, content=body, headers=headers)
        assert (answer.status_code, pointer in answer.json()["field_errors"]) == (400, True), (name, answer.text)
    for path, headers in ((BATCH, {"Prefer": "handling=lenient"}), (IMPORT, {})):
        answer = client.post(path, json=[GOOD | {"event_action": path}, BAD], headers=headers)
        good, bad = answer.json()["items"]
        assert (answer.status_code, good["status"], bad["status"]) == (207, 201, 400), answer.text
        assert "/1/correlation_id" in bad["field_errors"]
    assert client.get(EVENTS, params={"correlation_id": RESERVED}).json()["data"] == []
    assert client.get(NOTIFICATIONS).json()["data"] == []
    for near in ("datastorage", "Datastorage:x", " datastorage:x", "rr-datastorage:x"):
        assert client.post(EVENTS, json=make_event(correlation_id=near)).status_code == 201


async def test_acknowledged(database_url: str, connection: Any, tmp_path: Path) -> None:
    """What a spool acknowledged before an upgrade is refused, quarantined or lost."""
    draft = check_item(Catalog(), make_event(), "", plain=False, depth=4)
    draft.posted["correlation_id"] = RESERVED  # which an earlier version accepted
    submission = await new_submission([draft], [single_id(draft)], Acceptance(datetime.now(UTC), {}, LOG))
    posted, sent_at = parse_notification(test_notifications.make())
    notification = check_notification(posted, sent_at, datetime.now(UTC))
    notification = replace(notification, remediation_id=RESERVED)
    spool = Spool(tmp_path / "spool", 1 << 30)
    await spool.belong_to(LOG)
    await spool.append([submission])
    await spool.append_notification(notification, None)
    spool.close()
    done = await asyncio.to_thread(run, "replay", tmp_path / "spool", database_url)
    assert "1 events and 1 notifications replayed from the spool; 0 events" in done
    stored = await connection.fetchval("SELECT event_id FROM audit_events WHERE correlation_id = $1", RESERVED)
    assert stored == submission.events[0].id
    assert await connection.fetchval("SELECT remediation_id FROM notification_audit") == RESERVED
