"""Emitters that post lives at the same time, and the questions that find them again."""

import asyncio
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any
from uuid import uuid4

import httpx

from app.simulate.lives import lives
from app.simulate.show import progress, table

EVENTS = "/api/v1/audit/events"
BATCH = "/api/v1/audit/events/batch"

_LIVES_PER_BATCH = 5
_ASKING_MAX = 8
_TRIES = 5
_TIMEOUT_SECONDS = 35.0  # the service itself gives up on a batch after 30


@dataclass(frozen=True, slots=True)
class Plan:
    """What the user asked for."""

    remediations: int
    seed: int
    url: str
    emitters: int
    token: str | None
    span: timedelta = timedelta()
    """The time that the lives are told in, before now."""
    find: bool = True
    """Whether what was posted is looked for afterwards; else nothing of it is remembered."""


@dataclass(slots=True)
class Tally:
    """Events per type, and what there is to find."""

    sent: Counter[str] = field(default_factory=Counter)
    acknowledged: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)
    missing: Counter[str] = field(default_factory=Counter)
    """Acknowledged, but not found."""
    is_kept: bool = True
    receipts: dict[str, dict[str, str]] = field(default_factory=dict)
    """Of each correlation: event id → event type, of what was acknowledged."""
    correlations_found: int = 0
    complaint: str | None = None
    """The first answer that was not as it should be."""

    def complain(self, reason: str) -> None:
        self.complaint = self.complaint or reason


async def play(plan: Plan) -> int:
    """Post the lives, find them again, and print the table. Returns the exit code."""
    tally = Tally(is_kept=plan.find)
    try:
        async with _client(plan) as client:
            await client.get("/readyz")
            await _post_all(client, plan, tally)
            if plan.find:
                await _find_all(client, tally)
    except (httpx.TransportError, httpx.InvalidURL) as error:
        reason = str(error) or type(error).__name__
        sys.stderr.write(f"datastorage: no service answers at {plan.url} ({reason}): start one with `make run`\n")
        return 1
    shown = ("sent", "acknowledged", "refused", *(("found", "missing") if plan.find else ()))
    columns = {name: getattr(tally, name) for name in shown}
    sys.stdout.write(table(columns))
    if tally.complaint is not None:
        sys.stderr.write(f"datastorage: {tally.complaint}\n")
    return int(tally.complaint is not None or tally.refused.total() + tally.missing.total() > 0)


def _client(plan: Plan) -> httpx.AsyncClient:
    headers = {} if plan.token is None else {"Authorization": f"Bearer {plan.token}"}
    limits = httpx.Limits(max_connections=max(plan.emitters, _ASKING_MAX))
    return httpx.AsyncClient(base_url=plan.url, headers=headers, timeout=_TIMEOUT_SECONDS, limits=limits)


async def _post_all(client: httpx.AsyncClient, plan: Plan, tally: Tally) -> None:
    # Ids of another run must not be found, so they begin differently even when the lives are the same.
    played = lives(plan.seed, plan.remediations, datetime.now(UTC), f"sim-{uuid4().hex[:8]}", plan.span)
    emitters = [_emit_singly(client, played, tally) for _ in range(max(plan.emitters - 1, 1))]
    if plan.emitters > 1:
        emitters.append(_emit_batches(client, played, tally))

    def line() -> str:
        sums = f"sent {tally.sent.total()}, acknowledged {tally.acknowledged.total()}, refused {tally.refused.total()}"
        return f"posting {plan.remediations} remediations: {sums}"

    async with progress(line):
        await asyncio.gather(*emitters)


async def _emit_singly(client: httpx.AsyncClient, played: Iterator[list[dict[str, Any]]], tally: Tally) -> None:
    for life in played:
        for event in life:
            await _post(client, EVENTS, event, [event], tally)


async def _emit_batches(client: httpx.AsyncClient, played: Iterator[list[dict[str, Any]]], tally: Tally) -> None:
    while events := [event for life in islice(played, _LIVES_PER_BATCH) for event in life]:
        await _post(client, BATCH, events, events, tally)


async def _post(
    client: httpx.AsyncClient, path: str, body: Any, events: Sequence[dict[str, Any]], tally: Tally
) -> None:
    """Post `body`, which holds `events`, and count what became of them."""
    types = [event["event_type"] for event in events]
    tally.sent.update(types)
    answer = await _ask(client, "POST", path, tally, json=body)
    if answer.status_code != httpx.codes.CREATED:
        tally.refused.update(types)
        return
    tally.acknowledged.update(types)
    if not tally.is_kept:
        return
    receipt = answer.json()
    ids = receipt["event_ids"] if path == BATCH else [receipt["event_id"]]
    for event, event_id in zip(events, ids, strict=True):
        tally.receipts.setdefault(event["correlation_id"], {})[event_id] = event["event_type"]


async def _find_all(client: httpx.AsyncClient, tally: Tally) -> None:
    waiting = iter(tally.receipts.items())

    async def ask() -> None:
        for correlation_id, expected in waiting:
            await _find(client, correlation_id, expected, tally)
            tally.correlations_found += 1

    async with progress(lambda: f"asking, {tally.correlations_found} of {len(tally.receipts)} correlations"):
        await asyncio.gather(*(ask() for _ in range(_ASKING_MAX)))


async def _find(client: httpx.AsyncClient, correlation_id: str, expected: dict[str, str], tally: Tally) -> None:
    answer = await _ask(client, "GET", EVENTS, tally, params={"correlation_id": correlation_id, "limit": 1000})
    data = answer.json()["data"] if answer.is_success else []
    tally.found.update(event["event_type"] for event in data)
    present = {event["event_id"] for event in data}
    tally.missing.update(kind for event_id, kind in expected.items() if event_id not in present)


async def _ask(client: httpx.AsyncClient, method: str, path: str, tally: Tally, **content: Any) -> httpx.Response:
    """The last answer. TransportError when there is none. What is busy or breaks off is asked again a few times.

    An event of which the answer was lost can so be stored twice: the table then shows more found than acknowledged.
    """
    for tries_left in reversed(range(_TRIES)):
        try:
            answer = await client.request(method, path, **content)
        except httpx.TransportError:
            if not tries_left:
                raise
            await asyncio.sleep(1)
            continue
        if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE or not tries_left:
            break
        await asyncio.sleep(_retry_after(answer))
    if not answer.is_success:
        tally.complain(f"{method} {path} was answered {answer.status_code}: {answer.text.strip()}")
    return answer


def _retry_after(answer: httpx.Response) -> int:
    text = answer.headers.get("Retry-After", "")
    return min(int(text), 10) if text.isdecimal() else 1
