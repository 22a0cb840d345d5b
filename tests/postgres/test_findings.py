"""Findings in the log: written once, open until somebody has acknowledged them, whatever becomes of the tables; and bounded."""

import argparse
import asyncio
import logging
import math
import os
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4, uuid5

import asyncpg
import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import SecretStr

from app.db import Engine
from app.errors import InboxFull, NotFound
from app.events.catalog import Catalog
from app.events.positions import Positions
from app.findings import command
from app.findings import recorder as recorders
from app.findings.acknowledge import acknowledge
from app.findings.finding import RANGES_MAX, SUBJECTS_MAX, Finding, Group
from app.findings.recorder import Recorder
from app.findings.register import Register, findings_of
from app.ingest.self_events import self_event, write_self_event
from app.ingest.store import Store
from app.ingest.writer import Writer
from app.metrics import OPEN_FINDINGS
from app.retention import erase
from app.settings import Settings
from app.tlog.alarm import LogAlarm, PendingAlarms
from app.tlog.note import Checkpoint, PublicKey, sign_checkpoint
from app.tlog.seen import FILE_NAME, SeenCheckpoint
from app.verify.row import Defect
from app.verify.worker import Verifier
from tests.logs import FIRST_LOG
from tests.postgres.test_background import a_round
from tests.sealed import LOG, insert, plain_row, seal
from tests.waiting import eventually

pytestmark = pytest.mark.damaged

Connection = asyncpg.Connection
KEY = Ed25519PrivateKey.generate()
PUBLIC = PublicKey(LOG, KEY.public_key().public_bytes_raw())


class Replica:
    """What one process has: a register, a recorder and a verifier."""

    def __init__(self, settings: Settings, writer: Writer, engine: Engine, part_events: int = 20) -> None:
        self.settings = settings
        self.register = Register(FIRST_LOG, partial(findings_of, engine))
        self._writer = writer
        self._engine = engine
        self.recorder = Recorder(self.register, self.write)
        self.verifier = Verifier(FIRST_LOG, (PUBLIC,), part_events, self.recorder)
        self.fails = False

    def another(self, part_events: int = 20) -> "Replica":
        """As after a restart, or beside this one."""
        return Replica(self.settings, self._writer, self._engine, part_events)

    async def write(self, finding: Finding, event_id: UUID | None) -> None:
        if self.fails:
            raise InboxFull
        event = self_event(LOG, finding.payload(), about=finding.id, event_id=event_id)
        await write_self_event(self._writer, event, 5_000)

    async def open(self) -> dict[str, str]:
        """Where the open findings are, by their kinds, as the log has them."""
        await self.register.read()
        found = [(one.kind, ";".join([str(one.positions), *one.subjects])) for one in self.register.open]
        assert len(dict(found)) == len(found)
        return dict(found)

    async def acknowledge_all(self) -> None:
        await self.register.read()
        for one in self.register.open:
            await acknowledge(self.settings, FIRST_LOG, one.id, "ada", "restored")


@pytest.fixture
async def writer(database_url: str, owner: Connection) -> AsyncIterator[Writer]:
    del owner
    settings = Settings(database_url=SecretStr(database_url))
    writer = Writer(Store(settings, FIRST_LOG), settings)
    writer.start()
    yield writer
    await writer.close()


@pytest.fixture
def settings(database_url: str) -> Settings:
    return Settings(database_url=SecretStr(database_url))


@pytest.fixture
def replica(settings: Settings, writer: Writer, engine: Engine) -> Replica:
    return Replica(settings, writer, engine)


async def events(connection: Connection, name: str = "recorded") -> list[dict[str, Any]]:
    """The payloads of the log's events about findings."""
    query = "SELECT event_data FROM audit_events WHERE event_type = $1 AND log_index IS NOT NULL ORDER BY log_index"
    return [orjson.loads(row["event_data"]) for row in await connection.fetch(query, f"datastorage.finding.{name}")]


EDIT = "UPDATE audit_events SET severity = 'low' WHERE log_index = $1"
MEND = "UPDATE audit_events SET severity = NULL WHERE log_index = $1"


async def test_honest_log(owner: Connection, replica: Replica) -> None:
    """A finding is recorded although nothing is wrong."""
    for _ in range(2):
        await a_round(replica.verifier, owner)
        await replica.recorder.record_alarms([])
    assert (await events(owner), await replica.open()) == ([], {})


async def test_stays_until_acknowledged(
    owner: Connection, replica: Replica, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """A finding is written in each round or by each replica, is forgotten with the tables or its cause, or stays for ever."""
    await owner.execute(EDIT, 8)
    await owner.execute("DELETE FROM audit_events WHERE log_index = 3")
    for _ in range(2):
        await a_round(replica.verifier, owner)
    here = {"edited": "{[8,9)}", "removed": "{[3,4)}"}
    assert await replica.open() == here
    assert OPEN_FINDINGS.labels(kind="edited")._value.get() == 1
    for table in ("verifier_findings", "verifier"):
        await owner.execute(f"DELETE FROM {table}")
    again = replica.another()  # after a restart, or another one
    assert await again.open() == here
    await a_round(again.verifier, owner)
    await owner.execute(MEND, 8)
    for one in (replica, again, again):
        await a_round(one.verifier, owner)
    assert await again.open() == here
    recorded = await events(owner)
    assert [(one["kind"], one["log_id"], one["positions"], one["defect_count"]) for one in recorded] == [
        ("edited", 0, "{[8,9)}", 1),
        ("removed", 0, "{[3,4)}", 1),
    ]
    assert [one["correlation_ids"] for one in recorded] == [["rr-1"], ["rr-0"]]
    await replica.acknowledge_all()
    for one in (replica, again):
        await a_round(one.verifier, owner)  # the removed row is still missing
        assert await one.open() == {}
    assert OPEN_FINDINGS.labels(kind="edited")._value.get() == 0
    said = [(one["acknowledged_by"], one["reason"]) for one in await events(owner, "acknowledged")]
    assert said == [("ada", "restored")] * 2
    with pytest.raises(NotFound):
        await acknowledge(settings, FIRST_LOG, UUID(recorded[0]["finding_id"]), "ada", "again")
    assert len([one for one in caplog.records if one.message == "a finding is recorded in the log"]) == 2


async def test_two_acknowledge_at_once(owner: Connection, replica: Replica, settings: Settings) -> None:
    """Two people end one finding at the same time: both are told that they did, and the log has two reasons."""
    await owner.execute(EDIT, 8)
    await a_round(replica.verifier, owner)
    (recorded,) = await events(owner)
    finding_id = UUID(recorded["finding_id"])

    async def both_wait() -> bool | None:
        waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        return True if await owner.fetchval(waiting) == 2 else None

    async with owner.transaction():
        await owner.execute("LOCK TABLE log_flushes IN SHARE ROW EXCLUSIVE MODE")  # both have read, none has written
        acts = [
            asyncio.create_task(acknowledge(settings, FIRST_LOG, finding_id, by, "seen")) for by in ("ada", "grace")
        ]
        await eventually(both_wait)
    done = await asyncio.gather(*acts, return_exceptions=True)
    ended = [one for one in done if isinstance(one, Finding)]
    assert [type(one) for one in done if not isinstance(one, Finding)] == [NotFound]
    assert [one["acknowledged_by"] for one in await events(owner, "acknowledged")] == [
        one.acknowledgement.by for one in ended if one.acknowledgement is not None
    ]


async def test_comes_back(owner: Connection, replica: Replica) -> None:
    """What was acknowledged and repaired can be damaged again unseen, or is the finding of before."""
    ids = []
    for _ in range(2):
        await owner.execute(EDIT, 8)
        await a_round(replica.verifier, owner)
        assert await replica.open() == {"edited": "{[8,9)}"}
        ids.append((await events(owner))[-1]["finding_id"])
        await replica.acknowledge_all()
        await owner.execute(MEND, 8)
        await a_round(replica.verifier, owner)
    assert len({*ids}) == len(await events(owner)) == 2


async def test_event_of_a_finding_is_removed(owner: Connection, replica: Replica) -> None:
    """Who removes the event of a finding has removed the finding."""
    await owner.execute(EDIT, 8)
    await a_round(replica.verifier, owner)
    await owner.execute("DELETE FROM audit_events WHERE event_type = 'datastorage.finding.recorded'")
    await owner.execute("DELETE FROM verifier_findings")
    assert await replica.open() == {"edited": "{[8,9)}"}  # who has seen it knows it
    another = replica.another()
    await a_round(another.verifier, owner)
    assert await another.open() == {"edited": "{[8,9)}", "removed": "{[20,21)}"}
    assert [one["positions"] for one in await events(owner)] == ["{[8,9)}", "{[20,21)}"]
    await another.acknowledge_all()
    await a_round(replica.verifier, owner)
    assert await replica.open() == {}


@pytest.mark.parametrize(
    "acts",
    [
        ("UPDATE audit_events SET severity = 'low' WHERE log_index < 20",),
        ("DELETE FROM log_flushes WHERE first_index = 5", "DELETE FROM chain_heads"),
        ("TRUNCATE verifier, verifier_findings, chain_heads",),
    ],
)
async def test_damaged_log_is_written_to(owner: Connection, replica: Replica, acts: tuple[str, ...]) -> None:
    """Nothing can be recorded in a log that is damaged, what is recorded is found again, or each damaged row has an event."""
    await a_round(replica.verifier, owner)
    for act in acts:
        await owner.execute(act)
    for _ in range(2):
        await a_round(replica.verifier, owner)
    recorded = await events(owner)
    assert 0 < len(recorded) <= 4 * 2
    for _ in range(2):
        await a_round(replica.verifier, owner)
    assert await events(owner) == recorded


async def test_thousand_damaged_rows(owner: Connection, replica: Replica) -> None:
    """A thousand damaged rows are a thousand events, or some are not named."""
    replica = replica.another(50)
    for _ in range(4):
        await seal(owner, "rr-2", *({} for _ in range(100)))
    await owner.execute("UPDATE audit_events SET severity = 'low' WHERE log_index % 2 = 0")
    for _ in range(2):
        await a_round(replica.verifier, owner)
    recorded = await events(owner)
    assert len(recorded) == recorders.EVENTS_PER_ROUND + 1
    assert sum(one["defect_count"] for one in recorded) == 210
    together = [r for one in recorded for r in Positions.parse(one["positions"]).ranges]
    assert Positions(together).ranges == [(at, at + 1) for at in range(0, 420, 2)]


def test_groups_are_bounded() -> None:
    """A finding of many defects has a payload that the log refuses, or does not cover all of them."""
    group = Group("edited")
    for at in range(5_000):
        group.add(
            Defect("edited", "edited: x", position=3 * at + at // 50, correlation_id=f"rr-{at}"), 3 * at + at // 50
        )
        group.add(Defect("edited", "edited: x", subject=f"x {at}"), f"x {at}")
    finding = group.finding(FIRST_LOG, None)
    assert all(
        finding.covers("edited", 0, subject) for at in range(5_000) for subject in (3 * at + at // 50, f"x {at}")
    )
    assert (len(finding.positions.ranges), len(finding.subjects)) == (RANGES_MAX, SUBJECTS_MAX + 1)
    assert not finding.covers("removed", 0, 0)
    assert len(orjson.dumps(finding.payload())) < 40_000
    assert finding.payload() == group.finding(FIRST_LOG, None).payload()
    assert finding.id != group.finding(FIRST_LOG, uuid4()).id


async def test_no_more_than_a_few_are_open(
    owner: Connection, replica: Replica, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Who damages something in each round fills the log; or what was not recorded is not recorded later."""
    monkeypatch.setattr(recorders, "OPEN_MAX", 2)
    for position in range(4):
        await owner.execute(EDIT, position)
        await a_round(replica.verifier, owner)
    assert len(await events(owner)) == 2
    await replica.recorder.record_alarms([LogAlarm("wrong_key", "note 1", "another kind")])
    assert len(await events(owner)) == 3
    assert any(
        "acknowledge findings" in record.message for record in caplog.records if record.levelno >= logging.CRITICAL
    )
    await replica.acknowledge_all()
    await a_round(replica.verifier, owner)
    assert await replica.open() == {"edited": "{[2,4)}"}


async def test_failed_writing(owner: Connection, replica: Replica) -> None:
    """What could not be recorded is not recorded later, or what the process remembers of the last round is lost with it."""
    await a_round(replica.verifier, owner)
    await owner.execute(
        "DELETE FROM audit_events WHERE log_index >= 15; DELETE FROM log_flushes WHERE first_index >= 15"
    )
    await owner.execute(
        "UPDATE chain_heads SET length = 10 - 5, hash = (SELECT event_hash FROM audit_events WHERE log_index = 9) WHERE correlation_id = 'rr-1'"
    )
    replica.fails = True
    for _ in range(2):
        with pytest.raises(InboxFull):
            await a_round(replica.verifier, owner)
    replica.fails = False
    await a_round(replica.verifier, owner)
    assert (await replica.open())["rolled back"] == "{};log of 20 events"


async def test_replicas_write_one(owner: Connection, replica: Replica) -> None:
    """Two replicas that find the same at the same time write two findings, or a row under the id that both compute hides it."""
    alarm = LogAlarm("rewritten", "checkpoint 20", "the first 20 leaves of the log are not those that were signed")
    replicas = [replica.another() for _ in range(2)]
    for one in replicas:
        await one.register.read()
    read = replicas[1].register.read
    replicas[1].register.read = _nothing  # type: ignore[method-assign] # it has read just before the first one wrote
    for one in replicas:
        await one.recorder.record_alarms([alarm])
        await one.recorder.record_alarms([alarm])
    replicas[1].register.read = read  # type: ignore[method-assign]
    [recorded] = await events(owner)
    assert (recorded["kind"], recorded["alarm"], recorded["subjects"]) == ("edited", "rewritten", ["checkpoint 20"])
    assert recorded["finding_id"] == str(alarm_finding(alarm).id)
    forged = alarm._replace(subject="checkpoint 30")
    await insert(owner, plain_row("rr-0", event_id=uuid5(alarm_finding(forged).id, "recorded")))
    await replicas[0].recorder.record_alarms([forged])
    assert [one["subjects"] for one in await events(owner)] == [["checkpoint 20"], ["checkpoint 30"]]


async def _nothing() -> None: ...


def alarm_finding(alarm: LogAlarm) -> Finding:
    group = Group("edited", alarm.name)
    group.add(Defect("edited", alarm.detail, subject=alarm.subject), alarm.subject)
    return group.finding(FIRST_LOG, None)


async def test_alarms(owner: Connection, replica: Replica) -> None:
    """An alarm is recorded each second, is recorded again after a restart though somebody has acknowledged it, or never again."""
    alarm = LogAlarm("inserted", "alarm inserted", "log_flushes has a row beyond the end of the log")
    for alarms in ([alarm], [alarm, LogAlarm("witness_ahead", "witness w", "30, not 20")], [alarm]):
        await replica.recorder.record_alarms(alarms)
    assert await replica.open() == {"inserted": "{};alarm inserted", "rolled back": "{};witness w"}
    await replica.acknowledge_all()
    again = replica.another()
    for one in (replica, again):
        await one.recorder.record_alarms([alarm])
        assert await one.open() == {}
        await one.recorder.record_alarms([])
    await again.recorder.record_alarms([alarm])
    assert await again.open() == {"inserted": "{};alarm inserted"}
    assert len(await events(owner)) == 3


async def test_alarms_of_the_writer(owner: Connection, replica: Replica, settings: Settings) -> None:
    """What the writer finds wrong is forgotten, is recorded each time that its cause is met, or is lost while it cannot be recorded."""
    store = Store(settings, FIRST_LOG)
    ids = [uuid4() for _ in range(2)]
    for event_id in ids:
        await insert(owner, plain_row("rr-0", event_id=event_id))
    await owner.execute("UPDATE chain_heads SET length = -1 WHERE correlation_id = 'rr-1'")
    sent = [self_event(LOG, {"event_type": "datastorage.log.heartbeat", "tree_size": 1}, event_id=one) for one in ids]

    async def meet() -> None:
        assert not any(one.is_sealed for one in (await store.find_stored(sent, math.inf)).values())
        store._cache_heads(await owner.fetch("SELECT * FROM chain_heads"))
        await replica.recorder.record_pending(store.alarms)

    for _ in range(3):
        await meet()
        assert store.alarms.listed == []
    assert [(one["alarm"], one["kind"], one["subjects"]) for one in await events(owner)] == [
        ("unsealed", "inserted", [f"event {one}" for one in ids]),
        ("damaged", "edited", ["correlation rr-1"]),
    ]
    await replica.acknowledge_all()
    await meet()
    assert (await replica.open(), store.alarms.listed) == ({}, [])

    async def refuse(*_: object) -> None:
        raise InboxFull

    alarm = LogAlarm("rolled_back", "log of 30 events", "the log ends at 20")
    store.alarms.add(alarm)
    with pytest.raises(InboxFull):
        await Recorder(replica.register, refuse).record_pending(store.alarms)
    assert store.alarms.listed == [alarm]
    await replica.recorder.record_pending(store.alarms)
    assert await replica.open() == {"rolled back": "{};log of 30 events"}
    await store.close()


def test_pending_alarms_are_bounded() -> None:
    """Somebody who makes the writer raise alarms uses up its memory."""
    pending = PendingAlarms()
    for number in range(5_000):
        pending.add(LogAlarm("unsealed", f"event {number}", ""))
    assert len(pending.listed) == 1_000


DIFFERENCES = (
    {"event_type": "workflow.completed"},
    {"correlation_id": "rr-0"},
    {"event_category": "workflow"},
    {"event_data": "{}"},
)


async def test_forged_acknowledgement(owner: Connection, replica: Replica) -> None:
    """An event of another kind ends a finding, or a row that is not in the log does."""
    await owner.execute(EDIT, 8)
    await a_round(replica.verifier, owner)
    [recorded] = await events(owner)
    payload = {"finding_id": recorded["finding_id"], "acknowledged_by": "eve", "reason": "nothing"}
    payload["event_type"] = "datastorage.finding.acknowledged"
    columns = {"event_type": payload["event_type"], "event_category": "security"}
    columns |= {"event_data": orjson.dumps(payload).decode()}
    correlation = f"datastorage:finding:{recorded['finding_id']}"
    await insert(owner, plain_row(correlation, **columns))
    for differs in DIFFERENCES:
        forged = {"correlation_id": correlation} | columns | differs
        await seal(owner, forged.pop("correlation_id"), forged)
    assert await replica.open() == {"edited": "{[8,9)}"}
    await seal(owner, correlation, columns)
    assert await replica.open() == {}  # this is what one of ours is like


async def test_never_purged_or_erased(owner: Connection, replica: Replica, settings: Settings) -> None:
    """A finding ends by retention, or by an erasure of what it says."""
    await owner.execute(EDIT, 8)
    await a_round(replica.verifier, owner)
    [recorded] = await events(owner)
    due = await owner.fetchval(
        "SELECT is_over(now(), '2000-01-01', event_type, 1, NULL::audit_retention_policies, 1, 1) FROM audit_events "
        "WHERE event_type = 'datastorage.finding.recorded'"
    )
    assert due is False
    erasure = erase.Erasure("r", "b", None, None, f"datastorage:finding:{recorded['finding_id']}")
    assert (await erase.erase(settings, Catalog(), erasure, dry_run=True)).events == []


async def test_command(owner: Connection, replica: Replica, settings: Settings) -> None:
    """The command does not list what is open, or an acknowledgement does not end it."""

    def run(*words: object) -> tuple[list[str], int]:
        names = ("finding", "reason", "by") if words[0] == "acknowledge" else ("all",)
        arguments = argparse.Namespace(command=words[0], **dict(zip(names, words[1:], strict=True)))
        return command.run(arguments, lambda: settings)

    assert await asyncio.to_thread(run, "list", False) == (["There is no finding that nobody has acknowledged."], 0)
    await owner.execute(EDIT, 8)
    await a_round(replica.verifier, owner)
    lines, code = await asyncio.to_thread(run, "list", False)
    [recorded] = await events(owner)
    assert (code, lines[0].startswith(recorded["finding_id"]), "{[8,9)}" in lines[2]) == (1, True, True)
    assert (await asyncio.to_thread(run, "acknowledge", recorded["finding_id"], "known", "ada"))[1] == 0
    assert (await asyncio.to_thread(run, "list", False))[1] == 0
    assert "by ada: known" in (await asyncio.to_thread(run, "list", True))[0][-1]


def signed(size: int, key: Ed25519PrivateKey = KEY) -> str:
    return sign_checkpoint(Checkpoint(LOG, size, bytes(32)), key)


def test_note_of_the_last_checkpoint(tmp_path: Path) -> None:
    """The last checkpoint is forgotten with the process, or what somebody puts there counts or stops the start."""
    seen = SeenCheckpoint(tmp_path, (PUBLIC,))
    assert seen.note is None
    for note in (signed(1), signed(2), signed(2)):
        asyncio.run(seen.store(note))
    assert SeenCheckpoint(tmp_path, (PUBLIC,)).note == signed(2)
    assert (tmp_path / FILE_NAME).stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]
    (tmp_path / "checkpoint.new").mkdir()  # the disk fails
    asyncio.run(seen.store(signed(3)))
    assert seen.note == signed(3)
    (tmp_path / "checkpoint.new").rmdir()
    asyncio.run(seen.store(signed(3)))
    assert SeenCheckpoint(tmp_path, (PUBLIC,)).note == signed(3)


@pytest.mark.parametrize("what", ["foreign", "unsigned", "nothing", "binary", "fifo", "link", "directory", "large"])
def test_forged_note(tmp_path: Path, what: str, caplog: pytest.LogCaptureFixture) -> None:
    """A note that none of the log's keys has signed counts, or the service does not start beside it."""
    path = tmp_path / FILE_NAME
    texts = {
        "foreign": signed(9, Ed25519PrivateKey.generate()),
        "unsigned": signed(9).partition("\n\n")[0] + "\n\n",
        "nothing": "",
        "large": signed(9) + "x" * 100_000,
    }
    match what:
        case "fifo":
            os.mkfifo(path)
        case "link":
            (tmp_path / "elsewhere").write_text(signed(9))
            path.symlink_to(tmp_path / "elsewhere")
        case "directory":
            path.mkdir()
        case "binary":
            path.write_bytes(b"\xff" * 100)
        case _:
            path.write_text(texts[what])
    assert SeenCheckpoint(tmp_path, (PUBLIC,)).note is None
    assert ["is ignored" in record.message for record in caplog.records] == [True]
