"""Verifies a bundle with only the file and public keys: no service, no database, no network (docs/design.md, section 9.6)."""

import io
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Literal

import orjson
from cryptography.x509 import Certificate
from pydantic import ConfigDict, TypeAdapter, ValidationError

from app.errors import AuditError
from app.events.canonical import loads_strict
from app.events.own import agree, releases_no_hold
from app.events.positions import NO_POSITIONS, Positions, Range
from app.export.bundle import (
    DIFFERS,
    RECORD_FIXED,
    BundledEvent,
    BundledGap,
    BundledLog,
    BundledNotification,
    BundleFile,
    BundleManifest,
    parse,
)
from app.export.file import COMMITTED, RecordReader
from app.export.manifest import key_id, signed_bytes, verifies
from app.export.result import CheckResult
from app.terminal import one_line
from app.tlog import merkle
from app.tlog.keys import signature_lines
from app.tlog.note import (
    ED25519,
    Note,
    NoValidSignature,
    PublicKey,
    decoded_base64,
    decoded_hash,
    verified_checkpoint,
    verified_signatures,
)
from app.tlog.proof import CONTINUED
from app.tlog.timestamp import verified_timestamp

RECORD_MEMBERS = frozenset(
    {
        *("actor_type", "chain_index", "cluster_id", "commitment", "correlation_id", "duration_ms", "error_code"),
        *("event_action", "event_category", "event_id", "event_outcome", "event_timestamp", "event_type"),
        *("event_version", "is_sensitive", "log", "log_index", "namespace", "parent_event_date", "parent_event_id"),
        *("previous_event_hash", "recorded_at", "resource_type", "severity", "span_id", "trace_id", "v"),
    }
)
_STRICT = ConfigDict(strict=True, extra="forbid")


@dataclass(frozen=True, slots=True)
class _Signature:
    __pydantic_config__ = _STRICT
    keyid: str
    sig: str


@dataclass(frozen=True, slots=True)
class _Envelope:
    __pydantic_config__ = _STRICT
    payloadType: Literal["application/vnd.in-toto+json"]  # noqa: N815 - DSSE names it
    payload: str
    signatures: list[_Signature]


_ENVELOPE = TypeAdapter(_Envelope)


class Refused(ValueError):
    """What a part of the file claims does not hold; the message says why."""


@dataclass(slots=True)
class _Tree:
    """A log of the file whose checkpoint, or seam, was found valid."""

    log: BundledLog
    size: int
    root: bytes
    signers: list[PublicKey]
    """The keys that signed its checkpoint, those of witnesses too."""
    missing: Positions = NO_POSITIONS
    """What was purged, or lost before the log was continued."""
    erased: Positions = NO_POSITIONS

    def require_leaf(self, position: int, leaf: str, proof: Sequence[str] | None) -> None:
        """Refused unless `proof` shows that the log has the leaf at this position."""
        hashes = [decoded_hash(one) for one in proof or ()]
        if not merkle.verify_inclusion(position, self.size, bytes.fromhex(leaf), hashes, self.root):
            raise Refused(f"its hash is not proved to be at position {position} of the log {self.log.name!r}")


@dataclass(slots=True)
class _Proved:
    """An entry that the log has, and what its texts say."""

    entry: BundledEvent
    record: dict[str, Any]
    payload: dict[str, Any] = field(default_factory=dict)
    """event_data of a self event that is evidence; empty for others."""


def check_bundle(content: bytes, keys: list[PublicKey], certificates: Sequence[Certificate] = ()) -> CheckResult:
    """Verify a bundle: every claim of it that a proof can show, and its manifest.

    Tokens of timestamp authorities are checked if there are `certificates` to do it with.
    """
    result = CheckResult(what="the bundle")
    try:
        file = parse(content)
    except ValueError as error:
        result.add_problem(str(error))
        return result
    _Checker(file, keys, certificates, result).check()
    return result


class _Checker:
    """Checks one file, step by step as in docs/design.md; each step adds its problems to the result."""

    def __init__(
        self, file: BundleFile, keys: list[PublicKey], certificates: Sequence[Certificate], result: CheckResult
    ) -> None:
        self._certificates = certificates
        self._timestamp_lines: dict[str, list[str]] = defaultdict(list)
        """By log, what its timestamps that hold show."""
        self._file, self._bundle, self._keys, self._result = file, file.bundle, keys, result
        self._trees: dict[str, _Tree] = {}
        self._order = {log.name: number for number, log in enumerate(self._bundle.logs)}

    def check(self) -> None:
        manifest = self._check_manifest()
        if self._bundle.logs[-1].size is None and self._bundle.logs[-1].root is None:
            self._result.add_problem(
                "nothing in it is proved: the service that wrote it has no key for checkpoints (DATASTORAGE_CHECKPOINT_KEY_FILE)"
            )
            return
        self._check_logs()
        evidence = [one for one in self._proved("evidence", self._bundle.evidence) if self._is_evidence(one)]
        self._read_evidence(evidence)
        events = list(self._proved("events", self._bundle.events))
        self._check_places()
        self._check_chain(events)
        self._check_gaps(events)
        self._check_erased(events)
        self._check_unproved()
        self._check_notifications(evidence)
        self._check_page()
        self._check_timestamps()
        self._result.summary = list(self._summary(manifest, events, evidence))

    def _add(self, where: str, text: object) -> None:
        self._result.add_problem(f"{where}: {text}")

    # The manifest.

    def _check_manifest(self) -> BundleManifest | None:
        try:
            manifest = self._signed_manifest()
        except ValueError as error:
            self._add("manifest", error)
            return None
        actual: dict[str, Any] = {
            "correlation_id": self._bundle.correlation_id,
            "redacted": self._bundle.redacted,
            "log": self._bundle.logs[-1].name,
        }
        if manifest.sha256 != self._file.sha256:
            found = (
                f"SHA-256 is {self._file.sha256}, but {manifest.sha256} was signed: something in the file was changed"
            )
            self._add("manifest", found)
        for name, value in (actual | self._bundle.counts()).items():
            if (signed := getattr(manifest, name)) != value:
                self._add("manifest", f"{name} is {value!r}, but {signed!r} was signed")
        return manifest

    def _signed_manifest(self) -> BundleManifest:
        try:
            envelope = _ENVELOPE.validate_json(orjson.dumps(self._file.envelope))
        except ValidationError:
            raise Refused("it is not a DSSE envelope") from None
        statement = decoded_base64(envelope.payload, "its payload")
        manifest = BundleManifest.parse(statement)
        keys = {key_id(key): key for key in self._keys if key.name == manifest.log and key.algorithm == ED25519}
        signatures = [(keys.get(one.keyid), decoded_base64(one.sig, "its signature")) for one in envelope.signatures]
        found = [verifies(key, signature, signed_bytes(statement)) for key, signature in signatures if key is not None]
        if not found:
            why = " (without a key for checkpoints a service signs nothing)" if not envelope.signatures else ""
            raise Refused(f"wrong key: it has no signature by a key of {manifest.log!r} that was asked for{why}")
        if not all(found):
            raise Refused("edited: its signature is wrong")
        return manifest

    # The logs.

    def _check_logs(self) -> None:
        logs = self._bundle.logs
        if len({log.name for log in logs}) < len(logs) or len({log.log_id for log in logs}) < len(logs):
            self._add("logs", "a name or number stands twice")
        for log in reversed(logs):  # an event of a later one can vouch for a log
            if log.size is None or log.root is None:
                self._add(f"log {log.name!r}", "it has no size and root, so nothing of it is proved")
                continue
            try:
                root = decoded_hash(log.root)
                if log.checkpoint is not None:
                    signers = self._signers(log, log.checkpoint, log.size, root)
                else:
                    signers = self._signers_through_seam(log, log.size, root)
            except ValueError as error:
                self._add(f"log {log.name!r}", error)
            else:
                self._trees[log.name] = _Tree(log, log.size, root, signers)

    def _signers_through_seam(self, log: BundledLog, size: int, root: bytes) -> list[PublicKey]:
        """Which keys signed the log whose first event says that this one, which it continues, has this size and root."""
        if log.seam is None:
            raise Refused("it has neither a checkpoint nor a seam")
        place = log.seam.log, log.seam.position
        entry = next((one for one in self._bundle.evidence if (one.log, one.position) == place), None)
        if entry is None:
            raise Refused("the event that its seam names is missing")
        proved = self._require_entry(entry)
        payload = proved.payload = self._payload(proved)
        following = self._trees[entry.log].log
        if payload.get("event_type") != CONTINUED or entry.position or following.log_id != log.log_id + 1:
            raise Refused("its seam is not the first event of the log that continues it")
        named = [payload.get(name) for name in ("log_id", "closed_log", "tree_size", "root_hash")]
        if named != [log.log_id, log.name, size, root.hex()]:
            raise Refused("the first event of the next log says another name, size or root of it")
        return self._trees[entry.log].signers

    def _signers(self, log: BundledLog, text: str, size: int, root: bytes) -> list[PublicKey]:
        """Which keys signed the log's checkpoint. Refused if it is of another tree, or a signature of one of the keys is wrong."""
        (checkpoint, _), note = verified_signatures(text, self._keys), Note.parse(text)
        if (checkpoint.origin, checkpoint.size, checkpoint.root) != (log.name, size, root):
            raise Refused("its checkpoint is of another log, size or root")
        signers = [key for key in self._keys if note.names_key(key)]
        if not all(note.is_signed_by(key) for key in signers if key.name != log.name):
            raise NoValidSignature("a signature of its checkpoint, by one of the keys, is wrong")
        return signers

    # Entries.

    def _proved(self, name: str, entries: Sequence[BundledEvent]) -> Iterator[_Proved]:
        """The entries that hold; each other one is a problem."""
        for number, entry in enumerate(entries):
            try:
                yield self._require_entry(entry)
            except ValueError as error:
                self._add(f"{name}[{number}], position {entry.position}", error)

    def _require_entry(self, entry: BundledEvent) -> _Proved:
        if (tree := self._trees.get(entry.log)) is None:
            raise Refused(f"its log {entry.log!r} is not one that the file proves")
        tree.require_leaf(entry.position, entry.leaf, entry.proof)
        changed = set(entry.redacted or ())
        if entry.redacted is not None:
            self._require_redaction(entry, changed)
        record = _parsed(entry.record, "record")
        is_masked = bool(changed & RECORD_MEMBERS)
        if not is_masked and merkle.leaf_hash(entry.record.encode()).hex() != entry.leaf:
            raise Refused("edited: its record does not have the hash that the log has")
        if set(record) != RECORD_MEMBERS or record["v"] != 1:
            raise Refused("its record does not have the members of a record, version 1")
        if (record["log"], record["log_index"]) != (entry.log, entry.position):
            raise Refused("its record is of another log or of another position")
        self._require_opening(entry, record, changed)
        return _Proved(entry, record)

    def _require_redaction(self, entry: BundledEvent, changed: set[str]) -> None:
        if not self._bundle.redacted:
            raise Refused("it is redacted, but the bundle is not")
        if not changed or entry.redacted != sorted(changed) or changed - (RECORD_MEMBERS - RECORD_FIXED) - COMMITTED:
            raise Refused("`redacted` does not name members that redaction changes, each once and sorted")

    def _require_opening(self, entry: BundledEvent, record: dict[str, Any], changed: set[str]) -> None:
        if entry.committed is None:
            if entry.salt is not None or changed & COMMITTED:
                raise Refused("it has a salt, or masked members, but no committed object")
            return
        if set(_parsed(entry.committed, "committed object")) != COMMITTED:
            raise Refused("its committed object does not have the members of one")
        if entry.salt is None:
            if not changed & COMMITTED:
                raise Refused("it has no salt, although nothing of its committed object is masked")
            return
        if changed & COMMITTED:
            raise Refused("it has a salt, although its committed object is masked")
        if sha256(bytes.fromhex(entry.salt) + entry.committed.encode()).hexdigest() != record["commitment"]:
            raise Refused("edited: its committed object is not the one that the record commits to")

    def _check_places(self) -> None:
        places = [(entry.log, entry.position) for entry in (*self._bundle.events, *self._bundle.evidence)]
        if len(set(places)) < len(places):
            self._result.add_problem("inserted: two entries are at one position")
        evidence = [(self._order.get(one.log, -1), one.position) for one in self._bundle.evidence]
        if evidence != sorted(evidence):
            self._result.add_problem("reordered: evidence is not in the order of the log")

    # The chain.

    def _check_chain(self, events: list[_Proved]) -> None:
        next_index, last_hash, last_place = 0, None, (-1, -1)
        for one in events:
            entry, record = one.entry, one.record
            where = f"event {record['event_id']}"
            index, previous = record["chain_index"], record["previous_event_hash"]
            if record["correlation_id"] != self._bundle.correlation_id and "correlation_id" not in (
                entry.redacted or ()
            ):
                self._add(where, "it is of another correlation")
            place = self._order[entry.log], entry.position
            if not isinstance(index, int) or index < next_index or place <= last_place:
                self._add(
                    where, f"reordered: its place in the chain ({index}) or in the log is not after the one before"
                )
                continue
            if (index == 0) != (previous is None):
                self._add(where, "edited: only the first event of a chain has no link")
            elif index == next_index and previous != last_hash:
                self._add(where, "edited: its link is not the hash of the event before it")
            next_index, last_hash, last_place = index + 1, entry.leaf, place
        self._check_head(next_index, last_hash)

    def _check_head(self, next_index: int, last_hash: str | None) -> None:
        head = self._bundle.chain
        if head is None:
            if next_index:
                self._result.add_problem("removed: the head of the chain is missing")
        elif next_index > head.length:
            self._result.add_problem(
                f"inserted: the chain has {next_index} events, but its head has length {head.length}"
            )
        elif next_index == head.length and last_hash not in {None, head.hash}:
            self._result.add_problem("edited: the head of the chain has the hash of another event")

    def _check_gaps(self, events: list[_Proved]) -> None:
        wanted = list(self._gaps(events))
        if [(gap.first, gap.end, gap.last_hash) for gap in self._bundle.gaps] != [one[:3] for one in wanted]:
            self._result.add_problem("edited: `gaps` are not the chain positions that have no event")
            return
        for gap, (first, end, _, before, after) in zip(self._bundle.gaps, wanted, strict=True):
            try:
                purged = self._require_purge(gap, before, after)
            except ValueError as error:
                purged, why = False, f" ({error})"
            else:
                why = ", and the log records no purge of them"
            if purged:
                self._result.counts["purged"] += end - first
            else:
                self._add(f"chain positions {first} to {end - 1}", f"removed: these events are missing{why}")

    def _gaps(self, events: list[_Proved]) -> Iterator[tuple[int, int, str, BundledEvent | None, BundledEvent | None]]:
        """First and end of each gap, the hash of its last event, and the entries before and after it."""
        next_index, before = 0, None
        for one in events:
            index = one.record["chain_index"]
            if isinstance(index, int) and index >= next_index:
                if index > next_index:
                    yield next_index, index, one.record["previous_event_hash"], before, one.entry
                next_index, before = index + 1, one.entry
        if self._bundle.chain is not None and next_index < self._bundle.chain.length:
            yield next_index, self._bundle.chain.length, self._bundle.chain.hash, before, None

    def _require_purge(self, gap: BundledGap, before: BundledEvent | None, after: BundledEvent | None) -> bool:
        """Whether the log records that the gap was purged. Refused if the gap claims it wrongly."""
        if gap.log is None or gap.position is None or gap.proof is None:
            if (gap.log, gap.position, gap.proof) != (None, None, None):
                raise Refused("its place in the log is not complete")
            return False
        if (tree := self._trees.get(gap.log)) is None:
            raise Refused(f"its log {gap.log!r} is not one that the file proves")
        tree.require_leaf(gap.position, gap.last_hash, gap.proof)
        place, start = (self._order[gap.log], gap.position), (-1, -1)
        if before is not None:
            start = self._order[before.log], before.position
        if not start < place or (after is not None and place >= (self._order[after.log], after.position)):
            raise Refused("the last of them is not between its neighbours")
        if gap.position not in tree.missing:
            raise Refused("the last of them was not purged")
        missing = sum(
            other.missing.count(
                start[1] + 1 if self._order[name] == start[0] else 0,
                gap.position if name == gap.log else other.size,
            )
            for name, other in self._trees.items()
            if start[0] <= self._order[name] <= place[0]
        )
        if missing < gap.end - gap.first - 1:
            raise Refused("fewer events were purged between its neighbours")
        return True

    # Evidence.

    def _is_evidence(self, one: _Proved) -> bool:
        """Whether the entry is a self event, whose payload it gets; else a problem."""
        one.payload = self._payload(one)
        if not one.payload:
            self._add(f"evidence, position {one.entry.position}", "it is not an event of the service about itself")
        return bool(one.payload)

    def _payload(self, one: _Proved) -> dict[str, Any]:
        """The payload, if record and payload agree as in all self events, and in no other event; else empty."""
        committed = {} if one.entry.committed is None else loads_strict(one.entry.committed)
        payload: dict[str, Any] = committed.get("event_data") or {}
        record = one.record
        columns = str(record["event_type"]), str(record["event_category"]), str(record["correlation_id"])
        return payload if agree(*columns, payload) or releases_no_hold(*columns, payload) else {}

    def _read_evidence(self, evidence: list[_Proved]) -> None:
        """What was purged, lost and erased in each log, as these events record."""
        purged: dict[tuple[int, str], list[Range]] = defaultdict(list)
        restored: dict[tuple[int, str], list[Range]] = defaultdict(list)
        erased: dict[int, list[Range]] = defaultdict(list)
        lost: dict[int, list[Range]] = defaultdict(list)
        ids = {log.name: log.log_id for log in self._bundle.logs}
        for one in evidence:
            event_type, payload, own_id = one.record["event_type"], one.payload, ids[one.entry.log]
            log_id = payload.get("log_id", 0)
            if not isinstance(log_id, int) or log_id > own_id:
                continue
            end = one.entry.position if log_id == own_id else 2**63 - 1
            ranges = list(Positions.parse(str(payload.get("positions"))).within(0, end))
            if event_type == "datastorage.retention.purged":
                purged[log_id, str(payload.get("operation_id"))] += ranges
            elif event_type == "datastorage.retention.restored":
                restored[log_id, str(payload.get("operation_id"))] += ranges
            elif event_type == "datastorage.event.erased":
                erased[log_id] += ranges
            elif event_type == CONTINUED and (own_id, one.entry.position) == (log_id + 1, 0):
                lost[log_id] += ranges
        for tree in self._trees.values():
            log_id = tree.log.log_id
            left = [
                remaining
                for (of_log, operation), ranges in purged.items()
                if of_log == log_id
                for remaining in Positions(ranges).without(Positions(restored[of_log, operation])).ranges
            ]
            tree.missing, tree.erased = Positions([*left, *lost[log_id]]), Positions(erased[log_id])

    def _check_erased(self, events: list[_Proved]) -> None:
        for one in events:
            if one.entry.is_erased and one.entry.position not in self._trees[one.entry.log].erased:
                self._add(
                    f"event {one.record['event_id']}",
                    "edited: shown as erased, but no erasure of it is recorded in the log",
                )

    # What the log does not have.

    def _check_unproved(self) -> None:
        for number, text in enumerate(self._bundle.unproved):
            raw = text.encode() + b"\n"
            try:
                row = RecordReader(io.BytesIO(raw)).event(raw)
                if row.get("sealed") is not False:
                    raise Refused("it is not marked as a row that the log does not have")
                if row["log_index"] is not None:
                    where = f"position {row['log_index']}"
                    raise Refused(f"event {row['event_id']} is not in the log: it had another hash at {where}, or none")
            except (ValueError, AuditError) as error:
                self._add(f"unproved[{number}]", error)

    def _check_page(self) -> None:
        for line in self._bundle.page:
            if line.startswith(DIFFERS):
                self._add("the service found when it wrote the file", line.removeprefix(DIFFERS))

    def _check_notifications(self, evidence: list[_Proved]) -> None:
        stored = {
            (one.entry.log, one.entry.position): one
            for one in evidence
            if one.record["event_type"] == "datastorage.notification.stored"
        }
        for number, one in enumerate(self._bundle.notifications):
            try:
                if one.covered_by is not None:
                    self._require_cover(one, stored.pop((one.covered_by.log, one.covered_by.position), None))
                elif one.salt is not None or one.committed is not None:
                    raise Refused("it has a salt or committed columns, but no event that covers them")
            except ValueError as error:
                self._add(f"notifications[{number}]", error)
        for log, position in stored:
            self._add(
                f"position {position} of the log {log!r}",
                "removed: the notification that it has the digest of is missing",
            )

    def _require_cover(self, one: BundledNotification, event: _Proved | None) -> None:
        if event is None or event.payload.get("notification_id") != one.columns.get("notification_id"):
            raise Refused("the event that covers it is missing, or is about another notification")
        if (one.salt is None) != (one.committed is None) or (one.salt is None and not self._bundle.redacted):
            raise Refused("it has no salt, or no committed columns")
        if one.salt is None or one.committed is None:
            return
        if sha256(bytes.fromhex(one.salt) + one.committed.encode()).hexdigest() != event.payload.get("digest"):
            raise Refused("edited: it does not have the digest that the log has")
        committed = _parsed(one.committed, "committed object")
        if any(name not in one.columns or one.columns[name] != value for name, value in committed.items()):
            raise Refused("edited: its columns are not those that the log has the digest of")
        if one.columns.get("updated_at") != one.columns["created_at"]:  # which the digest does not have
            raise Refused("edited: updated_at is not created_at")

    def _check_timestamps(self) -> None:
        for log in self._bundle.logs:
            for number, one in enumerate(log.timestamps):
                try:
                    self._require_continued(log, one.checkpoint, [decoded_hash(text) for text in one.consistency])
                    token, size = decoded_base64(one.token, "its token"), one.checkpoint.split("\n")[1]
                    shown = "have a timestamp, which is NOT verified: name certificates with --tsa"
                    if self._certificates:
                        shown = str(verified_timestamp(token, one.checkpoint, self._certificates))
                except ValueError as error:
                    self._add(f"log {log.name!r}, timestamps[{number}]", error)
                else:
                    self._timestamp_lines[log.name].append(f"  its first {size} events {shown}")

    def _require_continued(self, log: BundledLog, note: str, consistency: list[bytes]) -> None:
        # One signature suffices: the tree that this one grew into is signed with every algorithm.
        checkpoint = verified_checkpoint(note, self._keys)
        tree = self._trees.get(log.name)
        if checkpoint.origin != log.name or tree is None:
            raise Refused("its checkpoint is of another log")
        sizes = checkpoint.size, tree.size
        if not merkle.verify_consistency(*sizes, checkpoint.root, tree.root, consistency):
            raise Refused(f"the log of {tree.size} events is not proved to continue the one of {checkpoint.size}")

    # What it shows.

    def _summary(
        self, manifest: BundleManifest | None, events: list[_Proved], evidence: list[_Proved]
    ) -> Iterator[str]:
        bundle = self._bundle
        if manifest is not None:
            yield f"bundle {manifest.export_id} of {manifest.exported_at} by {manifest.exported_by or 'an unknown caller'}"
        data = "personal data redacted" if bundle.redacted else "personal data not redacted"
        yield f"correlation {bundle.correlation_id!r}, {data}"
        yield f"{len(events)} of {len(bundle.events)} events are proved to be in the log, each with its link to the one before"
        masked = sum(one.entry.committed is not None and one.entry.salt is None for one in events)
        erased = sum(one.entry.is_erased for one in events)
        for count, meaning in (
            (erased, "erased, as recorded in the log: only what their records still have is proved"),
            (masked, "masked: what is shown of people in them is the service's word"),
            (self._result.counts["purged"], "purged or lost, as recorded in the log, and not in the file"),
            (len(bundle.unproved), "not in the log, inserted by SQL or changed: only the manifest shows them"),
        ):
            if count:
                yield f"  {count} {meaning}"
        for tree in self._trees.values():
            yield from self._tree_lines(tree)
        for one in evidence:
            if one.record["event_type"].startswith("datastorage.hold."):
                yield one_line(_hold_line(one))
        if bundle.notifications:
            covered = sum(one.covered_by is not None for one in bundle.notifications)
            yield f"notifications: {len(bundle.notifications)}, {covered} of them with a digest in the log"

    def _tree_lines(self, tree: _Tree) -> Iterator[str]:
        how = (
            "a checkpoint"
            if tree.log.checkpoint is not None
            else "closed after a loss, and vouched for by the next log:"
        )
        yield f"log {tree.log.name!r}: {how} of {tree.size} events"
        others = self._order.keys() - {tree.log.name}
        keys = [key for key in self._keys if key.name not in others]
        yield from (f"  {line}" for line in signature_lines(tree.signers, keys))
        yield from self._timestamp_lines[tree.log.name]


def _hold_line(one: _Proved) -> str:
    payload, action = one.payload, one.record["event_type"].rpartition(".")[2]
    by = payload.get("placed_by") or payload.get("released_by") or ""
    return (
        f"hold {payload.get('hold_id', '')} {action} {one.record['recorded_at']} by {by}: {payload.get('reason', '')}"
    )


def _parsed(text: str, what: str) -> dict[str, Any]:
    value = loads_strict(text)
    if not isinstance(value, dict):
        raise Refused(f"its {what} is not a JSON object")
    return value
