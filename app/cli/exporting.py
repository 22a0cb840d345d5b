"""`datastorage export`: fetches the bundle of one correlation from a service, and stores it as a file. A client: HTTP only."""

import argparse
import os
import sys
import time
from pathlib import Path

from app.cli.client import Service, add_service, refusal, segment
from app.cli.output import progress
from app.cli.parser import Commands
from app.errors import Fatal
from app.terminal import visible

_TIMEOUT_SECONDS = 300.0
_WAIT_SECONDS_MAX = 60.0


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "export", help="fetch all of one correlation with its proofs from a service, as one file"
    )
    parser.description = (
        "The file has events, proofs, holds, notifications and a page of words; `verify-export` verifies it offline."
    )
    parser.add_argument("correlation_id", metavar="CORRELATION_ID", help="of the remediation, such as rr-42")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="replaced if it exists")
    parser.add_argument(
        "--redact-pii", action="store_true", help="mask e-mail and IP addresses, telephone and card numbers"
    )
    add_service(parser)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    """Fetch the bundle and store it whole, or not at all. Raises Fatal when the service does not answer, or refuses."""
    from app.export.bundle import manifest_of, parse

    service = Service.of(arguments)
    with progress("waiting for the bundle ..."):
        content = _fetch(service, arguments.correlation_id, redacted=arguments.redact_pii)
    try:
        file = parse(content)
        manifest = manifest_of(file)
    except ValueError as error:
        raise Fatal(f"{service.shown_url} has answered with something else than a bundle: {error}") from None
    _store(arguments.output, content)
    size = file.bundle.logs[-1].size
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


def _fetch(service: Service, correlation_id: str, *, redacted: bool) -> bytes:
    """The answer. An event that no checkpoint covers yet is waited for, some seconds at most."""
    path = f"/api/v1/audit/correlations/{segment(correlation_id)}/bundle"
    parameters = {"redact_pii": "true"} if redacted else {}
    end = time.monotonic() + _WAIT_SECONDS_MAX
    while True:
        with service.errors():
            answer = service.http.get(path, params=parameters, timeout=_TIMEOUT_SECONDS)
        if answer.is_success:
            return answer.content
        if answer.status_code != 503 or time.monotonic() > end:
            raise refusal(answer)
        time.sleep(float(answer.headers.get("retry-after", "1")))


def _store(path: Path, content: bytes) -> None:
    """Write the file at once: whoever finds it finds it whole, also after a crash."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with new.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
