"""Bundles without a database: the vectors, and files that somebody has changed."""

import hashlib
import json
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from app.export.bundle import FORMAT
from app.export.bundle_check import check_bundle
from app.export.check import check_files
from app.export.manifest import STATEMENT_TYPE, sign_statement
from app.tlog.keys import SigningKey, read_public_keys
from app.tlog.note import PublicKey
from app.tlog.timestamp import read_certificates

BUNDLES = Path(__file__).parents[2] / "docs" / "vectors" / "bundles"
COMPLETE, REDACTED, STAMPED = (BUNDLES / f"000{name}.json" for name in ("1-complete", "2-redacted", "3-timestamp"))
CONTINUED = BUNDLES.with_name("continued")
KEYS = read_public_keys(str(BUNDLES / "keys.txt"))
LOG = "example.test/datastorage"
PRIVATE = Ed25519PrivateKey.from_private_bytes(bytes([1]) * 32)
KEY = SigningKey(PRIVATE, PublicKey(LOG, PRIVATE.public_key().public_bytes_raw()))

Path_ = tuple[str | int, ...]
Change = Callable[[Any], Any]


def problems(content: bytes, keys: list[PublicKey] = KEYS) -> list[str]:
    return check_bundle(content, keys).problems


def parts(file: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """Content and envelope of a bundle, as plain JSON."""
    document = json.loads(file)
    return document, document.pop("manifest")


def written(content: dict[str, Any], envelope: Any) -> bytes:
    return orjson.dumps(content)[:-1] + b",\n" + b'"manifest":' + orjson.dumps(envelope) + b"}\n"


def signed_again(content: dict[str, Any], key: SigningKey = KEY) -> bytes:
    """The file as whoever has the log's key would write it."""
    lists = ("events", "gaps", "evidence", "unproved", "notifications")
    counts = {name: len(content[name]) if isinstance(content.get(name), list) else 0 for name in lists}
    log = value_at(content, ("logs", -1, "name")) if content.get("logs") else None
    predicate = {
        "export_id": "e",
        "correlation_id": content.get("correlation_id"),
        "redacted": content.get("redacted"),
        "exported_at": "2026-11-23T02:05:00Z",
        "exported_by": "",
        "log": log,
        "erased": sum(value_at(event, ("committed",)) is None for event in content.get("events") or []),
    }
    digest = hashlib.sha256(orjson.dumps(content)[:-1] + b",\n").hexdigest()
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": "bundle-e.json", "digest": {"sha256": digest}}],
        "predicateType": FORMAT,
        "predicate": predicate | counts,
    }
    return written(content, orjson.loads(sign_statement(orjson.dumps(statement), key)))


def paths(value: Any, at: Path_ = ()) -> Iterator[Path_]:
    """The path of every member and every entry, at any depth."""
    if at:
        yield at
    for name, member in (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    ):
        yield from paths(member, (*at, name))


def changes(value: Any) -> Iterator[Change]:
    """What somebody could do to a value."""
    if isinstance(value, dict):
        yield lambda v: v | {"another": None}
        yield lambda v: dict(list(v.items())[1:])
    elif isinstance(value, list):
        yield lambda v: [*v, *(v[-1:] or ["x"])]
        if value:
            yield lambda v: v[1:]
    elif isinstance(value, bool):
        yield lambda v: not v
        yield int
    elif isinstance(value, int):
        yield lambda v: v + 1
        yield str
    elif isinstance(value, str):
        yield lambda v: v + "x"
        yield lambda v: v[:-1] + ("0" if v[-1:] != "0" else "1")
    yield lambda v: "x" if v is None else None


def changed(document: dict[str, Any], path: Path_, change: Change) -> dict[str, Any]:
    document = orjson.loads(orjson.dumps(document))
    *above, last = path
    value: Any = document
    for name in above:
        value = value[name]
    value[last] = change(value[last])
    return document


def value_at(document: Any, path: Path_) -> Any:
    try:
        for name in path:
            document = document[name]
    except (TypeError, LookupError):
        return None
    return document


@pytest.mark.parametrize("path", [COMPLETE, REDACTED, STAMPED], ids=lambda path: path.stem)
def test_vector(path: Path) -> None:
    """A bundle of an earlier version no longer verifies, or the same events make another file."""
    assert runpy.run_path(str(BUNDLES.parent / "make.py"))["bundles"]()[path.name] == path.read_bytes()
    assert problems(path.read_bytes()) == []
    assert problems(path.read_bytes(), KEYS[:1]) == []


def test_vectors_are_unchanged() -> None:
    """The files that other implementations are compared with were edited."""
    for directory, expected in (
        (
            BUNDLES,
            {
                "0001-complete.json": "cbed13ee1f8f5454",
                "0002-redacted.json": "33096b26cba63038",
                "0003-timestamp.json": "98ad5947447ccccf",
                "keys.txt": "aede958391c0cc19",
                "timestamp.pem": "fbb74e19138da3e4",
                "timestamp.tst": "db229ce2c572e517",
            },
        ),
        (
            CONTINUED,
            {
                "0001-export.ndjson": "deb31a6226d2192f",
                "0002-export.csv": "0ca0e69e7b6b1e7c",
                "0003-bundle.json": "c492e3ecc388b056",
                "keys.txt": "e5723c8978418edd",
            },
        ),
    ):
        digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in directory.iterdir()}
        assert digests == expected


def test_vector_of_a_timestamp() -> None:
    """The timestamp of the vector is not verified, or one of another note is accepted."""
    trusted = read_certificates(BUNDLES / "timestamp.pem")
    found = check_bundle(STAMPED.read_bytes(), KEYS, trusted)
    assert (found.problems, "its first 10 events existed at 2026-11-29T" in "\n".join(found.summary)) == ([], True)
    content, _ = parts(STAMPED.read_bytes())
    content["logs"][0]["timestamps"][0] |= {"checkpoint": content["logs"][0]["checkpoint"], "consistency": []}
    (problem,) = check_bundle(signed_again(content), KEYS, trusted).problems
    assert "timestamps[0]" in problem


def test_vectors_of_two_logs() -> None:
    """An export or a bundle over two logs no longer verifies, with the key of the second alone, or the same events make another file."""
    made = runpy.run_path(str(BUNDLES.parent / "make.py"))["continued"]()
    keys = str(CONTINUED / "keys.txt")
    for name, content in made.items():
        assert (CONTINUED / name).read_bytes() == content
        if name != "keys.txt":
            assert check_files([CONTINUED / name], keys).problems == [], name
            assert check_files([CONTINUED / name], (CONTINUED / "keys.txt").read_text().split()[0]).problems == [], name


def test_nothing_can_be_changed() -> None:
    """Somebody without the log's key changes, adds or removes a member, anywhere, and the file verifies."""
    content, envelope = parts(COMPLETE.read_bytes())
    for at in paths(content):
        file = written(changed(content, at, next(changes(value_at(content, at)))), envelope)
        assert problems(file), at
    for at in paths(envelope):
        for change in changes(value_at(envelope, at)):
            assert problems(written(content, changed(envelope, at, change))), at


def test_timestamp_of_no_checkpoint() -> None:
    """A timestamp of a text that is no checkpoint ends the verification before it says what is wrong with the file."""
    content, envelope = parts(COMPLETE.read_bytes())
    content["logs"][0]["timestamps"] = [{"checkpoint": "x", "consistency": [], "token": ""}]
    found = problems(written(content, envelope))
    assert any("timestamps[0]" in one for one in found)
    assert any("something in the file was changed" in one for one in found)


WORDS = {"page", "not_covered", "columns", "unproved"}
"""Members that nobody but the manifest's signer speaks for; the same is true of the numbers of LISTED, and of what is masked."""
LISTED = {("evidence",), ("notifications",), ("redacted",), ("events", 2, "redacted")}


@pytest.mark.parametrize("path", [COMPLETE, REDACTED], ids=lambda path: path.stem)
def test_whoever_signs_cannot_change_what_is_proved(path: Path) -> None:
    """Somebody with the log's key changes an event, its place, a link, a gap or an erasure, signs again, and the file verifies."""
    content, _ = parts(path.read_bytes())
    assert problems(signed_again(content)) == []
    for at in paths(content):
        if not WORDS & set(at) and at not in LISTED:
            for change in changes(value_at(content, at)):
                assert problems(signed_again(changed(content, at, change))), at


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"manifest":{"p', b'"events":[],\n"manifest":{"p'),
        (b'"manifest":{', b'"manifest":{},"manifest":{'),
        (b"}}\n", b'},"events":[]}\n'),
        (b'"redacted":false,\n', b'"redacted":false,\n"redacted":false,\n'),
        (b'"seam":null', b'"seam":null,"seam":null'),
        (b"}}\n", b"}}\n\n"),
        (b"}}\n", b"}}"),
        (b"}}\n", b"}}{}\n"),
        (b'{"format"', b'\xef\xbb\xbf{"format"'),
        (b"No event", b"No \xff event"),
        (b'"size":13', b'"size":13.0'),
        (b'"size":13', b'"size":"13"'),
        (b'"size":13', b'"size":NaN'),
        (b"bundle/v1", b"bundle/v2"),
    ],
)
def test_not_a_bundle(old: bytes, new: bytes) -> None:
    """Two readers can find different things in one file, and it verifies."""
    file = COMPLETE.read_bytes()
    head, found, tail = file.rpartition(old)
    assert found
    assert problems(head + new + tail)


def test_cut_file() -> None:
    """A file that was cut verifies, or looks like another kind of file."""
    file = COMPLETE.read_bytes()
    for end in (*range(60, len(file), 397), len(file) - 1):
        assert problems(file[:end]), end


def test_keys() -> None:
    """A bundle verifies by a key that did not sign it, or a wrong cosignature of a witness passes."""
    stranger = PublicKey(LOG, Ed25519PrivateKey.generate().public_key().public_bytes_raw())
    assert any("wrong key" in one for one in problems(COMPLETE.read_bytes(), [stranger]))
    assert any("wrong key" in one for one in problems(COMPLETE.read_bytes(), KEYS[1:]))
    content, _ = parts(COMPLETE.read_bytes())
    note: str = content["logs"][0]["checkpoint"]
    *above, line = note.removesuffix("\n").split("\n")
    content["logs"][0]["checkpoint"] = "\n".join([*above, f"{line[:-10]}AAAAAA{line[-4:]}\n"])
    assert any("by one of the keys, is wrong" in one for one in problems(signed_again(content)))
    assert problems(signed_again(content), KEYS[:1]) == []
