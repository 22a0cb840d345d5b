"""The page of a bundle: its content in words, for somebody who has never heard of logs and proofs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from app.events.canonical import loads
from app.export.bundle import DIFFERS, BundledEvent, BundledGap, BundledNotification
from app.terminal import one_line

_HEAD = ("position", "happened (UTC)", "recorded (UTC)", "what", "outcome", "who", "about")
_CELL_MAX = 60


@dataclass(frozen=True, slots=True)
class PageContent:
    """What the page tells of: the bundle's members, and who took it when. All of it is masked already if the bundle is."""

    correlation_id: str
    redacted: bool
    exported_at: str
    exported_by: str
    log: str
    size: int | None
    """Of the checkpoint; None if there is none."""
    events: Sequence[BundledEvent]
    gaps: Sequence[BundledGap]
    evidence: Sequence[BundledEvent]
    unproved: Sequence[str]
    notifications: Sequence[BundledNotification]
    differing: Sequence[str]
    """Where tables are not what the log records of the holds on these events."""


def page(content: PageContent) -> list[str]:
    """The lines of the page."""
    return [
        *_what_it_is(content),
        *("", "WHAT HAPPENED", ""),
        *_table([_HEAD, *_rows(content.events, content.gaps)]),
        *_section("WHAT THE SERVICE DID WITH THESE EVENTS", _rows(content.evidence, ())),
        *_lines("WHAT DIFFERS", [f"{DIFFERS}{one_line(one)}" for one in content.differing]),
        *_section("WHO WAS NOTIFIED", [_notification(one.columns) for one in content.notifications]),
        *_section("ROWS THAT ARE NOT IN THE LOG", [_row(text) for text in content.unproved]),
        *("", "WHAT IS PROVED", "", *_proved(content)),
        *("", "WHAT IS NOT PROVED", "", *_not_proved(content)),
        *("", "HOW TO VERIFY THIS FILE", "", *_how(content)),
    ]


def _what_it_is(content: PageContent) -> Iterator[str]:
    yield f"AUDIT RECORD OF {one_line(content.correlation_id)}"
    yield ""
    yield f"This file has what the audit event store Kubernaut DataStorage stored about {one_line(content.correlation_id)}: the events"
    yield f"({len(content.events)}), the notifications ({len(content.notifications)}), and the proofs."
    yield f"It was taken from the service at {content.exported_at} by {one_line(content.exported_by) or 'a caller without a name'}."
    if content.redacted:
        yield "Personal data that the service recognised is masked."


def _proved(content: PageContent) -> Iterator[str]:
    if content.size is None:
        yield "Nothing: the service had no key to sign with."
        return
    yield "- Each event above with a position was recorded as it stands in this file. Its SHA-256 is at that position of the log, a list to"
    yield f"  which events are only ever appended; the log {one_line(content.log)} had {content.size} events then, and its operator signed that list."
    yield "  A masked event is proved to be in the log, but what is masked cannot be compared."
    yield "- Each event names the one before it by its hash, so none is missing between two that follow each other. Where events are missing,"
    yield "  the table says so, and whether the log records that they were purged when their time was over, or lost."
    yield "- Who is shown as erased was erased on request; the log records when, by whom and why. That the event existed stays proved."


def _not_proved(content: PageContent) -> Iterator[str]:
    yield "- That what was reported is true. The log proves what was reported, in which order, and that it was not changed since."
    yield "- The times: `happened` is the clock of the one who reported, `recorded` the clock of the service."
    yield "- That nothing came after the last event above: that the list ends there is the service's word when it wrote this file."
    if content.unproved:
        yield "- The rows that are not in the log. Somebody has put them into the database beside the service, or changed them."
    if any(one.covered_by is None for one in content.notifications):
        yield "- Notifications without a digest in the log, and columns named `not_covered`: they are as the service has read them."


def _how(content: PageContent) -> Iterator[str]:
    yield "1. Get the public key of the log by another way than this file, from the operator. It begins with"
    yield f"   {one_line(content.log)}+"
    yield "2. datastorage verify-export THIS_FILE --key KEY"
    yield "   It needs neither the service nor its database nor a network. Exit code 0: all of the above holds."
    yield "3. Everything is specified in docs/design.md, section 9, of DataStorage, so that anybody can write another verifier."


def _lines(title: str, lines: list[str]) -> Iterator[str]:
    if lines:
        yield from ("", title, "", *lines)


def _section(title: str, rows: list[tuple[str, ...]]) -> Iterator[str]:
    if rows:
        yield from ("", title, "")
        yield from _table(rows)


def _table(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _rows(events: Sequence[BundledEvent], gaps: Sequence[BundledGap]) -> list[tuple[str, ...]]:
    """A row for each event, and one for each gap before the event that follows it."""
    rows, waiting = [], list(gaps)
    for event in events:
        record = loads(event.record)
        while waiting and waiting[0].end <= record["chain_index"]:
            rows.append(_gap(waiting.pop(0)))
        committed = {} if event.committed is None else loads(event.committed)
        who = committed.get("actor_id") or "(erased)"
        reason = (
            (committed.get("event_data") or {}).get("reason")
            if record["event_type"].startswith("datastorage.")
            else None
        )
        about = reason or committed.get("resource_id") or ""
        times = _time(record["event_timestamp"]), _time(record["recorded_at"])
        what = record["event_type"], record["event_outcome"]
        rows.append((str(event.position), *times, *map(_cell, (*what, f"{record['actor_type']} {who}", about))))
    return rows + [_gap(gap) for gap in waiting]


def _gap(gap: BundledGap) -> tuple[str, ...]:
    why = "purged or lost, as the log records" if gap.position is not None else "MISSING: the log records no purge"
    return ("-", "", "", f"{gap.end - gap.first} event(s)", why, "", "")


def _notification(columns: dict[str, Any]) -> tuple[str, ...]:
    names = ("channel", "status", "recipient", "message_summary")
    return (_time(str(columns["sent_at"])), *(_cell(columns[name]) for name in names))


def _row(text: str) -> tuple[str, ...]:
    row = loads(text)
    names = ("event_type", "event_outcome", "actor_type", "actor_id", "resource_id")
    return (_time(str(row["event_timestamp"])), *(_cell(row[name]) for name in names))


def _time(text: str) -> str:
    return text.replace("T", " ").removesuffix("Z").partition(".")[0]


def _cell(value: Any) -> str:
    text = one_line(
        value if isinstance(value, str) else "" if value is None else orjson.dumps(value, default=str).decode()
    )
    return text if len(text) <= _CELL_MAX else f"{text[: _CELL_MAX - 3]}..."
