"""Erasure on a real Postgres: personal content is removed, the record stays, and what is held is not touched."""

import hashlib
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import orjson
import pytest
from pydantic import SecretStr

from app import db
from app.events.canonical import canonical, loads
from app.events.catalog import PAYLOAD_CHECKS, SELF_EVENT_TYPES, Catalog
from app.events.catalog.examples import example
from app.events.neutral import neutral_payload
from app.events.record import record, record_leaf_hash
from app.query.filter import EventQuery
from app.query.page import page
from app.retention import erase, holds
from app.retention.erase import Erasure, UnderHold
from app.retention.holds import HoldOrder, Selector
from app.settings import Settings
from app.tlog.evidence import read_evidence
from tests.logs import FIRST_LOG
from tests.postgres.log import LOG, write
from tests.postgres.test_tampering import erase as empty
from tests.postgres.test_tampering import found_by_each, sign
from tests.sealed import insert, plain_row

pytestmark = pytest.mark.damaged  # the verification at the end of every test does not know erasures
CATALOG = Catalog()


async def erased(url: str, *, dry_run: bool = False, **which: Any) -> erase.Erased:
    erasure = Erasure("asked for", "eve", **which)
    return await erase.erase(Settings(database_url=SecretStr(url)), CATALOG, erasure, dry_run=dry_run)


@pytest.mark.parametrize("name", sorted(PAYLOAD_CHECKS))
def test_neutral_payloads_are_of_their_type(name: str) -> None:
    """A typed client fails the whole page, since an erased payload lacks a member; or some content is left."""
    payload = example(name)
    left = neutral_payload(Catalog(allow_self_events=True), payload)
    Catalog(allow_self_events=True).check_payload(name, left, "")
    assert left["event_type"] == name
    unchanged = {text for text in _texts(left) if text in set(_texts(payload))} - {name}
    words = {"0" * 64, "00000000-0000-0000-0000-000000000000"}
    assert all(text in _enumerated(name) for text in unchanged - words), unchanged


def _texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for member in value.values() for text in _texts(member)]
    if isinstance(value, list):
        return [text for member in value for text in _texts(member)]
    return [value] if isinstance(value, str) else []


def _enumerated(name: str) -> str:
    from app.events.catalog import EVENT_TYPES
    from app.events.catalog.examples import json_schema

    return orjson.dumps(json_schema(EVENT_TYPES[name].payload)).decode()


def test_free_form_leaves_nothing() -> None:
    """A payload without a type keeps its content."""
    assert neutral_payload(CATALOG, {"decided_by": "ada"}) == {}
    assert neutral_payload(CATALOG, {"event_type": "nobody.knows", "who": "ada"}) == {"event_type": "nobody.knows"}


@pytest.mark.parametrize("by", ["event", "actor", "correlation"])
async def test_erased_is_gone_and_proven(database_url: str, connection: Any, by: str) -> None:
    """A person's data is still there after its erasure, or the event's hash can no longer be computed, or no event records it."""
    people = {"actor_id": "ada", "actor_ip": "10.0.0.9", "resource_id": "ada's pod", "error_message": "ada did it"}
    ids = await write(database_url, {"correlation_id": "rr-ada"} | people, {"correlation_id": "rr-ada"} | people)
    (other,) = await write(database_url, {"correlation_id": "rr-other"})
    hashes = [row[0] for row in await connection.fetch("SELECT event_hash FROM audit_events ORDER BY log_index")]
    which: dict[str, dict[str, Any]] = {
        "event": {"event_ids": ids},
        "actor": {"actor_id": "ada"},
        "correlation": {"correlation_id": "rr-ada"},
    }
    assert (await erased(database_url, dry_run=True, **which[by])).events == ids
    assert await connection.fetchval("SELECT count(payload_commitment) FROM audit_events") == 0
    done = await erased(database_url, **which[by])
    assert done.events == ids
    rows = await connection.fetch("SELECT *, event_data::text AS payload FROM audit_events ORDER BY log_index")
    for row, event_hash in zip(rows[:2], hashes, strict=False):
        assert (row["actor_id"], row["resource_id"]) == ("erased", "erased")
        assert [row[n] for n in ("actor_ip", "error_message", "payload_salt", "event_metadata", "resource_name")] == [
            None
        ] * 5
        assert loads(row["payload"]) == {
            "event_type": "orchestrator.lifecycle.started",
            "rr_name": "erased",
            "namespace": "erased",
        }
        assert record_leaf_hash(record(row, LOG, row["payload_commitment"])).hex() == row["event_hash"] == event_hash
    assert (rows[2]["event_id"], rows[2]["payload_commitment"]) == (other, None)
    self_event = loads(rows[3]["payload"])
    assert self_event == {
        "event_type": "datastorage.event.erased",
        "erasure_id": str(done.erasure_id),
        "event_ids": [str(event_id) for event_id in ids],
        "positions": "{[0,2)}",
        "left": [hashlib.sha256(canonical(loads(row["payload"]))).hexdigest() for row in rows[:2]],
        "log_id": 0,
        "erased_by": "eve",
        "reason": "asked for",
    }
    engine = db.create_engine(Settings(database_url=SecretStr(database_url)))
    found = await page(engine, EventQuery(correlation_id="rr-ada"))
    await engine.dispose()
    for event in found.events:
        CATALOG.check_payload(event["event_type"], orjson.loads(orjson.dumps(event["event_data"])), "")
    assert (await erased(database_url, **which[by])).events == []


NEUTRAL = [
    '{"event_type": "orchestrator.lifecycle.started"}',
    '{"event_type": "orchestrator.lifecycle.started", "rr_name": "erased", "namespace": "erased", "approved": true}',
    '{"event_type": "orchestrator.lifecycle.started", "rr_name": "erased", "namespace": "1970-01-01T00:00:00Z"}',
    '{"event_type": "orchestrator.lifecycle.completed", "outcome": "success"}',
    "{}",
]


async def test_neutral_values_are_those_that_were_left(database_url: str, connection: Any) -> None:
    """An erased event is made to say something else with words that erasure uses, and no verifier names it."""
    await write(database_url, {"correlation_id": "rr-1"}, {"correlation_id": "rr-1"}, {"correlation_id": "rr-2"})
    await erased(database_url, correlation_id="rr-1")
    outside = await sign(connection)
    assert await found_by_each(connection, "rr-1", outside) == (set(),) * 4
    await connection.execute("SET session_replication_role = replica")
    left = await connection.fetchval("SELECT event_data::text FROM audit_events WHERE log_index = 1")
    for payload in NEUTRAL:
        await connection.execute("UPDATE audit_events SET event_data = $1 WHERE log_index = 1", payload)
        assert await found_by_each(connection, "rr-1", outside) == ({"edited"},) * 4, payload
    await connection.execute("UPDATE audit_events SET event_data = $1 WHERE log_index = 1", left)
    assert await found_by_each(connection, "rr-1", outside) == (set(),) * 4


@pytest.mark.parametrize("by", ["sql", "correlation", "actor"])
async def test_held_is_not_erased(database_url: str, connection: Any, by: str) -> None:
    """Evidence under legal hold is erased, or half of an erasure is done before the hold is found."""
    await write(
        database_url, {"correlation_id": "rr-1", "actor_id": "ada"}, {"correlation_id": "rr-2", "actor_id": "ada"}
    )
    if by == "sql":
        await connection.execute("UPDATE audit_events SET legal_hold = true WHERE correlation_id = 'rr-2'")
    else:
        selector = Selector(correlation_id="rr-2") if by == "correlation" else Selector(actor_id="ada")
        await holds.place(Settings(database_url=SecretStr(database_url)), FIRST_LOG, selector, HoldOrder("eve", "why"))
    with pytest.raises(UnderHold, match="rr-2"):
        await erased(database_url, actor_id="ada")
    assert await connection.fetchval("SELECT count(payload_commitment) FROM audit_events") == 0
    ids = [row[0] for row in await connection.fetch("SELECT event_id FROM audit_events WHERE correlation_id = 'rr-2'")]
    with pytest.raises(asyncpg.ForeignKeyViolationError, match="Cannot erase audit event with legal hold"):
        await connection.execute("SELECT erase_events($1, '{\"{}\"}', '{\"\"}')", ids)


async def test_unsealed_and_unknown(database_url: str, connection: Any) -> None:
    """Rows without a proof are reported as erased, or an unknown id fails the rest."""
    await connection.execute(
        "INSERT INTO audit_events (event_date, event_timestamp, event_type, event_category, event_action, event_outcome,"
        " actor_type, actor_id, resource_type, resource_id, correlation_id, event_data) VALUES"
        " ((now() AT TIME ZONE 'UTC')::date, now(), 't', 'c', 'a', 'success', 's', 'ada', 'Pod', 'p', 'rr-1', '{}')"
    )
    done = await erased(database_url, actor_id="ada")
    assert (len(done.events), len(done.unsealed)) == (0, 1)
    assert (await erased(database_url, event_ids=[uuid4()])).events == []


async def test_evidence_is_not_erased(database_url: str, connection: Any) -> None:
    """The event that proves an erasure can be erased itself."""
    ids = await write(database_url, {"correlation_id": "rr-1"})
    first = await erased(database_url, event_ids=ids)
    assert (await erased(database_url, correlation_id=f"datastorage:event:{first.erasure_id}")).events == []
    assert await connection.fetchval("SELECT count(payload_commitment) FROM audit_events") == 1
    assert {"datastorage.event.erased"} < SELF_EVENT_TYPES
    assert isinstance(first.erasure_id, UUID)


async def test_inserted_row_is_not_erased(database_url: str, connection: Any) -> None:
    """An erasure names the position of a row that somebody inserted, and so excuses that the log's event there is emptied."""
    ids = await write(database_url, {"actor_id": "ada"}, {"actor_id": "eve"})
    forged = plain_row("rr-9", actor_id="ada", log_id=0, log_index=1)
    row = await connection.fetchrow("SELECT event_hash, payload_salt FROM audit_events WHERE log_index = 1")
    await insert(connection, forged | dict(row))
    done = await erased(database_url, actor_id="ada")
    assert (done.events, done.unsealed) == ([ids[0]], [forged["event_id"]])
    assert (await erased(database_url, event_ids=[forged["event_id"]])).events == []
    async with connection.transaction():
        assert str((await read_evidence(connection, FIRST_LOG)).erased.positions) == "{[0,1)}"
    outside = await sign(connection)
    for kinds in await found_by_each(connection, "rr-9", outside):
        assert kinds & {"inserted", "edited"}
    await connection.execute("SET session_replication_role = replica")
    await connection.execute("DELETE FROM audit_events WHERE correlation_id = 'rr-9'")
    await empty(connection, 1)
    assert await found_by_each(connection, "rr-1", outside) == ({"edited"},) * 4
