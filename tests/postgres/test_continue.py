"""A log that lost acknowledged events is continued by the next one: nothing more is lost, all that is left is proved, and the loss is named."""

import argparse
import asyncio
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from pydantic import SecretStr

from app import continuing, schema
from app.continuing import Continuation, continue_log
from app.db import create_engine
from app.errors import Fatal
from app.events.catalog import Catalog
from app.events.log import Log
from app.export.bundle import Place, parse
from app.export.bundle_check import check_bundle
from app.export.bundle_proofs import read_tree
from app.export.bundle_read import BundleExport, BundleQuery
from app.findings import command
from app.findings.acknowledge import acknowledge
from app.findings.finding import Finding, Group
from app.findings.recorder import Recorder
from app.findings.register import Register, findings_of
from app.ingest.accept import Acceptance, Draft, accept, check_item, single_id
from app.ingest.self_events import self_event, write_self_event
from app.ingest.store import Store
from app.ingest.submission import Submission
from app.ingest.writer import Writer
from app.metrics import VERIFIER_FINDINGS
from app.retention.erase import Erasure, erase
from app.retention.holds import HoldOrder, Selector, place, release_correlation
from app.retention.purge import run
from app.settings import Settings
from app.sql import load
from app.tlog.continued import find_log, newest_log, read_seam
from app.tlog.copies import CheckpointCopies
from app.tlog.keys import SigningKey
from app.tlog.note import Checkpoint, MalformedNote, NoValidSignature, PublicKey, sign_checkpoint
from app.tlog.proof import verify_proof_file
from app.tlog.prove import prove_event
from app.tlog.seen import FILE_NAME, SeenCheckpoint
from app.tlog.signer import Alarms, Signer, SigningRefused
from app.tlog.witness import Witnesses
from app.tlog.worker import CheckpointWorker
from app.verify.correlation import verify_correlation
from app.verify.database import DatabaseResult, TrustAnchors, sequential_runner, verify_database
from app.verify.row import Defect
from app.verify.worker import LogVerifiers
from tests import databases
from tests.events import make_event
from tests.logs import FIRST_LOG
from tests.postgres.log import LOG, write
from tests.postgres.test_background import findings
from tests.postgres.test_checkpoints import no_heartbeat
from tests.unit.test_bundle import parts, signed_again
from tests.waiting import eventually

pytestmark = pytest.mark.damaged  # events are lost on purpose

Connection = asyncpg.Connection
PRIVATE = Ed25519PrivateKey.generate()
PEM = PRIVATE.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
KEY = SigningKey(PRIVATE, PublicKey(LOG, PRIVATE.public_key().public_bytes_raw()))
NEXT = Log(1, LOG)
REPORTS = load("reports")
LOSE = """
SET session_replication_role = replica;
DELETE FROM audit_events WHERE log_id = 0 AND log_index >= {size};
DELETE FROM log_flushes WHERE log_id = 0 AND first_index >= {size};
DELETE FROM log_checkpoints WHERE size > {size};
UPDATE log_signers SET note = (SELECT note FROM log_checkpoints ORDER BY size DESC LIMIT 1);
DELETE FROM chain_heads;
INSERT INTO chain_heads SELECT DISTINCT ON (correlation_id) correlation_id, chain_index + 1, event_hash
FROM audit_events WHERE log_index IS NOT NULL ORDER BY correlation_id, chain_index DESC;
SET session_replication_role = origin;
"""
"""What a standby has that missed the last flushes."""


def settings_of(url: str, **others: Any) -> Settings:
    return Settings(database_url=SecretStr(url), checkpoint_key=SecretStr(PEM), **others)


def worker_of(**others: Any) -> CheckpointWorker:
    signer = Signer(KEY)
    return CheckpointWorker(
        FIRST_LOG, signer, Witnesses([]), CheckpointCopies(None, None), Alarms(), 0, key=KEY, **others
    )


async def verified(connection: Connection, outside: str | None = None) -> DatabaseResult:
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        return await verify_database(connection, sequential_runner(connection), TrustAnchors([KEY.public], outside))


async def defects(connection: Connection, outside: str | None = None) -> list[str]:
    return [defect.message for defect in (await verified(connection, outside)).defects.listed]


async def lose(connection: Connection, url: str) -> str:
    """Five events of which three are left, then three more: the last checkpoint before the loss, which only somebody outside has."""
    worker = worker_of()
    await write(url, {}, {}, {"correlation_id": "rr-2"})
    await worker.run_round(connection, no_heartbeat)
    await write(url, {}, {"correlation_id": "rr-2"})
    await worker.run_round(connection, no_heartbeat)
    outside: str = await connection.fetchval("SELECT note FROM log_checkpoints ORDER BY size DESC LIMIT 1")
    await connection.execute(LOSE.format(size=3))
    await write(url, {}, {"correlation_id": "rr-3"}, {"correlation_id": "rr-2"})
    with pytest.raises(SigningRefused, match="are not those that were signed"):
        await worker.run_round(connection, no_heartbeat)
    return outside


async def go_on(url: str, outside: str, **others: Any) -> Continuation:
    return await continue_log(settings_of(url), "Ada", "failover", [outside], dry_run=False, **others)


async def test_a_loss_is_continued(connection: Connection, database_url: str) -> None:
    """After a loss nothing can be signed any more, or a verifier calls the new log or what was admitted a defect."""
    outside = await lose(connection, database_url)
    assert any("rewritten" in message for message in await defects(connection, outside))
    done = await go_on(database_url, outside)
    assert (done.loss.cause, done.loss.agreed_size, done.loss.signed_size, done.loss.size) == ("rewritten", 3, 5, 6)
    assert str(done.keys[0]).startswith(f"{LOG}/1+")
    seam = await read_seam(connection, NEXT)
    assert seam is not None
    assert (seam.size, seam.reason, seam.by) == (6, "failover", "Ada")

    await write(database_url, {}, {"correlation_id": "rr-4"})
    followed: list[Log] = []
    worker = worker_of(on_log=followed.append)
    await worker.run_round(connection, no_heartbeat)
    assert followed == [NEXT]
    rows = await connection.fetch("SELECT log_index, chain_index FROM audit_events WHERE log_id = 1 ORDER BY log_index")
    assert [tuple(row) for row in rows] == [(0, 0), (1, 3), (2, 0)]  # the chain of rr-1 goes on
    result = await verified(connection, outside)
    assert [defect.message for defect in result.defects.listed] == []
    assert [(part.size, part.events.verified) for part in result.parts] == [(6, 6), (3, 3)]
    assert result.parts[0].admitted == 1
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        for correlation in ("rr-1", "rr-2", "rr-4"):
            assert (await verify_correlation(connection, correlation, NEXT)).is_valid
    newest = await connection.fetchval("SELECT note FROM log_checkpoints WHERE log_id = 1 ORDER BY size DESC LIMIT 1")
    assert newest.startswith(f"{LOG}/1\n3\n")
    assert await defects(connection, newest) == []


async def test_which_releases_go_on(connection: Connection, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a log was continued, a rollback to the release before is refused; or one starts that would write to the closed log."""
    await go_on(database_url, await lose(connection, database_url))
    monkeypatch.setattr(schema, "HEAD", "0013_pre_scopes")
    await schema.check_and_read_log_name(connection, None)
    monkeypatch.setattr(schema, "HEAD", "0009_pre_timestamps")
    with pytest.raises(Fatal, match="older than the schema"):
        await schema.check_and_read_log_name(connection, None)


INSERTS = "INSERT INTO log_flushes SELECT * FROM log_flushes WHERE false"
"""What a flush locks first, as Postgres parses it; then it waits where another replica has locked the log for itself."""
WAITS_FOR_TURN = "SELECT pg_advisory_xact_lock_shared(hashtextextended('datastorage.log', 0))"
TAKES_TURN = load("ingest")["lock_log"]


async def until_waiting(connection: Connection) -> None:
    """Return when a session of the database waits for a lock."""

    async def waits() -> bool | None:
        waiting = "SELECT true FROM pg_locks WHERE NOT granted AND pid IN (SELECT pid FROM pg_stat_activity WHERE datname = current_database())"
        found: bool | None = await connection.fetchval(waiting + " LIMIT 1")
        return found

    await eventually(waits)


@pytest.mark.parametrize(
    ("before", "after"),
    [([TAKES_TURN], [INSERTS, WAITS_FOR_TURN]), ([INSERTS], [WAITS_FOR_TURN]), ([INSERTS], [TAKES_TURN])],
)
async def test_flush_under_way(connection: Connection, database_url: str, before: list[str], after: list[str]) -> None:
    """The log cannot be continued under load: a replica in its flush waits for the command, and the command for it."""
    outside = await lose(connection, database_url)
    async with databases.connected(database_url) as replica:
        await replica.execute("BEGIN")
        for statement in before:
            await replica.execute(statement)
        going = asyncio.create_task(go_on(database_url, outside))
        await until_waiting(connection)
        for statement in after:
            await replica.execute(statement)
        await replica.execute("COMMIT")
    assert (await going).log == NEXT


@pytest.mark.parametrize("statements", [[TAKES_TURN], [INSERTS, WAITS_FOR_TURN]])
async def test_flush_that_begins(
    connection: Connection, database_url: str, monkeypatch: pytest.MonkeyPatch, statements: list[str]
) -> None:
    """As above, where the flush begins while the command is under way."""
    outside = await lose(connection, database_url)
    open_next = continuing._open

    async def flush() -> None:
        async with databases.connected(database_url) as replica, replica.transaction():
            for statement in statements:
                await replica.execute(statement)

    flushing: list[asyncio.Task[None]] = []

    async def open_later(*arguments: Any) -> str:
        flushing.append(asyncio.create_task(flush()))
        await until_waiting(connection)
        return await open_next(*arguments)

    monkeypatch.setattr(continuing, "_open", open_later)
    assert (await go_on(database_url, outside)).log == NEXT
    await flushing[0]


async def test_reader_under_way(connection: Connection, database_url: str) -> None:
    """A verification of hours holds up the command, and it all writers."""
    outside = await lose(connection, database_url)
    async with databases.connected(database_url) as reader, reader.transaction(isolation="repeatable_read"):
        await reader.fetchval("SELECT count(*) FROM log_flushes")
        assert (await go_on(database_url, outside)).log == NEXT


async def continued(connection: Connection, url: str) -> tuple[str, CheckpointWorker]:
    """A continued log with three events of its own, signed: the checkpoint from before the loss, and the worker."""
    outside = await lose(connection, url)
    await go_on(url, outside)
    await write(url, {}, {"correlation_id": "rr-4"})
    worker = worker_of()
    await worker.run_round(connection, no_heartbeat)
    return outside, worker


async def test_every_event_that_is_left_is_proved(connection: Connection, database_url: str) -> None:
    """An event of the closed log has no proof any more, or one that does not verify with the new log's key alone."""
    await continued(connection, database_url)
    rows = await connection.fetch("SELECT event_id, log_id, log_index FROM audit_events ORDER BY log_id, log_index")
    engine = create_engine(settings_of(database_url))
    own, old = [KEY.of(NEXT).public], [KEY.public]
    try:
        for row in rows:
            found = await prove_event(engine, row["event_id"], NEXT)
            through_seam = row["log_id"] == 0 and row["log_index"] >= 3
            assert (found.seam is not None) == through_seam
            keys, strangers = (own, old) if row["log_id"] or through_seam else (old, own)
            for document in (found.document(), found.document(open=False)):
                proved = verify_proof_file(document, keys)
                assert proved.record["event_id"] == str(row["event_id"])
                with pytest.raises(NoValidSignature):
                    verify_proof_file(document, strangers)
                if through_seam:
                    assert proved.checkpoint.size == 6
                    forged = orjson.loads(document)
                    forged["seam"]["committed"]["event_data"]["tree_size"] = 7
                    with pytest.raises(MalformedNote):
                        verify_proof_file(orjson.dumps(forged), keys)
                    del forged["seam"]
                    with pytest.raises(MalformedNote):
                        verify_proof_file(orjson.dumps(forged), keys)
    finally:
        await engine.dispose()


async def test_holds_from_before_cover_what_is_written_after(connection: Connection, database_url: str) -> None:
    """New events of a held correlation are not held, because the hold was placed in the closed log."""
    outside = await lose(connection, database_url)
    order = HoldOrder("Ada", "litigation")
    await place(Settings(database_url=SecretStr(database_url)), FIRST_LOG, Selector(correlation_id="rr-1"), order)
    await go_on(database_url, outside)
    await write(database_url, {}, {"correlation_id": "rr-4"})
    rows = await connection.fetch("SELECT legal_hold FROM audit_events WHERE log_id = 1 ORDER BY log_index")
    assert [row["legal_hold"] for row in rows] == [False, True, False]


async def test_holds_end_in_the_next_log(connection: Connection, database_url: str) -> None:
    """A hold that was released or replaced after the continuation is called edited, and nothing is purged or erased any more; or one
    that is edited afterwards is named at another event's position.
    """
    settings, order = settings_of(database_url), HoldOrder("Ada", "litigation")
    outside = await lose(connection, database_url)
    for name in ("rr-1", "rr-2"):
        await place(settings, FIRST_LOG, Selector(correlation_id=name), order)
    await go_on(database_url, outside)
    await write(database_url, {"correlation_id": "rr-4"})
    for name in ("rr-2", "rr-4"):
        await place(settings, FIRST_LOG, Selector(correlation_id=name), order)
    for name in ("rr-1", "rr-4"):
        await release_correlation(settings, FIRST_LOG, name, order)
    assert await defects(connection, outside) == []
    await erase(settings, Catalog(), Erasure(by="eve", reason="asked for", correlation_id="rr-1"), dry_run=False)
    await connection.execute("SET session_replication_role = replica")
    await connection.execute("UPDATE holds SET reason = 'other' WHERE correlation_id IN ('rr-1', 'rr-4')")
    found = (await verified(connection, outside)).defects.listed
    assert [(one.kind, one.correlation_id, one.position) for one in found] == [
        ("hold edited", "rr-1", None),  # it was placed in the closed log
        ("hold edited", "rr-4", 3),
    ]


async def test_findings_go_on(connection: Connection, database_url: str) -> None:
    """Findings in the next log are not shown after a start, or their acknowledgement does not end them."""
    await continued(connection, database_url)
    settings = settings_of(database_url)
    engine = create_engine(settings)
    writer = Writer(Store(settings, FIRST_LOG, find_log=find_log(settings)), settings)
    writer.start()
    try:
        group = Group("edited")
        group.add(Defect("edited", "edited: 1", position=1), 1)
        found = group.finding(NEXT, None)
        await write_self_event(writer, self_event(LOG, found.payload(), about=found.id), 5_000)
        register = Register(FIRST_LOG, partial(findings_of, engine))
        register.log = NEXT
        await register.read()
        assert [one.id for one in register.open] == [found.id]
        await acknowledge(
            settings, FIRST_LOG, found.id, "ada", "known"
        )  # by a process that does not know of the log yet
        await register.read()
        assert register.open == []
        shown = argparse.Namespace(command="list", all=True)
        lines, _ = await asyncio.to_thread(command.run, shown, lambda: settings)
        assert str(found.id) in lines[0]
    finally:
        await writer.close()
        await engine.dispose()


async def test_who_missed_the_continuation(connection: Connection, database_url: str, tmp_path: Path) -> None:
    """A resend to a replica that still knows the closed log is refused; a store needs the key's file while nothing is continued;
    a backup from before it is signed as if nothing were lost, or cannot be written to.
    """
    file = tmp_path / "key.pem"
    file.write_text(PEM)
    settings = Settings(database_url=SecretStr(database_url), checkpoint_key_file=file)
    store = Store(settings, FIRST_LOG, find_log=find_log(settings))
    file.unlink()
    await store.connection()
    file.write_text(PEM)
    outside = await lose(connection, database_url)
    await go_on(database_url, outside)
    event_id = str(uuid4())
    await write(database_url, {"event_id": event_id})
    now = datetime.now(UTC)
    [event] = accept([draft := _draft(event_id)], [single_id(draft)], Acceptance(now, {}, LOG))
    assert store.log == FIRST_LOG
    stored = await store.find_stored([event], asyncio.get_running_loop().time() + 30)
    assert (stored[event.id].is_sealed, store.log) == (True, NEXT)

    (tmp_path / FILE_NAME).write_text(sign_checkpoint(Checkpoint(f"{LOG}/2", 1, bytes(32)), PRIVATE))
    with pytest.raises(SigningRefused, match="which continues this log"):
        await CheckpointWorker.create(settings, FIRST_LOG, KEY, tmp_path).run_round(connection, no_heartbeat)
    (tmp_path / FILE_NAME).unlink()
    seen = SeenCheckpoint(tmp_path, KEY.all_public)
    worker = worker_of(seen=seen)
    await worker.run_round(connection, no_heartbeat)
    await connection.execute(BEFORE)
    store.disconnect()
    await store.connection()
    assert store.log == FIRST_LOG
    await store.close()
    again = CheckpointWorker.create(settings, FIRST_LOG, KEY, tmp_path)
    with pytest.raises(SigningRefused, match="which continues this log") as refused:
        await again.run_round(connection, no_heartbeat)
    assert refused.value.alarm == "rolled_back"


async def _none_found(log: Log) -> list[Finding]:
    del log
    return []


async def _refuse(finding: Finding, event_id: UUID | None) -> None:
    raise AssertionError(finding, event_id)


def _draft(event_id: str) -> Draft:
    return check_item(Catalog(), make_event(event_id=event_id), "", plain=False, depth=3)


BEFORE = """
SET session_replication_role = replica;
DROP TRIGGER refuse_closed ON log_flushes;
DELETE FROM audit_events WHERE log_id = 1;
DELETE FROM log_flushes WHERE log_id = 1;
DELETE FROM log_checkpoints WHERE log_id = 1;
DELETE FROM log_signers WHERE log_id = 1;
DELETE FROM logs WHERE log_id = 1;
SET session_replication_role = origin;
"""
"""What a standby has that missed the continuation."""


async def test_rows_of_the_next_log(connection: Connection, database_url: str) -> None:
    """Whoever may INSERT keeps a log from being continued, and the command does not say how; or a service without a key follows him."""
    outside = await lose(connection, database_url)
    await connection.execute("INSERT INTO log_flushes (log_id, first_index, count, leaves) VALUES (1, -1, 1, '')")
    with pytest.raises(Fatal, match="log_flushes has a row of the log"):
        await go_on(database_url, outside)
    await connection.execute("DELETE FROM log_flushes WHERE log_id = 1")
    await connection.execute("INSERT INTO logs VALUES (1, $1)", NEXT.name)
    assert await newest_log(connection, FIRST_LOG) == FIRST_LOG
    await connection.execute("DELETE FROM logs WHERE log_id = 1")
    await go_on(database_url, outside)
    assert await newest_log(connection, FIRST_LOG) == NEXT


TAMPERED = {
    "an old row": ("UPDATE audit_events SET severity = 'low' WHERE log_id = 0 AND log_index = 4", {"edited"}),
    "an old row that is left is deleted": ("DELETE FROM audit_events WHERE log_id = 0 AND log_index = 4", {"removed"}),
    "a flush of the closed log": (
        "INSERT INTO log_flushes (log_id, first_index, count, leaves) VALUES (0, 6, 1, repeat('a', 32)::bytea)",
        {"inserted"},
    ),
    "an event in the closed log": (
        """INSERT INTO audit_events SELECT (jsonb_populate_record(e, jsonb_build_object('event_id', gen_random_uuid(),
        'log_index', 6))).* FROM audit_events e WHERE log_id = 0 AND log_index = 5""",
        {"inserted"},
    ),
    "the first event": (
        "UPDATE audit_events SET event_data = event_data || '{\"agreed_size\": 5}' WHERE log_id = 1 AND log_index = 0",
        {"edited", "removed"},
    ),
    "the first event is deleted": ("DELETE FROM audit_events WHERE log_id = 1 AND log_index = 0", {"removed"}),
    "a leaf of the closed log": (
        "UPDATE log_flushes SET leaves = repeat('a', 32)::bytea WHERE log_id = 0 AND first_index = 5",
        {"edited"},
    ),
    "a head of which nothing is left": ("DELETE FROM chain_heads WHERE correlation_id = 'rr-gone'", {"edited"}),
    "a tile without hashes": (
        "INSERT INTO log_tiles (log_id, level, index, hashes) VALUES (1, 2, 0, '')",
        {"inserted"},
    ),
    "a third log": ("INSERT INTO logs VALUES (2, '" + LOG + "/2')", {"inserted"}),
}


async def test_tampering_after_the_seam_is_named(connection: Connection, database_url: str) -> None:
    """What the seam admits excuses something else, with the key and an outside checkpoint or in the background."""
    outside, worker = await continued(connection, database_url)
    now = datetime.now(UTC)
    old = {"event_timestamp": (now - timedelta(days=40)).isoformat(), "retention_days": 10}
    await write(database_url, {"correlation_id": "rr-gone"} | old)
    await run(settings_of(database_url), now)
    await worker.run_round(connection, no_heartbeat)
    assert await defects(connection, outside) == []
    for what, (statement, kinds) in TAMPERED.items():
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("SET LOCAL session_replication_role = replica")
        await connection.execute("ALTER TABLE log_flushes DISABLE TRIGGER refuse_closed")
        await connection.execute(statement)
        result = await verify_database(connection, sequential_runner(connection), TrustAnchors([KEY.public], outside))
        found = {defect.kind for defect in result.defects.listed}
        assert found & kinds, (what, found)
        await transaction.rollback()


async def test_a_log_that_nobody_signed_is_not_followed(connection: Connection, database_url: str) -> None:
    """Whoever can write to the tables makes a service write to a log of his, or verification calls it one of ours."""
    outside = await lose(connection, database_url)
    done = await continue_log(settings_of(database_url), "eve", "mine", [outside], dry_run=True)
    assert done.note is None
    assert await connection.fetchval("SELECT count(*) FROM logs") == 1
    await connection.execute("SELECT open_next_log(0::smallint, $1, '0010_pre_logs')", f"{LOG}/1")
    assert await newest_log(connection, FIRST_LOG, KEY.all_public) == FIRST_LOG
    assert await newest_log(connection, FIRST_LOG, [PublicKey(LOG, bytes(32))]) == FIRST_LOG
    assert "inserted" in {defect.kind for defect in (await verified(connection)).defects.listed}
    store = Store(settings_of(database_url), FIRST_LOG, find_log=find_log(settings_of(database_url)))
    await store.connection()
    assert store.log == FIRST_LOG
    await store.close()


async def test_refused_while_the_log_is_in_order(connection: Connection, database_url: str) -> None:
    """A log is closed although nothing is wrong with it, or by a checkpoint that its key has not signed."""
    await write(database_url, {}, {})
    worker = worker_of()
    await worker.run_round(connection, no_heartbeat)
    newest = await connection.fetchval("SELECT note FROM log_checkpoints")
    for notes in ([], [newest]):
        with pytest.raises(Fatal, match="there is nothing to continue"):
            await continue_log(settings_of(database_url), "Ada", "why", notes, dry_run=False)
    with pytest.raises(Fatal, match="is not one of the log"):
        await go_on(database_url, sign_checkpoint(Checkpoint(LOG, 9, bytes(32)), Ed25519PrivateKey.generate()))
    with pytest.raises(Fatal, match="No key signs the log"):
        await continue_log(Settings(database_url=SecretStr(database_url)), "Ada", "why", dry_run=False)
    assert await connection.fetchval("SELECT count(*) FROM logs") == 1


async def test_the_background_verifier_walks_both(connection: Connection, database_url: str) -> None:
    """The background verifier calls the seam a defect, or does not see what is changed in either log."""
    await continued(connection, database_url)
    register = Register(FIRST_LOG, _none_found)
    verifier = LogVerifiers(FIRST_LOG, KEY.all_public, 2, Recorder(register, _refuse))
    for _ in range(12):
        await verifier.verify_next_part(connection)
    assert await findings(connection) == set()
    assert register.log == NEXT  # whatever else has followed by then
    verifier = LogVerifiers(FIRST_LOG, KEY.all_public, 2)
    await connection.execute("SET session_replication_role = replica")
    await connection.execute("UPDATE audit_events SET severity = 'low' WHERE log_index = 1")
    for _ in range(12):
        await verifier.verify_next_part(connection)
    rows = await connection.fetch("SELECT log_id, position, kind FROM verifier_findings ORDER BY 1")
    assert [tuple(row) for row in rows] == [(0, 1, "edited"), (1, 1, "edited")]
    assert VERIFIER_FINDINGS.labels(kind="edited")._value.get() == 2
    [extent] = await connection.fetch(REPORTS["extent"], "rr-1", None)
    [verdict] = await connection.fetch(REPORTS["last_verdict"], "rr-1")
    assert (extent["count"], extent["verified"], verdict["found"], verdict["unclear"]) == (4, 4, 2, 0)
    looked_at = await connection.fetch("SELECT looked_at FROM verifier")
    assert verdict["looked_at"] == min(row["looked_at"] for row in looked_at)
    await connection.execute("UPDATE verifier SET position = 0, completed_end = 0 WHERE log_id = 1")
    [extent] = await connection.fetch(REPORTS["extent"], "rr-1", None)
    assert extent["verified"] == 3  # the last event is in the next log


async def test_a_bundle_over_the_seam(connection: Connection, database_url: str) -> None:
    """What happened before a loss and after it cannot be shown in one file, or a file that was changed at the seam verifies."""
    outside = await lose(connection, database_url)
    await go_on(database_url, outside)
    await write(database_url, {}, {"correlation_id": "rr-4"})
    worker = worker_of(on_log=list[Log]().append)
    await worker.run_round(connection, no_heartbeat)
    await worker.run_round(connection, no_heartbeat)
    next_key = KEY.of(NEXT)
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        content = await BundleExport(BundleQuery("rr-1"), "ada", NEXT, next_key).read(connection)
        before = await read_tree(connection, next(NEXT.and_earlier()), 2)
    keys = [KEY.public, next_key.public]
    found = check_bundle(content, keys)
    assert found.problems == []
    bundle = parse(content).bundle
    assert [(one.log, one.position) for one in bundle.events] == [(LOG, 0), (LOG, 1), (LOG, 3), (NEXT.name, 1)]
    assert [(one.size, one.checkpoint is None, one.seam) for one in bundle.logs] == [
        (6, True, Place(NEXT.name, 0)),
        (3, False, None),
    ]
    assert (before.size, before.note is not None) == (3, True)
    assert "closed after a loss" in "\n".join(found.summary)
    for path, change in (
        (("logs", 0, "size"), 5),
        (("logs", 0, "seam"), None),
        (("logs", 0, "seam", "position"), 1),
        (("logs", 0, "log_id"), 1),
        (("logs", 0, "name"), "other"),
        (("logs", 1, "checkpoint"), outside),
        (("evidence", 0, "salt"), "00"),
    ):
        document, _ = parts(content)
        value: Any = document
        for name in path[:-1]:
            value = value[name]
        value[path[-1]] = change
        assert check_bundle(signed_again(document, next_key), keys).problems, path


async def test_running_services_go_on(connection: Connection, database_url: str) -> None:
    """A writer that runs while the log is continued loses or doubles an event, or does not see holds that are placed afterwards."""
    settings = settings_of(database_url)
    outside = await lose(connection, database_url)
    writer = Writer(Store(settings, FIRST_LOG, find_log=find_log(settings)), settings)
    writer.start()
    try:
        await post(writer, "rr-5")
        await go_on(database_url, outside)
        await asyncio.gather(*(post(writer, "rr-5") for _ in range(5)))
        assert writer.store.log == NEXT
        await place(settings, NEXT, Selector(correlation_id="rr-5"), HoldOrder("eve", "why"))
        await place(
            settings, FIRST_LOG, Selector(actor_id="ada"), HoldOrder("eve", "why")
        )  # who does not know of it yet
        await post(writer, "rr-5")
        await post(writer, "rr-6", actor_id="ada")
    finally:
        await writer.close()
    rows = await connection.fetch(
        "SELECT log_id, chain_index, legal_hold FROM audit_events WHERE correlation_id = 'rr-5' ORDER BY chain_index"
    )
    assert [tuple(row) for row in rows] == [(0, 0, True), *((1, index, True) for index in range(1, 7))]
    assert await connection.fetchval("SELECT legal_hold FROM audit_events WHERE correlation_id = 'rr-6'")
    placed = await connection.fetch("SELECT placed_log, placed_index FROM holds ORDER BY placed_index")
    assert [tuple(row) for row in placed] == [(1, 6), (1, 7)]
    assert await defects(connection, outside) == []


async def test_purge_and_erasure_of_either_log(connection: Connection, database_url: str) -> None:
    """A purge or an erasure in a continued database is not evidence, or excuses the same positions of the other log."""
    outside, _ = await continued(connection, database_url)
    settings = settings_of(database_url)
    await erase(settings, Catalog(), Erasure(by="eve", reason="asked for", correlation_id="rr-1"), dry_run=False)
    assert await defects(connection, outside) == []
    await run(settings, datetime.now(UTC) + timedelta(days=2600))
    assert await connection.fetchval("SELECT count(*) FROM audit_events WHERE correlation_id LIKE 'rr-%'") == 0
    told = await connection.fetch(
        "SELECT event_data FROM audit_events WHERE event_type = 'datastorage.retention.purged' AND log_id = 1"
    )
    assert {orjson.loads(row["event_data"])["log_id"] for row in told} == {0, 1}
    result = await verified(connection, outside)
    # The run's clock is years ahead, which is a defect of its own.
    assert [defect.message for defect in result.defects.listed if defect.kind != "early purge"] == []
    assert [part.events.purged for part in result.parts] == [6, 2]


async def post(writer: Writer, correlation_id: str, **members: Any) -> None:
    now = datetime.now(UTC)
    item = make_event(correlation_id=correlation_id, **members)
    draft = check_item(Catalog(), item, "", plain=False, depth=3)
    event = accept([draft], [single_id(draft)], Acceptance(now, {}, LOG))[0]
    await writer.submit(Submission([event], {}, may_exist=False), asyncio.get_running_loop().time() + 30)
