"""What the framework does not know of the OpenAPI document: bodies that it does not parse, and problems."""

from typing import Any, Literal

from pydantic import TypeAdapter

from app.api.problems import CONTENT_TYPE, Problem
from app.events.catalog import EVENT_TYPES, PAYLOAD_CHECKS, PAYLOADS, RECEIVED_TYPES, SELF_EVENT_TYPES
from app.events.catalog.examples import Untitled
from app.events.cloudevents import CloudEvent
from app.events.envelope import PostedEvent

_REF = "#/components/schemas/{model}"


def complete(spec: dict[str, Any]) -> dict[str, Any]:
    """`spec` as the framework has made it of the routes, completed in place by the models that parse requests."""
    spec["servers"] = [{"url": "/"}]
    schemas = spec.setdefault("components", {}).setdefault("schemas", {})
    schemas |= _schemas(PostedEvent, CloudEvent, *PAYLOADS)
    schemas["Problem"] = Problem.model_json_schema(ref_template=_REF)
    schemas["PostedEvent"]["properties"]["event_data"] = _event_data()
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for operations in spec["paths"].values():
        for operation in operations.values():
            _add_problem_response(operation)
    return spec


def _schemas(*types: Any) -> dict[str, Any]:
    """The schemas of TypedDicts and of everything that they refer to, by name."""
    adapters: list[tuple[Any, Literal["validation"], TypeAdapter[Any]]]
    adapters = [(kind, "validation", TypeAdapter(kind)) for kind in types]
    _, schemas = TypeAdapter.json_schemas(adapters, ref_template=_REF, schema_generator=Untitled)
    return dict(schemas["$defs"])


def _event_data() -> dict[str, Any]:
    """The payloads of the typed names, distinguished by event_type. A description names the others (docs/decisions/0011)."""
    models = {
        name: _REF.format(model=EVENT_TYPES[name].payload.__name__)
        for name in PAYLOAD_CHECKS
        if name not in SELF_EVENT_TYPES | RECEIVED_TYPES
    }
    return {
        "description": (
            "Payload; its event_type decides its shape. Types that an operator has registered, and objects without an "
            "event_type under the outer names of December 2025, are taken too: GET /api/v1/audit/event-types lists both."
        ),
        "oneOf": [{"$ref": model} for model in dict.fromkeys(models.values())],
        "discriminator": {
            "propertyName": "event_type",
            "mapping": models,
        },
    }


def _add_problem_response(operation: dict[str, Any]) -> None:
    """Every response that is not documented is a problem document."""
    responses = operation["responses"]
    responses.pop("422", None)
    problem = {
        "description": "A problem document says what is wrong and what to do.",
        "content": {CONTENT_TYPE: {"schema": {"$ref": _REF.format(model="Problem")}}},
    }
    responses["default"] = problem
