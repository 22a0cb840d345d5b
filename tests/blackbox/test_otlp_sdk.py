"""OpenTelemetry's own SDK for Python sends audit events, as an application would have it do."""

import logging
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry import trace
from opentelemetry._logs import SeverityNumber
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.sdk._logs import LoggerProvider, ReadableLogRecord
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor, LogRecordExportResult
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider

from tests.log_records import BODY, TYPE
from tests.services import Service, free_port
from tests.waiting import until

EVENTS = "/api/v1/audit/events"


class PatientExporter(OTLPLogExporter):
    """The SDK's exporter, which ends its attempts after some seconds and then drops the batch: this one begins again."""

    def export(self, batch: Sequence[ReadableLogRecord]) -> LogRecordExportResult:
        while (result := super().export(batch)) is not LogRecordExportResult.SUCCESS:
            pass
        return result


@contextmanager
def provider(url: str, compression: Compression = Compression.NoCompression) -> Iterator[LoggerProvider]:
    """The SDK, wired as its documentation has it. What it holds at the end is sent."""
    exporter = PatientExporter(endpoint=f"{url}/v1/logs", compression=compression, timeout=60)
    made = LoggerProvider(Resource.create({"service.name": "payments"}), shutdown_on_exit=False)
    made.add_log_record_processor(BatchLogRecordProcessor(exporter, schedule_delay_millis=20, max_export_batch_size=64))
    try:
        yield made
        assert made.force_flush(300_000)
    finally:
        made.shutdown()


def events(url: str, **filters: str) -> list[dict[str, Any]]:
    """All events, the newest first. A service that has just started answers 503 until it has seen its database."""
    found: list[dict[str, Any]] = []
    params = filters | {"limit": "1000", "order": "log"}
    while True:
        page = until(lambda: read(f"{url}{EVENTS}", params))
        found += page["data"]
        if not (cursor := page["pagination"].get("next_cursor")):
            return found
        params["cursor"] = cursor


def read(url: str, params: dict[str, str]) -> Any:
    answer = httpx.get(url, params=params, timeout=60)
    return None if answer.status_code == 503 else answer.raise_for_status().json()


def is_free(port: int) -> bool:
    with suppress(OSError), socket.create_server(("127.0.0.1", port)):
        return True
    return False


def more_arrive(url: str) -> None:
    """Return when the service has stored events since the call."""
    before = len(events(url))
    until(lambda: len(events(url)) > before or None)


@pytest.mark.parametrize("compression", [Compression.NoCompression, Compression.Gzip])
def test_an_event_of_the_sdk(service: Callable[..., Service], compression: Compression) -> None:
    """What an application logs by the SDK is no event, or an event without its trace, user or time."""
    url = service().url
    with (
        provider(url, compression) as made,
        TracerProvider(shutdown_on_exit=False).get_tracer("t").start_as_current_span("s") as span,
    ):
        made.get_logger("payments.audit", "1.0").emit(
            event_name=TYPE,
            severity_number=SeverityNumber.WARN,
            body=BODY,
            attributes={
                "audit.event_outcome": "success",
                "user.id": "jane",
                "audit.resource_id": "api",
                "roles": ["a", "b"],
            },
        )
        context = span.get_span_context()
    [event] = events(url)
    assert event["correlation_id"] == trace.format_trace_id(context.trace_id)
    assert (event["actor_id"], event["severity"], event["resource_id"]) == ("jane", "warning", "api")
    assert event["event_data"]["otel"]["attributes"] == {"roles": ["a", "b"]}
    assert event["event_data"]["otel"]["resource"]["telemetry.sdk.language"] == "python"


def test_the_sdk_hears_of_a_refusal(service: Callable[..., Service], caplog: pytest.LogCaptureFixture) -> None:
    """An application whose records are all refused learns nothing of it: the SDK reads no partial success."""
    exporter = OTLPLogExporter(endpoint=f"{service().url}/v1/logs")
    made = LoggerProvider(shutdown_on_exit=False)
    made.add_log_record_processor(BatchLogRecordProcessor(exporter))
    with caplog.at_level(logging.ERROR):
        made.get_logger("x").emit(body="no event")
        made.force_flush()
        made.shutdown()
    assert "400" in caplog.text


@pytest.mark.parametrize("processes", [1, 2])
def test_the_service_is_killed(service: Callable[..., Service], tmp_path: Path, processes: int) -> None:
    """An event that was logged while the service was killed and started again is lost, or stored twice."""
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # it reports every attempt
    port = free_port()
    settings = {"port": port, "spool_dir": tmp_path / "spool", "processes": processes}
    running = service(**settings)
    over = threading.Event()
    emitted: list[str] = []

    def emit(made: LoggerProvider) -> None:
        logger = made.get_logger("payments.audit")
        while not over.is_set():
            emitted.append(f"step-{len(emitted)}")
            attributes = {
                "audit.event_outcome": "success",
                "audit.correlation_id": "rr-killed",
                "audit.event_action": emitted[-1],
            }
            logger.emit(event_name=TYPE, body=BODY, attributes=attributes)
            over.wait(0.01)

    with provider(running.url) as made:
        emitting = threading.Thread(target=emit, args=(made,))
        emitting.start()
        try:
            for _ in range(2):
                more_arrive(running.url)
                running.process.kill()
                running.process.wait()
                until(lambda: is_free(port) or None)  # its other processes end with it
                running = service(**settings)
        finally:
            over.set()
            emitting.join()
    until(lambda: len(events(running.url)) >= len(emitted) or None)  # what has just started may have spooled some
    stored = [event["event_action"] for event in events(running.url)]
    assert stored[::-1] == emitted
