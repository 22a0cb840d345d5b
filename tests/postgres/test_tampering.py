"""Every class of tampering, by somebody who owns the database and switches its triggers off: found, and called by its name."""

import argparse
import asyncio
import base64
import hashlib
import os
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import orjson
import pytest
import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import SecretStr

from app.errors import Fatal
from app.settings import Settings
from app.tlog import merkle, note
from app.tlog.evidence import read_evidence
from app.verify import command
from app.verify.correlation import verify_correlation
from app.verify.database import DatabaseResult, TrustAnchors, sequential_runner, verify_database
from app.verify.worker import Verifier
from tests import databases
from tests.logs import FIRST_LOG
from tests.postgres.test_background import a_round, findings
from tests.sealed import LOG, insert, plain_row, seal, sealed_hash
from tests.services import ROOT

pytestmark = pytest.mark.damaged

Connection = asyncpg.Connection
Act = Callable[[Connection], Awaitable[None]]
KEY, OTHER_KEY = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
PUBLIC = note.PublicKey(LOG, KEY.public_key().public_bytes_raw())
SWAP = """
UPDATE audit_events SET (log_index, chain_index) = (
    SELECT o.log_index, o.chain_index FROM audit_events o WHERE o.log_index = 27 - audit_events.log_index
) WHERE log_index IN (13, 14)
"""
PURGED, RESTORED, ERASED = "datastorage.retention.purged", "datastorage.retention.restored", "datastorage.event.erased"
PEOPLE = ("actor_ip", "resource_name", "error_message", "event_metadata", "payload_salt")


@pytest.fixture
async def owner(connection: Connection) -> Connection:
    """Whom no trigger stops, on a log of 300 events in two chains, the first of which are covered by a tile."""
    await fill_log(connection)
    return connection


async def fill_log(connection: Connection) -> None:
    """The log of `owner`."""
    await connection.execute("SET session_replication_role = replica")
    for turn in range(30):
        await seal(connection, f"rr-{turn % 2}", *({"actor_id": f"user-{turn}"} for _ in range(10)))
    leaves = await all_leaves(connection)
    await connection.execute("INSERT INTO log_tiles VALUES (0, 1, 0, $1)", merkle.root(leaves[:256]))
    await sign(connection)


async def all_leaves(connection: Connection) -> list[bytes]:
    rows = await connection.fetch("SELECT leaves FROM log_flushes WHERE first_index >= 0 ORDER BY first_index")
    return merkle.hashes(b"".join(row["leaves"] for row in rows))


async def sign(connection: Connection, key: Ed25519PrivateKey = KEY) -> str:
    """A checkpoint of the log as it is, stored as the service stores it."""
    leaves = await all_leaves(connection)
    signed = note.sign_checkpoint(note.Checkpoint(LOG, len(leaves), merkle.root(leaves)), key)
    await connection.execute("DELETE FROM log_checkpoints WHERE size = $1", len(leaves))
    await connection.execute("INSERT INTO log_checkpoints (log_id, size, note) VALUES (0, $1, $2)", len(leaves), signed)
    await connection.execute("UPDATE log_signers SET note = $1", signed)
    return signed


async def verified(connection: Connection, checkpoint: str | None = None) -> DatabaseResult:
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        return await verify_database(connection, sequential_runner(connection), TrustAnchors([PUBLIC], checkpoint))


async def found(connection: Connection, checkpoint: str | None = None) -> set[str]:
    """The kinds of defects; each message begins with its kind."""
    defects = (await verified(connection, checkpoint)).defects.listed
    assert all(defect.message.startswith(defect.kind) for defect in defects)
    return {defect.kind for defect in defects}


async def found_in(connection: Connection, correlation_id: str) -> tuple[set[str], int, int]:
    """Of one correlation: kinds of defects, and how many of its events were purged and erased."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        report = await verify_correlation(connection, correlation_id, FIRST_LOG)
    kinds: set[str] = {defect.kind for defect in report.sealed.defects.listed}
    kinds |= {report.head_defect.kind} if report.head_defect else set()
    return kinds, report.purged_total, report.sealed.erased_total


async def found_by_each(
    connection: Connection, correlation_id: str, outside: str, keys: tuple[note.PublicKey, ...] = ()
) -> tuple[set[str], ...]:
    """The columns of the table in docs/evidence.md: with key and outside checkpoint, without, verify-chain, in the background."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        unanchored = await verify_database(connection, sequential_runner(connection), TrustAnchors())
    await connection.execute("DELETE FROM verifier; DELETE FROM verifier_findings")
    await a_round(Verifier(FIRST_LOG, keys, 7), connection)
    return (
        await found(connection, outside),
        {defect.kind for defect in unanchored.defects.listed},
        (await found_in(connection, correlation_id))[0],
        {kind for kind, _, _ in await findings(connection)},
    )


async def rewrite(connection: Connection, *, key: Ed25519PrivateKey | None) -> None:
    """Hash everything anew, so that rows, chains, heads, flushes and tiles agree, and sign the result with `key`."""
    rows = await connection.fetch("SELECT *, event_data::text AS event_data FROM audit_events ORDER BY log_index")
    ends: dict[str, tuple[int, str]] = {}
    leaves = []
    for position, stored in enumerate(rows):
        row = dict(stored)
        length, previous = ends.get(row["correlation_id"], (0, ""))
        row |= {"log_index": position, "chain_index": length, "previous_event_hash": previous}
        row["event_hash"] = sealed_hash(row)
        await connection.execute(
            "UPDATE audit_events SET log_index = $2, chain_index = $3, previous_event_hash = $4, event_hash = $5 "
            "WHERE event_id = $1",
            *(row["event_id"], position, length, previous, row["event_hash"]),
        )
        ends[row["correlation_id"]] = length + 1, row["event_hash"]
        leaves.append(bytes.fromhex(row["event_hash"]))
    await connection.execute("DELETE FROM log_flushes WHERE first_index >= 0")
    await connection.execute("INSERT INTO log_flushes VALUES (0, 0, $1, $2, now())", len(leaves), b"".join(leaves))
    for correlation_id, (length, last) in ends.items():
        await connection.execute(
            "UPDATE chain_heads SET length = $2, hash = $3 WHERE correlation_id = $1", correlation_id, length, last
        )
    await connection.execute("UPDATE log_tiles SET hashes = $1", merkle.root(leaves[:256]))
    if key is not None:
        await connection.execute("DELETE FROM log_checkpoints")
        await sign(connection, key)


async def own(connection: Connection, kind: str, positions: str, **members: object) -> UUID:
    """A self event, which records that something was done at these positions."""
    about = members.setdefault("erasure_id" if kind == ERASED else "operation_id", str(uuid4()))
    payload = {"event_type": kind, "positions": positions} | members
    columns = {"event_type": kind, "event_category": "security", "event_data": orjson.dumps(payload).decode()}
    [event_id] = await seal(connection, f"datastorage:{kind.split('.')[1]}:{about}", columns)
    return event_id


async def purge(connection: Connection, positions: str, operation: str = "one") -> None:
    await own(connection, PURGED, positions, operation_id=operation)
    await connection.execute("DELETE FROM audit_events WHERE $1::text::int8multirange @> log_index", positions)


async def erase(connection: Connection, position: int) -> None:
    """What erasure leaves of an event."""
    row = await connection.fetchrow(
        "SELECT *, event_data::text AS event_data FROM audit_events WHERE log_index = $1", position
    )
    assert row is not None
    kept = {name: row[name] for name in ("actor_id", "actor_ip", "resource_id", "resource_name", "error_message")}
    committed = kept | {"event_data": orjson.loads(row["event_data"]), "event_metadata": None}
    commitment = hashlib.sha256(row["payload_salt"] + rfc8785.dumps(committed)).digest()
    nulls = ", ".join(f"{name} = NULL" for name in PEOPLE)
    await connection.execute(
        f"UPDATE audit_events SET payload_commitment = $2, actor_id = 'erased', resource_id = 'erased', {nulls}, "
        "event_data = '{}' WHERE log_index = $1",
        *(position, commitment),
    )


async def test_nothing_is_wrong(owner: Connection) -> None:
    """An honest log is accused."""
    report = await verified(owner)
    assert report.defects.listed == []
    assert (report.size, report.events.verified, report.chains, report.checkpoints) == (300, 300, 2, 2)


async def test_inserted_event(owner: Connection) -> None:
    """A row that was never logged goes unnoticed: after the log's end, or at the position of another event."""
    for position in (7, 300):
        row = plain_row("rr-0", event_version="1.0", is_sensitive=False, log_id=0, log_index=position, chain_index=150)
        row |= {"payload_salt": bytes(16), "previous_event_hash": "", "recorded_at": row["event_timestamp"]}
        await insert(owner, row | {"event_hash": "ab" * 32})
        assert "inserted" in await found(owner)
        await owner.execute("DELETE FROM audit_events WHERE event_id = $1", row["event_id"])
        assert await found(owner) == set()


async def test_cut_log(owner: Connection) -> None:
    """The end of everything is cut off, rows, flushes, heads and checkpoints: only a signature outside still shows it."""
    newest, at_290 = await sign(owner), None
    for table, column in (("audit_events", "log_index"), ("log_flushes", "first_index"), ("log_checkpoints", "size")):
        await owner.execute(f"DELETE FROM {table} WHERE {column} >= 290")
    last = await owner.fetchrow(
        "SELECT chain_index + 1 AS length, event_hash FROM audit_events WHERE correlation_id = 'rr-1' ORDER BY log_index DESC LIMIT 1"
    )
    assert last is not None
    await owner.execute("UPDATE chain_heads SET length = $1, hash = $2 WHERE correlation_id = 'rr-1'", *last)
    assert await found(owner) == {"rolled back"}  # log_signers was forgotten
    await owner.execute("UPDATE log_signers SET note = $1", at_290)
    assert await found(owner) == set()
    assert await found(owner, newest) == {"rolled back"}


async def test_consistent_rewrite(owner: Connection) -> None:
    """Somebody rewrites rows, chains, heads, flushes and tiles so that all agree, and nobody notices."""
    outside = await sign(owner)
    await owner.execute("UPDATE audit_events SET actor_id = 'nobody' WHERE log_index = 7")
    await rewrite(owner, key=None)
    assert await found(owner) == {"edited"}  # the stored checkpoints know
    await rewrite(owner, key=OTHER_KEY)
    assert await found(owner) == {"wrong key"}
    await owner.execute("DELETE FROM log_checkpoints; UPDATE log_signers SET note = NULL")
    assert await found(owner) == set()  # nothing in the database shows it any more
    report = await verified(owner, outside)
    assert [(d.kind, "rewritten" in d.message) for d in report.defects.listed] == [("edited", True)]


async def test_removed_and_rewritten(owner: Connection) -> None:
    """An event is deleted and all that follow move up by one, consistently, and the service then signs it in good faith."""
    outside = await sign(owner)
    await owner.execute("DELETE FROM audit_events WHERE log_index = 7")
    await rewrite(owner, key=None)
    await seal(owner, "rr-1", {}, {})
    await owner.execute("DELETE FROM log_checkpoints")
    await sign(owner)
    assert await found(owner) == set()
    assert await found(owner, outside) == {"edited"}


async def test_restored_backup(owner: Connection, server_url: str, database_url: str) -> None:
    """Yesterday's backup is put in place of today's database, and then written to, and nobody notices."""
    name = databases.name_of(database_url)
    await owner.close()
    backup = await databases.create(server_url, template=name)
    try:
        async with databases.connected(database_url) as today:
            await seal(today, "rr-today", {}, {})
            outside = await sign(today)
        async with databases.connected(backup) as yesterday:
            assert await found(yesterday) == set()
            assert await found(yesterday, outside) == {"rolled back"}
            await seal(yesterday, "rr-today", {}, {}, {})
            assert await found(yesterday) == set()
            assert await found(yesterday, outside) == {"edited"}
    finally:
        await databases.drop(server_url, backup)


async def test_signature_of_another_text(owner: Connection) -> None:
    """A checkpoint whose text was changed under the log's own signature passes, or one that another key signed."""
    signed = await sign(owner)
    forged = signed.replace(signed.splitlines()[2], base64.b64encode(bytes(32)).decode())
    assert await found(owner, forged) == {"forged checkpoint"}
    strange = note.sign_checkpoint(note.Checkpoint.parse(note.Note.parse(signed).text), OTHER_KEY)
    assert await found(owner, strange) == {"wrong key"}
    assert await found(owner, signed) == set()


async def test_purged(owner: Connection) -> None:
    """A purge that the log records is reported as tampering, or another missing row beside it is not reported."""
    await purge(owner, "{[0,10),[20,21)}")
    report = await verified(owner)
    assert (report.defects.listed, report.events.purged) == ([], 11)
    assert await found_in(owner, "rr-0") == (set(), 11, 0)
    assert await found_in(owner, "rr-1") == (set(), 0, 0)
    await owner.execute("DELETE FROM audit_events WHERE log_index IN (10, 21)")
    assert await found(owner) == {"removed"}
    assert [d.position for d in (await verified(owner)).defects.listed if d.event_id is None] == [10, 21]
    assert await found_in(owner, "rr-0") == ({"removed"}, 0, 0)
    assert await found_in(owner, "rr-1") == ({"removed"}, 0, 0)


async def test_purged_chain(owner: Connection) -> None:
    """A chain of which nothing is left is called truncated although all of it was purged, or purged although it was not."""
    await seal(owner, "rr-9", {}, {})
    await purge(owner, "{[300,302)}")
    assert await found(owner) == set()
    assert await found_in(owner, "rr-9") == (set(), 2, 0)
    await seal(owner, "rr-8", {}, {})
    await owner.execute("DELETE FROM audit_events WHERE correlation_id = 'rr-8'")
    assert await found(owner) == {"truncated"}
    assert await found_in(owner, "rr-9") == (set(), 2, 0)
    assert await found_in(owner, "rr-8") == ({"truncated"}, 0, 0)


async def test_restored_purge(owner: Connection) -> None:
    """A purge that was undone still excuses rows that are missing there."""
    await own(owner, PURGED, "{[0,20)}", operation_id="one")
    await own(owner, RESTORED, "{[10,20)}", operation_id="one")
    await owner.execute("DELETE FROM audit_events WHERE log_index < 10")
    assert await found(owner) == set()
    await owner.execute("DELETE FROM audit_events WHERE log_index = 10")
    assert await found(owner) == {"removed"}


async def test_purged_without_an_event(owner: Connection) -> None:
    """Somebody passes a deletion off as a purge: by another table, an unsealed event, one that was changed, or one of a client."""
    await owner.execute("INSERT INTO retention_operations (rows_deleted, status) VALUES (1, 'completed')")
    await owner.execute("DELETE FROM audit_events WHERE log_index = 7")
    payload = '{"event_type": "datastorage.retention.purged", "positions": "{[0,300)}", "operation_id": "one"}'
    kind = PURGED
    await insert(owner, plain_row("datastorage:retention:x", event_type=kind, event_data=payload))
    assert await found(owner) == {"removed"}
    await seal(owner, "rr-0", {"event_type": kind, "event_data": '{"event_type": "x", "positions": "{[0,300)}"}'})
    assert await found(owner) == {"removed"}
    # The log's own tables know it: the purge event is edited after it was logged.
    event_id = await own(owner, kind, "{[8,9)}", operation_id="two")
    await owner.execute("UPDATE audit_events SET event_data = $1 WHERE event_id = $2", payload, event_id)
    assert await found(owner) == {"removed", "edited"}
    assert (await found_in(owner, "rr-0"))[:2] == ({"removed"}, 0)


@pytest.mark.parametrize(
    "differs",
    [
        {"event_type": "workflow.completed"},
        {"event_type": RESTORED},
        {"event_category": "workflow"},
        {"correlation_id": "rr-0"},
        {"correlation_id": "datastorage:retention:two"},
        {"correlation_id": "datastorage:hold:one"},
        {
            "event_data": '{"event_type": "datastorage.retention.purged", "positions": "{[0,300)}", "operation_id": "two"}'
        },
        {"event_data": '{"event_type": "datastorage.retention.purged", "positions": "{[0,300)}"}'},
        {"event_data": '{"event_type": "datastorage.event.erased", "positions": "{[0,300)}", "operation_id": "one"}'},
        {"event_data": '{"positions": "{[0,300)}", "operation_id": "one"}'},
        {"event_data": '["datastorage.retention.purged"]'},
    ],
)
@pytest.mark.parametrize("kind", [PURGED, ERASED])
async def test_evidence_that_does_not_agree(owner: Connection, kind: str, differs: dict[str, str]) -> None:
    """An event that was logged beside a genuine purge excuses a removal or an erasure, although no query for such events finds it."""
    member = "erasure_id" if kind == ERASED else "operation_id"
    await own(owner, PURGED, "{[3,4)}", operation_id="one")
    await own(owner, ERASED, "{[3,4)}", erasure_id="one")
    payload = {"event_type": kind, "positions": "{[0,300)}", member: "one"}
    forged = {
        "correlation_id": f"datastorage:{kind.split('.')[1]}:one",
        "event_type": kind,
        "event_category": "security",
    }
    forged |= {"event_data": orjson.dumps(payload).decode()} | differs
    await seal(owner, forged.pop("correlation_id"), forged)
    assert await found(owner) == set()
    outside = await sign(owner)
    await (erase(owner, 7) if kind == ERASED else owner.execute("DELETE FROM audit_events WHERE log_index = 7"))
    named = "edited" if kind == ERASED else "removed"
    assert await found_by_each(owner, "rr-0", outside) == ({named},) * 4


FIRST_VERSION = {
    "datastorage:event:309705e0-3c61-4b24-ac6b-560cec517a5f": """{"reason": "asked", "erased_by": "eve", "event_ids":
        ["01a22612-98f3-7055-849e-e4ddc8ed8f64"], "positions": "{[12,13)}", "event_type": "datastorage.event.erased",
        "erasure_id": "309705e0-3c61-4b24-ac6b-560cec517a5f"}""",
    "datastorage:retention:c530cce8-c6fc-43c2-803c-492015d53c8b": """{"cutoff": "2034-01-11T06:51:22.666388+00:00",
        "partition": "audit_events_2026_09", "positions": "{[0,10)}", "event_type": "datastorage.retention.purged",
        "event_count": 10, "operation_id": "c530cce8-c6fc-43c2-803c-492015d53c8b", "unsealed_count": 0}""",
    "datastorage:retention:0ee6dd74-0e5a-4d8f-8d1c-6266ba9445fa": """{"cutoff": "2034-01-11T06:51:22.666388+00:00",
        "partition": null, "positions": "{[14,15),[16,17)}", "event_type": "datastorage.retention.purged",
        "event_count": 0, "operation_id": "0ee6dd74-0e5a-4d8f-8d1c-6266ba9445fa", "unsealed_count": 0}""",
}
"""Self events by their correlations, as the version of 2026-11-25 wrote them, the first that could purge and erase."""


async def test_evidence_of_the_first_version(owner: Connection) -> None:
    """Purges and erasures that earlier versions recorded are no evidence any more."""
    for correlation_id, payload in FIRST_VERSION.items():
        event_type = orjson.loads(payload)["event_type"]
        columns = {"event_type": event_type, "event_category": "security", "event_data": payload}
        await seal(owner, correlation_id, columns)
    await erase(owner, 12)
    await owner.execute("DELETE FROM audit_events WHERE log_index < 10 OR log_index IN (14, 16)")
    assert await found(owner) == set()
    assert await found_in(owner, "rr-0") == (set(), 10, 0)
    assert await found_in(owner, "rr-1") == (set(), 2, 1)


async def test_evidence_is_read_in_portions(owner: Connection) -> None:
    """What clients have posted under the service's correlations in former times makes each verification larger."""
    await own(owner, PURGED, "{[0,10)}", operation_id="one")
    await own(owner, ERASED, "{[12,13)}", erasure_id="one")
    large = {"event_data": orjson.dumps({"text": "x" * 250_000}).decode()}
    for name in ("datastorage:retention:one", "datastorage:event:one"):
        await seal(owner, name, *(large for _ in range(60)))
    await owner.execute("DELETE FROM audit_events WHERE log_index < 10")
    tracemalloc.start()
    try:
        async with owner.transaction(isolation="repeatable_read", readonly=True):
            evidence = await read_evidence(owner, FIRST_LOG)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
        tracemalloc.reset_peak()
        await a_round(Verifier(FIRST_LOG, (), 500), owner)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000  # of 30 MB that were posted
    finally:
        tracemalloc.stop()
    assert (str(evidence.purged), str(evidence.erased.positions)) == ("{[0,10)}", "{[12,13)}")
    assert await findings(owner) == set()


async def test_purge_of_the_future(owner: Connection) -> None:
    """A purge event excuses the removal of events that were written after it."""
    await own(owner, PURGED, "{[290,400)}", operation_id="one")
    await seal(owner, "rr-0", {}, {})
    await owner.execute("DELETE FROM audit_events WHERE log_index = 301")
    assert await found(owner) == {"removed"}


async def test_erased(owner: Connection) -> None:
    """An erased event is reported as edited although the log records the erasure, or an edited one as erased."""
    await own(owner, ERASED, "{[7,8)}")
    await erase(owner, 7)
    report = await verified(owner)
    assert (report.defects.listed, report.events.erased) == ([], 1)
    assert await found_in(owner, "rr-0") == (set(), 0, 1)
    for change in (
        "severity = 'low'",
        "resource_name = 'x'",
        "actor_id = 'x'",
        "payload_commitment = payload_commitment || 'x'",
        """event_data = '{"reason": "it was Ada"}'""",
    ):
        changing = owner.transaction()
        await changing.start()
        await owner.execute(f"UPDATE audit_events SET {change} WHERE log_index = 7")
        report = await verify_database(owner, sequential_runner(owner), TrustAnchors())
        assert {defect.kind for defect in report.defects.listed} == {"edited"}, change
        await changing.rollback()


async def test_erased_without_an_event(owner: Connection) -> None:
    """Somebody empties a row and marks it as erased, with the right commitment, and nothing shows."""
    await erase(owner, 7)
    assert await found(owner) == {"edited"}
    assert (await found_in(owner, "rr-0"))[0] == {"edited"}


def run(monkeypatch: pytest.MonkeyPatch, database_url: str, *arguments: object) -> tuple[int, str]:
    """`datastorage verify` as a user calls it: its exit code and its output."""
    monkeypatch.setenv("DATASTORAGE_DATABASE_URL", database_url)
    done = subprocess.run(
        [sys.executable, "-m", "app", "verify", *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


async def test_command(owner: Connection, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command does not print a defect, or its exit code does not show whether it is clean, damaged or was not verified."""
    outside = tmp_path / "checkpoint"
    outside.write_text(await sign(owner))
    known = ("--key", PUBLIC, "--checkpoint", outside)
    assert run(monkeypatch, database_url, *known)[0] == 0
    await purge(owner, "{[4,5)}")
    await owner.execute("UPDATE audit_events SET severity = 'low' WHERE log_index = 7")
    code, output = run(monkeypatch, database_url, *known)
    assert (code, "edited: " in output, "position 7" in output, "purged: 1 events" in output) == (1, True, True, True)
    code, output = run(monkeypatch, database_url, "rr-1", *known)
    assert (code, "150 of 150 events match the log" in output) == (0, True)


async def test_unsealed_rows_are_counted(owner: Connection, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is told how many rows others have inserted, since they have no hash or are where the log has none; or it is a defect."""
    code, output = run(monkeypatch, database_url)
    assert (code, "unsealed rows, which are not part of the log: none" in output) == (0, True)
    for correlation in ("rr-0", "rr-9", "rr-9"):
        await insert(owner, plain_row(correlation))
    assert "3 in 2 correlation(s), all without a hash" in run(monkeypatch, database_url)[1]
    await insert(owner, plain_row("rr-9", event_hash="wrong"))
    code, output = run(monkeypatch, database_url)
    assert (code, "4 in 2 correlation(s); 0 of 1 with a hash have the right one" in output) == (0, True)
    assert "1 in 1 correlation(s), all without a hash" in run(monkeypatch, database_url, "rr-0")[1]


@pytest.mark.parametrize(
    "more",
    [
        {"key": "nonsense"},
        {"key": sys.executable},  # a file, and not a text
        {"checkpoint": Path("/nowhere")},
        {"checkpoint": Path("/dev/null")},
        {"url": "postgresql://nobody@127.0.0.1:9/none"},
    ],
)
def test_not_verified(more: dict[str, Any], database_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What could not be verified counts as clean, or as damaged."""
    settings = Settings(database_url=SecretStr(more.get("url", database_url)))
    arguments = {"correlation": "rr-0", "checkpoint": None, "key": None, "tsa": None, "processes": 1} | more
    assert command.run(argparse.Namespace(**arguments), lambda: settings) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@dataclass(frozen=True)
class TamperClass:
    """What somebody does in several ways, and what it is called, as in the table of docs/evidence.md."""

    acts: tuple[str | Act, ...]
    called: tuple[set[str], ...]
    """By `datastorage verify` with a key and an outside checkpoint; without both; by verify-chain; in the background."""
    correlation_id: str = "rr-0"
    """The one of verify-chain."""


async def cut(connection: Connection) -> None:
    """A backup of before the last flush is put in place."""
    for table, column in (("audit_events", "log_index"), ("log_flushes", "first_index"), ("log_checkpoints", "size")):
        await connection.execute(f"DELETE FROM {table} WHERE {column} >= 290")
    await connection.execute(
        "UPDATE chain_heads SET length = 140, hash = event_hash FROM audit_events e"
        " WHERE chain_heads.correlation_id = 'rr-1' AND e.correlation_id = 'rr-1' AND chain_index = 139;"
        "UPDATE log_signers SET note = NULL"
    )


async def rewrite_and_keep_checkpoints(connection: Connection) -> None:
    await connection.execute(f"{SET} actor_id = 'nobody' WHERE log_index = 7")
    await rewrite(connection, key=None)


async def rewrite_and_drop_checkpoints(connection: Connection) -> None:
    await rewrite_and_keep_checkpoints(connection)
    await connection.execute("DELETE FROM log_checkpoints; UPDATE log_signers SET note = NULL")


async def rewrite_and_sign(connection: Connection) -> None:
    await connection.execute(f"{SET} actor_id = 'nobody' WHERE log_index = 7")
    await rewrite(connection, key=OTHER_KEY)


SET = "UPDATE audit_events SET"
TILE = "INSERT INTO log_tiles VALUES (0, {}, {}, decode(repeat('ab', 32), 'hex'))".format
ANOTHER_SIZE = "replace(note, chr(10) || '300' || chr(10), chr(10) || '299' || chr(10))"
CLASSES = {
    "an event changed: a column that is hashed, its hash, link, salt or date; or marked as erased": TamperClass(
        (
            f"{SET} actor_id = 'nobody' WHERE log_index = 7",
            f"{SET} event_date = event_date + 1, retention_days = 1 WHERE log_index = 7",
            f"{SET} event_hash = repeat('ab', 32) WHERE log_index = 7",
            f"{SET} previous_event_hash = repeat('ab', 32) WHERE log_index = 7",
            f"{SET} payload_salt = NULL WHERE log_index = 7",
            f"{SET} payload_commitment = decode(repeat('ab', 32), 'hex') WHERE log_index = 7",
        ),
        ({"edited"},) * 4,
    ),
    "an event removed": TamperClass(("DELETE FROM audit_events WHERE log_index = 7",), ({"removed"},) * 4),
    "the last event of a chain removed, or all of a chain": TamperClass(
        (
            "DELETE FROM audit_events WHERE log_index = 289",
            "DELETE FROM audit_events WHERE correlation_id = 'rr-0'",
        ),
        ({"removed", "truncated"}, {"removed", "truncated"}, {"truncated"}, {"removed", "truncated"}),
    ),
    "a chain removed, with its head": TamperClass(
        (
            "DELETE FROM audit_events WHERE correlation_id = 'rr-0'; DELETE FROM chain_heads WHERE correlation_id = 'rr-0'",
        ),
        ({"removed"}, {"removed"}, set(), {"edited", "removed"}),
    ),
    "the last events of the log removed, or all": TamperClass(
        ("DELETE FROM audit_events WHERE log_index >= 290", "TRUNCATE audit_events"),
        ({"truncated"}, {"truncated"}, {"truncated"}, {"removed", "truncated"}),
        "rr-1",
    ),
    "two events exchange their positions in log and chain": TamperClass(
        (SWAP,), ({"edited", "reordered"}, {"edited", "reordered"}, {"edited", "reordered"}, {"edited"}), "rr-1"
    ),
    "two events exchange their positions in the log": TamperClass(
        (f"{SET} log_index = 500 - log_index WHERE log_index IN (249, 251)",),
        ({"reordered"}, {"reordered"}, {"edited"}, {"reordered"}),
    ),
    "an event moved to another chain": TamperClass(
        (f"{SET} correlation_id = 'rr-1' WHERE log_index = 7",),
        ({"edited", "inserted", "removed"}, {"edited", "inserted", "removed"}, {"removed"}, {"edited"}),
    ),
    "a leaf changed": TamperClass(
        ("UPDATE log_flushes SET leaves = set_byte(leaves, 9, get_byte(leaves, 9) # 1) WHERE first_index = 280",),
        ({"edited"},) * 4,
    ),
    "the leaves of a flush put in another order": TamperClass(
        ("UPDATE log_flushes SET leaves = substr(leaves, 33) || substr(leaves, 1, 32) WHERE first_index = 280",),
        ({"edited", "reordered"}, {"edited", "reordered"}, {"reordered"}, {"edited", "reordered"}),
    ),
    "a flush removed, or its leaves": TamperClass(
        (
            "DELETE FROM log_flushes WHERE first_index = 100",
            "UPDATE log_flushes SET leaves = '' WHERE first_index = 280",
        ),
        ({"inserted", "removed"}, {"inserted", "removed"}, {"inserted"}, {"inserted", "removed"}),
    ),
    "the last flush removed": TamperClass(
        ("DELETE FROM log_flushes WHERE first_index = 290",),
        ({"inserted", "rolled back"}, {"inserted", "rolled back"}, {"inserted"}, {"inserted"}),
        "rr-1",
    ),
    "the last flush removed, with its events": TamperClass(
        ("DELETE FROM log_flushes WHERE first_index = 290; DELETE FROM audit_events WHERE log_index >= 290",),
        ({"rolled back", "truncated"}, {"rolled back", "truncated"}, {"truncated"}, {"truncated"}),
        "rr-1",
    ),
    "all flushes removed": TamperClass(
        ("TRUNCATE log_flushes",),
        (
            {"edited", "inserted", "removed", "rolled back"},
            {"edited", "inserted", "removed", "rolled back"},
            {"inserted"},
            {"inserted"},
        ),
    ),
    "a flush with a negative count": TamperClass(
        ("UPDATE log_flushes SET count = -29 WHERE first_index = 100",),
        ({"edited", "inserted", "removed"}, {"edited", "inserted", "removed"}, {"inserted"}, {"inserted", "removed"}),
    ),
    "leaves written into the flush before the first one": TamperClass(
        ("UPDATE log_flushes SET leaves = decode(repeat('ab', 32), 'hex') WHERE first_index = -1",),
        ({"edited"}, {"edited"}, set(), set()),
    ),
    "the flush before the first one removed": TamperClass(
        ("DELETE FROM log_flushes WHERE first_index = -1",), ({"removed"}, {"removed"}, set(), set())
    ),
    "a head with a smaller length": TamperClass(
        ("UPDATE chain_heads SET length = length - 1 WHERE correlation_id = 'rr-0'",),
        ({"inserted"}, {"inserted"}, {"inserted"}, {"edited"}),
    ),
    "a head with a larger length": TamperClass(
        ("UPDATE chain_heads SET length = length + 1 WHERE correlation_id = 'rr-0'",), ({"truncated"},) * 4
    ),
    "a head with another hash": TamperClass(
        ("UPDATE chain_heads SET hash = 'ab' WHERE correlation_id = 'rr-0'",), ({"edited"},) * 4
    ),
    "a head removed, or all": TamperClass(
        ("DELETE FROM chain_heads WHERE correlation_id = 'rr-0'", "TRUNCATE chain_heads"),
        ({"removed"}, {"removed"}, {"removed"}, {"edited"}),
    ),
    "a tile where the tree has none": TamperClass(
        (TILE(1, 2**63 - 1), TILE(1, 1), TILE(0, 0), TILE(-1, 0)), ({"inserted"}, {"inserted"}, set(), {"inserted"})
    ),
    "a tile changed, or inserted where the next one will be": TamperClass(
        ("UPDATE log_tiles SET hashes = set_byte(hashes, 9, get_byte(hashes, 9) # 1)", TILE(2, 0)),
        ({"edited"}, {"edited"}, set(), set()),
    ),
    "a stored checkpoint under another size": TamperClass(
        ("UPDATE log_checkpoints SET size = 299",),
        ({"forged checkpoint"}, {"forged checkpoint"}, set(), {"forged checkpoint"}),
    ),
    "a stored checkpoint with another text": TamperClass(
        (f"UPDATE log_checkpoints SET note = {ANOTHER_SIZE}",),
        ({"forged checkpoint"}, {"edited"}, set(), {"forged checkpoint", "removed"}),
    ),
    "a stored checkpoint replaced by what is none": TamperClass(
        ("UPDATE log_checkpoints SET note = 'nothing'",),
        ({"forged checkpoint"}, {"forged checkpoint"}, set(), {"forged checkpoint", "removed"}),
    ),
    "a checkpoint inserted beyond the end of the log": TamperClass(
        ("INSERT INTO log_checkpoints (log_id, size, note) VALUES (0, 301, 'mine')",),
        ({"forged checkpoint"}, {"forged checkpoint"}, set(), {"removed"}),
    ),
    "the last signed checkpoint with another text": TamperClass(
        (f"UPDATE log_signers SET note = {ANOTHER_SIZE}",), ({"forged checkpoint"}, {"edited"}, set(), {"removed"})
    ),
    "the last signed checkpoint removed from `log_signers` or `log_checkpoints`": TamperClass(
        ("DELETE FROM log_signers", "UPDATE log_signers SET note = NULL", "DELETE FROM log_checkpoints"),
        ({"removed"}, {"removed"}, set(), {"removed"}),
    ),
    "a log or a checkpoint of another log inserted": TamperClass(
        (
            "INSERT INTO logs VALUES (7, 'other')",
            "INSERT INTO log_checkpoints (log_id, size, note) SELECT 7, size, note FROM log_checkpoints",
        ),
        ({"inserted"}, {"inserted"}, set(), {"inserted"}),
    ),
    "the log gets another name": TamperClass(
        ("UPDATE logs SET name = 'other'",), ({"edited"}, {"edited"}, set(), set())
    ),
    "rows, chains, heads, flushes and tiles rewritten so that all agree": TamperClass(
        (rewrite_and_keep_checkpoints,), ({"edited"}, {"edited"}, set(), {"edited"})
    ),
    "the same, and signed with another key": TamperClass(
        (rewrite_and_sign,), ({"edited", "wrong key"}, set(), set(), {"wrong key"})
    ),
    "the same, and the stored checkpoints dropped": TamperClass(
        (rewrite_and_drop_checkpoints,), ({"edited"}, set(), set(), set())
    ),
    "the database replaced by an older state, consistently": TamperClass(
        (cut,), ({"rolled back"}, set(), set(), set()), "rr-1"
    ),
}


@pytest.fixture(scope="module")
def owned_url(server_url: str, template_database: str) -> Iterator[str]:
    """A database with the log of `owner`, for tests that roll back what they do."""
    url = asyncio.run(databases.create(server_url, template=template_database))

    async def fill() -> None:
        async with databases.connected(url) as connection:
            await fill_log(connection)

    try:
        asyncio.run(fill())
        yield url
    finally:
        asyncio.run(databases.drop(server_url, url))


WAYS = [(name, way) for name, one in CLASSES.items() for way in range(len(one.acts))]


@pytest.mark.parametrize(("name", "way"), WAYS)
async def test_class(owned_url: str, name: str, way: int) -> None:
    """A class of tampering goes unnoticed by a verifier, or is called by another name than in docs/evidence.md."""
    known, act = CLASSES[name], CLASSES[name].acts[way]
    async with databases.connected(owned_url) as connection:
        await connection.execute("SET session_replication_role = replica")
        outside = await connection.fetchval("SELECT note FROM log_signers")
        changing = connection.transaction(isolation="repeatable_read")
        await changing.start()
        await (connection.execute(act) if isinstance(act, str) else act(connection))
        kinds = await found_by_each(connection, known.correlation_id, outside, (PUBLIC,))
        assert kinds == known.called
        await changing.rollback()


async def test_log_removed(owner: Connection) -> None:
    """Without its name nothing of the log can be hashed, and whoever verifies is not told why."""
    outside = await sign(owner)
    await owner.execute("DELETE FROM logs")
    with pytest.raises(Fatal, match="logs has no row"):
        await found(owner, outside)


def tamper_table() -> list[list[str]]:
    """The rows of the table of tampering in docs/evidence.md, by cells."""
    text = (ROOT / "docs" / "evidence.md").read_text("utf-8")
    section = text.partition("## Tampering, class by class\n")[2].partition("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in row] for row in rows]


def test_table_names_tests() -> None:
    """The table of docs/evidence.md names a test that there is not, or names none for a class."""
    files = list((ROOT / "tests").rglob("test_*.py"))
    known = {name for path in files for name in re.findall(r"def (test_\w+)\(", path.read_text("utf-8"))}
    known |= {path.name for path in files}
    for *_, tests in tamper_table():
        named = re.findall(r"`(test_\w+(?:\.py)?)`", tests)
        assert named or tests == "the same", tests
        assert set(named) <= known, tests


def test_table_has_each_class() -> None:
    """The table of docs/evidence.md calls a class of tampering by other names than this test has found, or lacks it."""

    def cell(kinds: set[str]) -> str:
        return ", ".join(sorted(kinds)) or "–"  # noqa: RUF001 -- as the table writes it

    documented = {
        name: [re.sub(r" \(.*\)$", "", one) for one in cells]
        for name, *cells, tests in tamper_table()
        if "`test_class`" in tests
    }
    found_here = {name: [*map(cell, one.called)] for name, one in CLASSES.items()}
    assert documented == found_here
