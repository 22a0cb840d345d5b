"""`datastorage verify`: the whole database, or one correlation, against the log and against what the user trusts.

Exit code 0: there are no defects. 1: there are defects. 2: it could not be verified, or there is no such correlation.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from app.database_url import reason
from app.db import DATABASE_ERRORS, Connection
from app.errors import DatabaseAway, Fatal
from app.events.log import Log
from app.settings import Settings
from app.terminal import visible
from app.tlog.continued import Seam
from app.tlog.keys import read_public_keys, signing_key
from app.tlog.note import PublicKey
from app.tlog.timestamp import read_certificates
from app.verify.correlation import CorrelationResult, verify_correlation
from app.verify.database import (
    DatabaseResult,
    Runner,
    TrustAnchors,
    WorkItem,
    sequential_runner,
    verify_database,
    verify_tree_and_checkpoints,
)
from app.verify.notifications import NotificationsResult
from app.verify.processes import connect_for_verification, process_pool
from app.verify.row import DEFECTS_MAX, Defect
from app.verify.snapshot import SQL
from app.verify.unsealed import UnsealedResult

EXIT_NO_DEFECTS, EXIT_DEFECTS, EXIT_NOT_VERIFIED = 0, 1, 2
_PROGRESS_SECONDS = 1.0
_SMALL_LOG = 20_000
"""Positions that are verified before a second process has started."""


VerifyWhole = Callable[[Settings, Log, str], Awaitable[CorrelationResult]]
"""Verifies one correlation of a log with its events that are in the archive alone."""


def run(
    arguments: argparse.Namespace, load_settings: Callable[[], Settings], verify_whole: VerifyWhole | None = None
) -> int:
    """Verify and print the result; the exit code. The settings name the database. Without `verify_whole` nothing follows one correlation into
    the archive.
    """
    try:
        return asyncio.run(_verify(arguments, load_settings(), verify_whole))
    except (Fatal, DatabaseAway) as error:
        text = "The database cannot be reached" if isinstance(error, DatabaseAway) else error.detail
        message = text if error.__cause__ is None else f"{text} ({reason(error.__cause__)})"
    except DATABASE_ERRORS as error:
        message = f"The database could not be read to the end: {error}"
    _print_error(f"datastorage: {visible(message)}")
    return EXIT_NOT_VERIFIED


async def _verify(arguments: argparse.Namespace, settings: Settings, verify_whole: VerifyWhole | None) -> int:
    connection = await connect_for_verification(settings)
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            log_name = await connection.fetchval(SQL["log_name"])
            anchors = _trust_anchors(arguments, settings, log_name or "")
            if not anchors.keys:
                _print_error("signatures of checkpoints are not checked: name the log's key with --key")
            if arguments.correlation is not None:
                return await _verify_correlation(connection, arguments.correlation, anchors, settings, verify_whole)
            return await _verify_all(connection, settings, anchors, max(1, arguments.processes))
    finally:
        connection.terminate()


async def _verify_all(connection: Connection, settings: Settings, anchors: TrustAnchors, processes: int) -> int:
    started = time.monotonic()
    snapshot = await connection.fetchval(SQL["export_snapshot"])
    last_flush = await connection.fetchval(SQL["last_flush"])
    processes = processes if (last_flush or 0) > _SMALL_LOG else 1
    with process_pool(settings, snapshot, processes) as pool:
        run = pool.run if processes > 1 else sequential_runner(connection)
        result = await verify_database(connection, _with_progress(run), anchors, settings.hmac_key)
    _print_defects(result.defects.listed, result.defects.count)
    _print_lines(_summary(result))
    seconds, cpu = time.monotonic() - started, sum(pool.cpu_seconds.values()) + time.process_time()
    rate = result.events.total / max(cpu, 0.001)
    _print_lines([f"{seconds:.1f} s on {processes} process(es), {rate:,.0f} events per CPU-second"])
    return EXIT_DEFECTS if result.defects.count else EXIT_NO_DEFECTS


async def _verify_correlation(
    connection: Connection,
    correlation_id: str,
    anchors: TrustAnchors,
    settings: Settings,
    verify_whole: VerifyWhole | None,
) -> int:
    log_result = await verify_tree_and_checkpoints(connection, anchors)
    correlation_result = await verify_correlation(connection, correlation_id, log_result.log, settings.hmac_key)
    if correlation_result.gone_total and verify_whole is not None:
        correlation_result = await verify_whole(settings, log_result.log, correlation_id)
    if correlation_result.is_empty and not log_result.defects.count:
        raise Fatal(f"There is nothing about a correlation {correlation_id}.")
    defects = correlation_result.defects
    if correlation_result.head_defect is not None:
        defects.add(correlation_result.head_defect)
    defects.extend(log_result.defects)
    _print_defects(defects.listed, defects.count)
    _print_lines(_chain_summary(correlation_id, correlation_result))
    if defects.count:
        return EXIT_DEFECTS
    is_unread = correlation_result.archive_unread and settings.archive_url is not None
    return EXIT_NOT_VERIFIED if is_unread else EXIT_NO_DEFECTS


def _trust_anchors(arguments: argparse.Namespace, settings: Settings, log_name: str) -> TrustAnchors:
    """The keys and the checkpoint of the arguments; without --key the service's own keys. Fatal if one cannot be read."""
    keys: Sequence[PublicKey] = ()
    if arguments.key is not None:
        keys = read_public_keys(arguments.key)
    elif (own := signing_key(settings, log_name)) is not None:
        keys = own.all_public
    file = arguments.tsa or settings.tsa_certificates_file
    anchors = TrustAnchors(keys, certificates=() if file is None else read_certificates(file))
    if arguments.checkpoint is None:
        return anchors
    name = f"the checkpoint in {arguments.checkpoint}"
    from app.tlog.copies import read_checkpoint  # noqa: PLC0415 -- few verify against one

    return replace(anchors, checkpoint=read_checkpoint(arguments.checkpoint), checkpoint_name=name)


def _with_progress(run: Runner) -> Runner:
    """The runner, which also shows on a terminal how far it is."""

    async def run_and_show(items: Sequence[WorkItem], /) -> AsyncIterator[tuple[WorkItem, Any]]:
        total, done, shown_at = sum(item.weight for item in items), 0, 0.0
        async for item, result in run(items):
            done += item.weight
            if total and sys.stderr.isatty() and time.monotonic() - shown_at > _PROGRESS_SECONDS:
                shown_at = time.monotonic()
                sys.stderr.write(f"\r{done:,} of {total:,} positions\x1b[K")
            yield item, result
        if shown_at:
            sys.stderr.write("\r\x1b[K")

    return run_and_show


def _print_defects(defects: Iterable[Defect], count: int) -> None:
    for defect in defects:
        about = {"correlation": defect.correlation_id, "event": defect.event_id, "position": defect.position}
        where = ", ".join(f"{name} {value}" for name, value in about.items() if value not in {None, ""})
        _print_lines([f"{defect.message} ({where})" if where else defect.message])
    if count > DEFECTS_MAX:
        _print_lines([f"... and {count - DEFECTS_MAX:,} more defects"])


def _summary(result: DatabaseResult) -> Iterable[str]:
    for part in result.parts:
        events = part.events
        yield f"log {part.log.name}: {part.size:,} positions, {events.verified:,} of {events.total:,} events match the log"
        if (seam := part.seam) is not None:
            yield (f"closed {seam.at:%Y-%m-%d %H:%M:%SZ}, continued by {seam.log.name}: {seam.by}: {seam.reason}")
            yield from _admitted(seam, events.lost, part.admitted)
    events = result.events
    if events.purged or events.erased:
        yield f"purged: {events.purged:,} events, erased: {events.erased:,} events, as recorded in the log"
    if events.archived:
        yield f"archived: {events.archived:,} events that are in the archive only, as recorded in the log"
    signed = "".join(f", {count} signed with {label}" for label, count in result.signatures.items())
    yield f"{result.chains:,} chains, {result.checkpoints} checkpoints{signed}"
    if result.timestamps:
        yield f"{len(result.timestamps)} timestamps are valid; the last of these checkpoints {result.timestamps[-1]}"
    if result.unchecked_timestamps:
        yield f"{result.unchecked_timestamps} timestamps are NOT verified: name the authority's certificates with --tsa"
    yield from _unsealed_summary(result.unsealed)
    yield _notifications_summary(result.notifications)
    yield f"DEFECTS FOUND: {result.defects.count:,}" if result.defects.count else "no defects found"


def _admitted(seam: Seam, lost: int, checkpoints: int) -> Iterable[str]:
    """What the event that continued a log admits to be lost."""
    if seam.signed_size > seam.agreed_size:
        where = f"positions {seam.agreed_size:,} to {seam.signed_size - 1:,} of {seam.closed.name}"
        yield f"lost, as admitted: {where} are not those that were signed ({checkpoints} stored checkpoints)"
    if lost:
        yield f"lost, as admitted: {lost:,} events of {seam.closed.name} whose rows are missing"


def _chain_summary(correlation_id: str, result: CorrelationResult) -> Iterable[str]:
    chain = result.sealed
    yield (f"{correlation_id}: {chain.verified:,} of {chain.total:,} events match the log")
    if result.purged_total or chain.erased_total:
        yield f"purged: {result.purged_total:,} events, erased: {chain.erased_total:,} events, as recorded in the log"
    if result.archived_total:
        yield f"archived: {result.archived_total:,} events that are in the archive only, as recorded in the log"
    if result.archived_read:
        yield f"archived: {result.archived_read:,} of these events were read in the archive, which alone has them"
    if result.archive_unread and result.archived_total:
        yield f"NOT verified: what is in the archive only: {result.archive_unread}"
    yield from _unsealed_summary(result.unsealed)


def _unsealed_summary(unsealed: UnsealedResult) -> Iterable[str]:
    hashed, count = unsealed.total, unsealed.total + unsealed.unhashed
    where = f"{count:,} in {unsealed.correlations:,} correlation(s)"
    right = (
        f"; {unsealed.verified:,} of {hashed:,} with a hash have the right one" if hashed else ", all without a hash"
    )
    yield f"unsealed rows, which are not part of the log: {where + right if count else 'none'}"


def _notifications_summary(found: NotificationsResult) -> str:
    purged = f", {found.purged:,} lost theirs with an event that was purged" if found.purged else ""
    unsealed = f", {found.unsealed:,} unsealed" if found.unsealed else ""
    return f"notifications: {found.verified:,} of {found.total:,} have the digest that was logged{purged}{unsealed}"


def _print_lines(lines: Iterable[str]) -> None:
    sys.stdout.writelines(f"{visible(line)}\n" for line in lines)


def _print_error(text: str) -> None:
    sys.stderr.write(f"{text}\n")
