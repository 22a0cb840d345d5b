"""`datastorage search`, `event`, `notifications` and `histogram`: what was found, as tables."""

import argparse
import json
from itertools import islice
from typing import Any

from app.cli import client, filters, output
from app.cli.client import Service
from app.cli.exits import Exit
from app.cli.output import Output
from app.cli.pages import Pages
from app.cli.parser import Commands
from app.cli.show import EVENTS, NOTIFICATION_HEAD, add_zone, explain_ahead, notification_row
from app.cli.times import Clock

_SHOWN_AT_ONCE = 100
"""Rows that are shown before later ones are asked for."""
EVENT_HEAD = ["happened", "type", "outcome", "actor", "resource", "correlation", "id"]
_BAR_COLUMNS = 40


def add(commands: Commands) -> None:
    search = commands.add_parser("search", help="find events: by actor, resource, type, time, text ...")
    search.description = "Newest first. Exit code 0, also when nothing is found."
    filters.add_filters(search, "the event's time")
    amount = search.add_mutually_exclusive_group()
    amount.add_argument("--limit", type=int, default=50, metavar="N", help="most events (50)")
    amount.add_argument("--all", action="store_true", help="every one")
    search.add_argument("--cursor", help="where an earlier search went on")
    search.add_argument(
        "--order", choices=["time", "log"], default="time", help="newest by its time, or by its position in the log"
    )
    search.add_argument(
        "--archive", action="store_true", help="also what was removed from Postgres and is in the archive"
    )
    search.set_defaults(run=_search)
    event = commands.add_parser("event", help="show one event with its payload")
    event.add_argument("event_id", metavar="EVENT_ID")
    add_zone(event)
    event.set_defaults(run=_event)
    told = commands.add_parser("notifications", help="who was told of what")
    _add_notification_filters(told)
    told.set_defaults(run=_notifications)
    counts = commands.add_parser("histogram", help="count events over time")
    filters.add_filters(counts, "the event's time")
    counts.add_argument(
        "--bucket",
        choices=["auto", "minute", "hour", "day", "week", "month"],
        default="auto",
        help="how long each is (auto)",
    )
    counts.add_argument(
        "--by", choices=["outcome", "category", "type", "severity", "cluster", "namespace"], help="count these apart"
    )
    counts.set_defaults(run=_histogram)
    for command in (search, event, told, counts):
        output.add_output(command)
        client.add_service(command)


def _add_notification_filters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--correlation", help="of this remediation")
    parser.add_argument("--channel", help="such as email, slack, pagerduty or sms")
    parser.add_argument("--status", help="such as sent, failed or acknowledged")
    parser.add_argument("--since", metavar="TIME", help="not sent before it: a time, or how long ago")
    parser.add_argument("--until", metavar="TIME", help="not sent after it")
    parser.add_argument("--limit", type=int, default=50, metavar="N", help="most notifications (50)")
    parser.add_argument("--cursor", help="where an earlier list went on")
    add_zone(parser)


def _search(arguments: argparse.Namespace) -> None:
    service, clock = Service.of(arguments), Clock(arguments.zone)
    more = {
        "order": None if arguments.order == "time" else arguments.order,
        "archive": "include" if arguments.archive else None,
        "cursor": arguments.cursor,
    }
    wanted = filters.parameters_of(arguments, clock.zone_name) | {"total": "none", "strict": "true"}
    wanted |= {name: value for name, value in more.items() if value is not None}
    pages = Pages(service, EVENTS, wanted, None if arguments.all else arguments.limit)
    found = iter(pages)
    first = list(islice(found, _SHOWN_AT_ONCE))  # what is wrong with the question is told before a pager is there
    count, ahead = 0, 0
    with output.shown(arguments) as out:
        while first:
            if out.is_json:
                for event in first:
                    out.record(event)
            else:
                out.table(EVENT_HEAD, [event_row(event, clock) for event in first], header=not count)
            count += len(first)
            ahead += sum(clock.is_ahead(event["event_timestamp"]) for event in first)
            out.flush()
            first = list(islice(found, _SHOWN_AT_ONCE))
        if ahead and not out.is_json:
            explain_ahead(out, ahead, "time")
    if not count:
        output.note("no event matches")
        if any("/" in name for name in arguments.resource):
            output.note("--resource is the name alone: the type before the / of a table goes to --resource-type")
    if pages.cursor is not None:
        output.note(f"there is more: --all, or --cursor {pages.cursor}")


def event_row(event: dict[str, Any], clock: Clock) -> list[str]:
    """The cells of an event below EVENT_HEAD."""
    resource = "/".join(one for one in (event.get("resource_type"), event.get("resource_id")) if one)
    return [
        clock.with_note(event["event_timestamp"]) + _mark(event),
        event["event_type"],
        event["event_outcome"],
        event.get("actor_id") or "",
        resource,
        event["correlation_id"],
        event["event_id"],
    ]


def _mark(event: dict[str, Any]) -> str:
    if event.get("sealed") is False:
        return " (unsealed)"
    return " (archived)" if "archive_id" in event else ""


def _event(arguments: argparse.Namespace) -> None:
    service, clock = Service.of(arguments), Clock(arguments.zone)
    event = service.json(f"{EVENTS}/{client.segment(arguments.event_id)}")
    with output.shown(arguments) as out:
        if out.is_json:
            out.document(event)
            return
        if event.get("sealed") is False:
            out.line("unsealed: others inserted it by SQL, it is not in the log", output.WARNING)
        if clock.is_ahead(event["event_timestamp"]):
            explain_ahead(out, 1, "time")
        members = {name: value for name, value in event.items() if name != "event_data" and value not in (None, "")}
        out.table(["member", "value"], [[name, _text(name, value, clock)] for name, value in members.items()])
        out.heading("Data")
        for line in json.dumps(event["event_data"], ensure_ascii=False, indent=2).splitlines():
            out.line(line)


def _text(name: str, value: Any, clock: Clock) -> str:
    if name == "event_timestamp":
        return f"{value}, {clock.text(value)} {clock.name} ({clock.ago(value)})"
    return value if isinstance(value, str) else client.to_json(value)


def _notifications(arguments: argparse.Namespace) -> None:
    service, clock = Service.of(arguments), Clock(arguments.zone)
    named = {
        "remediation_id": arguments.correlation,
        **{name: getattr(arguments, name) for name in ("channel", "status", "since", "until", "cursor")},
    }
    wanted = {name: value for name, value in named.items() if value is not None}
    pages = Pages(service, "/api/v1/audit/notifications", wanted, arguments.limit)
    found = list(pages)

    def show_table(out: Output) -> None:
        rows = [[*notification_row(one, clock), one["remediation_id"]] for one in found]
        out.table([*NOTIFICATION_HEAD, "correlation"], rows)

    output.show_list(arguments, found, show_table, "no notification matches")
    if pages.cursor is not None:
        output.note(f"there is more: --cursor {pages.cursor}")


def _histogram(arguments: argparse.Namespace) -> Exit:
    service, clock = Service.of(arguments), Clock(arguments.zone)
    wanted = filters.parameters_of(arguments, clock.zone_name) | {"bucket": arguments.bucket}
    answer = service.json("/api/v1/audit/histogram", wanted | ({"by": arguments.by} if arguments.by else {}))
    with output.shown(arguments) as out:
        if out.is_json:
            out.document(answer)
        else:
            _bars(out, answer, clock)
    output.note_left_out(answer.get("left_out"), "they are not counted")
    return Exit.AS_ASKED


def _bars(out: Output, answer: dict[str, Any], clock: Clock) -> None:
    buckets = answer["buckets"]
    most = max((bucket["events"] for bucket in buckets), default=0)
    rows = []
    for bucket in buckets:
        if not bucket["events"]:
            continue
        bar = "#" * -(-bucket["events"] * _BAR_COLUMNS // most) if most else ""
        groups = ", ".join(f"{name or '(none)'} {count:,}" for name, count in (bucket.get("groups") or {}).items())
        rows.append([clock.text(bucket["start"]), f"{bucket['events']}", groups, bar][: 4 if out.is_folded else 3])
    head = [f"{answer['bucket']} from ({clock.name})", "events", "of them", ""]
    out.table(head[: 4 if out.is_folded else 3], rows)
    times = f"from {clock.text(answer['since'])} to {clock.text(answer['until'])}"
    out.aside(f"{answer['events']:,} events {times}; {answer['bucket']}s without events have no line")
    if not answer["exact"]:
        out.line(f"only from {clock.text(answer['scanned_from'])} on: there was no time for more", output.WARNING)
