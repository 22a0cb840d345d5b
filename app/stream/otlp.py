"""The destination `otlp`: portions as log records over OTLP/HTTP, in protobuf and gzip. Needs the extra `otlp`.

2xx confirms a portion, whatever of it the receiver says that it has rejected: it would reject the same again. 429, 502, 503 and 504
ask for another try. Any other status is final for a sender of telemetry, which drops what it has. A sink drops nothing: it stays where
it is, shows the reason, and tries again once a minute, until somebody has changed the receiver or the sink.
"""

import asyncio
import gzip
import logging

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse

from app import metrics
from app.stream.destination import Delivery, NotDelivered
from app.stream.formats.lines import format_line
from app.stream.otlp_records import export_request
from app.stream.otlp_sink import OtlpSink
from app.stream.place import place_text
from app.stream.posting import Answer, Poster

FINAL_RETRY_SECONDS = 60.0
"""Between tries after an answer that time alone does not change."""
_RETRYABLE, _TOO_LARGE = {429, 502, 503, 504}, 413
_TYPE = "application/x-protobuf"
_MESSAGE_MAX = 200

log = logging.getLogger(__name__)


class Otlp:
    """A receiver of OTLP/HTTP logs."""

    def __init__(self, sink: OtlpSink) -> None:
        self._sink = sink
        self._poster = Poster(sink)

    async def deliver(self, delivery: Delivery) -> str | None:
        """Return when the receiver has answered 2xx, with what it has rejected all the same."""
        body = await asyncio.to_thread(self._body, delivery)
        headers = {**self._read_headers(), "content-type": _TYPE, "content-encoding": "gzip"}
        answer = await self._poster.post(body, headers)
        if not answer.is_success:
            raise _refusal(answer)
        return self._report_rejected(delivery, answer)

    async def close(self) -> None:
        """Close the connection."""
        await self._poster.close()

    def _body(self, delivery: Delivery) -> bytes:
        lines = [format_line(item, self._sink.format, delivery.log) for item in delivery.items]
        return gzip.compress(export_request(delivery.items, lines, delivery.log).SerializeToString(), mtime=0)

    def _read_headers(self) -> dict[str, str]:
        """The headers of the files as they are now."""
        headers = {}
        for name, file in self._sink.header_files.items():
            try:
                headers[name] = file.read_text("ascii").strip()
            except OSError as error:
                raise NotDelivered(f"header_files.{name}: {error}") from None
            except UnicodeDecodeError:
                headers[name] = ""
            if not headers[name].isprintable() or not headers[name]:
                raise NotDelivered(f"header_files.{name}: expected one line of ASCII in {file}")
        return headers

    def _report_rejected(self, delivery: Delivery, answer: Answer) -> str | None:
        """Count, and say, what the receiver has not accepted of a portion that it has confirmed. NotDelivered if the answer is none of OTLP."""
        try:
            partial = ExportLogsServiceResponse.FromString(answer.body).partial_success
        except DecodeError:
            raise NotDelivered(f"{answer.phrase}, but the answer is none of OTLP") from None
        if not partial.rejected_log_records and not partial.error_message:
            return None
        metrics.SINK_REJECTED.labels(sink=delivery.sink).inc(max(0, partial.rejected_log_records))
        log.error(
            "the receiver of a sink has rejected events, which are not sent again",
            extra={
                "sink": delivery.sink,
                "rejected": partial.rejected_log_records,
                "first": delivery.first,
                "next": delivery.next,
                "error": partial.error_message[:_MESSAGE_MAX],
            },
        )
        # Not its words, which may have what it was sent.
        rejected, first, last = partial.rejected_log_records, place_text(delivery.first), place_text(delivery.next)
        return f"the receiver has rejected {rejected} of the records from {first} up to {last}: they are not sent again"


def _refusal(answer: Answer) -> NotDelivered:
    if answer.status in _RETRYABLE:
        return NotDelivered(f"the receiver has answered {answer.phrase}", retry_after=answer.retry_after)
    if answer.status == _TOO_LARGE:
        return NotDelivered(f"the receiver has answered {answer.phrase}", is_too_large=True)
    reason = (
        f"the receiver has answered {answer.phrase}, which waiting does not change: the receiver or the sink has to"
    )
    return NotDelivered(reason, retry_after=FINAL_RETRY_SECONDS)
