"""The API as a page: the OpenAPI document, rendered here, without a script of anybody's."""

import asyncio
from functools import lru_cache
from typing import Any

import orjson
from fastapi import APIRouter
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import Response

from app.api.service import Application
from app.pages.event_types import kind
from app.pages.rendering import environment, page

router = APIRouter(include_in_schema=False)


@router.get("/ui/api")
async def api_page(request: Request) -> Response:
    """Every operation with its parameters, bodies and answers, and every schema that they name."""
    app: Application = request.scope["app"]
    body = await asyncio.to_thread(_rendered, orjson.dumps(app.openapi()))
    return page(request, "api.html", title="API", twin="/openapi.json", version=app.version, body=body)


@lru_cache(1)
def _rendered(spec: bytes) -> Markup:
    """What does not depend on who looks: half a megabyte, made once."""
    document = orjson.loads(spec)
    groups: dict[str, list[dict[str, Any]]] = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            one = _operation(method, path, operation)
            groups.setdefault(one["tag"], []).append(one)
    schemas = {
        name: orjson.dumps(schema, option=orjson.OPT_INDENT_2).decode()
        for name, schema in sorted(document["components"]["schemas"].items())
    }
    return Markup(environment().get_template("api_body.html").render(groups=groups, schemas=schemas))  # noqa: S704 -- a template's


def _operation(method: str, path: str, operation: dict[str, Any]) -> dict[str, Any]:
    parameters = [
        {
            "name": one["name"],
            "in": one["in"],
            "kind": kind(one.get("schema", {})),
            "is_required": one.get("required", False),
            "description": one.get("description", ""),
        }
        for one in operation.get("parameters", ())
    ]
    body = operation.get("requestBody", {}).get("content", {})
    answers = [
        {
            "status": status,
            "description": answer.get("description", ""),
            "content": _contents(answer.get("content", {})),
        }
        for status, answer in operation.get("responses", {}).items()
    ]
    return {
        "id": operation["operationId"],
        "tag": (operation.get("tags") or ["other"])[0],
        "method": method.upper(),
        "path": path,
        "summary": operation.get("summary", ""),
        "description": operation.get("description", ""),
        "parameters": parameters,
        "body": _contents(body),
        "answers": answers,
    }


def _contents(content: dict[str, Any]) -> list[dict[str, str]]:
    """The media types of a body, each with the schema that it names, or with the schema itself."""
    return [
        {
            "media_type": media_type,
            "reference": _reference(one.get("schema", {})),
            "schema": orjson.dumps(one.get("schema", {}), option=orjson.OPT_INDENT_2).decode(),
        }
        for media_type, one in content.items()
    ]


def _reference(schema: dict[str, Any]) -> str:
    return str(schema.get("$ref", "")).rpartition("/")[2]
