"""`datastorage sink`: an operator sees where sinks are, and orders something about them; and the service obeys."""

import json
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from app.cli.parser import build
from app.errors import NotFound
from tests.events import make_event
from tests.receiver import Answer, receiver, sinks_file
from tests.services import Service
from tests.waiting import until

Sink = Callable[..., str]


@pytest.fixture
def sink(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Sink:
    """Runs one command in this process; returns what it prints."""
    monkeypatch.setenv("DATASTORAGE_DATABASE_URL", database_url)
    monkeypatch.setenv("DATASTORAGE_SINKS", str(tmp_path / "sinks.yaml"))

    def run(*words: str, code: int | None = 0) -> str:
        arguments = build().parse_args(["sink", *words])
        ended = int(arguments.run(arguments) or 0)
        shown = capsys.readouterr()
        assert code is None or ended == code, shown
        assert "hidden" not in shown.out + shown.err
        return shown.out

    return run


def listed(sink: Sink) -> dict[str, object]:
    (one,) = [json.loads(line) for line in sink("list", "--json", code=None).splitlines()]
    return dict(one)


@pytest.mark.every_pod
def test_a_service_delivers(service: Callable[..., Service], tmp_path: Path, sink: Sink) -> None:
    """With so many processes none delivers, or two; or its metrics do not show how far it is."""
    with receiver() as one:
        running = service(sinks=sinks_file(tmp_path, one))
        with httpx.Client(base_url=running.url, timeout=30) as client:
            client.post("/api/v1/audit/events", json=make_event()).raise_for_status()
            until(lambda: listed(sink).get("place") == "0:1" or None)
            metrics = until(lambda: _with(client.get("/metrics").text, 'datastorage_sink_lag_events{sink="soc-0"} 0.0'))
    assert 'datastorage_sink_events_total{sink="soc-0"} 1.0' in metrics
    assert one.positions == [0]


def _with(text: str, part: str) -> str | None:
    return text if part in text else None


def test_orders(service: Callable[..., Service], tmp_path: Path, sink: Sink) -> None:
    """An order about a sink has no effect, or a list shows something else than what is."""
    with receiver() as one:
        file = sinks_file(tmp_path, one)
        assert (listed(sink)["state"], listed(sink)["address"]) == ("new", f"http://127.0.0.1:{one.port}")
        running = service(sinks=file)
        with httpx.Client(base_url=running.url, timeout=30) as client:

            def post() -> None:
                client.post("/api/v1/audit/events", json=make_event()).raise_for_status()

            post()
            until(lambda: listed(sink).get("place") == "0:1" or None)
            assert "soc-0" in sink("list")
            sink("pause", "soc-0")
            assert listed(sink)["state"] == "paused"
            sink("resume", "soc-0")
            assert "0:0" in sink("rewind", "soc-0", "start")
            until(lambda: one.positions[-4:] == [0, 1, 2, 3] or None)  # the orders are events too
            one.decide = lambda _: Answer(503)
            post()
            until(lambda: listed(sink)["state"] == "failing" or None)
            assert listed(sink)["last_error"] == "the receiver has answered 503 Service Unavailable"
            sink("list", code=1)
            assert "503" in sink("test", "soc-0", code=1)
            (shown,) = client.get("/api/v1/audit/trust").raise_for_status().json()["sinks"]
            assert (shown["name"], shown["state"], shown["place"]) == ("soc-0", "failing", "0:4")
            page = client.get("/ui/trust").raise_for_status().text
            assert "503 Service Unavailable" in page
            assert "token=" not in page
            one.decide = lambda _: Answer()
            sink("rewind", "soc-0", "0:4")
            until(lambda: one.positions[-2:] == [4, 5] or None)
            assert json.loads(sink("test", "soc-0", "--json"))["confirmed"] is True
            made_up = one.records[-1]
            assert (made_up["event_type"], made_up["log_index"]) == ("datastorage.sink.test", None)
        file.write_text("sinks: 7")
        sink("list", code=1)
        file.write_text("sinks: []")
        assert listed(sink)["state"] == "not configured"
        sink("remove", "soc-0")
        assert sink("list") == ""


def test_orders_are_events(service: Callable[..., Service], tmp_path: Path, sink: Sink) -> None:
    """Somebody has a destination miss events, and the log does not say who, when, and which ones."""
    who = ("--by", "ada@example.org", "--reason", "case 7")
    with receiver() as one:
        running = service(sinks=sinks_file(tmp_path, one))
        with httpx.Client(base_url=running.url, timeout=30) as client:
            client.post("/api/v1/audit/events", json=make_event()).raise_for_status()
            until(lambda: listed(sink).get("place") == "0:1" or None)
            assert "was not paused" in sink("resume", "soc-0")
            sink("pause", "soc-0", *who)
            assert "paused already" in sink("pause", "soc-0")
            sink("rewind", "soc-0", "now", *who)
            sink("remove", "soc-0")
            with pytest.raises(NotFound):
                sink("remove", "soc-1")  # one that the service has made again would be there
            found = client.get("/api/v1/audit/events", params={"event_type_in": "datastorage.sink.*"}).json()["data"]
            orders = client.get("/api/v1/audit/trust").raise_for_status().json()["sink_orders"]
            page = client.get("/ui/trust").raise_for_status().text
    about = {"sink": "soc-0", "address": f"http://127.0.0.1:{one.port}", "reason": "case 7", "ordered_by": who[1]}
    payloads = [event["event_data"] for event in reversed(found)]
    assert len({payload.pop("order_id") for payload in payloads}) == 3
    assert payloads == [
        about | {"event_type": "datastorage.sink.paused", "place": "0:1"},
        about | {"event_type": "datastorage.sink.rewound", "place": "0:1", "to": "0:2"},
        {"event_type": "datastorage.sink.removed", "sink": "soc-0", "address": about["address"], "place": "0:2"}
        | {"ordered_by": "datastorage sink"},
    ]
    assert {event["actor_id"] for event in found} == {who[1], "datastorage sink"}
    assert [(one["event_id"], one["event_type"]) for one in orders] == [
        (event["event_id"], event["event_type"]) for event in found
    ]
    assert orders[1]["to"] == "0:2"
    assert "Orders about sinks" in page
