"""Clients that post without pause, send again what was not acknowledged, and record every answer."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

EVENTS, BATCH = "/api/v1/audit/events", "/api/v1/audit/events/batch"
IN_FLIGHT_MIN = 16
_WORKERS = 40
_ORDERED = 6
"""Workers that each post one request after the other to one replica, into a correlation of their own."""
_CORRELATIONS = 30
_AGAIN_SHARE = 0.06
_DISCONNECTED = (OSError, EOFError, TimeoutError, ValueError)


@dataclass(slots=True, eq=False)
class Sent:
    """One request of a client, however often it was sent, and its answers."""

    path: str
    items: list[dict[str, Any]]
    key: str | None
    guarded: bool
    """It has ids or a key, or is a batch: whatever happens, it may be stored once at most."""
    answers: list[tuple[int, tuple[str, ...]]] = field(default_factory=list)
    """Status and ids of each answer that acknowledged it."""
    refusals: list[tuple[int, str]] = field(default_factory=list)
    ordered: bool = False

    @property
    def acknowledged(self) -> bool:
        return bool(self.answers)

    @property
    def markers(self) -> list[str]:
        return [item["event_data"]["marker"] for item in self.items]


class Load:
    """`ledger` has what was sent since it was last emptied."""

    def __init__(self, urls: Callable[[int], str | None], replicas: int, seed: int) -> None:
        self.ledger: list[Sent] = []
        self.timeout = 4.0
        self.pause_seconds = 0.0
        """Of each worker between two requests, on average."""
        self.batch_sizes: Sequence[int] = (1, 2, 5, 10, 20, 60)
        self.refusable = False
        """Whether a refusal for the event's time is expected, since a clock was changed."""
        self.in_flight = [0] * replicas
        self.statuses: Counter[str] = Counter()
        self.committed: list[float] = []
        """When answers 201 came, by monotonic time."""
        self.surprises: list[str] = []
        """Answers that the contract does not allow."""
        self._urls = urls
        self._replicas = replicas
        self._name = f"{seed:x}-{uuid4().hex[:8]}"
        self._count = 0
        self._seed = seed
        self._going = asyncio.Event()
        self._idle = 0
        self._workers: list[asyncio.Task[None]] = []
        self._connections: dict[tuple[int, str], _Connection] = {}

    @property
    def ordered_correlation(self) -> str:
        """One that grows all the time."""
        return self._ordered(0)

    def _ordered(self, number: int) -> str:
        return f"ord-{self._name}-{number}"

    def start(self) -> None:
        for number in range(_WORKERS):
            self._workers.append(asyncio.create_task(self._work(number)))

    async def stop(self) -> None:
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        self.hang_up()

    def hang_up(self) -> None:
        """Close the connections, which a server does by itself after two minutes without a request; nobody may be sending."""
        for connection in self._connections.values():
            connection.close()

    def forget(self) -> None:
        """Begin with an empty ledger."""
        self.ledger, self.surprises, self.committed = [], [], []
        self.statuses.clear()
        self.refusable = False

    def begin(self) -> None:
        self._going.set()

    async def finish(self, seconds: float) -> bool:
        """Send nothing new; True when every request has its answer, False when some have none in this time."""
        self._going.clear()
        try:
            async with asyncio.timeout(seconds):
                while self._idle < len(self._workers):
                    self._raise_failures()
                    await asyncio.sleep(0.02)
        except TimeoutError:
            return False
        return True

    async def full(self, replica: int | None = None) -> int:
        """Wait until enough requests are in flight, at one replica or at all; returns how many are, now."""
        for _ in range(300):
            self._raise_failures()
            if (now := self._now(replica)) >= IN_FLIGHT_MIN:
                return now
            await asyncio.sleep(0.01)
        return self._now(replica)

    def _now(self, replica: int | None) -> int:
        return sum(self.in_flight) if replica is None else self.in_flight[replica]

    def _raise_failures(self) -> None:
        for worker in self._workers:
            if worker.done():
                worker.result()

    async def _work(self, number: int) -> None:
        chance = random.Random(f"{self._seed}-{number}")
        replica = number % self._replicas if number < _ORDERED else None
        correlation = self._ordered(number) if replica is not None else None
        self._idle += 1
        while True:
            await self._going.wait()
            self._idle -= 1
            sent = self._make(chance, correlation)
            self.ledger.append(sent)
            await self._until_answered(sent, chance, number, replica)
            self._idle += 1
            if self.pause_seconds:
                await asyncio.sleep(chance.uniform(0, 2 * self.pause_seconds))

    def _make(self, chance: random.Random, correlation: str | None) -> Sent:
        self._count += 1
        kind = chance.choices(("plain", "id", "key", "batch", "batch-id", "batch-key"), (3, 3, 3, 2, 1, 1))[0]
        if correlation is not None and kind == "plain":
            kind = "id"
        number = 1 if not kind.startswith("batch") else chance.choice(self.batch_sizes)
        one = correlation or f"c-{self._name}-{chance.randrange(_CORRELATIONS)}"
        items = []
        for at in range(number):
            if correlation is None and at % 7 == 6:
                one = f"c-{self._name}-{chance.randrange(_CORRELATIONS)}"
            event = _event(one, f"{self._name}/{self._count}/{at}", chance)
            if kind in {"id", "batch-id"}:
                event["event_id"] = str(uuid4())
            items.append(event)
        key = str(uuid4()) if kind.endswith("key") else None
        path = BATCH if kind.startswith("batch") else EVENTS
        return Sent(path, items, key, kind != "plain", ordered=correlation is not None)

    async def _until_answered(self, sent: Sent, chance: random.Random, number: int, home: int | None) -> None:
        replica = chance.randrange(self._replicas) if home is None else home
        attempt = 0
        while True:
            attempt += 1
            try:
                status, headers, body = await self._post(sent, replica, number, chance if attempt > 1 else None)
            except _DISCONNECTED as error:
                self.statuses[type(error).__name__] += 1
                if not sent.guarded:
                    return  # its client cannot know the outcome, and a resend would store it twice
                await asyncio.sleep(0.02)
            else:
                if self._is_final(sent, status, headers, body) and (
                    not sent.guarded or sent.refusals or chance.random() > _AGAIN_SHARE
                ):
                    return
                if status in {409, 503}:
                    await asyncio.sleep(chance.uniform(0.01, 0.05))
            if home is None:
                replica = (replica + 1) % self._replicas

    def _is_final(self, sent: Sent, status: int, headers: dict[str, str], body: bytes) -> bool:
        self.statuses[str(status)] += 1
        if status == 201:
            self.committed.append(monotonic())
        if status in {201, 202}:
            answer = json.loads(body)
            ids = tuple(answer.get("event_ids") or [answer.get("event_id")])
            if sent.answers and sent.answers[0][1] != ids:
                self.surprises.append(f"a resend was answered with other ids: {sent.answers[0][1][:2]} and {ids[:2]}")
            sent.answers.append((status, ids))
            return True
        problem = _problem(body)
        if status == 503:
            if "retry-after" not in headers or not problem.get("type", "").endswith("service-unavailable"):
                self.surprises.append(f"503 that is not the documented one: {headers} {body[:200]!r}")
            return False
        if status == 409 and problem.get("type", "").endswith("idempotency-key-in-use"):
            return False
        if not (self.refusable and status == 400 and "event_timestamp" in str(problem)):
            self.surprises.append(f"{status}: {body[:300]!r}")
        if sent.answers:
            self.surprises.append(f"refused after it was acknowledged: {status} {body[:200]!r}")
        sent.refusals.append((status, str(problem.get("detail"))))
        return True

    async def _post(
        self, sent: Sent, replica: int, number: int, again: random.Random | None
    ) -> tuple[int, dict[str, str], bytes]:
        url = self._urls(replica)
        if url is None:
            await asyncio.sleep(0.02)
            raise ConnectionRefusedError
        items = sent.items if again is None else [_shuffled(item, again) for item in sent.items]
        body = json.dumps(items if sent.path == BATCH else items[0]).encode()
        head = f"POST {sent.path} HTTP/1.1\r\nHost: torture\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(body)}\r\n"
        if sent.key is not None:
            head += f'Idempotency-Key: "{sent.key}"\r\n'
        connection = self._connections.get((number, url))
        if connection is None:
            connection = self._connections[number, url] = _Connection(url)
        self.in_flight[replica] += 1
        try:
            async with asyncio.timeout(self.timeout):
                return await connection.ask(head.encode() + b"\r\n" + body)
        except BaseException:
            connection.close()
            del self._connections[number, url]
            raise
        finally:
            self.in_flight[replica] -= 1


class _Connection:
    """One persistent connection, for one request at a time."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname, parts.port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes) -> tuple[int, dict[str, str], bytes]:
        if self._streams is not None and self._streams[0].at_eof():
            self.close()  # by the server, between two requests, which every client sees before it sends the next one
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, self._port)
        reader, writer = self._streams
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        if headers.get("connection") == "close":
            self.close()
        return int(head[0].split()[1]), headers, body

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


def _event(correlation_id: str, marker: str, chance: random.Random) -> dict[str, Any]:
    event_time = datetime.now(UTC) - timedelta(seconds=chance.choice((0, 0, 0, 5, 3600, 86400)))
    payload = {
        "marker": marker,
        "rr_name": "rr-torture",
        "namespace": "payments",
        "from_phase": "Pending",
        "to_phase": "Processing",
        "amount": chance.choice((1, 2.5, -0.0, 1e21, 12345678901234)),
        "text": "x" * chance.choice((0, 10, 300)),
        "more": {"b": [1, {"ö": None}], "a": True},
    }
    return {
        "version": "1.0",
        "event_type": "orchestrator.phase.transitioned",
        "event_timestamp": event_time.isoformat(),
        "event_category": "orchestration",
        "event_action": "transitioned",
        "event_outcome": "success",
        "correlation_id": correlation_id,
        "event_data": payload,
        "severity": "warning",
        "actor_ip": "10.0.0.7",
    }


def _shuffled(value: Any, chance: random.Random) -> Any:
    """The same JSON as Go would write it another time."""
    if isinstance(value, dict):
        names = list(value)
        chance.shuffle(names)
        return {name: _shuffled(value[name], chance) for name in names}
    return [_shuffled(one, chance) for one in value] if isinstance(value, list) else value


def _problem(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
