"""Files as an auditor has them, good ones and tampered ones, each with what a verifier has to answer. Nothing of the application
is imported: what is forged with the log's own key is made by docs/design.md."""

import asyncio
import base64
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests import databases, services
from tests.events import make_event, make_freeform
from tests.sealed import insert, plain_row
from tests.waiting import until

LOG = "test.example/datastorage"
EVENTS = "/api/v1/audit/events"
EXPORT = "/api/v1/audit/export"
TYPE = "application/vnd.in-toto+json"
BUNDLES = services.ROOT / "docs" / "vectors" / "bundles"
CONTINUED = services.ROOT / "docs" / "vectors" / "continued"
BUNDLE_KEY = Ed25519PrivateKey.from_private_bytes(bytes([1]) * 32)
LEAF = b"\0"
NUMBERS = (
    "[9007199254740993,18446744073709551616,0.30000000000000000004,2.2250738585072011e-308,1e23,-0.0,0.1,123e20,1E-7]"
)
ODD = '{"\\ufb33":2,"\\ud83d\\ude00":"\\u0000","z":null,"":[[],{}],"\\u2028":"<a>\\r\\n,\\"b\\""}'.replace(
    "\\u0000", "\\u007f"
)


@dataclass(frozen=True)
class Case:
    """One call of a verifier: files in their order, whether all of it holds, and a pattern of what it says."""

    name: str
    files: tuple[Path, ...]
    holds: bool
    says: str


@dataclass
class Corpus:
    """The cases of a running service, and the keys to verify them with."""

    directory: Path
    key: Ed25519PrivateKey
    cases: list[Case] = field(default_factory=list)

    @property
    def vkey(self) -> str:
        return vkey(self.key)

    @property
    def keys(self) -> Path:
        """A file of all keys: of the service's log, and of the logs and the witness of the vectors."""
        path = self.directory / "keys"
        path.write_text(f"{self.vkey}\n{vkey(self.key, f'{LOG}/1')}\n{(BUNDLES / 'keys.txt').read_text()}")
        with path.open("a") as keys:
            keys.write((CONTINUED / "keys.txt").read_text().split("\n")[0] + "\n")
        return path

    def add(self, name: str, *contents: bytes, holds: bool = True, says: str = "") -> None:
        """A case of one file, or of the parts of an export."""
        files = [
            self.directory / (name if len(contents) == 1 else f"{number}-{name}") for number in range(len(contents))
        ]
        for path, content in zip(files, contents, strict=True):
            path.write_bytes(content)
        self.cases.append(Case(name, tuple(files), holds, says))


def vkey(key: Ed25519PrivateKey, name: str = LOG) -> str:
    """A public key as signed-note has it."""
    public = b"\x01" + key.public_key().public_bytes_raw()
    key_id = hashlib.sha256(name.encode() + b"\n" + public).hexdigest()[:8]
    return f"{name}+{key_id}+{base64.b64encode(public).decode()}"


def key_label(vkey: str) -> str:
    """Name and key id, by which signatures name a key."""
    return "+".join(vkey.split("+")[:2])


def build(directory: Path, server_url: str, template: str) -> Corpus:
    """Start a service on a database of its own, collect what it serves, tamper with it."""
    corpus = Corpus(directory, Ed25519PrivateKey.generate())
    pem = directory / "checkpoint.pem"
    pem.write_bytes(corpus.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    url = asyncio.run(databases.create(server_url, template=template))
    try:
        settings = {"database_url": url, "unsafe_database": True, "processes": 1, "checkpoint_key_file": pem}
        service = services.spawn(settings, directory / "service")
        services.wait_until_ready(service)
        try:
            with httpx.Client(base_url=service.url, timeout=30) as client:
                genuine(corpus, client, url)
        finally:
            assert services.stop([service]) == [0], service.log.read_text()
        asyncio.run(verify(url))
    finally:
        asyncio.run(databases.drop(server_url, url))
    tamper_with_proofs(corpus)
    forge_seams(corpus)
    tamper_with_exports(corpus)
    forge_exports(corpus)
    forge_bundles(corpus)
    forge_files_of_two_logs(corpus)
    return corpus


async def verify(url: str) -> None:
    from tests.verification import verify_everything

    async with databases.connected(url) as connection:
        await verify_everything(connection)


def genuine(corpus: Corpus, client: httpx.Client, database_url: str) -> None:
    """Events of three correlations, one of them erased, and one row that somebody inserted."""
    ids = [post(client, make_event(correlation_id=c)) for c in ("rr-1", "rr-2", "rr-1", "rr-1")]
    people = [f"{person}@example.org" for person in ("ann", "ann", "bob", "bob")]  # redacted, both have one name
    ids += [post(client, make_event(correlation_id=person, actor_id="+49170123456")) for person in people]
    payload = f'{{"numbers":{NUMBERS},"odd":{ODD},"formula":"=1+1"}}'
    event = json.dumps(make_freeform(payload={}, error_message="'quoted' ann@example.org", actor_id="@x"))
    ids.append(post(client, event.replace('"event_data": {}', f'"event_data": {payload}').encode()))
    erase = ["erase", "--event-id", ids[2], "--reason", "asked"]
    env = os.environ | {"PYTHONPATH": str(services.ROOT), "DATASTORAGE_DATABASE_URL": database_url}
    subprocess.run([sys.executable, "-m", "app", *erase], env=env, check=True, capture_output=True)
    asyncio.run(unsealed(database_url))
    for name, event_id in (("first", ids[0]), ("odd", ids[-1]), ("erased", ids[2])):
        corpus.add(f"{name}.tlog-proof", wait(client, f"{EVENTS}/{event_id}/proof"))
        corpus.add(f"{name}.json", wait(client, f"{EVENTS}/{event_id}/proof?open=true"))
    until(lambda: checkpointed(client))
    for name, asked in (("rr-1", {}), ("masked", {"redact_pii": "true"})):
        corpus.add(f"bundle-of-{name}.json", wait(client, "/api/v1/audit/correlations/rr-1/bundle", asked))
    everything = {"include": "self"}
    for name, parameters in {
        "all.ndjson": {"format": "ndjson"},
        "all.csv": {"format": "csv"},
        "redacted.ndjson": {"format": "ndjson", "redact_pii": "true"},
        "redacted.csv": {"format": "csv", "redact_pii": "true"},
        "filtered.ndjson": {"format": "ndjson", "correlation_id": "rr-1"},
        "empty.csv": {"format": "csv", "correlation_id": "nobody"},
    }.items():
        found = client.get(EXPORT, params=everything | parameters).raise_for_status().content
        corpus.add(
            name, found, says="exporter's word" if "correlation_id" in parameters else "complete below position 10"
        )


def post(client: httpx.Client, event: dict[str, Any] | bytes) -> str:
    content = event if isinstance(event, bytes) else json.dumps(event).encode()
    answer = client.post(EVENTS, content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["event_id"])


async def unsealed(url: str) -> None:
    async with databases.connected(url) as connection:
        await insert(connection, plain_row("rr-1", error_message="-by hand"))


def wait(client: httpx.Client, path: str, asked: dict[str, str] | None = None) -> bytes:
    """The answer, as soon as a checkpoint covers the event."""
    answer = until(lambda: found if (found := client.get(path, params=asked)).status_code != 503 else None)
    return answer.raise_for_status().content


def checkpointed(client: httpx.Client) -> bool | None:
    """Whether the newest checkpoint is that of all sealed events."""
    events = client.get(EVENTS, params={"sealed": "true", "include": "self", "limit": 1}).json()["pagination"]["total"]
    return True if int(client.get("/tlog/checkpoint").text.split("\n")[1]) == events else None


def content(corpus: Corpus, name: str) -> bytes:
    return (corpus.directory / name).read_bytes()


def tamper_with_proofs(corpus: Corpus) -> None:
    proof = content(corpus, "odd.tlog-proof").decode()
    header, extra, index, first, *rest = proof.split("\n")
    record = base64.b64decode(extra.removeprefix("extra "))
    other = Ed25519PrivateKey.generate()

    def changed(name: str, text: str, why: str) -> None:
        assert text != proof
        corpus.add(f"{name}.tlog-proof", text.encode(), holds=False, says=why)

    edited = base64.b64encode(record.replace(b'"severity":"warning"', b'"severity":"info"')).decode()
    changed("record-edited", "\n".join([header, f"extra {edited}", index, first, *rest]), "does not lead")
    position = int(index.removeprefix("index "))
    changed("index-edited", proof.replace(f"\n{index}\n", f"\nindex {position - 1}\n"), "does not lead")
    changed("index-beyond", proof.replace(f"\n{index}\n", f"\nindex {position + 64}\n"), "does not lead")
    changed("hash-removed", "\n".join([header, extra, index, *rest]), "does not lead")
    changed("hash-doubled", "\n".join([header, extra, index, first, first, *rest]), "does not lead")
    changed("loose-base64", proof.replace("=\n", "\n", 1), "base64|hash")
    changed("cut", proof[:-30], "note|malformed")
    changed("size-edited", proof.replace(f"\n{LOG}\n", f"\n{LOG}\n1"), "signature|wrong")
    text, signature = note(proof)
    changed("unsigned", proof.replace(signature, ""), "note")
    for name, signer, key_name, why in (
        ("of-another-key", other, LOG, "no given key"),
        ("of-another-name", corpus.key, "other.example/log", "no given key"),
    ):
        changed(name, proof.replace(signature, signature_line(signer, text, key_name)), why)
    # Signed by the key of the log, but not what it looks like.
    lone = base64.b64encode(hashlib.sha256(b"\0{}").digest()).decode()
    forged = f"{LOG}\n1\n{lone}\n"
    bad = f"{header}\nextra {base64.b64encode(b'{}').decode()}\nindex 0\n\n{forged}\n"
    changed("another-record", bad + signature_line(corpus.key, forged), "not of this log")
    twice = b'{"log":"x","log":"' + LOG.encode() + b'","log_index":0}'
    forged = forged.replace(lone, base64.b64encode(hashlib.sha256(b"\0" + twice).digest()).decode())
    bad = f"{header}\nextra {base64.b64encode(twice).decode()}\nindex 0\n\n{forged}\n"
    changed("twice-in-record", bad + signature_line(corpus.key, forged), "twice")

    opened = content(corpus, "odd.json").decode()
    for name, old, new, why in (
        ("content-edited", "9007199254740993", "9007199254740992", "commitment"),
        ("content-rounded", "0.30000000000000000004", "0.3", "commitment"),
        ("member-twice", '"formula":', '"formula":"=1+1","formula":', "twice"),
        ("salt-edited", '"salt":"', '"salt":"00', "salt|commitment"),
        ("salt-removed", '"salt":"', '"salt":null,"other":"', "both"),
        ("lone-surrogate", "=1+1", "=1+1\\ud800", "surrogate"),
    ):
        loose = json.dumps(json.loads(opened)) if old not in opened else opened
        assert old in loose, name
        corpus.add(f"{name}.json", loose.replace(old, new, 1).encode(), holds=False, says=why)


def forge_seams(corpus: Corpus) -> None:
    """The proof of an event of a closed log, by the first event of the log that continues it; and that it is none."""
    opened = json.loads(content(corpus, "first.json"))
    header, extra, *_ = opened["proof"].split("\n")
    record = json.loads(base64.b64decode(extra.removeprefix("extra ")))
    leaf = hashlib.sha256(b"\0" + base64.b64decode(extra.removeprefix("extra "))).digest()
    sibling = hashlib.sha256(b"sibling").digest()
    root = hashlib.sha256(b"\1" + leaf + sibling).digest()
    closed = f"{LOG}\n2\n{base64.b64encode(root).decode()}\n"
    proof = f"{header}\n{extra}\nindex 0\n{base64.b64encode(sibling).decode()}\n\n{closed}"
    about = {"continuation_id": "c-1", "log_id": 0, "closed_log": LOG, "tree_size": 2, "root_hash": root.hex()}

    def with_seam(of_record: dict[str, Any], of_payload: dict[str, Any], ending: str = "") -> bytes:
        payload = {"event_type": "datastorage.log.continued"} | about | of_payload
        committed = opened["committed"] | {"event_data": payload}
        salted = bytes(16) + rfc8785.dumps(committed)
        columns = {
            "event_type": "datastorage.log.continued",
            "event_category": "security",
            "log": f"{LOG}/1",
            "log_index": 0,
        }
        columns |= {
            "correlation_id": "datastorage:log:c-1",
            "commitment": hashlib.sha256(salted).hexdigest(),
        } | of_record
        one = rfc8785.dumps(record | columns)
        text = f"{LOG}/1\n1\n{base64.b64encode(hashlib.sha256(LEAF + one).digest()).decode()}\n"
        signed = f"{header}\nextra {base64.b64encode(one).decode()}\nindex 0\n\n{text}\n"
        signed += signature_line(corpus.key, text, f"{LOG}/1")
        seam = {"proof": signed, "salt": bytes(16).hex(), "committed": committed}
        return compact(opened | {"proof": proof + ending, "seam": seam})

    corpus.add("seam.json", with_seam({}, {}))
    for name, says, of_record, of_payload in (
        ("type", "continues", {"event_type": "workflow.completed"}, {}),
        ("category", "continues", {"event_category": "workflow"}, {}),
        ("correlation", "continues", {"correlation_id": "c-1"}, {}),
        ("log", "log", {"log": LOG}, {}),
        ("about", "log after", {}, {"log_id": 1}),
        ("root", "checkpoint", {}, {"root_hash": "0" * 64}),
        ("size", "checkpoint", {}, {"tree_size": 3}),
        ("closed", "log", {}, {"closed_log": "other.example/log"}),
    ):
        corpus.add(f"seam-{name}.json", with_seam(of_record, of_payload), holds=False, says=says)
    corpus.add("seam-ending.json", with_seam({}, {}, "\n"), holds=False, says="checkpoint")
    bare = json.loads(with_seam({}, {}))
    del bare["seam"]
    corpus.add("seam-none.json", compact(bare), holds=False, says="note")


def note(proof: str) -> tuple[str, str]:
    """Text and signature lines of the checkpoint of a proof."""
    text, signatures = proof.split("\n\n", 1)[1].rsplit("\n\n", 1)
    return text + "\n", signatures


def signature_line(key: Ed25519PrivateKey, text: str, name: str = LOG) -> str:
    key_id = bytes.fromhex(vkey(key, name).split("+")[1])
    return f"— {name} {base64.b64encode(key_id + key.sign(text.encode())).decode()}\n"


def tamper_with_exports(corpus: Corpus) -> None:
    """What was changed after it was signed."""
    whole = content(corpus, "all.ndjson")
    lines = whole.splitlines(keepends=True)
    table = content(corpus, "all.csv")

    def changed(name: str, found: bytes, why: str) -> None:
        assert found not in (whole, table), name
        corpus.add(name, found, holds=False, says=why)

    changed("byte-edited.ndjson", whole.replace(b'"severity":"warning"', b'"severity":"info"', 1), "hash|changed")
    changed("byte-edited.csv", table.replace(b",warning,", b",info,", 1), "hash|changed")
    changed("exact-number-edited.csv", table.replace(b"18446744073709551616", b"18446744073709551615"), "changed")
    changed("line-removed.ndjson", b"".join(lines[1:]), "digest")
    changed("lines-exchanged.ndjson", b"".join([lines[1], lines[0], *lines[2:]]), "order")
    changed("no-manifest.ndjson", b"".join(lines[:-1]), "incomplete")
    changed("no-manifest.csv", table[: table.index(b"#manifest")], "incomplete")
    changed("half-a-line.ndjson", whole[:-10], "newline|end")
    changed("half-a-line.csv", table[:-1], "newline|end|CR")
    changed("something-after.ndjson", whole + lines[0], "follows|after")
    changed("manifest-twice.ndjson", whole + lines[-1], "follow|after")
    unsigned = json.loads(lines[-1]) | {"signatures": []}
    changed("no-signature.ndjson", b"".join(lines[:-1]) + compact(unsigned), "signed")
    other = Ed25519PrivateKey.generate()
    changed("of-another-key.ndjson", resigned(lines, other), "signature|signed")
    changed(
        "beside-the-signature.ndjson", whole.replace(b'"signatures":', b'"note":"x","signatures":'), "envelope|member"
    )
    changed("lf.csv", table.replace(b"\r\n", b"\n"), "CSV|end")


def forge_exports(corpus: Corpus) -> None:
    """What somebody with the log's key has signed although it does not hold."""
    lines = content(corpus, "all.ndjson").splitlines(keepends=True)

    def forged(name: str, change: Callable[[list[bytes]], Any], why: str, **predicate: Any) -> None:
        """Records changed by `change`, and a manifest that is right about them, signed with the log's key."""
        records = lines[:-1]
        change(records)
        corpus.add(name, resigned([*records, lines[-1]], corpus.key, **predicate), holds=False, says=why)

    def replaced(number: int, old: bytes, new: bytes) -> Callable[[list[bytes]], None]:
        def change(records: list[bytes]) -> None:
            assert old in records[number]
            records[number] = records[number].replace(old, new, 1)

        return change

    def nothing(_: list[bytes]) -> None: ...

    date = json.loads(lines[0])["event_date"].encode()
    log = LOG.encode()
    forged("signed-edit.ndjson", replaced(0, b'"severity":"warning"', b'"severity":"info"'), "hash|changed")
    forged("signed-content.ndjson", replaced(0, b'"actor_id":"', b'"actor_id":"x'), "hash|changed")
    forged("signed-number.ndjson", replaced(8, b"9007199254740993", b"9007199254740992"), "hash|changed")
    forged("signed-twice.ndjson", replaced(8, b'"formula":', b'"formula":"=1+1","formula":'), "twice")
    forged("signed-member.ndjson", replaced(8, b'"sealed":', b'"x":1,"sealed":'), "members")
    forged("signed-date.ndjson", replaced(0, b'"event_date":"%s"' % date, b'"event_date":"2001-01-01"'), "date")
    forged("signed-not-sealed.ndjson", replaced(0, b'"sealed":true', b'"sealed":false'), "inserted")
    forged("signed-sealed.ndjson", replaced(-1, b'"sealed":false', b'"sealed":true'), "unsealed|sealed")
    forged("signed-other-log.ndjson", replaced(-1, b'"log":"%s"' % log, b'"log":"x"'), "log")
    forged("signed-order.ndjson", lambda records: records.insert(0, records.pop(1)), "order")
    forged("signed-less-erased.ndjson", nothing, "erased", erased=0)
    forged("signed-fewer.ndjson", nothing, "events", events=1)
    forged("signed-part-2.ndjson", nothing, "part", part=2)
    forged("signed-next.ndjson", nothing, "incomplete", next="x")
    forged("signed-log-size.ndjson", nothing, "log_size", log_size=3)
    forged("signed-csv.ndjson", nothing, "format", format="csv")
    forged("signed-through.ndjson", nothing, "through", through=None)
    statement = predicate_of(lines[-1])
    checkpoint = statement["checkpoint"].replace("\n— ", "\nx\n— ", 1)
    forged("signed-checkpoint.ndjson", nothing, "signature|malformed|checkpoint", checkpoint=checkpoint)
    rootless = f"{LOG}\n4\n{base64.b64encode(bytes(32)).decode()}\n"
    rootless += "\n" + signature_line(corpus.key, rootless)
    forged("signed-root.ndjson", nothing, "checkpoint", checkpoint=rootless)
    corpus.add("signed-removal.ndjson", resigned([*lines[:2], *lines[3:]], corpus.key), says="exporter's word")
    continued(corpus, lines)


def continued(corpus: Corpus, lines: list[bytes]) -> None:
    """Two parts, as a continued export has them, in one file and in two."""
    first = resigned([*lines[:4], lines[-1]], corpus.key, next="x", checkpoint=None)
    before = predicate_of(first.splitlines(keepends=True)[-1])
    digest = hashlib.sha256(b"".join(lines[:4])).hexdigest()
    follows = {"part": 2, "previous": digest, "after": before["through"]}
    second = resigned(lines[4:], corpus.key, **follows)
    corpus.add("parts.ndjson", first, second)
    corpus.add("parts-in-one.ndjson", first + second)
    corpus.add("first-part-only.ndjson", first, holds=False, says="incomplete")
    corpus.add("second-part-only.ndjson", second, holds=False, says="part")
    corpus.add("parts-exchanged.ndjson", second, first, holds=False, says="part")
    elsewhere = resigned(lines[4:], corpus.key, **follows | {"previous": "0" * 64})
    corpus.add("parts-do-not-fit.ndjson", first, elsewhere, holds=False, says="begin|fit")


def compact(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


def predicate_of(manifest: bytes) -> dict[str, Any]:
    statement: dict[str, Any] = json.loads(base64.b64decode(json.loads(manifest)["payload"]))["predicate"]
    return statement


def resigned(lines: list[bytes], key: Ed25519PrivateKey, **predicate: Any) -> bytes:
    """The records of `lines` and, for their last one, a manifest that is right about them but for `predicate`."""
    *records, manifest = lines
    statement = json.loads(base64.b64decode(json.loads(manifest)["payload"]))
    rows = [json.loads(record) for record in records]
    positions = [row["log_index"] for row in rows if row["log_index"] is not None]
    last = rows[-1]
    sealed = last["log_index"] is not None
    through = {"position": last["log_index"]} | {k: None if sealed else last[k] for k in ("event_id", "event_date")}
    of_part = {
        "events": len(rows),
        "sealed": len(positions),
        "unsealed": len(rows) - len(positions),
        "erased": sum(row["payload_commitment"] is not None for row in rows),
        "first_position": positions[0] if positions else None,
        "last_position": positions[-1] if positions else None,
        "through": through,
    }
    statement["predicate"] |= of_part | predicate
    p = statement["predicate"]
    name = f"export-{p['export_id']}-part-{p['part']}.ndjson"
    statement["subject"] = [{"name": name, "digest": {"sha256": hashlib.sha256(b"".join(records)).hexdigest()}}]
    return b"".join(records) + enveloped(statement, key, key_label(vkey(key)))


def forge_bundles(corpus: Corpus) -> None:
    """The vectors, and what somebody with their log's key has signed although it does not hold."""
    whole = (BUNDLES / "0001-complete.json").read_bytes()
    masked = (BUNDLES / "0002-redacted.json").read_bytes()
    corpus.add("bundle.json", whole, says="2 notifications, 1 rows that nothing proves")
    corpus.add("bundle-redacted.json", masked)
    corpus.add("bundle-stamped.json", (BUNDLES / "0003-timestamp.json").read_bytes())
    corpus.add("bundle-signed-again.json", rebundled(whole, lambda _: None))
    corpus.add("bundle-byte.json", whole.replace(b"payments", b"payment5", 1), holds=False, says="changed")
    corpus.add("bundle-cut.json", whole[:-2], holds=False, says="manifest")
    corpus.add("bundle-more.json", whole + b" \n", holds=False, says="manifest")
    corpus.add("bundle-no-manifest.json", whole[: whole.index(b'"manifest":')], holds=False, says="manifest")
    other = Ed25519PrivateKey.generate()
    corpus.add("bundle-of-another.json", rebundled(whole, lambda _: None, other), holds=False, says="signature|signed")
    page, twice = b'"correlation_id":"rr-1"', b'"correlation_id":"rr-2","correlation_id":"rr-1"'
    corpus.add("bundle-twice.json", whole.replace(page, twice, 1), holds=False, says="twice")

    for name, says, change in FORGED_BUNDLES:
        corpus.add(f"bundle-{name}.json", rebundled(whole, change), holds=False, says=says)
    for name, says, redacted in (("position", "masked", ["log_index"]), ("nothing", "masked|changed", None)):
        change = partial(mask, names=redacted)
        corpus.add(f"bundle-masked-{name}.json", rebundled(masked, change), holds=False, says=says)
    corpus.add("bundle-count.json", rebundled(whole, lambda _: None, events=2), holds=False, says="events")
    corpus.add("bundle-predicate.json", rebundled(whole, lambda _: None, note="x"), holds=False, says="members")


def swap(members: Any, name: str | int, old: str, new: str) -> None:
    """Replace a text within a member."""
    assert old in members[name], name
    members[name] = members[name].replace(old, new, 1)


def mask(bundle: Any, names: list[str] | None) -> None:
    bundle["events"][0]["redacted"] = names


def kind(b: Any, name: str) -> Any:
    """The self event of this kind in the evidence."""
    return next(e for e in b["evidence"] if f'"event_type":"datastorage.{name}"' in e["record"])


def covered(bundle: Any) -> Any:
    """The notification that the log has the digest of."""
    return next(one for one in bundle["notifications"] if one["covered_by"])


def rebundled(
    text: bytes, change: Callable[[Any], Any], key: Ed25519PrivateKey = BUNDLE_KEY, **predicate: Any
) -> bytes:
    """The bundle with its content changed, and a manifest that is right about it but for `predicate`."""
    bundle = json.loads(text)
    envelope = bundle.pop("manifest")
    change(bundle)
    content = compact(bundle)[:-2] + b",\n"
    statement = json.loads(base64.b64decode(envelope["payload"]))
    names = ("events", "gaps", "evidence", "unproved", "notifications")
    numbers = {name: len(bundle[name]) for name in names} | {"correlation_id": bundle["correlation_id"]}
    erased = sum(entry["committed"] is None for entry in bundle["events"])
    statement["predicate"] |= numbers | {"erased": erased} | predicate
    statement["subject"][0]["digest"]["sha256"] = hashlib.sha256(content).hexdigest()
    return content + b'"manifest":' + enveloped(statement, key, envelope["signatures"][0]["keyid"])[:-1] + b"}\n"


def enveloped(statement: Any, key: Ed25519PrivateKey, keyid: str) -> bytes:
    payload = json.dumps(statement).encode()
    signature = key.sign(b"DSSEv1 %d %s %d %s" % (len(TYPE), TYPE.encode(), len(payload), payload))
    return compact(
        {
            "payloadType": TYPE,
            "payload": base64.b64encode(payload).decode(),
            "signatures": [{"keyid": keyid, "sig": base64.b64encode(signature).decode()}],
        }
    )


def forge_files_of_two_logs(corpus: Corpus) -> None:
    """The vectors of a continued log, and what somebody with the key has signed although it does not hold."""
    whole = (CONTINUED / "0001-export.ndjson").read_bytes()
    both = r"complete below position 4.*complete below position 3|"
    corpus.add("two-logs.ndjson", whole, says=both)
    corpus.add("two-logs.csv", (CONTINUED / "0002-export.csv").read_bytes(), says=both)
    lines = whole.splitlines(keepends=True)
    first, second = b"".join(lines[:4]), b"".join(lines[4:])
    corpus.add("two-logs-in-parts.ndjson", first, second, says=both)
    corpus.add("two-logs-second-part.ndjson", second, holds=False, says="part")

    def forged(name: str, says: str, change: Callable[[Any], Any], number: int = -1) -> None:
        """The export with the predicate of one manifest changed, and signed again."""
        envelope = json.loads(lines[number])
        statement = json.loads(base64.b64decode(envelope["payload"]))
        change(statement["predicate"])
        changed = [*lines]
        changed[number] = enveloped(statement, BUNDLE_KEY, envelope["signatures"][0]["keyid"])
        corpus.add(f"two-logs-{name}.ndjson", b"".join(changed), holds=False, says=says)

    def earlier(**members: Any) -> Callable[[Any], Any]:
        return lambda p: p["earlier_logs"][0].update(members)

    forged("none", "log|through", lambda p: p.pop("earlier_logs"))
    forged("empty", "log", lambda p: p.update(earlier_logs=[]))
    forged("name", "log", earlier(log="other.example/log"))
    forged("small", "log_size", earlier(log_size=3))
    forged("large", "size|differ", earlier(log_size=5))
    forged("first", "first_position", earlier(first_position=0))
    forged("last", "last_position", earlier(last_position=None))
    forged("no-log-in-through", "through", lambda p: p["through"].pop("log"), 3)
    forged("checkpoint", "checkpoint|signed", lambda p: swap(p["earlier_logs"][0], "checkpoint", "\n2\n", "\n3\n"))
    forged("seam-salt", "salt|commitment", lambda p: p["earlier_logs"][0]["seam"].update(salt="01" * 16))
    forged("seam-masked", "opened|seam", lambda p: p["earlier_logs"][0]["seam"].update(salt=None, committed=None))
    forged("seam-signed", "signature|wrong", lambda p: swap(p["earlier_logs"][0]["seam"], "proof", "\n3\n", "\n4\n"))

    forge_records_of_two_logs(corpus, lines)
    forge_bundle_of_two_logs(corpus)


def forge_records_of_two_logs(corpus: Corpus, lines: list[bytes]) -> None:
    """All records of the export in one part, changed, with a manifest that is right about them."""

    def rows(name: str, says: str, change: Callable[[list[bytes]], Any]) -> None:
        records = [*lines[:3], *lines[4:-1]]
        change(records)
        predicate = predicate_of(lines[-1]) | {"part": 1, "previous": None, "after": None, "events": len(records)}
        found = [json.loads(record) for record in records]
        ends = {log: [one["log_index"] for one in found if one["log"] == log and one["sealed"]] for log in LOGS}
        predicate |= {"sealed": sum(map(len, ends.values()))}
        for of_log, log in zip((predicate["earlier_logs"][0], predicate), LOGS, strict=True):
            of_log |= {"first_position": min(ends[log]), "last_position": max(ends[log])}
        statement = json.loads(base64.b64decode(json.loads(lines[-1])["payload"])) | {"predicate": predicate}
        digest = hashlib.sha256(b"".join(records)).hexdigest()
        statement["subject"] = [
            {"name": f"export-{predicate['export_id']}-part-1.ndjson", "digest": {"sha256": digest}}
        ]
        keyid = json.loads(lines[-1])["signatures"][0]["keyid"]
        content = b"".join(records) + enveloped(statement, BUNDLE_KEY, keyid)
        corpus.add(f"two-logs-{name}.ndjson", content, holds=not says, says=says)

    rows("one-part", "", list[bytes].copy)
    rows("exchanged", "order", lambda records: records.insert(0, records.pop(4)))
    rows("back-again", "order", lambda records: records.insert(6, records.pop(3)))
    rows("edited", "hash", lambda records: records.insert(0, records.pop(0).replace(b"payments", b"payment5")))
    rows("relabelled", "hash|changed", lambda r: r.insert(5, r.pop(5).replace(b'datastorage/1"', b'datastorage"', 1)))


def forge_bundle_of_two_logs(corpus: Corpus) -> None:
    text = (CONTINUED / "0003-bundle.json").read_bytes()
    corpus.add("bundle-two-logs.json", text)
    seam = "root_hash"
    for name, says, change in (
        ("no-seam", "", lambda b: b["evidence"].clear()),
        ("other-seam", "", lambda b: swap(b["evidence"][0], "committed", f'"{seam}":"', f'"{seam}":"0')),
        ("exchanged", "", lambda b: b["logs"].reverse()),
        ("unexplained", "removed", lambda b: b["gaps"][0].update(log=None, position=None, proof=None)),
        ("number", "", lambda b: b["logs"][1].update(log_id=2)),
    ):
        corpus.add(f"bundle-two-logs-{name}.json", rebundled(text, change), holds=False, says=says)


LOGS = ("example.test/datastorage", "example.test/datastorage/1")

FORGED_BUNDLES: tuple[tuple[str, str, Callable[[Any], Any]], ...] = (
    ("record", "changed", lambda b: swap(b["events"][0], "record", '"info"', '"high"')),
    ("content", "changed", lambda b: swap(b["events"][0], "committed", "payments", "payment5")),
    ("number", "changed", lambda b: swap(b["events"][0], "committed", "18446744073709551615", "18446744073709551616")),
    ("salt", "masked", lambda b: b["events"][0].update(salt=None)),
    ("salt-alone", "salt", lambda b: b["events"][0].update(committed=None)),
    ("not-erased", "erased", lambda b: b["events"][0].update(salt=None, committed=None)),
    ("proof", "lead", lambda b: b["events"][0]["proof"].pop()),
    ("position", "lead|place", lambda b: b["events"][0].update(position=4)),
    ("place-twice", "twice", lambda b: b["evidence"].append(b["events"][0])),
    ("exchanged", "order|link|gap", lambda b: b["events"].reverse()),
    ("event-removed", "gaps", lambda b: b["events"].pop()),
    ("all-removed", "gaps", lambda b: b["events"].clear()),
    ("chain-longer", "gaps", lambda b: b["chain"].update(length=9)),
    ("chain-ends", "end", lambda b: b["chain"].update(hash="0" * 64)),
    ("chain-none", "chain", lambda b: b.update(chain=None)),
    ("gap-unexplained", "removed", lambda b: b["gaps"][0].update(log=None, position=None, proof=None)),
    ("gap-elsewhere", "removed|lead", lambda b: b["gaps"][0].update(position=2)),
    ("no-purge", "removed", lambda b: b["evidence"].remove(kind(b, "retention.purged"))),
    ("no-erasure", "erased", lambda b: b["evidence"].remove(kind(b, "event.erased"))),
    ("no-digest", "inserted", lambda b: b["evidence"].remove(kind(b, "notification.stored"))),
    ("notification", "another recipient", lambda b: covered(b)["columns"].update(recipient="somebody")),
    ("notification-text", "digest", lambda b: swap(covered(b), "committed", '"channel":"', '"channel":"x')),
    ("notification-removed", "removed", lambda b: b["notifications"].remove(covered(b))),
    ("notification-open", "cannot have", lambda b: covered(b).update(covered_by=None)),
    ("unproved-sealed", "sealed", lambda b: swap(b["unproved"], 0, '"sealed":false', '"sealed":true')),
    ("unproved-position", "position", lambda b: swap(b["unproved"], 0, '"log_index":null', '"log_index":3')),
    ("member", "members", lambda b: b["events"][0].update(note="x")),
    ("member-missing", "members", lambda b: b["events"][0]["not_covered"].pop("legal_hold")),
    ("correlation", "another correlation", lambda b: b.update(correlation_id="rr-2")),
    ("fraction", "number", lambda b: b["logs"][0].update(size=13.5)),
    ("size", "size", lambda b: b["logs"][0].update(size=12)),
    ("no-checkpoint", "vouches", lambda b: b["logs"][0].update(checkpoint=None)),
    ("witness", "signature|wrong", lambda b: swap(b["logs"][0], "checkpoint", "SaYKIgAAAABp", "SaYKIgAAAABq")),
    ("differs", "hold removed", lambda b: b["page"].append("DIFFERS FROM THE LOG: hold removed: x")),
    ("masked-name", "masked", lambda b: b["events"][0].update(redacted=["resource_id"])),
)
"""Name, what is said, and the change."""
