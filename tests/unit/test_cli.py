"""What commands make of options, variables, texts and times before they ask a service."""

import argparse
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from app.cli import client, filters
from app.cli.client import Service
from app.cli.describing_settings import GROUPS, as_written
from app.cli.pages import Pages
from app.cli.times import Clock, skew_text
from app.errors import Fatal, Usage
from app.settings import Settings, origins, unknown_variables
from app.terminal import visible, visible_json
from tests.listening import listening

ODD = "a\x1b[2J\x07\x00\x9b\u202e\u2066\u200b\ufeff\U000e0041\ud800\n"


@pytest.fixture(autouse=True)
def without_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("URL", "TOKEN", "TOKEN_FILE", "CA_FILE", "PORT"):
        monkeypatch.delenv(f"DATASTORAGE_{name}", raising=False)


def service(*options: str) -> Service:
    parser = argparse.ArgumentParser()
    client.add_service(parser)
    return Service.of(parser.parse_args(options))


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("https://h/", "https://h"),
        ("h:80", "http://h:80"),
        ("h/prefix//", "http://h/prefix"),
        ("HTTP://h", "HTTP://h"),
        ("[::1]:8080", "http://[::1]:8080"),
    ],
)
def test_urls(given: str, url: str) -> None:
    """A URL that people would write is not understood."""
    assert service("--url", given).url == url


def test_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A variable does not count, or counts more than an option."""
    assert service() == Service("http://127.0.0.1:8080", None)
    monkeypatch.setenv("DATASTORAGE_PORT", "9")
    assert service().url == "http://127.0.0.1:9"
    monkeypatch.setenv("DATASTORAGE_PORT", "tcp://10.0.0.1:8080")  # Kubernetes, for a Service named datastorage
    assert service().url == "http://127.0.0.1:8080"
    monkeypatch.setenv("DATASTORAGE_URL", "h/")
    file = tmp_path / "token"
    file.write_text("of-file\n")
    monkeypatch.setenv("DATASTORAGE_TOKEN_FILE", str(file))
    assert service() == Service("http://h", "of-file")
    monkeypatch.setenv("DATASTORAGE_TOKEN", "of-variable")
    assert service().token == "of-variable"
    assert service("--token-file", str(file)).token == "of-file"
    assert service("--token", "of-option", "--url", "other") == Service("http://other", "of-option")
    assert "of-option" not in repr(service("--token", "of-option"))
    monkeypatch.setenv("DATASTORAGE_CA_FILE", str(file))
    assert service().ca_file == file
    assert service("--ca-file", "other").ca_file == Path("other")
    with pytest.raises(Fatal, match="Cannot read the certificates"):
        assert service("--url", "https://h").http
    assert service("--url", "http://h").trusted is False


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--url", "ftp://h"], Usage),
        (["--url", "http://h\x1b"], Usage),
        (["--token", "a b"], Usage),
        (["--token-file", "/nowhere"], Fatal),
    ],
)
def test_refused(options: list[str], error: type[Exception]) -> None:
    """Something is sent that no service can read, or an error is printed that a terminal obeys."""
    with pytest.raises(error) as refused:
        service(*options)
    assert type(refused.value) is error
    assert str(refused.value).isprintable()


class _Stranger(BaseHTTPRequestHandler):
    """Answers every question with JSON that is none of a DataStorage."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"data":[{}]}' if self.path.startswith("/objects") else b'["data"]')

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the base class's name
        pass


def test_something_else_answers() -> None:
    """Who has another service's URL reads a traceback."""
    with listening(ThreadingHTTPServer(("127.0.0.1", 0), _Stranger)) as url:
        asked = service("--url", url)
        with pytest.raises(Fatal, match="is it a DataStorage"):
            asked.json("/list")
        with pytest.raises(Fatal, match="is it a DataStorage"):
            list(Pages(asked, "/objects", {}))
        with pytest.raises(Fatal, match="is it a DataStorage"):
            asked.json("/objects")["data"][0]["event_id"]


@pytest.mark.parametrize(
    ("retry_after", "seconds"),
    [("", 1), ("3", 3), ("9" * 400, 10), ("-5", 1), ("nan", 1), ("Wed, 21 Oct 2026 07:28:00 GMT", 1)],
)
def test_pauses(retry_after: str, seconds: float) -> None:
    """A command that waits for a checkpoint ends with a traceback, or waits for ever, as a proxy has a header of its own."""
    assert client.pause_seconds(retry_after) == seconds


def test_escapes() -> None:
    """A character reaches the terminal that it obeys, or that turns text round; or JSON is another value by its escapes."""
    assert visible(ODD) == r"a\x1b[2J\x07\x00\x9b\u202e\u2066\u200b\ufeff\U000e0041\ud800\n"
    assert visible("zürich 東京 👍") == "zürich 東京 👍"
    shown = visible_json(json.dumps({ODD: ODD}, ensure_ascii=False, indent=2))
    assert shown.replace("\n", "").isprintable()
    assert json.loads(shown) == {ODD: ODD}


def parameters(*options: str, zone: str | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    filters.add_filters(parser, "time")
    return dict(filters.parameters_of(parser.parse_args(options), zone))


def test_filters() -> None:
    """A filter is lost on its way to the query string: an answer has more than was asked for."""
    assert parameters() == {}
    assert parameters("--actor", "ada") == {"actor_id": "ada"}
    assert parameters("--actor", "ada", "--actor", "eve", "--not-type", "a.b") == {
        "actor_id_in": ["ada", "eve"],
        "event_type_not": ["a.b"],
    }
    assert parameters("--type", "orchestrator.*") == {"event_type_in": ["orchestrator.*"]}
    assert parameters("--since", "today", "--q", "x", "--self", "--unsealed", zone="Europe/Berlin") == {
        "since": "today",
        "q": "x",
        "zone": "Europe/Berlin",
        "include": "self",
        "sealed": "false",
    }
    with pytest.raises(Usage):
        parameters("--actor", "")


def test_filters_are_those_of_the_service() -> None:
    """The command line sends a parameter that the service ignores, or does not know one of its filters."""
    from app.query.filter import EventFilter

    sent = {name for name, _ in filters._ANY.values()}
    of_service = {name.removesuffix("_in") for name in EventFilter.model_fields if name.endswith("_in")}
    assert sent == of_service


def test_times() -> None:
    """A time is shown in another zone than its heading says, or an odd one ends the command."""
    assert Clock("Europe/Berlin").text("2026-07-01T12:00:00.5Z") == "2026-07-01 14:00:00"
    for odd in ("0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "infinity", ""):
        assert Clock("Pacific/Kiritimati").text(odd) == odd
        assert Clock().ago(odd) == ""
    assert skew_text("2026-07-01T12:00:00Z", "2026-07-01T12:04:00Z") == ""
    assert skew_text("2026-07-01T12:00:00Z", "2026-07-01T13:00:01Z") == "1h1s before"
    assert skew_text("2026-07-04T12:00:00Z", "2026-07-01T12:00:00Z") == "3d ahead"
    with pytest.raises(Usage):
        Clock("Nowhere/At")


def test_settings_in_groups() -> None:
    """A group begins at a setting that is gone, or a value is not what one would write."""
    assert set(GROUPS) <= set(Settings.model_fields)
    assert next(iter(GROUPS)) == next(iter(Settings.model_fields))
    written = [as_written(one) for one in (True, 8080, Path("/a"), ("a", "https://u:p@h"), {"a": "reader"})]
    assert written == ["true", "8080", "/a", '["a", "https://***@h"]', '{"a": "reader"}']


def test_what_has_set_a_setting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An operator looks in the wrong place for what has set a setting."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("DATASTORAGE_HOST=127.0.0.2\nDATASTORAGE_AUTH=none\n")
    (tmp_path / "config.yaml").write_text("logging: {level: warn}\nserver: {port: 8089, host: 127.0.0.3}\n")
    for name, value in (("CONFIG_PATH", "config.yaml"), ("PORT", "8090"), ("DATASTORAGE_AUTH", "none")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DATASTORAGE_DATABASE_URL_FILE", "url")
    expected = {"auth": "environment", "host": ".env", "port": "PORT", "log_level": "CONFIG_PATH (config.yaml)"}
    expected |= {"database_url": "DATASTORAGE_DATABASE_URL_FILE"}
    found = origins()
    assert {name: found[name] for name in expected} == expected
    assert "batch_events_max" not in found


def test_unknown_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelled variable has no effect and nobody is told, or one that is right is complained of."""
    for name in ("PROT", "URL", "TOKEN_FILE", "DATABASE_URL_FILE", "SERVICE_HOST", "PORT_8080_TCP", "TEST_DSN", "port"):
        monkeypatch.setenv(f"DATASTORAGE_{name}", "1")
    told = [one for one in unknown_variables() if "PROT" in one or "URL" in one or "PORT_" in one]
    assert told == ["DATASTORAGE_PROT is no setting and has no effect: did you mean DATASTORAGE_PORT?"]
