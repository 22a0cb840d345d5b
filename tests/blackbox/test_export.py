"""What an auditor gets who takes events out of the service."""

import base64
import csv
import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.events import make_event
from tests.services import ROOT, Service

EVENTS = "/api/v1/audit/events"
EXPORT = "/api/v1/audit/export"
LOG = "test.example/datastorage"
EVENT_KEYS = {
    *("event_id", "version", "event_type", "event_timestamp", "event_category", "event_action", "event_outcome"),
    *("correlation_id", "event_data", "event_hash", "previous_event_hash", "hash_chain_valid", "legal_hold"),
}
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
    import hashlib

    key_id = hashlib.sha256(LOG.encode() + b"\n" + public).hexdigest()[:8]
    (tmp_path / "key").write_text(f"{LOG}+{key_id}+{base64.b64encode(public).decode()}\n")
    return path


@pytest.fixture
def client(service: Callable[..., Service], signing_key: Path) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service(checkpoint_key_file=signing_key).url, timeout=30) as client:
        yield client


def post(client: httpx.Client, *correlations: str, **members: Any) -> list[str]:
    """One event for each of `correlations`, in this order; their ids."""
    posted = [client.post(EVENTS, json=make_event(correlation_id=c, **members)) for c in correlations]
    return [answer.raise_for_status().json()["event_id"] for answer in posted]


def verify_export(tmp_path: Path, content: bytes, key: Path | None = None) -> tuple[int, str]:
    """Exit code and output of `datastorage verify-export`, without any setting of the service."""
    file = tmp_path / "export"
    file.write_bytes(content)
    command = [sys.executable, "-m", "app", "verify-export", str(file), "--key", str(key or tmp_path / "key")]
    done = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_smoke(client, tmp_path):
    post(client, "a", "b", "a")
    x = client.get(EXPORT)
    print(x.status_code, json.dumps(x.json(), indent=1)[:3000])
    for f in ("ndjson","csv"):
        x = client.get(EXPORT, params={"format": f})
        print(x.text)
        print(verify_export(tmp_path, x.content))
        x = client.get(EXPORT, params={"format": f, "redact_pii": "true"})
        print(x.text[:1000])
        print(verify_export(tmp_path, x.content))
    assert 0
