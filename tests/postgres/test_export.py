"""Export files on a real Postgres: parts, cuts, resuming, rows that are erased, purged, unsealed or damaged, and forged files."""

import asyncio
import base64
import hashlib
import io
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import uuid4

import asyncpg
import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import SecretStr

from app.api.export import parse_export
from app.db import Engine
from app.events.canonical import canonical, loads, parse
from app.events.catalog import Catalog
from app.events.reference import reference_hash
from app.export import parts
from app.export.certificate import ExportKeyPair, read_or_create_key_pair
from app.export.check import check
from app.export.parts import Export, ResumeToken
from app.export.result import CheckResult
from app.export.select import ExportQuery
from app.export.signed_page import SignedPage
from app.ingest.accept import Acceptance, check_item, computed_ids
from app.ingest.store import Store
from app.ingest.submission import new_submission
from app.ingest.writer import Writer
from app.settings import Settings
from app.tlog import merkle, note
from app.tlog.keys import SigningKey
from app.verify.snapshot import snapshot
from tests.events import make_event, make_freeform
from tests.logs import FIRST_LOG
from tests.postgres.test_tampering import own

LOG = "test.example/datastorage"
PRIVATE = Ed25519PrivateKey.generate()
KEY = SigningKey(PRIVATE, note.PublicKey(LOG, PRIVATE.public_key().public_bytes_raw()))
CATALOG = Catalog()
NDJSON, CSV = ExportQuery(format="ndjson"), ExportQuery(format="csv")

Connection = asyncpg.Connection
Post = Callable[..., Awaitable[None]]


@pytest.fixture
async def post(database_url: str) -> AsyncIterator[Post]:
    """Writes events, as bodies of the API, in one batch."""
    settings = Settings(database_url=SecretStr(database_url))
    writer = Writer(Store(settings, FIRST_LOG), settings)
    writer.start()

    async def post(*items: dict[str, Any]) -> None:
        documents = [parse(orjson.dumps(item)) for item in items]
        drafts = [check_item(CATALOG, d.value, f"/{i}", plain=d.plain, depth=d.depth) for i, d in enumerate(documents)]
        ids = computed_ids(drafts, "", ("body", hashlib.sha256(canonical(list(items))).hexdigest()), datetime.now(UTC))
        submission = await new_submission(drafts, ids, Acceptance(datetime.now(UTC), {}, LOG))
        await writer.submit(submission, asyncio.get_running_loop().time() + 30)

    yield post
    await writer.close()


async def nothing() -> None:
    pass


async def export(engine: Engine, query: ExportQuery = NDJSON, token: ResumeToken | None = None, **others: Any) -> bytes:
    async with snapshot(engine) as connection:
        stream = Export(query, "ada", FIRST_LOG, KEY, token, **others).stream(connection, nothing)
        return b"".join([chunk async for chunk in stream])


async def page(engine: Engine, signing: ExportKeyPair, **query: Any) -> dict[str, Any]:
    async with snapshot(engine) as connection:
        stream = SignedPage(ExportQuery(**query), "ada", FIRST_LOG, signing).stream(connection, nothing)
        found: dict[str, Any] = loads(b"".join([chunk async for chunk in stream]))
        return found


def verdict(*files: bytes) -> CheckResult:
    return check([io.BytesIO(file) for file in files], [KEY.public])


def events_of(file: bytes) -> list[dict[str, Any]]:
    return [event for line in file.splitlines() if "payloadType" not in (event := orjson.loads(line))]


@pytest.fixture(scope="module")
def signing(tmp_path_factory: pytest.TempPathFactory) -> ExportKeyPair:
    return read_or_create_key_pair(tmp_path_factory.mktemp("certificate") / "pair")


@pytest.fixture
async def superuser(connection: Connection) -> Connection:
    """A connection on which no trigger refuses a change."""
    await connection.execute("SET session_replication_role = replica")
    return connection


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A manifest after every portion of rows."""
    monkeypatch.setattr(parts, "PART_BYTES", 1)
    monkeypatch.setattr("app.export.select._ROWS_AT_ONCE", 8)


async def insert(connection: Connection, **columns: object) -> None:
    """An unsealed row."""
    row: dict[str, Any] = {
        **dict.fromkeys(("event_type", "event_category", "event_action", "event_outcome", "actor_type"), "x"),
        **dict.fromkeys(("actor_id", "resource_type", "resource_id"), "x"),
        "event_id": uuid4(),
        "event_version": "1.0",
        "event_timestamp": datetime.now(UTC),
        "event_date": datetime.now(UTC).date(),
        "correlation_id": "rr-1",
        "event_data": '{"step": 1}',
        "retention_days": 30,
        "is_sensitive": False,
    } | columns
    if row.get("hash_algorithm") == "sha256-unkeyed" and "event_hash" not in row:
        row["event_hash"] = reference_hash(row, row.get("previous_event_hash") or "")
    marks = ", ".join(f"${number}" for number in range(1, len(row) + 1))
    await connection.execute(f"INSERT INTO audit_events ({', '.join(row)}) VALUES ({marks})", *row.values())


@pytest.mark.parametrize("query", [NDJSON, CSV], ids=["ndjson", "csv"])
@pytest.mark.usefixtures("small_parts")
async def test_cut_anywhere_and_resumed(engine: Engine, post: Post, connection: Connection, query: ExportQuery) -> None:
    """An export that was cut looks whole, or what is fetched to resume it does not complete it."""
    await post(*(make_event(correlation_id=f"rr-{n % 3}", error_message='a\n"b",\r\n') for n in range(30)))
    for _ in range(5):
        await insert(connection)
    whole = await export(engine, query)
    assert verdict(whole).problems == []
    assert len(verdict(whole).parts) > 3
    await post(make_event(), make_event())  # later: no part of it
    for cut in {*range(0, len(whole), 1013), *(len(whole) - n for n in range(1, 4)), *ends_of_records(whole)} - {
        len(whole)
    }:
        found = verdict(whole[:cut])
        assert found.problem_count, cut
        if not found.parts:
            continue
        assert "incomplete" in found.problems[-1], cut
        next_token = found.parts[-1].next
        assert next_token is not None
        cut_part = whole[: found.whole_bytes]
        rest = await export(engine, query, ResumeToken.parse(next_token))
        assert verdict(cut_part + rest).problems == verdict(cut_part, rest).problems == [], cut
        assert verdict(cut_part + rest).counts["events"] == 35


@pytest.mark.usefixtures("small_parts")
async def test_relative_times_of_a_resumed_export(engine: Engine, post: Post) -> None:
    """`7d` and `today` are counted anew in each request, so that the next part has another filter than the first."""
    await post(*(make_event(correlation_id="rr-1") for _ in range(30)))
    parameters, now = b"format=ndjson&since=7d&until=today", datetime.now(UTC)
    query, _, began = parse_export(parameters, now)
    whole = await export(engine, query, now=began)
    token = verdict(whole).parts[0].next
    assert token is not None
    first = verdict(whole[: len(whole) // 2])
    resuming = parameters + b"&after=" + str(first.parts[-1].next).encode()
    again, resumed, still = parse_export(resuming, now + timedelta(days=2))
    assert (again, still) == (query, now)
    rest = await export(engine, again, resumed, now=still)
    assert verdict(whole[: first.whole_bytes] + rest).problems == []
    older = ResumeToken.parse(token).model_copy(update={"now": None})
    later = now + timedelta(hours=1)
    assert parse_export(parameters + f"&after={older}".encode(), later)[2] == later
    for year in ("0001", "9999"):
        forged = base64.urlsafe_b64encode(
            ResumeToken.parse(token).model_dump_json().replace(f'"now":"{now.year}', f'"now":"{year}').encode()
        ).decode()
        with pytest.raises(ValueError, match="expected the `next`"):
            ResumeToken.parse(forged)


def ends_of_records(file: bytes) -> list[int]:
    return [at + 1 for at in range(len(file)) if file[at : at + 1] == b"\n"]


@pytest.mark.usefixtures("small_parts")
async def test_parts_that_do_not_belong_together(engine: Engine, post: Post) -> None:
    """Somebody leaves a part out, swaps two, repeats one, or takes one of another export, and the file verifies."""
    await post(*(make_event(correlation_id="rr-1") for _ in range(30)))
    one, other = [split(await export(engine)) for _ in range(2)]
    assert verdict(*one).problems == []
    for pieces, problem in (
        (one[1:], "1 part(s) before it are missing"),
        ([one[0], *one[2:]], "does not follow part 1"),
        ([one[1], one[0], *one[2:]], "does not follow"),
        ([one[0], one[0], *one[1:]], "does not follow part 1"),
        ([one[0], *other[1:]], "its export_id is not that of the part before"),
        (one[:-1], "incomplete: cut after part"),
        ([*one, one[-1]], "the part before it was the last"),
        ([*one, one[0].splitlines(keepends=True)[0]], "records after the manifest of the last part"),
    ):
        problems = "\n".join(verdict(*pieces).problems)
        assert problem in problems, problems
    assert verdict(*one, split(await export(engine))[0][:50]).problem_count


def split(file: bytes) -> list[bytes]:
    """A file of ndjson by its parts."""
    found, part = [], b""
    for line in file.splitlines(keepends=True):
        part += line
        if line.startswith(b'{"payloadType"'):
            found.append(part)
            part = b""
    return found


async def test_forged_files(engine: Engine, post: Post) -> None:
    """Who has the file but not the key makes another one of it that verifies."""
    await post(*(make_event(correlation_id="rr-1") for _ in range(4)))
    whole = await export(engine)
    lines = whole.splitlines(keepends=True)
    stranger = SigningKey(
        forger := Ed25519PrivateKey.generate(), note.PublicKey(LOG, forger.public_key().public_bytes_raw())
    )
    async with snapshot(engine) as connection:
        stream = Export(NDJSON, "ada", FIRST_LOG, stranger).stream(connection, nothing)
        by_another = b"".join([chunk async for chunk in stream])
        stream = Export(NDJSON, "ada", FIRST_LOG, None).stream(connection, nothing)
        unsigned = b"".join([chunk async for chunk in stream])
    for forged, problem in (
        (by_another, "wrong key"),
        (unsigned, "wrong key"),
        (whole.replace(b'"severity":"warning"', b'"severity":"info"', 1), "edited: its hash is"),
        (whole.replace(b"payments/Deployment/api", b"payments/Deployment/ap1", 1), "edited: its hash is"),
        (whole.replace(b'"legal_hold":false', b'"legal_hold":true', 1), "SHA-256"),
        (
            whole.replace(b'"redacted":null', b'"redacted":["severity"]', 1),
            "redacted, but it was signed as not redacted",
        ),
        (whole.replace(b'"log":"test', b'"log":"tset', 1), "edited"),
        (b"".join(lines[1:]), "events is 3, but 4 was signed"),
        (b"".join([lines[0], *lines]), "reordered"),
        (b"".join([lines[1], lines[0], *lines[2:]]), "reordered"),
        (b"".join([*lines[:-1], b"{}\n", lines[-1]]), "expected the members of an exported event"),
        (
            b"".join([*lines[:-1], lines[0].replace(b'"log_index":0', b'"log_index":"0"'), lines[-1]]),
            "not one of an export",
        ),
        (b"".join([*lines, lines[0]]), "records after the manifest of the last part"),
        (whole.replace(b'"sig":"', b'"sig":"AAAA', 1), "wrong key"),
    ):
        found = verdict(forged)
        assert problem in "\n".join(found.problems), (problem, found.problems)


@pytest.mark.damaged
async def test_damaged_rows(engine: Engine, post: Post, superuser: Connection, signing: ExportKeyPair) -> None:
    """Rows that were changed in the database leave it as if they were whole, or bring the export down."""
    await post(*(make_event(correlation_id="rr-1") for _ in range(8)))
    ids = [row["event_id"] for row in await superuser.fetch("SELECT event_id FROM audit_events ORDER BY log_index")]
    for number, change in (
        (1, "event_data = jsonb_set(event_data, '{namespace}', '\"other\"')"),
        (2, "event_hash = repeat('tampered', 9)"),
        (4, "actor_ip = '10.0.0.0/8'"),
        (5, "event_timestamp = 'infinity'"),
        (6, "payload_salt = NULL"),
    ):
        await superuser.execute(f"UPDATE audit_events SET {change} WHERE event_id = $1", ids[number])
    found = verdict(await export(engine))
    problems = "\n".join(found.problems)
    for number in (1, 2, 4, 5, 6):
        assert f"event {ids[number]}: edited: its hash is" in problems
    assert f"event {ids[3]}: edited: the previous hash is not that of the event before it" in problems
    assert (found.counts["events"], found.counts["recomputed"]) == (8, 3)
    exported = await page(engine, signing)
    tampered = exported["hash_chain_verification"]["tampered_event_ids"]
    assert set(tampered) == {str(ids[number]) for number in (1, 2, 3, 4, 5, 6)}
    assert exported["hash_chain_verification"]["chain_integrity_percentage"] == 25
    assert [event["event_id"] for event in exported["events"] if not event["hash_chain_valid"]] == tampered
    assert (await page(engine, signing, redact_pii=True))["hash_chain_verification"]["tampered_event_ids"] == tampered


@pytest.mark.damaged
async def test_erased_and_purged(engine: Engine, post: Post, superuser: Connection, signing: ExportKeyPair) -> None:
    """What was erased or purged by the rules makes the rest of an export look broken."""
    await post(*(make_event(correlation_id=f"rr-{n % 2}") for n in range(10)))
    file = await export(engine)
    for event in events_of(await export(engine, ExportQuery(format="ndjson", redact_pii=True)))[2:4]:
        await superuser.execute(
            "UPDATE audit_events SET payload_commitment = decode($2, 'hex'), payload_salt = NULL, actor_id = 'erased', "
            "resource_id = 'erased', actor_ip = NULL, event_data = '{}' WHERE event_id = $1::text::uuid",
            *(event["event_id"], event["payload_commitment"]),
        )
    await superuser.execute("DELETE FROM audit_events WHERE log_index IN (0, 1, 6)")
    found = verdict(await export(engine))
    assert found.problems == []
    assert (found.counts["recomputed"], found.parts[0].erased, found.counts["gaps"]) == (7, 2, 3)
    assert verdict(file).problems == []
    assert (await page(engine, signing))["hash_chain_verification"]["broken_chain_events"] == 3
    await own(superuser, "datastorage.retention.purged", "{[0,2),[6,7)}", operation_id="one")
    assert (await page(engine, signing))["hash_chain_verification"]["broken_chain_events"] == 2
    await own(superuser, "datastorage.event.erased", "{[2,4)}")
    assert (await page(engine, signing))["hash_chain_verification"]["broken_chain_events"] == 0


@pytest.mark.damaged
async def test_links_of_a_page(engine: Engine, post: Post, superuser: Connection, signing: ExportKeyPair) -> None:
    """A page that begins within a chain looks broken, or one whose event before it was changed or removed does not."""
    await post(*(make_event(correlation_id="rr-1") for _ in range(3)))
    first, second = uuid4(), uuid4()
    await insert(superuser, event_id=first, hash_algorithm="sha256-unkeyed")
    [hashed] = await superuser.fetch("SELECT event_hash FROM audit_events WHERE event_id = $1", first)
    await insert(superuser, event_id=second, hash_algorithm="sha256-unkeyed", previous_event_hash=hashed[0])

    async def broken(offset: int) -> list[str]:
        found = await page(engine, signing, offset=offset)
        assert len(found["events"]) == 5 - offset
        return list(found["hash_chain_verification"]["tampered_event_ids"])

    order = [
        row[0] for row in await superuser.fetch("SELECT event_id FROM audit_events ORDER BY event_timestamp, event_id")
    ]
    for offset in range(5):
        assert await broken(offset) == []
    await superuser.execute("UPDATE audit_events SET event_hash = repeat('f', 64) WHERE event_id = $1", first)
    assert await broken(order.index(second)) == [str(second)]
    await superuser.execute("UPDATE audit_events SET event_hash = $2 WHERE event_id = $1", first, hashed[0])
    await superuser.execute("DELETE FROM audit_events WHERE log_index = 1")
    [left] = await superuser.fetch("SELECT event_id FROM audit_events WHERE log_index = 2")
    found = await page(engine, signing)
    assert found["hash_chain_verification"]["tampered_event_ids"] == [str(left[0])]


async def test_unsealed_rows(engine: Engine, post: Post, connection: Connection, signing: ExportKeyPair) -> None:
    """Rows that others wrote by SQL stop an export, are left out of it, or make it look broken."""
    await post(make_event(correlation_id="rr-1"))
    await insert(connection)
    await insert(connection, hash_algorithm="sha256-unkeyed", actor_ip="::ffff:10.0.0.1")
    await insert(connection, hash_algorithm="hmac-sha256", event_hash="ab" * 32)
    await insert(connection, event_hash="", previous_event_hash="")
    wrong = uuid4()
    await insert(connection, event_id=wrong, hash_algorithm="sha256-unkeyed", event_hash="not a hash, ada@example.com")
    for payload in (
        "null",
        '"ada@example.com"',
        '{"n": 1e400}',
        '{"n": 12345678901234567890.5}',
        "[" * 2000 + "]" * 2000,
    ):
        await insert(connection, event_data=payload, event_metadata=payload)
    await insert(connection, parent_event_id=uuid4(), parent_event_date=date.max)
    await connection.execute("UPDATE audit_events SET event_timestamp = 'infinity' WHERE event_data = 'null'")
    await connection.execute("UPDATE audit_events SET event_timestamp = '20000-01-01' WHERE event_data ? 'n'")
    for query in (
        NDJSON,
        CSV,
        ExportQuery(format="ndjson", redact_pii=True),
        ExportQuery(format="csv", redact_pii=True),
    ):
        file = await export(engine, query)
        found = verdict(file)
        assert found.problems == []
        assert (found.counts["events"], found.counts["sealed"], found.counts["unsealed"]) == (12, 1, 11)
        assert (b"ada@example.com" in file) != query.redact_pii
    counts = verdict(await export(engine)).counts
    assert [counts[name] for name in ("recomputed", "wrong unsealed", "unverifiable", "unhashed")] == [2, 1, 1, 8]
    exported = await page(engine, signing)
    verification = exported["hash_chain_verification"]
    assert verification["tampered_event_ids"] == [str(wrong)]
    assert (verification["valid_chain_events"], verification["unverified_events"]) == (2, 9)
    assert (verification["unsealed_events"], len(exported["events"])) == (11, 12)
    assert sum(event.get("sealed", True) for event in exported["events"]) == 1
    assert {event["event_hash"] for event in exported["events"]} >= {"", "ab" * 32}


async def test_redaction_reaches_every_member(engine: Engine, post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    """An address stays in a column, a key, an array or the manifest, or the redacted file no longer verifies."""
    address, ip = "ada@example.com", "10.1.2.3"
    columns = ("actor_id", "resource_id", "correlation_id", "namespace", "error_message", "event_action", "cluster_id")
    for column in columns:
        await post(make_event(correlation_id="rr-1") | {column: f"{address} at {ip}"})
    payload = {address: [{"x": [f"<{address}>", {"y": ip}]}], "ip": ip, "deep": {"a": {"b": {"c": address}}}}
    await post(
        make_freeform(payload=payload, correlation_id=address), make_freeform(payload=payload, correlation_id="b@x.io")
    )
    for form in ("ndjson", "csv"):
        query = ExportQuery(format=form, redact_pii=True, correlation_id=None)
        file = await export(engine, query)
        assert not [word for word in (b"ada@", b"example.com", b"10.1.2", b"b@x") if word in file]
        found = verdict(file)
        assert found.problems == []
        # The record itself holds the others.
        assert (found.counts["recomputed"], found.counts["unverifiable"]) == (3, 6)
    monkeypatch.setattr(parts, "PART_BYTES", 1)
    one = await export(engine, ExportQuery(format="ndjson", redact_pii=True, correlation_id=address))
    statements = [
        base64.b64decode(orjson.loads(line)["payload"]) for line in one.splitlines() if b"payloadType" in line
    ]
    predicates = [orjson.loads(statement)["predicate"] for statement in statements]
    assert address.encode() not in b"".join(statements) + base64.urlsafe_b64decode(predicates[0]["next"] + "==")
    assert verdict(one).parts[0].filter == {"correlation_id": "a***@e***.c***"}


async def test_checkpoint(engine: Engine, post: Post, connection: Connection) -> None:
    """A whole log is exported that is not the one whose checkpoint was signed, and nobody notices."""
    await post(*(make_event(correlation_id=f"rr-{n % 2}") for n in range(7)))
    leaves = [bytes.fromhex(event["event_hash"]) for event in events_of(await export(engine))]

    async def signed(size: int, root: bytes, key: Ed25519PrivateKey) -> CheckResult:
        text = note.sign_checkpoint(note.Checkpoint(LOG, size, root), key)
        await connection.execute("DELETE FROM log_checkpoints")
        await connection.execute("INSERT INTO log_checkpoints (log_id, size, note) VALUES (0, $1, $2)", size, text)
        return verdict(await export(engine))

    found = await signed(5, merkle.root(leaves[:5]), PRIVATE)
    assert (found.problems, "first 5 events" in found.checkpoint_result) == ([], True)
    found = await signed(5, merkle.root(leaves[1:6]), PRIVATE)
    assert "forged: the first 5 events" in found.problems[0]
    found = await signed(5, merkle.root(leaves[:5]), Ed25519PrivateKey.generate())
    assert "the checkpoint in the manifest" in found.problems[0]
    await connection.execute("DELETE FROM log_checkpoints")


async def test_order_is_that_of_the_log(engine: Engine, post: Post) -> None:
    """Late events stand elsewhere than in the log, so that chains do not follow, or a filter loses some."""
    times = [(datetime.now(UTC) - timedelta(hours=hours)).isoformat() for hours in (1, 5, 0, 3, 2, 4)]
    await post(*(make_event(correlation_id=f"rr-{n % 2}", event_timestamp=at) for n, at in enumerate(times)))
    assert [event["log_index"] for event in events_of(await export(engine))] == list(range(6))
    some = events_of(await export(engine, ExportQuery(format="ndjson", correlation_id="rr-1")))
    assert [event["chain_index"] for event in some] == [0, 1, 2]
    empty = await export(engine, ExportQuery(format="csv", event_category="none"))
    assert (verdict(empty).problems, verdict(empty).counts["events"]) == ([], 0)


async def test_failed_record_cuts_the_file(engine: Engine, post: Post) -> None:
    """An export that had to be recorded and could not be is whole all the same."""
    await post(make_event())

    async def fail() -> None:
        raise RuntimeError

    sent = []
    async with snapshot(engine) as connection:
        stream = Export(NDJSON, "ada", FIRST_LOG, KEY).stream(connection, fail)
        sent.append(await anext(stream))
        with pytest.raises(RuntimeError):
            await anext(stream)
    assert "incomplete" in verdict(b"".join(sent)).problems[0]
