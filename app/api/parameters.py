"""Parameters of query strings and paths: taken, and refused by their names."""

import re
from collections.abc import Container
from datetime import datetime
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from fastapi import HTTPException
from pydantic import BaseModel

from app.errors import BadRequest
from app.events.explain import bad_fields
from app.query.cursor import Cursor, NumberedCursor
from app.query.timebounds import parse_time

AnyCursor = TypeVar("AnyCursor", Cursor, NumberedCursor)
_WHOLE = re.compile(r"-?[0-9]{1,20}", re.ASCII)


def sent_parameters(query_string: bytes, names: Container[str]) -> dict[str, str]:
    """Those of `names` that a query string holds: others are ignored, of repeated ones the first counts."""
    found: dict[str, str] = {}
    for name, value in parse_qsl(query_string.decode("latin-1"), keep_blank_values=True, errors="surrogateescape"):
        if name in names:
            found.setdefault(name, value)
    for name, value in found.items():
        if any(c == "\0" or "\ud800" <= c <= "\udfff" for c in value):
            raise bad_fields({name: "expected UTF-8 without NUL characters"})
    return found


def correlation(correlation_id: str) -> str:
    """The id in a path. It may hold slashes, but with none behind it: that is another path, and no path of ours."""
    if not correlation_id or correlation_id.endswith("/"):
        raise HTTPException(404)
    if "\0" in correlation_id:
        raise bad_fields({"correlation_id": "expected UTF-8 without NUL characters"})
    return correlation_id


def number(name: str, value: str, least: int, most: int) -> int:
    if _WHOLE.fullmatch(value) is None:
        raise bad_fields({name: f"expected a whole number, got {value[:60]!r}"})
    if int(value) < least:
        raise bad_fields({name: f"must be at least {least}, got {value}"})
    if int(value) > most:
        raise bad_fields({name: f"must be at most {most}, got {value}"})
    return int(value)


def moment(name: str, value: str, now: datetime) -> datetime:
    try:
        return parse_time(value, now)
    except ValueError as error:
        raise bad_query(f"{name}: {error}") from None


def cursor(name: str, value: str, kind: type[AnyCursor]) -> AnyCursor:
    try:
        return kind.parse(value)
    except ValueError as error:
        raise bad_fields({name: str(error)}) from None


def bad_query(message: str) -> BadRequest:
    """The contract's own form for a bad moment and for half a detail filter."""
    return BadRequest(
        message, resource="query parameters", field_errors={"query": message}, instance="/audit/query parameters"
    )


def documented(query: type[BaseModel]) -> list[dict[str, Any]]:
    """Query parameters of the document, from the model that they are read into. Absent is the query string's null."""
    found = []
    for name, schema in query.model_json_schema()["properties"].items():
        stated = next((option for option in schema.get("anyOf", []) if option.get("type") != "null"), schema)
        kept = {key: value for key, value in stated.items() if key not in {"description", "default", "title"}}
        found.append({"name": name, "in": "query", "description": schema.get("description", ""), "schema": kept})
    return found
