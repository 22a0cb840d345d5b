"""The OpenAPI document as it is served and committed, generated so that it cannot differ from the routes."""

import orjson

from app.api.service import Application
from app.main import create_app
from app.pages.browsers import Browsers
from app.settings import Settings


def document() -> bytes:
    """The document of this version: indented JSON with a newline at its end."""
    service = create_app(Settings())
    assert isinstance(service, Browsers)
    assert isinstance(service.app, Application)
    return orjson.dumps(service.app.openapi(), option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS) + b"\n"
