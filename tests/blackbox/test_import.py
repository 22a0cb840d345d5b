"""Events from elsewhere, with their own times: the import route, and `datastorage import` with exports and plain files."""

import asyncio
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from app.events.canonical import canonical
from app.events.ids import EPOCH, derived_event_id
from tests import databases
from tests.blackbox.test_access import bearer, write_tokens
from tests.events import make_event
from tests.services import ROOT, Service

EVENTS, IMPORT, EXPORT = "/api/v1/audit/events", "/api/v1/audit/import", "/api/v1/audit/export"
NOW = datetime.now(UTC)


@pytest.fixture
def client(service: Callable[..., Service]) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service(processes=2).url, timeout=30) as client:
        yield client


def old(days: int, **members: Any) -> dict[str, Any]:
    return make_event(event_timestamp=(NOW - timedelta(days=days)).isoformat(), **members)


def send(client: httpx.Client, events: list[Any], **headers: str) -> list[dict[str, Any]]:
    answer = client.post(IMPORT, json=events, headers=headers)
    assert answer.status_code == 207, answer.text
    items: list[dict[str, Any]] = answer.json()["items"]
    return items


def command(client: httpx.Client, *files: Path, portion: int = 3) -> subprocess.CompletedProcess[str]:
    arguments = ["import", *map(str, files), "--url", str(client.base_url), "--portion", str(portion)]
    return subprocess.run(
        [sys.executable, "-m", "app", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


def stored(client: httpx.Client, **filters: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.get(EVENTS, params={"limit": "1000"} | filters).json()["data"]
    return found


def test_own_times_and_marks(client: httpx.Client) -> None:
    """An old event is refused, gets another time, or cannot be told from one that was reported when it happened."""
    import_id, parent = str(uuid4()), str(uuid4())
    ages = (3, 400, 800, 2000)
    events = [old(age, correlation_id="rr-1") for age in ages]
    events += [
        old(500, correlation_id="rr-1", event_id=parent),
        old(500, correlation_id="rr-1", parent_event_id=parent),
    ]
    events += [old(500, correlation_id="rr-1", parent_event_id=str(uuid4()))]
    items = send(client, events, **{"Import-Id": import_id})
    assert [item["status"] for item in items] == [201] * 7, items
    again = send(client, events, **{"Import-Id": import_id})
    assert again == items
    assert send(client, list(reversed(events)))[0]["event_id"] == items[-1]["event_id"]
    times = {event["event_id"]: event["event_timestamp"] for event in stored(client, correlation_id="rr-1")}
    assert len(times) == 7
    for item, event in zip(items, events, strict=True):
        assert datetime.fromisoformat(times[item["event_id"]]) == datetime.fromisoformat(event["event_timestamp"])
    timeline = client.get("/api/v1/audit/correlations/rr-1").json()["events"]
    for event in timeline:
        mark = event["event_metadata"]["imported"]
        assert mark["by"] == "anonymous"
        assert datetime.fromisoformat(mark["at"]) >= NOW
    verified = client.post("/api/v1/audit/verify-chain", json={"correlation_id": "rr-1"}).json()
    assert (verified["is_valid"], verified["total_events"]) == (True, 7)
    told = stored(client, event_type="datastorage.import.stored")
    assert [one["event_data"]["event_count"] for one in told] == [7, 7]  # the second for the portion in another order
    assert told[1]["correlation_id"] == f"datastorage:import:{import_id}"


def test_refused(client: httpx.Client) -> None:
    """An event is imported whose time is unknown, in the future, or beyond its retention, so that a purged month comes back; or good ones are lost with it."""
    events = [
        make_event(event_timestamp="0001-01-01T00:00:00Z"),
        old(2600),
        old(-1),
        old(40, retention_days=30),
        old(20, retention_days=30),
        old(400, event_outcome="x"),
        {"event_type": "datastorage.hold.placed"},
        old(400),
    ]
    assert [item["status"] for item in send(client, events)] == [400, 400, 400, 400, 201, 400, 400, 201]
    assert [item["status"] for item in send(client, events[:2])] == [400, 400]
    assert len(stored(client)) == 2


def test_id_that_somebody_has_chosen(client: httpx.Client) -> None:
    """Who knows what will be imported suppresses it with an event of his own under its id, or makes two events have one id."""
    event = old(3, correlation_id="rr-1")
    time = datetime.fromisoformat(event["event_timestamp"])
    event_id = derived_event_id(time, "", ("import", hashlib.sha256(canonical(event)).hexdigest()), 0)
    client.post(EVENTS, json=make_event(correlation_id="rr-2", event_id=str(event_id))).raise_for_status()
    [item, good] = send(client, [event, old(4)])
    assert (item["status"], good["status"]) == (409, 201)
    assert "differs in event_timestamp, " in item["detail"]
    assert len(stored(client, correlation_id="rr-1")) == 0


def test_import_that_cannot_be_recorded(client: httpx.Client) -> None:
    """Who takes the id of the self event beforehand imports events of which the log does not tell."""
    events = [old(3), old(4)]
    digest = hashlib.sha256(canonical(events)).hexdigest()
    taken = derived_event_id(EPOCH, "anonymous", ("import", digest), len(events))
    client.post(EVENTS, json=make_event(event_id=str(taken))).raise_for_status()
    answer = client.post(IMPORT, json=events)
    assert (answer.status_code, answer.json()["value"]) == (409, str(taken))
    assert len(stored(client)) == 1


def test_role(service: Callable[..., Service], tmp_path: Path) -> None:
    """Whoever may post events, or place holds, may also write history."""
    tokens = write_tokens(tmp_path / "tokens.yaml", writer="writer", admin="admin", importer="importer")
    with httpx.Client(base_url=service(auth="tokens", tokens_file=tmp_path / "tokens.yaml").url, timeout=30) as client:
        statuses = {
            name: client.post(IMPORT, json=[old(9)], headers=bearer(token)).status_code
            for name, token in tokens.items()
        }
        assert statuses == {"writer": 403, "admin": 403, "importer": 207}
        posted = client.post(EVENTS, json=make_event(), headers=bearer(tokens["importer"]))
        assert posted.status_code == 403
        [told] = client.get(
            EVENTS, params={"event_type": "datastorage.import.stored"}, headers=bearer(tokens["admin"])
        ).json()["data"]
        assert (told["actor_id"], told["event_data"]["imported_by"]) == ("importer", "importer")


def test_command(client: httpx.Client, tmp_path: Path) -> None:
    """A file is imported in part without a word, or twice when the command is called again."""
    file = tmp_path / "history.ndjson"
    events = [old(10 + i) for i in range(8)]
    lines = [json.dumps(event) for event in events]
    lines[2:2] = [
        "",
        "not json",
        json.dumps(old(5) | {"event_outcome": "x"}),
        json.dumps(old(5) | {"error_message": "\0"}),
    ]
    file.write_text("\n".join(lines))
    done = command(client, file)
    assert (done.returncode, done.stderr) == (1, "")
    assert "8 events stored, 3 refused" in done.stdout
    refused = [json.loads(line) for line in (tmp_path / "history.ndjson.refused.ndjson").read_text().splitlines()]
    assert sorted(one["record"] for one in refused) == [4, 5, 6]
    assert next(one for one in refused if one["record"] == 5)["field_errors"]
    assert "8 events stored, 3 refused" in command(client, file, portion=5).stdout
    assert len(stored(client)) == 8
    # As after an interruption: it continues behind what is done, if the file is the same.
    status, state = file.stat(), tmp_path / "history.ndjson.import.json"
    progress = {"import_id": str(uuid4()), "records": 10, "stored": 60, "refused": 3}
    state.write_text(json.dumps(progress | {"file": f"{status.st_size} {status.st_mtime_ns}"}))
    assert "62 events stored, 3 refused" in command(client, file).stdout
    state.write_text(json.dumps(progress | {"file": "another"}))
    assert "8 events stored, 3 refused" in command(client, file).stdout


@pytest.mark.parametrize("form", ["ndjson", "csv"])
def test_exports(
    service: Callable[..., Service], server_url: str, template_database: str, tmp_path: Path, form: str
) -> None:
    """An export cannot be imported into another log, what comes out there is another event, or its own log stores it again."""
    other_url = asyncio.run(databases.create(server_url, template=template_database))
    file = tmp_path / f"export.{form}"
    with httpx.Client(base_url=service().url, timeout=30) as client:
        parent = client.post(EVENTS, json=make_event(severity=None, duration_ms=7)).json()["event_id"]
        payload = make_event()["event_data"] | {"n": 1e21, "text": '=1, "quoted"'}
        child = make_event(parent_event_id=parent, event_data=payload, is_sensitive=True)
        client.post(EVENTS, json=child).raise_for_status()
        file.write_bytes(client.get(EXPORT, params={"format": form}).content)
        before = stored(client)
        assert "2 events stored, 0 refused" in command(client, file).stdout
        assert stored(client) == before
    with httpx.Client(base_url=service(database_url=other_url).url, timeout=30) as client:
        assert "2 events stored, 0 refused" in command(client, file).stdout
        after = stored(client)
        hashes = {"event_hash", "previous_event_hash"}
        assert [{k: v for k, v in e.items() if k not in hashes} for e in after] == [
            {k: v for k, v in e.items() if k not in hashes} for e in before
        ]
