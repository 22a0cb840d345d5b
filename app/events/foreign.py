"""What the CloudEvents of others lack of an audit event, taken from what they have (docs/custom-types.md, `x-cloudevents`).

For each attribute of docs/cloudevents.md that an event of the type does not have: a constant, or a value at a pointer into the event
itself, perhaps by a table of what it means.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from app.events.explain import excerpt, explain

KEYWORD = "x-cloudevents"
_POINTER = re.compile(r"/data(?:/(?:[^/~]|~[01])*)+|/[a-z0-9]+", re.DOTALL)
_INDEX = re.compile(r"0|[1-9][0-9]{0,5}", re.ASCII)
_CASES = {"from", "values", "else"}


@dataclass(frozen=True, slots=True)
class Default:
    """Where an attribute comes from that the event does not have."""

    const: Any = None
    pointers: tuple[str, ...] = ()
    """JSON Pointers into the CloudEvent: the first one counts that leads to a text, a number or a boolean."""
    values: Mapping[str, Any] | None = None
    """What the text there stands for; None: itself."""
    otherwise: Any = None

    def of(self, event: Mapping[str, Any]) -> Any:
        """The value for an event; None if it has nothing of what is named."""
        if not self.pointers:
            return self.const
        found = next((value for one in self.pointers if (value := _at(event, one)) is not None), None)
        if self.values is not None and found is not None:
            found = self.values.get(found)
        return self.otherwise if found is None else found


def parse_defaults(declared: Any, check: Mapping[str, Any]) -> dict[str, Default]:
    """The defaults by attribute, as a type's file declares them. `check` has by attribute what validates a value of it.

    ValueError names what is wrong, and where.
    """
    if not isinstance(declared, dict):
        raise ValueError(f"expected {KEYWORD} to be an object, got {excerpt(declared)}")  # noqa: TRY004 - a file's content
    defaults = {}
    for attribute, rule in declared.items():
        if attribute not in check:
            raise ValueError(f"/{KEYWORD}: {excerpt(attribute)} is none of {', '.join(sorted(check))}")
        try:
            default = _parse(rule)
            for value in _constants(default):
                check[attribute](value)
        except ValidationError as error:
            raise ValueError(f"/{KEYWORD}/{attribute}: {'; '.join(explain(error, '').values())}") from None
        except ValueError as error:
            raise ValueError(f"/{KEYWORD}/{attribute}: {error}") from None
        defaults[attribute] = default
    return defaults


def _parse(rule: Any) -> Default:
    if isinstance(rule, dict) and set(rule) == {"const"} and rule["const"] is not None:
        return Default(const=rule["const"])
    if not isinstance(rule, dict) or "from" not in rule or rule.keys() - _CASES:
        raise ValueError('expected {"const": …}, or {"from": …} with or without "values" and "else"')
    pointers = rule["from"] if isinstance(rule["from"], list) else [rule["from"]]
    for pointer in pointers:
        if not isinstance(pointer, str) or _POINTER.fullmatch(pointer) is None:
            raise ValueError(
                f"expected a JSON Pointer to an attribute (/subject) or into the data (/data/name), got {excerpt(pointer)}"
            )
    values = rule.get("values")
    if not pointers or not (values is None or (isinstance(values, dict) and values)):
        raise ValueError("expected at least one pointer, and values, if any, as an object that is not empty")
    return Default(None, tuple(pointers), values, rule.get("else"))


def _constants(default: Default) -> Iterator[Any]:
    if not default.pointers:
        yield default.const
    yield from (default.values or {}).values()
    if default.otherwise is not None:
        yield default.otherwise


def _at(event: Mapping[str, Any], pointer: str) -> str | None:
    """The text at a pointer, of a number or a boolean as JSON has it; None where there is nothing, or something else."""
    value: Any = event
    for step in pointer[1:].split("/"):
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(value, Mapping):
            value = value.get(name)
        elif isinstance(value, list) and _INDEX.fullmatch(name) and int(name) < len(value):
            value = value[int(name)]
        else:
            return None
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int) else value if isinstance(value, str) and value else None
