"""Answers to POST: valid, invalid and too large requests."""

import asyncio
import base64
import http.client
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from tests.events import make_event, make_freeform
from tests.services import Service

EVENTS = "/api/v1/audit/events"
BATCH = "/api/v1/audit/events/batch"
REQUIRED = {
    *("version", "event_type", "event_timestamp", "event_category", "event_action", "event_outcome"),
    *("correlation_id", "event_data"),
}
JSON = {"Content-Type": "application/json"}


@pytest.fixture
def client(service: Callable[..., Service]) -> Any:
    with httpx.Client(base_url=service().url, timeout=30) as client:
        yield client


def stamp(**delta: float) -> str:
    return (datetime.now(UTC) + timedelta(**delta)).isoformat()


def nested(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels - 1):
        value = {"k": value}
    return value


def test_receipt_of_a_single_event(client: httpx.Client) -> None:
    """The receipt lacks what the Go client needs, or its time is not in whole seconds."""
    answer = client.post(EVENTS, json=make_event())
    assert answer.status_code == 201
    assert answer.headers["content-type"] == "application/json"
    assert sorted(answer.json()) == ["event_id", "event_timestamp", "message"]
    assert len(answer.json()["event_timestamp"]) == len("2026-01-31T12:00:00Z")
    assert answer.json()["message"] == "Audit event created successfully"


def test_receipt_of_a_batch_is_in_input_order(client: httpx.Client) -> None:
    """The ids of a batch are not those of its items."""
    items = [make_event(correlation_id=f"order-{i % 3}", event_action=f"step-{i}") for i in range(9)]
    answer = client.post(BATCH, json=items)
    assert answer.status_code == 201
    assert answer.json()["message"] == "9 audit events created successfully"
    for item, event_id in zip(items, answer.json()["event_ids"], strict=True):
        assert client.get(f"{EVENTS}/{event_id}").json()["event_action"] == item["event_action"]


def test_defaults(client: httpx.Client) -> None:
    """A default is not the one of the contract."""
    event_id = client.post(
        EVENTS, json={k: v for k, v in make_freeform(correlation_id="defaults").items() if k in REQUIRED}
    ).json()["event_id"]
    stored = client.get(f"{EVENTS}/{event_id}").json()
    assert stored["actor_type"] == "service"
    assert stored["actor_id"] == "orchestration-service"
    assert (stored["resource_type"], stored["resource_id"]) == ("orchestration", "defaults")
    assert (stored["retention_days"], stored["severity"], stored["is_sensitive"]) == (2555, "info", False)


AS_STORED: list[tuple[dict[str, Any], str, Any]] = [
    ({"duration_ms": 0}, "duration_ms", None),
    ({"duration_ms": 5.0}, "duration_ms", 5),
    ({"retention_days": -1}, "retention_days", 2555),
    ({"retention_days": 0}, "retention_days", 2555),
    ({"retention_days": None}, "retention_days", 2555),
    ({"retention_days": 30}, "retention_days", 30),
    ({"severity": None}, "severity", None),
    ({"parent_event_id": None}, "parent_event_id", None),
    ({"cluster_name": "c1"}, "cluster_id", "c1"),
    ({"cluster_name": "c1", "cluster_id": "c2"}, "cluster_id", "c2"),
    ({"actor_ip": "2001:DB8:0:0:0:0:0:1"}, "actor_ip", "2001:db8::1"),
]


def test_envelope_as_stored(client: httpx.Client) -> None:
    """A member of the envelope is not stored as the contract says."""
    for members, key, stored in AS_STORED:
        event = {k: v for k, v in make_event().items() if k not in {"cluster_id", "severity"}} | members
        answer = client.post(EVENTS, json=event)
        assert answer.status_code == 201, answer.text
        found = client.get(f"{EVENTS}/{answer.json()['event_id']}").json()
        assert (members, found.get(key)) == (members, stored)


BAD: list[tuple[str, dict[str, Any]]] = [
    ("version", {"version": "12345678901"}),
    ("version", {"version": ""}),
    ("event_type", {"event_type": "x" * 101}),
    ("event_type", {"event_type": 7}),
    ("event_timestamp", {"event_timestamp": "2026-01-01T00:00:00"}),
    ("event_timestamp", {"event_timestamp": "2026-01-01 00:00:00Z"}),
    ("event_timestamp", {"event_timestamp": "2026-01-01t00:00:00z"}),
    ("event_timestamp", {"event_timestamp": 1767225600}),
    ("event_timestamp", {"event_timestamp": "1767225600"}),
    ("event_timestamp", {"event_timestamp": "2026-02-30T00:00:00Z"}),
    ("event_category", {"event_category": "Gateway"}),
    ("event_action", {"event_action": ""}),
    ("event_action", {"event_action": "x" * 51}),
    ("event_outcome", {"event_outcome": "ok"}),
    ("correlation_id", {"correlation_id": ""}),
    ("correlation_id", {"correlation_id": "é" * 256}),
    ("event_data", {"event_data": "text"}),
    ("event_data", {"event_data": None}),
    ("event_data", {"event_data": []}),
    ("actor_type", {"actor_type": None}),
    ("actor_type", {"actor_type": "x" * 51}),
    ("actor_id", {"actor_id": "x" * 256}),
    ("actor_ip", {"actor_ip": "10.0.0.256"}),
    ("actor_ip", {"actor_ip": "10.0.0.0/8"}),
    ("actor_ip", {"actor_ip": "fe80::1%eth0"}),
    ("resource_type", {"resource_type": "x" * 101}),
    ("resource_id", {"resource_id": "x" * 256}),
    ("namespace", {"namespace": "x" * 254}),
    ("cluster_id", {"cluster_id": "x" * 256}),
    ("severity", {"severity": "x" * 21}),
    ("error_code", {"error_code": "x" * 51}),
    ("error_message", {"error_message": "a\0b"}),
    ("duration_ms", {"duration_ms": 2**31}),
    ("duration_ms", {"duration_ms": 1.5}),
    ("duration_ms", {"duration_ms": "1"}),
    ("retention_days", {"retention_days": 2556}),
    ("is_sensitive", {"is_sensitive": "true"}),
    ("parent_event_id", {"parent_event_id": "not-a-uuid"}),
    ("parent_event_id", {"parent_event_id": "01a20e0c-7ce0-710e-bfce-35434f8305e9"}),
    ("parent_event_date", {"parent_event_date": "yesterday"}),
    ("parent_event_date", {"parent_event_date": "0001-01-01T00:00:00Z"}),
    ("parent_event_date", {"parent_event_date": "9999-12-31T00:00:00Z"}),
    ("event_id", {"event_id": "42"}),
    ("event_data/event_type", {"event_data": {"event_type": "orchestrator.lifecycle.Started"}}),
    ("event_data/rr_name", {"event_data": {"event_type": "orchestrator.lifecycle.started", "namespace": "n"}}),
    ("event_data", {"event_type": "nobody.knows.this", "event_data": {"a": 1}}),
    (
        "event_data/phase",
        {"event_data": {"event_type": "signalprocessing.error.occurred", "phase": "?", "signal": "s"}},
    ),
]


def test_bad_member_is_named(client: httpx.Client) -> None:
    """A malformed event is stored, or the answer does not name the field at fault."""
    for field, members in BAD:
        event = make_event(correlation_id="bad") | members
        single = client.post(EVENTS, json=event)
        batch = client.post(BATCH, json=[make_event(correlation_id="bad"), event])
        for answer, pointer in ((single, f"/{field}"), (batch, f"/1/{field}")):
            assert answer.status_code == 400, (members, answer.text)
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json()["detail"]
            assert any(key.startswith(pointer) for key in answer.json()["field_errors"]), answer.json()
    assert client.get(EVENTS, params={"correlation_id": "bad"}).json()["pagination"]["total"] == 0


def test_malformed_uuid_in_a_payload(client: httpx.Client) -> None:
    """The problem type is not the platform's for a UUID that no decoder accepts."""
    payload = {"event_type": "datastorage.workflow.updated", "workflow_id": "42", "updated_fields": {}}
    answer = client.post(EVENTS, json=make_event(event_data=payload))
    assert (answer.status_code, answer.json()["type"].rpartition("/")[2]) == (400, "invalid_request")
    assert list(answer.json()["field_errors"]) == ["/event_data/workflow_id"]


def test_all_faults_are_told_at_once(client: httpx.Client) -> None:
    """A client that corrects an event has to send it again for each of its faults."""
    event = make_event(
        event_outcome="ok",
        event_timestamp="yesterday",
        actor_ip="10.0.0.256",
        event_data={"event_type": "orchestrator.lifecycle.started", "rr_name": 7},
    )
    named = {"/event_outcome", "/event_timestamp", "/actor_ip", "/event_data/rr_name", "/event_data/namespace"}
    answer = client.post(EVENTS, json=event).json()
    assert set(answer["field_errors"]) == named
    assert list(answer) == sorted(answer)
    # What no decoder takes comes after what the schema refuses, wherever it stands.
    undecodable = make_event(event_timestamp="2026-11-24T10:00:60Z")
    assert client.post(EVENTS, json=undecodable).json()["type"].endswith("/invalid_request")
    batch = client.post(BATCH, json=[undecodable, make_event(), event]).json()
    assert set(batch["field_errors"]) == {"/0/event_timestamp", *(f"/2{pointer}" for pointer in named)}
    assert batch["type"].endswith("/validation-error")
    assert len(client.post(BATCH, json=[event] * 100).json()["field_errors"]) == 20


def test_window_of_time(client: httpx.Client) -> None:
    """An honest late event or a clock that runs ahead is refused, or a time beyond the window is stored."""
    for delta, status in (
        *(({"minutes": 59}, 201), ({"minutes": 61}, 400)),
        *(({"days": -7, "minutes": 1}, 201), ({"days": -7, "minutes": -1}, 400)),
    ):
        answer = client.post(EVENTS, json=make_event(event_timestamp=stamp(**delta)))
        assert (delta, answer.status_code) == (delta, status)
        assert status == 201 or "/event_timestamp" in answer.json()["field_errors"]


NO_EVENT = [
    *(b"", b"null", b"[]", b'"text"', b"{", b"{}x", b"\xef\xbb\xbf{}", b'{"a": NaN}', b'{"a": "\xff"}'),
    *(b'{"a": "\\ud800"}', b"[" * 100_000, b'{"a":' * 100_000, b"9" * 100_000),
]
BEYOND = ["1e400", "-1e309", "1e-309", "9" * 101, "0." + "1" * 101, "1e99999999999999999999"]


def test_body_that_is_no_event(client: httpx.Client) -> None:
    """A body that is not an event, or not JSON, is answered other than 400."""
    for path in (EVENTS, BATCH):
        for body in NO_EVENT:
            answer = client.post(path, content=body, headers=JSON)
            assert (path, body[:20], answer.status_code) == (path, body[:20], 400)
            assert answer.json()["detail"]


def test_number_beyond_the_bounds(client: httpx.Client) -> None:
    """A number without a canonical form is stored as another one."""
    for number in BEYOND:
        event = json.dumps(make_freeform(payload={"n": "NUMBER"})).replace('"NUMBER"', number)
        answer = client.post(EVENTS, content=event, headers=JSON)
        assert (number[:20], answer.status_code) == (number[:20], 400)


def test_content_type(client: httpx.Client) -> None:
    """A body with another Content-Type is read as JSON, or a charset after the type is an error."""
    body = json.dumps(make_event()).encode()
    for content_type in (None, "text/plain", "application/xml", "Application/JSON"):
        answer = client.post(EVENTS, content=body, headers={"Content-Type": content_type} if content_type else {})
        assert answer.status_code == 400
        assert "application/json" in answer.json()["detail"]
    assert client.post(EVENTS, content=body, headers={"Content-Type": "application/json; charset=utf-8"}).is_success


def test_depth_and_size_of_the_payload(client: httpx.Client) -> None:
    """The limits of ten levels and 256 KiB are not where they should be."""
    for levels, status in ((10, 201), (11, 400), (150, 400)):
        event = make_freeform(payload=nested(levels))
        assert client.post(EVENTS, json=event).status_code == status
        assert client.post(BATCH, json=[event]).status_code == status
    for size, status in ((256 * 1024 - 8, 201), (256 * 1024 - 7, 400)):
        assert client.post(EVENTS, json=make_freeform(payload={"k": "x" * size})).status_code == status


def test_body_size(client: httpx.Client) -> None:
    """A body above the limit is read to its end, or refused as something else."""
    too_large = b" " * (5 * 1024 * 1024 + 1)
    assert client.post(EVENTS, content=too_large, headers=JSON).status_code == 413

    def chunks() -> Any:
        for _ in range(60):
            yield b" " * 100_000

    answer = client.post(EVENTS, content=chunks(), headers=JSON)
    assert (answer.status_code, answer.json()["title"]) == (413, "Request Entity Too Large")


def test_too_large_reaches_a_client_that_is_still_sending(client: httpx.Client) -> None:
    """Clients that send the whole body before they read (Go's, Python's) see a reset connection instead of 413."""
    for _ in range(5):
        connection = http.client.HTTPConnection(client.base_url.host, client.base_url.port or 80, timeout=10)
        connection.request("POST", EVENTS, b" " * (6 << 20), JSON)
        assert connection.getresponse().status == 413


def test_many_faults_cost_little(client: httpx.Client) -> None:
    """A payload with a hundred thousand faults delays everybody else while they are listed."""
    labels = {str(n): n for n in range(100_000)}
    payload = {"event_type": "gateway.signal.received", "signal_labels": labels}
    answer = client.post(EVENTS, json=make_event(event_data=payload))
    assert (answer.status_code, len(answer.content) < 10_000) == (400, True)


def test_batch_limits(service: Callable[..., Service]) -> None:
    """An empty batch is accepted, a full one is refused, or the refusal of a larger one does not say so."""
    with httpx.Client(base_url=service(batch_events_max=5).url) as client:
        assert "empty" in client.post(BATCH, json=[]).json()["detail"]
        assert "array" in client.post(BATCH, json={}).json()["detail"]
        assert client.post(BATCH, json=[make_event() for _ in range(5)]).status_code == 201
        answer = client.post(BATCH, json=[make_event() for _ in range(6)])
        assert answer.status_code == 400
        problem = answer.json()
        assert problem["type"] == "https://kubernaut.ai/problems/batch-size-exceeded"
        assert problem["instance"] == BATCH
        assert all(part in problem["detail"] for part in ("batch size", "5", "6"))


def test_ten_thousand_events_at_once(client: httpx.Client) -> None:
    """A Go client that shuts down cannot send its whole buffer."""
    items = [make_freeform(payload={"n": n}, correlation_id=f"many-{n % 50}") for n in range(10_000)]
    answer = client.post(BATCH, json=items)
    assert answer.status_code == 201, answer.text[:300]
    assert len(set(answer.json()["event_ids"])) == 10_000
    assert client.post(BATCH, json=items).json() == answer.json()
    found = client.get(EVENTS, params={"correlation_id": "many-7", "limit": 1}).json()
    assert found["pagination"]["total"] == 200


@pytest.mark.every_pod
def test_parent(client: httpx.Client) -> None:
    """A child is stored without its parent, or does not get its parent's date."""
    parent = client.post(EVENTS, json=make_event(event_timestamp=stamp(days=-3))).json()
    child = make_event(parent_event_id=parent["event_id"].upper(), parent_event_date="2020-01-01T00:00:00Z")
    stored = client.get(f"{EVENTS}/{client.post(EVENTS, json=child).json()['event_id']}").json()
    assert stored["parent_event_id"] == parent["event_id"]
    assert stored["parent_event_date"] == parent["event_timestamp"][:10] + "T00:00:00Z"
    orphan = client.post(EVENTS, json=make_event(parent_event_id="01a20e0c-7ce0-710e-bfce-35434f8305e9"))
    assert "parent" in orphan.json()["detail"]


def test_event_id_is_kept_and_unique(client: httpx.Client) -> None:
    """A client's own id is lost, or accepted twice."""
    event = make_event(event_id="0197b1a0-0000-7000-8000-00000000abcd")
    first, again = client.post(EVENTS, json=event), client.post(EVENTS, json=event)
    assert (first.status_code, first.json()) == (again.status_code, again.json()) == (201, first.json())
    assert first.json()["event_id"] == event["event_id"]
    other = client.post(EVENTS, json=event | {"event_action": "another"})
    assert other.status_code == 409
    assert event["event_id"] in other.json()["detail"]


def test_request_id_is_returned(client: httpx.Client) -> None:
    """A request cannot be found in the log by the id that the client gave it."""
    answer = client.post(EVENTS, content=b"{", headers=JSON | {"X-Request-ID": "abc-123"})
    assert answer.headers["x-request-id"] == "abc-123"
    assert answer.json()["instance"] == EVENTS
    assert client.get("/healthz").headers["x-request-id"]


def test_unknown_paths_and_methods(client: httpx.Client) -> None:
    """Routing answers differ from the reference's router."""
    unknown = client.get("/api/v1/workflows")
    assert (unknown.status_code, unknown.text) == (404, "404 page not found\n")
    assert unknown.headers["content-type"] == "text/plain; charset=utf-8"
    assert client.get(EVENTS + "/").status_code == 404
    for method, path in (
        ("GET", "legal-hold/"),
        ("OPTIONS", "legal-hold/x/"),
        ("POST", "correlations/x/"),
        ("DELETE", "events/"),
    ):
        slash = client.request(method, f"/api/v1/audit/{path}")
        assert (slash.status_code, slash.text) == (404, "404 page not found\n"), path
    wrong = client.put(EVENTS)
    assert (wrong.status_code, wrong.content, wrong.headers["allow"]) == (405, b"", "GET, POST")
    assert client.head(EVENTS).status_code == 405
    refused = client.post("/nowhere", content=b" " * (6 << 20))
    assert (refused.status_code, refused.headers["connection"]) == (413, "close")
    # The body of a GET is not read, so it is not bounded either.
    assert client.request("GET", EVENTS, content=b" " * (6 << 20)).status_code == 200
    assert client.get(BATCH.replace("batch", "batch/x")).status_code == 404
    assert [(a.status_code, a.headers["allow"]) for a in (client.get(BATCH), client.put(BATCH))] == [(405, "POST")] * 2


def test_preflight(client: httpx.Client) -> None:
    """A browser's preflight is not answered, or allows an origin that is not in the settings."""
    asked = {"Origin": "http://example.test", "Access-Control-Request-Method": "POST"}
    answer = client.options(EVENTS, headers=asked)
    assert (answer.status_code, answer.headers["vary"]) == (200, "Origin")
    assert "access-control-allow-origin" not in answer.headers
    assert client.options(EVENTS).status_code == 405


def test_odd_parameters(client: httpx.Client) -> None:
    """An empty, unknown or invalid parameter gets another answer than the contract's."""
    cursor = base64.urlsafe_b64encode(b"2026-02-30T00:00:00/" + b"0" * 32).decode().rstrip("=")
    for query, status in (
        *(("offset=", 200), ("limit=", 200), ("foo=%ff", 200), ("since=", 200), ("since=1d12h", 400)),
        *(("event_type=%ff", 400), ("event_type=%00", 400), ("limit=0", 400), ("limit=1001", 400), ("offset=-1", 400)),
        *((f"cursor={cursor}", 400), ("cursor=x", 400), ("detail_key=a", 400), ("event_outcome=", 400)),
        *(
            ("since=-5m", 200),
            ("since=1h30m", 200),
            ("since=2026-01-01", 200),
            ("since=2026-01-01T00:00:00+01:00", 400),
        ),
    ):
        assert (query, client.get(f"{EVENTS}?{query}").status_code) == (query, status)


TRACE = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
NO_TRACE = None, None
TRACEPARENTS = [
    (f"00-{TRACE[0]}-{TRACE[1]}-01", TRACE),
    (f"01-{TRACE[0]}-{TRACE[1]}-00-more", TRACE),
    (f"ff-{TRACE[0]}-{TRACE[1]}-01", NO_TRACE),
    (f"00-{'0' * 32}-{TRACE[1]}-01", NO_TRACE),
    (f"00-{TRACE[0]}-{'0' * 16}-01", NO_TRACE),
    (f"00-{TRACE[0].upper()}-{TRACE[1]}-01", NO_TRACE),
    ("nonsense", NO_TRACE),
]


async def test_trace_of_the_caller_is_kept(service: Callable[..., Service], connection: Any) -> None:
    """The trace in which an event was sent is not stored, or an invalid one is."""
    running = await asyncio.to_thread(service)
    async with httpx.AsyncClient(base_url=running.url, timeout=20) as client:
        for sent, kept in TRACEPARENTS:
            ids = [(await client.post(EVENTS, json=make_event(), headers={"traceparent": sent})).json()["event_id"]]
            for size in (1, 60):  # by one statement, and by COPY
                batch = [make_event() for _ in range(size)]
                answer = await client.post(BATCH, json=batch, headers={"traceparent": sent})
                ids += answer.json()["event_ids"]
            rows = await connection.fetch(
                "SELECT trace_id, span_id FROM audit_events WHERE event_id = ANY($1::uuid[])", ids
            )
            assert [tuple(row) for row in rows] == [kept] * 62
