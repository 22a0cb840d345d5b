"""Whoever owns the storage, or the database, changes the archive: found, and called by its name; offline too, with the key alone."""

import base64
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from app.archive import run
from app.archive.check import Checker
from app.archive.manifest import PartManifest, open_manifest
from app.archive.part_files import MANIFEST_NAME, ArchivedFile
from app.archive.storage import archive_storage, directory_storage
from app.archive.table import ARROW_SCHEMA, ArchiveTable
from app.settings import Settings
from app.tlog.keys import SigningKey
from app.tlog.note import Checkpoint, Note, PublicKey, sign_checkpoint
from tests.archive.archived import ALL, KEY, NOW, PUBLIC, Connection, fill, folder_of, parts_of, problems, settings_of
from tests.sealed import LOG

pytestmark = pytest.mark.damaged  # the catalog is changed; the log is not
OTHER = Ed25519PrivateKey.generate()
OWN = SigningKey(KEY, PUBLIC)
Act = Callable[[Path], object]
EVENTS = "events-0.parquet"


def rewrite(folder: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """Have the file of events contain another table, of the same columns."""
    path = folder / EVENTS
    table = change(pq.read_table(path))
    pq.write_table(table.cast(ARROW_SCHEMA), path, store_schema=False)


def set_column(name: str, row: int, value: Any) -> Act:
    def act(folder: Path) -> None:
        def change(table: pa.Table) -> pa.Table:
            column = table.column(name).to_pylist()
            column[row] = value
            number = table.schema.get_field_index(name)
            return table.set_column(number, ARROW_SCHEMA.field(name), pa.array(column, ARROW_SCHEMA.field(name).type))

        rewrite(folder, change)

    return act


def select_rows(choose: Callable[[list[int]], list[int]]) -> Act:
    return lambda folder: rewrite(
        folder, lambda table: table.take(pa.array(choose(list(range(table.num_rows))), pa.int64()))
    )


def swap_columns(folder: Path) -> None:
    """The two columns have each other's ids and names, so that every engine shows one as the other."""
    rewrite(
        folder,
        lambda table: table.set_column(
            table.schema.get_field_index("actor_id"),
            ARROW_SCHEMA.field("actor_id"),
            table.column("resource_id").cast(pa.large_string()),
        ),
    )


def flip(name: str, at: int) -> Act:
    def act(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[at] ^= 1
        (folder / name).write_bytes(content)

    return act


def manifest_of(folder: Path) -> PartManifest:
    return open_manifest((folder / MANIFEST_NAME).read_bytes(), [PUBLIC])[0]


def sign_again(folder: Path, key: SigningKey, **changes: Any) -> None:
    """As somebody who has a key does, after having changed files."""
    files = tuple(
        ArchivedFile(one.name, *directory_storage(folder).copy_to(one.name, None), one.events)
        for one in manifest_of(folder).files
    )
    (folder / MANIFEST_NAME).write_bytes(replace(manifest_of(folder), files=files, **changes).signed(key))


def edit_statement(folder: Path) -> None:
    envelope = orjson.loads((folder / MANIFEST_NAME).read_bytes())
    statement = base64.b64decode(envelope["payload"]).replace(b'"erased":0', b'"erased":1')
    (folder / MANIFEST_NAME).write_bytes(orjson.dumps(envelope | {"payload": base64.b64encode(statement).decode()}))


def other_checkpoint(folder: Path) -> None:
    tree = Checkpoint.parse(Note.parse(manifest_of(folder).checkpoint).text)
    sign_again(folder, OWN, checkpoint=sign_checkpoint(tree, OTHER))


def signed_by_another(folder: Path) -> None:
    sign_again(folder, SigningKey(OTHER, PublicKey(LOG, OTHER.public_key().public_bytes_raw())))


def then_sign(act: Act) -> Act:
    """With the log's own key: what the log records shows it, and a row that is not in the log shows by itself."""

    def both(folder: Path) -> None:
        act(folder)
        sign_again(folder, OWN)

    return both


OF_FILES: dict[str, tuple[Act, str]] = {
    "a byte of a file": (flip(EVENTS, 1000), "edited: events-0.parquet has the SHA-256"),
    "a value": (set_column("actor_id", 3, "eve"), "edited: event"),
    "a value, signed": (then_sign(set_column("actor_id", 3, "eve")), "edited: event"),
    "a payload, signed": (then_sign(set_column("event_data", 3, "{}")), "edited: event"),
    "a salt": (set_column("payload_salt", 3, b"x" * 16), "edited: event"),
    "a commitment": (set_column("payload_commitment", 3, b"x" * 32), "edited: event"),
    "a link": (set_column("previous_event_hash", 3, b"x" * 32), "edited: event"),
    "no link": (set_column("previous_event_hash", 3, None), "edited: event"),
    "the log of a row": (set_column("log_id", 3, 1), "inserted: event"),
    "a position that is not the part's": (set_column("log_index", 3, 10**9), "inserted: event"),
    "days of retention": (set_column("retention_days", 3, 1), "edited: events-0.parquet has the SHA-256"),
    "a payload that is no JSON": (set_column("event_data", 3, "{"), "edited: event"),
    "a row less": (select_rows(lambda rows: rows[1:]), "removed: position"),
    "a row less, signed": (then_sign(select_rows(lambda rows: rows[1:])), "removed: position"),
    "a row twice": (select_rows(lambda rows: [*rows, rows[-1]]), "inserted: event"),
    "another order": (select_rows(lambda rows: rows[::-1]), "reordered: event"),
    "no row": (select_rows(lambda _: []), "removed: positions from"),
    "a column as another": (swap_columns, "edited: event"),
    "a file cut": (
        lambda f: (f / EVENTS).write_bytes((f / EVENTS).read_bytes()[:-5]),
        "edited: events-0.parquet cannot",
    ),
    "an empty file": (lambda f: (f / EVENTS).write_bytes(b""), "edited: events-0.parquet cannot be read"),
    "no file": (lambda f: (f / EVENTS).unlink(), "removed: events-0.parquet is missing"),
    "no tiles": (lambda f: (f / "tiles").unlink(), "removed: tiles is missing"),
    "one file more": (
        lambda f: (f / "events-1.parquet").write_bytes((f / EVENTS).read_bytes()),
        "inserted: the manifest",
    ),
    "a leaf": (flip("tiles", 35 * 32), "edited: the tile"),
    "a leaf, signed": (then_sign(flip("tiles", 35 * 32)), "edited: the tile"),
    "a hash of the edge": (flip("tiles", -1), "edited: the tiles of the tree's edge"),
    "tiles cut": (lambda f: (f / "tiles").write_bytes((f / "tiles").read_bytes()[:-32]), "edited: the tiles have"),
    "no manifest": (lambda f: (f / MANIFEST_NAME).unlink(), "removed: manifest.json is missing"),
    "no JSON as manifest": (lambda f: (f / MANIFEST_NAME).write_bytes(b"{"), "edited: "),
    "a count of the manifest": (edit_statement, "wrong key: the manifest has a wrong signature"),
    "another key": (signed_by_another, "wrong key: the manifest has no signature"),
    "the checkpoint of another key": (other_checkpoint, "forged checkpoint: it has no signature"),
    "a count, signed": (lambda f: sign_again(f, OWN, erased=7), "edited: 0 events are erased"),
    "positions, signed": (lambda f: sign_again(f, OWN, positions="{[30,40)}"), "edited: the manifest's counts"),
    "the month, signed": (lambda f: sign_again(f, OWN, month="2001-01"), "edited: event"),
    "another tree before": (lambda f: sign_again(f, OWN, consistency=("00" * 32,)), "forged checkpoint: the tree of"),
    "the part": (shutil.rmtree, "removed: manifest.json is missing"),
}
UNSEEN_OFFLINE = {"the part"}
"""With the files alone nobody knows that there was more."""


@pytest.fixture
async def archive(database_url: str, connection: Connection, tmp_path: Path) -> Settings:
    """An archive of two parts of 300 events, in a log of more than a tile."""
    await fill(connection)
    settings = settings_of(database_url, tmp_path)
    await run.run(settings, NOW, ALL)
    return settings


async def test_files(archive: Settings) -> None:
    """A change of the archive's files goes unnoticed, or is called something else."""
    second = folder_of((await parts_of(archive))[1])
    root = second.parent.parent.parent
    whole = root.with_name("whole")
    shutil.copytree(root, whole)
    assert await problems(archive) == []
    with Checker([PUBLIC], 1) as checker:
        for name, (act, expected) in OF_FILES.items():
            act(second)
            found = await problems(archive)
            assert any(one.startswith(expected) for one in found), (name, found)
            by_itself = directory_storage(root)
            offline = [one for folder in by_itself.part_folders() for one in checker.check(by_itself, folder).problems]
            if name == "no manifest":
                assert len(list(by_itself.part_folders())) == 1
            elif name not in UNSEEN_OFFLINE:
                assert any(one.startswith(expected) for one in offline), (name, offline)
            shutil.rmtree(root)
            shutil.copytree(whole, root)
    assert await problems(archive) == []


async def test_signed_again(archive: Settings) -> None:
    """Whoever has the key signs another manifest for files of theirs, and the log does not contradict it."""
    sign_again(folder_of((await parts_of(archive))[1]), OWN, archived_at="2001-01-01T00:00:00.000000Z")
    [problem] = await problems(archive, "manifests")
    assert problem.startswith("edited: the manifest has the SHA-256")


async def test_table(archive: Settings, connection: Connection) -> None:
    """Engines are shown an old snapshot, other files, or other columns, and the archive seems whole."""
    storage = archive_storage(archive)
    row = await connection.fetchrow("SELECT metadata_location, previous_metadata_location FROM iceberg_tables")
    assert row is not None
    now, before = row
    table = ArchiveTable.load(storage, now)
    [older, newer] = [storage.name_of(part.location) or "" for part in await parts_of(archive)]
    first = (await parts_of(archive))[0]

    async def found(pointer: str | None) -> list[str]:
        await connection.execute("UPDATE iceberg_tables SET metadata_location = $1", pointer)
        return await problems(archive, "manifests")

    assert await found(now) == []
    assert await found(before) == [f"rolled back: the newest snapshot of the table does not have {newer}/{EVENTS}"]
    twice = table.append(uuid4(), [f"{older}/{EVENTS}"])
    assert await found(twice) == ["inserted: the table has a file twice"]
    shutil.copy(f"{folder_of(first)}/{EVENTS}", storage.path("foreign.parquet"))
    foreign = ArchiveTable.load(storage, now).append(uuid4(), ["foreign.parquet"])
    assert any(one.startswith("inserted: the table has file://") for one in await found(foreign))
    metadata = orjson.loads(storage.read(storage.name_of(now) or ""))
    names = {field["name"]: field for field in metadata["schemas"][0]["fields"]}
    names["actor_id"]["name"], names["resource_id"]["name"] = "resource_id", "actor_id"
    renamed = storage.location("metadata/renamed.metadata.json")
    Path(storage.path("metadata/renamed.metadata.json")).write_bytes(orjson.dumps(metadata))
    assert await found(renamed) == ["edited: the table: its columns are not those of the archive"]
    assert await found("file:///elsewhere/x.metadata.json") == [
        "edited: the catalog has the table at file:///elsewhere/x.metadata.json, not in this archive"
    ]
    [missing] = await found(storage.location("metadata/none.metadata.json"))
    assert missing.startswith("removed: a file of the table's metadata is missing")
    Path(storage.path("metadata/bad.metadata.json")).write_text("{")
    [unreadable] = await found(storage.location("metadata/bad.metadata.json"))
    assert unreadable.startswith("edited: the table's metadata cannot be read")
    await connection.execute("DELETE FROM iceberg_tables")
    assert await problems(archive, "manifests") == ["removed: the catalog has no table"]
