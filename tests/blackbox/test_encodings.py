"""What a Content-Encoding means, on requests and on answers, and the other forms in which a body may come."""

import gzip
import json
from collections.abc import Callable, Collection
from typing import Any

import httpx
import pytest

from tests.events import NOTIFICATION, make_event
from tests.framing.cases import H2C, PROBE, WENT_ON, chunks, event, request
from tests.framing.wire import answers_to
from tests.services import Service

EVENTS = "/api/v1/audit/events"
BATCH = "/api/v1/audit/events/batch"
NOTIFICATIONS = "/api/v1/audit/notifications"
GZIP = {"Content-Type": "application/json", "Content-Encoding": "gzip"}


@pytest.fixture
def client(service: Callable[..., Service]) -> Any:
    with httpx.Client(base_url=service().url, timeout=30) as client:
        yield client


def packed(value: Any) -> bytes:
    return gzip.compress(json.dumps(value).encode())


def test_gzip_is_the_same_request(client: httpx.Client) -> None:
    """A body with gzip is refused, or is another event than the same body without."""
    single, batch = make_event(), [make_event() for _ in range(3)]
    for path, value in ((EVENTS, single), (BATCH, batch), (NOTIFICATIONS, NOTIFICATION)):
        key = {"Idempotency-Key": "once"}
        first = client.post(path, content=packed(value), headers=GZIP | key)
        again = client.post(path, json=value, headers=key)
        assert (first.status_code, again.json()) == (201, first.json()), first.text
        assert client.post(path, content=packed({}), headers=GZIP | key).status_code in {400, 422}
    batch = [make_event() for _ in range(3)]
    assert client.post(BATCH, json=batch).json() == client.post(BATCH, content=packed(batch), headers=GZIP).json()
    holds = client.post("/api/v1/audit/legal-hold", content=packed({}), headers=GZIP)
    assert (holds.status_code, "reason" in holds.text) == (400, True)


def documented(operation: dict[str, Any], status: int) -> Collection[str]:
    """The media types of an answer with this status."""
    responses = operation["responses"]
    content: dict[str, Any] = responses.get(str(status), responses["default"])["content"]
    return content


def test_every_route_refuses_what_it_cannot_unpack(client: httpx.Client) -> None:
    """A route takes a body in an encoding that it does not read for something else, or does not look."""
    refused = 0
    for path, operations in client.get("/openapi.json").json()["paths"].items():
        for method in operations.keys() - {"get", "parameters"}:
            url = path.replace("{correlation_id}", "rr-1")
            for encoding in ("br", "zstd", "deflate", "gzip, gzip"):
                headers = {"Content-Type": "application/json", "Content-Encoding": encoding}
                answer = client.request(method, url, content=b"\x1b\x02\xff", headers=headers)
                assert (answer.status_code, answer.headers["accept-encoding"]) == (415, "gzip"), (method, path)
                # As the document has errors of this route; those of OTLP are no problem documents.
                assert answer.headers["content-type"] in documented(operations[method], 415)
                assert encoding in answer.json()["message" if path == "/v1/logs" else "detail"]
                refused += 1
    assert refused > 20


def test_limits_count_what_is_unpacked(client: httpx.Client) -> None:
    """A bomb passes the limit of a route, or a damaged stream is answered as if the server had failed."""
    bomb = gzip.compress(b" " * (60 << 20))
    for path in (EVENTS, BATCH, NOTIFICATIONS):
        assert client.post(path, content=bomb, headers=GZIP).status_code == 413
        for bad in (b"{}", packed({})[:-2], packed({}) * 2):
            answer = client.post(path, content=bad, headers=GZIP)
            assert (answer.status_code, "gzip" in answer.json()["detail"]) == (400, True)
    assert client.post(EVENTS, json=make_event()).status_code == 201


@pytest.mark.every_pod
def test_answers_are_compressed_where_asked(client: httpx.Client) -> None:
    """A page, a report or an export is sent at its full size, or differs from the one without gzip."""
    correlation_id = "rr-compressed"
    batch = client.post(BATCH, json=[make_event(correlation_id=correlation_id) for _ in range(20)])
    refused = client.post(BATCH, json=[make_event(event_type=7) for _ in range(20)])
    single = client.post(EVENTS, json=make_event())
    for answer in (
        batch,
        refused,
        single,
        client.get(f"{EVENTS}/{single.json()['event_id']}", headers={"Accept-Encoding": "br"}),
    ):
        assert "content-encoding" not in answer.headers
    assert len(refused.content) > 1024
    for path in (
        f"{EVENTS}?correlation_id={correlation_id}",
        f"/api/v1/audit/correlations/{correlation_id}",
        f"/api/v1/audit/export?format=ndjson&correlation_id={correlation_id}",
        f"/api/v1/audit/export?format=csv&correlation_id={correlation_id}",
        f"/api/v1/audit/export?correlation_id={correlation_id}",
        "/api/v1/audit/event-types",
        "/openapi.json",
        "/metrics",
    ):
        plain = client.get(path, headers={"Accept-Encoding": "gzip;q=0"})
        assert (plain.status_code, "content-encoding" in plain.headers) == (200, False), path
        assert plain.headers["vary"] == "Origin, Accept-Encoding"
        with client.stream("GET", path, headers={"Accept-Encoding": "br;q=1.0, gzip;q=0.8"}) as answer:
            raw = b"".join(answer.iter_raw())
        assert (answer.status_code, answer.headers["content-encoding"]) == (200, "gzip"), path
        assert len(raw) < len(plain.content) / 2
        if "correlation" in path and "export" not in path:
            assert gzip.decompress(raw) == plain.content


@pytest.mark.parametrize(
    "media_type", ["application/x-ndjson", "application/ndjson; charset=utf-8", "application/jsonl"]
)
def test_one_event_a_line(client: httpx.Client, media_type: str) -> None:
    """A batch of lines is refused, is another batch than the array of its lines, or a fault does not name its line."""
    items = [make_event(event_action=f"step-{n}") for n in range(3)]
    lines = [json.dumps(item) for item in items]
    headers = {"Content-Type": media_type}
    first = client.post(BATCH, content="\r\n".join(lines) + "\n \n", headers=headers)
    assert (first.status_code, len(set(first.json()["event_ids"]))) == (201, 3), first.text
    again = client.post(BATCH, content=gzip.compress("\n".join(lines).encode()), headers=headers | GZIP | headers)
    assert again.json() == first.json() == client.post(BATCH, json=items).json()
    large = [json.dumps(make_event(correlation_id=f"large-{media_type}")) for _ in range(500)]
    assert len(client.post(BATCH, content="\n".join(large), headers=headers).json()["event_ids"]) == 500
    for body, place, says in (
        ("", None, "empty"),
        ("\n \n", None, "empty"),
        (f"{lines[0]}\n\n{lines[1]}", "/1", "line 2: expected JSON, got nothing"),
        (f"{lines[0]}\n{lines[1][:-1]}\n", "/1", "line 2: expected JSON, got an error at column"),
        (f"{lines[0]}{lines[1]}\n", "/0", "line 1"),
        (json.dumps(items), "/0", "line 1: "),
        (
            lines[0] + "\n" + json.dumps(items[1] | {"event_outcome": "ok"}),
            "/1/event_outcome",
            "line 2, /event_outcome: ",
        ),
        (json.dumps(items[1] | {"event_data": {"a~/": "\0"}}), "/0/event_data/a~0~1", "line 1, /event_data/a~0~1: "),
        ("\n".join([*lines, '{"event_type": 1e999}']), "/3/event_type", "line 4, /event_type: "),
    ):
        answer = client.post(BATCH, content=body, headers=headers)
        assert (answer.status_code, says in answer.json()["detail"]) == (400, True), answer.text
        assert place is None or place in answer.json()["field_errors"]
    assert f"POST {BATCH}" in client.post(EVENTS, content=lines[0], headers=headers).json()["detail"]


@pytest.mark.every_pod
def test_encodings_whatever_the_framing(service: Callable[..., Service]) -> None:
    """An encoded body loses its end in chunks, behind an offer or an expectation, or an encoded answer has no end in HTTP/1.0."""
    port = int(service().url.rpartition(":")[2])

    def statuses(head: str, body: bytes = b"") -> list[int]:
        return [answer.status for answer in answers_to(port, request(head, body) + PROBE)]

    packed_event = [gzip.compress(event()) for _ in range(3)]
    assert statuses(f"{H2C}\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked", chunks(packed_event[0])) == [
        201,
        WENT_ON,
    ]
    for expects, answers in (("", [201, WENT_ON]), ("Expect: 100-continue\r\n", [100, 201, WENT_ON])):
        body = packed_event.pop()
        head = f"{expects}Content-Encoding: gzip\r\nContent-Length: {len(body)}"
        assert statuses(head, body) == answers
    large = chunks(b"x" * 3_000_000)
    assert statuses("Content-Encoding: br\r\nTransfer-Encoding: chunked", large) == [415, WENT_ON]
    refused = answers_to(port, request("Content-Encoding: br\r\nExpect: 100-continue\r\nContent-Length: 9"))
    assert [(one.status, one.headers["connection"]) for one in refused] == [(415, "close")]
    for path in ("/openapi.json", "/api/v1/audit/export?format=ndjson"):
        head = f"GET {path} HTTP/1.0\r\nAccept-Encoding: gzip\r\n\r\n"
        [answer] = answers_to(port, head.encode())
        assert (answer.headers["content-encoding"], "transfer-encoding" in answer.headers) == ("gzip", False)
        assert gzip.decompress(answer.body)
