"""Posts the events of simulated remediations by several concurrent emitters, then queries the service for each of them."""

import asyncio
import ssl
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any
from uuid import uuid4

import httpx

from app.masking import masked
from app.simulate.orchestrator import simulate_remediations
from app.simulate.output import progress, table

EVENTS = "/api/v1/audit/events"
BATCH = "/api/v1/audit/events/batch"

_REMEDIATIONS_PER_BATCH = 5
_CONCURRENT_QUERIES = 8
_ATTEMPTS = 5
_ABOUT_CLOCKS = (
    "On purpose the clock of a fifth of the remediations is wrong by up to an hour, and another fifth is days late: "
    "some events lie in the future, and stand on top of lists.\n"
)
_TIMEOUT_SECONDS = 35.0  # the service itself gives up on a batch after 30


@dataclass(frozen=True, slots=True)
class Options:
    """The options of the command."""

    remediations: int
    seed: int
    url: str
    emitters: int
    token: str | None
    span: timedelta = timedelta()
    """The time before now in which the remediations end."""
    query: bool = True
    """Whether the posted events are queried afterwards; otherwise their receipts are not stored."""
    trusted: ssl.SSLContext | bool = True
    """As httpx's `verify`."""


@dataclass(slots=True)
class Tally:
    """Counts of events per type, and the receipts of those that were acknowledged."""

    sent: Counter[str] = field(default_factory=Counter)
    acknowledged: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)
    missing: Counter[str] = field(default_factory=Counter)
    """Acknowledged, but not in the answer of the query."""
    stores_receipts: bool = True
    receipts: dict[str, dict[str, str]] = field(default_factory=dict)
    """By correlation id: event id and event type of each acknowledged event."""
    correlations_queried: int = 0
    first_failure: str | None = None
    """The first answer that was not a success."""


async def run_simulation(options: Options) -> int:
    """Post the events, query them, and print the table. Returns the exit code."""
    tally = Tally(stores_receipts=options.query)
    try:
        async with _client(options) as client:
            await client.get("/readyz")
            await _emit_all(client, options, tally)
            if options.query:
                await _query_all(client, tally)
    except (httpx.TransportError, httpx.InvalidURL) as error:
        reason = str(error) or type(error).__name__
        sys.stderr.write(
            f"datastorage: no service answers at {masked(options.url)} ({masked(reason)}): start one with `make run`\n"
        )
        return 2
    names = ("sent", "acknowledged", "refused", *(("found", "missing") if options.query else ()))
    columns = {name: getattr(tally, name) for name in names}
    sys.stdout.write(table(columns))
    sys.stderr.write(_ABOUT_CLOCKS)
    if tally.first_failure is not None:
        sys.stderr.write(f"datastorage: {tally.first_failure}\n")
    return int(tally.first_failure is not None or tally.refused.total() + tally.missing.total() > 0)


def _client(options: Options) -> httpx.AsyncClient:
    headers = {} if options.token is None else {"Authorization": f"Bearer {options.token}"}
    limits = httpx.Limits(max_connections=max(options.emitters, _CONCURRENT_QUERIES))
    return httpx.AsyncClient(
        base_url=options.url, headers=headers, timeout=_TIMEOUT_SECONDS, limits=limits, verify=options.trusted
    )


async def _emit_all(client: httpx.AsyncClient, options: Options, tally: Tally) -> None:
    # Correlation ids of each run have a prefix of their own, so that events of another run with the same seed are not found.
    remediations = simulate_remediations(
        options.seed, options.remediations, datetime.now(UTC), f"sim-{uuid4().hex[:8]}", options.span
    )
    emitters = [_emit_singly(client, remediations, tally) for _ in range(max(options.emitters - 1, 1))]
    if options.emitters > 1:
        emitters.append(_emit_batches(client, remediations, tally))

    def line() -> str:
        sums = f"sent {tally.sent.total()}, acknowledged {tally.acknowledged.total()}, refused {tally.refused.total()}"
        return f"posting {options.remediations} remediations: {sums}"

    async with progress(line):
        await asyncio.gather(*emitters)


async def _emit_singly(client: httpx.AsyncClient, remediations: Iterator[list[dict[str, Any]]], tally: Tally) -> None:
    for remediation in remediations:
        for event in remediation:
            await _post(client, EVENTS, event, [event], tally)


async def _emit_batches(client: httpx.AsyncClient, remediations: Iterator[list[dict[str, Any]]], tally: Tally) -> None:
    while events := [event for events in islice(remediations, _REMEDIATIONS_PER_BATCH) for event in events]:
        await _post(client, BATCH, events, events, tally)


async def _post(
    client: httpx.AsyncClient, path: str, body: Any, events: Sequence[dict[str, Any]], tally: Tally
) -> None:
    """Post `body`, which contains `events`, and count whether they were acknowledged."""
    types = [event["event_type"] for event in events]
    tally.sent.update(types)
    answer = await _send(client, "POST", path, tally, json=body)
    if answer.status_code != httpx.codes.CREATED:
        tally.refused.update(types)
        return
    tally.acknowledged.update(types)
    if not tally.stores_receipts:
        return
    receipt = answer.json()
    ids = receipt["event_ids"] if path == BATCH else [receipt["event_id"]]
    for event, event_id in zip(events, ids, strict=True):
        tally.receipts.setdefault(event["correlation_id"], {})[event_id] = event["event_type"]


async def _query_all(client: httpx.AsyncClient, tally: Tally) -> None:
    remaining = iter(tally.receipts.items())

    async def query_next() -> None:
        for correlation_id, expected in remaining:
            await _query(client, correlation_id, expected, tally)
            tally.correlations_queried += 1

    async with progress(lambda: f"asking, {tally.correlations_queried} of {len(tally.receipts)} correlations"):
        await asyncio.gather(*(query_next() for _ in range(_CONCURRENT_QUERIES)))


async def _query(client: httpx.AsyncClient, correlation_id: str, expected: dict[str, str], tally: Tally) -> None:
    answer = await _send(client, "GET", EVENTS, tally, params={"correlation_id": correlation_id, "limit": 1000})
    data = answer.json()["data"] if answer.is_success else []
    tally.found.update(event["event_type"] for event in data)
    present = {event["event_id"] for event in data}
    tally.missing.update(kind for event_id, kind in expected.items() if event_id not in present)


async def _send(client: httpx.AsyncClient, method: str, path: str, tally: Tally, **content: Any) -> httpx.Response:
    """Send a request, again if the service is busy or the connection breaks. Returns the last answer, or TransportError.

    An event whose answer was lost can be stored twice by this: the table then shows more found than acknowledged.
    """
    for attempts_left in reversed(range(_ATTEMPTS)):
        try:
            answer = await client.request(method, path, **content)
        except httpx.TransportError:
            if not attempts_left:
                raise
            await asyncio.sleep(1)
            continue
        if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE or not attempts_left:
            break
        await asyncio.sleep(_retry_after(answer))
    if not answer.is_success:
        failure = f"{method} {path} was answered {answer.status_code}: {answer.text.strip()}"
        tally.first_failure = tally.first_failure or failure
    return answer


def _retry_after(answer: httpx.Response) -> int:
    text = answer.headers.get("Retry-After", "")
    return min(int(text), 10) if text.isdecimal() else 1
