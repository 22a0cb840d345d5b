"""Items of a stream as CloudEvents: what another service makes of them, and whether they are CloudEvents at all."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
import orjson
import pytest
from cloudevents.core.bindings.http import HTTPMessage, from_http_event

from app.events.log import Log
from app.query.filter import EventFilter
from app.stream.formats.cloudevents import render
from app.stream.portion import Absent, Checkpoint, LogReader, Seam, StreamedEvent
from app.tlog.continued import newest_log
from tests import databases
from tests.events import make_event, make_freeform
from tests.logs import FIRST_LOG
from tests.services import Service

EVENTS = "/api/v1/audit/events"
BATCH = "/api/v1/audit/events/batch"
HOSTILE = "ada\r\n\x1b[31m é 100 % \u2028 \"'<b>"


async def rendered(connection: "asyncpg.Connection[asyncpg.Record]") -> list[bytes]:
    portion = await LogReader(FIRST_LOG, newest_log).read(connection, 0, EventFilter())
    return [orjson.dumps(render(item, FIRST_LOG)) for item in portion.items if isinstance(item, StreamedEvent)]


async def posted(client: httpx.AsyncClient) -> list[dict[str, Any]]:
    """Events with few members, with all, and with what a careless reader would lose."""
    parent = make_event(event_id=str(uuid4()))
    events = [
        parent,
        make_freeform(),
        make_event(
            parent_event_id=parent["event_id"],
            actor_id=HOSTILE,
            resource_id=HOSTILE,
            error_code="E1",
            error_message=HOSTILE,
            retention_days=400,
            is_sensitive=True,
            version="1.7",
            actor_ip="2001:db8::1",
            cluster_id=HOSTILE,
        ),
        make_event(parent_event_date=datetime.now(UTC).isoformat(), duration_ms=-(2**31)),
        make_event(event_timestamp=(datetime.now(UTC) - timedelta(hours=3)).replace(microsecond=0).isoformat()),
        make_freeform(payload={"big": 2**70, "exact": 0.1, "nested": [{"": None}], "text": HOSTILE}),
    ]
    for member in ("actor_type", "actor_id", "actor_ip", "resource_type", "resource_id", "severity", "namespace"):
        events[1].pop(member, None)
    for event in events:
        answer = await client.post(EVENTS, json=event)
        assert answer.status_code == 201, answer.text
    return events


async def test_another_service_stores_an_equal_event(
    service: Callable[..., Service],
    connection: "asyncpg.Connection[asyncpg.Record]",
    server_url: str,
    template_database: str,
) -> None:
    """A member is lost or changed on the way from one service to another one."""
    async with httpx.AsyncClient(base_url=service().url, timeout=30) as client:
        await posted(client)
    lines = await rendered(connection)
    url = await databases.create(server_url, template=template_database)
    try:
        async with httpx.AsyncClient(base_url=service(database_url=url).url, timeout=30) as other:
            media = {"Content-Type": "application/cloudevents-batch+json"}
            for portion in (lines[:1], lines[1:]):  # the cause first
                answer = await other.post(BATCH, content=b"[" + b",".join(portion) + b"]", headers=media)
                assert answer.status_code == 201, answer.text
        async with databases.connected(url) as second:
            copies = await rendered(second)
    finally:
        await databases.drop(server_url, url)
    assert len(copies) == len(lines) == 6
    generated = {"recordedtime", "eventhash", "eventprevioushash", "eventsalt"}
    for line, copy in zip(lines, copies, strict=True):
        first, second_one = orjson.loads(line), orjson.loads(copy)
        assert {name for name in first | second_one if first.get(name) != second_one.get(name)} <= generated


async def test_its_own_service_knows_the_event(
    service: Callable[..., Service], connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    """An event that comes back to its own service is stored once more."""
    async with httpx.AsyncClient(base_url=service().url, timeout=30) as client:
        await posted(client)
        [line, *_] = await rendered(connection)
        answer = await client.post(EVENTS, content=line, headers={"Content-Type": "application/cloudevents+json"})
        assert answer.status_code == 409, answer.text
        assert await connection.fetchval("SELECT count(*) FROM audit_events WHERE log_index >= 0") == 6


async def test_binary_mode_has_numbers_and_booleans(
    service: Callable[..., Service], connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    """What is no text in JSON is refused as a header, or a header that is neither is stored as something else."""
    headers = {
        "ce-specversion": "1.0",
        "ce-id": "1",
        "ce-source": "/x",
        "ce-type": "orchestrator.phase.transitioned",
        "ce-time": datetime.now(UTC).isoformat(),
        "ce-correlationid": "rr-1",
        "ce-eventoutcome": "success",
        "ce-eventdurationms": "-12",
        "ce-eventsensitive": "true",
        "ce-eventretentiondays": "90",
    }
    async with httpx.AsyncClient(base_url=service().url, timeout=30) as client:
        payload = {"rr_name": "rr", "namespace": "payments", "from_phase": "a", "to_phase": "b"}
        assert (await client.post(EVENTS, json=payload, headers=headers)).status_code == 201
        for name, wrong in (("durationms", "12.5"), ("sensitive", "yes"), ("retentiondays", "9999")):
            answer = await client.post(EVENTS, json=payload, headers=headers | {f"ce-event{name}": wrong, "ce-id": "2"})
            assert answer.status_code == 400
            assert f"ce-event{name}" in answer.text
    row = await connection.fetchrow("SELECT duration_ms, is_sensitive, retention_days FROM audit_events")
    assert row is not None
    assert tuple(row) == (-12, True, 90)


@pytest.mark.parametrize(
    "item",
    [
        Absent(3, 7, "purged"),
        Seam(2**48, "log/1", "log", 9),
        Checkpoint(7, "log\n7\nAAAA\n\n\u2014 log AAAA\n"),
    ],
)
def test_what_is_no_event_is_a_cloud_event_too(item: Absent | Seam | Checkpoint) -> None:
    """A reader of CloudEvents stops at what a stream says besides its events, or takes one such thing for another."""
    body = orjson.dumps(render(item, Log(1, "log with spaces/é")))
    event = from_http_event(HTTPMessage({"content-type": "application/cloudevents+json"}, body))
    assert event.get_type() == f"datastorage.stream.{type(item).__name__.lower()}"
    number = "%2F1" if isinstance(item, Seam) else ""
    assert event.get_source() == f"/datastorage/logs/log%20with%20spaces%2F%C3%A9{number}"
    assert event.get_data() == orjson.loads(body)["data"]
