"""What an auditor gets who takes events out of the service."""

import asyncio
import base64
import csv
import hashlib
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import rfc8785
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests import databases
from tests.events import make_event
from tests.services import ROOT, Service
from tests.waiting import until

EVENTS = "/api/v1/audit/events"
EXPORT = "/api/v1/audit/export"
LOG = "test.example/datastorage"
UNCOMPRESSED = {"Accept-Encoding": "identity"}
"""Of clients that leave an export unread: with gzip it would fit into the buffers on the way."""
EVENT_KEYS = {
    *("event_id", "version", "event_type", "event_timestamp", "event_category", "event_action", "event_outcome"),
    *("correlation_id", "event_data", "event_hash", "previous_event_hash", "hash_chain_valid", "legal_hold"),
}
WHOLE_SECONDS = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
METADATA_KEYS = {
    *("export_timestamp", "export_format", "query_filters", "total_events", "signature", "signature_algorithm"),
    *("certificate_fingerprint", "exported_by"),
}


@pytest.fixture
def signing_key(tmp_path: Path) -> Path:
    key = Ed25519PrivateKey.generate()
    path = tmp_path / "checkpoint.pem"
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public = b"\x01" + key.public_key().public_bytes_raw()
    (tmp_path / "key").write_text(vkey(public))
    return path


def vkey(public: bytes) -> str:
    """A public key as signed-note has it."""
    key_id = hashlib.sha256(LOG.encode() + b"\n" + public).hexdigest()[:8]
    return f"{LOG}+{key_id}+{base64.b64encode(public).decode()}"


@pytest.fixture
def client(service: Callable[..., Service], signing_key: Path) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service(checkpoint_key_file=signing_key).url, timeout=30) as client:
        yield client


def post(client: httpx.Client, *correlations: str, **members: Any) -> list[str]:
    """One event for each of `correlations`, in this order; their ids."""
    posted = [client.post(EVENTS, json=make_event(correlation_id=c, **members)) for c in correlations]
    return [answer.raise_for_status().json()["event_id"] for answer in posted]


def verify_export(tmp_path: Path, content: bytes, key: Path | str | None = None) -> tuple[int, str]:
    """Exit code and output of `datastorage verify-export`, which has nothing but the file and a key."""
    file = tmp_path / "export"
    file.write_bytes(content)
    command = [sys.executable, "-m", "app", "verify-export", str(file), "--key", str(key or tmp_path / "key")]
    done = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


def test_page_as_the_contract_has_it(client: httpx.Client) -> None:
    """A client of the reference misses a member of the page, finds a null, or a member that it does not know."""
    ids = post(client, "rr-1", "rr-1")
    answer = client.get(EXPORT)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert "content-disposition" not in answer.headers
    found = answer.json()
    assert set(found) == {"export_metadata", "events", "hash_chain_verification"}
    metadata, verification = found["export_metadata"], found["hash_chain_verification"]
    assert set(metadata) == METADATA_KEYS
    assert metadata["query_filters"] == {"offset": 0, "limit": 1000}
    assert (metadata["total_events"], metadata["export_format"]) == (2, "json")
    assert (metadata["signature_algorithm"], len(metadata["certificate_fingerprint"])) == ("SHA256withRSA", 95)
    assert WHOLE_SECONDS.fullmatch(metadata["export_timestamp"])
    assert [event["event_id"] for event in found["events"]] == ids
    assert all(set(event) == EVENT_KEYS and None not in event.values() for event in found["events"])
    assert all(WHOLE_SECONDS.fullmatch(event["event_timestamp"]) for event in found["events"])
    first, second = found["events"]
    assert (first["previous_event_hash"], second["previous_event_hash"]) == ("", first["event_hash"])
    assert [event["hash_chain_valid"] for event in found["events"]] == [True, True]
    assert WHOLE_SECONDS.fullmatch(verification.pop("verification_timestamp"))
    assert verification == {
        "total_events_verified": 2,
        "valid_chain_events": 2,
        "broken_chain_events": 0,
        "chain_integrity_percentage": 100,
        "tampered_event_ids": [],
        "not_covered": ["legal_hold"],
    }


def test_empty_page(client: httpx.Client) -> None:
    """An export of nothing is null somewhere, or not whole."""
    found = client.get(EXPORT, params={"correlation_id": "nobody"}).json()
    assert (found["events"], found["hash_chain_verification"]["tampered_event_ids"]) == ([], [])
    assert found["hash_chain_verification"]["chain_integrity_percentage"] == 100
    assert found["export_metadata"]["query_filters"] == {"correlation_id": "nobody", "offset": 0, "limit": 1000}


def test_slices_are_whole(client: httpx.Client) -> None:
    """A page, a filter or a start time that leaves out the beginning of a chain makes its rest look broken."""
    times = [datetime.now(UTC) - timedelta(minutes=m) for m in (9, 8, 7, 6)]
    for time in times:
        for correlation in ("rr-1", "rr-2"):
            post(client, correlation, event_timestamp=time.isoformat())
    post(client, "rr-1", event_category="security", event_timestamp=times[0].isoformat())
    for parameters, events in (
        ({"offset": "3", "limit": "4"}, 4),
        ({"offset": "3"}, 6),
        ({"start_time": times[1].isoformat(), "end_time": times[2].isoformat()}, 4),
        ({"event_category": "security"}, 1),
        ({"event_category": "no-such-category"}, 0),
        ({"correlation_id": "rr-2"}, 4),
    ):
        found = client.get(EXPORT, params=parameters).raise_for_status().json()
        assert (len(found["events"]), found["hash_chain_verification"]["broken_chain_events"]) == (events, 0), (
            parameters
        )
        correlations = [event["correlation_id"] for event in found["events"]]
        assert correlations == sorted(correlations)
    assert found["export_metadata"]["query_filters"] == {"correlation_id": "rr-2", "offset": 0, "limit": 1000}


def test_signature_is_over_the_events(client: httpx.Client, tmp_path: Path) -> None:
    """A recipient cannot check the signature with other people's tools, or it does not see a changed event."""
    event = make_event(correlation_id="rr-1", event_type="orchestrator.approval.requested")
    event["event_data"] = {"\U0001f600": "<é>\u2028", "\ufb33": [1.5, 1e21, 0.1, None, True, 2**53 - 1], "a": {"b": -3}}
    client.post(EVENTS, json=event).raise_for_status()
    answer = client.get(EXPORT, params={"include_detached_signature": "true"})
    found = answer.json()
    detached = found.pop("detached_signature")
    signature = found["export_metadata"].pop("signature")
    lines = detached.splitlines()
    assert (lines[0], lines[-1]) == ("-----BEGIN SIGNATURE-----", "-----END SIGNATURE-----")
    assert lines[1:5] == [
        *(
            "Algorithm: SHA256withRSA",
            f"Certificate-Fingerprint: {found['export_metadata']['certificate_fingerprint']}",
        ),
        *("", signature),
    ]
    pem = client.get(f"{EXPORT}/certificate").raise_for_status().content
    certificate = x509.load_pem_x509_certificate(pem)
    assert certificate.fingerprint(SHA256()).hex(":") == found["export_metadata"]["certificate_fingerprint"]
    public = certificate.public_key()
    assert isinstance(public, RSAPublicKey)
    public.verify(base64.b64decode(signature), rfc8785.dumps(found), PKCS1v15(), SHA256())
    (tmp_path / "certificate").write_bytes(pem)
    assert verify_export(tmp_path, answer.content, tmp_path / "certificate")[0] == 0
    forged = answer.content.replace(b"orchestrator.approval.requested", b"orchestrator.approval.approved")
    code, output = verify_export(tmp_path, forged, tmp_path / "certificate")
    assert code == 1
    assert "edited" in output


def test_key_pair_is_stored(service: Callable[..., Service], tmp_path: Path) -> None:
    """After a restart nobody can tell by the fingerprint that it is the same service, or another user can read the key."""
    found = []
    for _ in range(2):
        with httpx.Client(base_url=service(signer_cert_dir=tmp_path / "pair").url, timeout=30) as client:
            found.append(client.get(EXPORT).json()["export_metadata"]["certificate_fingerprint"])
    assert len(set(found)) == 1
    assert (tmp_path / "pair" / "tls.key").stat().st_mode & 0o077 == 0


def test_bad_key_pair(service: Callable[..., Service], tmp_path: Path) -> None:
    """The service starts with a key pair that it cannot sign with, or signs exports with one that nobody knows."""
    (tmp_path / "tls.crt").write_text("no certificate")
    with pytest.raises(AssertionError, match="The key pair that signs exports cannot be read"):
        service(signer_cert_dir=tmp_path)


REFUSED = [
    ("format=xml", "format"),
    ("format=JSON", "format"),
    ("limit=0", "limit"),
    ("limit=10001", "limit"),
    ("limit=ten", "limit"),
    ("offset=-1", "offset"),
    ("offset=1.5", "offset"),
    ("start_time=yesterday", "start_time"),
    ("end_time=2026-01-31", "end_time"),
    ("end_time=2026-01-31T12:00:00+00:00", "end_time"),  # the plus sign is not encoded
    ("redact_pii=yes", "redact_pii"),
    ("include_detached_signature=yes", "include_detached_signature"),
    ("correlation_id=a%00b", "correlation_id"),
    ("event_category=%ff", "event_category"),
    ("include=everything", "include"),
    ("format=ndjson&limit=5", "limit"),
    ("format=csv&include_detached_signature=true", "include_detached_signature"),
    ("after=x", "after"),
    ("after=e30", "after"),
    ("after=e30&format=csv", "after"),
]


def test_refused(client: httpx.Client) -> None:
    """A parameter that cannot be meant is ignored, or the answer does not name it."""
    for parameters, field in REFUSED:
        answer = client.get(f"{EXPORT}?{parameters}")
        assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json"), parameters
        assert field in answer.json()["field_errors"], parameters


def test_accepted(client: httpx.Client) -> None:
    """What the reference takes is refused, or has an effect that it does not have there."""
    post(client, "rr-1", event_data=make_event()["event_data"] | {"to_phase": "ada@example.com"})
    for parameters in (
        "redact_pii=1&include_detached_signature=1",
        "redact_pii=false&unknown=x",
        "limit=&end_time=",
    ):
        found = client.get(f"{EXPORT}?{parameters}").raise_for_status().json()
        assert "detached_signature" not in found
        assert found["events"][0]["event_data"]["to_phase"] == "ada@example.com"
    assert client.get(f"{EXPORT}?limit=10000&offset=9223372036854775807").json()["events"] == []
    assert client.get(f"{EXPORT}?limit=10000&offset=9223372036854775808").status_code == 400
    assert client.post(EXPORT).status_code == 405


def test_redacted_page(client: httpx.Client) -> None:
    """What points at a person stays in a redacted page, or its shape is not the contract's."""
    personal = {
        "email": "ada.lovelace@mail.example.com",
        "ip": "10.1.2.3",
        "phone": "+49 30 1234567",
        "mobile": "(555) 123-4567",
    }
    payload = {"list": [personal, "from 192.168.0.1 by bob@example.org"], "sourceIP": ["10.9.8.7"], "email": "unknown"}
    post(client, "rr-1", event_type="orchestrator.approval.requested", event_data=payload)
    found = client.get(EXPORT, params={"redact_pii": "true"}).json()["events"][0]["event_data"]
    assert found["list"][0] == {
        "email": "a***@m***.e***.c***",
        "ip": "10.***.***.***",
        "phone": "+49-***-****",
        "mobile": "***-***-****",
    }
    assert found["list"][1] == "from 192.***.***.*** by b***@e***.o***"
    assert (found["sourceIP"], found["email"]) == (["10.***.***.***"], "unknown")


def test_file_verifies_by_itself(client: httpx.Client, tmp_path: Path) -> None:
    """An export does not verify, or one does that was cut, changed, or signed by somebody else."""
    post(client, "rr-1", "rr-2", "rr-1", "rr-1")
    for form, media_type in (("ndjson", "application/x-ndjson"), ("csv", "text/csv; charset=utf-8")):
        answer = client.get(EXPORT, params={"format": form})
        assert answer.headers["content-type"] == media_type
        code, output = verify_export(tmp_path, answer.content)
        assert (code, "complete and unchanged" in output, "4 have the hash" in output) == (0, True, True), output
    whole = client.get(EXPORT, params={"format": "ndjson"}).content
    lines = whole.splitlines(keepends=True)
    for changed, problem in (
        (b"".join(lines[:-1]), "incomplete"),
        (whole.replace(b"payments", b"billing-", 1), "edited"),
        (b"".join([*lines[:2], *lines[3:]]), "events is 3, but 4 was signed"),
    ):
        code, output = verify_export(tmp_path, changed)
        assert (code, problem in output) == (1, True), output
    public = b"\x01" + Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    code, output = verify_export(tmp_path, whole, vkey(public))
    assert (code, "wrong key" in output) == (1, True), output


def test_nothing_is_needed_but_the_file_and_the_key(client: httpx.Client, tmp_path: Path) -> None:
    """The key can only be given in one way, or a file that is no export ends in a traceback."""
    post(client, "rr-1")
    whole = client.get(EXPORT, params={"format": "ndjson"}).content
    assert verify_export(tmp_path, whole, (tmp_path / "key").read_text().strip())[0] == 0
    for odd in (b"", b"\0", b'{"payloadType":1}\n', b'{"events":['):
        code, output = verify_export(tmp_path, odd)
        assert (code in {1, 2}, "Traceback" in output) == (True, False), output


def test_csv_holds_no_formula(client: httpx.Client) -> None:
    """A spreadsheet that opens an export runs what somebody posted, or a text cannot be had again as it was."""
    odd = [
        "=1+1",
        "+1",
        "-1",
        "@SUM(A1)",
        "\t=1",
        "\r=1",
        "\n=1",
        "'=1",
        "'",
        "\uff1d1",
        'a"b',
        "a,b",
        "a\nb",
        "#manifest",
    ]
    for text in odd:
        post(client, "rr-1", error_message=text, duration_ms=-5)
    text = client.get(EXPORT, params={"format": "csv"}).content.decode()
    rows = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
    assert rows[-1]["event_id"] == "#manifest"
    cells = [cell for row in rows for cell in row.values()]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d"))]
    assert [row["error_message"].removeprefix("'") for row in rows[:-1]] == odd
    assert json.loads(rows[0]["event_data"])["rr_name"] == "rr-podcrashlooping-5f3a"


def test_every_text_comes_back(client: httpx.Client, tmp_path: Path) -> None:
    """A text that is hard to write makes an export that does not verify."""
    odd = ["", "'", "''", '"', '"\r\n"', "#manifest,", "\u2028\u0085", "\x01\x7f", "é" * 200]
    for text in odd:
        post(client, "rr-1", error_message=text, namespace=text, actor_ip="::ffff:10.0.0.1")
    for form in ("ndjson", "csv"):
        code, output = verify_export(tmp_path, client.get(EXPORT, params={"format": form}).content)
        assert (code, f"{len(odd)} have the hash" in output) == (0, True), output


@pytest.mark.every_pod
def test_own_events_only_when_asked_for(service: Callable[..., Service], signing_key: Path) -> None:
    """Exports are not recorded on an installation that wants it, or the records turn up in everybody's exports."""
    settings = {"audit_exports": True, "checkpoint_key_file": signing_key}
    with httpx.Client(base_url=service(**settings).url, timeout=30) as client:
        post(client, "rr-1")
        for form in ("json", "ndjson", "csv"):
            client.get(EXPORT, params={"format": form, "event_category": "orchestration"}).raise_for_status()
        assert len(client.get(EXPORT).json()["events"]) == 1
        own = client.get(EXPORT, params={"include": "self"}).json()["events"]
        recorded = [event["event_data"] for event in own if event["event_type"] == "datastorage.export.created"]
    assert sorted(one["format"] for one in recorded) == ["csv", "json", "json", "ndjson"]
    assert {one["event_count"] for one in recorded} == {1}
    [file] = [one for one in recorded if one["format"] == "ndjson"]
    assert file["query_filters"] == {"event_category": "orchestration"}
    assert (file["first_position"], file["last_position"]) == (0, 0)


def fill(client: httpx.Client) -> None:
    """Far more than what can be on its way between a service and its client."""
    for batch in range(4):  # each differs, or it is a resend of the first
        items = [make_event(correlation_id=f"rr-{batch}-{n % 9}", error_message="x" * 20_000) for n in range(300)]
        client.post(f"{EVENTS}/batch", json=items).raise_for_status()


def broken_off(client: httpx.Client, form: str, after_the_first: Callable[[], None]) -> bytes:
    """What is received of an export when something happens after its first piece. The client has to see it break off."""
    received = b""
    with client.stream(
        "GET", EXPORT, params={"format": form} | ({"limit": "2000"} if form == "json" else {})
    ) as answer:
        chunks = answer.iter_raw()
        received += next(chunks)
        after_the_first()
        try:
            for chunk in chunks:
                received += chunk
        except httpx.RemoteProtocolError:
            return received
    pytest.fail("the answer ended as if it were whole")


def test_service_that_dies_on_the_way(service: Callable[..., Service], signing_key: Path, tmp_path: Path) -> None:
    """An export whose service was killed in the middle ends as if it were whole, for the client or for the verifier."""
    running = service(checkpoint_key_file=signing_key)

    def kill() -> None:
        running.process.kill()
        running.process.wait()

    with httpx.Client(base_url=running.url, timeout=60, headers=UNCOMPRESSED) as client:
        fill(client)
        whole = client.get(EXPORT, params={"format": "ndjson"}).content
        received = broken_off(client, "ndjson", kill)
    assert 0 < len(received) < len(whole)
    code, output = verify_export(tmp_path, received)
    assert (code, "incomplete" in output) == (1, True), output
    assert verify_export(tmp_path, whole)[0] == 0


def test_postgres_that_dies_on_the_way(service: Callable[..., Service], database_url: str) -> None:
    """An export whose connection to Postgres was lost in the middle ends as if it were whole."""

    async def terminate() -> None:
        async with databases.connected(database_url) as connection:
            terminated = await connection.fetchval(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
                "WHERE xact_start IS NOT NULL AND datname = current_database() AND pid <> pg_backend_pid()"
            )
        assert terminated

    with httpx.Client(base_url=service().url, timeout=60, headers=UNCOMPRESSED) as client:
        fill(client)
        for form in ("json", "ndjson", "csv"):
            broken_off(client, form, lambda: asyncio.run(terminate()))
        assert client.get(EXPORT, params={"limit": "1"}).status_code == 200


def test_clients_that_go_away(service: Callable[..., Service]) -> None:
    """Exports that nobody reads any more hold their connections, so that nobody else gets one."""
    form = {"format": "ndjson"}
    with httpx.Client(base_url=service().url, timeout=60, headers=UNCOMPRESSED) as client:
        fill(client)
        whole = client.get(EXPORT, params=form, headers={"Connection": "close"}).content  # its buffers have grown large
        with client.stream("GET", EXPORT, params=form) as one, client.stream("GET", EXPORT, params=form) as other:
            unread = one.iter_raw(), other.iter_raw()  # httpx closes a connection whose iterator is gone
            assert all(next(chunks) for chunks in unread)
            refused = client.get(EXPORT, params=form)
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            assert client.get(EXPORT, params={"limit": "1"}).status_code == 200
            assert client.get(EVENTS, params={"limit": "1"}).status_code == 200
        # Both connections are closed now, most of the answers unread.
        again = until(lambda: answer if (answer := client.get(EXPORT, params=form)).is_success else None)
        assert again.content.count(b"\n") == whole.count(b"\n")
