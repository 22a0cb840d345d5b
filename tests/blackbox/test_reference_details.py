"""Small answers in which a client of the platform's earlier service could tell this one apart, by section of docs/contract.md."""

import re
import socket
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.events import make_event
from tests.services import Service

EVENTS, EXPORT, HOLD = "/api/v1/audit/events", "/api/v1/audit/export", "/api/v1/audit/legal-hold"


@pytest.fixture
def client(service: Callable[..., Service]) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service().url, timeout=30) as client:
        yield client


def slug(answer: httpx.Response) -> str:
    return str(answer.json()["type"]).rpartition("/")[2]


def with_payload(**members: Any) -> dict[str, Any]:
    event = make_event()
    return event | {"event_data": event["event_data"] | members}


def test_problem_types(client: httpx.Client) -> None:
    """Section 3: a value that the schema accepts and a decoder of 64 bits does not, or a day that does not exist, has another type."""
    undecodable = [
        make_event(event_timestamp="2026-02-30T00:00:00Z"),
        make_event(duration_ms=2**63),
        make_event(retention_days=10**20),
        make_event(duration_ms=-(10**20), event_timestamp="2026-04-31T00:00:00Z"),
        with_payload(duration_ms=2**63),
    ]
    for event in undecodable:
        answer = client.post(EVENTS, json=event)
        assert (answer.status_code, slug(answer)) == (400, "invalid_request"), answer.text
        batch = client.post(EVENTS + "/batch", json=[make_event(), event])
        assert (batch.status_code, slug(batch)) == (400, "invalid_request"), batch.text
    by_shape = [
        make_event(event_timestamp="2026-13-01T00:00:00Z"),
        make_event(event_timestamp="0000-01-01T00:00:00Z"),
        make_event(duration_ms=2**31),
        make_event(duration_ms=2**63, event_outcome="x"),
    ]
    for event in by_shape:
        answer = client.post(EVENTS, json=event)
        assert (answer.status_code, slug(answer)) == (400, "validation-error"), answer.text


def test_parameters(client: httpx.Client) -> None:
    """Section 8: `since=0` is a duration, a whole number may be hexadecimal, and half a detail filter is refused, also an empty half."""
    assert client.post(EVENTS, json=make_event()).status_code == 201
    for zero in ("0", "%2B0", "-0"):
        assert client.get(f"{EVENTS}?since={zero}").json()["pagination"]["total"] == 0
        assert client.get(f"{EVENTS}?until={zero}").json()["pagination"]["total"] == 1
    assert client.get(f"{EVENTS}?since=5").status_code == 400
    assert client.get(f"{EVENTS}?limit=0x10&offset=0X0").json()["pagination"]["limit"] == 16
    for bad in ("0x", "0x0", "0x3e9", "x10", "0xg"):
        assert client.get(f"{EVENTS}?limit={bad}").status_code == 400, bad
    half = client.get(f"{EVENTS}?detail_key=namespace&detail_value=")
    assert (half.status_code, half.json()["resource"]) == (400, "query parameters")


def test_export(client: httpx.Client) -> None:
    """Section 12: an empty format is none of those that there are, and times are returned in the zone in which they were sent."""
    assert client.get(f"{EXPORT}?format=").status_code == 400
    sent = {"start_time": "2026-01-31T14:00:00+02:00", "end_time": "2026-01-31T14:00:00Z"}
    filters = client.get(EXPORT, params=sent).json()["export_metadata"]["query_filters"]
    assert filters == sent | {"offset": 0, "limit": 1000}


def test_blank_reason_of_a_hold(client: httpx.Client) -> None:
    """Section 13: with a blank reason the correlation is looked up first, with an empty one it is not."""
    known = make_event()["correlation_id"]
    assert client.post(EVENTS, json=make_event(correlation_id=known)).status_code == 201
    answers = {
        (name, reason): client.post(HOLD, json={"correlation_id": correlation_id, "reason": reason})
        for name, correlation_id in (("known", known), ("unknown", "rr-unknown"))
        for reason in ("", " ")
    }
    assert {case: (answer.status_code, slug(answer)) for case, answer in answers.items()} == {
        ("known", ""): (400, "missing-reason"),
        ("known", " "): (400, "missing-reason"),
        ("unknown", ""): (400, "missing-reason"),
        ("unknown", " "): (404, "not-found"),
    }


def test_time_of_an_effectiveness(client: httpx.Client) -> None:
    """Section 16: `computed_at` is cut to whole seconds."""
    payload: dict[str, Any] = {
        "event_type": "effectiveness.health.assessed",
        "correlation_id": "rr-1",
        "namespace": "n",
    }
    payload |= {"ea_name": "ea", "component": "health", "assessed": True, "score": 1.0, "details": "d"}
    event = make_event(event_type=payload["event_type"], event_data=payload, event_category="effectiveness")
    event["correlation_id"] = "rr-1"
    answer = client.post(EVENTS, json=event)
    assert answer.status_code == 201, answer.text
    computed_at = client.get("/api/v1/effectiveness/rr-1").json()["computed_at"]
    assert re.fullmatch(r".{19}\.\d{6}Z", computed_at)
    assert abs((datetime.now(UTC) - datetime.fromisoformat(computed_at)).total_seconds()) < 60


def test_slash_in_a_path(client: httpx.Client) -> None:
    """Section 1: an encoded slash belongs to an id, a plain one separates segments, and neither is taken for the other."""
    assert client.post(EVENTS, json=make_event(correlation_id="a/b")).status_code == 201
    assert client.post(EVENTS, json=make_event(correlation_id="a/reconstruct")).status_code == 201
    timelines = "/api/v1/audit/correlations"
    assert client.get(f"{timelines}/a%2Fb").json()["correlation_id"] == "a/b"
    assert client.get(f"{timelines}/a%2freconstruct").json()["correlation_id"] == "a/reconstruct"
    held = client.request("DELETE", f"{HOLD}/a%2Fb", json={"release_reason": "r"})
    assert (held.status_code, slug(held)) == (404, "not-found")
    unknown = [
        ("GET", f"{timelines}/a/b"),
        ("DELETE", f"{HOLD}/a/b"),
        ("GET", "/api/v1/effectiveness/a/b"),
        ("POST", "/api/v1/audit/remediation-requests/a%2Freconstruct"),
        ("POST", "/api/v1/audit/remediation-requests/a/b/reconstruct"),
        ("GET", f"{timelines}%2Fa"),
        ("GET", "/api/v1/audit%2Fcorrelations/a%2Fb"),
        ("GET", "/api/v1/audit%2fcorrelations/a%2Fb"),
        ("GET", "/api/v1/audit%2Fevents"),
        ("POST", "/api/v1/audit%2Fevents"),
        ("POST", "/api/v1/audit%2flegal-hold"),
        ("GET", "/api%2Fv1/audit/events"),
        ("GET", "%2Freadyz"),
    ]
    for method, path in unknown:
        assert status_of(client, method, path) == 404, path
    assert (
        status_of(client, "GET", "/api/v1/audit/event%2Dtypes") == 200
    )  # the same as a hyphen (RFC 3986, section 6.2.2.2)


def status_of(client: httpx.Client, method: str, path: str) -> int:
    """The status for a path that is sent as it is: clients change some of them."""
    address = urlsplit(str(client.base_url))
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        path = path if path.startswith("/") else f"/{path}"
        connection.sendall(
            f"{method} {path} HTTP/1.1\r\nHost: audit\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()
        )
        return int(connection.recv(1000).split()[1])
