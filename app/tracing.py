"""Spans for OpenTelemetry. Without an endpoint there are none, at next to no cost; the packages are the extra `otel`."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from app.errors import Fatal

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
    from opentelemetry.trace import Link, Tracer

_OFF: AbstractContextManager[None] = nullcontext()
_tracer: "Tracer | None" = None


def start(endpoint: str) -> "TracerProvider":
    """Send spans to the OTLP/HTTP collector at `endpoint` from now on. The SDK's own OTEL_* variables apply too.

    Fatal if the extra is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 -- an extra, imported only if it is used
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415 -- as above
    except ImportError:
        raise Fatal(
            "DATASTORAGE_OTEL_ENDPOINT is set, but OpenTelemetry is not installed: pip install 'datastorage[otel]'."
        ) from None
    return start_with(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint.rstrip("/") + "/v1/traces")))


def start_with(processor: "SpanProcessor") -> "TracerProvider":
    """Give spans to `processor` from now on."""
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415 -- as above
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415 -- as above

    global _tracer  # noqa: PLW0603 -- one tracer per process, as in OpenTelemetry
    provider = TracerProvider(resource=Resource.create({"service.name": "datastorage"}))
    provider.add_span_processor(processor)
    _tracer = provider.get_tracer("datastorage")
    return provider


def span(name: str, *, links: Iterable["Link | None"] = (), **attributes: Any) -> AbstractContextManager[Any]:
    """A span around a block: a child of the current span, with links to others."""
    if _tracer is None:
        return _OFF
    existing = [link for link in links if link is not None]
    return _tracer.start_as_current_span(name, links=existing, attributes=attributes)


def request(name: str, trace: tuple[str, str] | None) -> AbstractContextManager[Any]:
    """The span of a request: a child of the caller's span if `trace`, (trace id, span id) of its traceparent, names one."""
    if _tracer is None:
        return _OFF
    from opentelemetry import trace as otel  # noqa: PLC0415 -- as above

    parent = otel.set_span_in_context(otel.INVALID_SPAN)
    if trace is not None:
        ids = int(trace[0], 16), int(trace[1], 16)
        caller = otel.SpanContext(*ids, is_remote=True, trace_flags=otel.TraceFlags(otel.TraceFlags.SAMPLED))
        parent = otel.set_span_in_context(otel.NonRecordingSpan(caller))
    return _tracer.start_as_current_span(name, parent, kind=otel.SpanKind.SERVER)


def link() -> "Link | None":
    """A link to the current span, for the span of the flush that will write the request's events."""
    if _tracer is None:
        return None
    from opentelemetry import trace as otel  # noqa: PLC0415 -- as above

    context = otel.get_current_span().get_span_context()
    return otel.Link(context) if context.is_valid else None


def trace_id() -> str:
    """The trace id of the current span as hex digits; empty without one."""
    if _tracer is None:
        return ""
    from opentelemetry import trace as otel  # noqa: PLC0415 -- as above

    context = otel.get_current_span().get_span_context()
    return f"{context.trace_id:032x}" if context.is_valid else ""
