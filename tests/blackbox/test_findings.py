"""What somebody who owns the database has done to it stays known, and shown, until somebody who may has acknowledged it."""

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from app.events.record import stored_hash
from tests.blackbox.test_access import bearer, write_tokens
from tests.conftest import LOG_NAME
from tests.events import make_event
from tests.sealed import insert, plain_row
from tests.services import Service, stop
from tests.waiting import eventually

pytestmark = pytest.mark.damaged  # the log is rewritten

FINDINGS = "/api/v1/audit/findings"
Connection = Any
Start = Callable[..., Service]
ClientOf = Callable[[Service], "Client"]


@pytest.fixture
def tokens(tmp_path: Path) -> dict[str, str]:
    return write_tokens(tmp_path / "tokens.yaml", reader="reader", writer="writer", admin="admin")


@pytest.fixture
def start(service: Start, tmp_path: Path, tokens: dict[str, str]) -> Start:
    """The same replica each time: its key, its tokens and its spool stay."""
    del tokens
    pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "key.pem").write_bytes(pem)
    settings = {"auth": "tokens", "tokens_file": tmp_path / "tokens.yaml", "spool_dir": tmp_path / "the-spool"}
    settings |= {"checkpoint_key_file": tmp_path / "key.pem"}
    return lambda **more: service(**settings | more)


@pytest.fixture
async def client_of(tokens: dict[str, str]) -> AsyncIterator[ClientOf]:
    """Makes clients of services, which are closed at the end."""
    clients: list[Client] = []

    def make(running: Service) -> Client:
        clients.append(Client(running, tokens))
        return clients[-1]

    yield make
    for client in clients:
        await client.http.aclose()


async def rewrite(connection: Connection) -> None:
    """Another event in place of the last one, as if it had always been that: row, head, leaf and tree agree. No checkpoint is left."""
    async with connection.transaction():
        await connection.execute("SET LOCAL session_replication_role = replica")
        row = await connection.fetchrow(
            "SELECT *, event_data::text AS event_data FROM audit_events WHERE correlation_id = 'rr-last' ORDER BY log_index DESC LIMIT 1"
        )
        changed = dict(row) | {"severity": "low"}
        forged = stored_hash(changed, LOG_NAME)
        await connection.execute(
            "UPDATE audit_events SET severity = 'low', event_hash = $2 WHERE event_id = $1", row["event_id"], forged
        )
        await connection.execute("UPDATE chain_heads SET hash = $1 WHERE correlation_id = 'rr-last'", forged)
        await connection.execute(
            "UPDATE log_flushes SET leaves = overlay(leaves PLACING decode($2, 'hex') FROM (32 * ($1 - first_index) + 1)::int) "
            "WHERE first_index >= 0 AND first_index <= $1 AND first_index + count > $1",
            *(row["log_index"], forged),
        )
        await connection.execute("TRUNCATE log_tiles, log_checkpoints; UPDATE log_signers SET note = NULL")


class Client:
    """What is shown of one service."""

    def __init__(self, running: Service, tokens: dict[str, str]) -> None:
        self.http = httpx.AsyncClient(base_url=running.url, timeout=20, headers=bearer(tokens["admin"]))
        self.tokens = tokens

    async def post(self, correlation_id: str) -> None:
        answer = await self.http.post("/api/v1/audit/events", json=make_event(correlation_id=correlation_id))
        assert answer.status_code == 201, answer.text

    async def metric(self, name: str) -> float:
        lines = (await self.http.get("/metrics")).text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))

    async def rounds(self, number: int) -> None:
        """So many rounds of the verifier that begin from now on."""
        wanted = await self.metric("datastorage_verifier_rounds_total") + number + 1

        async def are_over() -> bool | None:
            return await self.metric("datastorage_verifier_rounds_total") >= wanted or None

        await eventually(are_over)

    async def open(self) -> int:
        """How many findings each place shows; they agree, and the probe is 200."""

        async def agreed() -> int | None:
            answer = await self.http.get(FINDINGS)
            if answer.status_code == 503:
                return None  # a busy machine
            listed = answer.json()["total"]
            probe = await self.http.get("/readyz")
            assert probe.status_code == 200
            shown = {listed, probe.json().get("findings", 0), int(await self.metric("datastorage_open_findings"))}
            return listed if len(shown) == 1 else None

        return await eventually(agreed)

    async def has_signed(self, size: int) -> None:
        async def signed() -> bool | None:
            return await self.metric("datastorage_checkpoint_size") >= size or None

        await eventually(signed)

    async def listed(self, **query: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await self.http.get(FINDINGS, params=query)).json()["findings"]
        return found

    async def listed_if_any(self) -> list[dict[str, Any]] | None:
        return await self.listed() or None

    async def acknowledge(self, finding_id: object, who: str = "admin", **body: object) -> httpx.Response:
        url = f"{FINDINGS}/{finding_id}/acknowledgement"
        return await self.http.post(url, json=body, headers=bearer(self.tokens[who]))


async def test_rewritten_while_it_runs(start: Start, client_of: ClientOf, connection: Connection) -> None:
    """A consistent rewrite without checkpoints is forgotten a round later, with the tables or by a restart; or for ever shown."""
    running = start()
    client = client_of(running)
    for correlation_id in ("rr-1", "rr-last"):
        await client.post(correlation_id)
    await client.has_signed(2)
    await client.rounds(1)
    assert await client.open() == 0
    assert (await client.http.get("/readyz")).json() == {"status": "ready"}
    await rewrite(connection)

    async def is_found() -> bool | None:
        return bool((await client.http.get("/readyz")).json().get("findings")) or None

    await eventually(is_found)
    await client.rounds(2)
    found = await client.open()
    assert {one["kind"] for one in await client.listed()} == {"edited"}  # by the verifier, or as the alarm `rewritten`
    assert ("edited", ["checkpoint 2"]) in [(one["kind"], one["subjects"]) for one in await client.listed()]
    await connection.execute("TRUNCATE verifier, verifier_findings")
    assert stop([running]) == [0]

    client = client_of(start())
    assert await client.open() == found
    await client.rounds(1)
    assert await client.open() == found
    for who, status in (("reader", 403), ("writer", 403)):
        assert (
            await client.acknowledge((await client.listed())[0]["finding_id"], who, reason="x")
        ).status_code == status
    for one in await client.listed():
        for body in ({}, {"reason": ""}, {"reason": " "}, {"reason": 7}):
            refused = await client.acknowledge(one["finding_id"], **body)
            assert (refused.status_code, "reason" in refused.text) == (400, True)
        answer = await client.acknowledge(one["finding_id"], reason="a test of the owner")
        assert (answer.status_code, answer.json()["acknowledged_by"]) == (200, "admin"), answer.text
        assert (await client.acknowledge(one["finding_id"], reason="again")).status_code == 404
    assert (await client.acknowledge("none", reason="x")).status_code == 400
    assert await client.open() == 0
    await client.rounds(1)  # the log is still rewritten
    assert await client.open() == 0
    query = {"event_type": "datastorage.finding.acknowledged", "sealed": "true"}
    events = (await client.http.get("/api/v1/audit/events", params=query)).json()["data"]
    assert {(one["actor_id"], one["event_data"]["reason"]) for one in events} == {("admin", "a test of the owner")}
    assert len(events) == len(await client.listed(include="acknowledged")) == found

    event = make_event(correlation_id="rr-1", event_id=str(uuid4()))
    await insert(connection, plain_row("rr-1", event_id=UUID(event["event_id"])))
    assert (await client.http.post("/api/v1/audit/events", json=event)).status_code == 409
    assert await eventually(client.listed_if_any)  # what the writer itself finds wrong
    [alarm] = await client.listed()
    assert (alarm["alarm"], alarm["subjects"]) == ("unsealed", [f"event {event['event_id']}"])


async def test_rewritten_while_it_is_stopped(
    start: Start, client_of: ClientOf, connection: Connection, tmp_path: Path
) -> None:
    """A replica that starts again has forgotten what it had seen; or an honest restart is a finding, or a forged note is."""
    running = start(verifier_events_per_second=0)
    client = client_of(running)
    for correlation_id in ("rr-1", "rr-last"):
        await client.post(correlation_id)
    await client.has_signed(2)
    note = tmp_path / "the-spool" / "checkpoint"

    async def is_noted() -> bool | None:
        return note.exists() or None

    await eventually(is_noted)
    assert stop([running]) == [0]
    genuine = note.read_text()
    note.write_text(genuine.replace("\n2\n", "\n999\n"))

    running = start()
    client = client_of(running)
    await client.rounds(1)
    assert await client.open() == 0
    assert stop([running]) == [0]
    messages = [
        json.loads(line).get("message", "") for line in running.log.read_text().splitlines() if line.startswith("{")
    ]
    assert len([one for one in messages if "note of the last checkpoint is ignored" in one]) == 1
    assert note.read_text() == genuine

    await rewrite(connection)
    running = start()
    client = client_of(running)

    async def is_found() -> bool | None:
        return await client.open() == 1 or None

    await eventually(is_found)
    await client.rounds(1)
    [finding] = await client.listed()
    assert (finding["kind"], finding["subjects"]) == ("edited", ["checkpoint 2"])
    assert (await client.acknowledge(finding["finding_id"], reason="known")).status_code == 200
