"""`datastorage verify-proof`, `verify-timestamp`, `verify-export` and `checkpoint-key`: files and keys; no service, no database."""

import argparse
import sys
from pathlib import Path

from app.cli.exits import Exit
from app.cli.parser import Commands
from app.errors import Fatal
from app.terminal import visible, visible_json

TSA_HELP = "PEM of the timestamp authority's certificate, or of its issuer's and those between"
KEY_HELP = "of the log as /tlog/key shows it, or a file that holds it"


class _TimestampNotProved(Exception):
    """A proof's timestamp does not show what it should."""


def add(commands: Commands) -> None:
    proof = commands.add_parser("verify-proof", help="verify the proof of one event; needs no service and no database")
    proof.add_argument("file", type=Path, metavar="FILE", help="from `datastorage proof`, or the event's route /proof")
    proof.add_argument("--key", required=True, help=KEY_HELP)
    proof.add_argument("--tsa", type=Path, metavar="FILE", help=TSA_HELP)
    proof.set_defaults(run=_verify_proof)
    timestamp = commands.add_parser("verify-timestamp", help="verify when a checkpoint existed; needs no service")
    timestamp.add_argument("file", type=Path, metavar="FILE", help="from GET /tlog/timestamp")
    timestamp.add_argument("--key", required=True, help=KEY_HELP)
    timestamp.add_argument("--tsa", type=Path, required=True, metavar="FILE", help=TSA_HELP)
    timestamp.set_defaults(run=_verify_timestamp)
    export = commands.add_parser("verify-export", help="verify an export by itself: no service, database or network")
    export.add_argument("files", nargs="+", type=Path, metavar="FILE", help="the export, or its parts in their order")
    export.add_argument(
        "--key",
        required=True,
        help="the public key as /tlog/key shows it, or a file that holds it; for format=json the certificate's file",
    )
    export.add_argument("--tsa", type=Path, metavar="FILE", help=f"{TSA_HELP}; for a bundle")
    export.set_defaults(run=_verify_export)
    for command in (proof, timestamp, export):
        command.description = "Exit code 0: all of it holds; 1: it does not; 2: a file or a key could not be read."
    key = commands.add_parser("checkpoint-key", help="make a private key that signs checkpoints, and print its path")
    key.add_argument("file", type=Path, metavar="FILE", help="to write the PEM to; it must not exist")
    key.add_argument("--algorithm", choices=["ed25519", "ml-dsa-44"], default="ed25519", help="ed25519 if absent")
    key.set_defaults(run=_checkpoint_key)


def _verify_proof(arguments: argparse.Namespace) -> Exit:
    from app.events.canonical import canonical_exact
    from app.tlog.keys import read_public_keys, signature_lines
    from app.tlog.note import MalformedNote, NoValidSignature
    from app.tlog.proof import verify_proof_file

    keys, file = read_public_keys(arguments.key), arguments.file.read_bytes()
    try:
        proved = verify_proof_file(file, keys)
        stamped = _timestamp_lines(proved.token, proved.note, arguments.tsa)
    except (MalformedNote, NoValidSignature, _TimestampNotProved) as error:
        return _not_proved(error)
    checkpoint, record = proved.checkpoint, proved.record
    print(
        f"Proved: event {record['event_id']} is at position {record['log_index']} of a log of {checkpoint.size} events."
    )
    print(f"log   {visible(checkpoint.origin)}\nroot  {checkpoint.root.hex()}")
    if (seam := proved.seam) is not None:
        print(
            f"That log was closed after a loss. Its root stands in the first event of {seam.record['log']}, which is proved."
        )
    signed = proved
    while signed.seam is not None:
        signed = signed.seam
    lines = signature_lines(signed.signers, [key for key in keys if key.name == signed.checkpoint.origin])
    print("\n".join([*lines, *stamped]))
    shown = {"record": record} | ({} if proved.committed is None else {"committed": proved.committed})
    print(visible_json(canonical_exact(shown).decode()))
    return Exit.AS_ASKED


def _verify_timestamp(arguments: argparse.Namespace) -> Exit:
    from app.tlog.keys import read_public_keys, signature_lines
    from app.tlog.note import MalformedNote, NoValidSignature
    from app.tlog.timestamp import WrongTimestamp, read_certificates, verify_timestamp_file

    keys, certificates = read_public_keys(arguments.key), read_certificates(arguments.tsa)
    file = arguments.file.read_bytes()
    try:
        checkpoint, signers, shown = verify_timestamp_file(file, keys, certificates)
    except (MalformedNote, NoValidSignature, WrongTimestamp) as error:
        return _not_proved(error)
    print(f"Proved: the checkpoint of {checkpoint.size} events {shown}.")
    print(f"log   {visible(checkpoint.origin)}\nroot  {checkpoint.root.hex()}")
    print("\n".join(signature_lines(signers, [key for key in keys if key.name == checkpoint.origin])))
    return Exit.AS_ASKED


def _not_proved(error: Exception) -> Exit:
    sys.stderr.write(f"datastorage: Not proved: {visible(str(error))}.\n")
    return Exit.DEFECT


def _timestamp_lines(token: bytes | None, note: str, certificates: Path | None) -> list[str]:
    """What a proof's timestamp shows, in words. _TimestampNotProved when it is not valid, or is missing although it is to be verified."""
    if certificates is None:
        return ["NOT verified: its timestamp; name the authority's certificates with --tsa"] if token else []
    from app.tlog.note import MalformedNote
    from app.tlog.timestamp import WrongTimestamp, read_certificates, verified_timestamp

    trusted = read_certificates(certificates)
    if token is None:
        raise _TimestampNotProved("it has no timestamp: ask for the proof with --timestamped")
    try:
        return [f"its checkpoint {verified_timestamp(token, note, trusted)}"]
    except (MalformedNote, WrongTimestamp) as error:
        raise _TimestampNotProved(str(error)) from None


def _verify_export(arguments: argparse.Namespace) -> Exit:
    from app.export import check

    result = check.check_files(arguments.files, arguments.key, arguments.tsa)
    for line in check.result_lines(result):
        print(visible(line))
    return Exit.DEFECT if result.problem_count else Exit.AS_ASKED


def _checkpoint_key(arguments: argparse.Namespace) -> None:
    from app.tlog.keys import create_key_file

    if arguments.file.exists():
        raise Fatal(f"There is a file {arguments.file} already: a key is never written over.")
    create_key_file(arguments.file, arguments.algorithm)
    print(arguments.file)
