"""`datastorage archive` and `verify-archive`: months of the log as verified files in a table that others read."""

import argparse
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from app.cli import output
from app.cli.exits import Exit
from app.cli.parser import Commands, add_group
from app.cli.retention import print_space
from app.cli.verifying import KEY_HELP
from app.errors import Fatal
from app.terminal import visible

if TYPE_CHECKING:
    from app.archive.check import PartResult
    from app.archive.compare import ArchiveResult, Depth
    from app.archive.expiring import Expiries, Outlook
    from app.archive.removing import Removal
    from app.archive.session import Progress, Selection
    from app.settings import Settings
    from app.tlog.note import PublicKey

_PROGRESS_SECONDS = 1.0
_PROGRESS_LINE_SECONDS = 10.0
_NEEDS = "The archive needs more packages: pip install 'datastorage[archive]'."


def add(commands: Commands) -> None:
    acts = add_group(commands, "archive", "copy months to the archive, verified, and look at it")
    plan = acts.add_parser("plan", help="show what a run would archive; changes nothing")
    output.add_output(plan)
    plan.add_argument(
        "--expire",
        action="store_true",
        help="show part by part what would expire, and when; reads all files of the archive",
    )
    plan.set_defaults(run=_plan)
    run = acts.add_parser("run", help="archive what is past archive_after_days, and remove it from Postgres if told to")
    run.description = (
        "First it writes each part again of which something was erased since. "
        "Exit code 1: rows that are not as the log has them were not archived, or erased events are still there, or something was not removed "
        "that could not be verified, or that a sink has yet to be sent, or a part that is over is not as the log records it; the rest was done."
    )
    run.add_argument(
        "--remove",
        action="store_true",
        help="remove from Postgres the archived events that nothing holds, once their files were read again and verified",
    )
    run.add_argument(
        "--expire",
        action="store_true",
        help="delete the parts of which every event is over, as `retention run` would purge it, and nothing is held; then they are purged",
    )
    run.set_defaults(run=_run)
    for command in (plan, run):
        command.add_argument("--month", type=_month, metavar="YYYY-MM", help="only this one")
        command.add_argument("--partial", action="store_true", help="also of months that are not past it as a whole")
    listing = acts.add_parser("list", help="the parts that are archived, as the log records them")
    output.add_output(listing)
    listing.set_defaults(run=_list)
    verify = acts.add_parser("verify", help="verify the archive against the log, and the table that engines read")
    verify.description = "Exit code 0: nothing is wrong; 1: something is; 2: it could not be looked at."
    depth = verify.add_mutually_exclusive_group()
    depth.add_argument("--sample", action="store_true", help="the rows of ten parts only, and all manifests")
    depth.add_argument("--manifests", action="store_true", help="manifests and the table only")
    verify.add_argument("--key", help=f"{KEY_HELP}; that of the settings if absent")
    verify.set_defaults(run=_verify)
    _add_restore(acts)
    _add_verify_archive(commands)


def _add_restore(acts: Commands) -> None:
    restore = acts.add_parser("restore", help="write the events of a month, or of one part, to a file, verified")
    restore.description = (
        "One JSON object a line, as an export has them, with salts and all that was not erased; `verify --copy` compares it with the "
        "database. Exit code 1: a part is not as it was signed, and nothing was written."
    )
    which = restore.add_mutually_exclusive_group(required=True)
    which.add_argument("--month", type=_month, metavar="YYYY-MM", help="all its parts")
    which.add_argument("--part", type=UUID, metavar="ID", help="the archive_id of one")
    restore.add_argument("--output", type=Path, required=True, metavar="FILE", help="a new file")
    restore.add_argument("--key", help=f"{KEY_HELP}; that of the settings if absent")
    restore.set_defaults(run=_restore)


def _add_verify_archive(commands: Commands) -> None:
    verify = commands.add_parser(
        "verify-archive", help="verify parts of the archive by their files: no service, no database"
    )
    verify.add_argument("directories", nargs="+", type=Path, metavar="DIRECTORY", help="of a part, or of several")
    verify.add_argument("--key", required=True, help=KEY_HELP)
    verify.add_argument("--processes", type=int, metavar="N", help="as many as there are cores if absent")
    verify.description = "Exit code 0: all of it holds; 1: it does not; 2: a file or a key could not be read."
    verify.set_defaults(run=_verify_archive)


def _month(text: str) -> date:
    try:
        return date.fromisoformat(f"{text}-01")
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a month such as 2026-01") from None


@contextmanager
def needing_extra() -> Iterator[None]:
    """Around the imports of what the extra has."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in {"pyarrow", "pyiceberg"}:
            raise Fatal(_NEEDS) from None
        raise


def _selection(arguments: argparse.Namespace) -> "Selection":
    from app.archive.session import Selection

    remove = getattr(arguments, "remove", False)
    return Selection(arguments.month, arguments.partial, remove=remove, expire=arguments.expire)


def _plan(arguments: argparse.Namespace) -> None:
    import asyncio

    with needing_extra():
        from app.archive import run
    from app.cli.database import settings_for_removal
    from app.retention.clock import agreed_time

    settings = settings_for_removal()
    now = asyncio.run(agreed_time(settings))
    if arguments.expire:
        _print_outlook(arguments, asyncio.run(run.plan_expiry(settings, now, _selection(arguments))))
        return
    months = asyncio.run(run.plan(settings, now, _selection(arguments)))
    rows = [
        {"month": f"{one.month:%Y-%m}", "log": one.log.name, "events": one.events, "archived": one.archived}
        | {"due": one.due, "not_signed": one.unsigned, "not_due": one.young, "unsealed": one.unsealed}
        | {"erased_since": one.erased}
        for one in months
        if one.events or one.unsealed or one.erased
    ]
    with output.shown(arguments) as out:
        if out.is_json:
            for row in rows:
                out.record(row)
        else:
            head = ["month", "log", "events", "archived", "due", "not signed", "not due", "unsealed", "erased since"]
            out.table(head, [[str(cell) for cell in row.values()] for row in rows])


def _print_outlook(arguments: argparse.Namespace, found: "Iterable[Outlook]") -> None:
    rows = [
        {"month": one.part.month, "log_id": one.part.log_id, "archive_id": str(one.part.archive_id)}
        | {"events": one.part.positions.size, "expires": one.is_due, "not_over": one.judged.not_over}
        | {"until": None if one.until is None else f"{one.until:%Y-%m-%dT%H:%M:%SZ}"}
        | {"held": one.judged.held, "holds": sorted(one.judged.holds), "never_purged": len(one.judged.without_end)}
        | {"in_postgres": one.in_postgres, "problem": one.problem}
        for one in found
    ]
    with output.shown(arguments) as out:
        if out.is_json:
            for row in rows:
                out.record(row)
            return
        head = [
            "month",
            "log",
            "events",
            "expires",
            "not over",
            "until",
            "held",
            "in postgres",
            "never purged",
            "part",
            "problem",
        ]
        names = ("month", "log_id", "events", "expires", "not_over", "until", "held", "in_postgres", "never_purged", "archive_id", "problem")  # fmt: skip
        words = {"True": "yes", "False": "no", "None": ""}
        cells = [[str(row[name]) for name in names] for row in rows]
        out.table(head, [[words.get(cell, cell) for cell in row] for row in cells])


def _run(arguments: argparse.Namespace) -> Exit:
    import asyncio

    with needing_extra():
        from app.archive import run
    from app.cli.database import settings_for_removal
    from app.retention.clock import agreed_time

    settings = settings_for_removal()
    now = asyncio.run(agreed_time(settings))
    shown = _Shown()
    try:
        done = asyncio.run(run.run(settings, now, _selection(arguments), show=shown))
    finally:
        shown.end()
    if done.deleted_attempts:
        print(f"Deleted what {done.deleted_attempts} interrupted run(s) had begun.")
    for part in done.parts:
        size = sum(file.bytes for file in part.files)
        print(visible(f"{part.month} of {part.log}: {part.events} events, {size:,} bytes, part {part.archive_id}."))
    for part in done.rewritten:
        count = part.replaces[-1].erased_count
        print(visible(f"{part.month} of {part.log}: {count} erased events are gone, part {part.archive_id}."))
    if not done.parts and not done.rewritten:
        print("Nothing was due.")
    for one in done.locks.locked:
        print(visible(f"{one.month}: a hold covers events of part {one.archive_id}: its files are locked."))
    for one in done.locks.lifted:
        print(visible(f"{one.month}: no hold covers part {one.archive_id} any more: its files are not locked."))
    is_removed = done.removal is None or _print_removal(done.removal)
    is_expired = done.expiries is None or _print_expiries(done.expiries)
    for why in [*done.locks.problems, *done.pending]:
        print(visible(f"Not done: {why}."), file=sys.stderr)
    for defect in done.left.listed:
        print(visible(f"Not archived: {defect.message} (position {defect.position})."), file=sys.stderr)
    if done.left.count:
        print(f"{done.left.count} defect(s): `datastorage verify` has more.", file=sys.stderr)
    return (
        Exit.DEFECT
        if done.left.count or done.pending or done.locks.problems or not is_removed or not is_expired
        else Exit.AS_ASKED
    )


def _print_removal(removal: "Removal") -> bool:
    """Print what was removed from Postgres. Whether nothing stayed that should not."""
    for one in removal.removed:
        print(visible(f"{one.part.month}: {one.events} events removed from Postgres, of part {one.part.archive_id}."))
    if not removal.removed:
        print("Nothing was removed from Postgres.")
    print_space(removal.space)
    reasons = [f"Not done: {why}" for why in removal.refused]
    reasons += [f"Not removed: {defect.message} (position {defect.position})" for defect in removal.left.listed]
    reasons += [difference.message for difference in removal.differences]
    reasons += [sink.message for sink in removal.held_back_by]
    for reason in reasons:
        print(visible(f"{reason}."), file=sys.stderr)
    return not reasons


def _print_expiries(expiries: "Expiries") -> bool:
    """Print what of the archive has expired. Whether nothing stayed that should not."""
    for one in expiries.expired:
        text = f"{one.part.month}: part {one.part.archive_id} has expired, its {one.events} events are purged"
        kept = one.part.positions.size - one.events
        print(visible(f"{text}; {kept} of it are never purged, and stay in Postgres." if kept else f"{text}."))
    for why in expiries.waiting:
        print(visible(f"Not yet: {why}."))
    if not expiries.expired and not expiries.waiting:
        print("Nothing of the archive has expired.")
    reasons = [f"Not done: {why}" for why in expiries.refused]
    reasons += [difference.message for difference in expiries.differences]
    for reason in reasons:
        print(visible(f"{reason}."), file=sys.stderr)
    return not reasons


class _Shown:
    """Shows how far a run is: on a terminal in one line, else a line every ten seconds."""

    def __init__(self) -> None:
        self._at = time.monotonic()
        self._on_terminal = sys.stderr.isatty()

    def __call__(self, progress: "Progress") -> None:
        now = time.monotonic()
        if now - self._at < (_PROGRESS_SECONDS if self._on_terminal else _PROGRESS_LINE_SECONDS):
            return
        self._at = now
        left = progress.seconds_left
        rate = progress.done / progress.seconds if progress.seconds else 0
        text = f"{progress.month}: {progress.stage}, {progress.done:,} of {progress.total:,} events, {rate:,.0f}/s"
        text += f", {left:,.0f} s left" if left is not None else ""
        sys.stderr.write(f"\r{text}\x1b[K" if self._on_terminal else f"{text}\n")
        sys.stderr.flush()

    def end(self) -> None:
        """Leave an empty line for what follows."""
        if self._on_terminal:
            sys.stderr.write("\r\x1b[K")


def _list(arguments: argparse.Namespace) -> None:
    import asyncio

    with needing_extra():
        from app.archive.compare import list_recorded, list_removed
    from app.cli.database import settings_for_removal

    settings = settings_for_removal()
    (recorded, locks), removed = asyncio.run(list_recorded(settings)), asyncio.run(list_removed(settings))
    expired = {one.part.archive_id: f"{one.recorded_at:%Y-%m-%dT%H:%M:%SZ}" for one in recorded.expired}
    rows = [
        {"month": one.month, "log_id": one.log_id, "events": one.positions.size}
        | {"removed": removed[one.archive_id].size if one.archive_id in removed else 0}
        | {"archived_at": f"{one.recorded_at:%Y-%m-%dT%H:%M:%SZ}", "expired_at": expired.get(one.archive_id)}
        | {"locked_for": sorted(locks.get(one.archive_id, ()))}
        | {"archive_id": str(one.archive_id), "replaces": [str(former.archive_id) for former in one.replaced]}
        | {"location": one.location, "manifest_sha256": one.manifest_sha256}
        for one in recorded.every
    ]
    with output.shown(arguments) as out:
        if out.is_json:
            for row in rows:
                out.record(row)
        else:
            names = ("month", "log_id", "events", "removed", "archived_at", "expired_at", "holds", "location")
            cells = [row | {"holds": len(locks.get(UUID(str(row["archive_id"])), ()))} for row in rows]
            out.table(
                ["month", "log", "events", "removed", "archived at", "expired at", "holds", "location"],
                [["" if row[n] is None else str(row[n]) for n in names] for row in cells],
            )


def _verify(arguments: argparse.Namespace) -> Exit:
    import asyncio

    with needing_extra():
        from app.archive.compare import verify_archive
    from app.cli.database import settings_for_removal

    settings = settings_for_removal()
    keys = keys_for_archive(settings, arguments.key)
    depth: Depth = "sample" if arguments.sample else "manifests" if arguments.manifests else "all"
    result = asyncio.run(verify_archive(settings, keys, depth))
    print_parts(result)
    _print_problems("the table", result.table_problems, len(result.table_problems))
    _print_problems("expired", result.expired_problems, len(result.expired_problems))
    events, removed = sum(part.positions.size for part, _ in result.parts), sum(result.removed.values())
    print(f"{len(result.parts)} part(s) of {events:,} events are recorded; {result.verified:,} rows were verified")
    if result.expired:
        gone = sum(one.positions.size for one in result.expired)
        print(f"{len(result.expired)} part(s) have expired: {gone:,} events of them are purged")
    if removed:
        print(f"{removed:,} of these events are in the archive only")
    if result.locked:
        print(f"{len(result.locked)} part(s) are under hold: their files are locked, as the log records it")
    for one in result.lock_pending:
        print(
            visible(
                f"{one.month} {one.archive_id}: the next `archive run` locks its files, or lifts that, as holds want it"
            )
        )
    if result.locks_unseen:
        print(visible(f"which files are locked was not seen: {result.locks_unseen}"))
    for part, erased in result.pending:
        what = f"{erased.size:,} event(s), at {erased}, were erased since"
        print(visible(f"{part.month} {part.archive_id}: {what}: they are in the archive until the next `archive run`"))
    for location in result.unknown:
        print(
            visible(
                f"{location}: the log records no part there, so no erasure reaches it: it is of another database, or of a run that this one "
                "has forgotten by a restore or a failover"
            )
        )
    for location in result.undeleted:
        print(
            visible(
                f"{location} was replaced or has expired, but is not deleted yet: it has what was erased, or is over"
            )
        )
    print(f"{result.problem_count} problem(s)" if result.problem_count else "the archive is as the log records it")
    return Exit.DEFECT if result.problem_count else Exit.AS_ASKED


def keys_for_archive(settings: "Settings", named: str | None) -> "tuple[PublicKey, ...]":
    """The public keys that are named, else those of the settings."""
    import asyncio

    from app.tlog.keys import read_public_keys, signing_key

    if named is not None:
        return tuple(read_public_keys(named))
    key = signing_key(settings, asyncio.run(_first_log_name(settings)))
    if key is None:
        raise Fatal("Nothing can be verified without a key: name the log's public one with --key.")
    return key.all_public


def _restore(arguments: argparse.Namespace) -> Exit:
    import asyncio

    with needing_extra():
        from app.archive.restoring import Wanted, restore
    from app.cli.database import settings_for_removal

    settings = settings_for_removal()
    keys, wanted = keys_for_archive(settings, arguments.key), Wanted(arguments.month, arguments.part)
    done = asyncio.run(restore(settings, keys, wanted, arguments.output))
    for one in done.problems:
        _print_problems(one.folder, one.problems, one.problem_count)
    if done.problems:
        print(f"{len(done.problems)} part(s) are not as they were signed; nothing was written")
        return Exit.DEFECT
    print(
        visible(
            f"{done.events:,} events are in {arguments.output}, {done.erased:,} of them erased since they were archived"
        )
    )
    return Exit.AS_ASKED


async def _first_log_name(settings: "Settings") -> str:
    from app.archive.writing import connect_archive
    from app.retention.logged import read_open_log

    connection = await connect_archive(settings)
    try:
        return (await read_open_log(connection, settings)).first_name
    finally:
        await connection.close()


def print_parts(result: "ArchiveResult") -> None:
    """Print what is wrong with parts; of which of their events there is no other copy, and how many are in none of them."""
    if result.in_no_part:
        print(
            f"removed: {result.in_no_part:,} events that Postgres has no longer are in no part any more: what the log records later "
            "in place of their part has less"
        )
    for part, one in result.parts:
        _print_problems(f"{part.month} {part.archive_id}", one.problems, one.problem_count)
        if one.problem_count and part.archive_id in result.removed:
            count = result.removed[part.archive_id]
            print(
                visible(
                    f"{part.month} {part.archive_id}: Postgres has {count:,} of its events no longer: this is their only copy"
                )
            )


def _print_problems(where: str, problems: Iterable[str], count: int) -> None:
    shown = 0
    for problem in problems:
        print(visible(f"{where}: {problem}"))
        shown += 1
    if count > shown:
        print(f"{where}: ... and {count - shown:,} more")


def _verify_archive(arguments: argparse.Namespace) -> Exit:
    with needing_extra():
        from app.archive.check import Checker, check_chain
        from app.archive.storage import directory_storage
    from app.tlog.keys import read_public_keys, signature_lines

    keys = read_public_keys(arguments.key)
    results: list[PartResult] = []
    with Checker(keys, arguments.processes) as checker:
        for directory in arguments.directories:
            if not directory.is_dir():
                raise Fatal(f"There is no directory {directory}.")
            storage = directory_storage(directory)
            folders = list(storage.part_folders())
            if not folders:
                raise Fatal(f"There is no part of an archive in {directory}: it would have a manifest.json.")
            results += [checker.check(storage, folder) for folder in folders]
    for result, problem in check_chain(results):
        result.add(problem)
    for result in results:
        manifest = result.manifest
        name = "?" if manifest is None else f"{manifest.month} {manifest.archive_id}"
        _print_problems(name, result.problems, result.problem_count)
        if manifest is not None and not result.problem_count:
            print(
                visible(
                    f"{name}: {result.events:,} events of {manifest.log} are as the log has them, {result.erased} erased"
                )
            )
            for line in signature_lines(result.signers, [key for key in keys if key.name == manifest.log]):
                print(visible(f"  {line}"))
    count = sum(result.problem_count for result in results)
    print(f"{count} problem(s)" if count else f"{len(results)} part(s) are complete and unchanged")
    return Exit.DEFECT if count else Exit.AS_ASKED
