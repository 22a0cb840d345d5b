"""What a client of OTLP is answered where its encoding cannot be read."""

import json
import sys

import pytest
from starlette.requests import Request

import app.events.otlp
from app.api import otlp
from app.api.otlp_answers import JSON, PROTOBUF, MediaTypeUnknown, status_body, status_of
from app.errors import BadRequest, DatabaseFailed, KeyReused, ReviewFailed, TooLarge, Unauthorized


def request(media_type: str) -> Request:
    return Request({"type": "http", "path": "/v1/logs", "headers": [(b"content-type", media_type.encode())]})


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service without the packages of the binary encoding fails, or does not say what to install."""
    monkeypatch.delattr(app.events.otlp, "protobuf", raising=False)
    monkeypatch.setitem(sys.modules, "app.events.otlp.protobuf", None)
    monkeypatch.setitem(sys.modules, "google.rpc.status_pb2", None)
    assert otlp._media_type(request(JSON)) == JSON
    with pytest.raises(MediaTypeUnknown) as refused:
        otlp._media_type(request(PROTOBUF))
    body, media_type, headers = status_body(request(PROTOBUF), refused.value)
    assert (status_of(refused.value), media_type, headers) == (415, JSON, {})
    assert "datastorage[otlp]" in json.loads(body)["message"]


def test_only_what_may_succeed_later_is_sent_again() -> None:
    """A client drops what it could send later, or sends for ever what never succeeds."""
    for kind, status in (
        (DatabaseFailed, 503),
        (ReviewFailed, 503),
        (BadRequest, 400),
        (KeyReused, 400),
        (TooLarge, 413),
        (Unauthorized, 401),
    ):
        error = kind()
        assert status_of(error) == status
        assert ("Retry-After" in status_body(request(JSON), error)[2]) == (status == 503)
