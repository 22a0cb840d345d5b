"""`datastorage proof` and `log key`: what proves an event, and the key that it is verified with."""

import argparse
import sys

from app.cli import client, output
from app.cli.client import Service
from app.cli.parser import Commands, file
from app.cli.show import EVENTS


def add(commands: Commands) -> None:
    proof = commands.add_parser("proof", help="fetch the proof of one event; `verify-proof` verifies it offline")
    proof.add_argument("event_id", metavar="EVENT_ID")
    proof.add_argument("-o", "--output", type=file, metavar="FILE", help="to write it to, instead of printing it")
    proof.add_argument("--timestamped", action="store_true", help="with the token of a timestamp authority")
    proof.add_argument("--json", action="store_true", help="as JSON, with what an erasure would remove of the event")
    client.add_service(proof)
    proof.set_defaults(run=_proof)


def add_log_key(acts: Commands) -> None:
    """`log key`: the group is auditing.py's."""
    key = acts.add_parser("key", help="print the log's public keys as the service has them, for --key")
    key.description = "Keep it: what is proved later by a key that you have had before needs no trust in the service."
    client.add_service(key)
    key.set_defaults(run=_key)


def _proof(arguments: argparse.Namespace) -> None:
    service = Service.of(arguments)
    wanted = {"open": "true"} if arguments.json else {}
    wanted |= {"timestamped": "true"} if arguments.timestamped else {}
    path = f"{EVENTS}/{client.segment(arguments.event_id)}/proof"
    with output.progress("waiting for the next checkpoint ..."):
        answer = service.get_once_covered(path, wanted)
    if arguments.output is None:
        sys.stdout.write(answer.text)
        return
    output.store(arguments.output, answer.content)
    output.note(f"{arguments.output}: verify it with `datastorage verify-proof {arguments.output} --key KEY`")


def _key(arguments: argparse.Namespace) -> None:
    sys.stdout.write(Service.of(arguments).get("/tlog/key").text)
