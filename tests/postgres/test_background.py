"""The background verifier: it verifies the log again and again, stores its findings, and deletes those that are over."""

import logging

import asyncpg
import pytest

from app.metrics import UNSEALED, VERIFIER_FINDINGS, VERIFIER_POSITION
from app.tlog import merkle
from app.verify.worker import Verifier
from tests.logs import FIRST_LOG
from tests.sealed import insert, plain_row, seal

Connection = asyncpg.Connection


async def a_round(verifier: Verifier, connection: Connection) -> None:
    while await verifier.verify_next_part(connection):
        pass


async def findings(connection: Connection) -> set[tuple[str, str, int]]:
    rows = await connection.fetch("SELECT kind, correlation_id, position FROM verifier_findings")
    return {(row["kind"], row["correlation_id"], row["position"]) for row in rows}


async def test_honest_log(owner: Connection, caplog: pytest.LogCaptureFixture) -> None:
    """The verifier accuses an honest log, or does not come to its end."""
    verifier = Verifier(FIRST_LOG, (), 3)
    assert await verifier.try_lock(owner)
    for _ in range(2):
        await a_round(verifier, owner)
        await seal(owner, "rr-0", {}, {})
    assert VERIFIER_POSITION._value.get() == 22
    state = await owner.fetchrow("SELECT position, completed_end, round FROM verifier")
    assert (tuple(state or ()), await findings(owner), caplog.records) == ((0, 22, 3), set(), [])


@pytest.mark.damaged
async def test_findings(owner: Connection, caplog: pytest.LogCaptureFixture) -> None:
    """A defect is not reported, is reported in every round, or is still shown after it was repaired."""
    verifier = Verifier(FIRST_LOG, (), 7)
    saved = await owner.fetch("SELECT * FROM audit_events WHERE log_index = 3")
    await owner.execute("UPDATE audit_events SET severity = 'low' WHERE log_index = 8")
    await owner.execute("DELETE FROM audit_events WHERE log_index = 3")
    await owner.execute("UPDATE chain_heads SET length = 3 WHERE correlation_id = 'rr-1'")
    with caplog.at_level(logging.CRITICAL):
        for _ in range(2):
            await a_round(verifier, owner)
    expected = {("edited", "rr-1", 8), ("removed", "rr-0", 3)}
    assert {one for one in await findings(owner) if one[2] in {3, 8}} >= expected
    assert len(caplog.records) == await owner.fetchval("SELECT count(*) FROM verifier_findings")
    assert VERIFIER_FINDINGS.labels(kind="removed")._value.get() == 1
    await owner.copy_records_to_table("audit_events", records=map(tuple, saved), columns=list(saved[0].keys()))
    for _ in range(2):
        await a_round(verifier, owner)
    assert "removed" not in {kind for kind, _, _ in await findings(owner)}
    assert VERIFIER_FINDINGS.labels(kind="removed")._value.get() == 0


@pytest.mark.damaged
async def test_unsealed_rows(owner: Connection, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody is told that others have inserted rows, is told of those that were there, or an honest one counts as a defect."""
    await insert(owner, plain_row("rr-0"))
    verifier = Verifier(FIRST_LOG, (), 50)
    await a_round(verifier, owner)
    assert [record for record in caplog.records if record.levelno == logging.WARNING] == []
    await insert(owner, plain_row("rr-7"))
    await a_round(verifier, owner)
    assert [record.new for record in caplog.records if record.levelno == logging.WARNING] == [1]  # type: ignore[attr-defined]
    counts = [UNSEALED.labels(what=what)._value.get() for what in ("rows", "correlations")]
    assert (counts, await findings(owner)) == ([2, 2], set())


@pytest.mark.damaged
async def test_rewritten_and_rolled_back(owner: Connection) -> None:
    """Between two rounds the log is rewritten consistently, or cut, and the process that saw it before reports nothing."""
    verifier = Verifier(FIRST_LOG, (), 7)
    await a_round(verifier, owner)
    leaves = b"".join(
        [
            r["leaves"]
            for r in await owner.fetch("SELECT leaves FROM log_flushes WHERE first_index >= 0 ORDER BY first_index")
        ]
    )
    assert verifier._last_round == (20, merkle.root(merkle.hashes(leaves)))
    await owner.execute(
        "DELETE FROM audit_events WHERE log_index >= 15; DELETE FROM log_flushes WHERE first_index >= 15"
    )
    await a_round(verifier, owner)
    assert ("rolled back", "", 15) in await findings(owner)
    await seal(owner, "rr-1", *({} for _ in range(5)))
    await a_round(verifier, owner)  # remembers this one
    await owner.execute(
        "DELETE FROM audit_events WHERE log_index >= 15; DELETE FROM log_flushes WHERE first_index >= 15"
    )
    await seal(owner, "rr-1", *({"actor_id": "somebody"} for _ in range(6)))
    await a_round(verifier, owner)
    assert ("edited", "", 20) in await findings(owner)


@pytest.mark.damaged
async def test_position_is_its_own(owner: Connection) -> None:
    """Whoever writes to the verifier's table decides what it looks at."""
    verifier = Verifier(FIRST_LOG, (), 7)
    await owner.execute("UPDATE audit_events SET severity = 'low' WHERE log_index = 18")
    while await verifier.verify_next_part(owner):
        await owner.execute("UPDATE verifier SET position = 1000")
    assert ("edited", "rr-1", 18) in await findings(owner)


async def test_one_at_a_time(connection: Connection, database_url: str) -> None:
    """Two replicas verify the log at the same time."""
    from tests import databases

    assert await Verifier(FIRST_LOG, (), 7).try_lock(connection)
    async with databases.connected(database_url) as other:
        assert not await Verifier(FIRST_LOG, (), 7).try_lock(other)


@pytest.mark.damaged
async def test_lost_flushes(owner: Connection) -> None:
    """Flushes that were deleted with their rows go unnoticed, or end the round."""
    verifier = Verifier(FIRST_LOG, (), 7)
    await a_round(verifier, owner)  # it knows what it has seen
    await owner.execute(
        "DELETE FROM log_flushes WHERE first_index = 5; DELETE FROM audit_events WHERE log_index BETWEEN 5 AND 9"
    )
    await a_round(verifier, owner)
    assert {(kind, position) for kind, _, position in await findings(owner)} >= {("removed", 0)}
