"""`datastorage verify`: the whole database, or one correlation, against the log and against what was kept elsewhere.

Exit code 0: nothing is wrong. 1: something is. 2: it could not be looked at.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import asyncpg

from app.db import CONNECTION_ERRORS, Connection
from app.errors import DatabaseAway, Fatal
from app.settings import Settings
from app.terminal import one_line
from app.tlog.copies import newest_note_in
from app.tlog.keys import signing_key
from app.tlog.note import MalformedNote, Note, PublicKey
from app.verify.correlation import ChainReport, verify_chain
from app.verify.database import Report, Runner, TrustAnchors, WorkItem, verify_checkpoints, verify_database
from app.verify.processes import snapshot_connection, worker_pool
from app.verify.row import DEFECTS_MAX, Defect
from app.verify.snapshot import SQL

CLEAN, DEFECTS, NOT_LOOKED = 0, 1, 2
_LINE_SECONDS = 1.0


def run(arguments: argparse.Namespace, load: Callable[[], Settings]) -> int:
    """The exit code. `load` gives the settings, with the database to look at."""
    try:
        return asyncio.run(_verify(arguments, load()))
    except (Fatal, DatabaseAway) as error:
        reason = error.detail if error.__cause__ is None else f"{error.detail} ({error.__cause__})"
    except (*CONNECTION_ERRORS, asyncpg.PostgresError, OSError) as error:
        reason = f"The database could not be read to the end: {error}"
    _say(f"datastorage: {reason}")
    return NOT_LOOKED


async def _verify(arguments: argparse.Namespace, settings: Settings) -> int:
    connection = await snapshot_connection(settings)
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            name = await connection.fetchval(SQL["log_name"])
            anchors = _anchors(arguments, settings, name or "")
            if not anchors.keys:
                _say("signatures of checkpoints are not checked: name the log's key with --key")
            if arguments.correlation is not None:
                return await _one(connection, arguments.correlation, anchors, settings.hmac_key)
            return await _everything(connection, settings, anchors, max(1, arguments.processes))
    finally:
        connection.terminate()


async def _everything(connection: Connection, settings: Settings, anchors: TrustAnchors, processes: int) -> int:
    started = time.monotonic()
    snapshot = await connection.fetchval(SQL["export_snapshot"])
    with worker_pool(settings, snapshot, processes) as working:
        report = await verify_database(connection, _with_progress(working.run), anchors, settings.hmac_key)
    __tell(report.defects.listed, report.defects.count)
    _tell("\n".join(_summary(report)))
    seconds, cpu = time.monotonic() - started, sum(working.cpu_seconds.values()) + time.process_time()
    _tell(
        f"{seconds:.1f} s on {processes} process(es), {report.events.total / max(cpu, 0.001):,.0f} events per CPU-second"
    )
    return DEFECTS if report.defects.count else CLEAN


async def _one(connection: Connection, correlation_id: str, anchors: TrustAnchors, hmac_key: bytes | None) -> int:
    log = await verify_checkpoints(connection, anchors)
    found = await verify_chain(connection, correlation_id, log.log, hmac_key)
    defects = found.sealed.defects
    if found.head_defect is not None:
        defects.add(found.head_defect)
    defects.extend(log.defects)
    if not found.is_sealed:
        defects.extend(found.unsealed.defects)
    __tell(defects.listed, defects.count)
    _tell("\n".join(_chain_summary(correlation_id, found)))
    return DEFECTS if defects.count else CLEAN


def _anchors(arguments: argparse.Namespace, settings: Settings, log: str) -> TrustAnchors:
    keys: Sequence[PublicKey] = ()
    if arguments.key is not None:
        keys = _keys(arguments.key)
    elif (own := signing_key(settings, log)) is not None:
        keys = own.all_public
    if arguments.checkpoint is None:
        return TrustAnchors(keys)
    return TrustAnchors(keys, _note(arguments.checkpoint), f"the checkpoint in {arguments.checkpoint}")


def _keys(text: str) -> list[PublicKey]:
    """The keys in a file, or the one that the text itself is."""
    try:
        lines = Path(text).read_text("utf-8").splitlines() if Path(text).is_file() else [text]
        return [PublicKey.parse(line) for line in lines if line.strip()]
    except MalformedNote as error:
        raise Fatal(f"--key: {error}.") from None


def _note(path: Path) -> str:
    """A file's note, or the last of those that a service has appended to it."""
    try:
        text = path.read_text("utf-8")
        Note.parse(text)
    except (OSError, UnicodeDecodeError) as error:
        raise Fatal(f"Cannot read {path}: {error}") from None
    except MalformedNote:
        if (last := newest_note_in(path)) is None:
            raise Fatal(f"{path} holds no checkpoint: take it from /tlog/checkpoint.") from None
        return last
    return text


def _with_progress(run: Runner) -> Runner:
    """Says how far it is, once a second, where somebody looks on."""

    async def told(parts: Sequence[WorkItem], /) -> AsyncIterator[tuple[WorkItem, Any]]:
        total, done, said = sum(part.weight for part in parts), 0, 0.0
        async for part, result in run(parts):
            done += part.weight
            if total and sys.stderr.isatty() and time.monotonic() - said > _LINE_SECONDS:
                said = time.monotonic()
                sys.stderr.write(f"\r{done:,} of {total:,} positions\x1b[K")
            yield part, result
        if said:
            sys.stderr.write("\r\x1b[K")

    return told


def __tell(defects: Iterable[Defect], count: int) -> None:
    for defect in defects:
        about = {"correlation": defect.correlation_id, "event": defect.event_id, "position": defect.position}
        where = ", ".join(f"{name} {value}" for name, value in about.items() if value not in {None, ""})
        _tell(one_line(f"{defect.message} ({where})" if where else defect.message))
    if count > DEFECTS_MAX:
        _tell(f"... and {count - DEFECTS_MAX:,} more defects")


def _summary(report: Report) -> Iterable[str]:
    events = report.events
    yield f"log {report.log}: {report.size:,} positions, {events.verified:,} of {events.total:,} events are as logged"
    if events.purged or events.erased:
        yield f"purged: {events.purged:,} events, erased: {events.erased:,} events, as events of the log say"
    yield f"{report.chains:,} chains, {report.checkpoints} checkpoints"
    yield from _unsealed_summary(report.unsealed.total, report.unsealed.verified)
    yield f"DEFECTS FOUND: {report.defects.count:,}" if report.defects.count else "nothing is wrong"


def _chain_summary(correlation_id: str, found: ChainReport) -> Iterable[str]:
    chain = found.sealed
    yield one_line(f"{correlation_id}: {chain.verified:,} of {chain.total:,} events are as logged")
    if found.purged_total or chain.erased_total:
        yield f"purged: {found.purged_total:,} events, erased: {chain.erased_total:,} events, as events of the log say"
    yield from _unsealed_summary(found.unsealed.total, found.unsealed.verified)


def _unsealed_summary(total: int, verified: int) -> Iterable[str]:
    if total:
        yield f"unsealed rows, which are no part of the log: {verified:,} of {total:,} have the hash that they say"


def _tell(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
