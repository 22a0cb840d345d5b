"""Cost of three ways to send rows to Postgres: python -m bench.rows postgresql://… (a migrated database that may be emptied)."""

import asyncio
import statistics
import sys
from time import perf_counter, process_time

from pydantic import SecretStr

from app.db import connect_writer
from app.ingest.store import COPY_COLUMNS
from app.settings import Settings
from bench.copy import rows

ROWS = "INSERT INTO audit_events ({}) SELECT r.*, NULL, NULL, NULL, 0, 'sha256-rfc6962' FROM {} r"
TYPES = [
    "uuid",
    "text",
    "timestamptz",
    "date",
    "text",
    "text",
    "text",
    "text",
    "text",
    "text",
    "inet",
    "text",
    "text",
    "text",
    "uuid",
    "date",
    "text",
    "text",
    "text",
    "int",
    "text",
    "text",
    "jsonb",
    "int",
    "boolean",
    "timestamptz",
    "bytea",
    "bigint",
    "bigint",
    "text",
    "text",
]


async def main() -> None:
    connection = await connect_writer(Settings(database_url=SecretStr(sys.argv[1])))
    columns = ", ".join(COPY_COLUMNS)
    arrays = ROWS.format(columns, f"unnest({', '.join(f'${i}::{t}[]' for i, t in enumerate(TYPES, 1))})")
    composite = ROWS.format(columns, "unnest($1::flush_row[])")
    ways = {
        "array per column": lambda flush: connection.execute(arrays, *zip(*(r[:-5] for r in flush), strict=True)),
        "composite array": lambda flush: connection.execute(composite, [r[:-5] for r in flush]),
        "COPY": lambda flush: connection.copy_records_to_table("audit_events", records=flush, columns=COPY_COLUMNS),
    }
    for size in (1, 20, 50, 200, 700):
        costs: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for _ in range(7):
            for name, send in ways.items():
                flushes = [rows(700)[:size] for _ in range(max(1, 400 // size))]
                wall, cpu = perf_counter(), process_time()
                for flush in flushes:
                    await send(flush)  # type: ignore[no-untyped-call]  # lambdas have no types
                each = size * len(flushes) / 1e6
                costs[name].append(((perf_counter() - wall) / each, (process_time() - cpu) / each))
        medians = {n: [round(statistics.median(x)) for x in zip(*t, strict=True)] for n, t in costs.items()}
        print(size, {name: f"{wall} / {cpu} µs" for name, (wall, cpu) in medians.items()})


asyncio.run(main())
