"""Dates of the events that others name as their parent."""

import asyncio
from collections.abc import Sequence
from datetime import date
from uuid import UUID

from app import metrics
from app.db import Engine, fetch
from app.errors import DatabaseAway
from app.ingest.accept import Draft
from app.ingest.event_writer import EventWriter
from app.sql import load

SQL = load("ingest")


async def find_parent_dates(
    engine: Engine, writer: EventWriter, drafts: Sequence[Draft], deadline: float
) -> dict[UUID, date | None]:
    """Dates of the parents of `drafts`, by id: from Postgres, then from the events that wait to be written.

    A parent that is found nowhere is not in the result. While Postgres is away it gets the date that the client sent, and is
    counted as unchecked; without a spool, DatabaseAway is raised instead. `deadline` is the event loop's clock.
    """
    children = [item for item in drafts if item.parent_id is not None]
    ids = {item.parent_id for item in children if item.parent_id is not None}
    if not ids:
        return {}
    dates: dict[UUID, date | None] = {}
    unchecked = writer.away
    if not unchecked:
        try:
            async with asyncio.timeout_at(deadline):
                rows = await fetch(engine, SQL["parents"], list(ids))
                dates = {row["event_id"]: row["event_date"] for row in rows}
                if len(dates) < len(rows):
                    rows = await fetch(engine, SQL["parents_that_stand_twice"], list(ids))
                    dates = {row["event_id"]: row["event_date"] for row in rows}
        except (DatabaseAway, TimeoutError):
            if not writer.has_spool:
                raise DatabaseAway from None
            unchecked = True
    if missing := ids - dates.keys():
        dates |= await writer.waiting_event_dates(missing)
    if unchecked:
        for item in children:
            if item.parent_id is not None and item.parent_id not in dates:
                dates[item.parent_id] = item.parent_date
                metrics.PARENTS_UNCHECKED.inc()
    return dates
