"""A real Collector, configured as docs/streams-collector.md has it, between a sink and what is behind the Collector.

`make collector` builds it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson

from app.stream.destination import Delivery, NotDelivered
from app.stream.otlp import Otlp
from app.stream.otlp_sink import OtlpSink
from tests.certificates import Authority
from tests.collector.otelcol import needs_program, running
from tests.destinations.collector import Collector, Reply, collector
from tests.services import free_port
from tests.streamed import NASTY, delivery, portion, streamed_event
from tests.waiting import eventually

pytestmark = needs_program


@contextmanager
def otelcol(directory: Path, behind: Collector) -> Iterator[Otlp]:
    """A sink's destination that sends to a Collector, behind which is `behind`."""
    authority, port = Authority(directory), free_port()
    authority.write_pair(directory, "otelcol")
    used = {
        "0.0.0.0:4318": f"127.0.0.1:{port}",
        "/etc/otelcol": str(directory),
        "https://loki.example/otlp": f"http://127.0.0.1:{behind.port}",
    }
    with running(directory, "streams-collector.md", used):
        url = f"https://localhost:{port}/v1/logs"
        sink = {"name": "siem", "type": "otlp", "url": url, "ca_file": authority.path}
        destination = OtlpSink.model_validate(sink).destination()
        assert isinstance(destination, Otlp)
        yield destination


async def until_delivered(destination: Otlp, portion: Delivery) -> int:
    """As the deliverer does: again, until it is confirmed. The number of tries."""
    tries = 0

    async def attempt() -> int | None:
        nonlocal tries
        tries += 1
        try:
            await destination.deliver(portion)
        except NotDelivered:
            return None
        return tries

    return await eventually(attempt)


async def test_what_is_behind_the_collector_has_everything(tmp_path: Path) -> None:
    """A Collector refuses a record, changes a body, or confirms what has not arrived behind it."""
    with collector() as behind, otelcol(tmp_path, behind) as destination:
        await until_delivered(destination, portion(0, 500))
        assert len(behind.records) == 500  # nothing is waited for
        behind.replies = [Reply(503), Reply(400)]
        assert await until_delivered(destination, delivery(streamed_event(500, {"x": NASTY}))) >= 2
        await destination.deliver(delivery(streamed_event(501, {"x": "ü" * 125_000})))
        await destination.close()
    lines = [orjson.loads(record.body.string_value) for record in behind.records]
    assert [line["log_index"] for line in lines] == list(range(502))
    assert lines[500]["event_data"]["x"] == NASTY
    assert len(lines[501]["event_data"]["x"]) == 125_000
    assert {record.event_name for record in behind.records} == {"orchestrator.lifecycle.transitioned"}
