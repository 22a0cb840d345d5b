"""The legal holds that new events fall under. Pure: store.py decides when the holds have to be read again."""

from collections.abc import Sequence
from datetime import date, datetime
from typing import Any, NamedTuple
from uuid import UUID

import asyncpg

from app.ingest.accept import ACCEPTED_COLUMNS, Event

_ACTOR_ID, _RESOURCE_TYPE, _RESOURCE_ID, _TIMESTAMP = (
    ACCEPTED_COLUMNS.index(name) for name in ("actor_id", "resource_type", "resource_id", "event_timestamp")
)


class HoldMark(NamedTuple):
    """The columns of an event that show its hold."""

    reason: str
    placed_by: str
    placed_at: datetime


class HoldIndex:
    """The active holds by selector. False when there are none, as on nearly every installation."""

    def __init__(self, rows: Sequence[asyncpg.Record] = ()) -> None:
        self._exact: dict[Any, HoldMark] = {}
        self._times: list[tuple[datetime, datetime, HoldMark]] = []
        for row in rows:
            mark = HoldMark(row["reason"], row["placed_by"], row["placed_at"])
            if row["time_from"] is not None:
                self._times.append((row["time_from"], row["time_to"], mark))
            elif row["correlation_id"] is not None:
                self._exact["correlation", row["correlation_id"]] = mark
            elif row["actor_id"] is not None:
                self._exact["actor", row["actor_id"]] = mark
            else:
                self._exact["resource", row["resource_type"], row["resource_id"]] = mark

    def __bool__(self) -> bool:
        return bool(self._exact or self._times)

    def marks_for(self, events: Sequence[Event]) -> list[tuple[UUID, date, str, str, str, datetime]]:
        """For each event that is held: event_id, event_date, correlation_id, and the three columns of its mark."""
        marks = ((event, self._mark(event)) for event in events)
        return [(event.id, event.date, event.correlation_id, *mark) for event, mark in marks if mark is not None]

    def _mark(self, event: Event) -> HoldMark | None:
        row, exact = event.row, self._exact
        return (
            exact.get(("correlation", event.correlation_id))
            or exact.get(("actor", row[_ACTOR_ID]))
            or exact.get(("resource", row[_RESOURCE_TYPE], row[_RESOURCE_ID]))
            or next((mark for start, end, mark in self._times if start <= row[_TIMESTAMP] <= end), None)
        )
