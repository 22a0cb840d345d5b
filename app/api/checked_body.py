"""Bodies of orders (holds, policies, acknowledgements): read, checked against a type, and described in the OpenAPI document."""

from functools import partial
from typing import Any

from pydantic import TypeAdapter, ValidationError
from starlette.requests import Request

from app.api.access import authorize_large_body
from app.api.body import read_json_body
from app.api.service import service_of
from app.events.canonical import parse
from app.events.explain import bad_fields, explain


async def read_checked_body(request: Request, kind: Any) -> Any:
    """The body, which has the form of the TypedDict `kind`. BadRequest names each member that has not."""
    await authorize_large_body(request)
    return checked(parse(await read_json_body(request, service_of(request).settings.body_bytes_max)).value, kind)


def checked(body: Any, kind: Any) -> Any:
    """`body`, which has the form of the TypedDict `kind`. BadRequest names each member that has not."""
    try:
        return TypeAdapter(kind).validate_python(body, strict=True)
    except ValidationError as error:
        raise bad_fields(explain(error, "")) from None


def request_body_of(kind: Any) -> dict[str, Any]:
    """What the document says of such a body, as `openapi_extra` of a route."""
    return {"requestBody": partial(_request_body, kind)}


def _request_body(kind: Any) -> dict[str, Any]:
    return {"required": True, "content": {"application/json": {"schema": _inlined(TypeAdapter(kind).json_schema())}}}


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """`schema` with its definitions inlined: references would have no target in the OpenAPI document."""
    definitions = schema.pop("$defs", {})
    for name, member in schema["properties"].items():
        if "$ref" in member:
            schema["properties"][name] = definitions[member["$ref"].rpartition("/")[2]]
    return schema
