"""`datastorage show` and `datastorage list`: one timeline, or a list of correlations, as text. A client: HTTP only."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import quote

from app.masking import masked
from app.terminal import one_line

_TIMEOUT_SECONDS = 30.0
_EVENTS_MAX = 10_000  # that the service returns at once
_CORRELATIONS = "/api/v1/audit/correlations"
_FILTERS = {
    "since": "correlations whose newest event is not older: a time, or how long ago",
    "until": "correlations whose newest event is not newer: a time, or how long ago",
    "category": "correlations with an event of this category",
    "outcome": "correlations whose newest event has this outcome",
    "namespace": "correlations with an event in this namespace",
    "cluster": "correlations with an event in this cluster",
    "cursor": "where an earlier list went on",
}
_QUERY_PARAMETERS = {"category": "event_category", "outcome": "event_outcome", "cluster": "cluster_id"}
_UNITS = ((3_600_000, "h"), (60_000, "m"), (1_000, "s"))


def add_show(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("correlation_id", metavar="CORRELATION_ID")
    parser.add_argument("--verify", action="store_true", help="verify the chain now")
    _add_service(parser)


def add_list(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--limit", type=int, default=20, metavar="N", help="most correlations to list (20)")
    for name, text in _FILTERS.items():
        parser.add_argument(f"--{name}", help=text)
    _add_service(parser)


def _add_service(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", default="http://127.0.0.1:8080", help="of the service (http://127.0.0.1:8080)")
    parser.add_argument("--token", help="sent as a bearer token")


def show(arguments: argparse.Namespace) -> int:
    """Print one correlation."""
    parameters = {"limit": str(_EVENTS_MAX)} | ({"verify": "true"} if arguments.verify else {})
    return _print(arguments, f"{_CORRELATIONS}/{quote(arguments.correlation_id, safe='')}", parameters, timeline_lines)


def list_(arguments: argparse.Namespace) -> int:
    """Print one page of correlations."""
    filters = {
        _QUERY_PARAMETERS.get(name, name): value for name in _FILTERS if (value := getattr(arguments, name)) is not None
    }
    return _print(arguments, _CORRELATIONS, filters | {"limit": str(arguments.limit)}, list_lines)


def _print(arguments: argparse.Namespace, path: str, parameters: dict[str, str], lines: Any) -> int:
    import httpx  # noqa: PLC0415 -- every command reads these arguments, only these two need a client

    headers = {} if arguments.token is None else {"Authorization": f"Bearer {arguments.token}"}
    try:
        answer = httpx.get(arguments.url + path, params=parameters, headers=headers, timeout=_TIMEOUT_SECONDS)
    except (httpx.TransportError, httpx.InvalidURL) as error:
        reason = str(error) or type(error).__name__
        sys.stderr.write(f"datastorage: no service answers at {masked(arguments.url)} ({masked(reason)})\n")
        return 1
    if not answer.is_success:
        sys.stderr.write(f"datastorage: {_problem(answer.text, answer.status_code)}\n")
        return 1
    for line in lines(answer.json()):
        sys.stdout.write(line.rstrip() + "\n")
    return 0


def _problem(text: str, status: int) -> str:
    import json  # noqa: PLC0415 -- as above

    try:
        return str(json.loads(text)["detail"])
    except (ValueError, LookupError, TypeError):
        return f"the service answered {status}: {text[:200].strip()}"


def list_lines(answer: dict[str, Any]) -> Iterator[str]:
    """A table of correlations, and the cursor of the next page."""
    rows = [
        [
            one["correlation_id"],
            _time_text(one["last_event"]["event_timestamp"]),
            str(one["event_count"]),
            one["last_outcome"],
            ", ".join(one["categories"]),
        ]
        for one in answer["data"]
    ]
    yield from _table(["correlation", "newest event", "events", "outcome", "categories"], rows)
    if (cursor := answer["pagination"].get("next_cursor")) is not None:
        yield f"there is more: --cursor {cursor}"


def timeline_lines(answer: dict[str, Any]) -> Iterator[str]:
    """Heading, phases, decisions, notifications, holds, and the events in the order of the log."""
    yield f"{answer['correlation_id']}: {answer['event_count']} events"
    if "first_event_at" in answer:
        yield f"from {_time_text(answer['first_event_at'])} to {_time_text(answer['last_event_at'])}"
    if (verdict := answer.get("verification")) is not None:
        yield f"verified now: {verdict['message']}"
    phases = [
        [one["phase"], _time_text(one.get("entered_at", "")), _duration_text(one.get("duration_ms"))]
        for one in answer["phases"]
    ]
    yield from _section("Phases", ["phase", "entered", "lasted"], phases)
    decisions = [
        [
            _time_text(one["event_timestamp"]),
            one["decision"],
            one["decided_by"],
            one.get("workflow_id", ""),
            one.get("reason", ""),
        ]
        for one in answer["decisions"]
    ]
    yield from _section("Decisions", ["when", "what", "who", "workflow", "why"], decisions)
    sent = [
        [
            _time_text(one["sent_at"]) + (" (unsealed)" if one.get("sealed") is False else ""),
            *(one["channel"], one["status"], one["recipient"], one["message_summary"]),
        ]
        for one in answer["notifications"]
    ]
    yield from _section("Notifications", ["sent", "channel", "status", "recipient", "message"], sent)
    holds = [
        ["held" if one["active"] else "released", str(one["events"]), one["placed_by"], one["reason"]]
        for one in answer["holds"]
    ]
    yield from _section(
        "Legal holds, as the events' rows show them (covered by no hash)",
        ["state", "events", "placed by", "reason"],
        holds,
    )
    events = [
        [
            _position_text(one),
            _time_text(one["event_timestamp"]) + _time_note(one),
            _time_text(one["recorded_at"]),
            one["event_type"],
            one["event_outcome"],
            one.get("actor_id", ""),
        ]
        for one in answer["events"]
    ]
    yield from _section("Events", ["position", "happened", "recorded", "type", "outcome", "actor"], events)
    if unsealed := sum(one.get("sealed") is False for one in answer["events"]):
        yield f"{unsealed} unsealed: others inserted them by SQL, they are not in the log"
    if answer["pagination"]["has_more"]:
        yield f"only the first {len(events)} events are shown"


def _section(title: str, head: list[str], rows: list[list[str]]) -> Iterator[str]:
    if rows:
        yield ""
        yield title
        yield from _table(head, rows)


def _table(head: list[str], rows: Sequence[list[str]]) -> Iterator[str]:
    texts = [head, *([one_line(cell) for cell in row] for row in rows)]
    widths = [max(map(len, cells)) for cells in zip(*texts, strict=True)]
    for row in texts:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))


def _time_text(text: str) -> str:
    return text.replace("T", " ").removesuffix("Z").partition(".")[0]


def _position_text(event: dict[str, Any]) -> str:
    """Its position in the log; of a row that others inserted by SQL, that it has none."""
    return "unsealed" if event.get("sealed") is False else str(event.get("log_index", "-"))


def _time_note(event: dict[str, Any]) -> str:
    """Whether the time is only that of the event's arrival."""
    return " (received)" if (event.get("event_metadata") or {}).get("event_timestamp") == "received" else ""


def _duration_text(milliseconds: int | None) -> str:
    """The two largest units: `1h5m`, `3s`, `250ms`."""
    if milliseconds is None:
        return ""
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    rest, parts = milliseconds, []
    for unit, letter in _UNITS:
        number, rest = divmod(rest, unit)
        if number:
            parts.append(f"{number}{letter}")
    return "".join(parts[:2])
