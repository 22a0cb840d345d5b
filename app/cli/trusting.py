"""`datastorage trust`: what the log's trust rests on, as the service has it now."""

import argparse
from typing import Any

from app.cli import client, output
from app.cli.client import Service
from app.cli.exits import Exit
from app.cli.output import Output
from app.cli.parser import Commands
from app.cli.show import add_zone
from app.cli.times import Clock


def add(commands: Commands) -> None:
    trust = commands.add_parser("trust", help="what the log rests on: checkpoint, witnesses, findings, what was purged")
    trust.description = "It is what the service says of itself: `verify --key` looks. Exit code 0: no finding is open; 1: one is, or the log ends early."
    add_zone(trust)
    output.add_output(trust)
    client.add_service(trust)
    trust.set_defaults(run=_trust)


def _trust(arguments: argparse.Namespace) -> Exit:
    service, clock = Service.of(arguments), Clock(arguments.zone)
    answer = service.json("/api/v1/audit/trust")
    with output.shown(arguments) as out:
        if out.is_json:
            out.document(answer)
        else:
            _show(out, answer, clock)
    return Exit.DEFECT if answer["open_findings"] or "continuation_needed" in answer else Exit.AS_ASKED


def _show(out: Output, answer: dict[str, Any], clock: Clock) -> None:
    log = answer["log"]
    out.line(f"{log['name']}: {log['size']:,} events, times in {clock.name}", "bold")
    if "continuation_needed" in answer:
        out.line(answer["continuation_needed"], output.DEFECT)
    rows = [_checkpoint(answer, clock), *_witnesses(answer, clock), _timestamp(answer, clock), _verifier(answer, clock)]
    out.table(["what", "events", "when", "by"], rows)
    _findings(out, answer["open_findings"], clock)
    _removals(out, answer["removals"], clock)
    holds, seams = len(answer["holds"]), len(answer["seams"])
    out.line()
    out.line(f"legal holds in force: {holds}; times the log was continued after a loss: {seams}")


def _checkpoint(answer: dict[str, Any], clock: Clock) -> list[str]:
    signed = answer.get("checkpoint")
    if signed is None:
        return ["last checkpoint", "", "never", "nobody: no checkpoint is signed"]
    signers = ", ".join(signed["signed_by"]) or "no valid signature of this service's keys"
    return ["last checkpoint", f"{signed['size']:,}", clock.text(signed.get("signed_at")), signers]


def _witnesses(answer: dict[str, Any], clock: Clock) -> list[list[str]]:
    rows = [
        [
            "witness",
            f"{one['size']:,}" if "size" in one else "",
            clock.text(one.get("cosigned_at")) or "not yet",
            one["name"],
        ]
        for one in answer["witnesses"]
    ]
    return rows or [["witness", "", "", "nobody: whoever has the log's keys could rewrite it"]]


def _timestamp(answer: dict[str, Any], clock: Clock) -> list[str]:
    stamped = answer.get("timestamp")
    if stamped is None:
        return ["timestamp", "", "never", "nobody"]
    authority = stamped.get("authority", "an authority whose certificates are not configured")
    return ["timestamp", f"{stamped['size']:,}", clock.text(stamped.get("time")), authority]


def _verifier(answer: dict[str, Any], clock: Clock) -> list[str]:
    about = answer["verifier"]
    who = "the verifier in the background"
    if not about["events_per_second"]:
        return ["verified", "", "never", f"{who} is off"]
    if "completed_at" in about:
        return [
            "verified",
            f"{about['completed_end']:,}",
            clock.text(about["completed_at"]),
            f"{who}, its last whole round",
        ]
    return [
        "verified",
        f"{about.get('position', 0):,}",
        clock.text(about.get("looked_at")),
        f"{who}, in its first round",
    ]


def _findings(out: Output, findings: list[dict[str, Any]], clock: Clock) -> None:
    out.heading("Open findings")
    if not findings:
        out.line("none: nothing that verification has found is open", output.GOOD)
        return
    rows = [[clock.text(one["recorded_at"]), one["kind"], one["detail"], one["finding_id"]] for one in findings]
    out.table(["found", "what", "detail", "id"], rows)


def _why(removal: dict[str, Any]) -> str:
    if "archives" in removal:
        return " ".join(["archived in", *removal["archives"]])
    if "archive_id" in removal:
        return f"expired: the part {removal['archive_id']} of {removal['month']} of the archive"
    return str(removal.get("reason", removal.get("partition", "")))


def _removals(out: Output, removals: list[dict[str, Any]], clock: Clock) -> None:
    out.heading("Purged, erased, restored, expired")
    if not removals:
        out.line("nothing")
        return
    rows = [
        [
            clock.text(one["recorded_at"]),
            one["event_type"],
            f"{one['events']:,}",
            one.get("by", ""),
            _why(one),
            one["event_id"],
        ]
        for one in removals
    ]
    out.table(["recorded", "what", "events", "by", "why", "id"], rows)
