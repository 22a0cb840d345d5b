"""The entries of a bundle from rows: an event opened, masked or erased, and a row that the log does not have."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from app.events.canonical import canonical, loads
from app.events.log import Log
from app.events.notification import notification_jcs
from app.events.record import Row, commitment, committed_jcs, record, time_text
from app.export import redact
from app.export.bundle import RECORD_FIXED, BundledEvent, BundledNotification, NotCovered, Place
from app.export.file import COMMITTED, event_record
from app.export.row import NOT_TEXT, exported_event, masked_tree, record_address
from app.tlog import merkle
from app.tlog.note import encoded_base64

_TREES = frozenset({"event_data", "event_metadata"})


def bundled_event(row: Row, proof: Sequence[bytes] | None, *, redacted: bool) -> BundledEvent:
    """The entry of a row of the log, which has the columns of an exported event; `proof` is that of its leaf."""
    columns: dict[str, Any] = dict(row)  # type: ignore[call-overload]  # a record or a dict
    columns["actor_ip"] = columns["actor_ip"] and record_address(columns["actor_ip"])
    salt, committed = columns["payload_salt"], None
    if columns["payload_commitment"] is None:
        committed = committed_jcs(columns, stored=True)
        commits_to = commitment(bytes.fromhex(salt or ""), committed)
    else:
        salt, commits_to = None, bytes.fromhex(columns["payload_commitment"])
    hashed = record(columns, columns["log"], commits_to)
    encoded = orjson.dumps(hashed)
    leaf = merkle.leaf_hash(encoded).hex()
    changed: list[str] = []
    if redacted:
        if masked := _masked(hashed):
            encoded, changed = orjson.dumps(hashed | masked), [*masked]
        if committed is not None and (masked := _masked(loads(committed))):
            committed, salt = canonical(loads(committed) | masked), None
            changed += masked
    return BundledEvent(
        log=columns["log"],
        position=columns["log_index"],
        leaf=leaf,
        proof=None if proof is None else [encoded_base64(one) for one in proof],
        record=encoded.decode(),
        salt=salt,
        committed=None if committed is None else committed.decode(),
        redacted=sorted(changed) or None,
        not_covered=_not_covered(columns, redacted=redacted),
    )


def unproved_row(row: Row, *, redacted: bool) -> str:
    """A row that the log does not have, as a record of an export."""
    return event_record("ndjson", exported_event(row, redacted=redacted) | {"sealed": False}).decode().rstrip("\n")


def bundled_notification(row: Row, log: Log, *, redacted: bool) -> BundledNotification:
    """The entry of a row of notification_audit, with what opens the digest that the log has of it, if the row names its position."""
    columns = {"id": row["id"]} | orjson.loads(notification_jcs(row)) | {"updated_at": time_text(row["updated_at"])}
    shown = masked_members(columns, redacted=redacted)
    if row["log_index"] is None or row["log_index"] < 0:
        return BundledNotification(shown, None, None, None)
    place = Place(log.name_of(row["log_id"]), row["log_index"])
    if redacted:
        return BundledNotification(shown, None, None, place)
    return BundledNotification(shown, (row["salt"] or b"").hex(), notification_jcs(row).decode(), place)


def masked_members(members: Mapping[str, Any], *, redacted: bool) -> dict[str, Any]:
    """An object of texts and other JSON values, masked if the bundle is."""
    return {name: masked_tree(value) for name, value in members.items()} if redacted else dict(members)


def masked_text(text: str, *, redacted: bool) -> str:
    """A text, masked if the bundle is."""
    return redact.text(text) if redacted else text


def _masked(members: Mapping[str, Any]) -> dict[str, Any]:
    """Those members of a record, or of a committed object, that redaction changes, as it changes them."""
    masked = {}
    for name, value in members.items():
        if name in _TREES:
            masked[name] = masked_tree(value)
        elif isinstance(value, str) and name not in RECORD_FIXED and (name in COMMITTED or name not in NOT_TEXT):
            masked[name] = redact.text(value)
    return {name: value for name, value in masked.items() if value != members[name]}


def _not_covered(columns: Mapping[str, Any], *, redacted: bool) -> NotCovered:
    """The columns that no hash covers; times as in the records of exports."""
    members = orjson.loads(
        orjson.dumps({name: columns[name] for name in NotCovered.__slots__}, option=orjson.OPT_UTC_Z)
    )
    return NotCovered(**masked_members(members, redacted=redacted))
