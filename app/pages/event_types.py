"""The catalog of event types: searched by a word, and each with its schema and an example."""

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from app.api.service import foundation_of
from app.events import describe
from app.pages.rendering import page, segment

router = APIRouter(include_in_schema=False)
_API = "/api/v1/audit/event-types"
_TEXTS = ("name", "producer", "category", "meaning")


@router.get("/ui/event-types")
async def event_types_page(request: Request) -> Response:
    """Every event type that this service takes, or those that have each word of `q` somewhere."""
    words = request.query_params.get("q", "").lower().split()
    found = [one for one in describe.summaries(foundation_of(request).catalog) if _has(one, words)]
    by_producer: dict[str, list[dict[str, Any]]] = {}
    for one in found:
        by_producer.setdefault(one["producer"], []).append(one)
    sent = request.query_params.get("q", "")
    return page(
        request, "event_types.html", title="Event types", twin=_API, number=len(found), producers=by_producer, sent=sent
    )


@router.get("/ui/event-types/{name}")
async def event_type_page(request: Request, name: str) -> Response:
    """One event type, with its schema and an example."""
    found = describe.details(describe.find(foundation_of(request).catalog, name))
    texts = {part: describe.as_json(found[part], indent=2) for part in ("schema", "example") if found.get(part)}
    properties = found["schema"].get("properties", {})
    return page(
        request,
        "event_type.html",
        title=name,
        twin=f"{_API}/{segment(name)}",
        type=found,
        texts=texts,
        members=[_member(member, schema, found["schema"]) for member, schema in properties.items()],
    )


def _has(summary: dict[str, Any], words: list[str]) -> bool:
    text = " ".join(str(summary[name] or "") for name in _TEXTS).lower()
    return all(word in text for word in words)


def _member(name: str, schema: Any, whole: dict[str, Any]) -> dict[str, Any]:
    """A member of a payload in words: what it is, and whether it has to be there."""
    return {
        "name": name,
        "is_required": name in whole.get("required", ()),
        "kind": kind(schema),
        "description": schema.get("description", "") if isinstance(schema, dict) else "",
    }


def kind(schema: Any) -> str:
    """What a JSON Schema accepts, in a few words."""
    if not isinstance(schema, dict):
        return "" if schema else "nothing"
    for choice in ("anyOf", "oneOf"):
        if choice in schema:
            return " or ".join(dict.fromkeys(kind(one) for one in schema[choice]))
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "const" in schema:
        return repr(schema["const"])
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if schema.get("type") == "array":
        return f"list of {kind(schema.get('items', {}))}".removesuffix(" of ")
    return str(schema.get("format") or schema.get("type") or "")
