"""Notifications over HTTP: docs/contract.md, section 14, and the pages that the reference lacks."""

import asyncio
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any

import httpx
import pytest

from tests.proxy import proxy
from tests.services import Service

PATH = "/api/v1/audit/notifications"


@pytest.fixture
def client(service: Callable[..., Service]) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service().url, timeout=30) as client:
        yield client


def make(notification_id: str = "n-1", **members: Any) -> dict[str, Any]:
    return {
        "remediation_id": "rr-1",
        "notification_id": notification_id,
        "recipient": "#payments",
        "channel": "slack",
        "message_summary": "the deployment was restarted",
        "status": "sent",
        "sent_at": "2024-01-01T12:00:00.123456789+02:00",
    } | members


def get(client: httpx.Client, **parameters: str) -> Any:
    return client.get(PATH, params=parameters).json()


def test_stored_as_sent(client: httpx.Client) -> None:
    """The record that comes back is not the one that was sent, or the two answers to POST and GET differ."""
    now = datetime.now(UTC)
    answer = client.post(PATH, json=make(escalation_level=2, error_message="late", delivery_status="200", unknown=1))
    assert (answer.status_code, answer.headers["content-type"]) == (201, "application/json")
    record = answer.json()
    for name in ("created_at", "updated_at"):
        assert abs(datetime.fromisoformat(record[name]) - now) < timedelta(minutes=1)
    known = {name: value for name, value in record.items() if name not in {"created_at", "updated_at"}}
    assert known == make(escalation_level=2, error_message="late", delivery_status="200") | {
        "id": record["id"],
        "sent_at": "2024-01-01T10:00:00.123456Z",
    }
    [found] = client.get(PATH).json()["data"]
    assert (list(found), found) == (list(record), record)
    events = {include: client.get("/api/v1/audit/events", params=include).json() for include in ("", "include=self")}
    assert (events[""]["data"], events[""]["pagination"]["total"]) == ([], 0)
    [stored] = [one for one in events["include=self"]["data"] if one["event_type"] == "datastorage.notification.stored"]
    assert set(stored["event_data"]) == {"event_type", "storing_id", "notification_id", "remediation_id", "digest"}


def test_unknown_is_left_out(client: httpx.Client) -> None:
    """A member of which nothing is known is shown empty, or null is refused where it may stand."""
    client.post(PATH, json=make("n-0", delivery_status="")).raise_for_status()
    record = client.post(PATH, json=make(error_message=None, delivery_status=None)).json()
    assert list(record) == [
        *("id", "remediation_id", "notification_id", "recipient", "channel", "message_summary", "status", "sent_at"),
        *("escalation_level", "created_at", "updated_at"),
    ]
    assert record["escalation_level"] == 0


def test_channels_of_both_validators(client: httpx.Client) -> None:
    """A channel or status that one of the platform's validators knows is refused."""
    channels = ("email", "slack", "pagerduty", "teams", "webhook", "console", "file", "log")
    for channel, status in product(channels, ("sent", "failed", "pending", "acknowledged", "escalated")):
        answer = client.post(PATH, json=make(f"{channel}-{status}", channel=channel, status=status))
        assert answer.status_code == 201, answer.text


def test_duplicate(client: httpx.Client) -> None:
    """A notification_id is stored twice, or the refusal is not the one that its senders know."""
    client.post(PATH, json=make()).raise_for_status()
    for body in (make(), make(recipient="#other")):
        answer = client.post(PATH, json=body)
        assert (answer.status_code, answer.headers["content-type"]) == (409, "application/problem+json")
        problem = answer.json()
        assert problem.pop("detail")
        assert problem == {
            "type": "https://kubernaut.ai/problems/conflict",
            "title": "Resource Conflict",
            "status": 409,
            "resource": "notification_audit",
            "field": "notification_id",
            "value": "n-1",
            "instance": "/audit/notification_audit",
        }
        assert list(answer.json()) == sorted(answer.json())
    assert len(client.get(PATH).json()["data"]) == 1


BY_SCHEMA = [
    *((name, None) for name in make()),
    *(("channel", bad) for bad in ("sms", "Slack", "", 1, None)),
    *(("status", bad) for bad in ("delivered", "")),
    *(("remediation_id", "x" * 256), ("notification_id", "x" * 256), ("recipient", "x" * 501), ("message_summary", "x" * 1001)),
    *(("delivery_status", "x" * 256), ("error_message", "x" * 1001)),
    *(("escalation_level", bad) for bad in (-1, 6, "1", 1.5, True)),
    *(("sent_at", bad) for bad in ("yesterday", "2024-01-01", 1700000000)),
]  # fmt: skip


def test_refused_by_schema(client: httpx.Client) -> None:
    """A notification that does not fit is stored, or its refusal does not name the member."""
    for name, value in BY_SCHEMA:
        answer = client.post(PATH, json=make() | {name: value})
        problem = answer.json()
        assert (answer.status_code, problem["type"]) == (400, "https://kubernaut.ai/problems/validation-error")
        assert (problem["title"], list(problem["field_errors"])) == ("Validation Error", [name])
        assert name in problem["detail"]
    assert client.get(PATH).json()["data"] == []


def test_refused_by_rule(client: httpx.Client) -> None:
    """What the reference's model refuses is stored, or refused in another form."""
    ahead = (datetime.now(UTC) + timedelta(minutes=6)).isoformat()
    long = "x" * 256
    refused = {
        "remediation_id": [" "],
        "notification_id": [""],
        "recipient": [long, ""],
        "message_summary": ["", " \n"],
        "sent_at": [ahead, "0001-01-01T00:00:00Z", "0001-12-31T23:59:59Z"],
    }
    for name, value in ((name, value) for name, values in refused.items() for value in values):
        answer = client.post(PATH, json=make() | {name: value})
        problem = answer.json()
        assert answer.status_code == 400
        assert list(problem) == ["detail", "field_errors", "instance", "resource", "status", "title", "type"]
        assert (problem["resource"], problem["instance"]) == ("notification_audit", "/audit/notification_audit")
        assert list(problem["field_errors"]) == [name]
    soon = (datetime.now(UTC) + timedelta(minutes=4)).isoformat()
    assert client.post(PATH, json=make(sent_at=soon, recipient=" ")).status_code == 201


def test_bodies_that_are_none(client: httpx.Client) -> None:
    """Something that is no notification at all is an error of the service."""
    nul = client.post(PATH, json=make(message_summary="a\0"))
    assert list(nul.json()["field_errors"]) == ["message_summary"]
    for body in (b"", b"[]", b"null", b"{", b'{"a": "\\u0000"}', b"\xff"):
        answer = client.post(PATH, content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 400, body
    assert client.post(PATH, content=b"{}").status_code == 400
    missing = client.post(PATH, json={}).json()["field_errors"]
    assert set(missing) == set(make())


def test_pages(client: httpx.Client) -> None:
    """A filter finds another notification, or a page is lost or shown twice when times are equal."""
    start = datetime(2026, 3, 1, tzinfo=UTC)
    for number in range(7):
        members: dict[str, Any] = {
            "remediation_id": f"rr-{number % 2}",
            "sent_at": (start + timedelta(days=number // 3)).isoformat(),
        }
        members |= {"channel": "email"} if number == 3 else {}
        members |= {"status": "failed"} if number == 4 else {}
        client.post(PATH, json=make(f"n-{number}", **members)).raise_for_status()

    def ask(**parameters: Any) -> tuple[list[str], dict[str, Any]]:
        answer = client.get(PATH, params=parameters)
        assert answer.status_code == 200, answer.text
        if "next_cursor" in answer.json()["pagination"]:
            assert client.get(answer.links["next"]["url"]).status_code == 200
        return [one["notification_id"] for one in answer.json()["data"]], answer.json()["pagination"]

    newest_first = [f"n-{number}" for number in (6, 5, 4, 3, 2, 1, 0)]
    assert ask() == (newest_first, {"limit": 50, "has_more": False})
    walked: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        ids, pagination = ask(limit=2, **cursor)
        walked += ids
        if not pagination["has_more"]:
            break
        cursor = {"cursor": pagination["next_cursor"]}
    assert walked == newest_first
    assert ask(remediation_id="rr-1")[0] == ["n-5", "n-3", "n-1"]
    assert ask(channel="email")[0] == ["n-3"]
    assert ask(status="failed", remediation_id="rr-0")[0] == ["n-4"]
    assert ask(since="2026-03-02", until="2026-03-02T23:00:00Z")[0] == ["n-5", "n-4", "n-3"]
    assert ask(remediation_id="nobody")[0] == []
    assert ask(remediation_id="", channel="", since="", limit="")[0] == newest_first


def test_bad_questions(client: httpx.Client) -> None:
    """A bad question is answered as if it were another one."""
    bad = {"limit": ("0", "1001", "x"), "cursor": ("x",), "since": ("soon",), "channel": ("\0",)}
    for name, value in ((name, value) for name, values in bad.items() for value in values):
        answer = client.get(PATH, params={name: value})
        assert (answer.status_code, answer.json()["title"]) == (400, "Validation Error")


async def test_rows_of_others(client: httpx.Client, connection: Any) -> None:
    """A row that only SQL can make stops the page."""
    await connection.execute(
        "INSERT INTO notification_audit (remediation_id, notification_id, recipient, channel, message_summary, status, sent_at,"
        " created_at, escalation_level) SELECT 'r', m, '', 'log', '', 'sent', m::timestamptz, '-infinity', NULL"
        " FROM unnest(ARRAY['infinity', '-infinity', '0044-03-15 BC', '12026-01-01']) AS m"
    )
    first = get(client, limit="3")
    assert [one["sent_at"][:4] for one in first["data"]] == ["9999", "9999", "0001"]
    rest = get(client, cursor=first["pagination"]["next_cursor"])
    assert [one["notification_id"] for one in rest["data"]] == ["-infinity"]
    assert rest["data"][0]["escalation_level"] == 0


def test_metrics_and_methods(client: httpx.Client) -> None:
    """A notification is not counted as the platform's dashboards expect, or another method is not refused as it should be."""
    client.post(PATH, json=make()).raise_for_status()
    text = client.get("/metrics").text
    assert 'datastorage_write_duration_seconds_count{table="notification_audit"} 1.0' in text
    assert 'datastorage_audit_lag_seconds_count{service="notification"} 1.0' in text
    refused = client.delete(PATH)
    assert (refused.status_code, refused.headers["Allow"], refused.text) == (405, "GET, POST", "")


async def test_away_without_a_spool(database_url: str, service: Callable[..., Service]) -> None:
    """While Postgres is away a notification is acknowledged that is nowhere, or its sender does not learn that it should retry."""
    async with proxy(database_url) as between, httpx.AsyncClient(timeout=30) as client:
        url = (await asyncio.to_thread(service, database_url=between.url, spool=False)).url + PATH
        assert (await client.post(url, json=make("n-0"))).status_code == 201
        await between.refuse(refusing=True)
        answer = await client.post(url, json=make())
        problem = answer.json()
        assert (answer.status_code, answer.headers["Retry-After"], problem["retry"]) == (503, "1", True)
        assert problem["type"] == "https://kubernaut.ai/problems/service-unavailable"
        assert (await client.get(url)).status_code == 503
        await between.refuse(refusing=False)
        assert (await client.post(url, json=make())).status_code == 201


@pytest.mark.every_pod
async def test_spooled_and_replayed(database_url: str, service: Callable[..., Service], connection: Any) -> None:
    """A notification that was acknowledged in an outage is lost, or stored twice, or a second one takes its id."""
    async with proxy(database_url) as between, httpx.AsyncClient(timeout=30) as client:
        url = (await asyncio.to_thread(service, database_url=between.url)).url + PATH
        key = {"Idempotency-Key": "k-1"}
        assert (await client.post(url, json=make("n-0"), headers=key)).status_code == 201
        await between.refuse(refusing=True)
        answer = await client.post(url, json=make())
        assert (answer.status_code, answer.json()["status"]) == (202, "accepted")
        assert "queued" in answer.json()["message"]
        assert (await client.post(url, json=make())).status_code == 409
        keyed = {"Idempotency-Key": "k-2"}
        for _ in range(2):
            assert (await client.post(url, json=make("n-2"), headers=keyed)).status_code == 202
        assert (await client.post(url, json=make("n-3"), headers=keyed)).status_code == 422
        # The id of a spooled one turns out to be used already: the stored one stays, the other one is quarantined for the operator.
        assert (await client.post(url, json=make("n-0", status="failed"))).status_code == 202
        assert (await client.post(url, json=make("n-0", status="failed"))).status_code == 409
        await between.refuse(refusing=False)
        await replayed(client, url)
        assert await connection.fetchval("SELECT count(*) FROM notification_audit") == 3
        assert (await client.post(url, json=make("n-2"), headers=keyed)).status_code == 201
        assert (await client.post(url, json=make("n-2"))).status_code == 409
        metrics = (await client.get(url.replace(PATH, "/metrics"))).text
    assert await connection.fetchval("SELECT status FROM notification_audit WHERE notification_id = 'n-0'") == "sent"
    assert 'datastorage_dlq_stream_xadd_total{stream="notifications"} 3.0' in metrics
    assert 'datastorage_dlq_stream_xadd_total{stream="dead_letter_notifications"} 1.0' in metrics


async def replayed(client: httpx.AsyncClient, url: str) -> None:
    """Return once the spool is empty: rows are visible before that."""
    for _ in range(500):
        if "datastorage_spool_bytes 0.0" in (await client.get(url.replace(PATH, "/metrics"))).text:
            return
        await asyncio.sleep(0.02)
    raise AssertionError("the spool is not replayed")


async def test_answers_lost(database_url: str, service: Callable[..., Service], connection: Any) -> None:
    """A notification whose commit was not answered is stored, and then refused as its own duplicate."""
    async with proxy(database_url) as between, httpx.AsyncClient(timeout=30) as client:
        url = (await asyncio.to_thread(service, database_url=between.url)).url + PATH
        statuses = set()
        for n in range(12):
            between.lose_answer = n % 2 == 0
            statuses.add((await client.post(url, json=make(f"n-{n}"))).status_code)
            assert not between.lose_answer
        assert statuses <= {201, 202}
        await replayed(client, url)
        assert await connection.fetchval("SELECT count(*) FROM notification_audit") == 12
        assert 'stream="dead_letter_notifications"} 0.0' in (await client.get(url.replace(PATH, "/metrics"))).text


def test_retry_under_a_key(client: httpx.Client) -> None:
    """A retry under its key is a duplicate to its sender, or another body is taken for the first."""
    key = {"Idempotency-Key": '"n-1"'}
    first = client.post(PATH, json=make(), headers=key)
    again = client.post(PATH, json=dict(reversed(make().items())), headers=key)
    assert (first.status_code, again.status_code, again.json()) == (201, 201, first.json())
    assert client.post(PATH, json=make(status="failed"), headers=key).status_code == 422
    assert client.post(PATH, json=make(), headers={"Idempotency-Key": "another"}).status_code == 409
    assert client.post(PATH, json=make("n-2"), headers={"Idempotency-Key": "another"}).status_code == 201
