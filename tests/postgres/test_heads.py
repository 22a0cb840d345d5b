"""What a purge leaves of chains: heads and gaps, changed by somebody whom no trigger stops, and found."""

from uuid import uuid4

import asyncpg
import pytest

from app.tlog import gaps
from app.verify import heads
from app.verify.snapshot import SQL
from tests.postgres.test_tampering import found_by_each, purge, sign
from tests.sealed import seal

pytestmark = pytest.mark.damaged

Connection = asyncpg.Connection
HASH = "repeat('ab', 32)"


@pytest.fixture
async def owner(connection: Connection) -> Connection:
    """A log of which two purges have left: rr-0 whole, nothing of rr-1 and rr-2, and of rr-3 the middle, of rr-4 the end."""
    await connection.execute("SET session_replication_role = replica")
    for turn in range(3):
        for chain in range(5):
            await seal(connection, f"rr-{chain}", {}, {})
        await seal(connection, f"rr-{turn}", {})
    await purge(connection, "{[2,6),[13,17)}", str(uuid4()))
    await purge(connection, "{[17,19),[21,22),[24,28),[30,33)}", str(uuid4()))
    return connection


async def test_honest(owner: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a purge leaves is accused, however much of it is looked at together."""
    for at_once in (1, 2, 1_000):
        monkeypatch.setattr(heads, "GAPS_AT_ONCE", at_once)
        monkeypatch.setattr(heads, "_HEADS_AT_ONCE", at_once)
        monkeypatch.setattr("app.verify.database.GAPS_AT_ONCE", at_once)
        monkeypatch.setattr(gaps, "_LEAVES_AT_ONCE", at_once)
        for chain in range(5):
            assert await found_by_each(owner, f"rr-{chain}", await sign(owner)) == (set(),) * 4


RR_2 = "(SELECT hash FROM chain_heads WHERE correlation_id = 'rr-2')"
RR_4 = "(SELECT hash FROM chain_heads WHERE correlation_id = 'rr-4')"
TAMPERING = {
    "another hash": (f"UPDATE chain_heads SET hash = {HASH} WHERE correlation_id = 'rr-1'", "truncated", "truncated"),
    "no hash": ("UPDATE chain_heads SET hash = 'x' WHERE correlation_id = 'rr-1'", "truncated", "truncated"),
    "the hash of an event that is there": (
        "UPDATE chain_heads SET hash = (SELECT event_hash FROM audit_events WHERE log_index = 10) WHERE correlation_id = 'rr-1'",
        "truncated",
        "truncated",
    ),
    "another hash behind what is left": (
        f"UPDATE chain_heads SET hash = {HASH} WHERE correlation_id = 'rr-4'",
        "truncated",
        "truncated",
    ),
    "the hash of another purged chain": (
        f"UPDATE chain_heads SET hash = {RR_2} WHERE correlation_id = 'rr-1'",
        "inserted",
        None,
    ),
    "any length": ("UPDATE chain_heads SET length = 1000 WHERE correlation_id = 'rr-1'", "truncated", "truncated"),
    "one more": ("UPDATE chain_heads SET length = length + 1 WHERE correlation_id = 'rr-1'", "edited", None),
    "one less": ("UPDATE chain_heads SET length = length - 1 WHERE correlation_id = 'rr-1'", "edited", None),
    "removed": ("DELETE FROM chain_heads WHERE correlation_id = 'rr-1'", "edited", None),
    "never was": (f"INSERT INTO chain_heads VALUES ('rr-9', 3, {HASH})", "truncated", "truncated"),
    "never was, of a purged event": (f"INSERT INTO chain_heads VALUES ('rr-9', 1, {RR_2})", "inserted", None),
    "never was, of nothing": ("INSERT INTO chain_heads VALUES ('rr-9', 0, '')", "edited", "edited"),
    "never was, of no name": ("INSERT INTO chain_heads VALUES ('', 0, '')", "edited", None),
    "never was, of less": (f"INSERT INTO chain_heads VALUES ('rr-9', -3, {HASH})", "edited", "edited"),
}


@pytest.mark.parametrize("name", TAMPERING)
async def test_head_after_a_purge(owner: Connection, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A head of which no event is left is set to another length or hash, or to a chain that never was, and nobody sees it."""
    act, kind, kind_of_chain = TAMPERING[name]
    outside = await sign(owner)
    await owner.execute(act)
    chain = "rr-9" if "'rr-9'" in act else "rr-4" if "rr-4" in act else "rr-1"
    of_chain = set() if kind_of_chain is None else {kind_of_chain}
    for at_once in (1_000, 1):
        monkeypatch.setattr(heads, "_HEADS_AT_ONCE", at_once)
        assert await found_by_each(owner, chain, outside) == ({kind}, {kind}, of_chain, {kind})


@pytest.mark.parametrize("reach", [1, 2, 50])
async def test_event_behind_a_gap_that_never_was(owner: Connection, reach: int) -> None:
    """An event is appended to a chain whose earlier events never were, and they pass for purged ones."""
    await owner.execute(f"INSERT INTO chain_heads VALUES ('rr-9', $1, {HASH})", reach)
    await seal(owner, "rr-9", {})
    sum_of_heads = {"edited"}
    found = await found_by_each(owner, "rr-9", await sign(owner))
    assert found == ({"removed"}, {"removed"}, {"removed"}, sum_of_heads)


async def test_what_is_not_covered(owner: Connection) -> None:
    """The documentation admits more, or less, than there is: with nothing left of two chains their lengths may be exchanged."""
    await owner.execute("UPDATE chain_heads SET length = length + 1 WHERE correlation_id = 'rr-1'")
    await owner.execute("UPDATE chain_heads SET length = length - 1 WHERE correlation_id = 'rr-2'")
    assert await found_by_each(owner, "rr-1", await sign(owner)) == (set(),) * 4


async def test_no_statement_reads_all_events(owner: Connection) -> None:
    """Each round reads every event once more for the heads, in one statement, which ends at its timeout in a large database."""
    await owner.execute("SET enable_seqscan = off")  # the planner prefers it for a few rows, whatever the statement
    plan = await owner.fetch("EXPLAIN " + SQL["heads"], "", 1_000, 0)
    assert not [
        line for (line,) in plan if "Seq Scan on audit_events" in line or ("Join" in line and "Nested" not in line)
    ]
