"""A lost RemediationRequest, rebuilt over HTTP: docs/contract.md, section 15, case by case."""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
import yaml

from tests.services import Service
from tests.story import INSERT, make_row, make_story

BATCH = "/api/v1/audit/events/batch"
GATEWAY = {"signal_type": "prometheus-alert", "signal_name": "HighMemory", "namespace": "n", "fingerprint": "1e5"}
NAMES = {"rr_name": "rr", "namespace": "n"}


@pytest.fixture
def client(service: Callable[..., Service]) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service().url, timeout=30) as client:
        yield client


def ask(client: httpx.Client, correlation_id: str, method: str = "POST") -> httpx.Response:
    return client.request(method, f"/api/v1/audit/remediation-requests/{correlation_id}/reconstruct")


async def insert(connection: Any, *rows: dict[str, Any]) -> None:
    await connection.execute(INSERT, json.dumps(rows))


def row(event_type: str, payload: Any, second: int = 0, **members: Any) -> dict[str, Any]:
    time = datetime.now(UTC) - timedelta(minutes=10) + timedelta(seconds=second)
    return make_row("rr-1", event_type, "no such category", payload, time, **members)


def test_whole_story(client: httpx.Client) -> None:
    """A remediation of which everything was recorded is not rebuilt whole, or not as its readers expect it."""
    client.post(BATCH, json=make_story("rr-1")).raise_for_status()
    answer = ask(client, "rr-1")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    found = answer.json()
    assert list(found) == [
        *("remediation_request_yaml", "validation", "reconstructed_at", "correlation_id", "cluster_id"),
    ]
    assert found["validation"] == {"is_valid": True, "completeness": 100, "errors": [], "warnings": []}
    assert (found["correlation_id"], found["cluster_id"]) == ("rr-1", "prod-eu-1")
    time = datetime.fromisoformat(found["reconstructed_at"])
    built = yaml.safe_load(found["remediation_request_yaml"])
    assert built.pop("metadata") == {
        "name": f"rr-reconstructed-rr-1-{int(time.timestamp())}",
        "namespace": "kubernaut-system",
        "labels": {
            "app.kubernetes.io/managed-by": "kubernaut-datastorage",
            "kubernaut.ai/reconstructed": "true",
            "kubernaut.ai/correlation-id": "rr-1",
        },
        "annotations": {
            "kubernaut.ai/reconstructed-at": found["reconstructed_at"],
            "kubernaut.ai/reconstruction-source": "audit-trail",
            "kubernaut.ai/correlation-id": "rr-1",
        },
        "finalizers": ["kubernaut.ai/audit-retention"],
    }
    assert built == {
        "apiVersion": "remediation.kubernaut.ai/v1alpha1",
        "kind": "RemediationRequest",
        "spec": {
            "clusterID": "prod-eu-1",
            "firingTime": None,
            "originalPayload": '{"alerts":[{"name":"é","value":1.5}],"status":"firing"}',
            "providerData": (
                '{"analysis_preview":"memory stays above its limit","incident_id":"incident-1",'
                '"needs_human_review":false,"warnings_count":0}'
            ),
            "receivedTime": None,
            "severity": "",
            "signalAnnotations": {"summary": "eleven restarts"},
            "signalFingerprint": "9c1b6f0e",
            "signalLabels": {"severity": "critical", "team": "payments"},
            "signalName": "PodCrashLooping",
            "signalType": "alert",
            "targetResource": {"kind": "", "name": ""},
            "targetType": "",
        },
        "status": {
            "completionStatus": {"outcome": "Success"},
            "timeoutConfig": {"global": "1h0m0s", "processing": "5m0s", "analyzing": "10m0s", "executing": "1h30m0s"},
            "workflowSelection": {
                "executionRef": {
                    "apiVersion": "workflowexecution.kubernaut.ai/v1alpha1",
                    "kind": "WorkflowExecution",
                    "name": "wfe-1",
                    "namespace": "payments",
                },
                "selectedWorkflowRef": {
                    "workflowId": "restart-deployment",
                    "version": "1.4.2",
                    "executionBundle": "registry.example/workflows/restart@sha256:0a1b",
                },
            },
        },
    }


def test_same_events_same_yaml(client: httpx.Client) -> None:
    """Two answers about the same events differ in more than their time stamps, keys are not sorted, or GET is another answer."""
    client.post(BATCH, json=make_story("rr-1")).raise_for_status()
    texts = []
    for method in ("POST", "GET", "POST"):
        found = ask(client, "rr-1", method).json()
        text, time = found["remediation_request_yaml"], found["reconstructed_at"]
        seconds = str(int(datetime.fromisoformat(time).timestamp()))
        texts.append(text.replace(time, "TIME").replace(seconds, "SECONDS"))
    assert len(set(texts)) == 1
    keys = [line.partition(":")[0] for line in texts[0].splitlines() if not line.startswith(" ")]
    assert keys == ["apiVersion", "kind", "metadata", "spec", "status"]


async def test_texts_stay_texts(client: httpx.Client, connection: Any) -> None:
    """A text that looks like a number, a boolean or a date comes back from YAML as one; or a label breaks the document."""
    odd = [
        "1e5",
        "0x1F",
        "1_000",
        "yes",
        "y",
        "on",
        "null",
        "~",
        "2026-01-31",
        "1:30",
        "0o7",
        ".5",
        "+1",
        "-",
        "=",
        "<<",
    ]
    odd += [
        "a: b",
        "#",
        "*a",
        "&a",
        "!a",
        "'",
        '"',
        "{}",
        "[",
        "two\nlines\n",
        " edge ",
        "\t",
        "\u0001",
        "\u2028é😀",
        "%",
        "@",
    ]
    labels = {f"k{i}": text for i, text in enumerate(odd)} | dict.fromkeys(odd, "as key")
    rich = {"signal_labels": labels, "signal_annotations": {"a": "b"}, "original_payload": {}}
    await insert(
        connection,
        row("gateway.signal.received", GATEWAY | rich),
        row("orchestrator.lifecycle.created", NAMES | {"timeout_config": {"global": "1h"}}),
    )
    found = ask(client, "rr-1").json()
    assert found["sealed"] is False  # somebody inserted the events by SQL
    text = found["remediation_request_yaml"]
    spec = yaml.safe_load(text)["spec"]
    assert (spec["signalLabels"], spec["signalFingerprint"], spec["originalPayload"]) == (labels, "1e5", "{}")
    assert "'1e5'" in text  # a float for readers of YAML 1.2


async def test_mapping(client: httpx.Client, connection: Any) -> None:
    """A later event does not override an earlier one, maps do not merge, or a signal type keeps its old name."""
    selection = {
        "workflow_id": "w",
        "workflow_version": "1",
        "target_resource": "t",
        "phase": "p",
        "execution_name": "e",
    }
    failed = {
        "failure_phase": "AIAnalysis",
        "outcome": "Failed",
        "error_details": {"message": "boom", "code": "E", "component": "nobody knows", "retry_possible": False},
    }
    await insert(
        connection,
        row("gateway.signal.received", GATEWAY | {"signal_labels": {"a": "1", "b": "1"}, "original_payload": {"n": 1}}),
        row(
            "apifrontend.rr.created",
            dict.fromkeys(("session_id", "rr_name", "rr_namespace", "target_kind", "target_name"), "x")
            | {"fingerprint": "f2", "signal_name": "FromChat"},
            1,
            cluster_id="c2",
        ),
        row("gateway.signal.received", GATEWAY | {"signal_labels": {"b": "2"}, "signal_annotations": {"x": "y"}}, -1),
        row("workflowexecution.selection.completed", selection | {"container_image": "i"}, 2, cluster_id=None),
        row("orchestrator.lifecycle.failed", NAMES | failed, 3, cluster_id=""),
    )
    found = ask(client, "rr-1").json()
    built = yaml.safe_load(found["remediation_request_yaml"])
    spec = built["spec"]
    assert (spec["signalName"], spec["signalFingerprint"], spec["signalType"]) == ("FromChat", "f2", "alert")
    assert spec["signalLabels"] == {"a": "1", "b": "1"}
    assert (spec["clusterID"], found["cluster_id"]) == ("c2", "c2")
    assert built["status"]["completionStatus"] == {
        "outcome": "Failed",
        "failurePhase": "AIAnalysis",
        "failureReason": "boom",
    }
    assert found["validation"]["completeness"] == 66
    [timeouts, provider, execution] = found["validation"]["warnings"]
    assert ("TimeoutConfig" in timeouts, "providerData" in provider, "executionRef" in execution) == (True, True, True)


async def test_warnings_name_what_is_missing(client: httpx.Client, connection: Any) -> None:
    """A part that is missing is not named as its readers look for it, or is counted."""
    created = NAMES | {"timeout_config": {"global": "1h", "processing": "", "executing": "90m"}}
    analysed = {
        "analysis_name": "a",
        "namespace": "n",
        "phase": "odd",
        "approval_required": False,
        "degraded_mode": False,
    }
    summary = {"incident_id": "i", "analysis_preview": "p", "needs_human_review": True, "warnings_count": 0}
    await insert(
        connection,
        row("gateway.signal.received", GATEWAY | {"signal_type": ""}),
        row("orchestrator.lifecycle.created", created),
        row("aianalysis.analysis.completed", analysed | {"warnings_count": 0, "provider_response_summary": summary}),
        row(
            "workflowexecution.selection.completed",
            dict.fromkeys(
                ("workflow_id", "workflow_version", "target_resource", "phase", "container_image", "execution_name"),
                "x",
            ),
        ),
        row("gateway.signal.received", GATEWAY | {"signal_type": "", "original_payload": {}}),
    )
    found = ask(client, "rr-1").json()
    assert found["validation"]["completeness"] == 55
    assert found["validation"]["is_valid"] is False
    assert ["SignalType" in error for error in found["validation"]["errors"]] == [True]
    named = ("SignalLabels", "SignalAnnotations", "executionRef")
    assert [name in warning for name, warning in zip(named, found["validation"]["warnings"], strict=True)] == [True] * 3


REFUSED: list[tuple[list[Any], int, str, str]] = [
    ([], 404, "audit/correlation-not-found", "Audit Events Not Found"),
    ([("no.such.type", {})], 404, "audit/correlation-not-found", "Audit Events Not Found"),
    (
        [("gateway.signal.received", GATEWAY | {"signal_name": ""})],
        400,
        "reconstruction/no-parseable-events",
        "Reconstruction Failed",
    ),
    (
        [("orchestrator.lifecycle.completed", NAMES)],
        400,
        "reconstruction/missing-gateway-event",
        "Reconstruction Failed",
    ),
    (
        [
            ("gateway.signal.received", GATEWAY),
            ("orchestrator.lifecycle.created", NAMES | {"timeout_config": {"global": "1 hour"}}),
        ],
        400,
        "reconstruction/missing-gateway-event",
        "Reconstruction Failed",
    ),
    ([("gateway.signal.received", GATEWAY)], 400, "reconstruction/incomplete-data", "Incomplete Reconstruction"),
    ([("gateway.signal.received", {})], 500, "reconstruction/query-failed", "Reconstruction Query Failed"),
    ([("gateway.signal.received", [])], 500, "reconstruction/query-failed", "Reconstruction Query Failed"),
    (
        [("gateway.signal.received", GATEWAY | {"signal_labels": {"a": 1}})],
        500,
        "reconstruction/query-failed",
        "Reconstruction Query Failed",
    ),
    (
        [("gateway.signal.received", GATEWAY), ("orchestrator.lifecycle.completed", NAMES | {"duration_ms": "1"})],
        500,
        "reconstruction/query-failed",
        "Reconstruction Query Failed",
    ),
]


@pytest.mark.parametrize(("rows", "expected"), [(rows, tuple(rest)) for rows, *rest in REFUSED])
async def test_problems(client: httpx.Client, connection: Any, rows: list[Any], expected: tuple[int, str, str]) -> None:
    """A remediation that cannot be rebuilt is answered with another problem than its readers know."""
    status, slug, title = expected
    await insert(connection, *(row(kind, payload, second) for second, (kind, payload) in enumerate(rows)))
    answer = ask(client, "rr-1")
    problem = answer.json()
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert list(problem) == ["type", "title", "status", "detail"]
    assert (problem["type"], problem["title"]) == (f"https://kubernaut.ai/problems/{slug}", title)
    assert problem["detail"]
    if slug.endswith("incomplete-data"):
        assert "22%" in problem["detail"]


async def test_types_not_values_are_checked(client: httpx.Client, connection: Any) -> None:
    """A row with a value outside an enum, another type inside or unknown keys stops its remediation from being rebuilt."""
    await insert(
        connection,
        row(
            "gateway.signal.received",
            GATEWAY
            | {"event_type": "something.else", "deduplication_status": "odd", "unknown": [1], "occurrence_count": 1e30}
            | {"signal_labels": {"a": "b"}, "signal_annotations": {"a": "b"}, "original_payload": {"deep": [[[[{}]]]]}},
        ),
        row("orchestrator.lifecycle.completed", NAMES | {"outcome": "Remediated"}),
    )
    found = ask(client, "rr-1").json()
    assert found["validation"]["completeness"] == 55
    assert yaml.safe_load(found["remediation_request_yaml"])["status"] == {
        "completionStatus": {"outcome": "Remediated"}
    }


def test_paths(client: httpx.Client) -> None:
    """A correlation id with a slash or a space cannot be asked for, NUL is an error of the service, or a stranger path answers."""
    client.post(BATCH, json=make_story("team a/rr-1")).raise_for_status()
    assert ask(client, "team%20a%2Frr-1").json()["correlation_id"] == "team a/rr-1"
    assert ask(client, "%00").status_code == 400
    assert ask(client, "").status_code == 404
    path = "/api/v1/audit/remediation-requests/rr-1/reconstruct"
    assert (client.get(path + "/").status_code, client.get(path + "/").text) == (404, "404 page not found\n")
    refused = client.delete(path)
    assert (refused.status_code, refused.headers["Allow"], refused.text) == (405, "GET, POST", "")
