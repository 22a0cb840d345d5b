"""The file of a bundle: all about one correlation, with proofs. One JSON object, whose last line is the signed manifest.

The form is described in docs/design.md, section 9.5. The classes here are the file's members: the writer fills them, and the checker
gets them from `parse`, which refuses what is not exactly of this form.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from hashlib import sha256
from typing import Annotated, Any, Literal, NamedTuple

import orjson
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from app.events.canonical import loads_strict
from app.export.manifest import STATEMENT_TYPE, sign_statement
from app.tlog.keys import SigningKey
from app.tlog.note import decoded_base64

FORMAT: Literal["https://kubernaut.ai/datastorage/bundle/v1"] = "https://kubernaut.ai/datastorage/bundle/v1"
START = b'{"format":"https://kubernaut.ai/datastorage/bundle/'
"""How every bundle begins, whatever its version."""
DIFFERS = "DIFFERS FROM THE LOG: "
"""How a line of the page begins that names what the service itself found when it wrote the file."""
RECORD_FIXED = frozenset({"log", "log_index", "chain_index", "previous_event_hash", "commitment"})
"""Members of a record that redaction never changes."""
_MANIFEST = b'"manifest":'
_LISTS = ("page", "logs", "events", "gaps", "evidence", "unproved", "notifications")

_STRICT = ConfigDict(strict=True, extra="forbid")
Count = Annotated[int, Field(ge=0, lt=2**53)]
Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


@dataclass(frozen=True, slots=True)
class Place:
    """A position in one of the file's logs, which is named."""

    __pydantic_config__ = _STRICT
    log: str
    position: Count


@dataclass(frozen=True, slots=True)
class Timestamp:
    """A checkpoint that a timestamp authority has signed with the time, and the proof that the log continued it."""

    __pydantic_config__ = _STRICT
    checkpoint: str
    consistency: list[str]
    token: str


@dataclass(frozen=True, slots=True)
class BundledLog:
    """A log, and the tree under which the file's proofs stand. Without a checkpoint and a seam nothing is proved."""

    __pydantic_config__ = _STRICT
    log_id: Count
    name: str
    size: Count | None
    root: str | None
    checkpoint: str | None
    seam: Place | None
    timestamps: list[Timestamp]


@dataclass(frozen=True, slots=True)
class ChainEnd:
    """The head of the correlation's chain, as it is stored."""

    __pydantic_config__ = _STRICT
    length: int
    hash: str


@dataclass(frozen=True, slots=True)
class NotCovered:
    """Columns of an event that no hash covers."""

    __pydantic_config__ = _STRICT
    retention_days: int | None
    legal_hold: bool | None
    legal_hold_reason: str | None
    legal_hold_placed_by: str | None
    legal_hold_placed_at: str | None
    hash_algorithm: str | None


@dataclass(frozen=True, slots=True)
class BundledEvent:
    """An event of the log. Opened with salt and committed object, masked with only the latter, erased with neither."""

    __pydantic_config__ = _STRICT
    log: str
    position: Count
    leaf: Hex
    proof: list[str] | None
    record: str
    salt: Annotated[str, Field(pattern=r"^([0-9a-f]{2})*$")] | None
    committed: str | None
    redacted: list[str] | None
    not_covered: NotCovered

    @property
    def is_erased(self) -> bool:
        return self.committed is None


@dataclass(frozen=True, slots=True)
class BundledGap:
    """Chain positions without an event, and where the log had the last of them, if it records that this was purged."""

    __pydantic_config__ = _STRICT
    first: Count
    end: Count
    last_hash: str
    log: str | None
    position: Count | None
    proof: list[str] | None


@dataclass(frozen=True, slots=True)
class BundledNotification:
    """A notification as it is stored, and the event of the log that has its digest, if one has."""

    __pydantic_config__ = _STRICT
    columns: dict[str, Any]
    salt: Annotated[str, Field(pattern=r"^([0-9a-f]{2})*$")] | None
    committed: str | None
    covered_by: Place | None


@dataclass(frozen=True, slots=True)
class Bundle:
    """The content of the file: everything but the manifest."""

    __pydantic_config__ = _STRICT
    format: Literal["https://kubernaut.ai/datastorage/bundle/v1"]
    page: list[str]
    correlation_id: str
    redacted: bool
    logs: Annotated[list[BundledLog], Field(min_length=1)]
    chain: ChainEnd | None
    events: list[BundledEvent]
    gaps: list[BundledGap]
    evidence: list[BundledEvent]
    unproved: list[str]
    notifications: list[BundledNotification]

    def content(self) -> bytes:
        """The bytes that the manifest signs: JSON up to the comma before it, an entry per line."""
        return b"{" + b",\n".join(self._members()) + b",\n"

    def _members(self) -> Iterator[bytes]:
        for name in self.__slots__:
            value = getattr(self, name)
            written = _lines(value) if name in _LISTS and value else orjson.dumps(value)
            yield orjson.dumps(name) + b":" + written

    def counts(self) -> dict[str, int]:
        """How many entries of each kind it has, as the manifest states them."""
        return {
            "events": len(self.events),
            "erased": sum(event.is_erased for event in self.events),
            "gaps": len(self.gaps),
            "evidence": len(self.evidence),
            "unproved": len(self.unproved),
            "notifications": len(self.notifications),
        }


@dataclass(frozen=True, slots=True)
class BundleManifest:
    """What is signed about a bundle; `sha256`, in hex, is that of its content."""

    __pydantic_config__ = _STRICT
    export_id: str
    correlation_id: str
    redacted: bool
    exported_at: str
    exported_by: str
    log: str
    """The log whose key signs: the last one of the file."""
    events: Count
    erased: Count
    gaps: Count
    evidence: Count
    unproved: Count
    notifications: Count
    sha256: Hex

    @property
    def name(self) -> str:
        """The name of the statement's subject."""
        return f"bundle-{self.export_id}.json"

    def statement(self) -> bytes:
        """The in-toto statement, as JSON."""
        predicate = asdict(self)
        subject = {"name": self.name, "digest": {"sha256": predicate.pop("sha256")}}
        return orjson.dumps(
            {"_type": STATEMENT_TYPE, "subject": [subject], "predicateType": FORMAT, "predicate": predicate}
        )

    @staticmethod
    def parse(statement: bytes) -> "BundleManifest":
        """The manifest that `statement()` wrote; ValueError for anything else."""
        document = _object(statement, "the manifest's statement")
        try:
            [subject] = document["subject"]
            predicate = document["predicate"] | {"sha256": subject["digest"]["sha256"]}
            manifest = _bundle_manifests().validate_json(orjson.dumps(predicate))
        except (TypeError, ValueError, LookupError) as error:
            raise ValueError(f"the manifest is not one of a bundle: {_first_fault(error)}") from None
        if document != orjson.loads(manifest.statement()):
            raise ValueError("the manifest is not one of a bundle: it has other members, or is about another file")
        return manifest


@cache  # built when the first is read: most processes read none
def _bundles() -> TypeAdapter[Bundle]:
    return TypeAdapter(Bundle)


@cache
def _bundle_manifests() -> TypeAdapter[BundleManifest]:
    return TypeAdapter(BundleManifest)


class BundleFile(NamedTuple):
    """A file split, and read: its content and the digest of its bytes, and the manifest's envelope."""

    bundle: Bundle
    sha256: str
    envelope: dict[str, Any]


def bundle_file(bundle: Bundle, export_id: str, exported_at: str, exported_by: str, key: SigningKey | None) -> bytes:
    """The file's bytes. Without a key the manifest has no signature, and the file proves nothing."""
    content = bundle.content()
    manifest = BundleManifest(
        export_id=export_id,
        correlation_id=bundle.correlation_id,
        redacted=bundle.redacted,
        exported_at=exported_at,
        exported_by=exported_by,
        log=bundle.logs[-1].name,
        sha256=sha256(content).hexdigest(),
        **bundle.counts(),
    )
    return content + _MANIFEST + sign_statement(manifest.statement(), key) + b"}\n"


def parse(file: bytes) -> BundleFile:
    """The parts of a bundle's file. ValueError, saying what is wrong, if it is not exactly of the form, or was cut."""
    start = file.rfind(b"\n", 0, -1) + 1
    content, last = file[:start], file[start:]
    if not (last.startswith(_MANIFEST) and last.endswith(b"}\n") and content.endswith(b",\n")):
        raise ValueError("incomplete: the last line is not the manifest, so the file was cut: fetch it again")
    envelope = _object(last[len(_MANIFEST) : -2], "the manifest")
    whole = content[:-2] + b"}"
    _object(whole, "the bundle")
    try:
        bundle = _bundles().validate_json(whole)
    except ValidationError as error:
        raise ValueError(f"not a bundle that can be read here: {_first_fault(error)}") from None
    return BundleFile(bundle, sha256(content).hexdigest(), envelope)


def manifest_of(file: BundleFile) -> BundleManifest:
    """The manifest in the file's envelope, whoever signed it. ValueError if there is none."""
    return BundleManifest.parse(decoded_base64(str(file.envelope.get("payload")), "the manifest's payload"))


def _lines(values: Iterable[Any]) -> bytes:
    return b"[\n" + b",\n".join(map(orjson.dumps, values)) + b"\n]"


def _object(text: bytes, what: str) -> dict[str, Any]:
    """The JSON object in a text. ValueError for anything else, also for an object with a member that stands twice."""
    try:
        value = loads_strict(text)
    except ValueError as error:
        raise ValueError(f"{what} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{what} is not a JSON object")  # noqa: TRY004 - a file's content is wrong
    return value


def _first_fault(error: Exception) -> str:
    if isinstance(error, ValidationError):
        fault = error.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}"
    return repr(error)
