"""The event catalog: which event types exist, and what the payload of each contains. Pure data and checks.

One module per producer (gateway.py, aiagent.py, ...) with its payload classes and nothing else. The Literal of a class's
event_type lists the types that the class serves; its docstring is their meaning. `CATEGORY` is the category in which the
producer sends them, `OTHER_CATEGORIES` names the classes that are sent in another one.

A `Catalog` checks a payload by the payload's own event_type. A payload without one belongs to the free-form generation.

self_events.py  the events that the service writes about itself; nobody else may send them
kubernetes.py   the events that a receiver makes of audit events of Kubernetes; nobody may post them
freeform.py     the free-form generation of December 2025: its names, and the keys that were seen
value_types.py  types of the values in payloads: counts, date-times, UUIDs
shared.py       objects that occur in payloads of several producers
examples.py     a valid example and the JSON Schema of each payload class
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import lru_cache, partial
from importlib import import_module
from types import ModuleType
from typing import Any, Literal, NoReturn, get_args

from pydantic import TypeAdapter, ValidationError
from typing_extensions import is_typeddict

from app.events import own
from app.events.catalog import self_events
from app.events.catalog.freeform import CATEGORIES, FREEFORM, MEANING
from app.events.envelope import Category
from app.events.explain import bad_fields, excerpt, validation_error
from app.events.foreign import Default
from app.events.kubernetes import STAGES
from app.events.kubernetes import Category as KubernetesCategory

Check = Callable[[Any], object]
Generation = Literal["head", "both", "dec-2025", "custom", "own", "received"]
_PRODUCERS = tuple(
    import_module(f"{__name__}.{producer}")
    for producer in (
        "actiontype",
        "agentsession",
        "aiagent",
        "aianalysis",
        "apifrontend",
        "authwebhook",
        "datastorage",
        "effectiveness",
        "gateway",
        "kubernetes",
        "notification",
        "orchestrator",
        "remediationworkflow",
        "self_events",
        "signalprocessing",
        "webhook",
        "workflow",
        "workflowexecution",
    )
)
NAME_MAX = 100
DIALECT = "https://json-schema.org/draft/2020-12/schema"
"""The `$schema` of every payload's JSON Schema."""
_COMPARED_CHARACTERS_MAX = 60


@dataclass(frozen=True, slots=True)
class EventType:
    """One event type of the catalog."""

    name: str
    category: Category | KubernetesCategory | None
    """The category in which its producer sends it; None if no producer does. Other categories are accepted too."""
    meaning: str
    payload: Any = None
    """The class of its payload; None if it has only the free form."""

    @property
    def producer(self) -> str:
        """The first part of the name. The agent's oldest names have only one part."""
        first, dot, _ = self.name.partition(".")
        return first if dot else "aiagent"

    @property
    def generation(self) -> Generation:
        if self.payload is None:
            return "dec-2025"
        if self.name in SELF_EVENT_TYPES:
            return "own"
        if self.name in RECEIVED_TYPES:
            return "received"
        return "both" if self.name in FREEFORM else "head"


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomType(EventType):
    """An event type that an operator has registered with a JSON Schema."""

    schema: dict[str, Any]
    example: dict[str, Any] | None
    check: Check
    defaults: Mapping[str, Default] = field(default_factory=dict)
    """By attribute of CloudEvents: where it comes from if an event of the type does not have it."""

    @property
    def producer(self) -> str:
        return self.name.partition(".")[0]

    @property
    def generation(self) -> Generation:
        return "custom"


def _classes(producer: ModuleType) -> Iterator[Any]:
    """The payload classes of a producer's module, in their order there."""
    for value in vars(producer).values():
        if is_typeddict(value) and value.__module__ == producer.__name__ and "event_type" in value.__annotations__:
            yield value


def _names_served_by(payload: Any) -> tuple[str, ...]:
    return get_args(payload.__annotations__["event_type"])


def _typed_event_types() -> Iterator[EventType]:
    for producer in _PRODUCERS:
        others = getattr(producer, "OTHER_CATEGORIES", {})
        for payload in _classes(producer):
            category = others.get(payload, producer.CATEGORY)
            meaning = " ".join(payload.__doc__.split())
            for name in _names_served_by(payload):
                yield EventType(name, category, meaning, payload)


class _PayloadCheck:
    """The check of a payload class, built for the first payload: all of them take a tenth of the service's start, and few are needed.

    Threads that are the first at the same time build it more than once, to the same effect.
    """

    __slots__ = ("_check", "_payload")

    def __init__(self, payload: Any) -> None:
        self._payload = payload
        self._check: Check | None = None

    def __call__(self, payload: Any) -> object:
        if self._check is None:
            self._check = partial(TypeAdapter(self._payload).validator.validate_python, strict=True)
        return self._check(payload)


def _payload_checks() -> Iterator[tuple[str, Check]]:
    for payload in PAYLOADS:
        check = _PayloadCheck(payload)
        yield from ((name, check) for name in _names_served_by(payload))


PAYLOADS = tuple(payload for producer in _PRODUCERS for payload in _classes(producer))
"""Every payload class."""
EVENT_TYPES = {name: EventType(name, CATEGORIES[name.partition(".")[0]], MEANING) for name in FREEFORM}
EVENT_TYPES |= {one.name: one for one in _typed_event_types()}
"""Every built-in event type by its name, typed or free-form."""
SELF_EVENT_TYPES = frozenset(name for payload in _classes(self_events) for name in _names_served_by(payload))
"""Names of the self events, which only the service itself writes."""
RECEIVED_TYPES = frozenset(STAGES.values())
"""Names of the events that a receiver makes of what others send; nobody posts them."""
PAYLOAD_CHECKS = dict(_payload_checks())
"""Every typed name with the check of its payload. The result of a check is not used: the payload is stored as sent."""


class Catalog:
    """The event types that one service knows: the built-in ones and the operator's `custom` ones.

    `accept_unknown`: whether events of unknown types are accepted, with any object as payload. `allow_self_events`: whether
    self events and their correlation ids are, which is so only where the service writes them.
    """

    def __init__(
        self, custom: Sequence[CustomType] = (), *, accept_unknown: bool = False, allow_self_events: bool = False
    ) -> None:
        self.types: dict[str, EventType] = EVENT_TYPES | {one.name: one for one in custom}
        checks = PAYLOAD_CHECKS | {one.name: one.check for one in custom}
        self.typed = {name: (self.types[name], check) for name, check in checks.items()}
        """By every name that is valid in a payload: the type, and the check of the payload."""
        # To find them takes milliseconds, and a batch may have one wrong name a thousand times.
        self._nearest = lru_cache(256)(lambda name: nearest(name, self.typed))
        self._accept_unknown = accept_unknown
        self._reserved = frozenset() if allow_self_events else SELF_EVENT_TYPES | RECEIVED_TYPES
        self._allows_self_events = allow_self_events

    def check_correlation_id(self, correlation_id: str, pointer: str) -> None:
        """BadRequest for one of the service's own correlation ids. `pointer` is its place in the body."""
        if correlation_id.startswith(own.CORRELATIONS) and not self._allows_self_events:
            raise bad_fields({pointer: own.RESERVED})

    def check_payload(self, outer_type: str, payload: dict[str, Any], pointer: str) -> EventType | None:
        """The type of `payload`, or None for an unknown type that is accepted. BadRequest if it does not fit its type.

        `pointer` is the place of the payload in the body.
        """
        inner_type = payload.get("event_type", _ABSENT)
        if outer_type in self._reserved or (isinstance(inner_type, str) and inner_type in self._reserved):
            name = inner_type if inner_type in self._reserved else outer_type
            by = "a receiver of the service" if name in RECEIVED_TYPES else "the service itself"
            raise bad_fields({pointer + "/event_type": f"only {by} writes events of this type"})
        if inner_type is _ABSENT:
            if outer_type in FREEFORM:
                return self.types[outer_type]
            if not self._accept_unknown:
                self._raise_unknown_freeform(pointer, outer_type)
            return None
        known = self.typed.get(inner_type) if isinstance(inner_type, str) else None
        if known is None:
            if not (self._accept_unknown and isinstance(inner_type, str)):
                self._raise_unknown_type(pointer, inner_type)
            return None
        event_type, check = known
        try:
            check(payload)
        except ValidationError as error:
            raise validation_error(error, pointer) from None
        return event_type

    def _raise_unknown_freeform(self, pointer: str, outer_type: str) -> NoReturn:
        """The payload has no event_type, and that of the envelope is not a free-form name."""
        message = (
            f"event_data has no event_type, and the outer event_type {excerpt(outer_type)} is not one of the free-form "
            f"names: expected event_data.event_type such as {', '.join(self._nearest(outer_type[:_COMPARED_CHARACTERS_MAX]))}"
        )
        raise bad_fields({pointer + "/event_type": message})

    def _raise_unknown_type(self, pointer: str, inner_type: Any) -> NoReturn:
        near = self._nearest(inner_type[:_COMPARED_CHARACTERS_MAX] if isinstance(inner_type, str) else "")
        message = f"expected a known event type such as {', '.join(near)}, got {excerpt(inner_type)}"
        raise bad_fields({pointer + "/event_type": message})


_ABSENT = object()


def nearest(name: str, names: Iterable[str]) -> list[str]:
    """The three of `names` that are most similar to `name`."""
    return get_close_matches(name[:_COMPARED_CHARACTERS_MAX].lower(), names, n=3, cutoff=0)
