"""What an auditor gets who asks for the verification of a chain."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from tests.events import make_event
from tests.postgres.test_verify import insert_reference
from tests.sealed import insert, plain_row
from tests.services import Service

EVENTS = "/api/v1/audit/events"
VERIFY = "/api/v1/audit/verify-chain"
JSON = {"Content-Type": "application/json"}


@pytest.fixture
def client(service: Callable[..., Service]) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service().url, timeout=30) as client:
        yield client


def test_whole_chain(client: httpx.Client) -> None:
    """A chain with late events and equal times is reported as tampered with, or the Go client cannot read the answer."""
    now = datetime.now(UTC)
    times = [now, now - timedelta(days=6), now + timedelta(minutes=59), now, now]
    for time in times:
        client.post(EVENTS, json=make_event(correlation_id="rr-1", event_timestamp=time.isoformat())).raise_for_status()
    answer = client.post(VERIFY, json={"correlation_id": "rr-1", "unknown": None})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    found = answer.json()
    assert abs(datetime.fromisoformat(found.pop("verification_time")) - now) < timedelta(minutes=5)
    assert "5" in found.pop("message")
    assert found == {"correlation_id": "rr-1", "is_valid": True, "total_events": 5, "verified_events": 5}


def test_every_payload_verifies(client: httpx.Client) -> None:
    """What Postgres makes of a payload is not what was hashed."""
    numbers = (
        "[1.50, -0, 1e2, 1e-7, 1e21, 9007199254740993, 0.1000000000000000055, 12345678901234567890.5, 5.0, 1e-308]"
    )
    event = make_event(correlation_id="rr-1", event_type="orchestrator.approval.requested", event_data="PAYLOAD")
    body = httpx.Request("POST", "http://x", json=[event | {"actor_ip": "2001:DB8:0:0::1"}, event]).content.decode()
    payload = '{"\U0001f600": "\\u0001\\u2028 <é>", "\\ufb33": {"b": null, "a": true}, "numbers": ' + numbers + "}"
    body = body.replace('"PAYLOAD"', payload)
    client.post(f"{EVENTS}/batch", content=body.encode(), headers=JSON).raise_for_status()
    found = client.post(VERIFY, json={"correlation_id": "rr-1"}).json()
    assert (found["is_valid"], found["verified_events"]) == (True, 2)


async def test_hashed_by_the_reference(service: Callable[..., Service], connection: Any) -> None:
    """The key of the service before this one is of no use, or a verdict is given without it."""
    await insert_reference(connection, "keyed", key=b"k" * 32)
    row = plain_row("odd") | {"hash_algorithm": "md5", "event_hash": "a" * 64}
    await insert(connection, row)
    with_key, without = service(hash_key="k" * 32), service()
    async with httpx.AsyncClient(timeout=30) as client:
        found = (await client.post(with_key.url + VERIFY, json={"correlation_id": "keyed"})).json()
        assert (found["is_valid"], found["verified_events"]) == (True, 1)
        for url, correlation_id in ((without.url, "keyed"), (with_key.url, "odd")):
            answer = await client.post(url + VERIFY, json={"correlation_id": correlation_id})
            assert (answer.status_code, answer.json()["title"]) == (500, "Verification Failed")
            assert answer.json()["type"].endswith("/verify-chain/internal-error")


def test_unknown_correlation(client: httpx.Client) -> None:
    """A correlation of which nobody ever heard is reported as tampered with."""
    answer = client.post(VERIFY, json={"correlation_id": "nobody"})
    assert answer.status_code == 200
    found = answer.json()
    assert sorted(found) == [
        *("correlation_id", "is_valid", "message", "total_events", "verification_time", "verified_events"),
    ]
    assert (found["is_valid"], found["total_events"], found["verified_events"]) == (True, 0, 0)


BAD_BODIES: list[tuple[str | bytes, str, str]] = [
    (b'{"correlation_id": ""}', "missing-correlation-id", "correlation_id"),
    ('{"correlation_id": "' + "é" * 129 + '"}', "invalid-correlation-id", "256"),
    (b'{"correlation_id": "a\\u0000b"}', "validation-error", "/correlation_id"),
    (b'{"correlation_id": "\\ud800"}', "validation-error", "correlation_id"),
    (b'{"correlation_id": "\xff"}', "validation-error", "UTF-8"),
    (b'{"correlation_id": 5}', "validation-error", "/correlation_id"),
    (b'{"correlation_id": null}', "validation-error", "/correlation_id"),
    (b"{}", "validation-error", "/correlation_id"),
    (b'["rr-1"]', "validation-error", "object"),
    (b'{"correlation_id": "rr-1"} x', "validation-error", "line 1"),
    (b'{"correlation_id": "rr-1"', "validation-error", "JSON"),
    (b"", "validation-error", "JSON"),
]


def test_bad_body(client: httpx.Client) -> None:
    """A body that names no correlation is answered otherwise than 400 with the reason."""
    for body, slug, named in BAD_BODIES:
        answer = client.post(VERIFY, content=body, headers=JSON)
        assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json"), body
        assert answer.json()["type"].endswith(f"/{slug}"), body
        assert named in answer.json()["detail"], body


def test_longest_correlation(client: httpx.Client) -> None:
    """An id of 256 bytes is refused."""
    assert client.post(VERIFY, json={"correlation_id": "é" * 128}).status_code == 200


def test_content_type(client: httpx.Client) -> None:
    """A body whose Content-Type is not JSON is read as JSON, or a client that names the charset is refused."""
    body = b'{"correlation_id": "rr-1"}'
    for headers in ({}, {"Content-Type": "text/plain"}, {"Content-Type": "application/jsonx"}):
        answer = client.post(VERIFY, content=body, headers=headers)
        assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json")
        assert "Content-Type" in answer.json()["detail"]
    assert (
        client.post(VERIFY, content=body, headers={"Content-Type": "application/json; charset=utf-8"}).status_code
        == 200
    )
