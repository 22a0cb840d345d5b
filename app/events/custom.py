"""An operator's own event types: JSON Schema files, checked when the service starts (docs/custom-types.md).

Nothing is ever fetched: a schema can refer only to parts of its own file. Payloads are checked after the limits of size and
depth; the operator answers for what a schema costs within them.
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
from app.events.catalog import DIALECT, EVENT_TYPES, NAME_MAX, Check, CustomType, value_types
from app.events.cloudevents import ATTRIBUTE_CHECKS
from app.events.envelope import Category
from app.events.explain import FIELDS_MAX, MALFORMED, escape, excerpt, explain
from app.events.foreign import KEYWORD, parse_defaults

_MESSAGE_MAX = 200

Schema = dict[str, Any]


def custom_types(files: Mapping[str, bytes]) -> list[CustomType]:
    """The types that these files (text by name) register. Fatal names the file that cannot be registered, and why."""
    registered: dict[str, tuple[str, CustomType]] = {}
    for file, text in sorted(files.items()):
        try:
            for one in _types(PurePath(file).stem, text):
                if one.name in EVENT_TYPES:
                    raise _UnusableFile(f"{one.name} is a built-in type")
                if one.name in registered:
                    raise _UnusableFile(f"{one.name} is registered in {registered[one.name][0]} too")
                registered[one.name] = file, one
        except (ValueError, RecursionError) as error:
            raise Fatal(f"The event type in {file} cannot be registered: {error}") from None
    return [one for _, one in registered.values()]


class _UnusableFile(ValueError):
    """A file that cannot be registered; the message is the reason."""


def _types(stem: str, text: bytes) -> Iterator[CustomType]:
    try:
        schema = parse(text).value
    except BadRequest as error:
        raise _UnusableFile(error.detail.removeprefix("body: ")) from None
    if not isinstance(schema, dict):
        raise _UnusableFile("expected a JSON Schema that is an object")
    if schema.pop("$schema", DIALECT) != DIALECT:
        raise _UnusableFile(f"expected {DIALECT} as $schema")
    _check_schema(schema, "")
    _check_references(schema)
    category = schema.get("x-category")
    if category not in (None, *get_args(Category)):
        raise _UnusableFile(
            f"expected x-category to be one of {', '.join(get_args(Category))}, got {excerpt(category)}"
        )
    defaults = parse_defaults(schema.get(KEYWORD, {}), ATTRIBUTE_CHECKS)
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
            defaults=defaults,
        )


def _names(schema: Schema, stem: str) -> list[str]:
    """The names that the schema allows as event_type, else the name of its file."""
    member = schema.get("properties", {}).get("event_type")
    declared = member if isinstance(member, dict) else {}
    names = [declared["const"]] if "const" in declared else declared.get("enum", [stem])
    for name in names:
        if not isinstance(name, str) or not 1 <= len(name) <= NAME_MAX:
            raise _UnusableFile(f"expected a name of 1 to {NAME_MAX} characters, got {excerpt(name)}")
    return list(dict.fromkeys(names))


def _examples(schema: Schema, names: list[str], check: Check) -> dict[str, Schema]:
    """The first example of each name. Every example in the file has to be valid."""
    first: dict[str, Schema] = {}
    for number, example in enumerate(schema.get("examples", ())):
        if not isinstance(example, dict) or example.get("event_type") not in names:
            raise _UnusableFile(f"/examples/{number}: expected an object with an event_type of {', '.join(names)}")
        try:
            check(example)
        except ValidationError as error:
            faults = "; ".join(f"{place}: {text}" for place, text in explain(error, f"/examples/{number}").items())
            raise _UnusableFile(faults) from None
        first.setdefault(example["event_type"], example)
    return first


def _check_schema(schema: Any, place: str) -> None:
    try:
        _Validator.check_schema(schema)
    except SchemaError as error:
        pointer = place + "".join(f"/{escape(step)}" for step in error.absolute_path)
        raise _UnusableFile(f"not a JSON Schema at {pointer or 'its root'}: {error.message[:_MESSAGE_MAX]}") from None


_SAME_VALUE_KEYWORDS = {"allOf", "anyOf", "oneOf", "not", "if", "then", "else", "dependentSchemas"}
"""Keywords whose schemas apply to the same value: a cycle of these never ends, while any other descends into the payload."""


def _check_references(root: Schema) -> None:
    """Follow every reference. None may lead out of the file, to something that is not a schema, or in a cycle."""
    same_value_edges: dict[int, list[int]] = {}
    first = DRAFT202012.create_resource(root)
    pending = [(first, Registry().resolver_with_root(first))]
    for resource, outer in pending:
        node = resource.contents
        if not isinstance(node, dict) or id(node) in same_value_edges:
            continue
        if "$schema" in node:
            raise _UnusableFile("expected $schema at its root only")
        resolver = outer.in_subresource(resource)
        edges = same_value_edges[id(node)] = [
            id(one) for key in _SAME_VALUE_KEYWORDS & node.keys() for one in _subschemas(node[key])
        ]
        for reference in (node[key] for key in ("$ref", "$dynamicRef") if key in node):
            try:
                target = resolver.lookup(reference)
            except (Unresolvable, ValueError, TypeError):
                raise _UnusableFile(f"$ref {excerpt(reference)} leads nowhere within this file") from None
            _check_schema(target.contents, reference)
            edges.append(id(target.contents))
            pending.append((DRAFT202012.create_resource(target.contents), target.resolver))
        pending += [(below, resolver) for below in resource.subresources()]
    try:
        TopologicalSorter(same_value_edges).prepare()
    except CycleError:
        raise _UnusableFile("a $ref leads back to itself") from None


def _subschemas(value: Any) -> list[Any]:
    """The schemas in the value of one keyword."""
    if isinstance(value, list):
        return value
    return list(value.values()) if isinstance(value, dict) else []


def _check(schema: Schema) -> Check:
    """A check of a payload by `schema`. It raises pydantic's ValidationError, as the built-in checks do."""
    validator = _Validator(schema, registry=Registry(), format_checker=_FORMATS)

    def check(payload: Any) -> None:
        try:
            errors = [_error_details(one) for one in islice(validator.iter_errors(payload), FIELDS_MAX)]
        except RecursionError:
            errors = [_malformed((), "expected less nesting: its schema cannot be followed any deeper", payload)]
        if errors:
            raise ValidationError.from_exception_data("payload", errors)

    return check


def _error_details(error: Any) -> InitErrorDetails:
    """An error of jsonschema as one of pydantic. If no alternative fits, the error of the one that fits best."""
    error = best_match([error])
    place = tuple(error.absolute_path)
    if error.validator == "format":
        return InitErrorDetails(type=error.cause, loc=place, input=error.instance)
    expected = _EXPECTED.get(error.validator)
    if expected is None:
        return _malformed(place, error.message[:_MESSAGE_MAX], error.instance)
    wanted = error.validator_value
    if isinstance(wanted, list):
        wanted = ", ".join(str(excerpt(one)) for one in wanted) if error.validator == "enum" else " or ".join(wanted)
    return _malformed(place, f"expected {expected.format(wanted)}, got {excerpt(error.instance)}", error.instance)


def _malformed(place: tuple[Any, ...], message: str, value: Any) -> InitErrorDetails:
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

# Our own keywords: an error is reported at the member instead of its object, numbers are compared exactly even if they are not
# doubles, and no work grows with the square of a payload.

_SchemaErrors = Iterator[jsonschema.ValidationError]
_STANDARD = jsonschema.Draft202012Validator.VALIDATORS


def _required(validator: Any, names: list[str], value: Any, _schema: object) -> _SchemaErrors:
    if validator.is_type(value, "object"):
        yield from (jsonschema.ValidationError("required, but missing", path=[n]) for n in names if n not in value)


def _properties(validator: Any, members: Schema, value: Any, schema: Schema) -> _SchemaErrors:
    if validator.is_type(value, "object"):
        yield from _forbidden_members(name for name, one in members.items() if one is False and name in value)
        others = {name: one for name, one in members.items() if one is not False}
        yield from _STANDARD["properties"](validator, others, value, schema)


def _additional_properties(validator: Any, wanted: Any, value: Any, schema: Schema) -> _SchemaErrors:
    if wanted is False and "patternProperties" not in schema and validator.is_type(value, "object"):
        yield from _forbidden_members(name for name in value if name not in schema.get("properties", {}))
    else:
        yield from _STANDARD["additionalProperties"](validator, wanted, value, schema)


def _forbidden_members(names: Iterable[str]) -> _SchemaErrors:
    return (jsonschema.ValidationError("not a member of this object: leave it out", path=[name]) for name in names)


def _unique_items(validator: Any, wanted: bool, value: Any, _schema: object) -> _SchemaErrors:
    if wanted and validator.is_type(value, "array") and len({canonical(item) for item in value}) < len(value):
        yield jsonschema.ValidationError("")


def _multiple_of(validator: Any, step: Any, value: Any, _schema: object) -> _SchemaErrors:
    if validator.is_type(value, "number") and Fraction(_exact(value)) % Fraction(_exact(step)):
        yield jsonschema.ValidationError("")


def _bound(fits: Callable[[Decimal, Decimal], bool]) -> Callable[..., _SchemaErrors]:
    def keyword(validator: Any, limit: Any, value: Any, _schema: object) -> _SchemaErrors:
        if validator.is_type(value, "number") and not fits(_exact(value), _exact(limit)):
            yield jsonschema.ValidationError("")

    return keyword


def _exact(number: float | Decimal) -> Decimal:
    return Decimal(repr(number)) if isinstance(number, float) else Decimal(number)


_Validator = jsonschema.validators.extend(  # type: ignore[no-untyped-call]  # untyped in the stubs
    jsonschema.Draft202012Validator,
    {
        "required": _required,
        "properties": _properties,
        "additionalProperties": _additional_properties,
        "uniqueItems": _unique_items,
        "multipleOf": _multiple_of,
        "minimum": _bound(operator.ge),
        "maximum": _bound(operator.le),
        "exclusiveMinimum": _bound(operator.gt),
        "exclusiveMaximum": _bound(operator.lt),
    },
)
_FORMATS = jsonschema.FormatChecker(())
for _format, _check_text in (("date-time", value_types.date_time_text), ("uuid", value_types.uuid_text)):
    _FORMATS.checks(_format, PydanticCustomError)(
        lambda value, check_text=_check_text: not isinstance(value, str) or bool(check_text(value))
    )
