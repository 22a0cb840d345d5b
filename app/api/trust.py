"""GET of what the log's trust rests on: its size, who signed it and when, what verification found, what was removed and why.

Everything is what the database has now, so it is no evidence by itself: checkpoints stored elsewhere, witnesses and a verification by
somebody else are. The answer says how far each of them goes.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, NotRequired
from uuid import UUID

import asyncpg
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import TypedDict

from app.api.body import json_response
from app.api.deadline import within_deadline
from app.api.findings import ListedFinding
from app.api.holds import ListedHold, listed_hold
from app.api.policies import ListedPolicy
from app.api.routes import Router
from app.api.service import Service, service_of
from app.db import Connection, driver_connection
from app.errors import Fatal
from app.events.log import Log
from app.events.positions import Positions
from app.findings.register import read_findings
from app.query.postgres_time import rfc3339_or_none
from app.retention.holds import holds
from app.retention.policies import listed, policies
from app.stream.cursor import read_states
from app.stream.sink_orders import SINK_ORDERS
from app.tlog.continued import Seam, read_seam
from app.tlog.evidence import ERASED, EXPIRED, PURGED, RESTORED, believed_payload
from app.tlog.note import Checkpoint, MalformedNote, Note, PublicKey
from app.tlog.proof import CONTINUED
from app.tlog.tiles import SQL
from app.tlog.timestamp import WrongTimestamp, read_certificates, verified_timestamp
from app.tlog.witness import Witness
from app.verify.snapshot import SQL as VERIFY_SQL

router = Router(tags=["trust"])
_REMOVALS = (PURGED, RESTORED, ERASED, CONTINUED, EXPIRED)
_LISTED_MAX = 50
"""Most removals, and most acknowledged findings, that are listed: the last ones."""
_KEY_ID, _TIME = slice(0, 4), slice(4, 12)
CLAIMS = (
    (
        "a client",
        "post events that are not true",
        "nothing: the log proves what was posted, when it arrived and in which order, not that it is true",
    ),
    (
        "somebody who can write to the tables (the service's role, SQL injection)",
        "change, remove, insert, reorder rows, heads, flushes or tiles",
        "all of it, by `datastorage verify` alone, unless everything is rewritten consistently",
    ),
    (
        "the database administrator",
        "rewrite everything consistently, with triggers disabled, checkpoints too",
        "by the stored signatures; if these are removed or made with another key, by `--key` and one checkpoint stored elsewhere",
    ),
    (
        "somebody who can restore backups",
        "replace the database with an older state",
        "by one checkpoint stored elsewhere that is newer than that state",
    ),
    (
        "somebody who can break Ed25519",
        "all of this, signed with the first key",
        "by verifying with the ML-DSA key alone (`--key`)",
    ),
    (
        "somebody who has the signing keys as well",
        "all of this, signed",
        "by a checkpoint that was stored elsewhere before, and by witnesses",
    ),
)
"""As in docs/evidence.md: an attacker, what they can do, and what is detected, and by what."""


class TrustedLog(TypedDict):
    """The log that is written to: how many events it has, and when the last ones were written."""

    log_id: int
    name: str
    size: int
    written_at: NotRequired[datetime]


class TrustedCheckpoint(TypedDict):
    """The last checkpoint, with its note as /tlog/checkpoint shows it, and which keys of the service have signed it validly."""

    size: int
    root_hash: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    signed_at: NotRequired[datetime]
    published_at: NotRequired[datetime]
    signed_by: list[str]
    note: str


class WitnessState(TypedDict):
    """A configured witness, and the last checkpoint that it has cosigned, if there is one."""

    name: str
    key: str
    size: NotRequired[int]
    cosigned_at: NotRequired[datetime]


class TrustedTimestamp(TypedDict):
    """The last checkpoint that a timestamp authority has stamped. Time and authority are there if its certificates are configured."""

    size: int
    time: NotRequired[datetime]
    authority: NotRequired[str]


class VerifierRound(TypedDict):
    """The verifier in the background: its speed (0: it does not run), where it is, and how far its last whole round went."""

    events_per_second: int
    position: NotRequired[int]
    round: NotRequired[int]
    looked_at: NotRequired[datetime]
    completed_at: NotRequired[datetime]
    completed_end: NotRequired[int]


class Removal(TypedDict):
    """An event of the log by which others were purged, put back or erased, or a loss was admitted.

    `archives` are the parts of the archive that have what was purged; `archive_id` and `month` are of the part that has expired.
    """

    event_id: UUID
    event_type: str
    recorded_at: datetime
    log_id: int
    log_index: int
    events: int
    by: NotRequired[str]
    reason: NotRequired[str]
    partition: NotRequired[str]
    archives: NotRequired[list[UUID]]
    archive_id: NotRequired[UUID]
    month: NotRequired[str]


class ListedSeam(TypedDict):
    """Where a log was closed after a loss and the next one begins."""

    closed_log: str
    name: str
    cause: str
    size: int
    agreed_size: int
    signed_size: int
    lost: int
    by: str
    reason: str
    at: datetime
    event_id: UUID


class TrustedSink(TypedDict):
    """Where events are delivered to, and how far that is behind the log; `address` has no path, query or credentials."""

    name: str
    type: str
    address: str
    state: Literal["delivering", "failing", "paused"]
    place: str
    lag_events: int
    lag_seconds: float
    delivered_at: NotRequired[datetime]
    failures: int
    last_error: NotRequired[str]
    last_error_at: NotRequired[datetime]


class ListedSinkOrder(TypedDict):
    """An event of the log by which somebody paused, resumed, rewound or removed a sink, which was at `place` and goes on at `to`."""

    event_id: UUID
    event_type: str
    recorded_at: datetime
    sink: str
    address: str
    place: str
    to: NotRequired[str]
    by: str
    reason: NotRequired[str]


class Claim(TypedDict):
    """What an attacker can do, and what of it is detected, and by what."""

    attacker: str
    can: str
    detected: str


class Trust(TypedDict):
    """Findings: the open ones, and the last ones that somebody has acknowledged, newest first. Removals, holds, seams: newest first."""

    log: TrustedLog
    keys: list[str]
    checkpoint: NotRequired[TrustedCheckpoint]
    continuation_needed: NotRequired[str]
    witnesses: list[WitnessState]
    timestamp: NotRequired[TrustedTimestamp]
    verifier: VerifierRound
    open_findings: list[ListedFinding]
    acknowledged_findings: list[ListedFinding]
    removals: list[Removal]
    holds: list[ListedHold]
    policies: list[ListedPolicy]
    seams: list[ListedSeam]
    sinks: list[TrustedSink]
    sink_orders: list[ListedSinkOrder]
    claims: list[Claim]


@router.get("/api/v1/audit/trust", response_class=Response, responses={200: {"model": Trust}})
async def get_trust(request: Request) -> Response:
    """What the log's trust rests on now: checkpoints, witnesses, timestamps, verification, findings, removals, holds, policies, seams."""
    return json_response(await trust(request))


async def trust(request: Request) -> dict[str, Any]:
    """The answer, as `Trust`."""
    service = service_of(request)
    log = service.log
    read = await within_deadline(request, _read(service, log))
    listed_holds = await within_deadline(request, holds(service.engine, history=False))
    in_force = await within_deadline(request, policies(service.engine, log))
    loss = service.presence.loss()
    return (
        read
        | {
            "holds": [listed_hold(row) for row in listed_holds],
            "policies": [listed(*one) for one in in_force.items()],
            "claims": [dict(zip(("attacker", "can", "detected"), one, strict=True)) for one in CLAIMS],
        }
        | ({"continuation_needed": loss} if loss else {})
    )


async def _read(service: Service, log: Log) -> dict[str, Any]:
    """What one snapshot has."""
    keys = _keys(service, log)
    async with (
        driver_connection(service.engine) as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        end = await connection.fetchrow(SQL.of(log)["log_end"])
        size, written_at = (0, None) if end is None else (end["size"], _text(end["flushed_at"]))
        about = {"log_id": log.id, "name": log.name, "size": size, "written_at": written_at}
        findings = (await read_findings(connection, log))[::-1]
        acknowledged = [one.listed() for one in findings if one.acknowledgement is not None]
        seams = [await read_seam(connection, one) for one in log.and_earlier()]
        members = {
            "log": _without_none(about),
            "keys": [str(key) for key in keys],
            "checkpoint": await _checkpoint(connection, log, keys),
            "witnesses": await _witnesses(connection, log, service.settings.witnesses),
            "timestamp": await _timestamp(connection, service, log),
            "verifier": await _verifier(connection, log, service.settings.verifier_events_per_second),
            "open_findings": [one.listed() for one in findings if one.acknowledgement is None],
            "acknowledged_findings": acknowledged[:_LISTED_MAX],
            "removals": await read_removals(connection, log),
            "seams": [_listed_seam(one) for one in reversed(seams) if one is not None],
            "sinks": [one.listed() for one in await read_states(connection)],
            "sink_orders": await _recent(connection, log, SINK_ORDERS, _listed_sink_order),
        }
    return _without_none(members)


def _keys(service: Service, log: Log) -> Sequence[PublicKey]:
    return () if service.signing_key is None else service.signing_key.of(log).all_public


async def _checkpoint(connection: Connection, log: Log, keys: Sequence[PublicKey]) -> dict[str, Any] | None:
    row = await connection.fetchrow(SQL.of(log)["newest_signed"])
    if row is None:
        return None
    try:
        note = Note.parse(row["note"])
        checkpoint = Checkpoint.parse(note.text)
    except MalformedNote:
        return None  # the verifier names it
    members = {
        "size": checkpoint.size,
        "root_hash": checkpoint.root.hex(),
        "signed_at": rfc3339_or_none(row["signed_at"] or ""),
        "published_at": rfc3339_or_none(row["published_at"] or ""),
        "signed_by": [key.label for key in keys if key.name == checkpoint.origin and note.is_signed_by(key)],
        "note": row["note"],
    }
    return _without_none(members)


async def _witnesses(connection: Connection, log: Log, configured: Sequence[str]) -> list[dict[str, Any]]:
    """The configured witnesses, each with the newest checkpoint that has a valid cosignature of it."""
    notes = []
    for row in await connection.fetch(SQL.of(log)["cosigned_checkpoints"]) if configured else []:
        with suppress(MalformedNote):
            notes.append((row["size"], Note.parse(row["note"])))
    return [_witness(Witness.parse(text).key, notes) for text in configured]


def _witness(key: PublicKey, notes: Sequence[tuple[int, Note]]) -> dict[str, Any]:
    about: dict[str, Any] = {"name": key.name, "key": str(key)}
    for size, note in notes:
        for name, signed in note.signatures:
            if name == key.name and signed[_KEY_ID] == key.id and key.verifies(note.text, signed[_KEY_ID.stop :]):
                seconds = int.from_bytes(signed[_TIME])
                about["size"] = size
                with suppress(ValueError, OverflowError, OSError):  # it signs another unit than seconds
                    about["cosigned_at"] = _text(datetime.fromtimestamp(seconds, UTC))
                return about
    return about


async def _timestamp(connection: Connection, service: Service, log: Log) -> dict[str, Any] | None:
    row = await connection.fetchrow(SQL.of(log)["newest_timestamp"], 2**63 - 1)
    if row is None:
        return None
    stamped: dict[str, Any] = {"size": row["size"]}
    if (certificates := service.settings.tsa_certificates_file) is not None:
        with suppress(WrongTimestamp, Fatal):
            shown = verified_timestamp(row["token"], row["note"], read_certificates(certificates))
            stamped |= {"time": _text(shown.time), "authority": shown.authority}
    return stamped


async def _verifier(connection: Connection, log: Log, events_per_second: int) -> dict[str, Any]:
    row = await connection.fetchrow(VERIFY_SQL.of(log)["verifier_round"])
    speed = {"events_per_second": events_per_second}
    if row is None:
        return speed
    numbers = {name: row[name] for name in ("position", "round", "completed_end")}
    times = {name: rfc3339_or_none(row[name] or "") for name in ("looked_at", "completed_at")}
    return _without_none(speed | numbers | times)


async def read_removals(connection: Connection, log: Log) -> list[dict[str, Any]]:
    """The last removals that the log records, newest first. `connection` is in a snapshot."""
    return await _recent(connection, log, _REMOVALS, _listed_removal)


async def _recent(
    connection: Connection,
    log: Log,
    types: Sequence[str],
    listed: Callable[[asyncpg.Record, dict[str, Any]], dict[str, Any]],
) -> list[dict[str, Any]]:
    """The last self events of some types, newest first, as they are `listed`."""
    found = list[dict[str, Any]]()
    async for row in connection.cursor(SQL["recent_evidence"], list(types), prefetch=_LISTED_MAX):
        payload = believed_payload(row, log)
        if payload is None:
            continue  # somebody has inserted it: however many of these there are, they hide none
        with suppress(KeyError, TypeError, ValueError):  # then no release of this service has written it
            found.append(_without_none(listed(row, payload)))
            if len(found) == _LISTED_MAX:
                break
    return found


def _listed_removal(row: asyncpg.Record, payload: dict[str, Any]) -> dict[str, Any]:
    return {
        "event_id": str(row["event_id"]),
        "event_type": row["event_type"],
        "recorded_at": _text(row["recorded_at"]),
        "log_id": row["log_id"] or 0,
        "log_index": row["log_index"],
        "events": Positions.parse(str(payload["positions"])).size,
        "by": payload.get("erased_by") or payload.get("continued_by"),
        "reason": payload.get("reason"),
        "partition": payload.get("partition"),
        "archives": [one["archive_id"] for one in payload["archives"]] if "archives" in payload else None,
        "archive_id": payload.get("archive_id"),
        "month": payload.get("month"),
    }


def _listed_sink_order(row: asyncpg.Record, payload: dict[str, Any]) -> dict[str, Any]:
    return {
        "event_id": str(row["event_id"]),
        "event_type": row["event_type"],
        "recorded_at": _text(row["recorded_at"]),
        "sink": payload["sink"],
        "address": payload["address"],
        "place": payload["place"],
        "to": payload.get("to"),
        "by": payload["ordered_by"],
        "reason": payload.get("reason"),
    }


def _listed_seam(seam: Seam) -> dict[str, Any]:
    return {
        "closed_log": seam.closed.name,
        "name": seam.log.name,
        "cause": seam.cause,
        "size": seam.size,
        "agreed_size": seam.agreed_size,
        "signed_size": seam.signed_size,
        "lost": seam.lost.size,
        "by": seam.by,
        "reason": seam.reason,
        "at": _text(seam.at),
        "event_id": str(seam.event_id),
    }


def _text(time: datetime | None) -> str | None:
    return None if time is None else f"{time.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"


def _without_none(members: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value is not None}
