"""GET of counts over time, as a chart asks for them."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from tests.events import make_event
from tests.services import Service

HISTOGRAM = "/api/v1/audit/histogram"
EVENTS = "/api/v1/audit/events"
HOUR = timedelta(hours=1)


@pytest.fixture
def client(service: Callable[..., Service]) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service().url, timeout=30) as client:
        yield client


def test_histogram(client: httpx.Client) -> None:
    """A chart cannot be drawn from the answer, its bars are not what the list has in their times, or a bad question is no 400."""
    now = datetime.now(UTC)
    events = [
        make_event(event_timestamp=(now - age).isoformat(), event_outcome=outcome, cluster_id=cluster, severity=None)
        for age, outcome, cluster in (
            (timedelta(0), "success", "prod"),
            (timedelta(0), "failure", "test"),
            (2 * HOUR, "success", "prod"),
            (timedelta(days=3), "success", "prod"),
        )
    ]
    posted = client.post(EVENTS + "/batch", json=events)
    assert posted.status_code == 201, posted.text

    def ask(**query: Any) -> Any:
        answer = client.get(HISTOGRAM, params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    week = ask()
    assert (week["bucket"], week["events"], week["exact"], "groups" in week["buckets"][0]) == ("hour", 4, True, False)
    assert 168 <= len(week["buckets"]) <= 170
    assert (week["since"], week["until"]) == (week["buckets"][0]["start"], week["buckets"][-1]["end"])
    for by, groups in (
        ("outcome", {"success": 3, "failure": 1}),
        ("cluster", {"prod": 3, "test": 1}),
        ("severity", {"": 4}),
    ):
        found = ask(by=by, bucket="month", since="10d")
        sums: dict[str, int] = {}
        for bucket in found["buckets"]:
            for name, count in bucket["groups"].items():
                sums[name] = sums.get(name, 0) + count
        assert (found["events"], sums) == (4, groups)
    for query in ({"since": "90m"}, {"since": "5h", "bucket": "minute"}, {"event_outcome": "failure", "since": "40d"}):
        found = ask(**query)
        listed = client.get(EVENTS, params={name: query[name] for name in query if name != "bucket"}).json()
        assert found["events"] == listed["pagination"]["total"] == sum(b["events"] for b in found["buckets"])
    bar = next(one for one in ask(since="1d")["buckets"] if one["events"] == 1)
    inside = client.get(EVENTS, params={"since": bar["start"], "until": bar["end"]}).json()
    assert inside["pagination"]["total"] == 1
    assert ask(since="2026-01-02", until="2026-01-01")["buckets"] == []
    at = ask(since="2026-01-01", until="2026-01-01")["buckets"]
    assert [(one["start"], one["end"], one["events"]) for one in at] == [("2026-01-01T00:00:00Z",) * 2 + (0,)]
    assert (
        ask(until="0001-01-02")["events"]
        == ask(since="9999-12-31T23:00:00Z", until="9999-12-31T23:59:59.999999Z")["events"]
    )
    for refused in (
        {"by": "actor"},
        {"bucket": "year"},
        {"bucket": "minute", "since": "7d"},
        {"event_outcome": "x"},
        {"outcome": "failure"},
    ):
        assert client.get(HISTOGRAM, params=refused).status_code == 400


def test_many_groups(client: httpx.Client) -> None:
    """A chart by type has so many colours that nobody can tell them apart, or the groups do not add up."""
    events = [make_event(severity=f"s{number}") for number in range(25) for _ in range(2 if number < 19 else 1)] + [
        make_event(severity="other") for _ in range(3)
    ]
    assert client.post(EVENTS + "/batch", json=events).status_code == 201
    (day,) = [
        b for b in client.get(HISTOGRAM, params={"by": "severity", "bucket": "day"}).json()["buckets"] if b["events"]
    ]
    assert (len(day["groups"]), day["groups"]["other"], sum(day["groups"].values())) == (20, 9, 47)
