"""Checkpoint, tiles and proofs as other people's tools get them: over HTTP, verified with nothing of the service's."""

import base64
import json
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.events import make_event
from tests.services import ROOT, Service
from tests.timestamping import TimestampAuthority, needs_openssl, serving
from tests.waiting import until

Start = Callable[..., Service]
EVENTS = "/api/v1/audit/events"


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    """A key as `openssl genpkey -algorithm ed25519` makes it."""
    pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "checkpoint.pem").write_bytes(pem)
    return tmp_path / "checkpoint.pem"


def post(service: Service, **overrides: Any) -> str:
    answer = httpx.post(service.url + EVENTS, json=make_event(**overrides))
    assert answer.status_code == 201, answer.text
    return str(answer.json()["event_id"])


def post_many(service: Service, number: int) -> None:
    answer = httpx.post(f"{service.url}{EVENTS}/batch", json=[make_event() for _ in range(number)])
    assert answer.status_code == 201, answer.text


def signed_size(service: Service, size: int) -> str:
    """The checkpoint, once it has so many leaves."""

    def checkpoint() -> str | None:
        answer = httpx.get(f"{service.url}/tlog/checkpoint")
        return answer.text if answer.status_code == 200 and int(answer.text.split("\n")[1]) >= size else None

    return until(checkpoint)


def root_of(hashes: list[bytes]) -> bytes:
    if len(hashes) < 2:
        return hashes[0]
    half = 1
    while half * 2 < len(hashes):
        half *= 2
    return sha256(b"\1" + root_of(hashes[:half]) + root_of(hashes[half:])).digest()


def split(joined: bytes) -> list[bytes]:
    return [joined[start : start + 32] for start in range(0, len(joined), 32)]


def verify_proof(file: Path, key: str, *more: str, of: str = "proof") -> subprocess.CompletedProcess[str]:
    """Run without any setting: no service, no database."""
    command = [sys.executable, "-m", "app", f"verify-{of}", str(file), "--key", key, *more]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env={"PYTHONPATH": str(ROOT)})


def test_the_checkpoint_is_signed_over_the_tiles(service: Start, key_file: Path) -> None:
    """Tiles, checkpoint and key do not fit together, so nobody outside can verify the log."""
    one = service(checkpoint_key_file=key_file)
    post_many(one, 300)
    note = signed_size(one, 300)
    text, signature = note.split("\n\n")
    origin, size, root = text.split("\n")
    full = httpx.get(f"{one.url}/tlog/tile/0/000")
    partial = httpx.get(f"{one.url}/tlog/tile/0/001.p/{int(size) - 256}")
    leaves = split(full.content) + split(partial.content)
    assert (int(size), base64.b64decode(root)) == (300, root_of(leaves))
    above = httpx.get(f"{one.url}/tlog/tile/1/000.p/1")
    assert above.content == root_of(leaves[:256])
    assert "immutable" in full.headers["Cache-Control"]
    assert "immutable" not in partial.headers["Cache-Control"]
    assert full.headers["Content-Type"] == "application/octet-stream"

    key = httpx.get(f"{one.url}/tlog/key").text.strip()
    name, key_id, encoded = key.split("+", 2)
    typed = base64.b64decode(encoded)
    signed = base64.b64decode(signature.removeprefix(f"\u2014 {origin} "))
    assert name == origin
    assert signed[:4].hex() == key_id == sha256(f"{name}\n".encode() + typed).digest()[:4].hex()
    Ed25519PublicKey.from_public_bytes(typed[1:]).verify(signed[4:], f"{text}\n".encode())


def test_other_tiles_are_not_found(service: Start) -> None:
    """A tile has two addresses, or one that does not exist yet gets an answer that caches store."""
    one = service()
    post_many(one, 5)
    for path in ("0/001", "0/000.p/6", "0/000.p/0", "0/000.p/256", "0/0", "00/000", "6/000", "0/x000/000", "0/-1", "x"):
        assert httpx.get(f"{one.url}/tlog/tile/{path}").status_code == 404, path
    assert len(httpx.get(f"{one.url}/tlog/tile/0/000.p/5").content) == 160


def test_a_proof_needs_nothing_else(service: Start, key_file: Path, tmp_path: Path) -> None:
    """A proof file cannot be verified by itself, or a changed one still is."""
    one = service(checkpoint_key_file=key_file)
    post_many(one, 40)
    event_id = post(one, actor_id="grace", event_data=make_event()["event_data"] | {"extra": 2**63})
    signed_size(one, 41)
    key = httpx.get(f"{one.url}/tlog/key").text.strip()
    answer = httpx.get(f"{one.url}{EVENTS}/{event_id}/proof")
    file = tmp_path / "event.tlog-proof"
    file.write_text(answer.text)
    proved = verify_proof(file, key)
    assert proved.returncode == 0, proved.stderr
    assert f"event {event_id} is at position 40 of a log of 41 events" in proved.stdout
    assert "grace" not in proved.stdout

    opened = httpx.get(f"{one.url}{EVENTS}/{event_id}/proof?open=true")
    document = opened.json()
    assert document["committed"]["actor_id"] == "grace"
    file.write_bytes(opened.content)
    (tmp_path / "key").write_text(f"{key}\n")
    assert '"actor_id":"grace"' in verify_proof(file, str(tmp_path / "key")).stdout

    file.write_text(json.dumps(document | {"committed": document["committed"] | {"actor_id": "eve"}}))
    assert "not the one that the record commits to" in verify_proof(file, key).stderr
    file.write_text(json.dumps(document | {"salt": "00" * 16}))
    assert verify_proof(file, key).returncode == 1
    lines = answer.text.split("\n")
    record = base64.b64decode(lines[1].removeprefix("extra "))
    lines[1] = "extra " + base64.b64encode(record.replace(b"transitioned", b"transitioneD")).decode()
    file.write_text("\n".join(lines))
    assert "is not the leaf 40" in verify_proof(file, key).stderr
    file.write_text(answer.text)
    stranger = base64.b64encode(b"\1" + bytes(32)).decode()
    assert verify_proof(file, f"x+00000000+{stranger}").returncode == 2  # no key has that checksum
    assert verify_proof(tmp_path / "missing", key).returncode == 2


def test_checkpoints_proofs_and_exports_are_signed_twice(
    service: Start, database_url: str, key_file: Path, tmp_path: Path
) -> None:
    """Nobody can tell with which keys a checkpoint was signed, or hold it to the one that no quantum computer breaks."""
    second = tmp_path / "ml-dsa.pem"
    made = subprocess.run(
        [sys.executable, "-m", "app", "checkpoint-key", str(second), "--algorithm", "ml-dsa-44"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (made.returncode, made.stdout) == (0, f"{second}\n"), made.stderr
    one = service(checkpoint_key_file=key_file, checkpoint_mldsa_key_file=second)
    event_id = post(one)
    note = signed_size(one, 1)
    assert len(note.split("\n\n")[1].splitlines()) == 2
    keys = httpx.get(f"{one.url}/tlog/key").text
    ed25519, ml_dsa = keys.split()
    proof, export = tmp_path / "event.tlog-proof", tmp_path / "export.ndjson"
    proof.write_text(httpx.get(f"{one.url}{EVENTS}/{event_id}/proof").text)
    export.write_bytes(httpx.get(f"{one.url}/api/v1/audit/export?format=ndjson&include=self").content)
    lines = [
        f"signed with {name} {'+'.join(key.split('+')[:2])}"
        for name, key in (("Ed25519", ed25519), ("ML-DSA-44", ml_dsa))
    ]
    for key, expected in ((keys, lines), (ed25519, lines[:1]), (ml_dsa, lines[1:])):
        assert [line for line in verify_proof(proof, key).stdout.splitlines() if "signed" in line] == expected
    proof.write_text("\n".join(proof.read_text().split("\n")[:-2]) + "\n")
    refused = verify_proof(proof, keys)
    assert (refused.returncode, "not signed with ML-DSA-44, although a key" in refused.stderr) == (1, True)
    assert verify_proof(proof, ml_dsa).returncode == 1
    assert verify_proof(proof, ed25519).returncode == 0

    command = [sys.executable, "-m", "app", "verify-export", str(export), "--key", keys]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
    assert {f"manifest {lines[0]}", *(f"checkpoint {line}" for line in lines)} <= set(checked.stdout.splitlines())
    command = [sys.executable, "-m", "app", "verify", "--processes", "1", "--key", keys]
    env = {"PYTHONPATH": str(ROOT), "DATASTORAGE_DATABASE_URL": database_url}
    verified = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env=env)
    assert verified.returncode == 0, verified.stdout
    assert f"2 checkpoints, 2 {lines[0]}, 2 {lines[1]}" in verified.stdout


@needs_openssl
def test_a_proof_says_when(service: Start, key_file: Path, tmp_path: Path) -> None:
    """Nobody outside can verify when an event existed, or a proof passes with the timestamp of another one."""
    with serving(TimestampAuthority(tmp_path / "tsa")) as tsa:
        one = service(checkpoint_key_file=key_file, tsa_url=tsa.url, tsa_certificates_file=tsa.issuer)
        assert httpx.get(f"{one.url}/tlog/timestamp").status_code == 404
        event_id = post(one)
        url = f"{one.url}/tlog/timestamp?size=1"
        stamped = until(lambda: answer if (answer := httpx.get(url)).status_code == 200 else None)
    assert httpx.get(f"{one.url}/tlog/timestamp").json() == stamped.json()
    assert httpx.get(f"{one.url}/tlog/timestamp?size=2").status_code == 404
    assert tsa.verify(base64.b64decode(stamped.json()["token"]), stamped.json()["checkpoint"].encode())
    key, trusted = httpx.get(f"{one.url}/tlog/key").text.strip(), ("--tsa", str(tsa.issuer))
    file = tmp_path / "file"
    file.write_bytes(stamped.content)
    assert (
        "Proved: the checkpoint of 1 events existed at 20" in verify_proof(file, key, *trusted, of="timestamp").stdout
    )

    post_many(one, 3)
    signed_size(one, 4)
    proof = httpx.get(f"{one.url}{EVENTS}/{event_id}/proof?timestamped=true&open=true")
    document = proof.json()
    assert document["timestamp"] == stamped.json()["token"]
    file.write_bytes(proof.content)
    assert "of a log of 1 events" in (shown := verify_proof(file, key, *trusted).stdout)
    assert "its checkpoint existed at 20" in shown
    assert '"actor_id"' in shown
    assert "NOT verified: its timestamp" in verify_proof(file, key).stdout
    later = httpx.get(f"{one.url}{EVENTS}/{event_id}/proof?open=true").json()
    file.write_text(json.dumps(later | {"timestamp": document["timestamp"]}))
    assert "Mismatch" in verify_proof(file, key, *trusted).stderr
    file.write_text(json.dumps(later))
    assert "it has no timestamp" in verify_proof(file, key, *trusted).stderr
    newest = httpx.get(f"{one.url}{EVENTS}?limit=1").json()["data"][0]["event_id"]
    refused = httpx.get(f"{one.url}{EVENTS}/{newest}/proof?timestamped=true")
    assert (refused.status_code, "no timestamp yet" in refused.json()["detail"]) == (404, True)


def test_what_has_no_proof_says_why(service: Start, key_file: Path) -> None:
    """A client that asks for a proof cannot tell an unknown event from one that will be signed in a second."""
    one = service(checkpoint_key_file=key_file)
    unknown = httpx.get(f"{one.url}{EVENTS}/00000000-0000-4000-8000-000000000000/proof")
    assert unknown.status_code == 404
    assert httpx.get(f"{one.url}{EVENTS}/x/proof").status_code == 400
    post(one)
    signed_size(one, 1)
    unknown = httpx.get(f"{one.url}{EVENTS}/00000000-0000-4000-8000-000000000000/proof")
    assert "There is no event" in unknown.json()["detail"]
    early = post(one)
    answer = httpx.get(f"{one.url}{EVENTS}/{early}/proof")
    assert answer.status_code in {200, 503}
    assert answer.status_code == 200 or answer.headers["Retry-After"] == "1"
    signed_size(one, 2)
    assert httpx.get(f"{one.url}{EVENTS}/{early}/proof").status_code == 200


def test_consistency_of_two_sizes(service: Start, key_file: Path) -> None:
    """A client that kept an old checkpoint cannot learn whether the log still begins with it."""
    one = service(checkpoint_key_file=key_file)
    post_many(one, 6)
    signed_size(one, 6)
    post(one)
    signed_size(one, 7)
    leaves = split(httpx.get(f"{one.url}/tlog/tile/0/000.p/7").content)
    answer = httpx.get(f"{one.url}/api/v1/audit/consistency?from=6").json()
    hashes = [base64.b64decode(line) for line in answer["proof"]]
    assert hashes == [root_of(leaves[4:6]), leaves[6], root_of(leaves[:4])]
    assert (answer["from"], answer["to"]) == (6, 7)
    assert answer["checkpoint"] == httpx.get(f"{one.url}/tlog/checkpoint").text
    assert httpx.get(f"{one.url}/api/v1/audit/consistency?from=2&to=6").json()["to"] == 6
    for query in ("from=8", "from=3&to=2", "from=0&to=8", "from=-1", "", "from=x"):
        assert httpx.get(f"{one.url}/api/v1/audit/consistency?{query}").status_code == 400, query


def test_replicas_sign_one_log(service: Start, key_file: Path) -> None:
    """Two replicas sign logs that contradict each other, or one of them serves what the other does not know."""
    replicas = [service(checkpoint_key_file=key_file) for _ in range(2)]
    seen: dict[int, str] = {}
    for number in range(6):
        post(replicas[number % 2])
        note = signed_size(replicas[1 - number % 2], number + 1)
        size, root = note.split("\n")[1:3]
        assert seen.setdefault(int(size), root) == root
    post_many(replicas[0], 300)
    assert signed_size(replicas[0], 306) == signed_size(replicas[1], 306)


def test_without_a_key_it_serves_and_says_so(service: Start) -> None:
    """A service without a key does not start, or leaves its operator believing that checkpoints are signed."""
    one = service()
    event_id = post(one)
    for path in ("/tlog/checkpoint", "/tlog/key", f"{EVENTS}/{event_id}/proof", "/api/v1/audit/consistency?from=0"):
        answer = httpx.get(one.url + path)
        assert answer.status_code == 404, path
        assert "key" in answer.json()["detail"].lower()
    assert "DATASTORAGE_CHECKPOINT_KEY_FILE" in one.log.read_text()


def test_a_closed_log_shows_nothing(service: Start, key_file: Path) -> None:
    """Sizes and hashes of the log are shown although the operator closed it."""
    one = service(checkpoint_key_file=key_file, tlog_public=False)
    event_id = post(one)
    until(lambda: httpx.get(f"{one.url}{EVENTS}/{event_id}/proof").status_code == 200 or None)
    for path in ("checkpoint", "key", "tile/0/000.p/1"):
        assert httpx.get(f"{one.url}/tlog/{path}").status_code == 404


def test_checkpoints_are_copied_outside(service: Start, key_file: Path, tmp_path: Path) -> None:
    """The file that would show a rolled-back database stays empty."""
    file = tmp_path / "checkpoints"
    one = service(checkpoint_key_file=key_file, checkpoint_file=file)
    post(one)
    note = signed_size(one, 1)
    until(lambda: (file.exists() and file.read_text() == f"{note}\n") or None)


def test_silence_is_recorded(service: Start) -> None:
    """A log in which nothing happened for an hour looks like one whose end was cut off."""
    one = service(heartbeat_interval_s=1)
    beat = until(lambda: httpx.get(f"{one.url}{EVENTS}?event_type=datastorage.log.heartbeat").json()["data"] or None)[
        -1
    ]
    assert beat["event_data"]["tree_size"] == 0
    assert beat["event_category"] == "security"
