"""`datastorage show` and `list`: all of one correlation, or which correlations there are."""

import argparse
import json
from typing import Any

from app.cli import client, filters, output
from app.cli.client import Service
from app.cli.exits import Exit
from app.cli.output import Output
from app.cli.pages import Pages
from app.cli.parser import Commands
from app.cli.times import Clock, duration_text, skew_text
from app.errors import Fatal

CORRELATIONS = "/api/v1/audit/correlations"
EVENTS = "/api/v1/audit/events"
_EVENTS_MAX = 10_000  # that the service returns at once
_VERIFIED_AT_ONCE_MAX = 1_000
"""Events of a chain that is verified without being asked for."""


def add(commands: Commands) -> None:
    one = commands.add_parser("show", help="show a correlation: events, phases, decisions, notifications, holds")
    one.description = (
        "Exit code 0: its chain is whole, or was not looked at; 1: it has a defect; 2: there is no such correlation."
    )
    one.add_argument("correlation_id", metavar="CORRELATION_ID")
    one.add_argument(
        "--verify",
        action="store_true",
        help=f"verify its chain now; done anyway up to {_VERIFIED_AT_ONCE_MAX:,} events",
    )
    one.add_argument("--data", action="store_true", help="the payload of each event too")
    one.add_argument(
        "--no-archive", action="store_true", help="only what the database has, if the archive is slow or away"
    )
    one.set_defaults(run=_show)
    many = commands.add_parser("list", help="list correlations, the one with the newest event first")
    many.add_argument("--limit", type=int, default=20, metavar="N", help="most correlations to list (20)")
    many.add_argument("--cursor", help="where an earlier list went on")
    filters.add_filters(many, "the time of the correlation's newest event")
    many.set_defaults(run=_list)
    add_zone(one)
    for command in (one, many):
        output.add_output(command)
        client.add_service(command)


def add_zone(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--zone", help="in which times are shown, such as Europe/Berlin, local: this machine's (UTC)")


def _show(arguments: argparse.Namespace) -> Exit:
    service, clock = Service.of(arguments), Clock(arguments.zone)
    path = f"{CORRELATIONS}/{client.segment(arguments.correlation_id)}"
    try:
        answer = service.json(
            path, {"limit": str(_EVENTS_MAX)} | ({"archive": "exclude"} if arguments.no_archive else {})
        )
    except client.NotThere as error:
        other = "`datastorage list --resource NAME` finds it by the name of its RemediationRequest"
        raise client.NotThere(f"{error.detail} {other}.") from None
    count = answer["event_count"]
    verified_now = arguments.verify or 0 < count <= _VERIFIED_AT_ONCE_MAX
    if verified_now:
        verdict = _verified_now(service, path, count, is_wanted=arguments.verify)
        verified_now = verdict is not None
        answer |= {} if verdict is None else {"verification": verdict}
    data = _payloads(service, arguments.correlation_id, answer["events"]) if arguments.data else {}
    for event in answer["events"] if data else ():
        event["event_data"] = data.get(event["event_id"])
    with output.shown(arguments) as out:
        if out.is_json:
            out.document(answer)
        else:
            timeline(out, answer, clock, verified_now=verified_now)
            _show_data(out, answer["events"])
    return Exit.DEFECT if answer.get("verification", {}).get("is_valid") is False else Exit.AS_ASKED


def _verified_now(service: Service, path: str, count: int, *, is_wanted: bool) -> dict[str, Any] | None:
    """The chain's verdict, made now. None if it cannot be made and nobody has asked for it."""
    try:
        answer = service.json(path, {"limit": "1", "verify": "true"}, f"verifying {count:,} events ...")
    except Fatal:
        if is_wanted:
            raise
        return None
    verdict: dict[str, Any] | None = answer.get("verification")
    return verdict


def _payloads(service: Service, correlation_id: str, events: list[dict[str, Any]]) -> dict[str, Any]:
    """The payload of each of the events of a correlation, by event id."""
    wanted = {"correlation_id": correlation_id, "total": "none"}
    if any("archive_id" in event for event in events):
        wanted["archive"] = "include"
    return {event["event_id"]: event["event_data"] for event in Pages(service, EVENTS, wanted)}


def _list(arguments: argparse.Namespace) -> None:
    service, clock = Service.of(arguments), Clock(arguments.zone)
    wanted = filters.parameters_of(arguments, clock.zone_name)
    if arguments.cursor is not None:
        wanted["cursor"] = arguments.cursor
    pages = Pages(service, CORRELATIONS, wanted, arguments.limit)
    found = list(pages)
    output.show_list(arguments, found, lambda out: _correlations(out, found, clock), "no correlation matches")
    output.note_left_out(pages.left_out, "`datastorage search --archive` finds them, by the same filters")
    if pages.cursor is not None:
        output.note(f"there is more: --cursor {pages.cursor}")


def _correlations(out: Output, correlations: list[dict[str, Any]], clock: Clock) -> None:
    rows = [
        [
            one["correlation_id"],
            clock.with_note(one["last_event"]["event_timestamp"]),
            str(one["event_count"]),
            one["last_outcome"],
            one.get("namespace") or "",
            ", ".join(one["categories"]),
        ]
        for one in correlations
    ]
    head = ["correlation", f"newest event ({clock.name})", "events", "outcome", "namespace", "categories"]
    out.table(head, rows)
    ahead = sum(clock.is_ahead(one["last_event"]["event_timestamp"]) for one in correlations)
    if ahead:
        explain_ahead(out, ahead, "newest event")


def explain_ahead(out: Output, count: int, what: str) -> None:
    """Say why something has not happened yet: below a table, and beside what goes into a pipe."""
    text = (
        f"{count} with a {what} that is still to come: times are those of the senders' clocks, and some are ahead; those of "
        "`datastorage simulate` on purpose. `show` has the time beside it at which the service recorded each event."
    )
    out.aside(text, output.WARNING)


def timeline(out: Output, answer: dict[str, Any], clock: Clock, *, verified_now: bool) -> None:
    """Heading, verdict, phases, decisions, notifications, holds, and the events in the order of the log."""
    out.line(f"{answer['correlation_id']}: {answer['event_count']} events", "bold")
    if "first_event_at" in answer:
        out.line(
            f"from {clock.text(answer['first_event_at'])} to {clock.text(answer['last_event_at'])}, times in {clock.name}"
        )
    _verdict(out, answer, clock, verified_now=verified_now)
    phases = [
        [one["phase"], clock.text(one.get("entered_at")), duration_text(one.get("duration_ms"))]
        for one in answer["phases"]
    ]
    _section(out, "Phases", ["phase", "entered", "lasted"], phases)
    decisions = [
        [
            clock.text(one["event_timestamp"]),
            one["decision"],
            one["decided_by"],
            one.get("workflow_id", ""),
            one.get("reason", ""),
        ]
        for one in answer["decisions"]
    ]
    _section(out, "Decisions", ["when", "what", "who", "workflow", "why"], decisions)
    sent = [notification_row(one, clock) for one in answer["notifications"]]
    _section(out, "Notifications", NOTIFICATION_HEAD, sent)
    holds = [
        ["held" if one["active"] else "released", str(one["events"]), one["placed_by"], one["reason"]]
        for one in answer["holds"]
    ]
    title = "Legal holds, as the events' rows show them (covered by no hash)"
    _section(out, title, ["state", "events", "placed by", "reason"], holds)
    _events(out, answer, clock)


NOTIFICATION_HEAD = ["sent", "channel", "status", "recipient", "message"]


def notification_row(one: dict[str, Any], clock: Clock) -> list[str]:
    sent = clock.text(one["sent_at"]) + (" (unsealed)" if one.get("sealed") is False else "")
    return [sent, one["channel"], one["status"], one["recipient"], one["message_summary"]]


def _verdict(out: Output, answer: dict[str, Any], clock: Clock, *, verified_now: bool) -> None:
    """What is known of the chain: when that was found, and how far was looked."""
    verdict = answer.get("verification")
    if verdict is None:
        out.line("not verified yet: --verify verifies the chain now", output.WARNING)
        return
    if verified_now:
        how = f"verified now, {clock.text(verdict['verification_time'])}: {verdict['message']}"
        out.line(how, output.GOOD if verdict["is_valid"] else output.DEFECT)
        return
    length = answer.get("chain", {}).get("length", answer["event_count"])
    when = f"{clock.text(verdict['verification_time'])} ({clock.ago(verdict['verification_time'])})"
    out.line(
        f"last looked at {when} by the verifier in the background, the first {verdict['position']:,} of {length:,} events of "
        f"the chain: {verdict['message']}. --verify verifies all of it at this moment.",
        output.WARNING if verdict["is_valid"] else output.DEFECT,
    )


def _events(out: Output, answer: dict[str, Any], clock: Clock) -> None:
    events = answer["events"]
    rows = [
        [
            _position_text(one),
            clock.text(one["event_timestamp"]) + _time_note(one),
            clock.text(one["recorded_at"]),
            one["event_type"],
            one["event_outcome"],
            one.get("actor_id", ""),
            one["event_id"],
        ]
        for one in events
    ]
    head = ["position", "happened", "recorded", "type", "outcome", "actor", "id"]
    _section(out, "Events", head, rows)
    if unsealed := sum(one.get("sealed") is False for one in events):
        out.line(f"{unsealed} unsealed: others inserted them by SQL, they are not in the log", output.WARNING)
    if skewed := sum(bool(skew_text(one["event_timestamp"], one["recorded_at"])) for one in events):
        out.line(
            f"{skewed} whose time, by the sender's clock, is more than 5 minutes from when the service recorded them",
            output.WARNING,
        )
    if answer["pagination"]["has_more"]:
        out.line(f"only the first {len(events)} events are shown", output.WARNING)


def _show_data(out: Output, events: list[dict[str, Any]]) -> None:
    with_data = [one for one in events if "event_data" in one]
    if with_data:
        out.heading("Data")
    for one in with_data:
        out.line(f"{_position_text(one)}  {one['event_type']}  {one['event_id']}", "bold")
        for line in json.dumps(one["event_data"], ensure_ascii=False, indent=2).splitlines():
            out.line(f"  {line}")


def _section(out: Output, title: str, head: list[str], rows: list[list[str]]) -> None:
    if rows:
        out.heading(title)
        out.table(head, rows)


def _position_text(event: dict[str, Any]) -> str:
    """Its position in the log; of a row that others inserted by SQL, that it has none."""
    return "unsealed" if event.get("sealed") is False else str(event.get("log_index", ""))


def _time_note(event: dict[str, Any]) -> str:
    """Whether the time is only that of the event's arrival, or far from it."""
    if (event.get("event_metadata") or {}).get("event_timestamp") == "received":
        return " (archived, received)" if "archive_id" in event else " (received)"
    skew = skew_text(event["event_timestamp"], event["recorded_at"])
    archived = " (archived)" if "archive_id" in event else ""
    return archived + (f" ({skew})" if skew else "")
