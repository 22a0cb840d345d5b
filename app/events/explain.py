"""Errors of pydantic as messages for the person who has to correct the request, each with its JSON pointer."""

from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any, cast

from pydantic import ValidationError

from app.errors import BadRequest, InvalidRequest

FIELDS_MAX = 20
_EXCERPT_MAX = 60
_STEP_MAX = 100

# Pydantic's error types, and what was expected. The names in braces are keys of the error's context.
_EXPECTED = {
    "string_type": "a string",
    "string_sub_type": "a string",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "dict_type": "an object",
    "list_type": "an array",
    "literal_error": "one of {expected}",
    "string_too_short": "at least {min_length} characters",
    "string_too_long": "at most {max_length} characters",
    "string_pattern_mismatch": "text that matches {pattern}",
    "greater_than_equal": "a number of at least {ge}",
    "less_than_equal": "a number of at most {le}",
    "too_short": "at least {min_length} items",
    "too_long": "at most {max_length} items",
}
MISSING = "required, but missing"
# Error types of our own value types. Their message is complete; UNDECODABLE is answered with a problem type of its own.
MALFORMED = "malformed"
UNDECODABLE = "undecodable"


def explain(error: ValidationError, pointer: str) -> dict[str, str]:
    """The first twenty messages, by RFC 6901 pointer. `pointer` is the place of the checked value in the body."""
    messages: dict[str, str] = {}
    for one in error.errors(include_url=False, include_input=True)[:FIELDS_MAX]:
        path = "".join(f"/{escape(part)}" for part in one["loc"])
        messages.setdefault(pointer + path, _message(one))
    return messages


def by_member_name(fields: Mapping[str, str]) -> dict[str, str]:
    """`fields` by the names of the root's members, on routes where the reference does not use pointers."""
    return {pointer.removeprefix("/"): message for pointer, message in fields.items()}


def validation_error(error: ValidationError, pointer: str) -> BadRequest:
    """The error for a value that does not fit its type: InvalidRequest if every fault is a value that cannot be decoded."""
    undecodable = all(map(_is_undecodable, error.errors(include_url=False)))
    return _error_for(InvalidRequest if undecodable else BadRequest, explain(error, pointer))


def _is_undecodable(one: Any) -> bool:
    """Whether the value has the shape that its schema asks for, but no reader written in Go can hold it."""
    number = one["input"]
    return one["type"] == UNDECODABLE or (
        one["type"] in ("less_than_equal", "greater_than_equal")
        and isinstance(number, int)
        and not -(2**63) <= number < 2**63
    )


class Faults:
    """All faults of one request. Each check runs in a `with` of its own, which collects the fields of the BadRequest it raises."""

    def __init__(self) -> None:
        self.fields: dict[str, str] = {}
        self._kind: type[BadRequest] = InvalidRequest
        """BadRequest if any fault is one of the schema, as if the whole body was checked by its schema before it is decoded."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: object, traceback: object) -> bool:
        if not (isinstance(error, BadRequest) and "field_errors" in error.extra):
            return False
        for pointer, message in cast("dict[str, str]", error.extra["field_errors"]).items():
            self.fields.setdefault(pointer, message)
        if not isinstance(error, InvalidRequest):
            self._kind = BadRequest
        return True

    @property
    def full(self) -> bool:
        """Whether there are as many faults as an answer names."""
        return len(self.fields) >= FIELDS_MAX

    def error(self) -> BadRequest:
        """One error that names all faults."""
        return _error_for(self._kind, dict(islice(self.fields.items(), FIELDS_MAX)))


def rename_pointers(error: BadRequest, rename: Callable[[str], str]) -> BadRequest:
    """`error` with `rename` applied to each pointer. Of two that get the same name the first one's message counts."""
    if "field_errors" not in error.extra:
        return error
    fields = cast("dict[str, str]", error.extra["field_errors"])
    renamed: dict[str, str] = {}
    for pointer, message in fields.items():
        renamed.setdefault(rename(pointer), message)
    return _error_for(type(error), renamed)


def by_line(error: BadRequest) -> BadRequest:
    """`error` of a body with one event a line: its detail names lines, from 1, where its pointers name events, from 0."""
    if "field_errors" not in error.extra:
        return error
    fields = cast("dict[str, str]", error.extra["field_errors"])
    detail = "; ".join(f"{_line(pointer)}: {message}" for pointer, message in fields.items())
    return type(error)(detail, field_errors=fields)


def _line(pointer: str) -> str:
    _, index, *steps = pointer.split("/", 2)
    return f"line {int(index) + 1}" + "".join(f", /{step}" for step in steps)


def bad_fields(fields: dict[str, str]) -> BadRequest:
    """The error that names each wrong field by its JSON pointer."""
    return _error_for(BadRequest, fields)


def _error_for(kind: type[BadRequest], fields: dict[str, str]) -> BadRequest:
    detail = "; ".join(f"{pointer or 'body'}: {message}" for pointer, message in fields.items())
    return kind(detail, field_errors=fields)


def escape(part: object) -> str:
    """One step of a JSON pointer, escaped and cut to a length that fits into a message."""
    text = str(part) if len(str(part)) <= _STEP_MAX else str(part)[:_STEP_MAX] + "…"
    return text.replace("~", "~0").replace("/", "~1")


def excerpt(value: Any) -> str:
    """A value of the request in a message: the start of a scalar, or only the type of an object or array."""
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "an array"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= _EXCERPT_MAX else text[:_EXCERPT_MAX] + "…"


def _message(one: Any) -> str:
    if one["type"] == "missing":
        return MISSING
    if one["type"] == "extra_forbidden":
        return "not a member of this object: leave it out"
    if one["type"] in (MALFORMED, UNDECODABLE):
        return str(one["msg"])
    expected = _EXPECTED.get(one["type"])
    if expected is None:
        return f"{one['msg']}, got {excerpt(one['input'])}"
    actual = f"{len(one['input'])}" if one["type"].startswith("string_too") else excerpt(one["input"])
    return f"expected {expected.format_map(one.get('ctx', {}))}, got {actual}"
