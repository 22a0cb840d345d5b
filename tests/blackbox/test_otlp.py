"""POST /v1/logs: OpenTelemetry's log records become events, and what does not is named; docs/receivers.md."""

import asyncio
import gzip
import json
import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import httpx
import pytest
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue, KeyValueList
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

from tests.blackbox.test_access import bearer, write_tokens
from tests.blackbox.test_outage import started
from tests.databases import connected
from tests.events import make_event
from tests.log_records import (
    BODY,
    JSON,
    PROTOBUF,
    RESOURCE,
    SPAN,
    TRACE,
    TYPE,
    any_value,
    as_json,
    pairs,
    record,
    request,
)
from tests.services import Service

LOGS, EVENTS = "/v1/logs", "/api/v1/audit/events"
Client = httpx.Client


@pytest.fixture
def client(service: Callable[..., Service]) -> Iterator[Client]:
    with Client(base_url=service().url, timeout=60) as client:
        yield client


@pytest.fixture
def open_client(service: Callable[..., Service]) -> Iterator[Client]:
    """Of a service that accepts every type."""
    with Client(base_url=service(unknown_event_types="accept").url, timeout=60) as client:
        yield client


def send(
    client: Client, sent: ExportLogsServiceRequest | bytes, encoding: str = PROTOBUF, **headers: str
) -> httpx.Response:
    if isinstance(sent, ExportLogsServiceRequest):
        sent = sent.SerializeToString() if encoding == PROTOBUF else json.dumps(as_json(sent)).encode()
    return client.post(LOGS, content=sent, headers={"Content-Type": encoding, **headers})


def stored(answer: httpx.Response) -> tuple[int, str]:
    """How many records were rejected by an answer of 200, and why."""
    assert answer.status_code == 200, answer.text
    if answer.headers["content-type"] == PROTOBUF:
        partial = ExportLogsServiceResponse.FromString(answer.content).partial_success
        return partial.rejected_log_records, partial.error_message
    members = answer.json().get("partialSuccess", {})
    return int(members.get("rejectedLogRecords", "0")), members.get("errorMessage", "")


def fault(answer: httpx.Response, status: int = 400) -> str:
    """What an error of this status says."""
    assert answer.status_code == status, answer.text
    if answer.headers["content-type"] == PROTOBUF:
        return str(Status.FromString(answer.content).message)
    assert answer.headers["content-type"] == JSON
    return str(answer.json()["message"])


def events(client: Client, **filters: str) -> list[dict[str, Any]]:
    answer = client.get(EVENTS, params=filters | {"limit": "1000"})
    found: list[dict[str, Any]] = answer.raise_for_status().json()["data"]
    return found


def event_of(client: Client, sent: LogRecord, encoding: str = PROTOBUF, **resource: Any) -> dict[str, Any]:
    """The one event that a record becomes."""
    correlation_id = {pair.key: pair.value.string_value for pair in sent.attributes}["audit.correlation_id"]
    assert stored(send(client, request(sent, resource=RESOURCE | resource), encoding)) == (0, "")
    [event] = events(client, correlation_id=correlation_id)
    return event


def trace_of(database_url: str, event: dict[str, Any]) -> tuple[str | None, str | None]:
    """Trace and span id of an event."""

    async def read() -> tuple[str | None, str | None]:
        async with connected(database_url) as connection:
            row = await connection.fetchrow(
                "SELECT trace_id, span_id FROM audit_events WHERE event_id = $1", event["event_id"]
            )
            assert row is not None
            return row["trace_id"], row["span_id"]

    return asyncio.run(read())


@pytest.mark.every_pod
@pytest.mark.parametrize("encoding", [PROTOBUF, JSON])
def test_a_record_becomes_an_event(client: Client, database_url: str, encoding: str) -> None:
    """A record is lost, or an attribute does not arrive at the member that docs/receivers.md names."""
    attributes = {
        "user.id": "jane@example.org",
        "client.address": "192.0.2.7",
        "error.type": "timeout",
        "exception.message": "no answer",
        "audit.resource_type": "Deployment",
        "audit.resource_id": "api",
        "audit.duration_ms": 17,
        "audit.is_sensitive": True,
        "audit.event_outcome": None,
        "http.request.method": "POST",
    }
    sent = record(attributes=attributes, trace_id=TRACE, span_id=SPAN, severity_number=17, severity_text="ERROR")
    sent.time_unix_nano = sent.time_unix_nano // 1000 * 1000 + 999
    event = event_of(client, sent, encoding)
    payload = event["event_data"]
    assert payload == BODY | {
        "event_type": TYPE,
        "otel": {
            "attributes": {"http.request.method": "POST"},
            "resource": RESOURCE,
            "scope": {"name": "payments.audit", "version": "1.2.0"},
            "severity_text": "ERROR",
        },
    }
    expected = {
        "event_type": TYPE,
        "event_category": "orchestration",
        "event_action": "transitioned",
        "event_outcome": "failure",
        "actor_type": "user",
        "actor_id": "jane@example.org",
        "actor_ip": "192.0.2.7",
        "resource_type": "Deployment",
        "resource_id": "api",
        "namespace": "shop",
        "cluster_id": "prod-eu-1",
        "severity": "error",
        "duration_ms": 17,
        "error_code": "timeout",
        "error_message": "no answer",
        "is_sensitive": True,
    }
    assert {name: event.get(name) for name in expected} == expected
    whole = client.get(f"{EVENTS}/{event['event_id']}").json()
    assert trace_of(database_url, event) == (TRACE.hex(), SPAN.hex())
    time_us = int(sent.time_unix_nano) // 1000
    assert whole["event_timestamp"].endswith(f".{time_us % 1_000_000:06d}".rstrip("0").rstrip(".") + "Z")


def test_what_is_not_given_has_defaults(client: Client) -> None:
    """A record without user, severity or correlation is refused, or gets those of another one."""
    trace = uuid4().bytes
    sent = record(attributes={"audit.correlation_id": None}, trace_id=trace)
    assert stored(send(client, request(sent))) == (0, "")
    [event] = events(client, correlation_id=trace.hex())
    assert (event["actor_type"], event["actor_id"], event["severity"]) == ("service", "payments", "info")
    nameless = event_of(client, record(), **{"service.name": "unknown_service:python"})
    assert nameless["actor_id"] == "orchestration-service"
    named = event_of(client, record(attributes={"client.address": "shop.example", "k8s.namespace.name": "own"}))
    assert (named.get("actor_ip"), named["namespace"]) == (None, "own")
    assert named["event_data"]["otel"]["attributes"] == {"client.address": "shop.example"}


def test_our_own_names_come_first(client: Client) -> None:
    """A convention replaces what the sender has said by our own name."""
    event = event_of(
        client,
        record(
            attributes={
                "audit.actor_id": "robot",
                "audit.actor_type": "service",
                "audit.namespace": "own",
                "audit.event_action": "done",
                "audit.event_type": TYPE,
                "user.id": "jane",
                "event.name": "other",
            },
            event_name="third",
        ),
    )
    assert (event["actor_id"], event["actor_type"], event["namespace"]) == ("robot", "service", "own")
    assert (event["event_type"], event["event_action"]) == (TYPE, "done")
    rest = event["event_data"]["otel"]
    assert (rest["attributes"], rest["event_name"]) == ({"user.id": "jane", "event.name": "other"}, "third")


@pytest.mark.parametrize("encoding", [PROTOBUF, JSON])
def test_the_payload(open_client: Client, encoding: str) -> None:
    """A value is stored as another one, or what has no place in the payload is lost."""
    values = {
        "i": 2**63 - 1,
        "n": -1,
        "d": 0.1,
        "whole": 5.0,
        "b": b"\xff\x00",
        "none": None,
        "no": False,
        "list": [1, "x", {"k": [2.5]}],
        "e": {},
    }
    attributes = values | {"audit.event_category": "workflow", "nan": float("nan"), "großes": "Ü"}
    as_text = record("it was done", attributes=attributes, event_name="shop.order.paid")
    payload = event_of(open_client, as_text, encoding)["event_data"]
    assert payload.pop("otel")["body"] == "it was done"
    expected = values | {"whole": 5, "b": "/wA=", "nan": "NaN", "großes": "Ü"}
    assert payload == expected
    assert isinstance(payload["whole"], int)
    as_map = record(values, attributes={"audit.event_category": "workflow"}, event_name="shop.order.paid")
    assert event_of(open_client, as_map, encoding)["event_data"].items() >= (values | {"whole": 5, "b": "/wA="}).items()


@pytest.mark.parametrize("encoding", [PROTOBUF, JSON])
def test_a_resend_is_recognised(client: Client, encoding: str) -> None:
    """A request that is sent again, whole or in parts or in the other encoding, stores its records twice, or equal records are stored once."""
    correlation_id = f"rr-{uuid4()}"
    same = {"audit.correlation_id": correlation_id}
    twice = record(attributes=same)
    no_time = record(attributes=same, time_unix_nano=0)
    observed = record(attributes=same, time_unix_nano=0, observed_time_unix_nano=time.time_ns())
    whole = request(twice, twice, no_time, no_time, observed)
    for _ in range(2):
        assert stored(send(client, whole, encoding)) == (0, "")
    assert stored(send(client, whole, JSON if encoding == PROTOBUF else PROTOBUF)) == (0, "")
    assert stored(send(client, request(observed, twice), encoding)) == (0, "")
    assert stored(send(client, request(no_time), encoding)) == (0, "")
    assert len(events(client, correlation_id=correlation_id)) == 5
    other = record(attributes=same, time_unix_nano=twice.time_unix_nano, trace_id=TRACE)
    assert stored(send(client, request(other, twice), encoding)) == (0, "")
    assert len(events(client, correlation_id=correlation_id)) == 6


def test_ids_of_the_sender(client: Client) -> None:
    """An id that a record brings is not its event's, or is stored twice; or a record with a taken id stops the others."""
    first, second = str(uuid4()), str(uuid4())
    event = event_of(client, record(attributes={"audit.event_id": first, "log.record.uid": second}))
    assert event["event_id"] == first
    assert event_of(client, record(attributes={"log.record.uid": second}))["event_id"] == second
    ulid = event_of(client, record(attributes={"log.record.uid": "01ARZ3NDEKTSV4RRFFQ69G5FAV"}))
    assert ulid["event_data"]["otel"]["attributes"] == {"log.record.uid": "01ARZ3NDEKTSV4RRFFQ69G5FAV"}
    third = str(uuid4())
    one, other = (record(attributes={"audit.event_id": third}) for _ in range(2))
    rejected, why = stored(
        send(client, request(record(attributes={"audit.event_id": first}), one, one, other, record()))
    )
    assert rejected == 2
    assert "logRecords/0: event_id" in why
    assert "other content" in why
    assert "logRecords/3: event_id" in why
    assert "used twice" in why


@pytest.mark.parametrize("encoding", [PROTOBUF, JSON])
def test_partial_success(client: Client, encoding: str) -> None:
    """One record that is no audit event costs the others, or its sender does not learn which it was and why."""
    bad = [
        (record(attributes={"audit.event_outcome": None}), "audit.event_outcome: required, but missing"),
        (record(event_name=""), "event_name: required, but missing"),
        (record(attributes={"audit.correlation_id": None}), "audit.correlation_id: required, but missing"),
        (record(event_name="no.such.type"), "event_data"),
        (record(attributes={"audit.event_outcome": "ok"}), "audit.event_outcome: expected one of"),
        (record({"rr_name": 5}), "event_data/rr_name: expected a string, got 5"),
        (
            record(attributes={"audit.parent_event_id": str(uuid4())}),
            "audit.parent_event_id: expected the id of a stored event",
        ),
        (
            record(time_unix_nano=time.time_ns() - 8 * 86_400 * 10**9),
            "time_unix_nano: expected a time at most 7 days in the past",
        ),
        (record(time_unix_nano=2**64 - 1), "time_unix_nano: expected a time at most 60 minutes in the future"),
        (record(attributes={"a": "\0"}), "event_data/otel/attributes/a: "),
        (record(attributes={"user.id": "x" * 256}), "user.id: expected at most 255 characters"),
        (record(event_name="datastorage.hold.placed"), "only the service itself"),
        (record({"otel": 1}), "otel"),
        (record({"rr_name": "x" * 300_000}), "expected a size of at most 262144 bytes"),
        (
            record({"rr_name": "x" * 400_000}),
            "bytes" if encoding == JSON else "expected a LogRecord of at most 327680 bytes",
        ),
    ]
    for sent, expected in bad:
        rejected, why = stored(send(client, request(record(), sent, record()), encoding))
        assert rejected == 1
        assert why.startswith("1 of 3 log records are not stored: /resourceLogs/0/scopeLogs/0/logRecords/1: "), why
        assert expected in why
    rejected, why = stored(send(client, request(record(), *(sent for sent, _ in bad[:8])), encoding))
    assert (rejected, why.count("/logRecords/"), why[-12:]) == (8, 5, "; and 3 more")
    assert "logRecords/0: audit.event_outcome" in fault(send(client, request(bad[0][0]), encoding))
    assert len(events(client)) == 2 * len(bad) + 1
    refused = "datastorage_log_records_refused_total 24.0"
    assert refused in client.get("/metrics").text


def test_hostile_values(client: Client) -> None:
    """A record that cannot be stored ends the service or costs the others; or one of two values under one key is stored."""
    twice = record()
    twice.attributes.extend(pairs({"k": 1}) + pairs({"k": 2}))
    double_body = record(AnyValue(kvlist_value=KeyValueList(values=pairs(BODY) + pairs({"rr_name": "other"}))))
    indexed = record()
    indexed.attributes.append(KeyValue(key="k", value=AnyValue(string_value_strindex=1)))
    deep, deeper = any_value(1), any_value(1)
    for _ in range(12):
        deep = any_value([deep])
    for _ in range(45):
        deeper = any_value([deeper])
    for sent, expected in (
        (twice, "the attribute 'k' is there twice"),
        (double_body, "the attribute 'rr_name' is there twice"),
        (indexed, "string_value_strindex"),
        (record(attributes={"k": deep}), "expected a nesting of at most 10 levels"),
        (record(attributes={"k": deeper}), "nesting"),
    ):
        for encoding in (PROTOBUF, JSON):
            if encoding == JSON and sent is indexed:
                continue  # it has no JSON form that OTLP defines
            rejected, why = stored(send(client, request(sent, record()), encoding))
            assert (rejected, expected in why) == (1, True), why
    for raw, expected in (
        (b"\x1a\x03\x61\xff\xfe", "in protobuf"),  # text that is not UTF-8
        (b"\x2a" * 7, "in protobuf"),
        (b"\x0a\xff", "in protobuf"),
    ):
        scope = b"\x12" + bytes([len(raw)]) + raw + b"\x12\x00"
        body = b"\x12" + bytes([len(scope)]) + scope
        whole = b"\x0a" + bytes([len(body)]) + body
        why = fault(send(client, whole))
        assert ("2 of 2" in why, expected in why) == (True, True), why
    shared = request(record(), record())
    shared.resource_logs[0].resource.attributes.extend(pairs({"k": 1}) + pairs({"k": 2}))
    assert "2 of 2 log records" in fault(send(client, shared))
    assert client.get("/readyz").status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b"\x0a",
        b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"\x0a\x05\x12",
        b"\x00\x00",
        b"\x0b",
        b"{}",
        b"\xff" * 100,
        b"\x0a\x04\x12\x7f\x12\x00",
    ],
)
def test_what_is_no_protobuf(client: Client, body: bytes) -> None:
    """Bytes that are no request are answered as stored, or as if the service had failed, so that they are sent for ever."""
    answer = send(client, body)
    assert "protobuf" in fault(answer)
    assert Status.FromString(answer.content).code == 3
    assert "retry-after" not in answer.headers


def test_json_as_otlp_has_it(client: Client, database_url: str) -> None:
    """JSON of another sender is refused: with unknown members, numbers where there may be strings, ids in upper case, base64 without padding."""
    now = time.time_ns()
    correlation_id = f"rr-{uuid4()}"
    one = {
        "timeUnixNano": now,
        "observedTimeUnixNano": str(now),
        "severityNumber": 9,
        "traceId": TRACE.hex().upper(),
        "spanId": "00",
        "eventName": TYPE,
        "unknown": {"x": 1},
        "body": {
            "kvlistValue": {"values": [{"key": key, "value": {"stringValue": value}} for key, value in BODY.items()]}
        },
        "attributes": [
            {"key": "audit.correlation_id", "value": {"stringValue": correlation_id, "other": 1}},
            {"key": "audit.event_outcome", "value": {"stringValue": "success"}},
            {"key": "int", "value": {"intValue": "-5"}},
            {"key": "number", "value": {"intValue": 7}},
            {"key": "bytes", "value": {"bytesValue": "_wA"}},
            {"key": "inf", "value": {"doubleValue": "-Infinity"}},
            {"key": "text", "value": {"doubleValue": "1.5"}},
            {"key": "null", "value": None},
        ],
    }
    sent = {
        "resourceLogs": [{"scopeLogs": [{"logRecords": [one], "scope": None}], "resource": None, "schemaUrl": "x"}],
        "more": 1,
    }
    assert stored(client.post(LOGS, json=sent)) == (0, "")
    [event] = events(client, correlation_id=correlation_id)
    whole = client.get(f"{EVENTS}/{event['event_id']}").json()
    assert trace_of(database_url, event) == (TRACE.hex(), None)
    assert whole["event_data"]["otel"]["attributes"] == {
        "int": -5, "number": 7, "bytes": "/wA=", "inf": "-Infinity", "text": 1.5, "null": None,
    }  # fmt: skip
    for change, expected in (
        ({"timeUnixNano": "1e3"}, "timeUnixNano: expected an integer"),
        ({"timeUnixNano": 2**64}, "timeUnixNano: expected an integer"),
        ({"traceId": "AQID"}, "traceId: expected hex digits"),
        ({"severityNumber": "SEVERITY_NUMBER_INFO"}, "severityNumber: expected an integer"),
        ({"body": "text"}, "a value: expected an object"),
        ({"body": {"intValue": 2.5}}, "intValue: expected an integer"),
        ({"body": {"intValue": "1", "boolValue": True}}, "expected one value"),
        ({"body": {"doubleValue": "1_0"}}, "doubleValue: expected a number"),
        ({"body": {"doubleValue": True}}, "doubleValue: expected a number"),
        ({"body": {"bytesValue": "!"}}, "bytesValue: expected base64"),
        ({"attributes": {}}, "attributes: expected an array"),
        ({"attributes": [1]}, "expected an object"),
        ({"eventName": 1}, "eventName: expected a string"),
    ):
        answer = client.post(LOGS, json={"resourceLogs": [{"scopeLogs": [{"logRecords": [one | change]}]}]})
        assert expected in fault(answer)
    for bad in (
        b"",
        b"{",
        b"[]",
        b'{"resourceLogs": 1}',
        b'{"resourceLogs": [1]}',
        b'{"resourceLogs": [{"scopeLogs": {}}]}',
        b"[" * 2000,
        b"NaN",
    ):
        assert fault(send(client, bad, JSON))
    assert stored(send(client, b"{}", JSON)) == stored(send(client, b"")) == (0, "")


def test_types_of_bodies(client: Client) -> None:
    """A body of another type or encoding is read, or its sender does not learn what to change; an error is in the other encoding."""
    body = request(record()).SerializeToString()
    for headers, status in (
        ({"Content-Type": "text/plain"}, 415),
        ({}, 415),
        ({"Content-Type": PROTOBUF, "Content-Encoding": "br"}, 415),
    ):
        answer = client.post(LOGS, content=body, headers=headers)
        assert "expected" in fault(answer, status)
    mixed = client.post(LOGS, content=body, headers={"Content-Type": "Application/X-Protobuf; charset=utf-8"})
    assert stored(mixed) == (0, "")
    assert client.get(LOGS).status_code == 405
    packed = gzip.compress(request(record()).SerializeToString())
    assert stored(send(client, packed, **{"Content-Encoding": "gzip"})) == (0, "")
    assert "gzip" in fault(send(client, packed[:-3], **{"Content-Encoding": "gzip"}))


def test_limits(service: Callable[..., Service]) -> None:
    """A bomb passes the limit; or a request of more records or bytes than its route takes is stored, or fills the memory."""
    with Client(
        base_url=service(batch_events_max=50, batch_bytes_max=2 << 20, body_bytes_max=1 << 20).url, timeout=60
    ) as client:
        bomb = gzip.compress(b"\x0a\x00" * (30 << 20))
        answer = send(client, bomb, **{"Content-Encoding": "gzip"})
        assert "2097152 bytes" in fault(answer, 413)
        assert "at most 2097152" in fault(send(client, b"\x0a" * (3 << 20)), 413)
        assert "1048576 bytes" in fault(send(client, b" " * (3 << 19), JSON), 413)
        assert stored(send(client, request(*(record() for _ in range(50))))) == (0, "")
        assert "more than 50 log records" in fault(send(client, request(*(record() for _ in range(51)))))
        assert "more than 50 log records" in fault(send(client, request(*(record() for _ in range(51))), JSON))
        empty = b"\x12\x00" * 500_000
        length = b"\xc0\x84\x3d"
        assert "too many log records" in fault(send(client, b"\x0a" + length + empty))
        wide = {f"k{n}": "x" * 1000 for n in range(60)}
        assert "2097152 bytes together" in fault(
            send(client, request(*(record() for _ in range(49)), resource=wide)), 413
        )
        assert len(events(client)) == 50


def test_who_may_send(service: Callable[..., Service], tmp_path: Any) -> None:
    """Somebody stores events without the right to, or the refusal is no answer that an OpenTelemetry client understands."""
    path = tmp_path / "tokens.yaml"
    tokens = write_tokens(path, writing="writer", reading="reader")
    with Client(base_url=service(auth="tokens", tokens_file=path).url, timeout=60) as client:
        for sent in (request(record()), request(*(record() for _ in range(500)))):
            for encoding in (PROTOBUF, JSON):
                assert "Authorization" in fault(send(client, sent, encoding), 401)
                assert "permissions" in fault(send(client, sent, encoding, **bearer(tokens["reading"])), 403)
                assert stored(send(client, sent, encoding, **bearer(tokens["writing"]))) == (0, "")
        assert "protobuf" in fault(send(client, b"\x0a", **bearer(tokens["reading"])))


@pytest.mark.every_pod
async def test_an_outage(service: Callable[..., Service], database_url: str) -> None:
    """While Postgres is away records are refused, or lost, or stored twice when their collector sends them again."""
    async with started(service, database_url) as outage:
        sent = request(*(record() for _ in range(20)))
        body = sent.SerializeToString()

        async def post() -> httpx.Response:
            return await outage.client.post(LOGS, content=body, headers={"Content-Type": PROTOBUF})

        await outage.begin()
        assert stored(await post()) == stored(await post()) == (0, "")
        await outage.end()
        await outage.drained()
        assert stored(await post()) == (0, "")
        found = await outage.client.get(EVENTS)
        assert found.json()["pagination"]["total"] == 20
        assert await outage.balance() == 0


async def test_what_can_be_sent_again(service: Callable[..., Service], database_url: str) -> None:
    """A collector drops what could be stored later, since the answer is not one of those after which it tries again."""
    async with started(service, database_url, spool=False) as outage:
        await outage.begin()
        for encoding in (PROTOBUF, JSON):
            sent = request(record())
            body = sent.SerializeToString() if encoding == PROTOBUF else json.dumps(as_json(sent)).encode()
            answer = await outage.client.post(LOGS, content=body, headers={"Content-Type": encoding})
            assert fault(answer, 503)
            assert answer.headers["retry-after"] == "1"
        await outage.end()


def test_beside_posts(client: Client) -> None:
    """A record's id is an event's of another route, and replaces it."""
    event_id = str(uuid4())
    client.post(EVENTS, json=make_event(event_id=event_id)).raise_for_status()
    rejected, why = stored(send(client, request(record(attributes={"audit.event_id": event_id}), record())))
    assert (rejected, "other content" in why) == (1, True)
