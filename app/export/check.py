"""Verifies export files with nothing but the file and a public key: no service, no database, no network."""

import base64
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

import orjson
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509 import load_pem_x509_certificate

from app.errors import Fatal
from app.events.canonical import canonical, loads
from app.events.record import stored_hash
from app.events.reference import UNKEYED, reference_hash
from app.export.file import COMMITTED, MalformedRecord, Records
from app.export.manifest import ExportPosition, Manifest, opened
from app.tlog import merkle, note
from app.tlog.keys import read_key_text, read_public_keys
from app.tlog.note import PublicKey
from app.verify.chain import link_fault

PROBLEMS_MAX = 1000
_PAGE = b'{"events":['


@dataclass(slots=True)
class Verdict:
    """What is to be said of a file. It holds if there are no problems."""

    problems: list[str] = field(default_factory=list)
    """The first PROBLEMS_MAX of them."""
    problem_count: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    parts: list[Manifest] = field(default_factory=list)
    """Manifests that could be read."""
    whole_bytes: int = 0
    """How far the file reaches with its last manifest that was right."""
    root: str = ""
    """How the events stand to the log's checkpoint."""

    def problem(self, text: str) -> None:
        self.problem_count += 1
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(text)


def check(files: Iterable[BinaryIO], keys: list[PublicKey]) -> Verdict:
    """Hold the file, or the parts of it in their order, against its manifests and every event against its own hash."""
    checked = _Check(keys)
    for file in files:
        checked.take(Records(file))
    return checked.finish()


def check_files(paths: Sequence[Path], key: str) -> Verdict:
    """The same for files, and for a page of format=json. `key` is a key, or a file that holds one. Fatal if one cannot be read."""
    try:
        with ExitStack() as stack:
            files = [stack.enter_context(path.open("rb")) for path in paths]
            if files[0].peek(len(_PAGE)).startswith(_PAGE):
                return check_page(files[0].read(), read_key_text(key))
            return check(files, read_public_keys(key))
    except (OSError, ValueError) as error:
        raise Fatal(f"Cannot verify: {error}") from None


def check_page(body: bytes, certificate: str) -> Verdict:
    """Hold a page of format=json against its signature. Its events have too few members to be hashed."""
    found = Verdict()
    public = load_pem_x509_certificate(certificate.encode()).public_key()
    try:
        answer = loads(body)
        signature = base64.b64decode(answer["export_metadata"].pop("signature"))
        answer.pop("detached_signature", None)
        events, said = answer["events"], answer["hash_chain_verification"]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        found.problem(f"incomplete, or no export: {error!r}")
        return found
    if not isinstance(public, RSAPublicKey):
        raise ValueError("the certificate is of no RSA key")  # noqa: TRY004 - a file's content is wrong
    try:
        public.verify(signature, canonical(answer), PKCS1v15(), SHA256())
    except InvalidSignature:
        found.problem("wrong key, or edited: the signature is not one of this certificate over what is in the file")
    found.counts["events"] = len(events)
    found.root = f"{said['broken_chain_events']} of {len(events)} events were broken when they were exported"
    return found


class _Check:
    def __init__(self, keys: list[PublicKey]) -> None:
        self._keys = keys
        self._found = Verdict()
        self._chains: dict[str, tuple[int, str]] = {}
        """Of each correlation's chain the next index, and the hash of the event before it, which is "" if there is none."""
        self._position = -1
        self._bytes = 0
        self._leaves = bytearray()
        """Those of the log from its beginning, as far as no event is missing."""
        self._begin()

    def _begin(self) -> None:
        self._digest = sha256()
        self._part: Counter[str] = Counter()
        self._first: int | None = None
        self._last: int | None = None
        self._logs: set[Any] = set()
        self._through: ExportPosition | None = None
        self._rows = 0

    def take(self, records: Records) -> None:
        for number, raw in enumerate(records, 1):
            self._bytes += len(raw)
            where = f"record {number}"
            if records.is_manifest(raw):
                self._close(records, raw, where)
                continue
            self._digest.update(raw)
            self._rows += 1
            if records.is_header(raw):
                continue
            try:
                self._event(records.event(raw), where)
            except (ValueError, TypeError, AttributeError, LookupError) as error:
                self._found.problem(f"{where}: it is none of an export: {error}")

    def finish(self) -> Verdict:
        if (cut := self._incomplete()) is not None:
            self._found.problem(cut)
        if self._found.parts:
            self._hold_against_checkpoint()
        return self._found

    def _incomplete(self) -> str | None:
        """Why this is not all of an export, and how to get the rest."""
        parts = self._found.parts
        if not parts:
            return "incomplete: there is no manifest that can be read, so the file was cut: fetch it again"
        following = parts[-1].next
        if following is None:
            return "there are records behind the manifest of the last part" if self._rows else None
        return (
            f"incomplete: cut behind part {parts[-1].part}. To go on, keep the first {self._found.whole_bytes} bytes "
            f"and append the answer to the same request with after={following}"
        )

    # One event.

    def _event(self, event: dict[str, Any], where: str) -> None:
        where = f"{where}, event {event['event_id']}"
        self._part["events"] += 1
        self._part["redacted"] += bool(event["redacted"])
        self._logs.add(event["log"])
        if event["log_index"] is None:
            self._through = ExportPosition(None, event["event_id"], event["event_date"])
            self._unsealed(event, where)
        else:
            self._through = ExportPosition(event["log_index"])
            self._sealed(event, where)

    def _sealed(self, event: dict[str, Any], where: str) -> None:
        self._part["sealed"] += 1
        self._part["erased"] += event["payload_commitment"] is not None
        position = event["log_index"]
        if position <= self._position:
            self._found.problem(f"{where}: reordered: position {position} stands behind {self._position}")
        self._position = max(self._position, position)
        self._last = position
        self._first = position if self._first is None else self._first
        changed = set(event["redacted"] or ()) - COMMITTED
        if changed:
            self._part["unverifiable"] += 1
        else:
            self._hash(event, where)
        if "correlation_id" not in changed:
            self._link(event, where)

    def _hash(self, event: dict[str, Any], where: str) -> None:
        expected = sealed_hash(event)
        if event["log_index"] * merkle.HASH_BYTES == len(self._leaves):
            self._leaves += bytes.fromhex(expected)
        if expected == event["event_hash"]:
            self._part["recomputed"] += 1
        else:
            self._suspect(event, where, expected)
        if event["event_date"] != event["event_timestamp"][:10]:  # which is no part of the record
            self._found.problem(f"{where}: edited: event_date is not the UTC date of event_timestamp")

    def _suspect(self, event: dict[str, Any], where: str, expected: str) -> None:
        self._found.problem(f"{where}: edited: its hash is {expected}, but {event['event_hash']} was stored with it")

    def _link(self, event: dict[str, Any], where: str) -> None:
        """To the event before it in its chain, if that is in the file: purged and filtered ones are not."""
        correlation, index, previous = event["correlation_id"], event["chain_index"], event["previous_event_hash"] or ""
        next_index, last_hash = self._chains.get(correlation, (0, ""))
        fault = link_fault(index, previous, next_index, (last_hash,))
        if fault == "no position":
            self._found.problem(f"{where}: edited: chain_index is {index}, which is not a position in the chain")
            return
        if fault == "duplicate":
            self._found.problem(f"{where}: reordered: position {index} of its chain stands behind {next_index - 1}")
        elif fault == "broken" and next_index:
            self._found.problem(f"{where}: edited: the previous hash is not that of the event before")
        elif (index == 0) != (not previous):
            self._found.problem(f"{where}: edited: only the first event of a chain has no previous hash")
        elif fault == "gap":
            self._part["gaps"] += 1
        self._chains[correlation] = index + 1, event["event_hash"] or ""

    def _unsealed(self, event: dict[str, Any], where: str) -> None:
        self._part["unsealed"] += 1
        if event["chain_index"] is not None:
            self._found.problem(f"{where}: edited: it is in a chain, and has no position in the log")
        if not event["event_hash"]:
            self._part["unhashed"] += 1
            return
        if event["hash_algorithm"] not in UNKEYED or event["redacted"]:
            self._part["unverifiable"] += 1
        elif _reference_hash(event) == event["event_hash"]:
            self._part["recomputed"] += 1
        else:
            self._part["wrong unsealed"] += 1

    # One part.

    def _close(self, records: Records, raw: bytes, where: str) -> None:
        try:
            manifest, signer = opened(records.manifest(raw), self._keys)
        except (MalformedRecord, ValueError) as error:
            self._found.problem(f"{where}: {error}")
        else:
            if signer is None:
                self._found.problem(f"{where}: wrong key: the manifest of part {manifest.part} has no signature of it")
            for difference in self._differences(manifest, records.form):
                self._found.problem(f"{where}: manifest of part {manifest.part}: {difference}")
            self._found.parts.append(manifest)
            self._found.whole_bytes = self._bytes
        self._found.counts.update(self._part)
        self._begin()

    def _hold_against_checkpoint(self) -> None:
        """A file that holds the log from its beginning has the root that was signed."""
        found = self._found
        signed = {part.checkpoint for part in found.parts if part.checkpoint is not None}
        size = 0
        for text in signed:
            try:
                checkpoint = note.verified_checkpoint(text, self._keys)
            except (note.MalformedNote, note.Unverified) as error:
                found.problem(f"the checkpoint in the manifest: {error}")
                continue
            if size < checkpoint.size <= len(self._leaves) // merkle.HASH_BYTES:
                size = checkpoint.size
                root = merkle.root(merkle.hashes(bytes(self._leaves[: size * merkle.HASH_BYTES])))
                if root != checkpoint.root:
                    found.problem(f"forged: the first {size} events do not have the root that the checkpoint signs")
        if not signed:
            found.root = "no checkpoint was signed when it was exported"
        elif size:
            found.root = f"the first {size} events of the log are all in it, with the root that the checkpoint signs"
        else:
            found.root = (
                f"not held against the checkpoint: position {len(self._leaves) // merkle.HASH_BYTES} of the log is not in "
                "the file (filtered, redacted, purged, or the service's own: include=self)"
            )

    def _differences(self, manifest: Manifest, form: str) -> Iterator[str]:
        """What the manifest says that is not so."""
        if manifest.sha256 != (digest := self._digest.hexdigest()):
            yield f"the part's SHA-256 is {digest}, but {manifest.sha256} was signed: something in it was changed"
        counted = {
            "events": self._part["events"],
            "sealed": self._part["sealed"],
            "unsealed": self._part["unsealed"],
            "first_position": self._first,
            "last_position": self._last,
            "format": form,
        }
        if not manifest.redacted:  # there every event has a commitment instead of its salt
            counted["erased"] = self._part["erased"]
            if self._part["redacted"]:
                yield "events in it are redacted, and it says that none is"
        if manifest.through != (self._through or manifest.after):
            yield "its last event is not the one that was signed"
        for name, actual in counted.items():
            if (signed := getattr(manifest, name)) != actual:
                yield f"{name} is {actual}, but {signed} was signed"
        if self._logs - {manifest.log}:
            yield f"events of another log than {manifest.log!r} are in it"
        yield from _discontinuities(self._found.parts[-1] if self._found.parts else None, manifest)


def _discontinuities(before: Manifest | None, manifest: Manifest) -> Iterator[str]:
    if before is None:
        if manifest.part != 1:
            yield f"the {manifest.part - 1} part(s) before it are missing"
        return
    for name in ("export_id", "format", "redacted", "filter", "log", "log_size"):
        if getattr(before, name) != getattr(manifest, name):
            yield f"its {name} is not that of the part before"
    if manifest.part != before.part + 1 or manifest.previous != before.sha256 or manifest.after != before.through:
        yield f"it does not follow part {before.part}"
    if before.next is None:
        yield "the part before it was the last"


def sealed_hash(event: dict[str, Any]) -> str:
    """The leaf hash of an exported event, in hex. ValueError or TypeError when a member is none that a record can have."""
    return stored_hash(_typed(event), event["log"], stored=False)


def _reference_hash(event: dict[str, Any]) -> str | None:
    """None for what the reference cannot have written."""
    try:
        return reference_hash(_typed(event), event["previous_event_hash"] or "")
    except ValueError:
        return None


def _typed(event: dict[str, Any]) -> dict[str, Any]:
    """The row that an event was exported from, as the record is made of it."""
    parent_date = event["parent_event_date"]
    return event | {
        "event_timestamp": _moment(event["event_timestamp"]),
        "recorded_at": _moment(event["recorded_at"]),
        "parent_event_date": None if parent_date is None else date.fromisoformat(parent_date),
        "event_data": canonical(event["event_data"]),
        "event_metadata": None if event["event_metadata"] is None else canonical(event["event_metadata"]),
    }


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def told(verdict: Verdict) -> Iterator[str]:
    """What is printed of it, the result first."""
    counts, parts = verdict.counts, verdict.parts
    yield "the export is whole and right" if not verdict.problem_count else f"{verdict.problem_count} problem(s)"
    yield from verdict.problems
    if not parts:
        yield from filter(None, [verdict.root])
        return
    last = parts[-1]
    yield f"export {last.export_id} of {last.exported_at} by {last.exported_by or 'nobody that is known'}, {last.format}"
    yield f"filter {orjson.dumps(last.filter).decode()}, personal data {'redacted' if last.redacted else 'as it was'}"
    yield f"{counts['events']} events in {len(parts)} part(s) of the log {last.log!r}"
    for name, meaning in _MEANINGS.items():
        if counts[name]:
            yield f"  {counts[name]} {meaning}"
    if erased := sum(part.erased for part in parts):
        yield f"  {erased} were erased: what their records say of it is all that can be verified"
    yield verdict.root


_MEANINGS = {
    "recomputed": "have the hash that was computed of them now",
    "sealed": "have a position in the log",
    "unsealed": "were written by others and have no position: nothing proves them but the manifest",
    "wrong unsealed": "of these have another hash than was stored with them",
    "unhashed": "of these have no hash",
    "unverifiable": "have a hash that cannot be computed of what is in the file (redacted, or keyed)",
    "gaps": "stand behind an event of their chain that is not in the file (filtered or purged)",
}
