"""`datastorage findings`: list what verification found, and acknowledge it."""

import argparse
import asyncio
from collections.abc import Callable
from uuid import UUID

from app import db
from app.errors import Usage
from app.findings.acknowledge import acknowledge
from app.findings.finding import Finding
from app.findings.register import read_findings
from app.retention.logged import read_open_log
from app.settings import Settings
from app.terminal import visible


def run(arguments: argparse.Namespace, load_settings: Callable[[], Settings]) -> tuple[list[str], int]:
    """List findings, or acknowledge one. Returns the lines to print, and the exit code: 1 if a list has an unacknowledged one."""
    settings = load_settings()
    if arguments.command == "list":
        return asyncio.run(_list(settings, everything=arguments.all))
    try:
        finding_id = UUID(arguments.finding)
    except ValueError:
        raise Usage(
            f"{arguments.finding!r} is not the id of a finding: `datastorage findings list` shows them."
        ) from None
    if not arguments.reason.strip():
        raise Usage("--reason is empty: say what the finding was and what was done about it.")
    asyncio.run(_acknowledge(settings, finding_id, arguments.by, arguments.reason))
    return [f"Acknowledged: {finding_id}"], 0


async def _list(settings: Settings, *, everything: bool) -> tuple[list[str], int]:
    connection = await db.connect(settings)
    try:
        log = await read_open_log(connection, settings)
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            findings = await read_findings(connection, log)
    finally:
        await connection.close()
    unacknowledged = [one for one in findings if one.acknowledgement is None]
    shown = reversed(findings if everything else unacknowledged)
    lines = [visible(line) for finding in shown for line in _lines(finding)]
    return lines or ["There is no finding that nobody has acknowledged."], 1 if unacknowledged else 0


async def _acknowledge(settings: Settings, finding_id: UUID, by: str, reason: str) -> None:
    connection = await db.connect(settings)
    try:
        log = await read_open_log(connection, settings)
    finally:
        await connection.close()
    await acknowledge(settings, log, finding_id, by, reason)


def _lines(finding: Finding) -> list[str]:
    where = [f"positions {finding.positions} of log {finding.log_id}"] if finding.positions else []
    lines = [
        f"{finding.id}  {finding.recorded_at:%Y-%m-%d %H:%M:%S} UTC  {finding.defect_count} defect(s)",
        f"    {finding.detail}",
        f"    {'; '.join([*where, *finding.subjects])}",
    ]
    if finding.acknowledgement is not None:
        by, said, at = finding.acknowledgement
        lines.append(f"    acknowledged {at:%Y-%m-%d %H:%M:%S} UTC by {by}: {said}")
    return lines
