"""Exports of format=json have what the archive alone has, on the pages on which it was while Postgres had it."""

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import httpx
import orjson
import pytest

from app.archive import in_time, run
from app.archive.export_process import asked
from app.archive.exporting import ArchiveOfExport
from app.archive.finding import archive_search
from app.archive.question import ALL_READ, Question
from app.archive.reader import Refused, Search
from app.archive.reading import ArchiveAway, ArchiveReader
from app.archive.session import Selection
from app.archive.storage import archive_storage
from app.db import create_engine
from app.events.catalog import Catalog
from app.export.certificate import ExportKeyPair
from app.export.check import check_page
from app.export.select import ExportQuery
from app.export.signed_page import SignedPage
from app.query.filter import OFFSET_MAX
from app.retention import removal
from app.retention.erase import Erasure, erase
from app.verify.snapshot import snapshot
from tests.archive.archived import ALL, NOW, OLD, OLDER, Connection, fill, folder_of, parts_of, settings_of
from tests.archive.test_export import EXPORT, nothing
from tests.archive.test_reading import (
    BETWEEN,
    HOSTILE,
    Start,
    break_row,
    client_of,
    fill_with_all,
    hostile,
    purge_before,
)
from tests.logs import FIRST_LOG
from tests.postgres.test_continue import NEXT, continued
from tests.postgres.test_continue import settings_of as settings_of_continued
from tests.sealed import seal

pytestmark = pytest.mark.damaged  # the verification at the end of every test does not know purges


def page_of(client: httpx.Client, question: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A page whose signature is right."""
    answer = client.get(EXPORT, params={"archive": "include"} | question | more)
    assert answer.status_code == 200, answer.text
    certificate = client.get(f"{EXPORT}/certificate").text
    assert not check_page(answer.content, certificate).problems
    page: dict[str, Any] = orjson.loads(answer.content)
    return page


def events_of(page: dict[str, Any]) -> list[dict[str, Any]]:
    """Without the mark of the archive."""
    return [{name: value for name, value in event.items() if name != "archive_id"} for event in page["events"]]


def pages_of(client: httpx.Client, question: dict[str, Any], limit: int) -> Iterator[list[dict[str, Any]]]:
    """All pages."""
    offset = 0
    while events := events_of(page_of(client, question, limit=limit, offset=offset)):
        yield events
        offset += limit


ASKED: list[dict[str, Any]] = [
    {},
    {"correlation_id": "rr-hostile"},
    {"event_type_in": ["gateway.*", "x"], "include": "kubernetes"},
    {"q": HOSTILE, "since": "300d"},
    {"until": (OLDER - timedelta(days=40)).isoformat()},
]


async def test_as_before(database_url: str, connection: Connection, tmp_path: Path, service: Start) -> None:
    """An event of the archive is missing on a page, is on it twice, on another one, elsewhere on it or otherwise than before, or counts as changed."""
    await fill_with_all(connection)
    settings = settings_of(database_url, tmp_path)
    with client_of(service, settings, tmp_path) as client:
        await run.run(settings, NOW, ALL)
        before = [events_of(page_of(client, question)) for question in ASKED]
        pages = list(pages_of(client, {}, 150))
        redacted = events_of(page_of(client, {}, redact_pii="true"))
        assert len(before[0]) > 250
        for cutoff in (OLDER + timedelta(seconds=61), BETWEEN):
            await purge_before(settings, cutoff)
            for question, known in zip(ASKED, before, strict=True):
                found = page_of(client, question)
                assert events_of(found) == known, question
                assert found["hash_chain_verification"]["broken_chain_events"] == 0
                assert "left_out" not in found["export_metadata"]
            assert list(pages_of(client, {}, 150)) == pages
            assert page_of(client, {}, offset=OFFSET_MAX)["events"] == []
        assert events_of(page_of(client, {}, redact_pii="true")) == redacted
        parts = {str(part.archive_id) for part in await parts_of(settings)}
        marked = page_of(client, {})["events"]
        assert {event.get("archive_id") for event in marked} == parts | {None}
        for event in marked:
            assert ("archive_id" in event) == (event["event_timestamp"] < BETWEEN.isoformat())
        by_itself = page_of(client, {"until": OLD.isoformat(), "archive": ""})
        assert events_of(by_itself) == [
            one for one in before[0] if one["event_timestamp"] <= f"{OLD:%Y-%m-%dT%H:%M:%SZ}"
        ]


async def test_about_to_be_removed(
    database_url: str, connection: Connection, tmp_path: Path, service: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event whose purge is recorded while its row is still there is on a page twice, or pushes others from it."""
    await fill(connection, rounds=2)
    settings = settings_of(database_url, tmp_path)
    with client_of(service, settings, tmp_path) as client:
        await run.run(settings, NOW, ALL)
        before = list(pages_of(client, {}, 100))
        assert sum(map(len, before)) == 180

        async def is_killed(*_: object) -> bool:
            raise RuntimeError

        with monkeypatch.context() as patched:
            patched.setattr(removal, "_detach_and_drop", is_killed)
            with pytest.raises(RuntimeError):
                await purge_before(settings, OLDER.replace(day=28) + timedelta(days=4))
        assert not any("archive_id" in event for event in page_of(client, {})["events"])
        assert list(pages_of(client, {}, 100)) == before
        chosen = before[0][3]
        change = "UPDATE audit_events SET event_hash = $2 WHERE event_id = $1"
        await connection.execute(change, chosen["event_id"], "x")
        changed = page_of(client, {}, limit=100)
        await connection.execute(change, chosen["event_id"], chosen["event_hash"])
        both = [event for event in changed["events"] if event["event_id"] == chosen["event_id"]]
        assert [("archive_id" in event, event["hash_chain_valid"]) for event in both].count((False, False)) == 1
        assert len(both) == 2
        await run.run(settings, NOW, Selection(remove=True))
        assert list(pages_of(client, {}, 100)) == before


async def test_damaged(database_url: str, connection: Connection, tmp_path: Path, service: Start) -> None:
    """A page vouches for an event that is changed in the archive, or answers as if nothing were missing where files are."""
    await fill(connection, rounds=2)
    settings = settings_of(database_url, tmp_path)
    with client_of(service, settings, tmp_path) as client:
        await run.run(settings, NOW, ALL)
        await purge_before(settings, BETWEEN)
        known = page_of(client, {})
        folder = folder_of((await parts_of(settings))[0])
        break_row(folder)
        found = page_of(client, {})
        [changed] = [event for event in found["events"] if not event["hash_chain_valid"]]
        assert (changed["sealed"], "archive_id" in changed) == (False, True)
        assert found["hash_chain_verification"]["tampered_event_ids"] == [changed["event_id"]]
        others = [event for event in known["events"] if event["event_id"] != changed["event_id"]]
        assert [event for event in found["events"] if event != changed] == others
        (folder / "events-0.parquet").unlink()
        for _ in range(2):
            assert client.get(EXPORT, params={"archive": "include"}).status_code == 503
        assert client.get(EXPORT, params={"archive": "exclude"}).status_code == 200


async def test_erased(database_url: str, connection: Connection, tmp_path: Path, service: Start) -> None:
    """What was erased in the archive is on a page as long as files have it, or what an erasure has left counts as changed."""
    await fill(connection, rounds=1)
    [event_id] = await seal(connection, "rr-secret", hostile(1, actor_id="secret-ada"))
    settings = settings_of(database_url, tmp_path)
    with client_of(service, settings, tmp_path) as client:
        await run.run(settings, NOW, ALL)
        await purge_before(settings, BETWEEN)
        erasure = Erasure("asked for", "tests", event_ids=[event_id])
        await erase(settings, Catalog(), erasure, dry_run=False, search_archive=archive_search(settings))
        for rewrite in (False, True):
            if rewrite:
                assert (await run.run(settings, NOW, ALL)).rewritten
            [event] = page_of(client, {"correlation_id": "rr-secret"})["events"]
            assert (event["event_data"], event["hash_chain_valid"]) == ({"event_type": "x"}, True), rewrite


async def test_oldest(
    database_url: str, connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of more events than the process has in memory it forgets others than the newest ones, or goes beyond what it may have."""
    await fill_with_all(connection)
    settings = settings_of(database_url, tmp_path)
    await run.run(settings, NOW, ALL)
    await purge_before(settings, BETWEEN)
    engine = create_engine(settings)
    reader = ArchiveReader(settings)
    try:
        parts = await reader.parts(engine, FIRST_LOG)
    finally:
        await engine.dispose()

    def oldest(count: int) -> list[tuple[Any, int]]:
        question = Question((), {}, "", None, ALL_READ, count, parts, 60.0, 1, is_whole=True)
        found = in_time.find_oldest(Search(archive_storage(reader.place)), question).oldest()
        return [(found.key(number), found.places[number]) for number in range(len(found.times))]

    every = oldest(1_000)
    assert every == sorted(every)
    assert len(every) > 200
    monkeypatch.setattr(in_time, "_MORE", 0)
    for count in (1, 50, 1_000):
        assert oldest(count) == every[:count]
    monkeypatch.setattr(in_time, "EVENTS_MAX", 100)
    assert oldest(100) == every[:100]
    with pytest.raises(Refused, match="more than 100 events"):
        oldest(101)


class Signer:
    """Signs what nobody verifies."""

    fingerprint = "00"

    def sign(self, digest: bytes) -> bytes:
        return digest


async def test_earlier_logs(database_url: str, connection: Connection, tmp_path: Path) -> None:
    """After a log was continued a page lacks archived events of the closed one, has others in their place, or calls them changed."""
    await continued(connection, database_url)
    settings = settings_of_continued(database_url, archive_url=f"file://{tmp_path}/archive")
    engine = create_engine(settings)

    async def pages(limit: int) -> list[dict[str, Any]]:
        found, offset = list[dict[str, Any]](), 0
        while True:
            query = ExportQuery(format="json", archive="include", include="all", limit=limit, offset=offset)
            archive = ArchiveOfExport(ArchiveReader(settings), engine, NEXT, query, is_read=True)
            page = SignedPage(query, "ada", NEXT, cast(ExportKeyPair, Signer()), archive=archive)
            async with snapshot(engine) as of_export:
                content = b"".join([piece async for piece in page.stream(of_export, nothing)])
            if not (events := orjson.loads(content)["events"]):
                return found
            assert not page.tampered
            found += [event for event in events if not event["event_type"].startswith("datastorage.")]
            offset += limit

    try:
        before = await pages(10_000)
        done = await run.run(settings, NOW + timedelta(days=150), Selection(remove=True))
        assert [part.log_id for part in done.parts] == [0, 1]
        after = await pages(10_000)
        parts = {str(part.archive_id) for part in done.parts}
        assert {event["archive_id"] for event in after if "archive_id" in event} == parts
        assert events_of({"events": after}) == before
        known = {event["event_id"]: event for event in before}
        assert {event["event_id"]: event for event in events_of({"events": await pages(7)})} == known
    finally:
        await engine.dispose()


async def test_chain_of_two_logs(database_url: str, connection: Connection) -> None:
    """After a log was continued its first event of a chain is called changed once those of the closed log are purged."""
    await continued(connection, database_url)
    settings, engine = settings_of_continued(database_url), create_engine(settings_of_continued(database_url))
    first = "SELECT event_timestamp FROM audit_events WHERE log_id = 1 AND correlation_id = 'rr-1'"
    await purge_before(settings, await connection.fetchval(first))
    assert await connection.fetchval("SELECT min(log_id) FROM audit_events") == 1
    query = ExportQuery(format="json", correlation_id="rr-1")
    page = SignedPage(query, "ada", NEXT, cast(ExportKeyPair, Signer()))
    try:
        async with snapshot(engine) as of_export:
            content = b"".join([piece async for piece in page.stream(of_export, nothing)])
    finally:
        await engine.dispose()
    assert [event["hash_chain_valid"] for event in orjson.loads(content)["events"]] == [True]


async def test_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the limit of processes an export says that Postgres cannot be read."""

    async def fails(*_: object, **__: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", fails)
    question = Question((), {}, "", None, ALL_READ, 1, (), 1.0, 1)
    with pytest.raises(ArchiveAway, match="cannot be started"):
        async with asked(ArchiveReader(settings_of("postgresql://", tmp_path)), "app.archive.in_time", question):
            pass
