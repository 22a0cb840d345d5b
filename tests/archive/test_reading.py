"""Events that only the archive has are found as they were found while Postgres had them."""

import asyncio
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from app.archive import reading, run
from app.archive.matching import column_of, columns_for, id_bytes, is_on_payload
from app.archive.question import Found, Question
from app.archive.reading import ArchiveAway, ArchiveDamaged, ArchivedEvents, ArchiveReader
from app.archive.table import ARROW_SCHEMA
from app.db import create_engine
from app.errors import AuditError, DatabaseBusy
from app.events.catalog import Catalog
from app.events.log import Log
from app.query.cursor import Cursor
from app.query.filter import CONDITIONS, EventQuery
from app.retention import purge
from app.retention.erase import Erasure, erase
from app.settings import Settings
from tests.archive.archived import (
    ALL,
    NOW,
    OLD,
    OLDER,
    PEM,
    Connection,
    fill,
    folder_of,
    parts_of,
    publish,
    settings_of,
)
from tests.logs import FIRST_LOG
from tests.postgres.test_continue import NEXT, continued
from tests.postgres.test_continue import settings_of as settings_of_continued
from tests.sealed import seal
from tests.services import ROOT, Service

pytestmark = pytest.mark.damaged  # the verification at the end of every test does not know purges
EVENTS = "/api/v1/audit/events"
PARENT = UUID(int=2**126 + 7)
BETWEEN = OLD + timedelta(days=60)
HOSTILE = 'a "b" \\ [c] .* \x07\u202e\U0001f600 %_'
Start = Callable[..., Service]


def hostile(number: int, **more: Any) -> dict[str, Any]:
    time = OLD + timedelta(seconds=number // 3)  # several at the same time
    payloads = [
        '{"event_type": "x", "target_resource": "Pod/a", "text": "Out of Memory: 5, or so", "n": 1e21, "deep": [{"a": [1, 2.5]}]}',
        '{"event_type": "x", "target_resource": {"kind": "Pod", "a": 1}, "flag": true, "n": 10.25, "none": null}',
        '{"text": "a \\"b\\" \\\\ [c] .* \\u0007\\u202e\\ud83d\\ude00 %_", "ÄÖ": "straße"}',
        "[1, 2]",
        '"text"',
    ]
    return {"event_timestamp": time, "event_date": time.date(), "event_data": payloads[number % len(payloads)]} | more


async def fill_with_all(connection: Connection) -> None:
    await fill(connection, rounds=3)
    types = [
        "gateway.signal.received",
        "gateway.signal.deduplicated",
        "datastorage.odd",
        "kubernetes.audit.response",
        "x",
    ]
    await seal(connection, "rr-parent", hostile(0, event_id=PARENT))
    columns = [
        hostile(
            number,
            event_type=types[number % 5],
            event_category=["gateway", "security", "kubernetes", "x"][number % 4],
            event_outcome=["success", "failure"][number % 2],
            actor_id=[HOSTILE, "ada", "ä_x"][number % 3],
            error_message=[None, HOSTILE, "OUT OF MEMORY"][number % 3],
            parent_event_id=None if number % 4 else PARENT,
            namespace=[None, "", "payments"][number % 3],
        )
        for number in range(60)
    ]
    await seal(connection, "rr-hostile", *columns)
    await publish(connection)


QUESTIONS: list[dict[str, Any]] = [
    {},
    {"include": "self"},
    {"include": "kubernetes"},
    {"include": "all"},
    {"correlation_id": "rr-hostile"},
    {"correlation_id": "no such"},
    {"correlation_id_in": ["rr-hostile", f"rr-{OLDER:%m}-0"]},
    {"event_type": "gateway.signal.received"},
    {"event_type_in": ["gateway.*", "x"]},
    {"event_type_not": ["gateway.signal.*", "datastorage.odd"], "include": "all"},
    {"event_category": "gateway"},
    {"event_category_not": ["x", "gateway"], "include": "all"},
    {"severity": "info"},
    {"severity_not": ["info"]},
    {"namespace_in": ["payments", ""]},
    {"namespace_not": ["payments"]},
    {"cluster_id": "c-1", "actor_id": "x"},
    {"actor_id": HOSTILE},
    {"actor_id_in": ["ada", HOSTILE]},
    {"actor_id_not": [HOSTILE]},
    {"trace_id": "t"},
    {"trace_id_not": ["t"]},
    {"parent_event_id": str(PARENT)},
    {"parent_event_id_not": [str(PARENT)]},
    {"detail_key": "target_resource", "detail_value": "Pod/a"},
    {"detail_key": "target_resource", "detail_value": '{"a": 1, "kind": "Pod"}'},
    {"detail_key": "flag", "detail_value": "true"},
    {"detail_key": "n", "detail_value": "1000000000000000000000"},
    {"detail_key": "n", "detail_value": "10.25"},
    {"detail_key": "none", "detail_value": "null"},
    {"detail_key": "deep", "detail_value": '[{"a": [1, 2.5]}]'},
    *(
        {"q": text, "since": "300d", "include": "all"}
        for text in (HOSTILE, "out of MEMORY", '"b"', "[c] .*", "STRASSE", "straße")
    ),
    *(
        {"q": text, "since": "300d"}
        for text in ('kind": "pod', "5, OR", ": ", "_", "%", "\\", "10.25", "ä", "\U0001f600")
    ),
    {"since": OLD.isoformat(), "until": (OLD + timedelta(seconds=5)).isoformat()},
    {"since": (OLD + timedelta(microseconds=1)).isoformat()},
    {"until": OLDER.isoformat()},
    {"until": OLD.isoformat().replace("+00:00", "+14:00")},
    {"since": "2026-01-01", "zone": "Pacific/Kiritimati"},
    {"sealed": "true"},
    {"since": "300d", "until": "299d"},
]


NOTHING: list[dict[str, Any]] = [
    {"correlation_id": "no such"},
    {"detail_key": "none", "detail_value": "null"},
    {"q": "STRASSE", "since": "300d", "include": "all"},
    {"q": 'kind": "pod', "since": "300d"},
    {"since": "300d", "until": "299d"},
]
"""Questions to which there is no answer, before or after."""


def walked(client: httpx.Client, question: dict[str, Any], limit: int, **more: Any) -> list[dict[str, Any]]:
    """The events of all pages."""
    found, sent = list[dict[str, Any]](), question | {"limit": limit, "total": "none"} | more
    for _ in range(1000):
        answer = client.get(EVENTS, params=sent)
        assert answer.status_code == 200, answer.text
        page = answer.json()
        found += page["data"]
        assert len(page["data"]) == limit or not page["pagination"]["has_more"] or "scanned_until" in page["pagination"]
        if not page["pagination"]["has_more"]:
            return found
        sent["cursor"] = page["pagination"]["next_cursor"]
    raise AssertionError("pages do not end")


def without_mark(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in event.items() if name != "archive_id"} for event in events]


def _is_purge(event: dict[str, Any]) -> bool:
    return bool(event["event_type"] == "datastorage.retention.purged")


async def purge_before(settings: Settings, cutoff: datetime) -> None:
    """Purge what is older."""
    terms = {"retention_floor_days": 30, "retention_ceiling_days": 30}
    await purge.run(settings.model_copy(update=terms), cutoff + timedelta(days=30))


def client_of(start: Start, settings: Settings, directory: Path, **more: object) -> httpx.Client:
    key = directory / "key.pem"
    key.write_text(PEM)
    service = start(archive_url=settings.archive_url, checkpoint_key_file=key, **more)
    return httpx.Client(base_url=service.url, timeout=30)


async def test_found_as_before(database_url: str, connection: Connection, tmp_path: Path, service: Start) -> None:
    """An event of the archive is not found, found twice, found by a filter that it does not meet, or shown otherwise than before."""
    await fill_with_all(connection)
    settings = settings_of(database_url, tmp_path)
    with client_of(service, settings, tmp_path) as client:
        await run.run(settings, NOW, ALL)
        before = [walked(client, question, 1000) for question in QUESTIONS]
        empty = [question for question, found in zip(QUESTIONS, before, strict=True) if not found]
        assert empty == NOTHING
        assert [walked(client, one, 1000, archive="include") for one in QUESTIONS[:5]] == before[:5]
        await purge_before(settings, BETWEEN)
        assert await connection.fetchval("SELECT count(*) FROM audit_events WHERE event_date < $1", NOW.date()) == 0
        for question, known in zip(QUESTIONS, before, strict=True):
            for limit in (1000, 17) if 20 < len(known) < 100 else (1000,):
                found = [one for one in walked(client, question, limit, archive="include") if not _is_purge(one)]
                assert without_mark(found) == known, question
                assert all(("archive_id" in event) == (event["event_timestamp"] < f"{NOW:%Y-%m-%d}") for event in found)
        parts = {str(part.archive_id) for part in await parts_of(settings)}
        found = walked(client, {"include": "all"}, 50, archive="include")
        assert {event["archive_id"] for event in found if "archive_id" in event} == parts


def test_every_condition_is_known() -> None:
    """A new filter is not one of the archive's."""
    for name in CONDITIONS.keys() - {"since_date", "until_date", "unsealed", "sealed", "since", "until"}:
        if not is_on_payload(name) and "self event" not in name and name != "not kubernetes":
            assert columns_for([name]) == {column_of(name)}


async def test_border(database_url: str, connection: Connection, tmp_path: Path, service: Start) -> None:
    """At the border between Postgres and the archive, or where a month is in both, an event is shown twice or never."""
    await fill(connection, rounds=2)
    settings = settings_of(database_url, tmp_path)
    with client_of(service, settings, tmp_path) as client:
        before = walked(client, {}, 1000)
        await run.run(settings, NOW, ALL)
        await purge_before(settings, OLD + timedelta(seconds=10))  # one month, and half of the next one
        left = await connection.fetchval("SELECT count(*) FROM audit_events WHERE event_date < $1", NOW.date())
        assert left == 30
        for limit in (11, 89, 90, 91, 180):
            assert without_mark(walked(client, {}, limit, archive="include")) == before
        assert len(walked(client, {}, 1000)) == 90


async def test_while_it_is_removed(database_url: str, connection: Connection, tmp_path: Path, service: Start) -> None:
    """While a run archives and others purge, an event is for a moment in neither place, or in both."""
    await fill(connection, rounds=4)
    settings = settings_of(database_url, tmp_path)
    with client_of(service, settings, tmp_path) as client:
        known = sorted(event["event_id"] for event in walked(client, {}, 1000))
        assert len(known) == 360
        pages, ended = 0, asyncio.Event()

        async def read_on() -> None:
            nonlocal pages
            while not ended.is_set() or not pages:
                found = await asyncio.to_thread(walked, client, {}, 1000, archive="include")
                assert sorted(event["event_id"] for event in found) == known
                pages += 1

        reading_on = asyncio.create_task(read_on())
        try:
            await run.run(settings, NOW, ALL)
            for seconds in range(
                -30, 300, 30
            ):  # a bit of the newer month in each run, all of the older one in the first
                await purge_before(settings, OLD + timedelta(seconds=seconds))
            await purge_before(settings, BETWEEN)
        finally:
            ended.set()
            await reading_on
        assert pages > 5
        found = walked(client, {}, 1000, archive="include")
        assert sorted(event["event_id"] for event in found) == known
        assert sum("archive_id" in event for event in found) == 240


async def test_by_itself(database_url: str, connection: Connection, tmp_path: Path, service: Start) -> None:
    """A time of which Postgres has nothing is answered as if there had been nothing; or one of which it has something, from elsewhere."""
    await fill(connection, rounds=2)
    settings = settings_of(database_url, tmp_path)
    with client_of(service, settings, tmp_path) as client:
        await run.run(settings, NOW, ALL)
        until = (OLD - timedelta(days=5)).isoformat()
        answer = client.get(EVENTS, params={"until": until}).json()
        assert (answer["pagination"]["total"], [one for one in answer["data"] if "archive_id" in one]) == (60, [])
        await purge_before(settings, OLD - timedelta(days=5))
        answer = client.get(EVENTS, params={"until": until, "limit": 50}).json()
        assert len(answer["data"]) == len([one for one in answer["data"] if "archive_id" in one]) == 50
        assert "total" not in answer["pagination"]
        rest = client.get(EVENTS, params={"until": until, "cursor": answer["pagination"]["next_cursor"]}).json()
        assert (len(rest["data"]), rest["pagination"]["has_more"]) == (10, False)
        nothing = client.get(EVENTS, params={"until": "2020-01-01"}).json()
        assert (nothing["data"], nothing["pagination"]["total"]) == ([], 0)
        assert client.get(EVENTS, params={"until": until, "offset": 1}).json()["data"] == []


def test_wrong_questions(database_url: str, tmp_path: Path, service: Start) -> None:
    """A question that the archive cannot answer is answered without it."""
    settings = settings_of(database_url, tmp_path)
    with client_of(service, settings, tmp_path) as client:
        for wrong, about in (
            ({"archive": "only"}, "include"),
            ({"offset": "3"}, "next_cursor"),
            ({"order": "log"}, "order of time"),
            ({"total": "exact"}, "not counted"),
            ({"total": "capped"}, "not counted"),
        ):
            answer = client.get(EVENTS, params={"archive": "include"} | wrong)
            assert (answer.status_code, about in answer.text) == (400, True), answer.text
        assert client.get(EVENTS, params={"archive": "include", "strict": "true", "offset": "0"}).status_code == 200
    plain = service(archive_url=None)
    answer = httpx.get(f"{plain.url}{EVENTS}", params={"archive": "include"})
    assert (answer.status_code, "DATASTORAGE_ARCHIVE_URL" in answer.text) == (400, True)


async def test_erased(database_url: str, connection: Connection, tmp_path: Path, service: Start) -> None:
    """What was erased is shown from files that have it still, or can be found by what it was."""
    secret = {
        "actor_id": "secret-ada",
        "event_data": '{"event_type": "x", "who": "secret-ada"}',
        "error_message": "secret-ada",
    }
    await fill(connection, rounds=2)
    [event_id, other] = await seal(connection, "rr-secret", hostile(1, **secret), hostile(1, actor_id="other"))
    await publish(connection)
    settings = settings_of(database_url, tmp_path)
    await run.run(settings, NOW, ALL)
    await erase(settings, Catalog(), Erasure("asked for", "tests", event_ids=[event_id]), dry_run=False)
    await purge_before(settings, BETWEEN)
    with client_of(service, settings, tmp_path) as client:
        for question in (
            {"actor_id": "secret-ada"},
            {"q": "secret", "since": "300d"},
            {"detail_key": "who", "detail_value": "secret-ada"},
        ):
            assert walked(client, question, 100, archive="include") == []
        [shown] = walked(client, {"actor_id": "erased"}, 100, archive="include")
        assert (shown["event_id"], shown["event_data"], shown["actor_id"]) == (
            str(event_id),
            {"event_type": "x"},
            "erased",
        )
        assert "sealed" not in shown
        both = walked(client, {"correlation_id": "rr-secret"}, 1, archive="include")
        assert {one["event_id"] for one in both} == {str(event_id), str(other)}
        assert "secret-ada" not in repr(both)
        await run.run(settings, NOW, ALL)  # its files are written again, and the old ones deleted
        assert walked(client, {"correlation_id": "rr-secret"}, 1, archive="include")[0]["actor_id"] in {
            "erased",
            "other",
        }
        [again] = walked(client, {"actor_id": "erased"}, 100, archive="include")
        assert without_mark([again]) == without_mark([shown])
        assert again["archive_id"] != shown["archive_id"]


def break_row(folder: Path) -> None:
    """One other actor, and the file as long as it was."""
    change_file(folder, "actor_id", None, "y")


def change_file(folder: Path, column: str, correlation_id: str | None, value: Any, number: int = 0) -> None:
    """Another value in the first row of a file, or in one of a correlation, and the file as long as it was."""
    path = folder / "events-0.parquet"
    table, size = pq.read_table(path), path.stat().st_size
    correlations = table.column("correlation_id").to_pylist()
    row = [row for row, one in enumerate(correlations) if correlation_id in {None, one}][number]
    place = table.schema.get_field_index(column)
    field = ARROW_SCHEMA.field(place)
    is_id = isinstance(field.type, pa.BaseExtensionType)
    values = id_bytes(table.column(column)).to_pylist()
    values[row] = value
    changed = pa.array(values, field.type.storage_type if is_id else field.type)
    table = table.set_column(place, field, pa.ExtensionArray.from_storage(field.type, changed) if is_id else changed)
    pq.write_table(table.cast(ARROW_SCHEMA), path, store_schema=False, write_statistics=False, compression="zstd")
    content = path.read_bytes()
    footer = int.from_bytes(content[-8:-4], "little") + 8
    path.write_bytes(content[:-footer] + bytes(size - len(content)) + content[-footer:])
    assert path.stat().st_size == size


def _break_manifest(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b"payload", b"pay1oad", 1))


def _cut(folder: Path) -> None:
    path = folder / "events-0.parquet"
    path.write_bytes(path.read_bytes()[:-1])


def _zeros(folder: Path) -> None:
    path = folder / "events-0.parquet"
    path.write_bytes(bytes(path.stat().st_size))


DAMAGES: list[tuple[Callable[[Path], Any], type[AuditError]]] = [
    (_break_manifest, ArchiveDamaged),
    (_cut, ArchiveDamaged),
    (_zeros, ArchiveDamaged),
    (lambda folder: (folder / "events-0.parquet").unlink(), ArchiveAway),
    (lambda folder: (folder / "manifest.json").unlink(), ArchiveAway),
    (lambda folder: folder.rename(folder.parent / "elsewhere"), ArchiveAway),
]


@asynccontextmanager
async def reader_of(settings: Settings, **more: Any) -> AsyncIterator[Callable[..., Awaitable[ArchivedEvents]]]:
    """Reads the archive; `more` are settings."""
    engine, reader = create_engine(settings), ArchiveReader(settings.model_copy(update=more))

    async def read(
        query: EventQuery, down_to: Cursor | None = None, seconds: float = 20, log: Log = FIRST_LOG
    ) -> ArchivedEvents:
        return await reader.read(engine, log, query, down_to, seconds)

    try:
        yield read
    finally:
        await reader.close()
        await engine.dispose()


def keys(found: ArchivedEvents) -> list[Cursor]:
    assert [event["event_id"] for _, event in found.events] == [str(key.event_id) for key, _ in found.events]
    return [key for key, _ in found.events]


async def archived(database_url: str, connection: Connection, directory: Path, rounds: int = 2) -> Settings:
    """Two months that only the archive has."""
    await fill(connection, rounds)
    settings = settings_of(database_url, directory)
    await run.run(settings, NOW, ALL)
    await purge_before(settings, BETWEEN)
    return settings


async def test_damaged(database_url: str, connection: Connection, tmp_path: Path) -> None:
    """What somebody has changed in the archive is shown as if the log had it, or a file that is gone as if nothing had been in it."""
    settings = await archived(database_url, connection, tmp_path)
    folder, copy = folder_of((await parts_of(settings))[1]), tmp_path / "copy"
    shutil.copytree(folder, copy)
    for damage, error in DAMAGES:
        damage(folder)
        async with reader_of(settings) as read:
            with pytest.raises(error):
                await read(EventQuery())
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(copy, folder)
    break_row(folder)
    async with reader_of(settings) as read:
        found = [event for _, event in (await read(EventQuery(limit=1000))).events]
        assert len(found) == 120
        assert [one["actor_id"] for one in found if one.get("sealed") is False] == ["y"]
        assert len((await read(EventQuery(limit=1000, sealed=True))).events) == 119
        assert (await read(EventQuery(limit=1000, sealed=False))).events == []
        walked, cursor = 0, None
        while True:
            page = await read(EventQuery(limit=1, sealed=True, cursor=cursor))
            walked += len(page.events)
            if page.end is None:
                break
            cursor = page.end
        assert walked == 119
    async with reader_of(settings, archive_url=f"file://{tmp_path}/other") as read:
        with pytest.raises(ArchiveAway, match="not in the archive of these settings"):
            await read(EventQuery())


async def test_time_and_size(
    database_url: str, connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search has no end, or what does not fit into its time or its answer is lost; or whoever does not wait gets others' answers."""
    settings = await archived(database_url, connection, tmp_path)
    async with reader_of(settings) as read:
        with pytest.raises(DatabaseBusy, match="Narrow the query"):
            await read(EventQuery(), seconds=-1)
        every = keys(await read(EventQuery(limit=1000)))
        monkeypatch.setattr(reading, "PAGE_BYTES_MAX", 200)
        found, cursor = list[Any](), None
        while True:
            page = await read(EventQuery(limit=1000, cursor=cursor))
            assert 1 <= len(page.events) < 10
            found += keys(page)
            if page.end is None:
                break
            assert page.end == page.events[-1][0]
            cursor = page.end
        assert found == every
        monkeypatch.undo()
        for seconds in (0.0, 0.001, 0.003, 0.01, 0.1):  # cancelled while the process starts, searches or answers
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await read(EventQuery(limit=7))
            assert keys(await read(EventQuery(limit=1000))) == every
        many = await asyncio.gather(*(read(EventQuery(limit=number)) for number in range(1, 9)))
        assert [len(one.events) for one in many] == list(range(2, 10))
        low, high = every[50], every[20]
        assert keys(await read(EventQuery(limit=1000, cursor=high), down_to=low)) == every[21:51]
        for odd, count in (
            ("infinity", 120),
            ("-infinity", 0),
            ("20000-01-01T00:00:00", 120),
            ("0044-03-15T00:00:00 BC", 0),
        ):
            assert len((await read(EventQuery(limit=1000, cursor=Cursor(odd, UUID(int=1))))).events) == count
            assert len((await read(EventQuery(limit=1000), down_to=Cursor(odd, UUID(int=1)))).events) == 120 - count


async def test_process_ends(
    database_url: str, connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that was killed is asked for ever, or one that nobody asks stays."""
    settings = await archived(database_url, connection, tmp_path)
    engine, reader = create_engine(settings), ArchiveReader(settings)
    try:
        for _ in range(2):
            assert len((await reader.read(engine, FIRST_LOG, EventQuery(limit=1000), None, 20)).events) == 120
            process = reader._process
            assert process is not None
            process.kill()
            with suppress(ArchiveAway):
                await reader.read(engine, FIRST_LOG, EventQuery(), None, 20)
        monkeypatch.setattr(reading, "_IDLE_SECONDS", 0.05)
        await reader.read(engine, FIRST_LOG, EventQuery(), None, 20)
        process = reader._process
        assert process is not None
        async with asyncio.timeout(10):
            await process.wait()
        assert len((await reader.read(engine, FIRST_LOG, EventQuery(limit=9), None, 20)).events) == 10
    finally:
        await reader.close()
        await engine.dispose()


async def test_replaced_meanwhile(database_url: str, connection: Connection, tmp_path: Path) -> None:
    """A search fails whose part a run of the archive replaces at this moment."""
    await fill(connection, rounds=2)
    [event_id] = await seal(connection, "rr-secret", hostile(1))
    await publish(connection)
    settings = settings_of(database_url, tmp_path)
    await run.run(settings, NOW, ALL)
    await erase(settings, Catalog(), Erasure("asked for", "tests", event_ids=[event_id]), dry_run=False)
    await purge_before(settings, BETWEEN)
    engine, reader = create_engine(settings), ArchiveReader(settings)
    asked = reader._ask

    async def ask(question: Question) -> Found:
        reader._ask = asked  # type: ignore[method-assign]
        await run.run(settings, NOW, ALL)
        return await reader._ask(question)

    reader._ask = ask  # type: ignore[method-assign]
    try:
        found = await reader.read(engine, FIRST_LOG, EventQuery(limit=1000), None, 20)
    finally:
        await reader.close()
        await engine.dispose()
    assert len(found.events) == 121
    assert {event["archive_id"] for _, event in found.events} == {
        str(part.archive_id) for part in await parts_of(settings)
    }


async def test_earlier_logs(database_url: str, connection: Connection, tmp_path: Path) -> None:
    """After a log was continued, archived events of the closed one are not found, or count as changed."""
    await continued(connection, database_url)
    settings = settings_of_continued(database_url, archive_url=f"file://{tmp_path}/archive")
    now = NOW + timedelta(days=150)
    done = await run.run(settings, now, ALL)
    assert [part.log_id for part in done.parts] == [0, 1]
    every = await connection.fetch("SELECT event_id, log_id, log_index FROM audit_events")
    wanted = {
        (str(row["event_id"]), str(part.archive_id))
        for row in every
        for part in done.parts
        if row["log_id"] == part.log_id and row["log_index"] in part.position_set()
    }
    terms = {"retention_floor_days": 30, "retention_ceiling_days": 30}
    await purge.run(settings.model_copy(update=terms), now)
    left = {str(row["event_id"]) for row in await connection.fetch("SELECT event_id FROM audit_events")}
    async with reader_of(settings) as read:
        found = await read(EventQuery(limit=1000, include="all"), log=NEXT)
    assert {(event["event_id"], event["archive_id"]) for _, event in found.events} == {
        one for one in wanted if one[0] not in left
    }
    assert len(found.events) >= 5
    assert not [event for _, event in found.events if event.get("sealed") is False]


def test_without_the_extra() -> None:
    """The service needs the packages of the archive to start."""
    code = "import sys; sys.modules['pyarrow'] = None; sys.modules['pyiceberg'] = None; import app.main"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)


def test_starts_quickly() -> None:
    """The process that is started for a question imports what it has no use for: that takes longer than its answer."""
    slow = (
        "{'pydantic', 'cryptography', 'asyncpg', 'sqlalchemy', 'yaml', 'pyiceberg', 'pandas', 'numpy', 'app.settings'}"
    )
    code = f"import sys, app.archive.reader; assert not {slow} & sys.modules.keys(), {slow} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)


async def test_search(database_url: str, connection: Connection, tmp_path: Path, service: Start) -> None:
    """`datastorage search --archive` does not find what the archive has, or does not say that it comes from there."""
    settings = await archived(database_url, connection, tmp_path)
    with client_of(service, settings, tmp_path) as client:
        for more, count in (["--archive"], 30), ([], 0):
            asked = ["search", "--url", str(client.base_url), "--all", "--correlation", f"rr-{OLD:%m}-0", *more]
            command = [sys.executable, "-m", "app", *asked]
            done = await asyncio.to_thread(
                subprocess.run, command, check=True, cwd=ROOT, capture_output=True, text=True
            )
            assert done.stdout.count("(archived)") == count
