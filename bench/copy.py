"""Raw COPY of the rows that the service would write: the upper bound of what Python and Postgres can do."""

import asyncio
import hashlib
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from time import perf_counter
from typing import Any

import asyncpg
from pydantic import SecretStr

from app import schema
from app.db import connect_writer
from app.events.catalog import Catalog
from app.events.log import Log
from app.ingest.accept import Acceptance, accept, check_item, computed_ids
from app.ingest.link import link
from app.ingest.store import COPY_COLUMNS
from app.settings import Settings
from bench.bodies import event

CATALOG = Catalog()
ROWS_AT_ONCE = 700
"""As many as wait during a flush when eight connections send batches of 100."""


def rows(number: int) -> list[tuple[Any, ...]]:
    """Rows as the writer sends them, hashes included."""
    made: list[tuple[Any, ...]] = []
    tail = (-1, 1)
    while len(made) < number:
        drafts = [check_item(CATALOG, event("copy"), f"/{i}", plain=True, depth=3) for i in range(ROWS_AT_ONCE)]
        ids = computed_ids(drafts, "", ("body", hashlib.sha256(os.urandom(16)).hexdigest()), datetime.now(UTC))
        flush = link(accept(drafts, ids, Acceptance(datetime.now(UTC), {}, "bench")), Log(0, "bench"), tail, {})
        tail = (flush.first_index, len(flush.rows))
        made += [(*row, None, None, None, 0, "sha256-rfc6962") for row in flush.rows]
    return made


async def prepare(database_url: str, *, key_only: bool) -> None:
    """The schema on an empty database; with `key_only`, without the indexes that only reading needs."""
    await schema.upgrade(database_url, "bench")
    if not key_only:
        return
    connection = await asyncpg.connect(database_url)
    indexes = await connection.fetch(
        "SELECT c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid "
        "WHERE i.indrelid = 'audit_events'::regclass AND NOT i.indisprimary"
    )
    for index in indexes:
        await connection.execute(f'DROP INDEX "{index[0]}"')
    await connection.close()


async def _rate(database_url: str, made: Sequence[tuple[Any, ...]]) -> float:
    connection = await connect_writer(Settings(database_url=SecretStr(database_url)))
    started = perf_counter()
    for at in range(0, len(made), ROWS_AT_ONCE):
        await connection.copy_records_to_table(
            "audit_events", records=made[at : at + ROWS_AT_ONCE], columns=COPY_COLUMNS
        )
    seconds = perf_counter() - started
    await connection.close()
    return len(made) / seconds


def rate(database_url: str, number: int) -> float:
    """Rows per second of committed COPYs."""
    return asyncio.run(_rate(database_url, rows(number)))
