"""The filters of events: as fields of a model, and as conditions in SQL.

A new filter for the equality of a column is a field of `EventQuery`, and its name in `_EQUAL`. Any other condition also needs an
entry in `CONDITIONS`, its name in `_conditions`, its value in `arguments`, and a reader in api/events.py if the value is not
text. Paging, counting and warming follow. `ExportQuery` (export/select.py) lists its own fields.
"""

from collections.abc import Iterator
from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, Field, WithJsonSchema
from sqlalchemy import (
    Boolean,
    ColumnElement,
    Table,
    Text,
    and_,
    bindparam,
    case,
    func,
    literal_column,
    not_,
    tuple_,
)

from app.events.envelope import Outcome
from app.query.cursor import Cursor
from app.query.postgres_time import utc_time
from app.sql import fragment
from app.tables import audit_events

LIMIT_MAX = 1000
OFFSET_MAX = 2**63 - 1
DETAIL_KEY = r"[a-zA-Z0-9_]+"

_TIME_BOUND = {"type": "string", "examples": ["7d", "1h30m", "2026-01-31T12:00:00Z", "2026-01-31"]}
TimeBound = Annotated[datetime | None, WithJsonSchema(_TIME_BOUND)]
"""A time; query string and command line give it in one of the forms of `timebounds.parse_time`."""


class EventQuery(BaseModel, frozen=True, extra="forbid"):
    """A question about events. The query string, the command line and the WHERE clause have the same fields."""

    correlation_id: str | None = Field(None, description="the remediation that the event belongs to")
    event_type: str | None = Field(None, description="outer type of the event")
    event_category: str | None = Field(None, description="any text; an unknown category gives an empty page")
    severity: str | None = None
    event_outcome: Outcome | None = None
    since: TimeBound = Field(None, description="earliest event_timestamp: a time, or how long ago")
    until: TimeBound = Field(None, description="latest event_timestamp: a time, or how long ago")
    detail_key: str | None = Field(
        None, pattern=f"^{DETAIL_KEY}$", description="member of event_data; with detail_value"
    )
    detail_value: str | None = Field(None, description="text of the member that detail_key names")
    limit: int = Field(50, ge=1, le=LIMIT_MAX, description="most events on the page")
    offset: int = Field(0, ge=0, le=OFFSET_MAX, description="events to skip; not together with cursor")
    cursor: Annotated[Cursor | None, WithJsonSchema({"type": "string"})] = Field(
        None, description="next_cursor of an earlier answer"
    )
    total: Literal["exact", "capped", "none"] = Field(
        "exact", description="exact for a second of counting, then an estimate; capped stops at 10000"
    )
    include: Literal["self"] | None = Field(
        None, description="self: the service's own events too, if neither type, category nor correlation is asked for"
    )
    sealed: bool | None = Field(
        None, description="true: without the events that others inserted by SQL; false: only those"
    )

    @property
    def includes_self_events(self) -> bool:
        """Whether self events are part of the answer."""
        return bool(self.include or self.correlation_id or self.event_type or self.event_category)

    def conditions(self) -> tuple[str, ...]:
        """Names in CONDITIONS that an event must meet to match, on whichever page it is."""
        return tuple(self._conditions())

    def _conditions(self) -> Iterator[str]:
        yield from (name for name in _EQUAL if getattr(self, name) is not None)
        if self.since is not None:
            yield "since"
        if self.until is not None:
            yield "until"
        if self.detail_key is not None:
            yield f"detail {self.detail_key}" if self.detail_key in _INDEXED_DETAILS else "detail"
        if not self.includes_self_events:
            yield "not self event"
        if self.sealed is not None:
            yield "sealed" if self.sealed else "unsealed"

    def page_conditions(self) -> tuple[str, ...]:
        """Names in CONDITIONS that an event on the page must meet.

        Time bounds apply to event_date too, so that Postgres prunes partitions. A count goes without: the indexes that it
        reads do not have event_date. So does the cursor, which would prune next to nothing.
        """
        dates = tuple(f"{bound}_date" for bound in ("since", "until") if getattr(self, bound) is not None)
        return self.conditions() + dates + (("cursor",) if self.cursor else ())

    def arguments(self) -> dict[str, object]:
        """A value for each bind parameter of CONDITIONS and of the page's limits; one row more shows whether there are more."""
        return {
            **{
                name: getattr(self, name)
                for name in (*_EQUAL, "since", "until", "detail_key", "detail_value", "offset")
            },
            "since_date": self.since and self.since.date(),
            "until_date": self.until and self.until.date(),
            "cursor_timestamp": self.cursor and self.cursor.event_timestamp,
            "cursor_id": self.cursor and self.cursor.event_id,
            "rows": self.limit + 1,
        }


_e = audit_events.c
_EQUAL = ("correlation_id", "event_type", "event_category", "severity", "event_outcome")
_INDEXED_DETAILS = ("target_resource", "pre_remediation_spec_hash", "post_remediation_spec_hash")


def _detail(key: ColumnElement[str]) -> ColumnElement[str]:
    return _e.event_data.op("->>", return_type=Text())(key)


def _indexed_detail(key: str) -> ColumnElement[bool]:
    """The index has the first 200 characters."""
    member, value = _detail(literal_column(f"'{key}'", Text)), bindparam("detail_value", type_=Text)
    return and_(func.left(member, literal_column("200")) == func.left(value, literal_column("200")), member == value)


def _after_cursor() -> ColumnElement[bool]:
    last = tuple_(utc_time("cursor_timestamp"), bindparam("cursor_id", type_=_e.event_id.type))
    return tuple_(_e.event_timestamp, _e.event_id) < last


def conditions_on(events: Table) -> dict[str, ColumnElement[bool]]:
    """The conditions that any table can answer that has these columns of events."""
    c = events.c
    is_self_event = and_(  # docs/design.md, section 2
        c.event_category == literal_column("'security'"),
        c.event_type.like(literal_column("'datastorage.%'")),
        c.event_type != literal_column("'datastorage.ratelimit.denied'"),  # the reference writes it too, and shows it
    )
    equal = {name: c[name] == bindparam(name, type_=c[name].type) for name in _EQUAL if name in c}
    return equal | {"not self event": not_(is_self_event)}


IS_SEALED = case(
    (literal_column(fragment("on_log"), Boolean), literal_column("true", Boolean)),
    else_=literal_column("false", Boolean),
)
"""Whether a row says that it is at a position of the log; of the one table that the statement reads. CASE: what the planner expects
of a position would mislead it."""

CONDITIONS: dict[str, ColumnElement[bool]] = conditions_on(audit_events) | {
    "since": _e.event_timestamp >= bindparam("since"),
    "until": _e.event_timestamp <= bindparam("until"),
    "since_date": _e.event_date >= bindparam("since_date"),
    "until_date": _e.event_date <= bindparam("until_date"),
    "detail": _detail(bindparam("detail_key", type_=Text)) == bindparam("detail_value", type_=Text),
    **{f"detail {key}": _indexed_detail(key) for key in _INDEXED_DETAILS},
    "cursor": _after_cursor(),
    "sealed": IS_SEALED,
    "unsealed": not_(IS_SEALED),
}
