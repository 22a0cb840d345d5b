"""Files that two readers understand differently, or that have texts which no signature is over."""

import base64
import hashlib
import io
from pathlib import Path
from typing import Any
from uuid import UUID

import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from app.errors import Fatal
from app.events.canonical import canonical, loads_strict
from app.export.certificate import ExportKeyPair, detached_signature, read_or_create_key_pair
from app.export.check import check, check_files, check_page
from app.export.file import MEMBERS, event_record, header_record, manifest_record
from app.export.manifest import Manifest, key_id, sign_manifest
from app.export.result import CheckResult
from app.tlog import note
from app.tlog.keys import SigningKey
from app.tlog.proof import verify_proof_file

LOG = "test.example/datastorage"
PRIVATE = Ed25519PrivateKey.generate()
KEY = SigningKey(PRIVATE, note.PublicKey(LOG, PRIVATE.public_key().public_bytes_raw()))

AMBIGUOUS = [
    (b'{"a":1,"a":2}', "'a' twice"),
    (b'{"a":1,"\\u0061":1}', "'a' twice"),
    (b'[{"b":{"a":"x","c":[],"a":"x"}}]', "'a' twice"),
    (b'{"a":1}{"a":1}', "trailing|Extra data|unexpected"),
    (b'{"a":1} x', "trailing|Extra data|unexpected"),
    (b'{"a":NaN}', "NaN"),
    (b'{"a":-Infinity}', "Infinity"),
    (b'["\\ud800"]', "lone surrogates"),
    (b'{"a":1e400,"a":1e400}', "'a' twice"),
    (b"[" * 5000 + b"]" * 4999, "brackets"),
    (b"[" * 5000 + b"1 2" + b"]" * 5000, "deep"),
    (b"[" * 5000 + b'{"a":1,"a":1}' + b"]" * 5000, "deep"),
]


@pytest.mark.parametrize(("body", "words"), AMBIGUOUS, ids=range(len(AMBIGUOUS)))
def test_ambiguous_json(body: bytes, words: str) -> None:
    """A verifier finds one value in a file, and the reader beside it another one."""
    with pytest.raises(ValueError, match=words):
        loads_strict(body)


@pytest.mark.parametrize(
    "body", [b' {"a": 1, "b": {"a": [1e400, 0.1000000000000000055]}}\n', b"[" * 5000 + b"]" * 5000, b'"\\ud83d\\ude00"']
)
def test_unambiguous_json(body: bytes) -> None:
    """What anybody may have written is refused for its form."""
    assert canonical(loads_strict(body))


# The signed page.


@pytest.fixture(scope="module")
def signing(tmp_path_factory: pytest.TempPathFactory) -> ExportKeyPair:
    return read_or_create_key_pair(tmp_path_factory.mktemp("certificate") / "pair")


@pytest.fixture(scope="module")
def page(signing: ExportKeyPair) -> dict[str, Any]:
    """A page as the service signs it, with the signature once more."""
    answer: dict[str, Any] = {
        "events": [{"event_id": "e-1"}],
        "export_metadata": {"exported_by": "ada"},
        "hash_chain_verification": {"broken_chain_events": 0},
    }
    signature = base64.b64encode(signing.sign(hashlib.sha256(canonical(answer)).digest())).decode()
    answer["export_metadata"]["signature"] = signature
    return answer | {"detached_signature": detached_signature(signing.fingerprint, signature)}


def verdict(signing: ExportKeyPair, body: bytes) -> str:
    return "; ".join(check_page(body, signing.pem.decode()).problems)


def test_page(signing: ExportKeyPair, page: dict[str, Any]) -> None:
    """The service's own page is refused."""
    assert verdict(signing, orjson.dumps(page)) == ""
    assert verdict(signing, orjson.dumps({name: page[name] for name in page if name != "detached_signature"})) == ""


def test_second_events(signing: ExportKeyPair, page: dict[str, Any]) -> None:
    """A reader that uses the first of two members shows events that nobody signed."""
    body = orjson.dumps(page)
    forged = b'{"events":[{"event_id":"forged"}],' + body[1:]
    assert "'events' twice" in verdict(signing, forged)
    inner = body.replace(b'"exported_by":"ada"', b'"exported_by":"eve","exported_by":"ada"')
    assert "'exported_by' twice" in verdict(signing, inner)
    assert verdict(signing, body + body) != ""


@pytest.mark.parametrize("text", ["any text", "", None, 1, []])
def test_detached_signature(signing: ExportKeyPair, page: dict[str, Any], text: object) -> None:
    """A page is called valid beside a signature that is not one."""
    assert "detached_signature is not" in verdict(signing, orjson.dumps(page | {"detached_signature": text}))


def test_signature_with_other_characters(signing: ExportKeyPair, page: dict[str, Any]) -> None:
    """Text is hidden between the characters of a signature."""
    metadata = page["export_metadata"]
    for other in (metadata["signature"] + "!approved!", metadata["signature"][:8] + "\n" + metadata["signature"][8:]):
        forged = page | {"export_metadata": metadata | {"signature": other}}
        del forged["detached_signature"]
        assert verdict(signing, orjson.dumps(forged)) != ""


def test_page_beside_another(signing: ExportKeyPair, page: dict[str, Any], tmp_path: Path) -> None:
    """Of two files only the first is looked at, and both seem verified."""
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(orjson.dumps(page))
    certificate = tmp_path / "certificate"
    certificate.write_bytes(signing.pem)
    assert check_files([tmp_path / "one"], str(certificate)).problems == []
    with pytest.raises(Fatal, match="verify each alone"):
        check_files([tmp_path / "one", tmp_path / "two"], str(certificate))


# Files with a manifest.


def envelope(form: Any = "ndjson", content: bytes = b"") -> dict[str, Any]:
    manifest = Manifest(
        *(UUID(int=1), 1, form, False, {}, "2026-11-29T00:00:00.000000Z", "ada", LOG, 0, 0, 0, 0, 0),
        *(None, None, None, None, hashlib.sha256(content).hexdigest(), None, None, None),
    )
    signed: dict[str, Any] = orjson.loads(sign_manifest(manifest, KEY))
    return signed


def result(content: bytes) -> CheckResult:
    return check([io.BytesIO(content)], [KEY.public])


def problems(content: bytes) -> str:
    return "; ".join(result(content).problems)


def test_manifest() -> None:
    """The service's own file is refused."""
    assert problems(manifest_record("ndjson", orjson.dumps(envelope()))) == ""
    header = header_record("csv")
    assert problems(header + manifest_record("csv", orjson.dumps(envelope("csv", header)))) == ""


def test_text_beside_a_manifest() -> None:
    """A manifest is called valid beside words that nobody signed."""
    whole = envelope()
    assert "note beside what is signed" in problems(orjson.dumps(whole | {"note": "approved"}) + b"\n")
    whole["signatures"][0]["by"] = "the auditor"
    assert "by beside what is signed" in problems(orjson.dumps(whole) + b"\n")
    twice = orjson.dumps(envelope())[:-1] + b',"signatures":[]}\n'
    assert "'signatures' twice" in problems(twice)
    header = header_record("csv")
    record = manifest_record("csv", orjson.dumps(envelope("csv", header)))
    assert "empty fields" in problems(header + record.replace(b",,", b",approved,", 1))


def test_wrong_signature_under_the_keys_name() -> None:
    """A second signature by the log's key is not one, and nobody looks."""
    whole = envelope()
    whole["signatures"].append({"keyid": key_id(KEY.public), "sig": base64.b64encode(bytes(64)).decode()})
    assert "wrong signature under the name" in problems(orjson.dumps(whole) + b"\n")
    whole["signatures"][1]["keyid"] = "another+00000000"
    assert problems(orjson.dumps(whole) + b"\n") == ""


def test_record_with_a_member_twice() -> None:
    """A record has a second payload, which readers show that use the first one."""
    record = event_record("ndjson", dict.fromkeys(MEMBERS))
    assert "'event_data' twice" in problems(b'{"event_data":{"amount":1},' + record[1:])
    cells = event_record("csv", dict.fromkeys(MEMBERS) | {"event_data": orjson.Fragment(b'{"a":1,"a":2}')})
    assert "'a' twice" in problems(header_record("csv") + cells)


def test_proof_with_a_member_twice() -> None:
    """An opened proof shows another payload to readers that use the first member."""
    with pytest.raises(note.MalformedNote, match="'committed' twice"):
        verify_proof_file(b'{"committed":{},"proof":"","salt":null,"committed":null}', [KEY.public])
