"""Filters over HTTP: what they are called, what is refused, and that one question means the same on every route."""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from tests.events import make_event
from tests.services import Service

AUDIT = "/api/v1/audit/"
ID = "01a20e0c-7ce0-710e-bfce-35434f8305e9"
OF_REFERENCE = (
    AUDIT + "events",
    AUDIT + "export",
    AUDIT + "legal-hold",
    "/api/v1/effectiveness",
    "/api/v1/remediation-history",
)
Ask = Callable[..., list[str]]


@pytest.fixture
def client(service: Callable[..., Service]) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service().url, timeout=30) as client:
        yield client


def post(client: httpx.Client, name: str, **members: Any) -> None:
    event = make_event(correlation_id=name, **members)
    assert client.post(AUDIT + "events", json=event).status_code == 201


def listed(client: httpx.Client, **parameters: Any) -> list[str]:
    page = client.get(AUDIT + "events", params={"strict": "true", **parameters}).raise_for_status().json()
    assert page["pagination"]["total"] == len(page["data"])
    return sorted(event["correlation_id"] for event in page["data"])


def correlated(client: httpx.Client, **parameters: Any) -> list[str]:
    page = client.get(AUDIT + "correlations", params=parameters).raise_for_status().json()
    return sorted(one["correlation_id"] for one in page["data"])


def exported(client: httpx.Client, **parameters: Any) -> list[str]:
    answer = client.get(AUDIT + "export", params={"format": "ndjson", **parameters}).raise_for_status()
    lines = map(json.loads, answer.text.splitlines())
    return sorted(line["correlation_id"] for line in lines if "correlation_id" in line)


def signed(client: httpx.Client, **parameters: Any) -> list[str]:
    page = client.get(AUDIT + "export", params=parameters).raise_for_status().json()
    return sorted(event["correlation_id"] for event in page["events"])


def test_one_question_on_every_route(client: httpx.Client) -> None:
    """A filter is called otherwise, or means something else, on one of the routes."""
    today = datetime.now(UTC).strftime("%Y-%m-%d")
    post(client, "a", actor_id="ada", actor_type="user", resource_id="payments/api")
    post(
        client,
        "b",
        actor_id="bob",
        actor_type="user",
        event_outcome="failure",
        severity="critical",
        error_message="Zu groß",
    )
    post(client, "c", actor_id="Ada", namespace="other")
    questions: list[tuple[dict[str, Any], list[str]]] = [
        ({"actor_id": "ada"}, ["a"]),
        ({"actor_id_in": ["ada", "bob"]}, ["a", "b"]),
        ({"actor_id_not": ["ada", "bob"]}, ["c"]),
        ({"actor_type": "user", "resource_id_not": "payments/api"}, ["b"]),
        ({"event_type_in": "orchestrator.*", "event_outcome_in": ["success", "pending"]}, ["a", "c"]),
        ({"event_type_not": "orchestrator.lifecycle.*"}, []),
        ({"namespace": "other", "namespace_in": ["", "other"], "severity": ""}, ["c"]),
        ({"q": "ZU GROß", "since": "1h"}, ["b"]),
        ({"q": "podcrash", "correlation_id_in": ["a", "c"]}, ["a", "c"]),
        ({"since": "yesterday", "until": "today", "zone": "Pacific/Kiritimati", "actor_id": "bob"}, ["b"]),
        ({"until": "yesterday"}, []),
        ({"since": today, "zone": "UTC", "severity_in": "critical"}, ["b"]),
    ]
    for question, expected in questions:
        for ask in (listed, correlated, exported, signed):
            assert ask(client, **question) == expected, (question, ask)
    renamed = {"start_time": "2h", "end_time": "0", "actor_id": "ada"}
    assert [ask(client, **renamed) for ask in (listed, correlated, exported)] == [["a"]] * 3
    now = datetime.now(UTC).isoformat()
    filters = client.get(AUDIT + "export", params={"until": now, "actor_id_in": ["x"]}).json()["export_metadata"]
    assert filters["query_filters"].keys() == {"end_time", "actor_id_in", "offset", "limit"}


REFUSED = {
    "q=x": "q",
    "q=x&until=1h": "q",
    "zone=Berlin": "zone",
    "parent_event_id=x": "parent_event_id",
    "parent_event_id_in=" + ID + "&parent_event_id_in=x": "parent_event_id_in",
    "event_outcome_in=good": "event_outcome_in/0",
    "actor_id_in=a&actor_id_in=%00": "actor_id_in",
    "start_time=2026-01-31T00:00:00Z&since=2026-01-31T00:00:01Z": "start_time",
    "&".join(f"severity_in={n}" for n in range(101)): "severity_in",
    "since=tomorrow": "query",
}
REFUSED_IN_LISTS = {
    "order=log&offset=5": "offset",
    "order=log&cursor=MjAyNi0wMS0zMVQwMDowMDowMC8wMTAyMDMwNDA1MDYwNzA4MDkwYTBiMGMwZDBlMGYxMA": "cursor",
    "order=up": "order",
    "strict=true&actor=ada": "actor",
    "strict=yes": "strict",
}


def test_refused(client: httpx.Client) -> None:
    """A filter that cannot be meant is ignored, or the answer does not name it."""
    routes = ("events", "correlations", "export?format=csv")
    asked = [(route, one, field) for route in routes for one, field in REFUSED.items()]
    for route, one, field in [*asked, *(("events", *pair) for pair in REFUSED_IN_LISTS.items())]:
        answer = client.get(f"{AUDIT}{route}{'&' if '?' in route else '?'}{one}")
        assert (answer.status_code, list(answer.json()["field_errors"])) == (400, [field]), (route, one, answer.text)
    same = {"since": "2026-01-31", "start_time": "2026-01-31T00:00:00Z"}
    assert client.get(AUDIT + "events", params=same).status_code == 200


def test_misspelled_parameters(client: httpx.Client) -> None:
    """A filter with a typing error is ignored, and the answer is to another question; or a client of the reference is refused."""
    for path, operations in client.get("/openapi.json").json()["paths"].items():
        if "get" not in operations or not path.startswith("/api/v1/"):
            continue
        target = path.replace("{correlation_id}", "rr-1").replace("{event_id}", ID).replace("{name}", "x")
        assert "{" not in target, path
        answer = client.get(target, params={"unheard_of": "1"})
        refused = answer.status_code == 400 and "unheard_of" in answer.json().get("field_errors", {})
        is_lenient = target in OF_REFERENCE or target.startswith(OF_REFERENCE[3:])
        assert refused is not is_lenient, (target, answer.text)
    for target, nearest in {
        "correlations?actor=ada": "actor_id",
        "correlations/rr-1?verfy=true": "verify",
        "correlations/rr-1/bundle?redact=true": "redact_pii",
        "notifications?remediation=rr-1": "remediation_id",
        "export?format=ndjson&corelation_id=rr-1": "correlation_id",
        "export?format=csv&Event_Category=x": "event_category",
        "events?strict=true&event_types=x": "event_type",
    }.items():
        problem = client.get(AUDIT + target).json()
        assert (problem["status"], problem["detail"].endswith(f"the nearest is {nearest}")) == (400, True), problem
