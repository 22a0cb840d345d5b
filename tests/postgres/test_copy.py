"""A copy of the log against the database: each side changed in each way, and which side is named."""

import gzip
import io
import json
import os
import random
import subprocess
import sys
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, get_args
from uuid import uuid4

import asyncpg
import orjson
import pytest
from pydantic import SecretStr

from app.db import Engine, create_engine
from app.errors import Fatal
from app.events.log import LOG_POSITIONS
from app.events.record import commitment_of
from app.export.file import NOT_COVERED
from app.export.select import ExportQuery
from app.query.filter import EventFilter
from app.retention.purge import run
from app.settings import Settings
from app.stream.copied import CopiedEvent, read_copy
from app.stream.copy_check import _Checker, check_copy
from app.stream.copy_result import CopyResult
from app.stream.destination import Delivery
from app.stream.formats import cloudevents, ocsf
from app.stream.formats.lines import Format, format_line
from app.stream.made_up import made_up_delivery
from app.stream.objects import manifest, object_body, parts
from app.stream.otlp_records import export_request
from app.stream.places import Places
from app.stream.portion import Checkpoint, Item, LogReader
from app.stream.records import ndjson_line
from app.stream.rendered import Rendered, checkpoint_record, closed_record, position_record
from app.stream.syslog import syslog_message
from app.stream.webhook import WebhookSink
from app.stream.webhook import render as webhook_body
from app.tlog.continued import newest_log
from app.tlog.note import PublicKey
from tests.logs import FIRST_LOG
from tests.postgres.log import write
from tests.postgres.test_checkpoints import no_heartbeat
from tests.postgres.test_continue import KEY as SIGNING_KEY
from tests.postgres.test_continue import LOSE, NEXT, continued, go_on, worker_of
from tests.postgres.test_erase import erased
from tests.postgres.test_export import KEY as EXPORT_KEY
from tests.postgres.test_export import export
from tests.postgres.test_tampering import OTHER_KEY, PUBLIC, sign
from tests.sealed import seal, sealed_hash
from tests.services import ROOT

pytestmark = pytest.mark.damaged

Connection = asyncpg.Connection
EVERYTHING = EventFilter(include="self")
Lines = list[bytes]
SINK = WebhookSink(name="soc", type="webhook", url="http://127.0.0.1/", secret_files=(Path("/none"),))
Form = Callable[[Item], bytes]
FORMS: dict[str, Form] = {
    "events": ndjson_line,
    "cloudevents": lambda item: orjson.dumps(cloudevents.render(item, NEXT)) + b"\n",
    "ocsf": lambda item: orjson.dumps(ocsf.render(item, NEXT)) + b"\n",
}


async def items_of(connection: Connection, query: EventFilter = EVERYTHING) -> list[Item]:
    reader, items, place = LogReader(FIRST_LOG, newest_log), list[Item](), 0
    while True:
        portion = await reader.read(connection, place, query)
        items += portion.items
        place = portion.next
        if portion.is_end:
            return items


async def checked(
    connection: Connection,
    tmp_path: Path,
    lines: Sequence[bytes],
    keys: Sequence[PublicKey] = (PUBLIC,),
    *,
    is_filtered: bool = False,
) -> CopyResult:
    path = tmp_path / "copy.ndjson"
    path.write_bytes(b"".join(lines))
    copy = read_copy([path], keys)
    return await check_copy(connection, copy, keys, is_filtered=is_filtered, show=lambda _: None)


def found(result: CopyResult) -> set[tuple[str, str]]:
    return {(one.side, one.kind) for one in result.differences}


@pytest.fixture
async def signed(owner: Connection) -> Checkpoint:
    """The checkpoint of all twenty events."""
    return Checkpoint(20, await sign(owner))


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> Form:
    return FORMS[request.param]


async def test_a_faithful_copy(owner: Connection, signed: Checkpoint, form: Form, tmp_path: Path) -> None:
    """A copy in one of the formats does not verify although nobody has changed anything."""
    lines = [form(item) for item in [*await items_of(owner), signed]]
    result = await checked(owner, tmp_path, lines)
    assert found(result) == set()
    assert (result.events, result.counts["same"], result.first, result.end) == (20, 20, 0, 20)
    assert (result.checkpoints, result.compared_checkpoints) == (1, 1)
    assert list(result.signatures) == [PUBLIC.label]


async def test_order_and_repetition_do_not_matter(owner: Connection, form: Form, tmp_path: Path) -> None:
    """What came twice, or in another order, as it does where a delivery is tried again, looks like tampering."""
    lines = [form(item) for item in await items_of(owner)]
    shuffled = random.Random(7).sample(lines * 2, 40)
    assert found(await checked(owner, tmp_path, shuffled)) == set()


def changed(line: bytes, old: str, new: str) -> bytes:
    assert old.encode() in line, line
    return line.replace(old.encode(), new.encode())


COPY_CHANGES: dict[str, tuple[Callable[[Lines], Lines], set[tuple[str, str]]]] = {
    "a payload": (lambda lines: [changed(lines[0], '"step":1', '"step":2'), *lines[1:]], {("copy", "edited")}),
    "an event's hash": (
        lambda lines: [line.replace(hash_in(lines[3]), b"0" * 64) for line in lines[:-1]] + lines[-1:],
        {("copy", "edited")},
    ),
    "an event left out": (lambda lines: [*lines[:7], *lines[8:]], {("copy", "removed")}),
    "the last events left out": (lambda lines: [*lines[:15], lines[-1]], {("copy", "removed")}),
    "an event of a later position": (
        lambda lines: [*lines, lines[19].replace(b'"log_index":19', b'"log_index":99').replace(b"0:19", b"0:99")],
        {("copy", "edited")},
    ),
    "a line that is cut": (
        lambda lines: [*lines[:4], lines[4][:100] + b"\n", *lines[5:]],
        {("copy", "edited"), ("copy", "removed")},
    ),
    "a line of nonsense": (lambda lines: [*lines, b'{"a": 1}\n', b"[7]\n", b"nonsense\n"], {("copy", "edited")}),
    "a checkpoint": (
        lambda lines: [*lines[:-1], lines[-1].replace(b"\\n20\\n", b"\\n19\\n")],
        {("copy", "forged checkpoint"), ("copy", "edited")},
    ),
}


def hash_in(line: bytes) -> bytes:
    sent = orjson.loads(line)
    event = sent.get("unmapped", {}).get("datastorage", {}).get("event", sent)
    return str(event.get("event_hash") or event["eventhash"]).encode()


@pytest.mark.parametrize("name", COPY_CHANGES)
async def test_the_copy_was_changed(
    owner: Connection, signed: Checkpoint, form: Form, tmp_path: Path, name: str
) -> None:
    """What somebody changed in the copy is not found, or the database is blamed for it."""
    change, expected = COPY_CHANGES[name]
    lines = [form(item) for item in [*await items_of(owner), signed]]
    result = await checked(owner, tmp_path, change(lines))
    assert found(result) == expected
    assert {one.side for one in result.differences} == {"copy"}


async def test_what_stands_beside_the_event(owner: Connection, tmp_path: Path) -> None:
    """Whoever reads OCSF reads its attributes: one that was changed there is not found, as the event in `unmapped` is whole."""
    lines = [FORMS["ocsf"](item) for item in await items_of(owner)]
    sent = orjson.loads(lines[2])
    sent["actor"]["user"]["name"] = "mallory"
    sent["time"] += 1
    lines[2] = orjson.dumps(sent) + b"\n"
    result = await checked(owner, tmp_path, lines)
    assert [(one.side, one.message.split()[0]) for one in result.differences] == [
        ("copy", "actor.user.name"),
        ("copy", "time"),
    ]


async def rewritten(connection: Connection, position: int, **columns: object) -> None:
    """Change an event together with its hash and its leaf, as somebody does who knows how they are made."""
    row = await connection.fetchrow(
        "SELECT *, event_data::text AS event_data FROM audit_events WHERE log_index = $1", position
    )
    assert row is not None
    changed_row = dict(row) | {"event_data": orjson.dumps(orjson.loads(row["event_data"])).decode()} | columns
    hashed = sealed_hash(changed_row)
    for name, value in columns.items():
        await connection.execute(f"UPDATE audit_events SET {name} = $2 WHERE log_index = $1", position, value)
    await connection.execute("UPDATE audit_events SET event_hash = $2 WHERE log_index = $1", position, hashed)
    await connection.execute(
        "UPDATE log_flushes SET leaves = overlay(leaves PLACING $2 FROM ($1 - first_index)::int * 32 + 1) "
        "WHERE first_index <= $1 AND first_index + count > $1 AND first_index >= 0",
        position,
        bytes.fromhex(hashed),
    )


def executing(*statements: str) -> Callable[[Connection], Awaitable[None]]:
    async def act(connection: Connection) -> None:
        for statement in statements:
            await connection.execute(statement)

    return act


DATABASE_CHANGES: dict[str, tuple[Callable[[Connection], Awaitable[None]], set[tuple[str, str]]]] = {
    "a payload": (
        executing("""UPDATE audit_events SET event_data = '{"step": 2}' WHERE log_index = 4"""),
        {("database", "edited")},
    ),
    "a hash": (
        executing("UPDATE audit_events SET event_hash = repeat('0', 64) WHERE log_index = 4"),
        {("database", "edited")},
    ),
    "the date": (
        executing("UPDATE audit_events SET event_date = event_date - 1 WHERE log_index = 4"),
        {("database", "edited")},
    ),
    "an event": (executing("DELETE FROM audit_events WHERE log_index IN (4, 5, 11)"), {("database", "removed")}),
    "an event with its hash and its leaf": (
        lambda connection: rewritten(connection, 4, event_action="y"),
        {("database", "edited")},
    ),
    "the end of the log": (
        executing(
            "DELETE FROM audit_events WHERE log_index >= 15",
            "DELETE FROM log_flushes WHERE first_index >= 15",
            "DELETE FROM log_checkpoints",
            "UPDATE log_signers SET note = NULL",
        ),
        {("database", "removed"), ("database", "rolled back")},
    ),
    "a second row": (
        executing(
            "INSERT INTO audit_events SELECT (jsonb_populate_record(e, jsonb_build_object('event_id', gen_random_uuid(), "
            "'event_action', 'y'))).* FROM audit_events e WHERE log_index = 4"
        ),
        {("database", "inserted")},
    ),
    "marked as erased": (
        executing(
            "UPDATE audit_events SET payload_commitment = sha256('x'), actor_id = '[erased]' WHERE log_index = 4"
        ),
        {("database", "edited")},
    ),
    "a leaf": (
        executing("UPDATE log_flushes SET leaves = overlay(leaves PLACING sha256('x') FROM 33) WHERE first_index = 0"),
        {("database", "edited")},
    ),
}


@pytest.mark.parametrize("name", DATABASE_CHANGES)
async def test_the_database_was_changed(
    owner: Connection, signed: Checkpoint, form: Form, tmp_path: Path, name: str
) -> None:
    """What somebody changed in the database is not found by him who has a copy with a checkpoint, or the copy is blamed for it."""
    lines = [form(item) for item in [*await items_of(owner), signed]]
    change, expected = DATABASE_CHANGES[name]
    await change(owner)
    assert found(await checked(owner, tmp_path, lines)) == expected


async def test_members_are_named(owner: Connection, tmp_path: Path) -> None:
    """One has to find out by oneself what was changed in an event."""
    lines = [ndjson_line(item) for item in await items_of(owner)]
    await owner.execute("UPDATE audit_events SET event_outcome = 'failure', resource_id = 'z' WHERE log_index = 4")
    lines[7] = changed(lines[7], '"step":1', '"step":2')
    in_database, in_copy = (await checked(owner, tmp_path, lines)).differences
    assert (in_database.side, in_copy.side) == ("database", "copy")
    assert "event_outcome, resource_id" in in_database.message
    assert in_copy.message.startswith("event_data is not")
    assert in_copy.where is not None
    assert in_copy.where.endswith("copy.ndjson:8")


async def test_what_nothing_decides(owner: Connection, signed: Checkpoint, tmp_path: Path) -> None:
    """A side is blamed where copy and log are each right by themselves, and nobody has signed either."""
    lines = [ndjson_line(item) for item in await items_of(owner)]
    assert found(await checked(owner, tmp_path, lines)) == set()
    await rewritten(owner, 4, event_action="y")
    await executing("DELETE FROM log_checkpoints", "UPDATE log_signers SET note = NULL")(owner)
    assert found(await checked(owner, tmp_path, lines)) == {("either", "edited")}
    with_checkpoint = [*lines, ndjson_line(signed)]
    assert ("database", "edited") in found(await checked(owner, tmp_path, with_checkpoint))
    assert {side for side, _ in found(await checked(owner, tmp_path, with_checkpoint, keys=()))} == {"either"}
    stranger = PublicKey(PUBLIC.name, OTHER_KEY.public_key().public_bytes_raw())
    assert ("copy", "wrong key") in found(await checked(owner, tmp_path, with_checkpoint, keys=(stranger,)))


async def test_a_copy_forged_with_its_hash(owner: Connection, signed: Checkpoint, tmp_path: Path) -> None:
    """Whoever computes the hash of his forged event anew has the database blamed, which is as it was signed."""
    original = [ndjson_line(item) for item in await items_of(owner)]
    await rewritten(owner, 4, event_action="y")
    forged = [ndjson_line(item) for item in await items_of(owner)]
    await rewritten(owner, 4, event_action="x")
    assert [ndjson_line(item) for item in await items_of(owner)] == original
    result = await checked(owner, tmp_path, [*forged[:10], *original[10:]])
    assert found(result) == {("copy", "edited")}
    assert "as it was signed" in result.differences[0].message
    del signed


async def test_a_filtered_copy(owner: Connection, tmp_path: Path) -> None:
    """A copy that was to have a part only is reported for the rest; or what is missing in a whole one is not."""
    lines = [ndjson_line(item) for item in await items_of(owner, EventFilter(correlation_id="rr-1"))]
    assert found(await checked(owner, tmp_path, lines, is_filtered=True)) == set()
    result = await checked(owner, tmp_path, lines)
    assert found(result) == {("copy", "removed")}
    assert result.counts["missing"] == 5  # those between its first and its last one


async def test_self_events_need_not_be_there(database_url: str, connection: Connection, tmp_path: Path) -> None:
    """The copy of a stream that nobody asked for self events lacks them: that looks like tampering."""
    await write(database_url, *({"actor_id": f"ada-{n}"} for n in range(4)))
    await erased(database_url, actor_id="ada-1")
    await write(database_url, {})
    lines = [ndjson_line(item) for item in await items_of(connection, EventFilter())]
    result = await checked(connection, tmp_path, lines)
    assert found(result) == set()
    assert (result.events, result.counts["left out"]) == (5, 1)


async def test_what_destinations_hand_on(database_url: str, connection: Connection, tmp_path: Path) -> None:
    """What rsyslog, a Collector or the receiver of a webhook has stored is no copy: something of it was changed on its way."""
    odd = "ada\r\n\x1b[31m é \u2028 \U0001f600 '\"<b>"
    payload = {"event_type": "orchestrator.lifecycle.started", "rr_name": odd, "namespace": "n"}
    cause = str(uuid4())
    await write(
        database_url,
        {"actor_id": odd, "resource_id": odd, "event_data": payload},
        {"severity": "", "event_id": cause},
        {"parent_event_id": cause},
    )
    items = await items_of(connection)
    lines = [ndjson_line(item) for item in items]
    records = export_request(items, lines, FIRST_LOG).resource_logs[0].scope_logs[0].log_records
    batch, _ = webhook_body(Delivery("soc", items, 0, 3, FIRST_LOG), "cloudevents")
    stored = {
        **{f"rsyslog, {form}": [message_text(item, form) for item in items] for form in get_args(Format)},
        "Collector": [record.body.string_value.encode() + b"\n" for record in records],
        "webhook": [batch],
        "webhook, OCSF": [webhook_body(Delivery("soc", items, 0, 3, FIRST_LOG), "ocsf")[0]],
    }
    for name, copy in stored.items():
        result = await checked(connection, tmp_path, copy)
        assert found(result) == set(), name
        assert result.counts["same"] == 3


def message_text(item: Item, form: Format) -> bytes:
    """What a receiver of syslog writes to its file."""
    line = format_line(item, form, FIRST_LOG)
    return syslog_message(item, line, FIRST_LOG, 13, "h").partition(b"]")[2] + b"\n"


async def test_self_events_that_were_there(database_url: str, connection: Connection, tmp_path: Path) -> None:
    """Whoever takes one of the self events out of a copy that had them all is not found."""
    await write(database_url, *({"actor_id": f"ada-{n}"} for n in range(3)))
    for n in range(3):
        await erased(database_url, actor_id=f"ada-{n}")
    lines = [ndjson_line(item) for item in await items_of(connection)]
    assert found(await checked(connection, tmp_path, lines)) == set()
    without = [line for number, line in enumerate(lines) if number != 4]
    assert b"datastorage.event.erased" in lines[4]
    assert found(await checked(connection, tmp_path, without)) == {("copy", "removed")}


async def test_objects_and_their_manifests(owner: Connection, signed: Checkpoint, tmp_path: Path) -> None:
    """Whoever deletes an object, and not its manifest, is not found; or a manifest is no part of a copy."""
    items = [*await items_of(owner), signed]
    deliveries = [Delivery("a", items[:12], 0, 12, FIRST_LOG), Delivery("a", items[12:], 12, 20, FIRST_LOG)]
    paths = []
    for number, delivery in enumerate(deliveries):
        for part in parts(delivery):
            body = object_body(part, delivery, "events")
            paths += [tmp_path / f"{number}.gz", tmp_path / f"{number}.json"]
            paths[-2].write_bytes(body)
            paths[-1].write_bytes(manifest(part, delivery, "x", body, "events"))
    for chosen, expected in ((paths, set()), (paths[:2] + paths[3:], {("copy", "removed")})):
        copy = read_copy(chosen, [PUBLIC])
        result = await check_copy(owner, copy, [PUBLIC], is_filtered=False, show=lambda _: None)
        assert found(result) == expected
        assert (result.compared_checkpoints, result.end) == (1, 20)
    paths[1].write_bytes(b"{\n nonsense")
    result = await check_copy(owner, read_copy(paths[:2], []), [], is_filtered=False, show=lambda _: None)
    assert found(result) == {("copy", "edited")}


async def test_erased_since(database_url: str, connection: Connection, form: Form, tmp_path: Path) -> None:
    """An erasure after the copy was made looks like tampering; or whoever edits an erased event, or its copy, is not found."""
    await write(database_url, *({"actor_id": f"ada-{n}"} for n in range(4)))
    before = [form(item) for item in await items_of(connection)]
    await erased(database_url, actor_id="ada-1")
    for lines in (before, [form(item) for item in await items_of(connection)]):
        result = await checked(connection, tmp_path, lines)
        assert found(result) == set()
        assert result.counts["erased"] == 1
    edited = [line.replace(b"started", b"stopped") if b"ada-1" in line else line for line in before]
    assert {side for side, _ in found(await checked(connection, tmp_path, edited))} == {"copy"}


async def test_purged_since(database_url: str, connection: Connection, form: Form, tmp_path: Path) -> None:
    """A purge after the copy was made looks like tampering, or one before it does."""
    await connection.execute("SELECT ensure_partitions('2019-01-01', '2019-01-31')")
    await write(database_url, {"event_timestamp": datetime(2019, 1, 2, tzinfo=UTC).isoformat()}, {}, {})
    before = [form(item) for item in await items_of(connection)]
    await run(Settings(database_url=SecretStr(database_url)), datetime.now(UTC))
    result = await checked(connection, tmp_path, before)
    assert found(result) == set()
    assert result.counts["purged"] == 1
    after = [form(item) for item in await items_of(connection)]
    assert found(await checked(connection, tmp_path, after)) == set()
    forged = [*after[:2], form_of_absence(form, 1, 3), *after[3:]]
    assert found(await checked(connection, tmp_path, forged)) == {("either", "inserted")}


def form_of_absence(form: Form, first: int, end: int) -> bytes:
    from app.stream.portion import Absent

    return form(Absent(first, end, "purged"))


async def test_members_that_no_hash_covers(owner: Connection, form: Form, tmp_path: Path) -> None:
    """A hold that was placed, or a retention that was changed since, looks like tampering."""
    lines = [form(item) for item in await items_of(owner)]
    await owner.execute("UPDATE audit_events SET legal_hold = true, legal_hold_reason = 'x', retention_days = 7")
    assert found(await checked(owner, tmp_path, lines)) == set()


async def test_over_a_seam(database_url: str, connection: Connection, form: Form, tmp_path: Path) -> None:
    """A copy of several logs is taken for one of another database, or a gap at the end of the first one is not seen."""
    _, worker = await continued(connection, database_url)
    keys = (SIGNING_KEY.public, SIGNING_KEY.of(NEXT).public)
    signed = await LogReader(NEXT, newest_log).checkpoint(connection, LOG_POSITIONS + 3)
    assert signed is not None
    lines = [form(item) for item in [*await items_of(connection), signed]]
    result = await checked(connection, tmp_path, lines, keys)
    assert found(result) == set()
    assert result.end == LOG_POSITIONS + 3
    edited = [line.replace(b'"size":6', b'"size":7') for line in lines]
    assert {("either", "edited")} <= found(await checked(connection, tmp_path, edited, keys))
    del worker


async def test_what_a_continued_log_admits(
    database_url: str, connection: Connection, form: Form, tmp_path: Path
) -> None:
    """The copy has events that the database lost, and admits to have lost: that looks like tampering."""
    worker = worker_of()
    await write(database_url, {}, {}, {"correlation_id": "rr-2"})
    await worker.run_round(connection, no_heartbeat)
    await write(database_url, {}, {"correlation_id": "rr-2"})
    await worker.run_round(connection, no_heartbeat)
    signed = await LogReader(FIRST_LOG, newest_log).checkpoint(connection, 5)
    assert signed is not None
    lines = [form(item) for item in [*await items_of(connection), signed]]
    await connection.execute(LOSE.format(size=3))
    await write(database_url, {})
    keys = (SIGNING_KEY.public,)
    before = await checked(connection, tmp_path, lines, keys)
    assert {side for side, _ in found(before)} == {"database"}
    await go_on(database_url, signed.note)
    result = await checked(connection, tmp_path, lines, keys)
    assert found(result) == set()
    assert (result.counts["same"], result.counts["lost"], result.counts["admitted checkpoints"]) == (3, 2, 1)


async def test_an_export(database_url: str, connection: Connection, tmp_path: Path) -> None:
    """An export does not verify against its database: its manifest is no line of a stream, or the masked one looks forged."""
    await write(database_url, *({"actor_id": f"ada-{n}@example.org"} for n in range(4)))
    engine = create_engine(Settings(database_url=SecretStr(database_url)))
    try:
        for form in ("ndjson", "csv"):
            for redact in (False, True):
                query = ExportQuery.model_validate({"format": form, "redact_pii": redact, "include": "self"})
                content = await export(engine, query)
                assert len(content.splitlines()) >= 5
                result = await checked(connection, tmp_path, [content], ())
                assert found(result) == set(), result.differences
                assert result.counts["content not comparable" if redact else "same"] == 4
                edited = content.replace(b"started", b"stopped")
                assert {side for side, _ in found(await checked(connection, tmp_path, [edited], ()))} == {"copy"}
    finally:
        await engine.dispose()


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[Engine]:
    engine = create_engine(Settings(database_url=SecretStr(database_url)))
    yield engine
    await engine.dispose()


def query_of(**members: object) -> ExportQuery:
    return ExportQuery.model_validate({"format": "ndjson", **members})


async def people(database_url: str, connection: Connection) -> Lines:
    """Twelve events, every third one of bob; the lines of a stream of them."""
    await write(database_url, *({"actor_id": "bob" if n % 3 == 2 else f"ada-{n}@example.org"} for n in range(12)))
    return [ndjson_line(item) for item in await items_of(connection)]


@pytest.mark.parametrize("form", ["ndjson", "csv"])
async def test_filtered_exports(
    database_url: str, connection: Connection, engine: Engine, tmp_path: Path, form: str
) -> None:
    """Filtered exports look as if events were removed from them; or what was removed from one beside them is not found."""
    await people(database_url, connection)
    bob, all_of_it, none = [
        await export(engine, query_of(format=form, **of)) for of in ({"actor_id": "bob"}, {}, {"actor_id": "eve"})
    ]
    for copy in ([bob], [bob, none, bob], [all_of_it, bob], [bob, all_of_it], [none]):
        result = await checked(connection, tmp_path, copy, (EXPORT_KEY.public,))
        assert found(result) == set(), result.differences
        assert (result.counts["filtered"], result.is_filtered) == (len(copy) - copy.count(all_of_it), False)
    edited = [bob, all_of_it.replace(b"ada-3@example.org", b"ada-9@example.org")]
    assert found(await checked(connection, tmp_path, edited, (EXPORT_KEY.public,))) == {("copy", "edited")}
    unsigned = await checked(connection, tmp_path, [bob], ())
    assert (found(unsigned), unsigned.counts["filter not signed"]) == ({("copy", "removed")}, 1)
    assert found(await checked(connection, tmp_path, [bob], (), is_filtered=True)) == set()


async def test_a_manifest_is_of_its_lines_only(
    database_url: str, connection: Connection, engine: Engine, tmp_path: Path
) -> None:
    """Whoever removes events from a copy, and appends the signed manifest of some filtered or redacted export, is not found."""
    lines = await people(database_url, connection)
    bob = (await export(engine, query_of(actor_id="bob"))).splitlines(keepends=True)
    masked = (await export(engine, query_of(redact_pii=True))).splitlines(keepends=True)
    removed, edited = ("copy", "removed"), ("copy", "edited")
    keys = (EXPORT_KEY.public,)
    assert found(await checked(connection, tmp_path, [*lines[:4], *lines[5:], *bob], keys)) == {removed}
    assert found(await checked(connection, tmp_path, [*lines[:4], *lines[5:], bob[-1]], keys)) == {removed, edited}
    assert found(await checked(connection, tmp_path, [bob[-1]], keys)) == {edited}
    assert found(await checked(connection, tmp_path, [*bob[1:]], keys)) == {removed, edited}
    result = await checked(
        connection, tmp_path, [masked[0], b"\n", *lines[1:], position_record(12, "ndjson"), *masked], keys
    )
    assert [one.message.split(",")[0] for one in result.differences] == ["it says that it is redacted"]
    forged = orjson.loads(bob[-1])
    statement = orjson.loads(b64decode(forged["payload"]))
    kept = [*lines[:4], *lines[5:]]
    statement["predicate"] |= {"events": 11, "sealed": 11}
    statement["subject"][0]["digest"]["sha256"] = sha256(b"".join(kept)).hexdigest()
    forged |= {"payload": b64encode(orjson.dumps(statement)).decode(), "signatures": []}
    assert found(await checked(connection, tmp_path, [*kept, orjson.dumps(forged)], ())) == {removed}


async def test_what_is_named_redacted(
    database_url: str, connection: Connection, engine: Engine, tmp_path: Path
) -> None:
    """Whoever names a member in `redacted` can change it as he likes, where no hash is over what redaction has masked."""
    await people(database_url, connection)
    masked = (await export(engine, query_of(redact_pii=True))).splitlines(keepends=True)
    assert found(await checked(connection, tmp_path, masked, (EXPORT_KEY.public,))) == set()
    sent = orjson.loads(masked[0])
    assert sent["redacted"] == ["actor_id"]
    changes: list[tuple[dict[str, object], str]] = [
        ({"actor_id": "m***@e***.o***"}, "actor_id is not"),
        ({"redacted": ["actor_id", "event_data"], "event_data": {"forged": True}}, "event_data is not"),
        ({"redacted": ["actor_id", "correlation_id"], "correlation_id": "other"}, "correlation_id is not"),
        ({"redacted": ["actor_id", "event_action"]}, "event_action is not"),
        ({"redacted": ["actor_id", "legal_hold_reason"], "event_action": "other"}, "event_action is not"),
        ({"redacted": ["actor_id", "event_timestamp"]}, "redacted names event_timestamp"),
        ({"redacted": ["actor_id", "nothing"]}, "redacted names nothing"),
    ]
    for change, message in changes:
        copy = [orjson.dumps(sent | change) + b"\n", *masked[1:]]
        result = await checked(connection, tmp_path, copy, (EXPORT_KEY.public,))
        assert {one.side for one in result.differences} == {"copy"}
        assert [one.message for one in result.differences if one.message.startswith(message)], (change, result)


async def test_exports_of_every_kind(
    database_url: str, connection: Connection, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An export in parts, fetched in another order or again, in members of gzip or with the line ends of Windows is no copy."""
    lines = await people(database_url, connection)
    whole = await export(engine)
    monkeypatch.setattr("app.export.parts.PART_BYTES", 1500)
    monkeypatch.setattr("app.export.select._ROWS_AT_ONCE", 2)
    in_parts = await export(engine)
    assert in_parts.count(b'{"payloadType"') > 2
    bob = await export(engine, query_of(actor_id="bob"))
    copies = {
        "in parts": in_parts,
        "again": whole + in_parts + bob + whole,
        "broken off at the end of a line": b"".join(whole.splitlines(keepends=True)[:7]) + whole,
        "broken off within a line": whole[: len(whole) // 2] + whole,
        "of Windows": whole.replace(b"\n", b"\r\n"),
        "members of gzip": gzip.compress(in_parts[:3000]) + gzip.compress(in_parts[3000:]) + gzip.compress(bob),
        "after a stream": b"".join(lines) + position_record(12, "ndjson") + bob,
    }
    for name, copy in copies.items():
        result = await checked(connection, tmp_path, [copy], (EXPORT_KEY.public,))
        assert found(result) == set(), (name, result.differences)
        assert result.counts["missing"] == 0
    empty, one, other = tmp_path / "empty", tmp_path / "one", tmp_path / "other"
    empty.write_bytes(b"")
    one.write_bytes(b"".join(lines[:3]))
    other.write_bytes(bob)
    for paths in ([other, empty, one], [one, other, empty], [empty]):
        files = read_copy(paths, [EXPORT_KEY.public])
        result = await check_copy(connection, files, [EXPORT_KEY.public], is_filtered=False, show=lambda _: None)
        assert found(result) == set()


async def test_a_command_that_was_repeated(owner: Connection, signed: Checkpoint, tmp_path: Path) -> None:
    """`curl … >> copy.ndjson` was broken off within a line and repeated: an honest copy looks forged, or hides what it lacks."""
    lines = [ndjson_line(item) for item in [*await items_of(owner), signed]]
    begin = position_record(0, "ndjson")
    whole = b"".join([begin, *lines])
    cuts = {
        "within an event": begin + lines[0] + lines[1][:200],
        "at the begin of one": begin + lines[0] + lines[1][:3],
        "before a line's end": begin + lines[0] + lines[1][:-1],
        "within the first record": begin[:25],
        "within a checkpoint": whole[:-30],
        "twice": begin + lines[0][:90] + begin[:20],
        "within a text of several bytes": begin + lines[0][:90] + "é".encode()[:1],
    }
    for name, cut in cuts.items():
        for rest in (whole, b"".join(lines)):
            result = await checked(owner, tmp_path, [cut, rest])
            assert found(result) == set(), (name, result.differences)
            assert result.counts["cut off"] == (name != "before a line's end")
    without = [begin, *lines[:4], lines[4][:200] + begin, *lines[5:]]
    assert found(await checked(owner, tmp_path, without)) == {("copy", "removed")}
    for odd in (lines[3][:-1] + b"x" + lines[4], b"x" + lines[3], lines[3][:90] + b'{"stream":"absent"}\n'):
        assert ("copy", "edited") in found(await checked(owner, tmp_path, [*lines, odd]))
    with_events = position_record(0, "sse") + b"".join(b"data: " + line + b"\n" for line in lines)
    for cut in (with_events[:-100], b"retry: 1000\n" + with_events[:-2000], b"retry: 1000\nda"):
        result = await checked(owner, tmp_path, [cut, b"retry: 1000\n", with_events])
        assert (found(result), result.counts["cut off"]) == (set(), 1)


async def test_command(owner: Connection, signed: Checkpoint, database_url: str, tmp_path: Path) -> None:
    """A script that looks at the exit code, or at the JSON, believes what was not found."""
    lines = [ndjson_line(item) for item in [*await items_of(owner), signed]]
    copy, bad = tmp_path / "good.ndjson", tmp_path / "bad.ndjson"
    copy.write_bytes(b"".join(lines))
    bad.write_bytes(b"".join([changed(lines[0], '"step":1', '"step":2'), *lines[1:]]))
    key = ("--key", str(PUBLIC))

    def ended(*arguments: str, stdin: bytes = b"") -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "app", "verify", *arguments],
            cwd=ROOT,
            env=os.environ | {"DATASTORAGE_DATABASE_URL": database_url},
            input=stdin,
            capture_output=True,
            check=False,
        )
        return done.returncode, done.stdout.decode()

    code, shown = ended("--copy", "-", *key, stdin=copy.read_bytes())
    assert (code, shown.splitlines()[-1]) == (0, "no differences")
    code, shown = ended("--copy", str(bad), *key)
    assert code == 1
    assert shown.startswith("in the copy: edited: event_data is not what was logged (position 0:0, event")
    assert shown.splitlines()[-1] == "DIFFERENCES: 1 in the copy"
    code, shown = ended("--copy", str(copy), str(bad), "--json", *key)
    document = orjson.loads(shown)
    assert (code, document["is_same"], document["events"]) == (1, False, 40)
    assert [(one["side"], one["place"]) for one in document["differences"]] == [("copy", "0:0")]
    wrong = [("rr-1", "--copy", str(copy)), ("--filtered",), ("--copy", str(tmp_path))]
    assert [ended(*arguments)[0] for arguments in wrong] == [64, 64, 64]
    assert ended("--copy", str(tmp_path / "none"))[0] == 2


async def test_files_of_every_kind(
    owner: Connection, signed: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy in gzip, in batches of CloudEvents, in several files or on the standard input is not read."""
    items = await items_of(owner)
    batch = b"[" + b",".join(FORMS["cloudevents"](item).strip() for item in items[5:10]) + b"]\n"
    files = {
        "a.ndjson.gz": gzip.compress(b"".join(ndjson_line(item) for item in items[:5])),
        "b.json": batch,
        "c.ndjson": b"\n" + b"".join(FORMS["ocsf"](item) for item in items[10:15]),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    stdin = io.BytesIO(b"".join(ndjson_line(item) for item in [*items[15:], signed]))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(stdin)))
    copy = read_copy([*(tmp_path / name for name in files), Path("-")], [PUBLIC])
    result = await check_copy(owner, copy, [PUBLIC], is_filtered=False, show=lambda _: None)
    assert found(result) == set()
    assert (result.events, result.compared_checkpoints) == (20, 1)
    cut = tmp_path / "cut.gz"
    cut.write_bytes(files["a.ndjson.gz"][:-20])
    result = await check_copy(owner, read_copy([cut], [PUBLIC]), [PUBLIC], is_filtered=True, show=lambda _: None)
    assert ("copy", "edited") in found(result)
    with pytest.raises(Fatal, match="Cannot read the copy"):
        list(read_copy([tmp_path / "none"], []))


async def test_server_sent_events(owner: Connection, signed: Checkpoint, tmp_path: Path) -> None:
    """What `curl` has stored of a stream as it comes is not read, or what it says of how far it went is not believed."""
    portion = await LogReader(FIRST_LOG, newest_log).read(owner, 0, EVERYTHING)
    sent = [b"retry: 1000\n", position_record(0, "sse")]
    sent += [chunk.content for chunk in Rendered.of(portion, 0).chunks("sse")]
    sent += [checkpoint_record(signed, "sse"), closed_record(20, "time", "sse")]
    result = await checked(owner, tmp_path, sent)
    assert found(result) == set()
    assert (result.events, result.compared_checkpoints, result.end) == (20, 1, 20)
    broken = [*sent[:-2], b'id: 0:20\nevent: audit\ndata: {"event_id":"01a']
    result = await checked(owner, tmp_path, broken)
    assert found(result) == set()
    assert result.counts["cut off"] == 1
    ndjson = [ndjson_line(item) for item in portion.items]
    late = [position_record(0, "ndjson"), *ndjson[2:-2], position_record(20, "ndjson")]
    assert found(await checked(owner, tmp_path, late)) == {("copy", "removed")}
    beyond = [*ndjson, position_record(25, "ndjson")]
    assert found(await checked(owner, tmp_path, beyond)) == {("either", "rolled back")}


async def test_a_made_up_event_is_none(owner: Connection, form: Form, tmp_path: Path) -> None:
    """A destination that was once tried has a copy that does not verify."""
    made_up = made_up_delivery(SINK, FIRST_LOG).items[0]
    result = await checked(owner, tmp_path, [form(made_up), *(form(item) for item in await items_of(owner))])
    assert found(result) == set()
    assert (result.events, result.counts["unsealed"]) == (20, 1)


async def test_a_copy_that_says_it_is_redacted(owner: Connection, tmp_path: Path) -> None:
    """Whoever marks an event as redacted may put anything in the place of what its commitment stands for."""
    lines = [ndjson_line(item) for item in await items_of(owner)]
    row = await owner.fetchrow("SELECT *, event_data::text AS event_data FROM audit_events WHERE log_index = 3")
    assert row is not None
    sent = orjson.loads(lines[3]) | {"event_data": {"forged": True}, "payload_salt": None}
    sent["payload_commitment"] = commitment_of(row).hex()
    for redacted in (None, ["event_data"]):
        lines[3] = orjson.dumps(sent | {"redacted": redacted}) + b"\n"
        assert found(await checked(owner, tmp_path, lines)) == {("copy", "edited")}


async def test_a_log_that_grows(database_url: str, connection: Connection, tmp_path: Path) -> None:
    """What was written after the command began looks as if the database had lost it."""
    await write(database_url, {})
    checker = _Checker(connection, (), is_filtered=False)
    await checker.begin()
    await write(database_url, {}, {})
    items = await items_of(connection)
    path = tmp_path / "copy.ndjson"
    path.write_bytes(b"".join([*map(ndjson_line, items), position_record(3, "ndjson")]))
    copied = [*read_copy([path], ())]
    await checker.compare([one for one in copied if isinstance(one, CopiedEvent)])
    checker.add(copied[-1])  # type: ignore[arg-type]  # the position
    result = await checker.finish()
    assert found(result) == set()
    assert result.counts["same"] == 3


NOT_FOUND = {
    "events": {*NOT_COVERED, "sealed"},
    "cloudevents": {"datacontenttype", "eventretentiondays", "source", "specversion"},
    "ocsf": {
        *(f"unmapped.datastorage.event.{name}" for name in (*NOT_COVERED, "sealed")),
        *(
            "activity_id",
            "activity_name",
            "category_name",
            "category_uid",
            "class_name",
            "class_uid",
            "severity",
            "type_uid",
        ),
        *(
            "severity_id",
            "status",
            "status_id",
            "type_name",
            "actor.user.type",
            "actor.user.type_id",
            "src_endpoint.name",
        ),
        *("metadata.logged_time", "metadata.original_event_uid", "metadata.original_time", "metadata.product.name"),
        *("metadata.product.vendor_name", "metadata.version"),
    },
}
"""By format: what may be changed in a copy and is not found, since no hash is over it and it is no member of the event."""


@pytest.mark.parametrize("name", FORMS)
async def test_every_value_counts(owner: Connection, tmp_path: Path, name: str) -> None:
    """A value of the copy can be changed, and nobody sees it."""
    await owner.execute(
        "DELETE FROM audit_events; DELETE FROM log_flushes WHERE first_index >= 0; DELETE FROM chain_heads"
    )
    await seal(
        owner, "rr-1", {}, {"namespace": "n", "error_code": "E", "duration_ms": 5, "cluster_id": "c", "severity": "low"}
    )
    await owner.execute("UPDATE audit_events SET retention_days = 7")
    lines = [FORMS[name](item) for item in await items_of(owner)]
    sent = orjson.loads(lines[1])
    mutants = {path: changed_at(sent, path) for path in paths(sent)}
    result = await checked(owner, tmp_path, [*lines, *(orjson.dumps(one) + b"\n" for one in mutants.values())])
    at_lines = {int(one.where.rpartition(":")[2]) for one in result.differences if one.where}
    assert {1, 2} & at_lines == set()
    assert {path for number, path in enumerate(mutants, 3) if number not in at_lines} == NOT_FOUND[name]


def paths(value: Any, prefix: str = "") -> list[str]:
    """The paths of all values that are no objects."""
    if not isinstance(value, dict | list) or not value:
        return [prefix]
    members = value.items() if isinstance(value, dict) else enumerate(value)
    return [path for name, one in members for path in paths(one, f"{prefix}.{name}" if prefix else str(name))]


def changed_at(sent: Any, path: str) -> Any:
    """A copy of a JSON value in which one value is another one of its kind."""
    copied = orjson.loads(orjson.dumps(sent))
    *steps, last = path.split(".")
    node = copied
    for step in steps:
        node = node[int(step) if isinstance(node, list) else step]
    value = node[last]
    digits = {"0": "1", "1": "2", "2": "3"}
    if isinstance(value, bool):
        node[last] = not value
    elif isinstance(value, int):
        node[last] = value + 1
    elif isinstance(value, str) and value and value[-1] in digits:  # it stays a time, an id or a hash
        node[last] = value[:-1] + digits[value[-1]]
    else:
        node[last] = f"{value}x" if isinstance(value, str) else "x"
    return copied


async def test_what_a_hostile_copy_has(owner: Connection, tmp_path: Path) -> None:
    """Whoever makes the copy ends the command with a traceback, or has it believe what it cannot read."""
    good = [ndjson_line(item) for item in await items_of(owner)]
    sent = orjson.loads(good[5])
    positions: list[object] = ["5", True, -1, 2**60, 1.5, [], {}]
    values: list[object] = [[], {"a": 1}, 7, "\x1b[31m", 10**30]
    odd: list[dict[str, Any]] = [
        *({**sent, "log_index": value} for value in positions),
        *({**sent, name: value} for name in sent for value in values if name != "log_index"),
        {"stream": "absent", "first": "0:5", "end": "0:2"},
        {"stream": "absent", "first": "9:0", "end": "9:999"},
        {"stream": "absent", "first": 5},
        {"stream": "seam", "place": "3:0", "size": 7, "log": [], "closed": None},
        {"stream": "seam", "place": "0:0", "size": "x"},
        {"stream": "checkpoint", "place": "0:20", "note": 7},
        {"stream": ["x"]},
        {"specversion": "1.0"},
        {"specversion": "1.0", "type": 7},
        {"class_uid": 6003, "unmapped": []},
        {"class_uid": 6003, "time": "x", "unmapped": {"datastorage": {"place": 7, "event": sent}}},
        {"payloadType": "x", "payload": "e30=", "signatures": []},
    ]
    lines = [*good, *(dumps(one) for one in odd), b"[" * 100_000 + b"\n", b"\xff\xfe\n", b'{"a":NaN}\n']
    result = await checked(owner, tmp_path, lines)
    assert {side for side, _ in found(result)} <= {"copy", "either"}
    assert result.counts["same"] >= 20
    uncovered = len(NOT_COVERED) + len({"sealed", "redacted"})
    assert result.count >= len(odd) - 5 * uncovered


def dumps(value: object) -> bytes:
    return json.dumps(value).encode() + b"\n"  # numbers too that orjson has not


async def test_a_copy_of_another_log(owner: Connection, tmp_path: Path) -> None:
    """The copy of another database is compared with this one, and each of its events is told as a difference."""
    lines = [ndjson_line(item).replace(FIRST_LOG.name.encode(), b"other/log") for item in await items_of(owner)]
    with pytest.raises(Fatal, match="of the log 'other/log'"):
        await checked(owner, tmp_path, lines)


def test_places() -> None:
    """A place is forgotten at the edge of a page, or one is invented."""
    chosen, places = set[int](), Places()
    source = random.Random(3)
    for _ in range(60):
        first = source.randrange(400_000)
        end = first + source.choice([1, 2, 9, 1000, 140_000])
        places.add_range(first, end)
        chosen.update(range(first, end))
    assert {p for a, b in places.ranges(0, 600_000) for p in range(a, b)} == chosen
    assert {p for a, b in places.ranges(7, 500_000, absent=True) for p in range(a, b)} == set(
        range(7, 500_000)
    ) - chosen
    assert all(a < b for a, b in places.ranges(0, 600_000))
    assert (min(chosen) in places, max(chosen) + 1 in places) == (True, False)
