"""Completes vectors: `python docs/vectors/make.py FILE…` computes every derived member from the inputs, in place.

Without a file it makes those in docs/vectors/bundles and docs/vectors/continued from the events below.
"""
# ruff: noqa: INP001 - a script beside the files that it makes

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

import orjson
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

from app.events.canonical import canonical, parse
from app.events.notification import notification_digest, notification_jcs
from app.events.record import commitment, committed_jcs, record, record_leaf_hash
from app.export.bundle import (
    FORMAT,
    Bundle,
    BundledGap,
    BundledLog,
    BundledNotification,
    ChainEnd,
    Place,
    Timestamp,
    bundle_file,
)
from app.export.bundle_entry import bundled_event, masked_members, unproved_row
from app.export.file import MEMBERS, NOT_COVERED, event_record, header_record, manifest_record
from app.export.manifest import EarlierLog, ExportPosition, Manifest, sign_manifest
from app.export.row import exported_event
from app.tlog import merkle
from app.tlog.keys import SigningKey
from app.tlog.note import (
    COSIGNATURE,
    ML_DSA_44,
    Checkpoint,
    Note,
    PublicKey,
    cosigned_message,
    cosigned_tree,
    encoded_base64,
    sign_checkpoint,
    signature_line,
)
from app.tlog.proof import Proof, document_with_opening

LOG = "example.test/datastorage"
_AS_ASYNCPG_RETURNS_IT: dict[str, Callable[[Any], Any]] = {
    "event_id": UUID,
    "parent_event_id": UUID,
    "event_timestamp": datetime.fromisoformat,
    "recorded_at": datetime.fromisoformat,
    "parent_event_date": date.fromisoformat,
    "event_data": canonical,
    "event_metadata": canonical,
}


def completed(vector: dict[str, Any]) -> dict[str, Any]:
    """The vector with its derived members computed anew. Each correlation's events stand in the order of its chain."""
    if "notifications" in vector:
        return {"notifications": [_completed_notification(one) for one in vector["notifications"]]}
    heads: dict[str, str] = {}
    return vector | {"events": [_completed(event, heads) for event in vector["events"]]}


def completed_checkpoint(vector: dict[str, Any]) -> dict[str, Any]:
    """The vector of a checkpoint with its derived members. A signature with ML-DSA-44 that verifies stays: each one is another."""
    given = {name: vector[name] for name in ("origin", "size", "root", "time", "ed25519_seed", "ml_dsa_44_seed")}
    checkpoint = Checkpoint(given["origin"], given["size"], bytes.fromhex(given["root"]))
    signer = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(given["ed25519_seed"]))
    cosigner = MLDSA44PrivateKey.from_seed_bytes(bytes.fromhex(given["ml_dsa_44_seed"]))
    public = PublicKey(given["origin"], signer.public_key().public_bytes_raw())
    cosigner_public = PublicKey(given["origin"], cosigner.public_key().public_bytes_raw(), ML_DSA_44)
    signed = Note.parse(vector.get("note") or sign_checkpoint(checkpoint, signer, cosigner, given["time"]))
    assert all(signed.is_signed_by(key) for key in (public, cosigner_public))
    signature, cosignature = (raw[4:] for _, raw in signed.signatures)
    return given | {
        "ed25519_vkey": str(public),
        "ed25519_message": signed.text,
        "ed25519_signature": signature.hex(),
        "ml_dsa_44_public_key": cosigner_public.public.hex(),
        "ml_dsa_44_key_id": cosigner_public.id.hex(),
        "ml_dsa_44_vkey": str(cosigner_public),
        "ml_dsa_44_message": cosigned_tree(given["origin"], given["time"], checkpoint).hex(),
        "ml_dsa_44_time": cosignature[:8].hex(),
        "ml_dsa_44_signature": cosignature[8:].hex(),
        "note": str(signed),
    }


def _completed_notification(one: dict[str, Any]) -> dict[str, Any]:
    times = {name: datetime.fromisoformat(one["row"][name]) for name in ("sent_at", "created_at")}
    row, salt = one["row"] | times, bytes.fromhex(one["salt"])
    return {
        "row": one["row"],
        "salt": one["salt"],
        "jcs": notification_jcs(row).decode(),
        "digest": notification_digest(salt, row),
    }


def _completed(event: dict[str, Any], heads: dict[str, str]) -> dict[str, Any]:
    row: dict[str, Any] = parse(event["row"].encode()).value
    for name, convert in _AS_ASYNCPG_RETURNS_IT.items():
        if row.get(name) is not None:
            row[name] = convert(row[name])
    correlation_id = row["correlation_id"]
    positions = {name: event[name] for name in ("log_index", "chain_index")}
    salt, committed = bytes.fromhex(event["payload_salt"]), committed_jcs(row)
    hashed = record(
        row | positions | {"previous_event_hash": heads.get(correlation_id)},
        event.get("log", LOG),
        commitment(salt, committed),
    )
    heads[correlation_id] = record_leaf_hash(hashed).hex()
    return {
        "row": event["row"],
        "payload_salt": event["payload_salt"],
        **({"log": event["log"]} if "log" in event else {}),
        **positions,
        "committed_jcs": committed.decode(),
        "commitment": commitment(salt, committed).hex(),
        "record_jcs": orjson.dumps(hashed).decode(),
        "event_hash": heads[correlation_id],
    }


# Bundles. The log has thirteen leaves; those of events that are in no bundle are hashes of their positions.

BUNDLES = Path(__file__).parent / "bundles"
_KEY, _WITNESS = (Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in (1, 2))
_PUBLIC = PublicKey(LOG, _KEY.public_key().public_bytes_raw())
_WITNESS_PUBLIC = PublicKey("example.test/witness", _WITNESS.public_key().public_bytes_raw(), COSIGNATURE)
_SIZE = 13
_PURGED, _ERASED = (0, 1), 7
_HOLD, _ERASURE, _PURGE, _STORING = (f"019abc00-0000-7000-8000-0000000000a{number}" for number in (1, 2, 3, 4))
_NOTIFICATION: dict[str, Any] = {
    "remediation_id": "rr-1",
    "notification_id": "n-2",
    "recipient": "ada@example.test",
    "channel": "email",
    "message_summary": "approval needed",
    "status": "sent",
    "sent_at": "2026-11-23T02:00:06.500000Z",
    "delivery_status": "250 OK",
    "error_message": None,
    "escalation_level": 0,
    "created_at": "2026-11-23T02:00:12.000001Z",
}
_NOTIFICATION_SALT = bytes([7]) * 16


def _row(position: int, chain_index: int | None, event_type: str, payload: str, **columns: Any) -> dict[str, Any]:
    """The row of one event, as an export reads it. `payload` is JSON text, whose numbers matter."""
    time = datetime(2026, 11, 23, 2, 0, position, 287750, tzinfo=UTC)
    names = event_type.split(".")
    return (
        dict.fromkeys(MEMBERS)
        | {
            "event_id": f"019abc00-0000-7000-8000-0000000000{position:02}",
            "event_version": "1.0",
            "event_timestamp": time,
            "event_date": time.date(),
            "recorded_at": time.replace(microsecond=301002),
            "event_type": event_type,
            "event_category": names[0],
            "event_action": names[-1],
            "event_outcome": "success",
            "correlation_id": "rr-1",
            "actor_type": "service",
            "actor_id": "remediationorchestrator-controller",
            "resource_type": "RemediationRequest",
            "resource_id": "rr-1",
            "severity": "info",
            "is_sensitive": False,
            "retention_days": 2555,
            "legal_hold": chain_index is not None,
            "hash_algorithm": "sha256-rfc6962",
            "log": LOG,
            "log_index": position,
            "chain_index": chain_index,
            "payload_salt": f"{position:02x}" * 16,
            "event_data": payload,
            "sealed": True,
        }
        | columns
    )


def _self_event(position: int, event_type: str, about: str, **payload: Any) -> dict[str, Any]:
    event_data = json.dumps({"event_type": event_type} | payload)
    columns = {"event_category": "security", "correlation_id": f"datastorage:{event_type.split('.')[1]}:{about}"}
    columns |= {
        "actor_id": "datastorage-service",
        "resource_type": "security",
        "resource_id": columns["correlation_id"],
    }
    return _row(position, 0, event_type, event_data, **columns)


def _rows() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The events of `rr-1` that are left, and the self events about them."""
    started = '{"event_type":"orchestrator.lifecycle.started","rr_name":"rr-1","namespace":"payments","big":18446744073709551615,"exact":0.1000000000000000055}'
    erased = (
        '{"event_type":"orchestrator.approval.approved","rr_name":"erased","namespace":"erased","approved_by":"erased"}'
    )
    done = '{"event_type":"orchestrator.lifecycle.completed","outcome":"Succeeded \\u20ac \\ud83d\\ude00","duration_ms":1e21,"contact":"ada@example.test"}'
    events = [
        _row(5, 2, "orchestrator.lifecycle.started", started, namespace="10.1.2.3"),
        _row(_ERASED, 3, "orchestrator.approval.approved", erased, actor_id="erased", resource_id="erased"),
        _row(9, 4, "orchestrator.lifecycle.completed", done, actor_ip="10.1.2.3", error_message=""),
    ]
    events[1] |= {"payload_salt": None, "payload_commitment": sha256(b"what was erased").hexdigest()}
    placed = {"hold_id": _HOLD, "correlation_id": "rr-1", "reason": "case 7", "placed_by": "grace@example.test"}
    erasure = {"erasure_id": _ERASURE, "event_ids": [events[1]["event_id"]], "positions": "{[7,8)}"}
    purge = {"operation_id": _PURGE, "positions": "{[0,2)}", "event_count": 2, "cutoff": "2026-11-23T00:00:00Z"}
    digest = sha256(_NOTIFICATION_SALT + canonical(_NOTIFICATION)).hexdigest()
    stored = {"storing_id": _STORING, "notification_id": "n-2", "remediation_id": "rr-1", "digest": digest}
    return events, [
        _self_event(8, "datastorage.hold.placed", _HOLD, **placed),
        _self_event(10, "datastorage.retention.purged", _PURGE, **purge),
        _self_event(11, "datastorage.event.erased", _ERASURE, erased_by="grace", reason="request 12", **erasure),
        _self_event(12, "datastorage.notification.stored", _STORING, **stored),
    ]


def bundles() -> dict[str, bytes]:
    """The files of docs/vectors/bundles by their names."""
    events, evidence = _rows()
    leaves = {position: sha256(b"%d" % position).digest() for position in range(_SIZE)}
    last = leaves[_PURGED[-1]].hex()
    for row in events:
        row["previous_event_hash"] = last
        leaves[row["log_index"]] = bytes.fromhex(last := bundled_event(row, None, redacted=False).leaf)
    for row in evidence:
        leaves[row["log_index"]] = bytes.fromhex(bundled_event(row, None, redacted=False).leaf)
    return {
        "0001-complete.json": _bundle(events, evidence, leaves, last, redacted=False),
        "0002-redacted.json": _bundle(events, evidence, leaves, last, redacted=True),
        "keys.txt": f"{_PUBLIC}\n{_WITNESS_PUBLIC}\n".encode(),
        "0003-timestamp.json": _bundle(events, evidence, leaves, last, redacted=False, stamped=10),
    }


def _proof(leaves: dict[int, bytes], position: int, size: int) -> list[bytes]:
    ranges = merkle.inclusion_ranges(position, size)
    return [merkle.root(leaves[leaf] for leaf in range(*one)) for one in ranges]


def _timestamp(leaves: dict[int, bytes], size: int) -> Timestamp:
    """A token of a test's authority over the checkpoint of the first `size` leaves; it is stored, since each is another."""
    checkpoint = Checkpoint(LOG, size, merkle.root(leaves[position] for position in range(size)))
    hashes = [merkle.root(leaves[leaf] for leaf in range(*one)) for one in merkle.consistency_ranges(size, _SIZE)]
    token = BUNDLES.joinpath("timestamp.tst").read_bytes()
    return Timestamp(sign_checkpoint(checkpoint, _KEY), [*map(encoded_base64, hashes)], encoded_base64(token))


def _bundle(
    events: list[dict[str, Any]],
    evidence: list[dict[str, Any]],
    leaves: dict[int, bytes],
    last: str,
    *,
    redacted: bool,
    stamped: int | None = None,
) -> bytes:
    """The bundle of these events. `stamped`: with a timestamp of the checkpoint of so many leaves."""

    def proof(position: int) -> list[bytes]:
        return _proof(leaves, position, _SIZE)

    checkpoint = Checkpoint(LOG, _SIZE, merkle.root(leaves[position] for position in range(_SIZE)))
    cosigned = (1763863320).to_bytes(8) + _WITNESS.sign(cosigned_message(str(checkpoint), 1763863320))
    note = sign_checkpoint(checkpoint, _KEY) + signature_line(_WITNESS_PUBLIC.name, _WITNESS_PUBLIC.id + cosigned)
    unsealed = _row(0, None, "gateway.signal.received", "{}", log_index=None, payload_salt=None, legal_hold=False)
    end = _PURGED[-1]
    gap_proof = [encoded_base64(one) for one in proof(end)]
    gap = BundledGap(first=0, end=2, last_hash=leaves[end].hex(), log=LOG, position=end, proof=gap_proof)
    of_log = [bundled_event(row, proof(row["log_index"]), redacted=redacted) for row in events]
    of_service = [bundled_event(row, proof(row["log_index"]), redacted=redacted) for row in evidence]
    stored = _NOTIFICATION | {"id": 2, "updated_at": _NOTIFICATION["created_at"]}
    older = BundledNotification(
        masked_members(stored | {"id": 1, "notification_id": "n-1"}, redacted=redacted), None, None, None
    )
    opening = (None, None) if redacted else (_NOTIFICATION_SALT.hex(), canonical(_NOTIFICATION).decode())
    notified = [older, BundledNotification(masked_members(stored, redacted=redacted), *opening, Place(LOG, 12))]
    exported = {"exported_at": "2026-11-23T02:05:00.000000Z", "exported_by": "ada"}
    shown = {"events": of_log, "gaps": [gap], "evidence": of_service, "notifications": notified}
    shown |= {"unproved": [unproved_row(unsealed, redacted=redacted)], "correlation_id": "rr-1", "redacted": redacted}
    timestamps = [] if stamped is None else [_timestamp(leaves, stamped)]
    log = BundledLog(0, LOG, _SIZE, encoded_base64(checkpoint.root), note, None, timestamps)
    bundle = Bundle(
        format=FORMAT,
        page=["This is a vector of the format of bundles.", "", "No event in it ever happened."],
        logs=[log],
        chain=ChainEnd(5, last),
        **shown,
    )
    export_id = f"019abc00-0000-7000-8000-0000000000f{2 if stamped else int(redacted)}"
    return bundle_file(bundle, export_id, **exported, key=SigningKey(_KEY, _PUBLIC))


# Files over two logs. The first one was closed with four leaves, of which a lost checkpoint had said that the last two are others.

CONTINUED = Path(__file__).parent / "continued"
_NEXT = f"{LOG}/1"
_NEXT_PUBLIC = PublicKey(_NEXT, _PUBLIC.public)
_CONTINUATION, _POLICY = (f"019abc00-0000-7000-8000-0000000000b{number}" for number in (1, 2))
_CLOSED_SIZE, _AGREED_SIZE, _NEXT_SIZE = 4, 2, 3
_LOST = 2


class _TwoLogs:
    """The rows and leaves of both logs. If an event of the closed one is lost, its leaf is still there."""

    def __init__(self, *, with_loss: bool) -> None:
        self.lost = {_LOST} if with_loss else set[int]()
        self.leaves: dict[str, dict[int, bytes]] = {LOG: {}, _NEXT: {}}
        self.rows: list[dict[str, Any]] = []
        self.last = ""
        """Hash of the last event of `rr-1`."""
        started = '{"event_type":"orchestrator.lifecycle.started","rr_name":"rr-1","namespace":"payments"}'
        for position in range(_CLOSED_SIZE):
            self._add(_row(position, position, "orchestrator.lifecycle.started", started), LOG, is_of_chain=True)
        self.seam = self._seam()
        self._add(self.seam, _NEXT)
        self._add(_row(1, _CLOSED_SIZE, "orchestrator.lifecycle.started", started), _NEXT, is_of_chain=True)
        policy = {"policy_id": _POLICY, "category": "gateway", "retention_days": 400, "floor_days": 365}
        policy |= {"set_by": "grace@example.test", "reason": "audit 2027"}
        self._add(_self_event(2, "datastorage.policy.set", _POLICY, **policy), _NEXT)

    def _add(self, row: dict[str, Any], log: str, *, is_of_chain: bool = False) -> None:
        row["log"], row["event_id"] = log, f"019abc00-0000-7000-8000-00000000{log == _NEXT:d}0{row['log_index']:02}"
        row["previous_event_hash"] = self.last or None if is_of_chain else None
        row["event_hash"] = bundled_event(row, None, redacted=False).leaf
        self.last = row["event_hash"] if is_of_chain else self.last
        self.leaves[row["log"]][row["log_index"]] = bytes.fromhex(row["event_hash"])
        self.rows += [] if row["log"] == LOG and row["log_index"] in self.lost else [row]

    def root(self, log: str, size: int) -> bytes:
        return merkle.root(self.leaves[log][position] for position in range(size))

    def note(self, log: str, size: int) -> str:
        return sign_checkpoint(Checkpoint(log, size, self.root(log, size)), _KEY)

    def _seam(self) -> dict[str, Any]:
        signed = sign_checkpoint(Checkpoint(LOG, 5, sha256(b"lost").digest()), _KEY)
        payload: dict[str, Any] = {
            "continuation_id": _CONTINUATION,
            "log_id": 0,
            "closed_log": LOG,
            "size": _CLOSED_SIZE,
            "tree_size": _CLOSED_SIZE,
            "root_hash": self.root(LOG, _CLOSED_SIZE).hex(),
            "cause": "rewritten",
            "agreed_size": _AGREED_SIZE,
            "positions": "{[2,3)}" if self.lost else "{}",
            "differing": "{[2,5)}",
            "continued_by": "ada",
            "reason": "failover to a standby",
            "checkpoint": signed,
        }
        return _self_event(0, "datastorage.log.continued", _CONTINUATION, **payload)


def continued() -> dict[str, bytes]:
    """The files of docs/vectors/continued by their names."""
    return {
        "0001-export.ndjson": _export("ndjson"),
        "0002-export.csv": _export("csv"),
        "0003-bundle.json": _bundle_of_two_logs(),
        "keys.txt": f"{_NEXT_PUBLIC}\n{_PUBLIC}\n".encode(),
    }


def _export(form: Literal["ndjson", "csv"]) -> bytes:
    """An export of everything in both logs, in two parts, the second of which begins in the first log."""
    logs = _TwoLogs(with_loss=False)
    unsealed = _row(0, None, "gateway.signal.received", "{}", log_index=None, payload_salt=None, legal_hold=False)
    rows = [*logs.rows, unsealed | {"log": _NEXT, "sealed": False}]
    file, previous, after = b"", None, None
    for part, of_part in enumerate((rows[:3], rows[3:]), 1):
        content = header_record(form) if part == 1 else b""
        content += b"".join(event_record(form, exported_event(row, redacted=False)) for row in of_part)
        last = of_part[-1]
        through = ExportPosition(last["log_index"], log=last["log"])
        if last["log_index"] is None:
            through = ExportPosition(None, last["event_id"], last["event_date"].isoformat())
        manifest = replace(
            _manifest(form, of_part, logs),
            part=part,
            previous=previous,
            after=after,
            through=through,
            next="x" if part == 1 else None,
            sha256=sha256(content).hexdigest(),
        )
        file += content + manifest_record(form, sign_manifest(manifest, SigningKey(_KEY, _NEXT_PUBLIC)))
        previous, after = manifest.sha256, through
    return file


def _manifest(form: Literal["ndjson", "csv"], rows: list[dict[str, Any]], logs: _TwoLogs) -> Manifest:
    """The manifest of an export of these rows in one part."""

    def ends(log: str) -> tuple[int | None, int | None]:
        positions = [row["log_index"] for row in rows if row["log"] == log and row["sealed"]]
        return (positions[0], positions[-1]) if positions else (None, None)

    (first, last), (earlier_first, earlier_last) = ends(_NEXT), ends(LOG)
    sealed = sum(row["sealed"] for row in rows)
    hashes = tuple(_proof(logs.leaves[_NEXT], 0, _NEXT_SIZE))
    entry = bundled_event(logs.seam, None, redacted=False)
    assert entry.committed is not None
    proof = Proof(entry.record.encode(), 0, hashes, logs.note(_NEXT, _NEXT_SIZE))
    opening = bytes.fromhex(entry.salt or ""), entry.committed.encode()
    seam = json.loads(document_with_opening(proof, opening))
    earlier = EarlierLog(LOG, _CLOSED_SIZE, earlier_first, earlier_last, logs.note(LOG, _AGREED_SIZE), seam)
    return Manifest(
        export_id=UUID("019abc00-0000-7000-8000-0000000000f4"),
        part=1,
        format=form,
        redacted=False,
        filter={"include": "self"},
        exported_at="2026-11-23T02:05:00.000000Z",
        exported_by="ada",
        log=_NEXT,
        log_size=_NEXT_SIZE,
        events=len(rows),
        sealed=sealed,
        unsealed=len(rows) - sealed,
        erased=0,
        first_position=first,
        last_position=last,
        after=None,
        through=None,
        sha256="",
        previous=None,
        next=None,
        checkpoint=logs.note(_NEXT, _NEXT_SIZE),
        not_covered=NOT_COVERED,
        earlier_logs=(earlier,),
    )


def _bundle_of_two_logs() -> bytes:
    """The bundle of `rr-1`, whose third event is lost; the event that continues the log proves the others of the closed one."""
    logs = _TwoLogs(with_loss=True)
    sizes = {LOG: _CLOSED_SIZE, _NEXT: _NEXT_SIZE}

    def entry(row: dict[str, Any]) -> Any:
        return bundled_event(row, _proof(logs.leaves[row["log"]], row["log_index"], sizes[row["log"]]), redacted=False)

    events = [entry(row) for row in logs.rows if row["correlation_id"] == "rr-1"]
    lost = logs.leaves[LOG][_LOST].hex()
    gap_proof = [*map(encoded_base64, _proof(logs.leaves[LOG], _LOST, _CLOSED_SIZE))]
    roots = {log: encoded_base64(logs.root(log, size)) for log, size in sizes.items()}
    bundle = Bundle(
        format=FORMAT,
        page=["This is a vector of a bundle over two logs.", "", "No event in it ever happened."],
        correlation_id="rr-1",
        redacted=False,
        logs=[
            BundledLog(0, LOG, _CLOSED_SIZE, roots[LOG], None, Place(_NEXT, 0), []),
            BundledLog(1, _NEXT, _NEXT_SIZE, roots[_NEXT], logs.note(_NEXT, _NEXT_SIZE), None, []),
        ],
        chain=ChainEnd(_CLOSED_SIZE + 1, logs.last),
        events=events,
        gaps=[BundledGap(first=_LOST, end=_LOST + 1, last_hash=lost, log=LOG, position=_LOST, proof=gap_proof)],
        evidence=[entry(logs.seam)],
        unproved=[],
        notifications=[],
    )
    exported = {"exported_at": "2026-11-23T02:05:00.000000Z", "exported_by": "ada"}
    key = SigningKey(_KEY, _NEXT_PUBLIC)
    return bundle_file(bundle, "019abc00-0000-7000-8000-0000000000f5", **exported, key=key)


if __name__ == "__main__":
    if not sys.argv[1:]:
        for directory, files in ((BUNDLES, bundles()), (CONTINUED, continued())):
            for name, content in files.items():
                directory.joinpath(name).write_bytes(content)
    for path in map(Path, sys.argv[1:]):
        vector = json.loads(path.read_text())
        complete = completed(vector) if "events" in vector else completed_checkpoint(vector)
        path.write_text(json.dumps(complete, indent=1) + "\n")
