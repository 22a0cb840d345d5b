"""Witnesses: their cosignatures are stored and served, and one that has seen another log raises the alarm."""

from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import REGISTRY

from app.errors import Fatal
from app.tlog.copies import CheckpointCopies
from app.tlog.note import Note, PublicKey
from app.tlog.signer import Alarms, Signer
from app.tlog.tiles import SQL
from app.tlog.witness import Witness, Witnesses
from app.tlog.worker import CheckpointWorker
from tests.logs import FIRST_LOG
from tests.postgres.test_checkpoints import Connection, leaves, new_key, no_heartbeat, write
from tests.witness import FakeWitness, serving

pytestmark = pytest.mark.damaged

KEY = new_key()


@pytest.fixture
def witness() -> Iterator[FakeWitness]:
    with serving(FakeWitness(KEY.public)) as one:
        yield one


def with_witness(*witnesses: FakeWitness) -> CheckpointWorker:
    asked = [Witness.parse(f"{one.key} {one.url}/") for one in witnesses]
    return CheckpointWorker(FIRST_LOG, Signer(KEY), Witnesses(asked), CheckpointCopies(None, None), Alarms(), 0)


async def served(connection: Connection) -> Note:
    return Note.parse((await connection.fetchrow(SQL.of(FIRST_LOG)["published_checkpoint"]))["note"])


def alarms(alarm: str) -> float:
    return REGISTRY.get_sample_value("datastorage_log_alarms_total", {"alarm": alarm}) or 0


async def test_cosignatures_are_served(connection: Connection, witness: FakeWitness) -> None:
    """A checkpoint is served without what the witness signed, or the witness gets a proof that it cannot accept."""
    worker = with_witness(witness)
    for size in (1, 300, 1):
        await write(connection, leaves(size))
        await worker.run_round(connection, no_heartbeat)
        note = await served(connection)
        assert note.is_signed_by(KEY.public)
        assert note.is_signed_by(witness.key)
    assert witness.seen.size == 302
    assert witness.requests == 3


async def test_a_new_process_knows_how_far_the_witness_is(connection: Connection, witness: FakeWitness) -> None:
    """After each restart the witness is asked twice, or its answer with the size that it has seen is not understood."""
    await write(connection, leaves(5))
    await with_witness(witness).run_round(connection, no_heartbeat)
    await write(connection, leaves(5, 5))
    recalled = with_witness(witness)
    await recalled.restore_witness_sizes(connection)
    await recalled.run_round(connection, no_heartbeat)
    assert witness.requests == 2
    await write(connection, leaves(5, 10))
    await with_witness(witness).run_round(connection, no_heartbeat)
    assert witness.requests == 4
    assert (await served(connection)).is_signed_by(witness.key)


async def test_a_witness_that_is_ahead_raises_the_alarm(connection: Connection, witness: FakeWitness) -> None:
    """A restored backup of the whole database goes unnoticed although a witness has seen more."""
    await write(connection, leaves(5))
    await write(connection, leaves(5, 5))
    await with_witness(witness).run_round(connection, no_heartbeat)
    # What the database was before the second flush; a new process has seen nothing of it.
    await connection.execute(
        "DELETE FROM log_flushes WHERE first_index = 5; DELETE FROM log_checkpoints; UPDATE log_signers SET note = NULL"
    )
    before = alarms("witness_ahead")
    await with_witness(witness).run_round(connection, no_heartbeat)
    assert alarms("witness_ahead") == before + 1
    assert not (await served(connection)).is_signed_by(witness.key)


async def test_a_witness_of_another_history_raises_the_alarm(connection: Connection, witness: FakeWitness) -> None:
    """A backup was restored, the log has grown beyond what the witness saw, and no alarm is raised."""
    await write(connection, leaves(5))
    await with_witness(witness).run_round(connection, no_heartbeat)
    await connection.execute("DELETE FROM log_flushes WHERE first_index = 0; DELETE FROM log_checkpoints")
    await connection.execute("UPDATE log_signers SET note = NULL")
    await write(connection, leaves(9, 100))
    before = alarms("witness_conflict")
    await with_witness(witness).run_round(connection, no_heartbeat)
    assert alarms("witness_conflict") == before + 1


@pytest.mark.parametrize(
    "answer", [(500, "no"), (404, "unknown log"), (200, ""), (200, "\u2014 w AAAAAAAA\n"), (200, "x"), (409, "many")]
)
async def test_a_witness_that_fails_stops_nothing(
    connection: Connection, witness: FakeWitness, answer: tuple[int, str]
) -> None:
    """A witness that is away or sends nonsense prevents checkpoints from being served, or its nonsense is served."""
    witness.answer = answer
    await write(connection, leaves(5))
    with serving(FakeWitness(KEY.public)) as other:
        worker = with_witness(witness, other)
        other.key, asked = PublicKey("other.example", other.key.public, other.key.algorithm), other.key
        await worker.run_round(connection, no_heartbeat)
    note = await served(connection)
    assert len(note.signatures) == 1
    assert note.is_signed_by(KEY.public)
    assert not note.is_signed_by(asked)


@pytest.mark.parametrize(
    "text", ["", "x", "https://w.example", pytest.param(f"{KEY.public} https://w.example", id="two")]
)
def test_what_is_no_witness_is_refused(text: Any) -> None:
    """A typing error in DATASTORAGE_WITNESSES leaves the log without witnesses, silently."""
    with pytest.raises(Fatal, match="DATASTORAGE_WITNESSES"):
        Witness.parse(text)
