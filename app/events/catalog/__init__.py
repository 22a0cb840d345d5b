"""The event catalog: what each type's payload holds. A file for each producer, payload classes and nothing else.

`check_payload` decides by the payload's own event_type; without one, the event is of the free-form generation.
"""

from collections.abc import Callable
from difflib import get_close_matches
from functools import partial
from typing import Any, NoReturn, get_args

from pydantic import TypeAdapter, ValidationError

from app.events.catalog import gateway, notification, orchestrator
from app.events.catalog.freeform import FREEFORM
from app.events.catalog.untyped import UNTYPED
from app.events.explain import bad_fields, explain, shown

Check = Callable[[Any], object]
_NAME_MAX = 100


def _checks() -> dict[str, Check]:
    """The check of each typed name."""
    checks: dict[str, Check] = dict.fromkeys(UNTYPED, lambda _: None)
    for producer in (orchestrator, gateway, notification):
        for payload in producer.PAYLOADS:
            check = partial(TypeAdapter(payload).validator.validate_python, strict=True)
            checks |= dict.fromkeys(get_args(payload.__annotations__["event_type"]), check)
    return checks


TYPED = _checks()
"""Every typed name, and what checks its payload. The result of a check is not used: what was sent is stored."""


def check_payload(outer_type: str, payload: dict[str, Any], pointer: str) -> None:
    """BadRequest unless `payload` is what its type wants. `pointer` is its place in the body."""
    inner_type = payload.get("event_type", _ABSENT)
    if inner_type is _ABSENT:
        if outer_type not in FREEFORM:
            _refuse_name(pointer, outer_type)
        return
    check = TYPED.get(inner_type) if isinstance(inner_type, str) else None
    if check is None:
        _refuse_type(pointer, inner_type)
    try:
        check(payload)
    except ValidationError as error:
        raise bad_fields(explain(error, pointer)) from None


_ABSENT = object()


def _refuse_name(pointer: str, outer_type: str) -> NoReturn:
    """There is no event_type inside, and the one outside belongs to no free-form event."""
    message = (
        f"event_data has no event_type, and the outer event_type {shown(outer_type)} is not one of the free-form names: "
        f"expected event_data.event_type{_nearest(outer_type)}"
    )
    raise bad_fields({pointer + "/event_type": message})


def _refuse_type(pointer: str, inner_type: Any) -> NoReturn:
    nearest = _nearest(inner_type) if isinstance(inner_type, str) else ""
    raise bad_fields({pointer + "/event_type": f"expected a known event type{nearest}, got {shown(inner_type)}"})


def _nearest(name: str) -> str:
    near = get_close_matches(name[:_NAME_MAX].lower(), TYPED, n=3, cutoff=0.4)
    return f" such as {', '.join(near)}" if near else ""
