"""Retention policies over HTTP and by the command: set, listed and removed, each change an event of the log."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.services import ROOT, Service

POLICIES = "/api/v1/audit/retention-policies"
SEEDED = ["analysis", "apifrontend", "gateway", "notification", "remediation", "workflow"]


def changes(client: httpx.Client, action: str) -> list[dict[str, Any]]:
    page = client.get("/api/v1/audit/events", params={"event_type": f"datastorage.policy.{action}"}).json()
    return [event["event_data"] for event in page["data"]]


@pytest.mark.parametrize("processes", [2], indirect=True)
async def test_policies(service: Callable[..., Service], connection: Any, database_url: str) -> None:
    """A change is not listed, not in the table, or no event; bad input is accepted, or the refusal does not name the field."""
    _use_api(service().url)
    row = await connection.fetchrow("SELECT * FROM audit_retention_policies WHERE event_category = 'büro 1'")
    assert (row["retention_days"], row["floor_days"], row["ceiling_days"]) == (9, None, 9)
    assert not await connection.fetchval(
        "SELECT count(*) FROM audit_retention_policies WHERE event_category = 'gateway'"
    )
    _use_command(database_url)
    await connection.execute("UPDATE audit_retention_policies SET retention_days = 1 WHERE event_category = 'analysis'")
    for arguments in (("policy", "list"), ("run",)):
        done = run(database_url, *arguments)
        assert done.returncode == 1
        assert (re.search(r"^gateway +90 days", done.stdout, re.MULTILINE) is not None) == ("list" in arguments)
        assert "policy edited: the policy of analysis is 1 days in the table, 2555 days in the log." in done.stderr
    await connection.execute(
        "UPDATE audit_retention_policies SET retention_days = 2555 WHERE event_category = 'analysis'"
    )


def _use_api(url: str) -> None:
    with httpx.Client(base_url=url, timeout=30) as client:
        answer = client.get(POLICIES).json()
        assert answer["policies"] == [{"event_category": name, "retention_days": 2555} for name in SEEDED]
        assert answer["total"] == 6
        body: dict[str, Any] = {"retention_days": 400, "floor_days": 30, "reason": "case 7"}
        answer = client.put(f"{POLICIES}/gateway", json=body).json()
        assert answer == {"event_category": "gateway", "set_by": "anonymous"} | body
        answer = client.put(f"{POLICIES}/b%C3%BCro 1", json={"retention_days": 9, "ceiling_days": 9, "reason": "r"})
        assert answer.json()["event_category"] == "büro 1"
        listed = {one["event_category"]: one for one in client.get(POLICIES).json()["policies"]}
        assert [*listed] == sorted([*SEEDED, "büro 1"])
        assert listed["gateway"].pop("set_at").endswith("Z")
        assert listed["gateway"] == {"event_category": "gateway", "set_by": "anonymous"} | body
        answer = client.request("DELETE", f"{POLICIES}/gateway", json={"reason": "over"}).json()
        assert answer == {"event_category": "gateway", "reason": "over", "removed_by": "anonymous"}
        assert client.request("DELETE", f"{POLICIES}/gateway", json={"reason": "over"}).status_code == 404
        for method, category, sent, named in (
            ("PUT", "gateway", {"reason": "r"}, "/retention_days"),
            ("PUT", "gateway", {"retention_days": "5", "reason": "r"}, "/retention_days"),
            ("PUT", "gateway", {"retention_days": 0, "reason": "r"}, "/retention_days"),
            (
                "PUT",
                "gateway",
                {"retention_days": 5, "floor_days": 9, "ceiling_days": 8, "reason": "r"},
                "/ceiling_days",
            ),
            ("PUT", "gateway", {"retention_days": 5, "floor_days": None, "reason": "r"}, "/floor_days"),
            ("PUT", "gateway", {"retention_days": 5, "reason": " "}, "/reason"),
            ("PUT", "x" * 51, {"retention_days": 5, "reason": "r"}, "event_category"),
            ("DELETE", "workflow", {}, "/reason"),
        ):
            refused = client.request(method, f"{POLICIES}/{category}", json=sent)
            assert refused.status_code == 400, sent
            assert named in refused.json()["field_errors"], refused.text
        set_events, (removed,) = changes(client, "set"), changes(client, "removed")
        assert [event["category"] for event in set_events] == ["büro 1", "gateway"]
        assert set_events[1]["policy_id"] == removed["policy_id"]


def _use_command(url: str) -> None:
    done = run(url, "policy", "set", "gateway", "--days", "90", "--ceiling", "120", "--reason", "case 8", "--by", "ada")
    assert (done.returncode, done.stdout) == (0, "gateway: 90 days, ceiling 120, from the next retention run on.\n"), (
        done
    )
    done = run(url, "policy", "set", "gateway", "--days", "0", "--reason", "r")
    assert (done.returncode, "/retention_days: expected a number of days from 1" in done.stderr) == (64, True), done
    assert run(url, "policy", "remove", "workflow", "--reason", "r").returncode == 0


def run(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {n: v for n, v in os.environ.items() if not n.startswith("DATASTORAGE_")}
    env |= {"DATASTORAGE_DATABASE_URL": url, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "app", "retention", *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)
