"""OTLP/HTTP logs: records as the conventions name things, and what each answer of a receiver means."""

import gzip
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import orjson
import pytest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

from app import metrics
from app.stream.destination import Delivery, NotDelivered
from app.stream.otlp import Otlp
from app.stream.otlp_sink import OtlpSink
from app.stream.portion import Absent, Checkpoint, Seam
from app.stream.records import ndjson_line
from tests.destinations.collector import Collector, Reply, collector, rejecting
from tests.logs import FIRST_LOG
from tests.streamed import NASTY, delivery, portion, streamed_event

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
Open = Callable[..., Otlp]


@pytest.fixture
async def otlp() -> AsyncIterator[Open]:
    async with AsyncExitStack() as stack:

        def opened(receiver: Collector, **fields: Any) -> Otlp:
            sink = {"name": "soc", "type": "otlp", "url": receiver.url} | fields
            destination = OtlpSink.model_validate(sink).destination()
            assert isinstance(destination, Otlp)
            stack.push_async_callback(destination.close)
            return destination

        yield opened


def value(any_value: AnyValue) -> Any:
    return getattr(any_value, any_value.WhichOneof("value") or "")


def attributes(pairs: Any) -> dict[str, Any]:
    found: list[KeyValue] = list(pairs)
    assert len({pair.key for pair in found}) == len(found)
    return {pair.key: value(pair.value) for pair in found}


def places(records: list[LogRecord]) -> list[str]:
    return [attributes(record.attributes)["datastorage.place"] for record in records]


async def test_a_record_as_the_conventions_have_it(otlp: Open) -> None:
    """A receiver finds neither time, severity, trace nor who did it, or its copy lacks a member of the event."""
    event = streamed_event(
        4711,
        {"x": NASTY},
        event_outcome="failure",
        severity="high",
        trace_id=TRACE,
        span_id=SPAN,
        actor_type="user",
        actor_id="jane",
        actor_ip="10.0.0.1",
        namespace="payments",
        error_code="E42",
        duration_ms=0,
    )
    with collector() as receiver:
        await otlp(receiver).deliver(delivery(event))
    (record,) = receiver.records
    assert orjson.loads(value(record.body)) == orjson.loads(ndjson_line(event))
    assert record.event_name == "orchestrator.lifecycle.transitioned"
    assert record.time_unix_nano == int(event.event["event_timestamp"].timestamp()) * 10**9 + 611_000_000
    assert record.observed_time_unix_nano == record.time_unix_nano
    assert (record.severity_number, record.severity_text) == (17, "high")
    assert (record.trace_id.hex(), record.span_id.hex()) == (TRACE, SPAN)
    assert attributes(record.attributes) == {
        "datastorage.place": "0:4711",
        "datastorage.log": FIRST_LOG.name,
        "datastorage.log_index": 4711,
        "datastorage.event_hash": f"{4711:064x}",
        "log.record.uid": str(event.event["event_id"]),
        "client.address": "10.0.0.1",
        "k8s.namespace.name": "payments",
        "error.type": "E42",
        "user.id": "jane",
        "audit.event_category": "orchestration",
        "audit.event_action": "transitioned",
        "audit.event_outcome": "failure",
        "audit.correlation_id": "rr-1",
        "audit.actor_type": "user",
        "audit.actor_id": "jane",
        "audit.severity": "high",
        "audit.duration_ms": 0,
    }
    assert attributes(receiver.requests[0].resource_logs[0].resource.attributes) == {"service.name": "datastorage"}
    assert receiver.headers[0]["content-type"] == "application/x-protobuf"


@pytest.mark.parametrize("trace_id", ["", "0" * 32, TRACE[:-1], TRACE.upper(), "not hex", TRACE + "00"])
async def test_a_trace_that_is_none(otlp: Open, trace_id: str) -> None:
    """A receiver refuses the whole portion for one id that somebody has misspelled."""
    with collector() as receiver:
        await otlp(receiver).deliver(delivery(streamed_event(0, trace_id=trace_id, span_id="0" * 16)))
    (record,) = receiver.records
    assert (record.trace_id, record.span_id) == (b"", b"")


async def test_what_is_no_event(otlp: Open) -> None:
    """A receiver's copy says nothing of what is missing, or takes a checkpoint for an event."""
    items = (Absent(0, 5, "unknown"), Seam(5, "next", FIRST_LOG.name, 5), Checkpoint(6, "note"))
    with collector() as receiver:
        await otlp(receiver).deliver(delivery(*items))
    assert [record.event_name for record in receiver.records] == [
        f"datastorage.stream.{kind}" for kind in ("absent", "seam", "checkpoint")
    ]
    assert [record.severity_number for record in receiver.records] == [13, 9, 9]
    assert len({attributes(record.attributes)["log.record.uid"] for record in receiver.records}) == 3


@pytest.mark.parametrize("form", ["events", "cloudevents", "ocsf"])
async def test_bodies_in_each_format(otlp: Open, form: str) -> None:
    """A sink's format has no effect, or ends its delivery."""
    with collector() as receiver:
        await otlp(receiver, format=form).deliver(delivery(streamed_event(7), Absent(8, 9, "purged")))
    event, _ = (orjson.loads(value(record.body)) for record in receiver.records)
    assert {"events": "event_hash", "cloudevents": "specversion", "ocsf": "class_uid"}[form] in event


async def test_huge_events(otlp: Open) -> None:
    """A payload of the greatest size is refused or cut."""
    with collector() as receiver:
        destination = otlp(receiver)
        await destination.deliver(delivery(*(streamed_event(n, {"x": "ü\x1b" * 100_000}) for n in range(4))))
    assert [orjson.loads(value(record.body))["event_data"]["x"] for record in receiver.records] == [
        "ü\x1b" * 100_000
    ] * 4


@pytest.mark.parametrize("reply", [Reply(204), Reply(202), Reply(200, rejecting(0, "")), Reply(200)])
async def test_confirmed(otlp: Open, reply: Reply) -> None:
    """A receiver that has everything gets it again and again."""
    with collector(reply) as receiver:
        await otlp(receiver).deliver(portion(0, 3))
    assert len(receiver.requests) == 1


@pytest.mark.parametrize(
    ("reply", "reason", "retry_after"),
    [
        (Reply(429, headers={"retry-after": "17"}), "429 Too Many Requests", 17.0),
        (Reply(502), "502", None),
        (Reply(503, headers={"retry-after": "nonsense"}), "503", None),
        (Reply(504), "504", None),
        (Reply(400, b"secret words"), "400 Bad Request, which waiting does not change", 60.0),
        (Reply(401), "401", 60.0),
        (Reply(500), "500", 60.0),
        (Reply(302, headers={"location": "http://127.0.0.1:1/"}), "302", 60.0),
        (Reply(413), "413", None),
        (Reply(200, b"<html>Please sign in</html>"), "none of OTLP", None),
        (Reply(None), "", None),
        (Reply(hangs=True), "no answer in time", None),
    ],
)
async def test_not_confirmed(otlp: Open, reply: Reply, reason: str, retry_after: float | None) -> None:
    """A portion counts as delivered that was refused, a refusal is repeated at full speed, or its reason has the answer's text."""
    with collector(reply) as receiver:
        destination = otlp(receiver, timeout_ms=1_000 if reply.hangs else 60_000)
        with pytest.raises(NotDelivered) as refused:
            await destination.deliver(portion(0, 3))
        assert reason in refused.value.reason
        assert "secret" not in refused.value.reason
        assert "v1/logs" not in refused.value.reason
        assert refused.value.retry_after == retry_after
        assert refused.value.is_too_large == (reply.status == 413)
        assert refused.value.is_late == reply.hangs
        if not reply.hangs:
            await destination.deliver(portion(0, 3))  # the same destination goes on when the receiver has recovered
            assert len(receiver.requests) == 2


async def test_rejected_events_are_counted_and_not_sent_again(otlp: Open, caplog: pytest.LogCaptureFixture) -> None:
    """Events that a receiver never accepts stop the sink for ever, or vanish without a word."""
    before = metrics.SINK_REJECTED.labels(sink="rejects")._value.get()
    with collector(Reply(200, rejecting(2, "too old"))) as receiver:
        said = await otlp(receiver).deliver(Delivery("rejects", portion(0, 3).items, 0, 3, FIRST_LOG))
    assert said == "the receiver has rejected 2 of the records from 0:0 up to 0:3: they are not sent again"
    assert metrics.SINK_REJECTED.labels(sink="rejects")._value.get() == before + 2
    assert [record.__dict__["rejected"] for record in caplog.records if record.levelname == "ERROR"] == [2]


async def test_every_position_in_spite_of_lies(otlp: Open) -> None:
    """A receiver that has stored a portion and says that it has not gets a hole instead of a repeat."""
    lies = [Reply(500, stores=True), Reply(None, stores=True), Reply(503), Reply(429, stores=True), Reply(None)]
    with collector(*lies) as receiver:
        destination = otlp(receiver)
        for first in range(0, 50, 10):
            while True:
                try:
                    await destination.deliver(portion(first, first + 10))
                except NotDelivered:
                    continue
                break
    assert list(dict.fromkeys(places(receiver.records))) == [f"0:{n}" for n in range(50)]


async def test_headers_from_files(otlp: Open, tmp_path: Path) -> None:
    """A token that was replaced is used until the next restart, or stands in an error."""
    token = tmp_path / "token"
    with collector() as receiver:
        destination = otlp(receiver, header_files={"Authorization": token})
        with pytest.raises(NotDelivered, match=r"header_files\.Authorization"):
            await destination.deliver(portion(0, 1))
        for wrong in ("", "two\nlines", "s\x00ecret", "geheim-ü"):
            token.write_text(wrong)
            with pytest.raises(NotDelivered, match="expected one line of ASCII") as refused:
                await destination.deliver(portion(0, 1))
            assert not wrong or wrong not in refused.value.reason
        for text in ("Bearer first\n", "Bearer second\n"):
            token.write_text(text)
            await destination.deliver(portion(0, 1))
    assert [headers["authorization"] for headers in receiver.headers] == ["Bearer first", "Bearer second"]


async def test_a_made_up_event_has_no_place(otlp: Open) -> None:
    """`datastorage sink test` ends with a traceback, or its event looks like one of the log."""
    with collector() as receiver:
        made_up = streamed_event(0, event_hash=None, log_index=None)._replace(place=-1)
        await otlp(receiver).deliver(delivery(made_up))
    (record,) = receiver.records
    assert not {"datastorage.place", "datastorage.log_index"} & attributes(record.attributes).keys()


async def test_a_compressed_answer_is_not_unpacked(otlp: Open) -> None:
    """A receiver's answer of a few bytes fills the memory of the service."""
    bomb = gzip.compress(bytes(50_000_000))
    with (
        collector(Reply(200, bomb, {"content-encoding": "gzip"})) as receiver,
        pytest.raises(NotDelivered, match="none of OTLP"),
    ):
        await otlp(receiver).deliver(portion(0, 1))
    assert receiver.headers[0]["accept-encoding"] == "identity"
