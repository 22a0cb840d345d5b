"""Runs the statements of the reports before the service is ready: the first plan over many partitions is slow."""

from datetime import UTC, datetime
from uuid import UUID

from app.db import Connection, Engine, on_first_connections
from app.query.correlations import NAMED_SCANS, SCANS
from app.sql import load

_LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)
_EVENT = ("2000-01-01T00:00:00", UUID(int=0))
_NO_EVENTS: tuple[object, ...] = ([],) * 10
ARGUMENTS: dict[str, tuple[object, ...]] = {
    "wide_members": ([], [], []),
    "first_of_types": ([],),
    "places": ([], [], []),
    "rows_with_id": (UUID(int=0),),
    "log_ids": (),
    "unknown_log": (32767,),
    "whole_event": (UUID(int=0),),
    "neighbours_in_chain": ("-", 0),
    "neighbours_in_log": (-9, 0),
    "reconstruction": ("-", ["-"]),
    "reconstruction_of_both": ("-", ["-"], *_NO_EVENTS),
    "effectiveness": ("-",),
    "effectiveness_of_both": ("-", [], *_NO_EVENTS),
    "remediations": ("-", None, _LONG_AGO, _LONG_AGO, "-"),
    "assessments": (["-"], 1),
    "timeline": ("-", 1, 0, None),
    "extent": ("-", None),
    "chain_head": ("-",),
    "stored_places": ("-",),
    "last_verdict": ("-",),
    "steps": ("-", ["-"], ["-"], None),
    "approvals": ("-", ["-"]),
    "approvals_of_both": ("-", ["-"], *_NO_EVENTS),
    "holds": ("-", None),
    "notifications": ("-",),
    "use_generic_plans": (),
    "follow_index": (),
    "scan": (*_EVENT, "-infinity", 1),
    "scan_named": (*_EVENT, "-infinity", ["-"], 1),
    "may_sort": (),
    "newest": (["-"], [_EVENT[0]], [_EVENT[1]], False, False),
    "summaries": (["-"],),
}
"""Arguments for each statement of reports.sql, in its order, that no row matches."""


async def warm(engine: Engine) -> None:
    """Run every statement once on the first connections of the pool, the scans in each of their sizes.

    In the order of the file: a plan is kept, so each is made under the settings that are in force when it is used.
    """
    statements = load("reports")
    runs: list[tuple[str, tuple[object, ...]]] = []
    for name, arguments in ARGUMENTS.items():
        if (sizes := {"scan": SCANS, "scan_named": NAMED_SCANS}.get(name)) is not None:
            runs += [(statement, arguments[:-1]) for statement in sizes.values()]
        else:
            runs.append((statements[name], arguments))

    async def run_each(connection: Connection) -> None:
        async with connection.transaction(readonly=True):
            for statement, arguments in runs:
                await connection.fetch(statement, *arguments)

    await on_first_connections(engine, run_each)
