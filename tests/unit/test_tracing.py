"""Spans as a collector would get them."""

from collections.abc import Iterator
from typing import Any

import pytest

from app import tracing
from app.errors import Fatal

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """What was exported, while tracing is on."""
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    monkeypatch.setattr(tracing, "_tracer", None)  # restored at the end
    exporter = InMemorySpanExporter()
    provider = tracing.start_with(SimpleSpanProcessor(exporter))
    yield exporter.get_finished_spans
    provider.shutdown()


def test_request_flush_and_transaction(exported: Any) -> None:
    """A request is not in its caller's trace, or the span of the flush does not link to it."""
    with tracing.request("POST", TRACE):
        assert tracing.trace_id() == TRACE[0]
        link = tracing.link()
    with tracing.span("flush", links=[link, None], requests=1), tracing.span("transaction", events=1):
        pass
    with tracing.request("GET", None):
        pass
    request, transaction, flush, other = exported()
    assert (f"{request.context.trace_id:032x}", f"{request.parent.span_id:016x}") == TRACE
    assert transaction.parent.span_id == flush.context.span_id
    assert [one.context.span_id for one in flush.links] == [request.context.span_id]
    assert other.parent is None
    assert other.context.trace_id not in {request.context.trace_id, flush.context.trace_id}


def test_off() -> None:
    """Without an endpoint there is a cost, or a trace id in the log that no collector knows."""
    with tracing.request("POST", TRACE) as one, tracing.span("flush") as other:
        assert one is other is None
        assert tracing.trace_id() == ""
        assert tracing.link() is None


def test_extra_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """An endpoint without the package ends in a traceback, or silently in no spans."""
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(Fatal, match="otel"):
        tracing.start("http://127.0.0.1:4318")
