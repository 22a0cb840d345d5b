"""`datastorage hold`: legal holds, by which events can be neither purged nor erased."""

import argparse
from typing import Any

from app.cli import client, output
from app.cli.client import Service
from app.cli.parser import Commands, add_group
from app.cli.show import add_zone
from app.cli.times import Clock
from app.errors import Usage

_PATH = "/api/v1/audit/legal-hold"


def add(commands: Commands) -> None:
    acts = add_group(commands, "hold", "place, release or list legal holds")
    place = acts.add_parser("place", help="hold events: they can be neither purged nor erased")
    what = place.add_mutually_exclusive_group(required=True)
    what.add_argument("correlation_id", nargs="?", metavar="CORRELATION_ID", help="of this remediation")
    what.add_argument("--actor", help="by this person or program")
    what.add_argument("--resource", nargs=2, metavar=("TYPE", "ID"), help="about this resource")
    what.add_argument("--time", nargs=2, metavar=("FROM", "TO"), help="that happened between two moments (RFC 3339)")
    place.add_argument("--reason", required=True, help="why; it stands in the log")
    place.set_defaults(run=_place)
    release = acts.add_parser("release", help="end a hold")
    which = release.add_mutually_exclusive_group(required=True)
    which.add_argument("correlation_id", nargs="?", metavar="CORRELATION_ID", help="all that is held of it")
    which.add_argument("--id", dest="hold_id", help="one hold, as the list shows it")
    release.add_argument("--reason", required=True, help="why; it stands in the log")
    release.set_defaults(run=_release)
    listing = acts.add_parser("list", help="which holds there are, newest first")
    listing.add_argument("--released", action="store_true", help="those that ended too")
    add_zone(listing)
    listing.set_defaults(run=_list)
    for command in (place, release, listing):
        output.add_output(command)
        client.add_service(command, role="auditor" if command is listing else "admin")


def _place(arguments: argparse.Namespace) -> None:
    done = Service.of(arguments).send("POST", _PATH, _selector(arguments) | {"reason": arguments.reason})
    with output.shown(arguments) as out:
        if out.is_json:
            out.document(done)
        else:
            out.line(f"Held: {done['events_affected']} events, and those to come, by hold {done['hold_id']}.")


def _selector(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.actor is not None:
        return {"actor_id": arguments.actor}
    if arguments.resource is not None:
        return {"resource": dict(zip(("type", "id"), arguments.resource, strict=True))}
    if arguments.time is not None:
        return {"time": dict(zip(("from", "to"), arguments.time, strict=True))}
    return {"correlation_id": _named(arguments.correlation_id)}


def _release(arguments: argparse.Namespace) -> None:
    body = {"release_reason": arguments.reason}
    service = Service.of(arguments)
    if arguments.hold_id is not None:
        done = service.send("DELETE", _PATH, body | {"hold_id": arguments.hold_id})
    else:
        done = service.send("DELETE", f"{_PATH}/{client.segment(_named(arguments.correlation_id))}", body)
    with output.shown(arguments) as out:
        if out.is_json:
            out.document(done)
        else:
            out.line(f"Released: {done['events_released']} events are free now.")


def _named(correlation_id: str) -> str:
    if not correlation_id:
        raise Usage("CORRELATION_ID is empty")
    return correlation_id


def _list(arguments: argparse.Namespace) -> None:
    clock = Clock(arguments.zone)
    holds = Service.of(arguments).json(_PATH, {"include": "released"} if arguments.released else {})["holds"]
    head = ["what", "state", "events", "placed", "by", "reason", "id"]
    output.show_list(
        arguments, holds, lambda out: out.table(head, [_row(one, clock) for one in holds]), "there is no hold"
    )


def _row(hold: dict[str, Any], clock: Clock) -> list[str]:
    state = (
        f"released {clock.text(hold['released_at'])} by {hold.get('released_by', '')}"
        if "released_at" in hold
        else "held"
    )
    return [
        _what(hold),
        state,
        str(hold["events_affected"]),
        clock.text(hold["placed_at"]),
        hold["placed_by"],
        hold["reason"],
        hold.get("hold_id", ""),
    ]


def _what(hold: dict[str, Any]) -> str:
    if "actor_id" in hold:
        return f"actor {hold['actor_id']}"
    if "resource" in hold:
        return f"{hold['resource']['type']} {hold['resource']['id']}"
    if "time" in hold:
        return f"from {hold['time']['from']} to {hold['time']['to']}"
    return str(hold.get("correlation_id", ""))
