"""Credentials in URLs are shown to nobody: not in settings, not in logs, not in error messages."""

import io
import logging
import sys

import orjson
import pytest

from app import cli
from app.cli import describing
from app.errors import Fatal
from app.logs import JsonLines
from app.masking import masked, masked_values
from app.tlog.witness import Witness

SHOWN = [
    ("https://u:hunter2@h.example/x", "https://***@h.example/x"),
    ("https://u:hun@ter2@h.example", "https://***@h.example"),
    ("https://u:p/hunter2?x@h.example:4318/v1", "https://***@h.example:4318/v1"),
    ("https://hunter2@h.example", "https://***@h.example"),
    ("https://h.example/x?token=hunter2&b=hunter2#hunter2", "https://h.example/x?token=***&b=***#***"),
    ("https://h.example/?hunter2", "https://h.example/?***"),
    ("https://h.example/x;sid=hunter2", "https://h.example/x;sid=***"),
    ("w.example+1b2c+BAAA https://u:hunter2@w.example", "w.example+1b2c+BAAA https://***@w.example"),
    ("u:hunter2@collector:4318", "***@collector:4318"),
    ("http://a:hunter2@b,http://c:hunter2@d", "http://***@d"),
    ("https://u:hun ter2@h.example/x?y=z", "https://***@h.example/x?y=***"),
    ("https://u:hun ter2 @hunter2 hunter2@h.example", "https://***@h.example"),
    ("https://u:hun\tter2/hunter2 hunter2@h.example:1/x", "https://***@h.example:1/x"),
    ("https://u:80 hunter2@h.example", "https://***@h.example"),
    ("no answer of https://u:hun ter2@h/x\nada@example.com", "no answer of https://***@h/x\nada@example.com"),
    ("for url 'https://u:hunter2@h/x' there is none", "for url 'https://***@h/x' there is none"),
]
UNCHANGED = [
    "http://collector:4318",
    "ada@example.com",
    "ada: told bob@example.com",
    "https://h.example/a/b",
    "https://h.example told ada@example.com",
    "https://h.example:8443/x told ada@example.com: not found",
    "a://",
    "12:30@",
]


@pytest.mark.parametrize(("text", "shown"), SHOWN)
def test_masked(text: str, shown: str) -> None:
    """A password is in the output that operators paste into tickets."""
    assert masked(text) == shown


@pytest.mark.parametrize("text", UNCHANGED)
def test_unchanged(text: str) -> None:
    """What is no credential cannot be read any more."""
    assert masked(text) == text


def test_values() -> None:
    """A list hides a password from what masks texts."""
    assert masked_values({"a": ("https://u:it's@h", ["https://u:p@h"]), "b": 1}) == {
        "a": ("https://***@h", ["https://***@h"]),
        "b": 1,
    }


def test_log_lines() -> None:
    """The error of a client's library names its URL with everything in it."""
    output = io.StringIO()
    handler = logging.StreamHandler(output)
    handler.setFormatter(JsonLines())
    log = logging.Logger("test")  # noqa: LOG001 - nobody else has it
    log.addHandler(handler)
    error = ValueError("no answer of https://u:hunter2@h/x?token=hunter2")
    try:
        raise error
    except ValueError:
        log.exception("%s", error, extra={"error": repr(error), "cause": error, "urls": ["https://u:hunter2@h"]})
    line = orjson.loads(output.getvalue())
    assert "hunter2" not in output.getvalue()
    assert line["message"] == "no answer of https://***@h/x?token=***"
    assert "ValueError" in line["exception"]


def test_error_of_a_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A setting that is refused is repeated with the password in it."""
    with pytest.raises(Fatal) as refused:
        Witness.parse("no-key https://u:hunter2@w.example")
    assert "hunter2" in str(refused.value)

    def fail(_: object) -> None:
        raise refused.value

    monkeypatch.setattr(sys, "argv", ["datastorage", "settings"])
    monkeypatch.setattr(describing, "_settings", fail)
    assert cli.main() == 2
    shown = capsys.readouterr().err
    assert "hunter2" not in shown
    assert "https://***@w.example" in shown
