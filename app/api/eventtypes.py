"""GET of event types: the list of them, and one with the schema of its payload."""

from typing import Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from app.api.routes import Answer, Router
from app.api.service import foundation_of
from app.events import describe

router = Router(tags=["event types"])


class EventTypeSummary(Answer):
    """One type. `category` is the one in which its producer sends it; null when nothing is known of it."""

    name: str
    producer: str
    category: str | None
    generation: str = Field(
        description="head, both, dec-2025 (free form only), custom, own (only the service writes them), or received (a receiver makes them)"
    )
    meaning: str


class EventTypes(Answer):
    """Every type, by name."""

    event_types: list[EventTypeSummary]


class FreeForm(Answer):
    """The form without event_type that the same name has too: its known keys, which have no types."""

    schema_: dict[str, Any] = Field(alias="schema")
    example: dict[str, Any]


class EventTypeDetails(EventTypeSummary):
    """One type, with the JSON Schema (2020-12) of its payload and an example that the schema takes."""

    schema_: dict[str, Any] = Field(alias="schema")
    example: dict[str, Any] | None = None
    free_form: FreeForm | None = None


_PRODUCER = {"name": "producer", "in": "query", "description": "only its types", "schema": {"type": "string"}}


@router.get(
    "/api/v1/audit/event-types",
    response_class=Response,
    responses={200: {"model": EventTypes}},
    openapi_extra={"parameters": [_PRODUCER]},
)
async def list_event_types(request: Request) -> Response:
    """Every event type that this service takes, by name."""
    producer = request.query_params.get("producer") or None
    return _response({"event_types": describe.summaries(foundation_of(request).catalog, producer)})


@router.get("/api/v1/audit/event-types/{name}", response_class=Response, responses={200: {"model": EventTypeDetails}})
async def get_event_type(request: Request, name: str) -> Response:
    """One event type, with its schema and an example."""
    return _response(describe.details(describe.find(foundation_of(request).catalog, name)))


def _response(body: dict[str, Any]) -> Response:
    return Response(describe.as_json(body), media_type="application/json")
