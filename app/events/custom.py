"""An operator's own event types: JSON Schema files, checked when the service starts (docs/custom-types.md).

Nothing is ever fetched: what a schema refers to stands in its own file. Payloads are checked behind the limits of size and
depth; what a schema makes of the rest is its operator's business.
"""

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from decimal import Decimal
from fractions import Fraction
from graphlib import CycleError, TopologicalSorter
from itertools import islice
from pathlib import PurePath
from typing import Any, get_args

import jsonschema
from jsonschema.exceptions import SchemaError, best_match
from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError
from referencing import Registry
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from app.errors import BadRequest, Fatal
from app.events.canonical import canonical, parse
from app.events.catalog import DIALECT, EVENT_TYPES, NAME_MAX, Check, CustomType, leaves
from app.events.envelope import Category
from app.events.explain import FIELDS_MAX, MALFORMED, escape, explain, shown

_MESSAGE_MAX = 200

Schema = dict[str, Any]


def custom_types(files: Mapping[str, bytes]) -> list[CustomType]:
    """The types of these files. Fatal says which file is no good, and why."""
    found: dict[str, tuple[str, CustomType]] = {}
    for file, text in sorted(files.items()):
        try:
            for one in _types(PurePath(file).stem, text):
                if one.name in EVENT_TYPES:
                    raise _UnfitError(f"{one.name} is a built-in type")
                if one.name in found:
                    raise _UnfitError(f"{one.name} stands in {found[one.name][0]} too")
                found[one.name] = file, one
        except (ValueError, RecursionError) as error:
            raise Fatal(f"The event type in {file} cannot be registered: {error}") from None
    return [one for _, one in found.values()]


class _UnfitError(ValueError):
    """Why a file is refused."""


def _types(stem: str, text: bytes) -> Iterator[CustomType]:
    try:
        schema = parse(text).value
    except BadRequest as error:
        raise _UnfitError(error.detail.removeprefix("body: ")) from None
    if not isinstance(schema, dict):
        raise _UnfitError("expected a JSON Schema that is an object")
    if schema.pop("$schema", DIALECT) != DIALECT:
        raise _UnfitError(f"expected {DIALECT} as $schema")
    _check_schema(schema, "")
    _check_references(schema)
    category = schema.get("x-category")
    if category not in (None, *get_args(Category)):
        raise _UnfitError(f"expected x-category to be one of {', '.join(get_args(Category))}, got {shown(category)}")
    names = _names(schema, stem)
    check = _check(schema)
    examples = _examples(schema, names, check)
    for name in names:
        properties = {"event_type": {"const": name}} | schema.get("properties", {})
        yield CustomType(
            name=name,
            category=category,
            meaning=" ".join(schema.get("description", f"Registered by the operator in {stem}.json.").split()),
            schema={"$schema": DIALECT} | schema | {"properties": properties},
            example=examples.get(name),
            check=check,
        )


def _names(schema: Schema, stem: str) -> list[str]:
    """What the schema wants as event_type, else the name of its file."""
    member = schema.get("properties", {}).get("event_type")
    stated = member if isinstance(member, dict) else {}
    names = [stated["const"]] if "const" in stated else stated.get("enum", [stem])
    for name in names:
        if not isinstance(name, str) or not 1 <= len(name) <= NAME_MAX:
            raise _UnfitError(f"expected a name of 1 to {NAME_MAX} characters, got {shown(name)}")
    return list(dict.fromkeys(names))


def _examples(schema: Schema, names: list[str], check: Check) -> dict[str, Schema]:
    """The first example of each name. All of them have to be valid."""
    first: dict[str, Schema] = {}
    for number, example in enumerate(schema.get("examples", ())):
        if not isinstance(example, dict) or example.get("event_type") not in names:
            raise _UnfitError(f"/examples/{number}: expected an object with an event_type of {', '.join(names)}")
        try:
            check(example)
        except ValidationError as error:
            told = "; ".join(f"{place}: {text}" for place, text in explain(error, f"/examples/{number}").items())
            raise _UnfitError(told) from None
        first.setdefault(example["event_type"], example)
    return first


def _check_schema(schema: Any, place: str) -> None:
    try:
        _Validator.check_schema(schema)
    except SchemaError as error:
        pointer = place + "".join(f"/{escape(step)}" for step in error.absolute_path)
        raise _UnfitError(f"no JSON Schema at {pointer or 'its root'}: {error.message[:_MESSAGE_MAX]}") from None


_IN_PLACE = {"allOf", "anyOf", "oneOf", "not", "if", "then", "else", "dependentSchemas"}
"""Keywords whose schemas look at the same value: a ring of these has no end, while any other goes down the payload."""


def _check_references(root: Schema) -> None:
    """Follow every reference, so that none leads outside of the file, to something else than a schema, or in a ring."""
    same_value: dict[int, list[int]] = {}
    first = DRAFT202012.create_resource(root)
    pending = [(first, Registry().resolver_with_root(first))]
    for resource, outer in pending:
        node = resource.contents
        if not isinstance(node, dict) or id(node) in same_value:
            continue
        if "$schema" in node:
            raise _UnfitError("expected $schema at its root only")
        resolver = outer.in_subresource(resource)
        edges = same_value[id(node)] = [id(one) for key in _IN_PLACE & node.keys() for one in _schemas(node[key])]
        for reference in (node[key] for key in ("$ref", "$dynamicRef") if key in node):
            try:
                target = resolver.lookup(reference)
            except (Unresolvable, ValueError, TypeError):
                raise _UnfitError(f"$ref {shown(reference)} leads nowhere within this file") from None
            _check_schema(target.contents, reference)
            edges.append(id(target.contents))
            pending.append((DRAFT202012.create_resource(target.contents), target.resolver))
        pending += [(below, resolver) for below in resource.subresources()]
    try:
        TopologicalSorter(same_value).prepare()
    except CycleError:
        raise _UnfitError("a $ref leads back to itself") from None


def _schemas(value: Any) -> list[Any]:
    """The schemas that stand under one keyword."""
    if isinstance(value, list):
        return value
    return list(value.values()) if isinstance(value, dict) else []


def _check(schema: Schema) -> Check:
    """What checks a payload by `schema`, and fails as the built-in checks do."""
    validator = _Validator(schema, registry=Registry(), format_checker=_FORMATS)

    def check(payload: Any) -> None:
        try:
            errors = [_line(one) for one in islice(validator.iter_errors(payload), FIELDS_MAX)]
        except RecursionError:
            errors = [_fault((), "expected less nesting: its schema cannot be followed any deeper", payload)]
        if errors:
            raise ValidationError.from_exception_data("payload", errors)

    return check


def _line(error: Any) -> InitErrorDetails:
    """One error of jsonschema as one of pydantic; of several alternatives, what is wrong with the closest."""
    error = best_match([error])
    place = tuple(error.absolute_path)
    if error.validator == "format":
        return InitErrorDetails(type=error.cause, loc=place, input=error.instance)
    expected = _EXPECTED.get(error.validator)
    if expected is None:
        return _fault(place, error.message[:_MESSAGE_MAX], error.instance)
    wanted = error.validator_value
    if isinstance(wanted, list):
        wanted = ", ".join(str(shown(one)) for one in wanted) if error.validator == "enum" else " or ".join(wanted)
    return _fault(place, f"expected {expected.format(wanted)}, got {shown(error.instance)}", error.instance)


def _fault(place: tuple[Any, ...], message: str, value: Any) -> InitErrorDetails:
    return InitErrorDetails(type=PydanticCustomError(MALFORMED, "{m}", {"m": message}), loc=place, input=value)


_EXPECTED = {
    "type": "{}",
    "enum": "one of {}",
    "const": "{!r}",
    "pattern": "text that matches {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minimum": "a number of at least {}",
    "maximum": "a number of at most {}",
    "exclusiveMinimum": "a number above {}",
    "exclusiveMaximum": "a number below {}",
    "multipleOf": "a multiple of {}",
    "minItems": "at least {} items",
    "maxItems": "at most {} items",
    "uniqueItems": "items that differ",
}

# Keywords of our own: an error at the member itself instead of its object, numbers that are no doubles, and no work that grows
# with the square of a payload.

_Errors = Iterator[jsonschema.ValidationError]
_STANDARD = jsonschema.Draft202012Validator.VALIDATORS


def _required(validator: Any, names: list[str], value: Any, _schema: object) -> _Errors:
    if validator.is_type(value, "object"):
        yield from (jsonschema.ValidationError("required, but missing", path=[n]) for n in names if n not in value)


def _properties(validator: Any, members: Schema, value: Any, schema: Schema) -> _Errors:
    if validator.is_type(value, "object"):
        barred = [name for name, one in members.items() if one is False and name in value]
        yield from _left_over(barred)
        others = {name: one for name, one in members.items() if one is not False}
        yield from _STANDARD["properties"](validator, others, value, schema)


def _additional(validator: Any, wanted: Any, value: Any, schema: Schema) -> _Errors:
    if wanted is False and "patternProperties" not in schema and validator.is_type(value, "object"):
        yield from _left_over(name for name in value if name not in schema.get("properties", {}))
    else:
        yield from _STANDARD["additionalProperties"](validator, wanted, value, schema)


def _left_over(names: Iterable[str]) -> _Errors:
    return (jsonschema.ValidationError("not a member of this object: leave it out", path=[name]) for name in names)


def _unique(validator: Any, wanted: bool, value: Any, _schema: object) -> _Errors:
    if wanted and validator.is_type(value, "array") and len({canonical(item) for item in value}) < len(value):
        yield jsonschema.ValidationError("")


def _multiple(validator: Any, step: Any, value: Any, _schema: object) -> _Errors:
    if validator.is_type(value, "number") and Fraction(_exact(value)) % Fraction(_exact(step)):
        yield jsonschema.ValidationError("")


def _bound(fits: Callable[[Decimal, Decimal], bool]) -> Callable[..., _Errors]:
    def keyword(validator: Any, limit: Any, value: Any, _schema: object) -> _Errors:
        if validator.is_type(value, "number") and not fits(_exact(value), _exact(limit)):
            yield jsonschema.ValidationError("")

    return keyword


def _exact(number: float | Decimal) -> Decimal:
    return Decimal(repr(number)) if isinstance(number, float) else Decimal(number)


_Validator = jsonschema.validators.extend(  # type: ignore[no-untyped-call]  # the stubs leave it open
    jsonschema.Draft202012Validator,
    {
        "required": _required,
        "properties": _properties,
        "additionalProperties": _additional,
        "uniqueItems": _unique,
        "multipleOf": _multiple,
        "minimum": _bound(operator.ge),
        "maximum": _bound(operator.le),
        "exclusiveMinimum": _bound(operator.gt),
        "exclusiveMaximum": _bound(operator.lt),
    },
)
_FORMATS = jsonschema.FormatChecker(())
for _format, _takes in (("date-time", leaves.date_time), ("uuid", leaves.uuid)):
    _FORMATS.checks(_format, PydanticCustomError)(
        lambda value, takes=_takes: not isinstance(value, str) or bool(takes(value))
    )
