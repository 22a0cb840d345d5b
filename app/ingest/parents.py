"""Dates of the events that others name as their parent."""

import asyncio
from collections.abc import Sequence
from datetime import date
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncEngine

from app import metrics
from app.db import fetch
from app.errors import DatabaseAway
from app.ingest.accept import Draft
from app.ingest.writer import Writer
from app.sql import load

SQL = load("ingest")


async def find(
    engine: AsyncEngine, writer: Writer, drafts: Sequence[Draft], deadline: float
) -> dict[UUID, date | None]:
    """The parents of `drafts`: in Postgres, whatever their correlation, then among the events that wait to be written.

    With Postgres away, what waits nowhere is taken as sent, and counted. Without a spool: DatabaseAway.
    """
    children = [item for item in drafts if item.parent_id is not None]
    ids = {item.parent_id for item in children if item.parent_id is not None}
    if not ids:
        return {}
    found: dict[UUID, date | None] = {}
    unchecked = writer.away
    if not unchecked:
        try:
            async with asyncio.timeout_at(deadline):
                found = {r["event_id"]: r["event_date"] for r in await fetch(engine, SQL["parents"], list(ids))}
        except (DatabaseAway, TimeoutError):
            if writer.spool is None:
                raise DatabaseAway from None
            unchecked = True
    if missing := ids - found.keys():
        found |= await writer.dates(missing)
    if unchecked:
        for item in children:
            if item.parent_id is not None and item.parent_id not in found:
                found[item.parent_id] = item.parent_date
                metrics.PARENTS_UNCHECKED.inc()
    return found
