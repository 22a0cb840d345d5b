"""Ids that stand twice: whoever may INSERT puts a row of their own under the id of another event. Triggers are on."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import orjson
import pytest
from pydantic import SecretStr

from app.db import Engine
from app.errors import Conflict
from app.events.canonical import canonical
from app.ingest.accept import Acceptance, Draft, check_item, computed_ids
from app.ingest.parents import find_parent_dates
from app.ingest.submission import new_submission
from app.metrics import LOG_ALARMS
from app.query import page as pages
from app.query import page_statements
from app.query.filter import EventQuery
from app.query.whole_event import whole_event
from app.retention.erase import Erasure, erase
from app.settings import Settings
from app.tlog.keys import SigningKey
from app.tlog.prove import prove_event
from app.tlog.signer import Signer
from app.verify.correlation import verify_correlation
from app.verify.worker import Verifier
from tests.logs import FIRST_LOG
from tests.postgres.test_background import a_round, findings
from tests.postgres.test_checkpoints import no_heartbeat, worker
from tests.postgres.test_tampering import KEY, PUBLIC, found
from tests.postgres.test_writer import CATALOG, LOG, Replica, item, replica
from tests.sealed import insert, plain_row

pytestmark = pytest.mark.damaged

Connection = asyncpg.Connection
COPIED = ("event_hash", "hash_algorithm", "log_id", "log_index", "chain_index", "payload_salt", "previous_event_hash")


async def forge(connection: Connection, event_id: UUID, *, copied: UUID | None = None) -> None:
    """INSERT a row with this id, of another correlation and older, with what proves the event `copied`, if that is given."""
    days_ago = datetime.now(UTC) - timedelta(days=40)
    row = plain_row("rr-forged", event_id=event_id, event_timestamp=days_ago, event_date=days_ago.date())
    if copied is not None:
        names = ", ".join(COPIED)
        real = await connection.fetchrow(f"SELECT {names} FROM audit_events WHERE event_id = $1", copied)
        row |= dict(real or {})
    await insert(connection, row)


@pytest.fixture(params=["unsealed", "copied"])
def forged(request: pytest.FixtureRequest, connection: Connection) -> Callable[[UUID], Awaitable[None]]:
    """Forges a row under an id: as others insert rows, or with a copy of all that seals the real one."""

    async def insert_row(event_id: UUID) -> None:
        await forge(connection, event_id, copied=None if request.param == "unsealed" else event_id)

    return insert_row


async def kinds_in(connection: Connection, correlation_id: str) -> set[str]:
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        report = await verify_correlation(connection, correlation_id, FIRST_LOG)
    assert report.is_valid == (not report.defects.count and report.head_defect is None)
    return {defect.kind for defect in report.defects.listed}


async def test_shadowed(database_url: str, connection: Connection, engine: Engine, forged: Any) -> None:
    """A row of somebody's own under the id of a sealed event is shown as that event, or no verifier names it."""
    signing = worker(Signer(SigningKey(KEY, PUBLIC)))
    async with replica(database_url) as one:
        event_id, other = [await one.post(item("rr-real", event_action=f"step-{i}")) for i in range(2)]
    await signing.run_round(connection, no_heartbeat)
    assert await found(connection) == set()
    await forged(event_id)
    assert "shadowed" in await found(connection)
    assert {"shadowed"} == await kinds_in(connection, "rr-real")
    assert "shadowed" in await kinds_in(connection, "rr-forged")
    verifier = Verifier(FIRST_LOG, (), 5)
    await a_round(verifier, connection)
    assert "shadowed" in {kind for kind, _, _ in await findings(connection)}

    shown = await pages.event_by_id(engine, event_id)
    assert shown is not None
    assert (shown["correlation_id"], shown["event_action"], "sealed" in shown) == ("rr-real", "step-0", False)
    assert (await prove_event(engine, event_id, FIRST_LOG)).proof.index == 0
    child = drafted(item("rr-real", parent_event_id=str(event_id)))
    async with replica(database_url) as one:
        dates = await find_parent_dates(engine, one.writer, [child], asyncio.get_running_loop().time() + 5)
    assert dates == {event_id: datetime.now(UTC).date()}
    assert (await pages.event_by_id(engine, other) or {})["event_action"] == "step-1"


async def test_shadowed_a_hundred_times(database_url: str, connection: Connection, engine: Engine) -> None:
    """Behind many forged rows with earlier positions the page of an event shows one of them."""
    async with replica(database_url) as one:
        event_id = await one.post(item("rr-real"))
    for number in range(101):
        await insert(connection, plain_row(f"rr-{number}", event_id=event_id, log_id=0, log_index=-1))
    found = await whole_event(engine, event_id, FIRST_LOG)
    assert found is not None
    assert (found.row["correlation_id"], found.is_logged, found.rows) == ("rr-real", True, 100)


async def test_large_members_of_a_shadowed_event(
    connection: Connection, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The payload of one row is shown as that of another with its id and date, or the page is cut."""
    monkeypatch.setattr(page_statements, "PORTION_BYTES", 100)
    page_statements.page_statement.cache_clear()
    row = plain_row("rr-1", event_data='{"whose": "%s"}' % ("a" * 200))
    await insert(connection, row)
    await insert(connection, row | {"correlation_id": "rr-2", "event_data": '{"whose": "%s"}' % ("b" * 200)})
    found = await pages.page(engine, EventQuery())
    shown = [
        *found.events,
        *[event async for portion in pages.rest_of_page(lambda read: read(engine), found) for event in portion],
    ]
    page_statements.page_statement.cache_clear()
    assert len(found.rest) == 1
    for event in shown:
        alone = await connection.fetchval(
            "SELECT event_data->>'whose' FROM audit_events WHERE correlation_id = $1", event["correlation_id"]
        )
        assert alone.encode() in orjson.dumps(event)


def batch_id(posted: dict[str, Any]) -> UUID:
    """The id that the batch of this event gets: everybody who knows its body can compute it."""
    source = ("body", hashlib.sha256(canonical([posted])).hexdigest())
    return computed_ids([drafted(posted)], "", source, datetime.now(UTC))[0]


def drafted(posted: dict[str, Any]) -> Draft:
    return check_item(CATALOG, posted, "/0", plain=False, depth=3)


@pytest.mark.parametrize("kind", ["unsealed", "copied", "copied from a purged event", "under its very key"])
async def test_batch_that_a_row_stands_in_for(database_url: str, connection: Connection, kind: str) -> None:
    """Who knows a body inserts a row under an id of its batch, and the batch is answered as stored although it never is."""
    before = LOG_ALARMS.labels(alarm="unsealed")._value.get()
    async with replica(database_url) as one:
        real = await one.post(item("rr-0"))
        posted = item("rr-1")
        event_id = batch_id(posted)
        if kind == "under its very key":
            await insert(connection, plain_row("rr-1", event_id=event_id))
        else:
            await forge(connection, event_id, copied=None if kind == "unsealed" else real)
        if kind == "copied from a purged event":
            await connection.execute("DELETE FROM audit_events WHERE event_id = $1", real)
        # A resend: the request that looks first, as a client's second one does, or as replay does.
        with pytest.raises(Conflict, match=str(event_id)):
            await looked_up(one, posted)
        assert LOG_ALARMS.labels(alarm="unsealed")._value.get() > before
        # Nobody is told that it is stored unless it is.
        try:
            assert await one.batch(posted) == [event_id]
            stored = await connection.fetchval(
                "SELECT count(*) FROM audit_events WHERE event_id = $1 AND correlation_id = 'rr-1' AND log_index > 0",
                event_id,
            )
            assert stored == 1
        except Conflict:
            assert kind == "under its very key"


async def looked_up(one: Replica, posted: dict[str, Any]) -> None:
    """Submit a batch whose ids are looked up before it is sent."""
    draft = drafted(posted)
    event_id = batch_id(posted)
    submission = await new_submission([draft], [event_id], Acceptance(datetime.now(UTC), {}, LOG))
    submission.needs_lookup = True
    await one.writer.submit(submission, asyncio.get_running_loop().time() + 5)


async def test_id_that_a_client_sends(database_url: str, connection: Connection) -> None:
    """An event whose sender chose its id is answered as stored since somebody's row has that id."""
    async with replica(database_url) as one:
        posted = item("rr-1", event_id="019abc00-0000-7000-8000-000000000001")
        await forge(connection, UUID(posted["event_id"]))
        with pytest.raises(Conflict, match="not in the log"):
            await one.post(posted)


async def test_resends_of_what_is_stored(database_url: str, connection: Connection) -> None:
    """A resend of a sealed event is refused: since its row was erased, its hash was overwritten, or it is shadowed."""
    settings = Settings(database_url=SecretStr(database_url))
    async with replica(database_url) as one:
        posted = [item("rr-1", event_action=f"step-{i}") for i in range(3)]
        posted += [item("rr-1", actor_ip=address) for address in ("10.0.0.1", "::ffff:10.0.0.1", "2001:DB8::1")]
        ids = [(await one.batch(each))[0] for each in posted]
        await connection.execute("UPDATE audit_events SET event_hash = 'overwritten' WHERE event_id = $1", ids[0])
        await forge(connection, ids[1])
        await erase(settings, CATALOG, Erasure("x", "Ada", [ids[2]]), dry_run=False)
        for each, event_id in zip(posted, ids, strict=True):
            assert await one.batch(each) == [event_id]
            await looked_up(one, each)


async def test_resend_of_what_is_purged_meanwhile(
    database_url: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event that a purge removes while its resend is looked up is taken for a row of somebody's own: 409, and an alarm."""
    before = LOG_ALARMS.labels(alarm="unsealed")._value.get()
    posted = item("rr-1")
    async with replica(database_url) as one:
        [event_id] = await one.batch(posted)
        original = one.writer.store._ids_by_seal

        async def meanwhile(*arguments: Any) -> Any:
            await connection.execute("SET session_replication_role = replica")
            await connection.execute("DELETE FROM audit_events WHERE event_id = $1", event_id)
            return await original(*arguments)

        monkeypatch.setattr(one.writer.store, "_ids_by_seal", meanwhile)
        await looked_up(one, posted)
    assert LOG_ALARMS.labels(alarm="unsealed")._value.get() == before
