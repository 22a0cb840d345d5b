"""Everything that can be read, asked of both releases at the same time: nothing fails, and they agree but where a release is to differ."""

import json
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import quote

import httpx

from tests.versions.release import Release
from tests.versions.side import Side

EVENTS = "/api/v1/audit/events"
_VOLATILE = re.compile(
    r'"(exported_at|export_timestamp|verified_at|generated_at|as_of|now|signature|nonce|checked_at|export_id|query_time_ms|'
    r'looked_at|verification_time|lag_seconds|started_at|finished_at|found_at|age_seconds)": ?("[^"]*"|[0-9.]+)'
)


async def differences(side: Side) -> tuple[int, list[str]]:
    """How many questions were asked, and which of them failed, or had other answers at the other replica."""
    wrong, number = [], 0
    async with side.client(0) as one, side.client(1) as other:
        async for path in _paths(one):
            number += 1
            paths = [_asked(path, release) for release in side.releases]
            for _ in range(3):  # the service itself may write an event between the two
                answers = [await client.get(asked) for client, asked in zip((one, other), paths, strict=True)]
                shown = [_comparable(answer) for answer in answers]
                if shown[0] == shown[1]:
                    break
            codes = [answer.status_code for answer in answers]
            if max(codes) >= 400:
                worst = max(answers, key=lambda answer: answer.status_code)
                wrong.append(f"{worst.url.raw_path.decode()}: {codes} {worst.text[:300]}")
            elif shown[0] != shown[1]:
                wrong.append(f"{path}: another answer: {_first_difference(*shown)}")
    return number, wrong


def _asked(path: str, release: Release) -> str:
    """The same question to this release, which leaves out audit events of Kubernetes where the one before does not know them."""
    if release.name == "this":
        return path.replace("include=self", "include=all").replace("+kubernetes", "&include=kubernetes")
    return path.replace("+kubernetes", "")


async def _paths(client: httpx.AsyncClient) -> AsyncIterator[str]:
    """Lists with every kind of filter that both know, and for a row of each type every route about it."""
    for path in _lists():
        yield path
    correlations: set[str] = set()
    for event in await _one_of_each_type(client):
        yield f"{EVENTS}/{event['event_id']}"
        yield f"{EVENTS}/{event['event_id']}/proof"
        yield f"/ui/events/{event['event_id']}"
        correlations.add(event["correlation_id"])
    for correlation in sorted(correlations):
        named = quote(correlation, safe="")
        yield f"{EVENTS}?correlation_id={named}&limit=1000+kubernetes"
        yield f"/api/v1/audit/correlations/{named}"
        yield f"/api/v1/audit/correlations/{named}?verify=true"
        yield f"/api/v1/audit/export?format=ndjson&correlation_id={named}+kubernetes"
        yield f"/ui/correlations/{named}"


def _lists() -> Iterator[str]:
    # The counts by cluster and namespace differ while both releases count (docs/decisions/0059).
    for one in ("", "order=log", "event_outcome=failure", "sealed=true", "q=api&since=7d"):
        yield f"{EVENTS}?limit=20&{one}+kubernetes"
    for one in ("namespace=payments", "cluster_id=prod-eu-1"):
        yield f"{EVENTS}?limit=20&total=none&{one}+kubernetes"
    for one in ("include=self", "event_type=kubernetes.audit.response_complete", "event_category=kubernetes"):
        yield f"{EVENTS}?limit=20&{one}"
    yield f"{EVENTS}?limit=20&actor_id=ada@example.org"
    for by in ("outcome", "category", "type", "severity"):
        yield f"/api/v1/audit/histogram?since=7d&by={by}&event_category=kubernetes"
    yield "/api/v1/audit/correlations?limit=50+kubernetes"
    yield "/api/v1/audit/legal-hold?include=released"
    yield "/api/v1/audit/retention-policies"
    yield "/api/v1/audit/findings"
    for page in ("events", "events?event_category=kubernetes", "correlations", "trust", "event-types", "api"):
        yield f"/ui/{page}"
    yield "/tlog/checkpoint"
    yield "/tlog/key"


async def _one_of_each_type(client: httpx.AsyncClient) -> list[dict[str, Any]]:
    """Of the newest events of each kind, one of each type."""
    found: dict[str, dict[str, Any]] = {}
    for one in ("include=self&limit=1000", "event_category=kubernetes&limit=100", "event_category=security&limit=1000"):
        for event in (await client.get(f"{EVENTS}?{one}")).json()["data"]:
            found.setdefault(event["event_type"], event)
    return list(found.values())


def _comparable(answer: httpx.Response) -> str:
    text = answer.text
    if answer.headers.get("content-type", "").startswith("text/html"):
        return ""  # pages have other words and other links
    if answer.headers.get("content-type", "").startswith("application/x-ndjson"):
        text = "\n".join(line for line in text.splitlines() if "payloadType" not in line)  # of the manifest
    if answer.headers.get("content-type", "").startswith("application/json"):
        text = json.dumps(answer.json(), sort_keys=True)
    return _VOLATILE.sub(r'"\1": ""', text)


def _first_difference(one: str, other: str) -> str:
    at = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return f"{one[max(0, at - 80) : at + 120]!r} and {other[max(0, at - 80) : at + 120]!r}"
