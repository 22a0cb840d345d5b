"""A small database in which everything has happened once: what the service writes, what it purges and erases, what others insert; in a
log that was closed after a loss, and in the one that continues it.
"""

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509 import Certificate
from pydantic import SecretStr

from app.continuing import continue_log
from app.events.catalog import Catalog
from app.retention import erase, purge
from app.retention.erase import Erasure
from app.rollup import count_portion
from app.settings import Settings
from app.tlog.authority import Authority
from app.tlog.copies import CheckpointCopies
from app.tlog.keys import SigningKey
from app.tlog.note import PublicKey
from app.tlog.signer import Alarms, Signer
from app.tlog.timestamp import read_certificates
from app.tlog.witness import Witnesses
from app.tlog.worker import CheckpointWorker
from app.verify.worker import LogVerifiers
from tests import databases, services
from tests.events import NOTIFICATION, make_event, make_freeform
from tests.logs import FIRST_LOG
from tests.postgres.log import write
from tests.postgres.test_checkpoints import no_heartbeat
from tests.postgres.test_verify import insert_reference
from tests.sealed import insert, plain_row
from tests.timestamping import TimestampAuthority, serving

NOW = datetime.now(UTC)
TWO_MONTHS_AGO = (NOW.replace(day=1) - timedelta(days=60)).replace(day=10)
A_MONTH_AGO = (NOW.replace(day=1) - timedelta(days=10)).replace(day=10)
AGE = "UPDATE log_checkpoints SET signed_at = signed_at - interval '1 hour'"
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@dataclass(frozen=True)
class World:
    """The database, and what an auditor has of it."""

    url: str
    key: PublicKey
    outside: str
    """A checkpoint of the whole last log."""
    certificates: list[Certificate]
    """Of the timestamp authority."""


async def build(server_url: str, url: str, directory: Path) -> World:
    """Fill the empty database at `url`, of the server at `server_url`; the service's files are in the empty `directory`."""
    private = Ed25519PrivateKey.generate()
    key = SigningKey(private, PublicKey(FIRST_LOG.name, private.public_key().public_bytes_raw()))
    pem = directory / "key.pem"
    pem.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    settings = Settings(database_url=SecretStr(url), checkpoint_key_file=pem)
    with serving(TimestampAuthority(directory / "tsa")) as tsa:
        authority = Authority(tsa.url, read_certificates(tsa.issuer), key.all_public)
        await _write_old_events(url)
        await _end_stage(url, key)
        async with _service(url, pem, directory / "service") as client:
            await _write_through_the_service(client)
        await _remove(settings, url)
        await write(url, {"correlation_id": "rr-part"}, {"correlation_id": "rr-1", "error_message": "late"})
        await _end_stage(url, key, authority)
        await _lose_and_continue(server_url, url, settings, key)
        async with _service(url, pem, directory / "service-after") as client:
            await _write_after_the_seam(client)
        await _write_old_events(url)
        await _remove(settings, url)
        await write(url, {"correlation_id": "rr-part"}, {"correlation_id": "rr-6"})
        outside = await _end_stage(url, key, authority, is_last=True)
    return World(url, key.public, outside, authority.certificates)


async def _end_stage(url: str, key: SigningKey, authority: Authority | None = None, *, is_last: bool = False) -> str:
    """Sign a checkpoint, with a timestamp if there is an authority; the workers have all seen the last stage. Returns the note."""
    copies = CheckpointCopies(None, None)
    signing = CheckpointWorker(FIRST_LOG, Signer(key), Witnesses([]), copies, Alarms(), 0, key=key)
    async with databases.connected(url) as connection:
        if is_last:
            await _write_as_the_reference(connection)
            while await count_portion(connection):
                pass
            verifier = LogVerifiers(FIRST_LOG, key.all_public, 100)
            for _ in range(2):  # a round of each log
                while await verifier.verify_next_part(connection):
                    pass
        await signing.run_round(connection, no_heartbeat)
        if authority is not None:
            await authority.run_round(connection, signing.log)
        if not is_last:
            await connection.execute(AGE)
        newest = "SELECT note FROM log_checkpoints ORDER BY log_id DESC, size DESC LIMIT 1"
        return str(await connection.fetchval(newest))


@asynccontextmanager
async def _service(url: str, pem: Path, directory: Path) -> AsyncIterator[httpx.AsyncClient]:
    settings = {"database_url": url, "unsafe_database": True, "checkpoint_key_file": pem, "audit_exports": True}
    service = services.spawn(settings, directory)
    try:
        services.wait_until_ready(service)
        async with httpx.AsyncClient(base_url=service.url, timeout=30, headers={"X-User-ID": "ada"}) as client:
            yield client
    finally:
        assert services.stop([service]) == [0]


async def _remove(settings: Settings, url: str) -> None:
    """Purge what is due, and erase what was asked for."""
    async with databases.connected(url) as connection:
        await connection.execute(AGE)
    await purge.run(settings, NOW)
    for erasure in (Erasure("asked", "eve", correlation_id="rr-erased"), Erasure("asked", "eve", actor_id="bob")):
        await erase.erase(settings, Catalog(), erasure, dry_run=False)


async def _lose_and_continue(server_url: str, url: str, settings: Settings, key: SigningKey) -> None:
    """A standby that missed the last events takes over and accepts others; then the log is continued by the next one."""
    standby = await databases.copy_of(server_url, url)
    await write(url, {"correlation_id": "rr-1"}, {"correlation_id": "rr-lost"})
    signed = await _end_stage(url, key)
    await databases.fail_over(server_url, url, standby)
    await write(url, {"correlation_id": "rr-1"}, {"correlation_id": "rr-3"}, {"correlation_id": "rr-3"})
    await continue_log(settings, "ada", "failover", [signed], dry_run=False)


async def _write_old_events(url: str) -> None:
    """A month that is purged whole, with one chain of which something remains; and another month of which some rows are purged."""

    def old(correlation_id: str, time: datetime, days: int = 10) -> dict[str, Any]:
        return {"correlation_id": correlation_id, "event_timestamp": time.isoformat(), "retention_days": days}

    await write(
        url,
        *(old(f"rr-gone-{turn % 3}", TWO_MONTHS_AGO) for turn in range(7)),
        *(old("rr-part", TWO_MONTHS_AGO) for _ in range(3)),
        *(old("rr-part", A_MONTH_AGO, days) for days in (10, 2555, 10)),
        *(old("rr-held", A_MONTH_AGO) for _ in range(2)),
        *(old("rr-batch", A_MONTH_AGO) for _ in range(3)),
    )


async def _write_through_the_service(client: httpx.AsyncClient) -> None:
    """What clients and operators do over HTTP; held events are there before the purge, and events after the holds."""
    events, audit = "/api/v1/audit/events", "/api/v1/audit"

    async def post(path: str, body: Any, **headers: str) -> Any:
        answer = await client.post(path, json=body, headers=headers)
        assert answer.is_success, answer.text
        return answer.json()

    for turn in range(6):
        batch = [make_event(correlation_id=f"rr-{turn % 3}", duration_ms=place + 1) for place in range(45)]
        await post(f"{events}/batch", batch, **({"Idempotency-Key": f"key-{turn}"} if turn == 1 else {}))
    for selector in (
        {"correlation_id": "rr-held"},
        {"actor_id": "carol"},
        {"resource": {"type": "Pod", "id": "held-pod"}},
        {"correlation_id": "rr-2"},
    ):
        await post(f"{audit}/legal-hold", selector | {"reason": "litigation"})
    released = await client.request("DELETE", f"{audit}/legal-hold/rr-2", json={"release_reason": "settled"})
    assert released.is_success, released.text
    parent = (await post(events, make_event(correlation_id="rr-4", event_id=str(uuid.uuid4()))))["event_id"]
    child = make_event(
        correlation_id="rr-4", parent_event_id=parent, is_sensitive=True, error_code="E", error_message="no"
    )
    await post(events, child, traceparent=TRACE)
    await post(events, make_event(correlation_id="rr-4", event_timestamp="0001-01-01T00:00:00Z"))
    await post(events, make_event(correlation_id="rr-4", actor_id="carol"))
    await post(
        events,
        make_freeform(correlation_id="rr-4", payload={"large": 2**70, "small": 1e-9, "text": "é", "list": [1, {}]}),
    )
    for erased in (make_event(correlation_id="rr-erased"), make_freeform(correlation_id="rr-erased")):
        await post(events, erased | {"error_message": "bob did it"})
    await post(events, make_event(correlation_id="rr-4", actor_id="bob"))
    imported = [
        make_event(correlation_id="rr-5", event_timestamp=(NOW - timedelta(days=20)).isoformat()) for _ in range(2)
    ]
    await post(f"{audit}/import", imported)
    for number in range(3):
        await post(
            f"{audit}/notifications",
            NOTIFICATION | {"notification_id": f"n-{number}", "remediation_id": f"rr-{number}"},
        )
    answer = await client.get(f"{audit}/export", params={"format": "ndjson", "correlation_id": "rr-4"})
    assert answer.is_success


async def _write_after_the_seam(client: httpx.AsyncClient) -> None:
    """As before: events of old and new chains, what covers and what excuses them, notifications, an import."""
    events, audit = "/api/v1/audit/events", "/api/v1/audit"

    async def send(method: str, path: str, body: Any) -> None:
        answer = await client.request(method, path, json=body)
        assert answer.is_success, answer.text

    for name in ("rr-1", "rr-6"):
        await send("POST", f"{events}/batch", [make_event(correlation_id=name, duration_ms=n) for n in range(1, 20)])
    for selector in ({"correlation_id": "rr-6"}, {"actor_id": "dora"}, {"correlation_id": "rr-1"}):
        await send("POST", f"{audit}/legal-hold", selector | {"reason": "litigation"})
    for released in ("rr-1", "rr-held"):  # the second one was placed in the log before
        await send("DELETE", f"{audit}/legal-hold/{released}", {"release_reason": "settled"})
    for event in (
        make_event(correlation_id="rr-6", actor_id="dora"),
        make_event(correlation_id="rr-erased"),
        make_event(correlation_id="rr-7", actor_id="bob", error_message="bob did it"),
    ):
        await send("POST", events, event)
    policy = {"retention_days": 2000, "floor_days": 1, "reason": "asked"}
    await send("PUT", f"{audit}/retention-policies/analysis", policy)
    await send("POST", f"{audit}/import", [make_event(correlation_id="rr-6", event_timestamp=A_MONTH_AGO.isoformat())])
    for number in (1, 9):
        notification = NOTIFICATION | {"notification_id": f"m-{number}", "remediation_id": f"rr-{number}"}
        await send("POST", f"{audit}/notifications", notification)


async def _write_as_the_reference(connection: asyncpg.Connection) -> None:
    """Rows that others insert: with the reference's hash, keyed by it, and without a hash; and a hold by the columns."""
    previous = ""
    for _ in range(3):
        previous = await insert_reference(connection, "rr-sql", previous)
    await connection.execute(
        "INSERT INTO notification_audit (remediation_id, notification_id, recipient, channel, message_summary, status, sent_at)"
        " VALUES ('rr-1', 'n-sql', 'sre', 'slack', 'done', 'sent', now())"
    )
    await insert(connection, plain_row("rr-sql-2"))
    await insert(connection, plain_row("rr-1"))
    await connection.execute(
        "UPDATE audit_events SET legal_hold = true, legal_hold_reason = 'by SQL', legal_hold_placed_by = 'sql' "
        "WHERE correlation_id = 'rr-sql-2'"
    )
