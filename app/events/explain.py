"""What pydantic found, in words for the person who has to mend the request."""

from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any, cast

from pydantic import ValidationError

from app.errors import BadRequest, InvalidRequest

FIELDS_MAX = 20
_SHOWN_MAX = 60
_STEP_MAX = 100

# Pydantic's error types, and what was expected. The names in braces come from the error's context.
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
# Errors of our own leaves. Their message says all; one kind has a problem type of its own.
MALFORMED = "malformed"
UNDECODABLE = "undecodable"


def explain(error: ValidationError, pointer: str) -> dict[str, str]:
    """Messages by RFC 6901 pointer, `pointer` in front; the first twenty."""
    found: dict[str, str] = {}
    for one in error.errors(include_url=False, include_input=True)[:FIELDS_MAX]:
        place = "".join(f"/{escape(part)}" for part in one["loc"])
        found.setdefault(pointer + place, _message(one))
    return found


def plain(fields: Mapping[str, str]) -> dict[str, str]:
    """`fields` by the plain names of the root's members, where the reference has no pointers."""
    return {pointer.removeprefix("/"): said for pointer, said in fields.items()}


def refusal(error: ValidationError, pointer: str) -> BadRequest:
    """The answer to a payload that does not fit its type: InvalidRequest if it fits but for what no decoder takes."""
    kinds = {one["type"] for one in error.errors(include_url=False, include_input=False)}
    return _named(InvalidRequest if kinds == {UNDECODABLE} else BadRequest, explain(error, pointer))


class Faults:
    """All that is wrong with a request, in one reading: each check runs in a `with` of its own, which keeps what it raises."""

    def __init__(self) -> None:
        self.fields: dict[str, str] = {}
        self._kind: type[BadRequest] = InvalidRequest
        """What a schema refuses stands before what no decoder takes, as if all of the body was checked by its schema first."""

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
        """Whether as many were found as an answer names."""
        return len(self.fields) >= FIELDS_MAX

    def error(self) -> BadRequest:
        """One answer for all of them."""
        return _named(self._kind, dict(islice(self.fields.items(), FIELDS_MAX)))


def renamed(error: BadRequest, name: Callable[[str], str]) -> BadRequest:
    """`error` with each pointer as `name` gives it."""
    if "field_errors" not in error.extra:
        return error
    fields = cast("dict[str, str]", error.extra["field_errors"])
    return _named(type(error), {name(pointer): message for pointer, message in fields.items()})


def bad_fields(fields: dict[str, str]) -> BadRequest:
    """The answer that names each offending field by its JSON pointer."""
    return _named(BadRequest, fields)


def _named(kind: type[BadRequest], fields: dict[str, str]) -> BadRequest:
    detail = "; ".join(f"{pointer or 'body'}: {message}" for pointer, message in fields.items())
    return kind(detail, field_errors=fields)


def escape(part: object) -> str:
    """One step of a JSON pointer."""
    text = str(part) if len(str(part)) <= _STEP_MAX else str(part)[:_STEP_MAX] + "…"
    return text.replace("~", "~0").replace("/", "~1")


def shown(value: Any) -> str:
    """A value of the request as a message names it."""
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "an array"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= _SHOWN_MAX else text[:_SHOWN_MAX] + "…"


def _message(one: Any) -> str:
    if one["type"] == "missing":
        return "required, but missing"
    if one["type"] == "extra_forbidden":
        return "not a member of this object: leave it out"
    if one["type"] in (MALFORMED, UNDECODABLE):
        return str(one["msg"])
    expected = _EXPECTED.get(one["type"])
    if expected is None:
        return f"{one['msg']}, got {shown(one['input'])}"
    came = f"{len(one['input'])}" if one["type"].startswith("string_too") else shown(one["input"])
    return f"expected {expected.format_map(one.get('ctx', {}))}, got {came}"
