"""The OpenAPI document: generated from the routes and from the models that the endpoints parse by, so it cannot drift."""

from typing import Any

import orjson
from fastapi import FastAPI
from pydantic import TypeAdapter

from app.api.front import Front
from app.api.problems import CONTENT_TYPE, Problem
from app.events.cloudevents import CloudEvent
from app.events.envelope import PostedEvent
from app.main import create_app
from app.settings import Settings

_REF = "#/components/schemas/{model}"


def document() -> bytes:
    """The document of this version, as indented JSON with a newline at its end."""
    front = create_app(Settings())
    assert isinstance(front, Front)
    assert isinstance(front.app, FastAPI)
    spec = front.app.openapi()
    schemas = spec.setdefault("components", {}).setdefault("schemas", {})
    posted = TypeAdapter(PostedEvent).json_schema(ref_template=_REF)
    schemas |= posted.pop("$defs", {}) | {
        "PostedEvent": posted,
        "CloudEvent": TypeAdapter(CloudEvent).json_schema(ref_template=_REF),
        "Problem": Problem.model_json_schema(ref_template=_REF),
    }
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for operations in spec["paths"].values():
        for operation in operations.values():
            _answer_with_problems(operation)
    return orjson.dumps(spec, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS) + b"\n"


def _answer_with_problems(operation: dict[str, Any]) -> None:
    """Whatever is not a documented success is a problem document."""
    responses = operation["responses"]
    responses.pop("422", None)
    responses["default"] = {
        "description": "A problem document says what is wrong and what to do.",
        "content": {CONTENT_TYPE: {"schema": {"$ref": _REF.format(model="Problem")}}},
    }
