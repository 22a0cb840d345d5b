"""The file of sinks: what an operator has written is taken as it stands, or refused with the field that is wrong."""

from collections.abc import Callable
from datetime import UTC, date, datetime
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest

from app.errors import Fatal
from app.stream.formats import cloudevents, ocsf
from app.stream.made_up import made_up_delivery
from app.stream.records import ndjson_line
from app.stream.sinks import parse_sinks, read_sinks
from app.stream.webhook import WebhookSink
from tests.logs import FIRST_LOG as LOG

WEBHOOK = {"name": "soc", "type": "webhook", "url": "https://receiver.example/in?key=hidden", "secret_files": ["/s/a"]}


def sinks(**fields: Any) -> dict[str, Any]:
    return {"sinks": [WEBHOOK | fields]}


def test_a_sink_as_written() -> None:
    """A field of the file has no effect."""
    document = sinks(**{"from": "0:4711"}, filter={"event_category_in": ["security"]}, events_max=7)
    (sink,) = parse_sinks(document, "f")
    assert isinstance(sink, WebhookSink)
    assert (sink.start, sink.events_max, sink.filter.event_category_in) == ("0:4711", 7, ("security",))
    assert sink.address == "https://receiver.example"


def test_without_a_filter_everything_is_delivered() -> None:
    """A receiver's copy lacks the service's own events although nobody has left them out."""
    (sink,) = parse_sinks(sinks(), "f")
    assert (sink.filter.includes_self_events, sink.filter.includes_kubernetes) == (True, True)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "file: "),
        ({"sinks": 1}, "sinks: "),
        ({"sink": []}, "sink: there is no such field"),
        ({"sinks": [WEBHOOK, WEBHOOK | {"name": "b", "url": "ftp://x"}]}, "sinks[1].url: expected a URL that begins"),
        (sinks(url="https://u:secret@h/"), "sinks[0].url: expected a URL without a user or password"),
        (sinks(url="http://receiver.example/"), "sinks[0]: url: expected https://"),
        (sinks(name="SOC"), "sinks[0].name: "),
        (sinks(filter={"event_categorie": "x"}), "sinks[0].filter.event_categorie: there is no such field"),
        (sinks(filter={"sealed": False}), "sinks[0].filter: sealed: expected true or nothing"),
        (sinks(filter={"detail_key": "a"}), "sinks[0].filter: detail_key and detail_value: expected both"),
        (sinks(filter={"detail_value": "a"}), "sinks[0].filter: detail_key and detail_value: expected both"),
        (sinks(filter={"zone": "UTC"}), "sinks[0].filter: zone: expected none"),
        (sinks(filter={"since": "7d"}), "sinks[0].filter.since: "),
        (sinks(filter={"since": 7}), "sinks[0].filter: since: expected a time with an offset"),
        (sinks(filter={"until": date(2026, 1, 31)}), "sinks[0].filter: until: expected a time with an offset"),
        (sinks(filter={"actor_id_not": ["a\0"]}), "sinks[0].filter: expected texts without NUL"),
        (sinks(**{"from": "yesterday"}), "sinks[0].from: expected LOG:POSITION"),
        (sinks(**{"from": 77}), "sinks[0].from: expected a place in quotes"),
        (sinks(type="carrier-pigeon"), "sinks[0]: "),
        (sinks(secret_files=[]), "sinks[0].secret_files: "),
        ({"sinks": [WEBHOOK, WEBHOOK]}, "the same name: soc"),
    ],
)
def test_what_is_wrong_is_named(document: Any, message: str) -> None:
    """An operator has to guess which field of which sink is wrong, or a message shows a secret."""
    with pytest.raises(Fatal) as raised:
        parse_sinks(document, "f")
    assert message in raised.value.detail
    assert "secret@" not in raised.value.detail


def test_filters_that_match() -> None:
    """A filter is refused that delivers what it says."""
    filters = [
        {"sealed": True, "q": "text"},
        {"detail_key": "a", "detail_value": "b"},
        {"since": "2026-01-31T12:00:00Z", "until": datetime(2026, 1, 31, tzinfo=UTC)},
    ]
    assert len([parse_sinks(sinks(filter=one), "f") for one in filters]) == 3


def test_a_file_that_is_no_yaml(tmp_path: Path) -> None:
    """The line is not said, or the lines around it are shown, which may have a secret."""
    path = tmp_path / "sinks.yaml"
    path.write_text("sinks:\n  - {name: a, secret: b: c}\n")
    with pytest.raises(Fatal, match="is not YAML: line 2: "):
        read_sinks(path)
    with pytest.raises(Fatal, match="Cannot read the file of sinks"):
        read_sinks(tmp_path / "none.yaml")


def test_an_empty_file_has_no_sinks(tmp_path: Path) -> None:
    """A ConfigMap without sinks stops the service."""
    path = tmp_path / "sinks.yaml"
    path.write_text("")
    assert read_sinks(path) == ()


@pytest.mark.parametrize("render", [ndjson_line, partial(cloudevents.render, log=LOG), partial(ocsf.render, log=LOG)])
def test_a_made_up_event_has_every_form(render: Callable[[Any], object]) -> None:
    """`datastorage sink test` fails for a destination with this form, or its event passes for one of the log."""
    (sink,) = parse_sinks(sinks(), "f")
    delivery = made_up_delivery(sink, LOG)
    rendered = render(delivery.items[0])
    text = rendered.decode() if isinstance(rendered, bytes) else orjson.dumps(rendered, default=str).decode()
    assert "datastorage.sink.test" in text
    assert "It is in no log" in text
    assert '"0:0"' not in text


SYSLOG = {"name": "soc", "type": "syslog", "host": "syslog.example"}
OTLP = {"name": "soc", "type": "otlp", "url": "https://otelcol.example:4318/v1/logs"}
BUCKET = {"name": "soc", "type": "s3", "bucket": "audit"}


@pytest.mark.parametrize(
    ("sink", "message"),
    [
        (SYSLOG | {"cert_file": "/a"}, "cert_file and key_file: expected both or neither"),
        (SYSLOG | {"port": 0}, "sinks[0].port: "),
        (SYSLOG | {"hostname": "a b"}, "sinks[0].hostname: "),
        (SYSLOG | {"facility": "kern"}, "sinks[0].facility: "),
        (SYSLOG | {"format": "xml"}, "sinks[0].format: "),
        (OTLP | {"header_files": {"content-Type": "/a"}}, "sinks[0].header_files: content-Type: the service sets"),
        (OTLP | {"header_files": {"a b": "/a"}}, "sinks[0].header_files.a b"),
        (OTLP | {"url": "http://otelcol.example/"}, "url: expected https://"),
        (BUCKET | {"access_key_file": "/a"}, "access_key_file and secret_key_file: expected both or neither"),
        (BUCKET | {"endpoint": "http://minio.example"}, "endpoint: expected https://"),
        (BUCKET | {"endpoint": "https://key:secret@minio.example"}, "without a user or password"),
        (BUCKET | {"prefix": "no-slash"}, "sinks[0].prefix: "),
        (BUCKET | {"prefix": "a/../b/"}, "sinks[0].prefix: "),
        (BUCKET | {"bucket": "UPPER"}, "sinks[0].bucket: "),
        (BUCKET | {"secret_key": "hidden"}, "sinks[0].secret_key: there is no such field"),
    ],
)
def test_what_is_wrong_with_other_destinations_is_named(sink: dict[str, Any], message: str) -> None:
    """An operator has to guess which field of which sink is wrong, or a message shows a secret."""
    with pytest.raises(Fatal) as raised:
        parse_sinks({"sinks": [sink]}, "f")
    assert message in raised.value.detail
    assert "secret@" not in raised.value.detail
    assert "hidden" not in raised.value.detail


@pytest.mark.parametrize("sink", [SYSLOG, OTLP | {"header_files": {"Authorization": "/a"}}, BUCKET])
def test_sinks_can_be_told_apart(sink: dict[str, Any]) -> None:
    """The worker that follows the file cannot hold a sink, and delivers to none of those behind it."""
    (one,), (same,) = (parse_sinks({"sinks": [sink]}, "f") for _ in range(2))
    (other,) = parse_sinks({"sinks": [sink | {"wait_ms": 7}]}, "f")
    assert {one: 1}[same] == 1
    assert one != other


def test_addresses_are_shown_without_what_is_secret() -> None:
    """A list of sinks shows tokens of their URLs, or not where they deliver to."""
    sinks_of = [SYSLOG, OTLP | {"name": "b"}, BUCKET | {"name": "c", "endpoint": "https://minio.example:9000"}]
    addresses = [sink.address for sink in parse_sinks({"sinks": sinks_of}, "f")]
    assert addresses == [
        "syslog+tls://syslog.example:6514",
        "https://otelcol.example:4318",
        "s3://audit/ at minio.example:9000",
    ]
