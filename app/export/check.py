"""Verifies export files, with only the file and a public key: no service, no database, no network."""

import base64
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO
from uuid import UUID

import orjson
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509 import load_pem_x509_certificate

from app.errors import Fatal
from app.events.canonical import canonical, loads_strict
from app.events.record import stored_hash
from app.events.reference import UNKEYED_ALGORITHMS, reference_hash
from app.export.bundle import START
from app.export.bundle_check import check_bundle
from app.export.certificate import detached_signature
from app.export.file import COMMITTED, NOT_COVERED, MalformedRecord, RecordReader
from app.export.manifest import EarlierLog, ExportPosition, Manifest, open_envelope
from app.export.result import CheckResult
from app.tlog import merkle, note
from app.tlog.keys import read_key_text, read_public_keys, signature_lines
from app.tlog.note import PublicKey
from app.tlog.proof import closed_tree, verify_seam
from app.tlog.timestamp import read_certificates
from app.verify.chain import link_fault

_PAGE = b'{"events":['


def check(files: Iterable[BinaryIO], keys: list[PublicKey]) -> CheckResult:
    """Compare a file, or its parts in their order, with its manifests, and every event with its own hash."""
    checker = _Checker(keys)
    for file in files:
        checker.read(RecordReader(file))
    return checker.finish()


def check_files(paths: Sequence[Path], key: str, tsa: Path | None = None) -> CheckResult:
    """`check`, `check_page` or `check_bundle` for the files at `paths`. `key` is a key, or a file of keys.

    Fatal if a file or the key cannot be read.
    """
    try:
        with ExitStack() as stack:
            files = [stack.enter_context(path.open("rb")) for path in paths]
            is_page = [file.peek(len(_PAGE)).startswith(_PAGE) for file in files]
            if is_page == [True]:
                return check_page(files[0].read(), read_key_text(key))
            if len(files) == 1 and files[0].peek(len(START)).startswith(START):
                return check_bundle(files[0].read(), read_public_keys(key), read_certificates(tsa) if tsa else ())
            if not any(is_page):
                return check(files, read_public_keys(key))
    except (OSError, ValueError) as error:
        raise Fatal(f"Cannot verify: {error}") from None
    raise Fatal("Cannot verify: a page of format=json is no part of another file, verify each alone")


def check_page(body: bytes, certificate: str) -> CheckResult:
    """Verify the signature of a page of format=json. Its events do not have all members that their hashes are over."""
    result = CheckResult()
    signer = load_pem_x509_certificate(certificate.encode())
    public = signer.public_key()
    if not isinstance(public, RSAPublicKey):
        raise ValueError("the certificate is not of an RSA key")  # noqa: TRY004 - a file's content is wrong
    try:
        answer = loads_strict(body)
        encoded = answer["export_metadata"].pop("signature")
        signature = base64.b64decode(encoded, validate=True)
        if base64.b64encode(signature).decode() != encoded:
            result.add_problem("edited: the signature is not in the form in which it was written")
        detached = detached_signature(signer.fingerprint(SHA256()).hex(":"), encoded)
        if answer.pop("detached_signature", detached) != detached:  # no signature is over it
            result.add_problem("edited: detached_signature is not the signature of the file once more")
        events, verification = answer["events"], answer["hash_chain_verification"]
        broken = verification["broken_chain_events"]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        result.add_problem(f"incomplete, edited, or not an export: {error}")
        return result
    try:
        public.verify(signature, canonical(answer), PKCS1v15(), SHA256())
    except InvalidSignature:
        result.add_problem(
            "wrong key, or edited: the signature is not one by this certificate over the content of the file"
        )
    result.counts["events"] = len(events)
    result.checkpoint_result = f"{broken} of {len(events)} events were broken when they were exported"
    return result


@dataclass(slots=True)
class _ReadLog:
    """What was read of one log."""

    position: int = -1
    leaves: bytearray = field(default_factory=bytearray)
    """Leaf hashes from position 0 on, as far as no event is missing."""
    first: int | None = None
    last: int | None = None
    """Of the part's events."""

    @property
    def size(self) -> int:
        """How many events from position 0 on are all in the file."""
        return len(self.leaves) // merkle.HASH_BYTES

    def root(self, size: int) -> bytes:
        """The root over its first `size` events."""
        return merkle.root(merkle.hashes(bytes(self.leaves[: size * merkle.HASH_BYTES])))


class _Checker:
    """Reads the files record by record, and compares each part with its manifest when it comes to that."""

    def __init__(self, keys: list[PublicKey]) -> None:
        self._keys = keys
        self._result = CheckResult()
        self._chains: dict[str, tuple[int, str]] = {}
        """By correlation: the chain position that comes next, and the hash of the event before it ("" before the first)."""
        self._bytes = 0
        self._read_logs: defaultdict[str, _ReadLog] = defaultdict(_ReadLog)
        """By name, in the order in which their events came."""
        self._sealed_log: str | None = None
        """That of the last event."""
        self._start_part()

    def _start_part(self) -> None:
        self._digest = sha256()
        self._counts: Counter[str] = Counter()
        for log in self._read_logs.values():
            log.first = log.last = None
        self._unsealed_logs: set[Any] = set()
        self._through: ExportPosition | None = None
        self._rows = 0

    def read(self, records: RecordReader) -> None:
        for number, raw in enumerate(records, 1):
            self._bytes += len(raw)
            where = f"record {number}"
            if records.is_manifest(raw):
                self._end_part(records, raw, where)
                continue
            self._digest.update(raw)
            self._rows += 1
            if records.is_header(raw):
                continue
            try:
                self._check_event(records.event(raw), where)
            except (ValueError, TypeError, AttributeError, LookupError) as error:
                self._result.add_problem(f"{where}: it is not one of an export: {error}")

    def finish(self) -> CheckResult:
        if (cut := self._incomplete()) is not None:
            self._result.add_problem(cut)
        if self._result.parts:
            self._result.checkpoint_result = "\n".join(self._compare_with_checkpoints(self._result.parts))
        return self._result

    def _incomplete(self) -> str | None:
        """Why the export is not complete, and how to get the rest; None if it is complete."""
        parts = self._result.parts
        if not parts:
            return "incomplete: no manifest can be read, so the file was cut: fetch it again"
        next_token = parts[-1].next
        if next_token is None:
            return "there are records after the manifest of the last part" if self._rows else None
        return (
            f"incomplete: cut after part {parts[-1].part}. To resume, truncate the file to {self._result.whole_bytes} bytes "
            f"and append the answer to the same request with after={next_token}"
        )

    # One event.

    def _check_event(self, event: dict[str, Any], where: str) -> None:
        where = f"{where}, event {event['event_id']}"
        self._counts["events"] += 1
        self._counts["redacted"] += bool(event["redacted"])
        if event["log_index"] is None:
            self._unsealed_logs.add(event["log"])
            self._through = ExportPosition(None, event["event_id"], event["event_date"])
            self._check_unsealed(event, where)
        else:
            self._through = ExportPosition(event["log_index"], log=event["log"])
            self._check_sealed(event, self._log_of(event, where), where)

    def _log_of(self, event: dict[str, Any], where: str) -> _ReadLog:
        name = event["log"]
        if name != self._sealed_log and name in self._read_logs:
            self._result.add_problem(f"{where}: reordered: an event of the log {name!r} comes after one of another log")
        self._sealed_log = name
        return self._read_logs[name]

    def _check_sealed(self, event: dict[str, Any], log: _ReadLog, where: str) -> None:
        self._counts["sealed"] += 1
        self._counts["erased"] += event["payload_commitment"] is not None
        position = event["log_index"]
        if position <= log.position:
            self._result.add_problem(f"{where}: reordered: position {position} comes after {log.position}")
        log.position = max(log.position, position)
        log.last = position
        log.first = position if log.first is None else log.first
        if event.get("sealed") is False:
            self._result.add_problem(f"{where}: not in the log: it had another hash at position {position}, or none")
        changed = set(event["redacted"] or ()) - COMMITTED
        if changed:
            self._counts["unverifiable"] += 1
        else:
            self._check_hash(event, log, where)
        if "correlation_id" not in changed:
            self._link(event, where)

    def _check_hash(self, event: dict[str, Any], log: _ReadLog, where: str) -> None:
        expected = sealed_hash(event)
        if event["log_index"] == log.size:
            log.leaves += bytes.fromhex(expected)
        if expected == event["event_hash"]:
            self._counts["recomputed"] += 1
        else:
            self._add_wrong_hash(event, where, expected)
        if event["event_date"] != event["event_timestamp"][:10]:  # which is not in the record
            self._result.add_problem(f"{where}: edited: event_date is not the UTC date of event_timestamp")

    def _add_wrong_hash(self, event: dict[str, Any], where: str, expected: str) -> None:
        self._result.add_problem(
            f"{where}: edited: its hash is {expected}, but {event['event_hash']} is stored with it"
        )

    def _link(self, event: dict[str, Any], where: str) -> None:
        """Compare its link with the hash of the event before it in its chain, unless that was purged or filtered out."""
        correlation, index, previous = event["correlation_id"], event["chain_index"], event["previous_event_hash"] or ""
        next_index, last_hash = self._chains.get(correlation, (0, ""))
        fault = link_fault(index, previous, next_index, (last_hash,))
        if fault == "no position":
            self._result.add_problem(f"{where}: edited: chain_index is {index}, which is not a position in the chain")
            return
        if fault == "duplicate":
            self._result.add_problem(f"{where}: reordered: position {index} of its chain comes after {next_index - 1}")
        elif fault == "broken" and next_index:
            self._result.add_problem(f"{where}: edited: the previous hash is not that of the event before it")
        elif (index == 0) != (not previous):
            self._result.add_problem(f"{where}: edited: only the first event of a chain has no previous hash")
        elif fault == "gap":
            self._counts["gaps"] += 1
        self._chains[correlation] = index + 1, event["event_hash"] or ""

    def _check_unsealed(self, event: dict[str, Any], where: str) -> None:
        self._counts["unsealed"] += 1
        if event.get("sealed"):
            self._result.add_problem(f"{where}: edited: it is marked as sealed, but has no position in the log")
        if event["chain_index"] is not None:
            self._result.add_problem(f"{where}: edited: it has a chain position, but no position in the log")
        if not event["event_hash"]:
            self._counts["unhashed"] += 1
            return
        if event["hash_algorithm"] not in UNKEYED_ALGORITHMS or event["redacted"]:
            self._counts["unverifiable"] += 1
        elif _reference_hash(event) == event["event_hash"]:
            self._counts["recomputed"] += 1
        else:
            self._counts["wrong unsealed"] += 1

    # One part.

    def _end_part(self, records: RecordReader, raw: bytes, where: str) -> None:
        try:
            manifest, signer = open_envelope(records.envelope(raw), self._keys)
        except (MalformedRecord, ValueError) as error:
            self._result.add_problem(f"{where}: {error}")
        else:
            if signer is None:
                self._result.add_problem(
                    f"{where}: wrong key: the manifest of part {manifest.part} has no signature by it"
                )
            else:
                self._add_signature_lines([f"manifest signed with {signer.label}"])
            for difference in self._differences(manifest, records.form):
                self._result.add_problem(f"{where}: manifest of part {manifest.part}: {difference}")
            self._result.parts.append(manifest)
            self._result.whole_bytes = self._bytes
        self._result.counts.update(self._counts)
        self._start_part()

    def _compare_with_checkpoints(self, parts: Sequence[Manifest]) -> Iterator[str]:
        """Compare the roots of a file that has a log from its beginning with those that were signed: the result for each log, in words."""
        names = list(parts[-1].logs)
        for number, name in enumerate(names):
            earlier = [one for part in parts for one in part.earlier_logs if one.log == name]
            notes = {one.checkpoint for one in earlier} or {part.checkpoint for part in parts if part.log == name}
            closed = [*self._closed_trees(earlier, names[number + 1 : number + 2])]
            trees = [*self._signed_trees(name, notes, is_closed=bool(earlier), is_proved=bool(closed)), *closed]
            line = self._compared(self._read_logs[name], trees)
            yield f"log {name!r}: {line}" if len(names) > 1 else line

    def _signed_trees(
        self, name: str, notes: Iterable[str | None], *, is_closed: bool, is_proved: bool
    ) -> Iterator[note.Checkpoint]:
        """The checkpoints of a log that its keys have signed. One that none of them has signed is a problem.

        A closed log whose keys nobody gave is proved by the first event of the next one. One that is proved (`is_proved`) may have a
        checkpoint from before it had its second key: that is no problem, and the log is compared with what is signed with both.
        """
        if is_closed and not any(key.name == name for key in self._keys):
            return
        signers = []
        for text in filter(None, notes):
            try:
                checkpoint, signed_by = note.verified_signatures(text, self._keys)
                _require(checkpoint.origin == name, f"it is of the log {checkpoint.origin!r}, not of {name!r}")
            except (note.MalformedNote, note.NoValidSignature) as error:
                if not (is_proved and self._is_signed_once(text, name)):
                    self._result.add_problem(f"the checkpoint in the manifest: {error}")
                continue
            signers.append(signed_by)
            yield checkpoint
        if signers:
            in_all = [key for key in self._keys if all(key in signed_by for signed_by in signers)]
            others = self._result.parts[-1].logs.keys() - {name}
            of_log = [key for key in self._keys if key.name not in others]
            self._add_signature_lines(f"checkpoint {line}" for line in signature_lines(in_all, of_log))

    def _is_signed_once(self, text: str, name: str) -> bool:
        """Whether a checkpoint of the log has a valid signature, and no wrong one, by one of its keys at least."""
        try:
            return note.verified_checkpoint(text, self._keys).origin == name
        except (note.MalformedNote, note.NoValidSignature):
            return False

    def _closed_trees(self, earlier: Iterable[EarlierLog], following: Sequence[str]) -> Iterator[note.Checkpoint]:
        """The trees of a closed log as the first event of the next one has them. An event that is not that is a problem."""
        for one in earlier:
            if one.seam is None:
                continue
            try:
                proved = verify_seam(one.seam, self._keys)
                tree = closed_tree(proved)
                stated = tree.origin, (proved.committed or {})["event_data"].get("size"), [proved.record["log"]]
                _require(stated == (one.log, one.log_size, following), "it is about another log, or another size of it")
            except (note.MalformedNote, note.NoValidSignature) as error:
                self._result.add_problem(f"the event that continues the log {one.log!r}: {error}")
            else:
                yield tree

    def _add_signature_lines(self, lines: Iterable[str]) -> None:
        self._result.signature_lines += [line for line in lines if line not in self._result.signature_lines]

    def _compared(self, log: _ReadLog, trees: Sequence[note.Checkpoint]) -> str:
        """The result of comparing what was read of a log with its trees, in words."""
        size = 0
        for tree in trees:
            if size < tree.size <= log.size:
                size = tree.size
                if log.root(size) != tree.root:
                    self._result.add_problem(
                        f"forged: the first {size} events do not have the root that the checkpoint signs"
                    )
        if not trees:
            return "no checkpoint was signed when it was exported"
        if size:
            return f"the first {size} events of the log are all in it, with the root that the checkpoint signs"
        return (
            f"not compared with the checkpoint: position {log.size} of the log is not in "
            "the file (filtered, redacted, purged, a self event or one of Kubernetes: include=all)"
        )

    def _differences(self, manifest: Manifest, form: str) -> Iterator[str]:
        """What the manifest states about the part and the part does not confirm."""
        if manifest.sha256 != (digest := self._digest.hexdigest()):
            yield f"the part's SHA-256 is {digest}, but {manifest.sha256} was signed: something in it was changed"
        actual_values = {
            "events": self._counts["events"],
            "sealed": self._counts["sealed"],
            "unsealed": self._counts["unsealed"],
            "format": form,
        }
        if not manifest.redacted:  # there every event has a commitment instead of its salt
            actual_values["erased"] = self._counts["erased"]
            if self._counts["redacted"]:
                yield "events in it are redacted, but it was signed as not redacted"
        through = self._through
        if through is not None and not manifest.earlier_logs:
            through = replace(through, log=None)
        if manifest.through != (through or manifest.after):
            yield "its last event is not the one that was signed"
        for name, actual in actual_values.items():
            if (signed := getattr(manifest, name)) != actual:
                yield f"{name} is {actual}, but {signed} was signed"
        if sum(one.events for one in manifest.archived) > self._counts["sealed"]:
            yield "more events were signed as read from the archive than it has"
        yield from self._differences_of_logs(manifest)
        yield from _discontinuities(self._result.parts[-1] if self._result.parts else None, manifest)

    def _differences_of_logs(self, manifest: Manifest) -> Iterator[str]:
        every: list[EarlierLog | Manifest] = [*manifest.earlier_logs, manifest]
        for one in every:
            read = self._read_logs.get(one.log, _ReadLog())
            of_log = f" of the log {one.log!r}" if manifest.earlier_logs else ""
            for name, actual in (("first_position", read.first), ("last_position", read.last)):
                if (signed := getattr(one, name)) != actual:
                    yield f"{name}{of_log} is {actual}, but {signed} was signed"
            if read.last is not None and read.last >= one.log_size:
                yield f"it has position {read.last}, but the log had {one.log_size} events"
        others = {name for name, read in self._read_logs.items() if read.last is not None} - manifest.logs.keys()
        if others or self._unsealed_logs - {manifest.log}:
            yield f"events of another log than {' and '.join(map(repr, manifest.logs))} are in it"
        in_order = [name for name in manifest.logs if name in self._read_logs]
        if in_order != [name for name in self._read_logs if name in manifest.logs]:
            yield "its events are not in the order of the logs"


def _discontinuities(before: Manifest | None, manifest: Manifest) -> Iterator[str]:
    if before is None:
        if manifest.part != 1:
            yield f"the {manifest.part - 1} part(s) before it are missing"
        return
    for name in ("export_id", "format", "redacted", "filter", "log", "log_size", "logs"):
        if getattr(before, name) != getattr(manifest, name):
            yield f"its {name} is not that of the part before"
    if manifest.part != before.part + 1 or manifest.previous != before.sha256 or manifest.after != before.through:
        yield f"it does not follow part {before.part}"
    if before.next is None:
        yield "the part before it was the last"


def _require(holds: bool, why: str) -> None:
    if not holds:
        raise note.MalformedNote(why)


def sealed_hash(event: dict[str, Any]) -> str:
    """The leaf hash of an exported event, in hex. ValueError or TypeError if a record cannot have one of its members."""
    return stored_hash(row_of(event), event["log"], stored=False)


def _reference_hash(event: dict[str, Any]) -> str | None:
    """The hash that the reference gives it; None if the reference cannot have written it."""
    try:
        return reference_hash(row_of(event), event["previous_event_hash"] or "")
    except ValueError:
        return None


def row_of(event: dict[str, Any]) -> dict[str, Any]:
    """The row from which an event was exported, with the types from which a record is made. ValueError or TypeError as sealed_hash()."""
    parent_date = event["parent_event_date"]
    return event | {
        "event_timestamp": _utc_time(event["event_timestamp"]),
        "recorded_at": _utc_time(event["recorded_at"]),
        "parent_event_date": None if parent_date is None else date.fromisoformat(parent_date),
        "event_data": canonical(event["event_data"]),
        "event_metadata": None if event["event_metadata"] is None else canonical(event["event_metadata"]),
    }


def _utc_time(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def result_lines(result: CheckResult) -> Iterator[str]:
    """The lines that the command prints, the result first."""
    counts, parts = result.counts, result.parts
    yield (
        f"{result.what} is complete and unchanged" if not result.problem_count else f"{result.problem_count} problem(s)"
    )
    yield from result.problems
    if not parts:
        yield from filter(None, [result.checkpoint_result, *result.summary])
        return
    last = parts[-1]
    yield f"export {last.export_id} of {last.exported_at} by {last.exported_by or 'an unknown caller'}, {last.format}"
    yield f"filter {orjson.dumps(last.filter).decode()}, personal data {'redacted' if last.redacted else 'not redacted'}"
    logs = " and ".join(map(repr, last.logs))
    yield f"{counts['events']} events in {len(parts)} part(s) of the log{'s' if last.earlier_logs else ''} {logs}"
    for name, meaning in _MEANINGS.items():
        if counts[name]:
            yield f"  {counts[name]} {meaning}"
    if erased := sum(part.erased for part in parts):
        yield f"  {erased} were erased: only what their records still have can be verified"
    if archived := Counter[UUID]({one.archive_id: 0 for part in parts for one in part.archived}):
        for one in (one for part in parts for one in part.archived):
            archived[one.archive_id] += one.events
        yield f"  {archived.total()} were read from the archive, from the part(s) {', '.join(map(str, archived))}"
    for left_out in dict.fromkeys(part.left_out for part in parts if part.left_out is not None):
        yield (
            f"LEFT OUT: what the archive alone has of {', '.join(left_out.months)}: {left_out.events} events, of which nobody has looked "
            "which match the filter (archive=include)"
        )
    yield f"covered by no hash of an event, only by the manifest: {', '.join(NOT_COVERED)}"
    yield from result.signature_lines
    yield result.checkpoint_result


_MEANINGS = {
    "recomputed": "have the hash that was computed from them now",
    "sealed": "have a position in the log",
    "unsealed": "were inserted by SQL and have no position: only the manifest proves them",
    "wrong unsealed": "of these have another hash than the one stored with them",
    "unhashed": "of these have no hash",
    "unverifiable": "have a hash that cannot be computed from the file (redacted, or keyed)",
    "gaps": "follow an event of their chain that is not in the file (filtered or purged)",
}
