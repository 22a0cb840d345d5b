"""The event catalog: what each type's payload holds. A file for each producer, payload classes and nothing else.

A class says it all: the Literal of its event_type lists the types it serves, its docstring what they mean. Beside the
classes a file holds the category in which they are sent, and which classes are sent in another.

A `Catalog` decides by the payload's own event_type; without one, the event is of the free-form generation.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from types import ModuleType
from typing import Any, Literal, NoReturn, get_args

from pydantic import TypeAdapter, ValidationError
from typing_extensions import is_typeddict

from app.events.catalog import (
    actiontype,
    agentsession,
    aiagent,
    aianalysis,
    apifrontend,
    authwebhook,
    datastorage,
    effectiveness,
    gateway,
    notification,
    orchestrator,
    own,
    remediationworkflow,
    signalprocessing,
    webhook,
    workflow,
    workflowexecution,
)
from app.events.catalog.freeform import CATEGORIES, FREEFORM, MEANING
from app.events.envelope import Category
from app.events.explain import bad_fields, refusal, shown

Check = Callable[[Any], object]
Generation = Literal["head", "both", "dec-2025", "custom", "own"]
_PRODUCERS = (
    actiontype,
    agentsession,
    aiagent,
    aianalysis,
    apifrontend,
    authwebhook,
    datastorage,
    effectiveness,
    gateway,
    notification,
    orchestrator,
    own,
    remediationworkflow,
    signalprocessing,
    webhook,
    workflow,
    workflowexecution,
)
NAME_MAX = 100
DIALECT = "https://json-schema.org/draft/2020-12/schema"
"""Of every payload's JSON Schema."""
_COMPARED_MAX = 60


@dataclass(frozen=True, slots=True)
class EventType:
    """What the catalog says of one name."""

    name: str
    category: Category | None
    """The category in which its producer sends it; None when nothing sends it. Others are accepted too."""
    meaning: str
    payload: Any = None
    """The class of its payload; None when it has only the free form."""

    @property
    def producer(self) -> str:
        """The first part of the name; the agent's oldest names came without one."""
        first, dot, _ = self.name.partition(".")
        return first if dot else "aiagent"

    @property
    def generation(self) -> Generation:
        if self.payload is None:
            return "dec-2025"
        if self.name in OWN:
            return "own"
        return "both" if self.name in FREEFORM else "head"


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomType(EventType):
    """A type that an operator has registered with a JSON Schema."""

    schema: dict[str, Any]
    example: dict[str, Any] | None
    check: Check

    @property
    def producer(self) -> str:
        return self.name.partition(".")[0]

    @property
    def generation(self) -> Generation:
        return "custom"


def _classes(producer: ModuleType) -> Iterator[Any]:
    """The payload classes of a producer's file, in its order."""
    for one in vars(producer).values():
        if is_typeddict(one) and one.__module__ == producer.__name__ and "event_type" in one.__annotations__:
            yield one


def _names(payload: Any) -> tuple[str, ...]:
    return get_args(payload.__annotations__["event_type"])


def _typed() -> Iterator[EventType]:
    for producer in _PRODUCERS:
        others = getattr(producer, "OTHER_CATEGORIES", {})
        for payload in _classes(producer):
            category = others.get(payload, producer.CATEGORY)
            meaning = " ".join(payload.__doc__.split())
            for name in _names(payload):
                yield EventType(name, category, meaning, payload)


def _checks() -> Iterator[tuple[str, Check]]:
    for payload in PAYLOADS:
        check = partial(TypeAdapter(payload).validator.validate_python, strict=True)
        yield from ((name, check) for name in _names(payload))


PAYLOADS = tuple(payload for producer in _PRODUCERS for payload in _classes(producer))
"""Every payload class."""
EVENT_TYPES = {name: EventType(name, CATEGORIES[name.partition(".")[0]], MEANING) for name in FREEFORM}
EVENT_TYPES |= {one.name: one for one in _typed()}
"""Every name, typed or not."""
OWN = frozenset(name for payload in _classes(own) for name in _names(payload))
"""Names of the events that only the service itself writes."""
TYPED = dict(_checks())
"""Every typed name, and what checks its payload. The result of a check is not used: what was sent is stored."""


class Catalog:
    """The types that one service knows: the built-in ones, its operator's own, and what becomes of all others.

    `own`: whether the events are the service's own. Nobody else may send such.
    """

    def __init__(self, custom: Sequence[CustomType] = (), *, accept_unknown: bool = False, own: bool = False) -> None:
        self.types: dict[str, EventType] = EVENT_TYPES | {one.name: one for one in custom}
        checks = TYPED | {one.name: one.check for one in custom}
        self.typed = {name: (self.types[name], check) for name, check in checks.items()}
        """Every name that may stand in a payload, what is known of it, and what checks the payload."""
        self._accept_unknown = accept_unknown
        self._closed = frozenset() if own else OWN

    def check_payload(self, outer_type: str, payload: dict[str, Any], pointer: str) -> EventType | None:
        """The type of `payload`, None if an unknown one is accepted; BadRequest unless the payload is what its type wants.

        `pointer` is its place in the body.
        """
        inner_type = payload.get("event_type", _ABSENT)
        if outer_type in self._closed or (isinstance(inner_type, str) and inner_type in self._closed):
            raise bad_fields({pointer + "/event_type": "only the service itself writes events of this type"})
        if inner_type is _ABSENT:
            if outer_type in FREEFORM:
                return self.types[outer_type]
            if not self._accept_unknown:
                self._refuse_name(pointer, outer_type)
            return None
        known = self.typed.get(inner_type) if isinstance(inner_type, str) else None
        if known is None:
            if not (self._accept_unknown and isinstance(inner_type, str)):
                self._refuse_type(pointer, inner_type)
            return None
        event_type, check = known
        try:
            check(payload)
        except ValidationError as error:
            raise refusal(error, pointer) from None
        return event_type

    def _refuse_name(self, pointer: str, outer_type: str) -> NoReturn:
        """There is no event_type inside, and the one outside belongs to no free-form event."""
        message = (
            f"event_data has no event_type, and the outer event_type {shown(outer_type)} is not one of the free-form "
            f"names: expected event_data.event_type such as {', '.join(nearest(outer_type, self.typed))}"
        )
        raise bad_fields({pointer + "/event_type": message})

    def _refuse_type(self, pointer: str, inner_type: Any) -> NoReturn:
        near = nearest(inner_type if isinstance(inner_type, str) else "", self.typed)
        message = f"expected a known event type such as {', '.join(near)}, got {shown(inner_type)}"
        raise bad_fields({pointer + "/event_type": message})


_ABSENT = object()


def nearest(name: str, names: Iterable[str]) -> list[str]:
    """The three of `names` that are most like `name`."""
    return get_close_matches(name[:_COMPARED_MAX].lower(), names, n=3, cutoff=0)
