"""`datastorage verify` beyond Postgres: the parts of the archive that have what Postgres has no longer."""

import argparse
import asyncio
import sys
from typing import TYPE_CHECKING

from app.cli.exits import Exit
from app.errors import AuditError
from app.terminal import visible

if TYPE_CHECKING:
    from app.events.log import Log
    from app.settings import Settings
    from app.verify.correlation import CorrelationResult

_SECONDS = 3600.0
"""For one correlation: nobody else waits for the reader of a command."""


def verify_removed(arguments: argparse.Namespace, settings: "Settings", code: int) -> int:
    """Verify these parts, and print what is wrong with them. The exit code, if verification of the database has ended with `code`."""
    from app.archive.recorded import count_removed

    count = asyncio.run(count_removed(settings))
    if not count:
        return code
    if settings.archive_url is None:
        print(
            f"NOT verified: {count:,} events that are in the archive only; DATASTORAGE_ARCHIVE_URL says where that is"
        )
        return code if arguments.archive is None else code or Exit.NOT_DONE
    try:
        return max(code, _verify(arguments, settings))
    except AuditError as error:
        why = "" if error.__cause__ is None else f" ({error.__cause__})"
        sys.stderr.write(f"datastorage: {visible(f'{error.detail}{why}')}\n")
        return code or Exit.NOT_DONE


async def verify_whole_correlation(settings: "Settings", log: "Log", correlation_id: str) -> "CorrelationResult":
    """Verify one correlation with its events that are in the archive alone, if these settings say where that is."""
    from app.archive.chain import verify_whole
    from app.archive.reading import ArchiveReader
    from app.db import create_engine

    engine, reader = create_engine(settings), ArchiveReader(settings)
    try:
        return await verify_whole(engine, reader, log, correlation_id, hmac_key=settings.hmac_key, seconds=_SECONDS)
    finally:
        await reader.close()
        await engine.dispose()


def _verify(arguments: argparse.Namespace, settings: "Settings") -> Exit:
    from app.cli.archiving import keys_for_archive, needing_extra, print_parts

    with needing_extra():
        from app.archive.compare import verify_archive
    keys = keys_for_archive(settings, arguments.key)
    result = asyncio.run(verify_archive(settings, keys, arguments.archive or "all", only_removed=True))
    print_parts(result)
    where = f"{len(result.parts)} part(s) of the archive have {sum(result.removed.values()):,} events that Postgres has no longer"
    found = f"{result.problem_count} problem(s)" if result.problem_count else "no problem was found"
    print(f"{where}; {result.verified:,} rows were verified: {found}")
    return Exit.DEFECT if result.problem_count else Exit.AS_ASKED
