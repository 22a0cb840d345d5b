"""`datastorage export`: fetches the bundle of one correlation from a service, and stores it as a file. A client: HTTP only."""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

from app.errors import Fatal
from app.terminal import one_line

_TIMEOUT_SECONDS = 300.0
_WAIT_SECONDS_MAX = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "The file has events, proofs, holds, notifications and a page of words; `verify-export` verifies it offline."
    )
    parser.add_argument("correlation_id", metavar="CORRELATION_ID", help="of the remediation, such as rr-42")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="replaced if it exists")
    parser.add_argument(
        "--redact-pii", action="store_true", help="mask e-mail and IP addresses, telephone and card numbers"
    )
    parser.add_argument("--url", default="http://127.0.0.1:8080", help="of the service (http://127.0.0.1:8080)")
    parser.add_argument("--token", help="sent as a bearer token")


def run(arguments: argparse.Namespace) -> None:
    """Fetch the bundle and store it whole, or not at all. Raises Fatal when the service does not answer, or refuses."""
    from app.export.bundle import manifest_of, parse  # noqa: PLC0415 -- every command reads these arguments

    content = _fetch(arguments)
    try:
        file = parse(content)
        manifest = manifest_of(file)
    except ValueError as error:
        raise Fatal(f"{arguments.url} has answered with something else than a bundle: {error}") from None
    _store(arguments.output, content)
    size = file.bundle.logs[-1].size
    covered = (
        "NOTHING IN IT IS PROVED: the service has no key for checkpoints"
        if size is None
        else f"proved in a log of {size:,} events"
    )
    sys.stdout.write(
        f"{arguments.output}: {manifest.events} event(s) and {manifest.notifications} notification(s) of "
        f"{one_line(manifest.correlation_id)}, {covered}\n"
        f"erased: {manifest.erased}, gaps: {manifest.gaps}, rows that are not in the log: {manifest.unproved}; "
        f"personal data {'masked' if manifest.redacted else 'not masked'}; {len(content):,} bytes\n"
        f"It begins with a page that anybody can read. To verify it, anywhere and without the service:\n"
        f"  datastorage verify-export {arguments.output} --key KEY\n"
        f"KEY is the public key of {one_line(manifest.log)}, or a file with it, as its operator has published it ({arguments.url}/tlog/key).\n"
    )


def _fetch(arguments: argparse.Namespace) -> bytes:
    """The answer. An event that no checkpoint covers yet is waited for, some seconds at most."""
    import httpx  # noqa: PLC0415 -- as above

    url = f"{arguments.url}/api/v1/audit/correlations/{quote(arguments.correlation_id, safe='')}/bundle"
    headers = {} if arguments.token is None else {"Authorization": f"Bearer {arguments.token}"}
    parameters = {"redact_pii": "true"} if arguments.redact_pii else {}
    end = time.monotonic() + _WAIT_SECONDS_MAX
    while True:
        try:
            answer = httpx.get(url, params=parameters, headers=headers, timeout=_TIMEOUT_SECONDS)
        except (httpx.TransportError, httpx.InvalidURL) as error:
            reason = str(error) or type(error).__name__
            raise Fatal(f"no service answers at {arguments.url} ({reason})") from None
        if answer.is_success:
            return answer.content
        if answer.status_code != 503 or time.monotonic() > end:
            raise Fatal(_problem(answer))
        time.sleep(float(answer.headers.get("retry-after", "1")))


def _problem(answer: Any) -> str:
    try:
        return str(answer.json()["detail"])
    except (ValueError, LookupError, TypeError):
        return f"the service answered {answer.status_code}: {answer.text[:200].strip()}"


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
