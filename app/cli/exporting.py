"""`datastorage export`: fetches the bundle of one correlation from a service, or the events of a time, and stores them as a file. A client: HTTP only."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from app.cli import filters
from app.cli.client import Service, add_service, segment
from app.cli.output import note_left_out, progress, store, storing
from app.cli.parser import Commands, file
from app.cli.times import Clock
from app.errors import Fatal, Usage
from app.terminal import visible

if TYPE_CHECKING:
    from app.export.manifest import Manifest


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "export", help="fetch all of one correlation with its proofs, or the events of a time, as one file"
    )
    parser.description = (
        "Of one correlation the file has events, proofs, holds, notifications and a page of words. Else it has the events that the "
        "filters find, such as those of a month, in the order of the log, with signed manifests. `verify-export` verifies either offline."
    )
    parser.add_argument(
        "correlation_id",
        metavar="CORRELATION_ID",
        nargs="?",
        help="of the remediation, such as rr-42; without it, filters say which events",
    )
    parser.add_argument("-o", "--output", type=file, required=True, metavar="FILE", help="replaced if it exists")
    parser.add_argument(
        "--redact-pii", action="store_true", help="mask e-mail and IP addresses, telephone and card numbers"
    )
    archive = parser.add_mutually_exclusive_group()
    archive.add_argument(
        "--archive",
        action="store_true",
        help="also what was removed from the database and is in the archive; without it, only where the database has nothing that is not "
        "later than --until. A correlation's is in its file anyway",
    )
    archive.add_argument(
        "--no-archive", action="store_true", help="only what the database has, if the archive is slow or away"
    )
    parser.add_argument("--format", choices=["ndjson", "csv"], help="of events that filters find (ndjson)")
    filters.add_filters(parser, "the event's time")
    add_service(parser)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    """Fetch the file and store it whole, or not at all. Raises Fatal when the service does not answer, or refuses; Usage if it is not said which events."""
    wanted = filters.parameters_of(arguments, Clock(arguments.zone).zone_name)
    if arguments.format:
        wanted["format"] = arguments.format
    wanted |= {"redact_pii": "true"} if arguments.redact_pii else {}
    wanted |= {"archive": "exclude"} if arguments.no_archive else {}
    is_filtered = bool(wanted.keys() - {"redact_pii", "archive", "format", "zone"})
    if arguments.correlation_id is None:
        if not is_filtered:
            raise Usage("which events? A CORRELATION_ID, or filters such as --since 2026-03-01 --until 2026-04-01")
        _export_events(arguments, wanted | ({"archive": "include"} if arguments.archive else {}))
    elif is_filtered or arguments.format:
        raise Usage(
            "a correlation is exported whole: without CORRELATION_ID, --correlation finds its events as other filters do"
        )
    else:
        _export_bundle(arguments, wanted)


def _export_bundle(arguments: argparse.Namespace, wanted: filters.Sent) -> None:
    from app.export.bundle import manifest_of, parse

    service = Service.of(arguments)
    path = f"/api/v1/audit/correlations/{segment(arguments.correlation_id)}/bundle"
    with progress("waiting for the bundle ..."):
        content = service.get_once_covered(path, wanted).content
    try:
        found = parse(content)
        manifest = manifest_of(found)
    except ValueError as error:
        raise Fatal(f"{service.shown_url} has answered with something else than a bundle: {error}") from None
    store(arguments.output, content)
    size = found.bundle.logs[-1].size
    covered = (
        "NOTHING IN IT IS PROVED: the service has no key for checkpoints"
        if size is None
        else f"proved in a log of {size:,} events"
    )
    sys.stdout.write(
        f"{arguments.output}: {manifest.events} event(s) and {manifest.notifications} notification(s) of "
        f"{visible(manifest.correlation_id)}, {covered}\n"
        f"erased: {manifest.erased}, gaps: {manifest.gaps}, rows that are not in the log: {manifest.unproved}; "
        f"personal data {'masked' if manifest.redacted else 'not masked'}; {len(content):,} bytes\n"
        f"It begins with a page that anybody can read. To verify it, anywhere and without the service:\n"
        f"  datastorage verify-export {arguments.output} --key KEY\n"
        f"KEY is the public key of {visible(manifest.log)}, or a file with it, as its operator has published it ({service.shown_url}/tlog/key).\n"
    )


def _export_events(arguments: argparse.Namespace, wanted: filters.Sent) -> None:
    service = Service.of(arguments)
    with storing(arguments.output) as file:
        with progress(f"fetching events from {service.shown_url} ..."):
            service.fetch("/api/v1/audit/export", {"format": "ndjson"} | wanted, file)
        size = file.tell()
        manifests = _manifests(file, service)
    _tell(arguments.output, manifests, size, service)


def _manifests(file: BinaryIO, service: Service) -> "list[Manifest]":
    """Those of a whole file; nobody has verified them. Fatal if it is none."""
    from app.export.file import RecordReader
    from app.export.manifest import open_envelope

    file.seek(0)
    records = RecordReader(file)
    try:
        found = [open_envelope(records.envelope(one), [])[0] for one in records if records.is_manifest(one)]
    except ValueError as error:
        raise Fatal(f"{service.shown_url} has answered with something else than an export: {error}") from None
    if not found or found[-1].next is not None:
        raise Fatal(f"{service.shown_url} has ended the export before its end: nothing is kept of it")
    return found


def _tell(path: Path, manifests: "list[Manifest]", size: int, service: Service) -> None:
    from app.export.manifest import LeftOut

    last = manifests[-1]
    archived = sum(part.events for one in manifests for part in one.archived)
    erased, unsealed = sum(one.erased for one in manifests), sum(one.unsealed for one in manifests)
    sys.stdout.write(
        f"{path}: {sum(one.events for one in manifests):,} event(s) of {visible(last.log)}, {archived:,} of them from the archive\n"
        f"erased: {erased:,}, rows that are not in the log: {unsealed:,}; personal data {'masked' if last.redacted else 'not masked'}; {size:,} bytes\n"
        f"To verify it, anywhere and without the service:\n"
        f"  datastorage verify-export {path} --key KEY\n"
        f"KEY is the public key of {visible(last.log)}, or a file with it, as its operator has published it ({service.shown_url}/tlog/key).\n"
    )
    note_left_out(LeftOut.member(last.left_out).get("left_out"), "--archive exports those that match too")
