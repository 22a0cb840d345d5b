"""Parameters of query strings and paths: read into the model of a query, and refused by their names.

The steps: `query_parameters`, `read_fields`, `build_query`. A field whose value is more than text has a reader.
"""

import re
from collections.abc import Callable, Collection, Container, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime, tzinfo
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any, TypeVar
from urllib.parse import parse_qsl
from uuid import UUID

from fastapi import HTTPException
from pydantic import BaseModel, ValidationError
from starlette.convertors import PathConvertor, register_url_convertor
from starlette.requests import Request

from app.errors import BadRequest
from app.events.explain import FIELDS_MAX, bad_fields, by_member_name, escape, explain
from app.query.cursor import AnyCursor
from app.query.timebounds import parse_time, parse_zone

Query = TypeVar("Query", bound=BaseModel)
Reader = Callable[[str, str], Any]
"""Reads the value of a field: (name, text) to value. Raises BadRequest for a text that has none."""

_WHOLE_NUMBER = re.compile(r"-?(?:[0-9]{1,20}|(0[xX][0-9a-fA-F]{1,16}))", re.ASCII)
_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_NO_VALUES: Mapping[str, Any] = MappingProxyType({})


def query_parameters(query_string: bytes, names: Container[str]) -> dict[str, str]:
    """The parameters of a query string that are among `names`, in its order; of repeated ones the first counts."""
    sent: dict[str, str] = {}
    for name, value in _pairs(query_string):
        if name in names:
            sent.setdefault(name, value)
    for name, value in sent.items():
        _check_text(name, value)
    return sent


def repeated_parameters(query_string: bytes, names: Container[str]) -> dict[str, tuple[str, ...]]:
    """All values of the parameters of a query string that are among `names`, in its order; empty ones are ignored."""
    sent: dict[str, tuple[str, ...]] = {}
    for name, value in _pairs(query_string):
        if name in names and value:
            _check_text(name, value)
            sent[name] = (*sent.get(name, ()), value)
    return sent


def _check_text(name: str, value: str) -> None:
    if any(c == "\0" or "\ud800" <= c <= "\udfff" for c in value):
        raise bad_fields({name: "expected UTF-8 without NUL characters"})


def refuse_unknown(query_string: bytes, names: Collection[str]) -> None:
    """Raise BadRequest for parameters that are not among `names`, each with the name that comes nearest."""
    unknown = dict.fromkeys(name for name, _ in _pairs(query_string) if name not in names)
    if unknown:
        raise bad_fields({_printable(name): _unknown(name, names) for name in list(unknown)[:FIELDS_MAX]})


def _pairs(query_string: bytes) -> Iterator[tuple[str, str]]:
    yield from parse_qsl(query_string.decode("latin-1"), keep_blank_values=True, errors="surrogateescape")


def _printable(name: str) -> str:
    return escape(name.encode(errors="surrogateescape").decode(errors="replace"))


def _unknown(name: str, names: Collection[str]) -> str:
    nearest = get_close_matches(name.lower(), names, 1, 0.5)
    if nearest:
        return f"there is no such parameter here; the nearest is {nearest[0]}"
    return "there is no such parameter here" + ("" if names else ", nor any other")


def read_fields(
    sent: Mapping[str, str], readers: Mapping[str, Reader], *, when_empty: Mapping[str, Any] = _NO_VALUES
) -> dict[str, Any]:
    """The values of `sent`, read in its order. An empty value is ignored, except for the fields of `when_empty`."""
    fields: dict[str, Any] = {}
    for name, text in sent.items():
        if text:
            fields[name] = readers[name](name, text) if name in readers else text
        elif name in when_empty:
            fields[name] = when_empty[name]
    return fields


def build_query(model: type[Query], fields: dict[str, Any]) -> Query:
    """The model with these fields; BadRequest with every fault that it finds."""
    try:
        return model(**fields)
    except ValidationError as error:
        raise bad_fields(by_member_name(explain(error, ""))) from None


def whole_number(least: int, most: int) -> Reader:
    """Reads a whole number from `least` to `most`, in decimal or as 0x and hexadecimal digits."""

    def read(name: str, text: str) -> int:
        match = _WHOLE_NUMBER.fullmatch(text)
        if match is None:
            raise bad_fields({name: f"expected a whole number, got {text[:60]!r}"})
        number = int(text, 16 if match[1] else 10)
        if number < least:
            raise bad_fields({name: f"must be at least {least}, got {text}"})
        if number > most:
            raise bad_fields({name: f"must be at most {most}, got {text}"})
        return number

    return read


def time_or_age(now: datetime, zone: tzinfo = UTC, *, is_end: bool = False) -> Reader:
    """Reads a time, or how long it lies before `now`; the last moment of a day that is named by a word, if it `is_end`."""

    def read(name: str, text: str) -> datetime:
        try:
            return parse_time(text, now, zone, is_end=is_end)
        except ValueError as error:
            raise bad_query(f"{name}: {error}") from None

    return read


def time_zone(name: str, text: str) -> tzinfo:
    """Reads the name of a time zone."""
    try:
        return parse_zone(text)
    except ValueError as error:
        raise bad_fields({name: str(error)}) from None


def uuid(name: str, text: str) -> UUID:
    """Reads a UUID in its usual form."""
    if _UUID.fullmatch(text) is None:
        raise bad_fields({name: f"expected a UUID, got {text[:60]!r}"})
    return UUID(text)


def cursor(*kinds: type[AnyCursor]) -> Reader:
    """Reads the next_cursor of an earlier answer, which is of one of these kinds."""

    def read(name: str, text: str) -> AnyCursor:
        for kind in kinds:
            with suppress(ValueError):
                return kind.parse(text)
        raise bad_fields({name: "expected the next_cursor of an earlier answer"})

    return read


def true_or_false(spellings: Container[str] = frozenset({"true", "false"})) -> Reader:
    """Reads true or false. Of other `spellings` that are accepted, all mean false, as in the reference."""

    def read(name: str, text: str) -> bool:
        if text not in spellings:
            raise bad_fields({name: f"expected true or false, got {text[:60]!r}"})
        return text == "true"

    return read


def one_of(*words: str) -> Reader:
    """Reads one of some words."""

    def read(name: str, text: str) -> str:
        if text not in words:
            raise bad_fields({name: f"expected {' or '.join(words)}, got {text[:60]!r}"})
        return text

    return read


def bad_query(message: str) -> BadRequest:
    """The contract's own form of refusal, for a bad time and for half a detail filter."""
    return BadRequest(
        message, resource="query parameters", field_errors={"query": message}, instance="/audit/query parameters"
    )


class _TextConvertor(PathConvertor):
    """As `path`, which stops at a newline."""

    regex = "(?s:.*)"


register_url_convertor("text", _TextConvertor())
CORRELATION_ID = "{correlation_id:text}"
"""How a route has an id in its path, in which every character may stand."""


def path_correlation_id(request: Request, correlation_id: str) -> str:
    """The correlation id in a request's path, of which it is one segment: a slash in it has to be encoded.

    HTTPException 404 for a path with another number of segments.
    """
    segments = request.scope["raw_path"].count(b"/")
    if not correlation_id or segments != request.scope["path"].count("/") - correlation_id.count("/"):
        raise HTTPException(404)
    if "\0" in correlation_id:
        raise bad_fields({"correlation_id": "expected UTF-8 without NUL characters"})
    return correlation_id


def documented(query: type[BaseModel]) -> list[dict[str, Any]]:
    """The OpenAPI parameters of a query's model. A field that may be null is a parameter that may be absent."""
    parameters = []
    for name, schema in query.model_json_schema()["properties"].items():
        not_null = next((option for option in schema.get("anyOf", []) if option.get("type") != "null"), schema)
        stated = {key: value for key, value in not_null.items() if key not in {"description", "default", "title"}}
        parameters.append({"name": name, "in": "query", "description": schema.get("description", ""), "schema": stated})
    return parameters


WITHOUT_ARCHIVE: dict[str, Any] = {
    "name": "archive",
    "in": "query",
    "description": "exclude: without the events that are in the archive alone, which are read if the chain has events that Postgres has not",
    "schema": {"type": "string", "enum": ["exclude"]},
}


def excludes_archive(request: Request) -> bool:
    """Whether WITHOUT_ARCHIVE was sent, to a route that ignores what it does not know."""
    sent = query_parameters(request.scope["query_string"], {"archive"}).get("archive")
    return sent is not None and sent != "" and one_of("exclude")("archive", sent) == "exclude"
