"""What is hashed is what can be read back: payloads through a real jsonb column."""

import asyncpg

from app.events.canonical import canonical, canonical_exact, loads, parse, sorted_json
from app.events.record import committed_jcs, ip_packed, ip_text, record, record_leaf_hash
from tests.payloads import payloads


async def test_jsonb_keeps_the_canonical_form(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    """An honest event is reported as edited, since its payload has another canonical form after jsonb."""
    documents = [parse(text.encode()) for beyond in (False, True) for _, text in payloads(beyond=beyond)]
    sent = [canonical(document.value, plain=document.plain) for document in documents]
    await connection.execute("CREATE TEMPORARY TABLE payloads (number int, payload jsonb)")
    await connection.copy_records_to_table("payloads", records=[(n, body.decode()) for n, body in enumerate(sent)])
    rows = await connection.fetch("SELECT payload FROM payloads ORDER BY number")
    assert len(rows) == len(sent)
    for (stored,), body in zip(rows, sent, strict=True):
        value = loads(stored)
        assert canonical(value) == canonical_exact(value) == body
        assert canonical(loads(sorted_json(stored))) == body


async def test_numbers_that_only_sql_can_write(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    """A row that others wrote by SQL, with a number beyond our limits, cannot be read or changes its value."""
    for token in ("1e400", "-1.5e-400", "1e100000", "5e-324", "123456789012345678901234567890e10", "1.50", "-0.0"):
        stored = await connection.fetchval("SELECT ('{\"n\": ' || $1::text || '}')::jsonb", token)
        for form in (canonical(loads(stored)), sorted_json(stored)):
            same = await connection.fetchval("SELECT $1::jsonb = $2::jsonb", form.decode(), stored)
            assert same, token


async def test_deep_payload_that_only_sql_can_write(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    """A row that others wrote by SQL, nested deeper than any parser's stack, stops verification or a query."""
    text = "[" * 3000 + "]" * 3000
    stored = await connection.fetchval("SELECT $1::jsonb", text)
    assert canonical(loads(stored)) == sorted_json(stored) == text.encode()


async def test_addresses_come_back(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    """An honest event is reported as edited, since its address has another form after inet."""
    for text in ("10.0.0.1", "2001:db8::1", "::ffff:10.0.0.1", "::1.2.3.4", "::", "2001:0:0:1::1"):
        ours = ip_text(ip_packed(text))
        stored = await connection.fetchval("SELECT $1::text::inet", text)
        assert committed_jcs({"actor_ip": stored}) == committed_jcs({"actor_ip": ours})
        masked = await connection.fetchval("SELECT set_masklen($1::text::inet, 8)", text)
        assert committed_jcs({"actor_ip": masked}) != committed_jcs({"actor_ip": ours})


async def test_times_that_only_sql_can_write(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    """A sealed row whose time somebody set to infinity stops verification instead of being reported."""
    row = await connection.fetchrow(
        """SELECT 'infinity'::timestamptz AS event_timestamp, '-infinity'::timestamptz AS recorded_at, 'infinity'::date AS
        parent_event_date, '' AS actor_type, '' AS correlation_id, '' AS event_action, '' AS event_category, '' AS event_id,
        '' AS event_outcome, '' AS event_type, '' AS event_version, '' AS resource_type"""
    )
    assert row is not None
    assert len(record_leaf_hash(record(row, "log", bytes(32)))) == 32
