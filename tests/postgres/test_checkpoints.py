"""Tiles and checkpoints on a real Postgres: the tiles are the tree, and signed checkpoints never contradict each other."""

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

from app.tlog import merkle
from app.tlog.copies import CheckpointCopies, append_note, newest_note_in
from app.tlog.keys import SigningKey
from app.tlog.note import ML_DSA_44, Checkpoint, Note, PublicKey, sign_checkpoint, verified_checkpoint
from app.tlog.signer import Alarms, Signer, SigningRefused
from app.tlog.tiles import HashesMissing, Tile, extend_tiles, range_roots, read_tile
from app.tlog.witness import Witnesses
from app.tlog.worker import CheckpointWorker
from app.verify.checkpoints import LogState, checkpoint_defect
from tests import databases
from tests.conftest import LOG_NAME
from tests.logs import FIRST_LOG

# Leaves without rows: verification would miss the events.
pytestmark = pytest.mark.damaged

Connection = Any
FLUSH = """
INSERT INTO log_flushes (log_id, first_index, count, leaves) SELECT 0, first_index + count, $1, $2
FROM log_flushes WHERE log_id = 0 ORDER BY first_index DESC LIMIT 1
"""


def leaves(size: int, first: int = 0) -> list[bytes]:
    return [merkle.leaf_hash(place.to_bytes(8)) for place in range(first, first + size)]


async def write(connection: Connection, hashes: list[bytes]) -> None:
    await connection.execute(FLUSH, len(hashes), b"".join(hashes))


def new_key(name: str = LOG_NAME) -> SigningKey:
    private = Ed25519PrivateKey.generate()
    return SigningKey(private, PublicKey(name, private.public_key().public_bytes_raw()))


def worker(signer: Signer | None, *, heartbeat_seconds: float = 0, file: Path | None = None) -> CheckpointWorker:
    return CheckpointWorker(FIRST_LOG, signer, Witnesses([]), CheckpointCopies(file, None), Alarms(), heartbeat_seconds)


async def no_heartbeat(*_: object) -> None:
    raise AssertionError


async def one_round(connection: Connection, signer: Signer) -> None:
    await worker(signer).run_round(connection, no_heartbeat)


async def notes(connection: Connection) -> list[str]:
    return [row["note"] for row in await connection.fetch("SELECT note FROM log_checkpoints ORDER BY size")]


@pytest.fixture
def key() -> SigningKey:
    return new_key()


async def test_tiles_are_the_tree(connection: Connection) -> None:
    """A tile or a root is not the one of RFC 6962 over the leaves, at some size or with some sizes of flushes."""
    chance = random.Random(7)
    written: list[bytes] = []
    for _ in range(40):
        part = leaves(chance.choice([1, 2, 255, 256, 257, 3_000]), len(written))
        await write(connection, part)
        written += part
        async with connection.transaction():
            assert not await extend_tiles(connection, FIRST_LOG)
    size = len(written)
    level_1 = [merkle.root(written[start : start + 256]) for start in range(0, size // 256 * 256, 256)]
    for index in range(size // 256):
        assert await read_tile(connection, FIRST_LOG, Tile(0, index)) == b"".join(
            written[index * 256 : (index + 1) * 256]
        )
    assert await read_tile(connection, FIRST_LOG, Tile(1, 0, len(level_1[:256]))) == b"".join(level_1[:256])
    assert await read_tile(connection, FIRST_LOG, Tile(0, size // 256, size % 256)) == b"".join(
        written[size // 256 * 256 :]
    )
    assert await read_tile(connection, FIRST_LOG, Tile(0, size // 256, size % 256 + 1)) is None
    sizes = [1, 2, 255, 256, 257, size - 1, size, *(chance.randrange(1, size) for _ in range(20))]
    assert await range_roots(connection, FIRST_LOG, [(0, one) for one in sizes]) == [
        merkle.root(written[:one]) for one in sizes
    ]
    for index in (0, 255, 256, size - 1, *(chance.randrange(size) for _ in range(20))):
        proof = await range_roots(connection, FIRST_LOG, merkle.inclusion_ranges(index, size))
        assert merkle.verify_inclusion(index, size, written[index], proof, merkle.root(written))


async def test_a_log_of_three_levels(connection: Connection) -> None:
    """Beyond 65,536 leaves, or after the tiles were lost, roots are wrong or cannot be had."""
    written = leaves(70_000)
    for start in range(0, len(written), 10_000):
        await write(connection, written[start : start + 10_000])
    async with connection.transaction():
        assert not await extend_tiles(connection, FIRST_LOG)
    expected = [merkle.root(written), merkle.root(written[:65_536])]
    assert await range_roots(connection, FIRST_LOG, [(0, 70_000), (0, 65_536)]) == expected
    assert await read_tile(connection, FIRST_LOG, Tile(2, 0, 1)) == merkle.root(written[:65_536])
    await connection.execute("DELETE FROM log_tiles")
    with pytest.raises(HashesMissing):
        await range_roots(connection, FIRST_LOG, [(0, 70_000)])
    async with connection.transaction():
        await extend_tiles(connection, FIRST_LOG)
    assert await range_roots(connection, FIRST_LOG, [(0, 70_000), (0, 65_536)]) == expected


async def test_two_replicas_sign_one_history(database_url: str, key: SigningKey) -> None:
    """Replicas that extend tiles and sign at the same time write a tile twice, or sign two logs that contradict each other."""
    async with (
        databases.connected(database_url) as writer,
        databases.connected(database_url) as one,
        databases.connected(database_url) as two,
    ):
        written: list[bytes] = []
        signers = [Signer(key), Signer(key)]
        for number in range(60):
            part = leaves(1 + number * 13 % 300, len(written))
            written += part
            await asyncio.gather(
                write(writer, part), one_round(one, signers[number % 2]), one_round(two, signers[1 - number % 2])
            )
        await one_round(one, signers[0])
        stored = [verified_checkpoint(note, [key.public]) for note in await notes(one)]
        assert stored[-1] == Checkpoint(LOG_NAME, len(written), merkle.root(written))
        assert all(found.root == merkle.root(written[: found.size]) for found in stored)
        assert await one.fetchval("SELECT note FROM log_signers") == (await notes(one))[-1]


async def rewrite(connection: Connection, first_leaf: bytes) -> None:
    """Everything in the database as it would be had the log begun with another event; the tiles are then made again."""
    await connection.execute(
        "UPDATE log_flushes SET leaves = $1 || substring(leaves FROM 33) WHERE first_index = 0", first_leaf
    )
    await connection.execute("DELETE FROM log_tiles")


async def test_a_rewritten_log_is_not_signed(connection: Connection, key: SigningKey) -> None:
    """Whoever rewrites leaves and tiles gets a signature for it, in the process that signed before or in a new one."""
    await write(connection, leaves(1_000))
    signer = Signer(key)
    await one_round(connection, signer)
    before = await notes(connection)
    await rewrite(connection, merkle.leaf_hash(b"other"))
    for signs in (Signer(key), signer):  # the first one sees it before anything is written
        with pytest.raises(SigningRefused, match="first 1000 leaves"):
            await one_round(connection, signs)
        await write(connection, leaves(1))
    assert await notes(connection) == before
    await rewrite(connection, leaves(1)[0])
    await one_round(connection, signer)
    assert verified_checkpoint((await notes(connection))[-1], [key.public]).size == 1_002


async def test_a_changed_last_leaf_is_not_signed(connection: Connection, key: SigningKey) -> None:
    """The newest leaf, which no tile of a higher level holds yet, can be changed after it was signed."""
    await write(connection, leaves(300))
    signer = Signer(key)
    await one_round(connection, signer)
    await connection.execute(
        "UPDATE log_flushes SET leaves = substring(leaves FROM 1 FOR 299 * 32) || $1 WHERE first_index = 0",
        leaves(1)[0],
    )
    await write(connection, leaves(1))
    with pytest.raises(SigningRefused, match="first 300 leaves"):
        await one_round(connection, signer)


@pytest.mark.parametrize("who", ["the same process", "a new process", "a new process with a file"])
async def test_a_shorter_log_is_not_signed(connection: Connection, key: SigningKey, tmp_path: Path, who: str) -> None:
    """A log that was cut, or a restored backup, is signed by a process that still knows the longer one."""
    file = tmp_path / "checkpoints"
    await write(connection, leaves(5))
    await write(connection, leaves(5, 5))
    signer = Signer(key)
    await worker(signer, file=file).run_round(connection, no_heartbeat)
    await connection.execute("DELETE FROM log_flushes WHERE first_index = 5")
    if who != "a new process":  # then the database knows nothing of the longer log either, as after a restore
        await connection.execute("DELETE FROM log_checkpoints; UPDATE log_signers SET note = NULL")
    if who != "the same process":
        signer = Signer(key, (lambda: [newest_note_in(file)]) if "file" in who else lambda: ())
    with pytest.raises(SigningRefused, match="5 leaves, but a checkpoint of 10"):
        await one_round(connection, signer)
    await write(connection, [merkle.leaf_hash(b"fork %d" % number) for number in range(9)])
    with pytest.raises(SigningRefused, match="first 10 leaves"):
        await one_round(connection, signer)


async def test_stored_checkpoints_must_be_signed(connection: Connection, key: SigningKey) -> None:
    """A checkpoint that was inserted into the database without the key decides what is signed next."""
    await write(connection, leaves(3))
    await one_round(connection, Signer(key))
    await write(connection, leaves(3, 3))
    note = (await notes(connection))[0]
    for table in ("log_signers", "log_checkpoints"):
        for forged, alarm in (
            ("no note", "forged_checkpoint"),
            (note.replace("\n3\n", "\n2\n"), "forged_checkpoint"),
        ):
            await connection.execute(f"UPDATE {table} SET note = $1", forged)
            with pytest.raises(SigningRefused) as refused:
                await one_round(connection, Signer(key))
            assert refused.value.alarm == alarm
        await connection.execute(f"UPDATE {table} SET note = $1", note)
    await one_round(connection, Signer(key))


async def test_another_key_is_refused_until_the_earlier_is_named(connection: Connection, key: SigningKey) -> None:
    """After a key is lost or swapped the log goes on under another one unnoticed, or a key can never be changed."""
    await write(connection, leaves(3))
    await one_round(connection, Signer(key))
    await write(connection, leaves(3, 3))
    other = new_key()
    with pytest.raises(SigningRefused) as refused:
        await one_round(connection, Signer(other))
    assert refused.value.alarm == "wrong_key"
    await one_round(connection, Signer(SigningKey(other.private, other.public, (key.public,))))
    assert verified_checkpoint((await notes(connection))[-1], [other.public]).size == 6


async def test_a_log_is_cosigned_from_now_on(connection: Connection, key: SigningKey) -> None:
    """A log that was signed with Ed25519 alone cannot begin with ML-DSA, change that key or end with it."""
    cosigners = [MLDSA44PrivateKey.generate() for _ in range(2)]
    public = [PublicKey(LOG_NAME, one.public_key().public_bytes_raw(), ML_DSA_44) for one in cosigners]
    first, second = (
        SigningKey(key.private, key.public, tuple(earlier), one)
        for one, earlier in zip(cosigners, ([], public[:1]), strict=True)
    )
    last = SigningKey(key.private, key.public, tuple(public))
    signed_with = []
    for number, signer in enumerate((key, first, second, last)):
        await write(connection, leaves(3, 3 * number))
        await one_round(connection, Signer(signer))
        note = Note.parse((await notes(connection))[-1])
        signed_with.append([one for one in (key.public, *public) if note.is_signed_by(one)])
    assert signed_with == [[key.public], [key.public, public[0]], [key.public, public[1]], [key.public]]


async def test_a_changed_cosignature_is_forged(connection: Connection, key: SigningKey) -> None:
    """Somebody replaces the second signature of a stored checkpoint, and it is signed on as if it were ours."""
    both = SigningKey(key.private, key.public, (), MLDSA44PrivateKey.generate())
    await write(connection, leaves(3))
    await one_round(connection, Signer(both))
    note = (await notes(connection))[0]
    forged = f"{note[:-10]}{'B' if note[-10] == 'A' else 'A'}{note[-9:]}"
    await connection.execute("UPDATE log_checkpoints SET note = $1", forged)
    with pytest.raises(SigningRefused) as refused:
        await one_round(connection, Signer(both))
    assert refused.value.alarm == "forged_checkpoint"
    state = LogState(LOG_NAME, 3, {})
    for text, kind in ((forged, "forged checkpoint"), (note, None)):
        defect = checkpoint_defect("it", text, both.all_public, state)
        assert (defect and defect.kind) == kind
    await connection.execute("UPDATE log_checkpoints SET note = $1", note)
    await one_round(connection, Signer(both))


async def test_a_crash_leaves_nothing_half_signed(database_url: str, connection: Connection, key: SigningKey) -> None:
    """A process that ends between tiles and checkpoint, or before the checkpoint's commit, stops or forks the log."""
    await write(connection, leaves(700))
    async with connection.transaction():
        await extend_tiles(connection, FIRST_LOG)
    # The first crash: tiles are stored, nothing was signed. The second: signed, not committed.
    async with databases.connected(database_url) as crashing:
        transaction = crashing.transaction()
        await transaction.start()
        assert await Signer(key).sign(crashing) is not None
        crashing.terminate()
    await write(connection, leaves(700, 700))
    await one_round(connection, Signer(key))
    stored = [verified_checkpoint(note, [key.public]) for note in await notes(connection)]
    assert stored == [Checkpoint(LOG_NAME, 1_400, merkle.root(leaves(1_400)))]


async def test_a_crash_before_publishing_is_made_up_for(
    connection: Connection, key: SigningKey, tmp_path: Path
) -> None:
    """A checkpoint that was signed and not shown stays hidden until the next event."""
    await write(connection, leaves(1))
    await Signer(key).sign(connection)
    published = "SELECT count(*) FROM log_checkpoints WHERE published_at IS NOT NULL"
    assert await connection.fetchval(published) == 0
    await worker(Signer(key), file=tmp_path / "file").run_round(connection, no_heartbeat)
    assert await connection.fetchval(published) == 1
    assert newest_note_in(tmp_path / "file") == (await notes(connection))[0]


async def test_missing_leaves_are_not_signed(connection: Connection, key: SigningKey) -> None:
    """A log with a hole, as after its table was emptied, is signed as if it were whole."""
    await write(connection, leaves(10))
    await write(connection, leaves(10, 10))
    await connection.execute("DELETE FROM log_flushes WHERE first_index = 0")
    with pytest.raises(HashesMissing):
        await one_round(connection, Signer(key))
    assert await notes(connection) == []


async def test_one_checkpoint_of_each_hour_is_kept(connection: Connection, key: SigningKey) -> None:
    """The table grows by a row each second, or loses the last checkpoint of an hour that is over."""
    signer = Signer(key)
    for number in range(6):
        await write(connection, leaves(1, number))
        await one_round(connection, signer)
        if number == 2:
            await connection.execute("UPDATE log_checkpoints SET signed_at = signed_at - interval '1 hour'")
    sizes = [verified_checkpoint(note, [key.public]).size for note in await notes(connection)]
    assert sizes[-1] == 6
    assert 3 in sizes
    assert not {1, 4} & set(sizes)


async def test_silence_is_recorded_once(database_url: str, connection: Connection) -> None:
    """An hour without an event proves nothing, or each replica writes a heartbeat, or one is written although events come."""
    heartbeats: list[int] = []

    async def heartbeat(size: int, _: object) -> None:
        heartbeats.append(size)
        await write(connection_of_writer, leaves(1, size))

    async with databases.connected(database_url) as connection_of_writer:
        await write(connection, leaves(4))
        silent = worker(None, heartbeat_seconds=3_600)
        await silent.run_round(connection, heartbeat)
        assert heartbeats == []
        await connection.execute("UPDATE log_flushes SET flushed_at = flushed_at - interval '1 hour 1 second'")
        for _ in range(3):
            await silent.run_round(connection, heartbeat)
        assert heartbeats == [4]


def test_the_file_survives_a_torn_note(tmp_path: Path) -> None:
    """After a crash in the middle of a line the file of checkpoints is unreadable, or a later one is lost."""
    file, key = tmp_path / "checkpoints", new_key()
    made = [checkpoint_note(key, size) for size in (1, 2, 3)]
    assert newest_note_in(file) is None
    append_note(file, made[0])
    append_note(file, made[1])
    assert newest_note_in(file) == made[1]
    whole = file.read_bytes()
    for torn in range(1, len(made[2].encode())):
        file.write_bytes(whole + made[2].encode()[:torn])
        assert newest_note_in(file) == made[1]
        append_note(file, made[2])
        assert newest_note_in(file) == made[2]


def checkpoint_note(key: SigningKey, size: int) -> str:
    return sign_checkpoint(Checkpoint(LOG_NAME, size, merkle.root(leaves(size))), key.private)
