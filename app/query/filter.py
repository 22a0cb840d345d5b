"""The filters of events: as fields of a model, and as conditions in SQL.

`EventFilter` is the one list of them. A question about events (a page, a page of correlations, an export) is a model that has these
fields and its own. A new filter for the equality of a column is a field here, with `_in` and `_not`, and its name in `_EQUAL`.
Any other condition also needs an entry in `conditions_of`, its name in `_conditions`, its value in `arguments`, and a reader in
api/filters.py if its value is not text. Paging, counting, exports and the OpenAPI document follow.
"""

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, Field, WithJsonSchema
from sqlalchemy import (
    ARRAY,
    Boolean,
    ColumnElement,
    FromClause,
    Text,
    Uuid,
    and_,
    bindparam,
    case,
    cast,
    func,
    literal_column,
    not_,
    or_,
)
from sqlalchemy.sql.base import ReadOnlyColumnCollection

from app.events import kubernetes
from app.events.envelope import Outcome
from app.query.cursor import Cursor, LogCursor
from app.sql import fragment
from app.tables import audit_events

LIMIT_MAX = 1000
OFFSET_MAX = 2**63 - 1
VALUES_MAX = 100
"""Most values of one parameter that is repeated."""
TEXT_MAX = 200
"""Most characters of the text that `q` looks for."""
DETAIL_KEY = r"[a-zA-Z0-9_]+"

_TIME_BOUND = {
    "type": "string",
    "examples": ["7d", "1h30m", "today", "yesterday", "2026-01-31T12:00:00Z", "2026-01-31T12:00", "2026-01-31"],
}
TimeBound = Annotated[datetime | None, WithJsonSchema(_TIME_BOUND)]
"""A time; query string and command line give it in one of the forms of `timebounds.parse_time`."""
Zone = Annotated[
    str | None,
    Field(max_length=100, description="time zone of times without one, such as Europe/Berlin; UTC if absent"),
]
ALIASES = {"start_time": "since", "end_time": "until"}
"""Other names of parameters: those that the reference's export has."""
Values = Annotated[tuple[str, ...], Field(max_length=VALUES_MAX)]
Outcomes = Annotated[tuple[Outcome, ...], Field(max_length=VALUES_MAX)]
Ids = Annotated[tuple[UUID, ...], Field(max_length=VALUES_MAX)]


def _any_of(what: str) -> Any:
    return Field((), description=f"any of these {what}; repeat the parameter, one value each")


def _none_of(what: str) -> Any:
    return Field((), description=f"none of these {what}; repeat the parameter, one value each")


class EventFilter(BaseModel, frozen=True, extra="forbid"):
    """Which events. An event matches if it meets every filter that is set."""

    correlation_id: str | None = Field(None, description="the remediation that the event belongs to")
    event_type: str | None = Field(None, description="outer type of the event")
    event_category: str | None = Field(None, description="any text; an unknown category matches nothing")
    severity: str | None = None
    event_outcome: Outcome | None = None
    since: TimeBound = Field(None, description="earliest event_timestamp: a time, or how long ago; also start_time")
    until: TimeBound = Field(None, description="latest event_timestamp: a time, or how long ago; also end_time")
    detail_key: str | None = Field(
        None, pattern=f"^{DETAIL_KEY}$", description="member of event_data; with detail_value"
    )
    detail_value: str | None = Field(None, description="text of the member that detail_key names")
    include: Literal["self", "kubernetes", "all"] | None = Field(
        None,
        description="self: the service's own events too, if neither type, category nor correlation is asked for; kubernetes: also those "
        "of a kube-apiserver, if neither type, category, actor_id nor a correlation kubernetes:… is asked for; all: both",
    )
    sealed: bool | None = Field(
        None, description="true: without the events that others inserted by SQL; false: only those"
    )
    actor_id: str | None = Field(None, description="who did it")
    actor_type: str | None = Field(None, description="what kind of actor did it, such as user or service")
    resource_type: str | None = Field(None, description="kind of what it was done to")
    resource_id: str | None = Field(None, description="what it was done to")
    namespace: str | None = None
    cluster_id: str | None = None
    event_action: str | None = Field(None, description="what was done")
    parent_event_id: UUID | None = Field(None, description="the event that caused it")
    trace_id: str | None = Field(None, description="as other programs have written it by SQL")
    correlation_id_in: Values = _any_of("correlations")
    correlation_id_not: Values = _none_of("correlations")
    event_type_in: Values = _any_of("types; orchestrator.* means all that begin with orchestrator.")
    event_type_not: Values = _none_of("types; orchestrator.* means all that begin with orchestrator.")
    event_category_in: Values = _any_of("categories")
    event_category_not: Values = _none_of("categories")
    severity_in: Values = _any_of("severities")
    severity_not: Values = _none_of("severities")
    event_outcome_in: Outcomes = _any_of("outcomes")
    event_outcome_not: Outcomes = _none_of("outcomes")
    actor_id_in: Values = _any_of("actors")
    actor_id_not: Values = _none_of("actors")
    actor_type_in: Values = _any_of("kinds of actors")
    actor_type_not: Values = _none_of("kinds of actors")
    resource_type_in: Values = _any_of("kinds of resources")
    resource_type_not: Values = _none_of("kinds of resources")
    resource_id_in: Values = _any_of("resources")
    resource_id_not: Values = _none_of("resources")
    namespace_in: Values = _any_of("namespaces")
    namespace_not: Values = _none_of("namespaces")
    cluster_id_in: Values = _any_of("clusters")
    cluster_id_not: Values = _none_of("clusters")
    event_action_in: Values = _any_of("actions")
    event_action_not: Values = _none_of("actions")
    parent_event_id_in: Ids = _any_of("parents")
    parent_event_id_not: Ids = _none_of("parents")
    trace_id_in: Values = _any_of("traces")
    trace_id_not: Values = _none_of("traces")
    q: str | None = Field(
        None,
        max_length=TEXT_MAX,
        description="text that the event has, in any case, in its payload, error message, type, action, actor id or "
        "resource id; together with since, correlation_id or correlation_id_in",
    )
    zone: Zone = None

    @property
    def includes_self_events(self) -> bool:
        """Whether self events are part of the answer."""
        return self.include in {"self", "all"} or self._names("correlation_id", "event_type", "event_category")

    @property
    def includes_kubernetes(self) -> bool:
        """Whether audit events of Kubernetes are part of the answer. Of a correlation they are only if it is one of theirs: clients of the
        platform ask for those of remediations, and cannot read them.
        """
        if self.include in {"kubernetes", "all"} or self._names("event_type", "event_category", "actor_id"):
            return True
        correlations = (self.correlation_id or "", *self.correlation_id_in)
        return any(one.startswith(kubernetes.CORRELATIONS) for one in correlations)

    def _names(self, *columns: str) -> bool:
        """Whether values of one of these columns are asked for."""
        return any(getattr(self, name) or getattr(self, f"{name}_in") for name in columns)

    @property
    def is_bounded(self) -> bool:
        """Whether the question is about a part of the events that is small enough to look through their texts."""
        return bool(self.since or self.correlation_id or self.correlation_id_in)

    def conditions(self) -> tuple[str, ...]:
        """Names in CONDITIONS that an event must meet to match, on whichever page it is."""
        return tuple(self._conditions())

    def _conditions(self) -> Iterator[str]:
        yield from (name for name in _EQUAL if getattr(self, name) is not None)
        for name in _SETS:
            if values := getattr(self, name):
                yield f"{name} prefix" if name in _WITH_PREFIXES and _prefixes(values) else name
        if self.since is not None:
            yield "since"
        if self.until is not None:
            yield "until"
        if self.detail_key is not None:
            yield f"detail {self.detail_key}" if self.detail_key in _INDEXED_DETAILS else "detail"
        if not (self.includes_self_events and self.includes_kubernetes):
            yield LEFT_OUT[self.includes_self_events, self.includes_kubernetes]
        if self.sealed is not None:
            yield "sealed" if self.sealed else "unsealed"
        if self.q is not None:
            yield "q"

    def page_conditions(self) -> tuple[str, ...]:
        """Names in CONDITIONS that an event on the page must meet.

        Time bounds apply to event_date too, so that Postgres prunes partitions. A count goes without: the indexes that it
        reads do not have event_date.
        """
        dates = tuple(f"{bound}_date" for bound in ("since", "until") if getattr(self, bound) is not None)
        return self.conditions() + dates

    def arguments(self) -> dict[str, object]:
        """A value for each bind parameter of CONDITIONS."""
        equal = {name: getattr(self, name) for name in (*_EQUAL, "since", "until", "detail_key", "detail_value")}
        sets: dict[str, object] = {name: list(getattr(self, name)) for name in _SETS}
        for name in _WITH_PREFIXES:
            sets[f"{name}_prefixes"] = _prefixes(getattr(self, name))
        return (
            equal
            | sets
            | {
                "since_date": self.since and self.since.astimezone(UTC).date(),
                "until_date": self.until and self.until.astimezone(UTC).date(),
                "q": self.q and text_pattern(self.q),
                "q_in_payload": self.q and text_pattern(in_json(self.q)),
            }
        )


class EventQuery(EventFilter, frozen=True, extra="forbid"):
    """A question about events. The query string, the command line and the WHERE clause have the same fields."""

    limit: int = Field(50, ge=1, le=LIMIT_MAX, description="most events on the page")
    offset: int = Field(0, ge=0, le=OFFSET_MAX, description="events to skip; not together with cursor")
    order: Literal["time", "log"] = Field(
        "time",
        description="time: by event_timestamp; log: by position in the log, unsealed events last; both newest first",
    )
    cursor: Annotated[Cursor | LogCursor | None, WithJsonSchema({"type": "string"})] = Field(
        None, description="next_cursor of an earlier answer to the same question"
    )
    total: Literal["exact", "capped", "none"] = Field(
        "exact", description="exact for a second of counting, then an estimate; capped stops at 10000"
    )
    strict: bool = Field(default=False, description="true: refuse parameters that this route does not know")

    @property
    def may_be_cut(self) -> bool:
        """Whether the page may end before it is full. Not if the reference could be asked the same: its clients go on by offset."""
        asked = {
            name for name in type(self).model_fields if getattr(self, name) != type(self).model_fields[name].default
        }
        return not asked <= _OF_REFERENCE


class ListQuery(EventQuery, frozen=True, extra="forbid"):
    """A question about events, whose answer may come from the archive too."""

    archive: Literal["include"] | None = Field(
        None,
        description="include: also events that were removed from Postgres and are in the archive, marked with archive_id; without total, "
        "and not together with offset or order=log",
    )


LEFT_OUT = {
    (False, False): "neither self event nor kubernetes",
    (False, True): "not self event",
    (True, False): "not kubernetes",
}
"""The condition by (self events are included, audit events of Kubernetes are)."""
_EQUAL = (
    *("correlation_id", "event_type", "event_category", "severity", "event_outcome", "actor_id", "actor_type"),
    *("resource_type", "resource_id", "namespace", "cluster_id", "event_action", "parent_event_id", "trace_id"),
)
_OF_REFERENCE = {
    *("correlation_id", "event_type", "event_category", "severity", "event_outcome", "since", "until", "detail_key"),
    *("detail_value", "limit", "offset", "total", "include", "sealed"),
}
"""Fields of questions that clients ask who need not know cursors."""
_SETS = tuple(f"{name}{suffix}" for name in _EQUAL for suffix in ("_in", "_not"))
_WITH_PREFIXES = ("event_type_in", "event_type_not")
_INDEXED_DETAILS = ("target_resource", "pre_remediation_spec_hash", "post_remediation_spec_hash")

Columns = ReadOnlyColumnCollection[str, Any]


def _prefixes(values: tuple[str, ...]) -> list[str]:
    """What the values that end in a star stand for."""
    return [value[:-1] for value in values if value.endswith("*")]


def text_pattern(text: str) -> str:
    """A regular expression of Postgres that finds `text` in any case. Each letter stands in all its cases: it does not depend on
    the locale of the database, which may know no letters beyond ASCII.
    """
    return "".join(map(_character_pattern, text))


def _character_pattern(character: str) -> str:
    cases = sorted({character, *(c for c in (character.lower(), character.upper()) if len(c) == 1)})
    if len(cases) > 1:
        return f"[{''.join(cases)}]"
    return f"\\{character}" if character.isascii() and not character.isalnum() else character


def in_json(text: str) -> str:
    """`text` as it stands inside a JSON string that Postgres writes."""
    return _ESCAPED_IN_JSON.sub(lambda found: _JSON_ESCAPES.get(found[0]) or f"\\u{ord(found[0]):04x}", text)


_ESCAPED_IN_JSON = re.compile(r'["\\\x01-\x1f]')
_JSON_ESCAPES = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def _detail(c: Columns, key: ColumnElement[str]) -> ColumnElement[str]:
    member: ColumnElement[str] = c.event_data.op("->>", return_type=Text())(key)
    return member


def _indexed_detail(c: Columns, key: str) -> ColumnElement[bool]:
    """The index has the first 200 characters."""
    member, value = _detail(c, literal_column(f"'{key}'", Text)), bindparam("detail_value", type_=Text)
    return and_(func.left(member, literal_column("200")) == func.left(value, literal_column("200")), member == value)


def _matches_text(c: Columns) -> ColumnElement[bool]:
    texts = (c.event_type, c.event_action, c.actor_id, c.resource_id, c.error_message)
    in_texts = (text.op("~", return_type=Boolean())(bindparam("q", type_=Text)) for text in texts)
    in_payload = cast(c.event_data, Text).op("~", return_type=Boolean())(bindparam("q_in_payload", type_=Text))
    # NULL, of an event without an error message, would make `not` of this neither.
    return func.coalesce(or_(*in_texts, in_payload), literal_column("false"))


def _any(c: ColumnElement[Any], name: str) -> ColumnElement[bool]:
    return c == func.any(bindparam(name, type_=ARRAY(Uuid if isinstance(c.type, Uuid) else Text)))


def _begins(c: ColumnElement[Any], name: str) -> ColumnElement[bool]:
    return c.op("^@", return_type=Boolean())(func.any(bindparam(f"{name}_prefixes", type_=ARRAY(Text))))


def _is_none(condition: ColumnElement[bool]) -> ColumnElement[bool]:
    """A column that is NULL has none of the values."""
    return condition.is_not(literal_column("true", Boolean))


def conditions_on(events: FromClause) -> dict[str, ColumnElement[bool]]:
    """The conditions that any table can answer that has some of the columns of events, and either type and category or `is_self_event`."""
    c = events.c
    found = _left_out(c)
    for name in _EQUAL:
        if name in c:
            found[name] = c[name] == bindparam(name, type_=c[name].type)
            found[f"{name}_in"] = _any(c[name], f"{name}_in")
            found[f"{name}_not"] = _is_none(_any(c[name], f"{name}_not"))
    for name in _WITH_PREFIXES if "event_type" in c else ():
        is_one = or_(_any(c.event_type, name), _begins(c.event_type, name))
        found[f"{name} prefix"] = is_one if name == "event_type_in" else not_(is_one)
    return found


def _left_out(c: Columns) -> dict[str, ColumnElement[bool]]:
    """What is left out of answers that do not include it."""
    if "is_self_event" in c:  # which is true of both kinds, so that this table cannot tell them apart
        return {"neither self event nor kubernetes": not_(c.is_self_event)}
    is_self_event = and_(  # docs/design.md, section 2
        c.event_category == literal_column("'security'"),
        c.event_type.like(literal_column("'datastorage.%'")),
        c.event_type != literal_column("'datastorage.ratelimit.denied'"),  # the reference writes it too, and shows it
    )
    is_kubernetes = or_(  # by SQL a row can be made of which only one is true
        c.event_category == literal_column(f"'{kubernetes.CATEGORY}'"),
        c.event_type.like(literal_column("'kubernetes.audit.%'")),
    )
    return {
        "neither self event nor kubernetes": and_(not_(is_self_event), not_(is_kubernetes)),
        "not self event": not_(is_self_event),
        "not kubernetes": not_(is_kubernetes),
    }


IS_SEALED = case(
    (literal_column(fragment("on_log"), Boolean), literal_column("true", Boolean)),
    else_=literal_column("false", Boolean),
)
"""Whether a row says that it is at a position of the log; of the one table that the statement reads. CASE: what the planner expects
of a position would mislead it."""


def conditions_of(events: FromClause) -> dict[str, ColumnElement[bool]]:
    """Every condition, on rows that have all columns of events."""
    c = events.c
    return conditions_on(events) | {
        "since": c.event_timestamp >= bindparam("since"),
        "until": c.event_timestamp <= bindparam("until"),
        "since_date": c.event_date >= bindparam("since_date"),
        "until_date": c.event_date <= bindparam("until_date"),
        "detail": _detail(c, bindparam("detail_key", type_=Text)) == bindparam("detail_value", type_=Text),
        **{f"detail {key}": _indexed_detail(c, key) for key in _INDEXED_DETAILS},
        "sealed": IS_SEALED,
        "unsealed": not_(IS_SEALED),
        "q": _matches_text(c),
    }


CONDITIONS = conditions_of(audit_events)
