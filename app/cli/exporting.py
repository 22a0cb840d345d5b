"""`datastorage export`: fetches the bundle of one correlation from a service, and stores it as a file. A client: HTTP only."""

import argparse
import sys

from app.cli.client import Service, add_service, segment
from app.cli.output import progress, store
from app.cli.parser import Commands, file
from app.errors import Fatal
from app.terminal import visible


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "export", help="fetch all of one correlation with its proofs from a service, as one file"
    )
    parser.description = (
        "The file has events, proofs, holds, notifications and a page of words; `verify-export` verifies it offline."
    )
    parser.add_argument("correlation_id", metavar="CORRELATION_ID", help="of the remediation, such as rr-42")
    parser.add_argument("-o", "--output", type=file, required=True, metavar="FILE", help="replaced if it exists")
    parser.add_argument(
        "--redact-pii", action="store_true", help="mask e-mail and IP addresses, telephone and card numbers"
    )
    parser.add_argument(
        "--no-archive", action="store_true", help="only what the database has, if the archive is slow or away"
    )
    add_service(parser)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    """Fetch the bundle and store it whole, or not at all. Raises Fatal when the service does not answer, or refuses."""
    from app.export.bundle import manifest_of, parse

    service = Service.of(arguments)
    path = f"/api/v1/audit/correlations/{segment(arguments.correlation_id)}/bundle"
    wanted = {"redact_pii": "true"} if arguments.redact_pii else {}
    wanted |= {"archive": "exclude"} if arguments.no_archive else {}
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
