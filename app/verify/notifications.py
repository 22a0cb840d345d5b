"""Notifications against their digests in the log: those that are edited, removed or inserted, and how many are unsealed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import asyncpg

from app.db import LONG_FETCH_SECONDS, Connection, portions
from app.events.log import Log, place_of
from app.events.notification import STORED, notification_digest
from app.events.positions import Positions
from app.events.record import Row
from app.tlog.evidence import believed_payload
from app.tlog.tiles import SQL as TLOG_SQL
from app.verify.row import Defect, Defects, Kind
from app.verify.snapshot import SQL, yielding_to_others

_ROWS_MAX = 200
_TEXTS = ("notification_id", "remediation_id", "digest")


@dataclass(slots=True)
class NotificationsResult:
    """What verification found in the notifications."""

    total: int = 0
    """Rows that say that the log has their digest."""
    verified: int = 0
    """Rows whose digest the log has."""
    purged: int = 0
    """Rows whose digest went with an event that was purged, as recorded in the log."""
    unsealed: int = 0
    """Rows that do not say so: of older releases, or inserted by others by SQL."""
    defects: Defects = field(default_factory=Defects)


async def verify_notifications(connection: Connection, log: Log, purged: Positions) -> NotificationsResult:
    """Compare each notification with the logs up to `log`, and each of their digests with the notifications.

    `purged` are the places (place_of) that were purged. `connection` is in a snapshot.
    """
    result = NotificationsResult()
    rows_at_once = portions(connection, SQL["sealed_notifications"], widest="message_summary", rows_max=_ROWS_MAX)
    async for rows in rows_at_once:
        digests = await _digests_at(connection, log, [row["log_index"] for row in rows])
        async for row in yielding_to_others(rows):
            _check_row(result, row, digests.get(_place(row)), purged)
    events = portions(connection, TLOG_SQL["evidence"], [STORED], None, widest="event_data", rows_max=_ROWS_MAX)
    async for rows in events:
        logged = [(payload, row) for row in rows if (payload := _digest_event(row, log)) is not None]
        await _check_digests(connection, result, logged)
    result.unsealed = await connection.fetchval(SQL["count_unsealed_notifications"], timeout=LONG_FETCH_SECONDS)
    return result


async def _digests_at(
    connection: Connection, log: Log, positions: Sequence[int | None]
) -> dict[tuple[int, int], dict[str, Any]]:
    """The payloads of the events at these positions that have digests of notifications, by log and position."""
    rows = await connection.fetch(SQL["notification_events"], positions, STORED)
    payloads = {_place(row): _digest_event(row, log) for row in rows}
    return {place: payload for place, payload in payloads.items() if payload is not None}


def _digest_event(row: Row, log: Log) -> dict[str, Any] | None:
    """The payload of an event that has a digest. None also if no release has written it, since a member is missing or no text."""
    payload = believed_payload(row, log)
    return payload if payload is not None and all(isinstance(payload.get(name), str) for name in _TEXTS) else None


def _place(row: Row) -> tuple[int, int]:
    return row["log_id"], row["log_index"]


def _check_row(
    result: NotificationsResult, row: asyncpg.Record, logged: Mapping[str, Any] | None, purged: Positions
) -> None:
    result.total += 1
    if logged is None and row["log_index"] is not None and place_of(row["log_id"], row["log_index"]) in purged:
        result.purged += 1
    elif logged is None or logged["notification_id"] != row["notification_id"]:
        result.defects.add(_defect(row, "inserted", "the log has no digest of it at its position"))
    elif logged["digest"] != _digest(row):
        result.defects.add(_defect(row, "edited", "it has another digest than the one that was logged"))
    elif row["updated_at"] != row["created_at"]:  # which the digest does not have
        result.defects.add(_defect(row, "edited", "updated_at is not created_at"))
    else:
        result.verified += 1


async def _check_digests(
    connection: Connection, result: NotificationsResult, logged: Sequence[tuple[dict[str, Any], Row]]
) -> None:
    """Add a defect for each of these payloads, with their events, whose notification is gone or names another position."""
    rows = await connection.fetch(SQL["notifications_with_ids"], [payload["notification_id"] for payload, _ in logged])
    stored = {row["notification_id"]: row for row in rows}
    for payload, event in logged:
        row = stored.get(payload["notification_id"])
        if row is not None and _place(row) == _place(event):
            continue
        named = payload | {"log_index": event["log_index"]}
        if row is None:
            result.defects.add(_defect(named, "removed", "the log has its digest, but it is gone"))
        elif row["log_index"] is None or _digest(row) == payload["digest"]:
            result.defects.add(
                _defect(named, "edited", "it does not name the position at which the log has its digest")
            )
        else:
            result.defects.add(_defect(named, "removed", "the log has its digest, but another one has its id"))


def _digest(row: asyncpg.Record) -> str:
    return notification_digest(row["salt"] or b"", row)


def _defect(row: Row, kind: Kind, message: str) -> Defect:
    name = f"notification {row['notification_id']}"
    return Defect(kind, f"{kind}: {name}: {message}", correlation_id=row["remediation_id"], position=row["log_index"])
