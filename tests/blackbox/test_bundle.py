"""What somebody gets who takes all about one remediation out of the service, with `datastorage export` or by hand."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.events import make_event
from tests.services import ROOT, Service
from tests.waiting import until

AUDIT = "/api/v1/audit"


def run(*arguments: str) -> tuple[int, str]:
    """Exit code and output of a command that has nothing but its arguments."""
    command = [sys.executable, "-m", "app", *arguments]
    done = subprocess.run(command, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def one(service: Callable[..., Service], tmp_path: Path) -> Service:
    key = Ed25519PrivateKey.generate()
    path = tmp_path / "checkpoint.pem"
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return service(checkpoint_key_file=path, audit_exports=True)


def test_from_a_service_to_a_verdict(one: Service, tmp_path: Path) -> None:
    """The file that a command fetches does not verify offline, lacks something, or the log does not record who took it."""
    with httpx.Client(base_url=one.url, timeout=30) as client:
        payload = (
            '{"event_type":"orchestrator.lifecycle.started","rr_name":"rr","namespace":"n","big":18446744073709551615}'
        )
        for correlation_id in ("rr-1", "rr-1", "team/bundle", "team"):
            event = json.dumps(make_event(correlation_id=correlation_id) | {"event_data": 0})
            body = event.replace('"event_data": 0', f'"event_data": {payload}')
            headers = {"Content-Type": "application/json"}
            client.post(f"{AUDIT}/events", content=body, headers=headers).raise_for_status()
        hold = {"correlation_id": "rr-1", "reason": "case 7"}
        client.post(f"{AUDIT}/legal-hold", json=hold).raise_for_status()
        sent = {"remediation_id": "rr-1", "notification_id": "n-1", "recipient": "ada@example.test", "channel": "email"}
        sent |= {"message_summary": "approval needed", "status": "sent", "sent_at": "2026-11-29T10:00:00Z"}
        client.post(f"{AUDIT}/notifications", json=sent).raise_for_status()

        file, keys = tmp_path / "rr-1.json", tmp_path / "keys"
        code, printed = run("export", "rr-1", "-o", str(file), "--url", one.url)
        assert (code, "2 event(s) and 1 notification(s) of rr-1" in printed, "verify-export" in printed) == (
            0,
            True,
            True,
        )
        assert [path.name for path in tmp_path.glob("*rr-1.json*")] == ["rr-1.json"]
        keys.write_text(client.get("/tlog/key").text)
        code, printed = run("verify-export", str(file), "--key", str(keys))
        assert (code, printed.split("\n")[0]) == (0, "the bundle is complete and unchanged"), printed
        document = json.loads(file.read_bytes())
        assert '"big":18446744073709551615' in document["events"][0]["committed"]
        assert document["notifications"][0]["columns"]["recipient"] == "ada@example.test"
        assert "case 7" in printed
        assert "notifications: 1, 1 of them with a digest in the log" in printed
        assert "case 7" in "\n".join(document["page"])

        file.write_bytes(file.read_bytes().replace(b"case 7", b"case 8", 1))
        code, printed = run("verify-export", str(file), "--key", str(keys))
        assert (code, "something in the file was changed" in printed) == (1, True)

        def recorded() -> list[dict[str, object]]:
            parameters = {"event_type": "datastorage.export.created"}
            return [event["event_data"] for event in client.get(f"{AUDIT}/events", params=parameters).json()["data"]]

        [export] = recorded()
        assert (export["format"], export["query_filters"], export["event_count"]) == (
            "bundle",
            {"correlation_id": "rr-1"},
            2,
        )
        redacted = until(lambda: covered(client, "rr-1/bundle?redact_pii=true"))
        assert b"ada@example" not in redacted.content
        assert redacted.headers["content-type"] == "application/json"
        assert recorded()[0]["file_sha256"] == hashlib.sha256(redacted.content).hexdigest()

        # An id may end as the route does.
        assert until(lambda: covered(client, "team%2Fbundle/bundle")).json()["correlation_id"] == "team/bundle"
        assert until(lambda: covered(client, "team/bundle")).json()["correlation_id"] == "team"
        timeline = client.get(f"{AUDIT}/correlations/team%2Fbundle").json()
        assert (timeline["correlation_id"], timeline["event_count"]) == ("team/bundle", 1)
        assert client.get(f"{AUDIT}/correlations/team%2Fbundle%0A").status_code == 404

        code, printed = run("export", "rr-nobody", "-o", str(tmp_path / "nobody"), "--url", one.url)
        assert (code, "There is nothing about a correlation rr-nobody" in printed) == (2, True)
        assert not (tmp_path / "nobody").exists()


def covered(client: httpx.Client, path: str) -> httpx.Response | None:
    """The answer, once a checkpoint covers what is in it."""
    answer = client.get(f"{AUDIT}/correlations/{path}")
    if answer.status_code == 503:
        assert answer.headers["retry-after"] == "1"
        return None
    return answer.raise_for_status()
