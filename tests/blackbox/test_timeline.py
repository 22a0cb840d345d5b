"""One correlation with all that belongs to it, and the list of correlations, asked over HTTP."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.events import make_event
from tests.services import ROOT, Service
from tests.story import INSERT, make_row, make_story

EVENTS = "/api/v1/audit/events"
LIST = "/api/v1/audit/correlations"
NOTIFICATIONS = "/api/v1/audit/notifications"
NOW = datetime.now(UTC)


@pytest.fixture
def client(service: Callable[..., Service]) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service().url, timeout=30) as client:
        yield client


def get(client: httpx.Client, path: str, **parameters: Any) -> dict[str, Any]:
    answer = client.get(path, params=parameters)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def post(client: httpx.Client, correlation_id: str, age_minutes: float = 0, **members: Any) -> None:
    time = NOW - timedelta(minutes=age_minutes)
    event = make_event(correlation_id=correlation_id, event_timestamp=time.isoformat(), **members)
    client.post(EVENTS, json=event).raise_for_status()


async def insert(connection: Any, *rows: dict[str, Any]) -> None:
    await connection.execute(INSERT, json.dumps(rows))


def rfc3339(time: datetime) -> str:
    return time.isoformat().replace("+00:00", "Z")


def cut(time: datetime) -> str:
    """With zeros at the end cut, as Postgres writes it."""
    whole, dot, fraction = time.isoformat().removesuffix("+00:00").partition(".")
    return f"{whole}{dot}{fraction.rstrip('0')}Z"


def test_whole_story(client: httpx.Client) -> None:
    """A remediation's phases, decisions, notifications or clocks are not shown as they were."""
    start = datetime.now(UTC) - timedelta(hours=1)
    story = make_story("rr-1", start)
    client.post(f"{EVENTS}/batch", json=story).raise_for_status()
    notification = {"remediation_id": "rr-1", "notification_id": "n-1", "recipient": "#payments", "channel": "slack"}
    notification |= {"message_summary": "done", "status": "sent", "sent_at": rfc3339(start)}
    stored = client.post(NOTIFICATIONS, json=notification).json()
    found = get(client, f"{LIST}/rr-1")
    assert list(found) == [
        *("correlation_id", "event_count", "first_event_at", "last_event_at", "chain", "phases", "decisions"),
        *("notifications", "holds", "events", "pagination"),
    ]
    assert found["event_count"] == len(story)
    assert (found["first_event_at"], found["last_event_at"]) == (rfc3339(start), rfc3339(start + timedelta(seconds=16)))
    assert found["chain"]["length"] == len(story)
    assert found["phases"] == [
        phase("Pending", start, 1, 3),
        phase("Analyzing", start, 3, 6),
        phase("Executing", start, 6, 10),
        {"phase": "Completed", "entered_at": rfc3339(start + timedelta(seconds=10))},
    ]
    assert [
        (one["decision"], one["decided_by"], one.get("reason"), one.get("workflow_id")) for one in found["decisions"]
    ] == [
        ("Approved", "ada@example.com", "go ahead", None),
        ("WorkflowSelected", "workflowexecution-controller", None, "restart-deployment"),
    ]
    assert (found["notifications"], found["holds"]) == ([stored], [])
    assert [event["event_type"] for event in found["events"]] == [event["event_type"] for event in story]
    assert [event["chain_index"] for event in found["events"]] == list(range(len(story)))
    first = found["events"][0]
    assert first["event_timestamp"] == cut(start)
    assert datetime.fromisoformat(first["recorded_at"]) > start + timedelta(minutes=50)
    assert "event_data" not in first


def phase(name: str, start: datetime, entered: int, left: int) -> dict[str, Any]:
    times = [rfc3339(start + timedelta(seconds=second)) for second in (entered, left)]
    return {"phase": name, "entered_at": times[0], "left_at": times[1], "duration_ms": (left - entered) * 1000}


def test_log_order_and_parents(client: httpx.Client) -> None:
    """Events stand in the order of their senders' clocks, or their parents are not shown."""
    parent = client.post(EVENTS, json=make_event(correlation_id="rr-1", event_timestamp=NOW.isoformat())).json()[
        "event_id"
    ]
    post(client, "rr-1", 60, parent_event_id=parent)
    found = get(client, f"{LIST}/rr-1")["events"]
    assert [event.get("parent_event_id") for event in found] == [None, parent]
    assert found[0]["event_timestamp"] > found[1]["event_timestamp"]
    assert found[0]["log_index"] < found[1]["log_index"]
    assert found[0]["recorded_at"] <= found[1]["recorded_at"]


def test_verification(client: httpx.Client) -> None:
    """The chain is not verified when it is asked for, or is without being asked for."""
    for _ in range(3):
        post(client, "rr-1")
    assert "verification" not in get(client, f"{LIST}/rr-1", verify="false")
    verdict = get(client, f"{LIST}/rr-1", verify="true")["verification"]
    assert (verdict["is_valid"], verdict["verified_events"], verdict["position"]) == (True, 3, 3)
    assert client.get(f"{LIST}/rr-1", params={"verify": "perhaps"}).status_code == 400


@pytest.mark.damaged
async def test_damage_shows(client: httpx.Client, connection: Any) -> None:
    """A chain whose events were all removed is not found, or is shown as whole."""
    post(client, "rr-1")
    await connection.execute("DELETE FROM audit_events")
    found = get(client, f"{LIST}/rr-1", verify="true")
    assert (found["event_count"], found["events"], found["chain"]["length"]) == (0, [], 1)
    assert found["verification"]["is_valid"] is False
    assert get(client, LIST)["data"] == []


async def test_unsealed_rows_and_holds(client: httpx.Client, connection: Any) -> None:
    """Rows that others inserted are hidden or take a place in the log, odd ones stop the answer, or a hold is not shown."""
    post(client, "rr-1")
    payloads: tuple[Any, ...] = ({}, [], 7, {"to_phase": 7})
    rows = [make_row("rr-1", "orchestrator.phase.transitioned", "odd", payload, NOW) for payload in payloads]
    await insert(
        connection, *rows, make_row("rr-1", "orchestrator.lifecycle.started", "odd", {}, NOW - timedelta(hours=1))
    )
    await connection.execute(
        "UPDATE audit_events SET event_timestamp = 'infinity', recorded_at = '-infinity' WHERE event_data = '7'"
    )
    await connection.execute(
        "UPDATE audit_events SET legal_hold = true, legal_hold_reason = 'case 1', legal_hold_placed_by = 'ada' WHERE log_index IS NULL"
    )
    await connection.execute("UPDATE audit_events SET legal_hold_reason = 'old [Released: done]' WHERE log_index = 0")
    found = get(client, f"{LIST}/rr-1")
    assert [event.get("log_index") for event in found["events"]] == [0, *[None] * 5]
    assert found["events"][-1]["event_timestamp"].startswith("9999")
    assert [hold["active"] for hold in found["holds"]] == [True, False]
    assert found["holds"][0] == {"active": True, "reason": "case 1", "placed_by": "ada", "events": 5}
    assert found["phases"][0]["phase"] == "Pending"


@pytest.mark.damaged
async def test_unsealed_rows_are_marked(client: httpx.Client, connection: Any, tmp_path: Path) -> None:
    """What others inserted by SQL looks like an event of the log, cannot be left out, or an event of the log is marked."""
    post(client, "rr-1")
    now = datetime.now(UTC)
    await insert(connection, make_row("rr-1", "orchestrator.phase.transitioned", "odd", {"to_phase": "Forged"}, now))
    far = make_row("rr-1", "x", "odd", {}, now)
    await insert(connection, far)
    await connection.execute(
        "UPDATE audit_events SET log_id = 0, log_index = 4611686018427387903 WHERE event_type = 'x'"
    )
    marks = [event.get("sealed") for event in get(client, f"{LIST}/rr-1")["events"]]
    assert sorted(marks, key=str) == [False, False, None]
    for asked, expected in (("true", [None]), ("false", [False, False])):
        found = get(client, EVENTS, sealed=asked)
        assert [event.get("sealed") for event in found["data"]] == expected
        assert found["pagination"]["total"] == len(expected)
        for event in found["data"]:
            assert get(client, f"{EVENTS}/{event['event_id']}") == event
        story = get(client, f"{LIST}/rr-1", sealed=asked)
        assert (story["event_count"], len(story["events"])) == (len(expected), len(expected))
        assert ("Forged" in str(story["phases"])) == (asked == "false")
        page = get(client, "/api/v1/audit/export", sealed=asked)
        assert [event.get("sealed") for event in page["events"]] == expected
    shown = run(client, tmp_path, "show", "rr-1").stdout
    assert len([line for line in shown.splitlines() if line.startswith("unsealed ")]) == 2
    assert "2 unsealed" in shown


def test_parts(client: httpx.Client) -> None:
    """A part of the events is another one, a stranger is found, or a bad question is answered."""
    for _ in range(5):
        post(client, "team a/rr-1")
    path = f"{LIST}/team%20a%2Frr-1"
    whole = get(client, path)["events"]
    part = get(client, path, limit=2, offset=1)
    assert (part["events"], part["pagination"]) == (whole[1:3], {"limit": 2, "offset": 1, "has_more": True})
    assert get(client, path, limit=2, offset=3)["pagination"]["has_more"] is False
    missing = client.get(f"{LIST}/nobody")
    assert (missing.status_code, missing.json()["type"]) == (404, "https://kubernaut.ai/problems/not-found")
    for parameters in ({"limit": "0"}, {"limit": "10001"}, {"offset": "-1"}):
        assert client.get(path, params=parameters).status_code == 400
    assert client.get(f"{LIST}/%00").status_code == 400
    assert client.get(f"{LIST}/").text == "404 page not found\n"


def names(found: dict[str, Any]) -> list[str]:
    return [one["correlation_id"] for one in found["data"]]


def test_list(client: httpx.Client) -> None:
    """A correlation is listed at another place than that of its newest event, or not shown as it is."""
    post(client, "rr-1", 10)
    post(client, "rr-2", 5, event_outcome="failure")
    post(client, "rr-1", 1, event_category="gateway", event_outcome="pending", namespace=None, cluster_id="c2")
    post(client, "rr-1", 30)  # late
    found = get(client, LIST)
    assert names(found) == ["rr-1", "rr-2"]
    one = found["data"][0]
    assert one.pop("first_event")["event_timestamp"] == cut(NOW - timedelta(minutes=30))
    last = one.pop("last_event")
    assert (last["event_timestamp"], last["event_type"]) == (
        cut(NOW - timedelta(minutes=1)),
        make_event()["event_type"],
    )
    assert one == {
        "correlation_id": "rr-1",
        "event_count": 3,
        "last_outcome": "pending",
        "categories": ["gateway", "orchestration"],
        "cluster_id": "c2",
    }
    assert found["pagination"] == {"limit": 25, "has_more": False}


def test_list_filters(client: httpx.Client) -> None:
    """A filter of the list finds another correlation, or hides one."""
    post(client, "rr-1", 60, event_category="gateway", namespace="shop", cluster_id="c1")
    post(client, "rr-1", 50, event_outcome="failure")
    post(client, "rr-2", 40, event_outcome="failure")
    post(client, "rr-2", 10)
    post(client, "rr-3", 5, namespace="shop")

    def ask(**parameters: str) -> list[str]:
        return names(get(client, LIST, **parameters))

    assert ask(event_category="gateway") == ["rr-1"]
    assert ask(event_category="orchestration") == ["rr-3", "rr-2", "rr-1"]
    assert ask(event_outcome="failure") == ["rr-1"]
    assert ask(namespace="shop") == ["rr-3", "rr-1"]
    assert ask(cluster_id="c1") == ["rr-1"]
    assert ask(namespace="shop", event_category="orchestration", event_outcome="success") == ["rr-3"]
    assert ask(since=cut(NOW - timedelta(minutes=20))) == ["rr-3", "rr-2"]
    assert ask(until=cut(NOW - timedelta(minutes=20))) == ["rr-1"]  # rr-2 went on
    assert ask(since=cut(NOW - timedelta(minutes=10)), until=cut(NOW - timedelta(minutes=10))) == ["rr-2"]
    for bad in (
        {"event_outcome": "no"},
        {"limit": "0"},
        {"limit": "1001"},
        {"since": "x"},
        {"cursor": "x"},
        {"namespace": "\0"},
    ):
        assert client.get(LIST, params=bad).status_code == 400
    assert ask(event_outcome="", namespace="", since="") == ["rr-3", "rr-2", "rr-1"]


async def test_list_pages(client: httpx.Client, connection: Any) -> None:
    """A correlation is lost or shown twice between pages, also with equal times, rows of others, and our own events between."""
    times = [NOW - timedelta(seconds=number // 4) for number in range(40)]
    rows = [make_row(f"rr-{(number * 7) % 13}", "t", "test", {}, time) for number, time in enumerate(times)]
    rows += [make_row(f"own-{number}", "datastorage.log.heartbeat", "security", {}, NOW) for number in range(9)]
    await insert(connection, *rows)
    whole = names(get(client, LIST))
    assert sorted(whole) == sorted({f"rr-{number}" for number in range(13)})
    for limit in (1, 2, 5):
        assert walk(client, limit=limit) == whole
        assert walk(client, limit=limit, namespace="payments") == whole
        assert sorted(walk(client, limit=limit, event_category="security")) == sorted(f"own-{n}" for n in range(9))


def walk(client: httpx.Client, **parameters: Any) -> list[str]:
    found = []
    while True:
        page = get(client, LIST, **parameters)
        assert len(page["data"]) <= parameters["limit"]
        found += names(page)
        if not page["pagination"]["has_more"]:
            return found
        parameters["cursor"] = page["pagination"]["next_cursor"]


async def test_list_looks_at_so_many(client: httpx.Client, connection: Any) -> None:
    """A page that finds nothing goes through everything, or loses what comes after what it read."""
    rows = [make_row(f"rr-{n}", "t", "test", {}, NOW - timedelta(seconds=n)) for n in range(1500)]
    rows[1400]["namespace"] = "rare"
    rows += [make_row("rr-1", "t", "test", {}, NOW - timedelta(days=1, seconds=n)) for n in range(12_000)]
    await insert(connection, *rows)
    first = get(client, LIST, namespace="rare")
    assert (first["data"], first["pagination"]["has_more"]) == ([], True)
    second = get(client, LIST, namespace="rare", cursor=first["pagination"]["next_cursor"])
    assert names(second) == ["rr-1400"]
    assert len(walk(client, limit=1000)) == 1500


async def test_long_story(client: httpx.Client, connection: Any, tmp_path: Path) -> None:
    """The first answer about a long correlation is only about the events it shows, or the command line cuts what is printed."""
    for first in range(0, 1_002, 6):
        moved = ("Pending", "Processing") if first == 996 else ("Pending", "Pending")
        payload = {"event_type": "orchestrator.lifecycle.transitioned", "from_phase": moved[0], "to_phase": moved[1]}
        times = [NOW - timedelta(seconds=2_000 - first - n) for n in range(6)]
        await insert(connection, *(make_row("rr-1", payload["event_type"], "orchestration", payload, m) for m in times))
    found = get(client, f"{LIST}/rr-1")
    assert found["pagination"] == {"limit": 1_000, "offset": 0, "has_more": True}
    assert (found["event_count"], len(found["events"])) == (1_002, 1_000)
    assert found["phases"][-1]["phase"] == "Processing"
    assert len(get(client, f"{LIST}/rr-1", offset=1_000)["events"]) == 2
    shown = run(client, tmp_path, "show", "rr-1")
    assert shown.stdout.count("orchestrator.lifecycle.transitioned") == 1_002
    assert "verified now" not in shown.stdout


def run(client: httpx.Client, directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "app", *arguments, "--url", str(client.base_url)]
    env = {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=directory, env=env, capture_output=True, text=True, timeout=60, check=False)


def test_commands(client: httpx.Client, tmp_path: Path) -> None:
    """Who asks at a terminal does not see what was asked for, or gets a traceback."""
    client.post(f"{EVENTS}/batch", json=make_story("rr-1")).raise_for_status()
    post(client, "rr-2")
    listed = run(client, tmp_path, "list", "--limit", "5")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert [line.split()[0] for line in listed.stdout.splitlines()[1:]] == ["rr-2", "rr-1"]
    only = run(client, tmp_path, "list", "--category", "gateway", "--since", "2h")
    assert [line.split()[0] for line in only.stdout.splitlines()[1:]] == ["rr-1"]
    shown = run(client, tmp_path, "show", "rr-1", "--verify")
    assert (shown.returncode, shown.stderr) == (0, "")
    for text in ("rr-1", "17 events", "Analyzing", "3s", "ada@example.com", "remediation.workflow_created", "whole"):
        assert text in shown.stdout, text
    missing = run(client, tmp_path, "show", "nobody")
    assert (missing.returncode, missing.stdout, len(missing.stderr.splitlines())) == (2, "", 1)
    assert "nobody" in missing.stderr
    away = subprocess.run(
        [sys.executable, "-m", "app", "list", "--url", "http://127.0.0.1:1"],
        cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (away.returncode, len(away.stderr.splitlines())) == (2, 1)


async def test_last_verdict(service: Callable[..., Service], connection: Any) -> None:
    """The timeline does not tell what the verifier in the background found, or how far it has come."""
    async with httpx.AsyncClient(base_url=service(verifier_events_per_second=5000).url, timeout=30) as client:
        for _ in range(3):
            await client.post("/api/v1/audit/events", json=make_event(correlation_id="rr-1"))
        async with asyncio.timeout(60):
            while not await connection.fetchval("SELECT completed_end >= 3 FROM verifier"):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        verdict = (await client.get("/api/v1/audit/correlations/rr-1")).json()["verification"]
        assert (verdict["is_valid"], verdict["position"], "total_events" in verdict) == (True, 3, False)
        assert (await client.get("/api/v1/audit/correlations/rr-1?verify=true")).json()["verification"][
            "total_events"
        ] == 3
