"""Dates of the events that others name as their parent."""

from collections.abc import Sequence
from datetime import date
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncEngine

from app.db import fetch
from app.ingest.accept import Draft
from app.ingest.writer import Writer
from app.sql import load

SQL = load("ingest")


async def find(engine: AsyncEngine, writer: Writer, drafts: Sequence[Draft]) -> dict[UUID, date]:
    """The parents of `drafts`: in Postgres, whatever their correlation, then among the events that wait to be written."""
    ids = {item.parent_id for item in drafts if item.parent_id is not None}
    if not ids:
        return {}
    rows = await fetch(engine, SQL["parents"], list(ids))
    found: dict[UUID, date] = {row["event_id"]: row["event_date"] for row in rows}
    return found | writer.dates(ids - found.keys()) if len(found) < len(ids) else found
