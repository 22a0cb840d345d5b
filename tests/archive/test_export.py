"""Exports have what the archive alone has, as they had it while Postgres did; or they say what they have not."""

import asyncio
import io
import shutil
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from app.archive import export_process, exporting, run
from app.archive.exporting import ArchiveOfExport
from app.archive.finding import archive_search
from app.archive.reading import ArchiveAway, ArchiveDamaged, ArchiveReader, start_reader
from app.archive.session import Selection
from app.db import create_engine
from app.errors import AuditError
from app.events.catalog import Catalog
from app.events.log import Log
from app.export import parts
from app.export.check import check, result_lines
from app.export.manifest import LeftOut
from app.export.parts import Export, ResumeToken
from app.export.result import CheckResult
from app.export.select import ExportQuery
from app.retention import removal
from app.retention.erase import Erasure, erase
from app.settings import Settings
from app.tlog.keys import SigningKey
from app.verify.snapshot import snapshot
from tests.archive.archived import (
    ALL,
    DAYS,
    KEY,
    NOW,
    OLD,
    OLDER,
    PUBLIC,
    Connection,
    fill,
    folder_of,
    parts_of,
    settings_of,
)
from tests.archive.test_reading import (
    BETWEEN,
    DAMAGES,
    QUESTIONS,
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
EXPORT = "/api/v1/audit/export"
SIGNING = SigningKey(KEY, PUBLIC)


def export_of(client: httpx.Client, question: dict[str, Any], form: str = "ndjson", **more: str) -> bytes:
    answer = client.get(EXPORT, params=question | {"format": form} | more)
    assert answer.status_code == 200, answer.text
    return answer.content


def records(content: bytes) -> list[bytes]:
    """What an export has of each event, but for what the service has recorded about itself."""
    own = (b"datastorage.retention.", b"datastorage.export.", b"datastorage.archive.", b'{"payloadType', b"#manifest")
    return [line for line in content.splitlines() if not any(one in line for one in own)]


def time_of(record: bytes) -> datetime:
    return datetime.fromisoformat(orjson.loads(record)["event_timestamp"])


def verdict(content: bytes) -> CheckResult:
    return check([io.BytesIO(content)], [PUBLIC])


async def test_as_before(database_url: str, connection: Connection, tmp_path: Path, service: Start) -> None:
    """An event of the archive is missing in an export, is in it twice, elsewhere, or otherwise than before, or a file with it is not accepted."""
    await fill_with_all(connection)
    settings = settings_of(database_url, tmp_path)
    with client_of(service, settings, tmp_path) as client:
        await run.run(settings, NOW, ALL)
        before = [records(export_of(client, question, archive="include")) for question in QUESTIONS]
        csv = records(export_of(client, {}, "csv"))
        redacted = records(export_of(client, {}, redact_pii="true"))
        for cutoff in (OLDER + timedelta(seconds=61), BETWEEN):
            await purge_before(settings, cutoff)
            asked = QUESTIONS if cutoff == BETWEEN else QUESTIONS[:5]
            for question, known in zip(asked, before, strict=False):
                found = export_of(client, question, archive="include")
                assert records(found) == known, question
                result = verdict(found)
                assert not result.problems, result.problems
            assert records(export_of(client, {}, "csv", archive="include")) == csv
            assert records(export_of(client, {}, redact_pii="true", archive="include")) == redacted
        manifests = verdict(export_of(client, {}, archive="include")).parts
        by_id = {part.archive_id: part for part in await parts_of(settings)}
        assert {one.archive_id for one in manifests[0].archived} == by_id.keys()
        for one in manifests[0].archived:
            assert one.manifest_sha256 == by_id[one.archive_id].manifest_sha256
            assert one.first_position in by_id[one.archive_id].positions
            assert one.last_position in by_id[one.archive_id].positions
        archived = sum(one.events for one in manifests[0].archived)
        assert manifests[0].events - archived == sum(
            f'"event_date":"{NOW:%Y-%m}'.encode() in line for line in before[0]
        )


async def test_left_out(database_url: str, connection: Connection, tmp_path: Path, service: Start) -> None:
    """An export lacks events of the archive, and neither its answer, its manifest nor its verifier says so; or says so of others."""
    await fill(connection, rounds=2)
    settings = settings_of(database_url, tmp_path)
    with client_of(service, settings, tmp_path) as client:
        await run.run(settings, NOW, ALL)
        whole = client.get(EXPORT, params={"format": "ndjson"})
        assert "datastorage-left-out" not in whole.headers
        assert "left_out" not in client.get(EXPORT).json()["export_metadata"]
        await purge_before(settings, BETWEEN)
        months = [f"{OLDER:%Y-%m}", f"{OLD:%Y-%m}"]
        for more in ({}, {"archive": "exclude"}, {"archive": "exclude", "until": OLD.isoformat()}):
            answer = client.get(EXPORT, params={"format": "ndjson"} | more)
            assert answer.headers["datastorage-left-out"] == f"120; months={months[0]},{months[1]}"
            result = verdict(answer.content)
            assert not result.problems
            left_out = result.parts[0].left_out
            assert left_out is not None
            assert (left_out.events, list(left_out.months)) == (120, months)
            assert any(line.startswith("LEFT OUT") for line in result_lines(result))
        page = client.get(EXPORT)
        assert page.json()["export_metadata"]["left_out"] == {"events": 120, "months": months}
        assert page.headers["datastorage-left-out"].startswith("120; ")
        since_old = client.get(EXPORT, params={"format": "csv", "since": OLD.replace(day=1, hour=0).isoformat()})
        assert since_old.headers["datastorage-left-out"] == f"60; months={months[1]}"
        for question in ({"since": "2d"}, {"sealed": "false"}, {"archive": "include"}, {"until": OLD.isoformat()}):
            answer = client.get(EXPORT, params={"format": "ndjson"} | question)
            assert "datastorage-left-out" not in answer.headers
            assert not any(line.startswith("LEFT OUT") for line in result_lines(verdict(answer.content)))
        by_itself = export_of(client, {"until": OLD.isoformat()})
        assert records(by_itself) == [one for one in records(whole.content) if time_of(one) <= OLD]
        assert client.get(EXPORT, params={"format": "ndjson", "archive": "x"}).status_code == 400
    plain = service(archive_url=None)
    with httpx.Client(base_url=plain.url) as client:
        answer = client.get(EXPORT, params={"format": "ndjson", "archive": "include"})
        assert (answer.status_code, "DATASTORAGE_ARCHIVE_URL" in answer.text) == (400, True)
        answer = client.get(EXPORT, params={"format": "ndjson", "until": OLD.isoformat()})
        assert answer.headers["datastorage-left-out"].startswith("120; ")


async def test_command(database_url: str, connection: Connection, tmp_path: Path, service: Start) -> None:
    """`datastorage export` of a month lacks what is in the archive, has more than the month, or says of what it has something else."""
    await fill(connection, rounds=2)
    settings = settings_of(database_url, tmp_path)
    with client_of(service, settings, tmp_path) as client:
        await run.run(settings, NOW, ALL)
        await purge_before(settings, BETWEEN)
        month = {"since": f"{OLD:%Y-%m-01}", "until": f"{OLD + timedelta(days=31):%Y-%m-01}"}
        options = [f"--{name}={value}" for name, value in month.items()]

        async def export(*more: str) -> tuple[bytes, str, str]:
            command = [
                sys.executable,
                "-m",
                "app",
                "export",
                "-o",
                str(tmp_path / "out"),
                "--url",
                str(client.base_url),
            ]
            process = await asyncio.create_subprocess_exec(*command, *more, stdout=PIPE, stderr=PIPE)
            out, err = await process.communicate()
            assert process.returncode == 0, err
            return (tmp_path / "out").read_bytes(), out.decode(), err.decode()

        for form in ("ndjson", "csv"):
            content, out, err = await export(*options, f"--format={form}")
            assert records(content) == records(export_of(client, month, form))
            assert (": 60 event(s) of " in out, "60 of them from the archive" in out, err) == (True, True, "")
            assert not verdict(content).problems
        content, out, _ = await export(f"--since={month['since']}", "--archive")
        assert (len(records(content)), "60 of them from the archive" in out) == (120, True)
        content, out, err = await export(*options, "--no-archive")
        assert (": 0 event(s)" in out, "left out: 60 event(s)" in err) == (True, True)
        assert verdict(content).parts[0].left_out is not None
        assert not [one for one in tmp_path.iterdir() if one.name.startswith(".out")]


async def nothing() -> None:
    pass


@asynccontextmanager
async def exporter(
    settings: Settings, log: Log = FIRST_LOG, **query: Any
) -> AsyncIterator[Callable[..., AsyncIterator[bytes]]]:
    """Exports with the archive, piece by piece."""
    engine = create_engine(settings)

    async def export(token: ResumeToken | None = None) -> AsyncIterator[bytes]:
        asked = ExportQuery(format="ndjson", archive="include", **query)
        archive = ArchiveOfExport(ArchiveReader(settings), engine, log, asked, is_read=True)
        async with snapshot(engine) as connection:
            async for piece in Export(asked, "ada", log, SIGNING, token, archive).stream(connection, nothing):
                yield piece

    try:
        yield export
    finally:
        await engine.dispose()


async def test_cut_and_resumed(
    database_url: str, connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is fetched to resume a cut export lacks events of the archive, or windows of a part lose or double one."""
    await fill(connection, rounds=2)
    settings = settings_of(database_url, tmp_path)
    async with exporter(settings) as export:
        before = records(b"".join([piece async for piece in export()]))
        await run.run(settings, NOW, ALL)
        await purge_before(settings, BETWEEN)
        monkeypatch.setattr(parts, "PART_BYTES", 20_000)
        for window in (1, 5_000, 20_000, exporting.WINDOW_BYTES):
            monkeypatch.setattr(exporting, "WINDOW_BYTES", window)
            whole = b"".join([piece async for piece in export()])
            assert records(whole) == before
        result = verdict(whole)
        assert (not result.problems, len(result.parts) > 3) == (True, True)
        for part in result.parts[:-1]:
            assert part.next is not None
            rest = b"".join([piece async for piece in export(ResumeToken.parse(part.next))])
            assert records(rest) == records(whole)[sum(one.events for one in result.parts[: part.part]) :]


async def test_removed_meanwhile(
    database_url: str, connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event that is removed from Postgres while the export is under way, or whose purge is recorded already, is in it twice, or not at all."""
    await fill(connection, rounds=4)
    settings = settings_of(database_url, tmp_path)
    await run.run(settings, NOW, ALL)
    removals: list[Callable[[], Awaitable[Any]]] = [
        lambda: purge_before(settings, OLDER + timedelta(seconds=61)),
        lambda: run.run(settings, NOW, Selection(month=OLDER.date().replace(day=1), remove=True)),
        lambda: run.run(settings, NOW, Selection(remove=True)),
    ]
    async with exporter(settings) as export:
        before = records(b"".join([piece async for piece in export()]))
        assert len(before) == 360

        async def is_killed(*_: object) -> bool:
            raise RuntimeError

        with monkeypatch.context() as patched:  # as for the moment in which a month waits to be detached
            patched.setattr(removal, "_detach_and_drop", is_killed)
            with pytest.raises(RuntimeError):
                await purge_before(settings, OLDER.replace(day=28) + timedelta(days=4))
        assert records(b"".join([piece async for piece in export()])) == before
        for remove in removals:
            exporting_on = export()
            pieces = [await anext(exporting_on)]
            await remove()
            pieces += [piece async for piece in exporting_on]
            for content in (b"".join(pieces), b"".join([piece async for piece in export()])):
                assert records(content) == before
                assert not verdict(content).problems
        assert await connection.fetchval("SELECT count(*) FROM audit_events WHERE event_date < $1", NOW.date()) == 0


async def test_damaged(database_url: str, connection: Connection, tmp_path: Path) -> None:
    """An export ends as if it were whole although what it is about is changed or missing in the archive."""
    await fill(connection, rounds=2)
    settings = settings_of(database_url, tmp_path)
    await run.run(settings, NOW, ALL)
    await purge_before(settings, BETWEEN)
    folder, copy = folder_of((await parts_of(settings))[1]), tmp_path / "copy"
    shutil.copytree(folder, copy)
    damages: list[tuple[Callable[[Path], Any], type[AuditError]]] = [*DAMAGES, (break_row, ArchiveDamaged)]
    for damage, error in damages:
        damage(folder)
        async with exporter(settings) as export:
            with pytest.raises(error):
                [piece async for piece in export()]
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(copy, folder)


async def test_replaced_or_expired_meanwhile(
    database_url: str, connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An export fails whose part is written again meanwhile, or lacks what expires meanwhile without a word."""
    await fill(connection, rounds=2)
    [event_id] = await seal(connection, "rr-secret", hostile(1, actor_id="secret-ada"))
    await fill(connection, rounds=1)
    settings = settings_of(database_url, tmp_path, **DAYS)
    await run.run(settings, NOW, ALL)
    await purge_before(settings, BETWEEN)
    begin = ArchiveOfExport.begin

    async def export_after(action: Callable[[], Awaitable[Any]]) -> bytes:
        async def begun(self: ArchiveOfExport, connection: Connection, sizes: Mapping[int, int]) -> LeftOut | None:
            found = await begin(self, connection, sizes)
            await action()
            return found

        monkeypatch.setattr(ArchiveOfExport, "begin", begun)
        async with exporter(settings) as export:
            return b"".join([piece async for piece in export()])

    async def rewrite() -> None:
        erasure = Erasure("asked for", "tests", event_ids=[event_id])
        await erase(settings, Catalog(), erasure, dry_run=False, search_archive=archive_search(settings))
        assert (await run.run(settings, NOW, ALL)).rewritten

    content = await export_after(rewrite)
    assert b"secret-ada" not in content
    assert len(records(content)) == 271
    with pytest.raises(ArchiveAway, match="expired"):
        await export_after(lambda: run.run(settings, NOW, Selection(expire=True)))


async def test_process_that_ends(
    database_url: str, connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An export ends as if it were whole whose process was killed in the middle."""
    text = {"event_data": orjson.dumps({"text": "x" * 20_000}).decode()}
    await seal(connection, "rr-large", *(hostile(number) | text for number in range(300)))
    await fill(connection, rounds=1)
    settings = settings_of(database_url, tmp_path)
    await run.run(settings, NOW, ALL)
    await purge_before(settings, BETWEEN)
    started = list[asyncio.subprocess.Process]()

    async def start(module: str) -> asyncio.subprocess.Process:
        started.append(await start_reader(module))
        return started[0]

    monkeypatch.setattr(export_process, "start_reader", start)
    async with exporter(settings) as export:
        pieces = export()
        received = [await anext(pieces)]
        started[0].kill()
        with pytest.raises(ArchiveAway):
            received += [piece async for piece in pieces]
    assert "incomplete" in verdict(b"".join(received)).problems[-1]
    assert started[0].returncode is not None


async def test_holds(database_url: str, connection: Connection, tmp_path: Path, service: Start) -> None:
    """A hold on what only the archive has is not in an export."""
    await fill(connection, rounds=1)
    settings = settings_of(database_url, tmp_path)
    await run.run(settings, NOW, ALL)
    await purge_before(settings, BETWEEN)
    with client_of(service, settings, tmp_path) as client:
        hold = {"correlation_id": f"rr-{OLD:%m}-0", "reason": "a case"}
        assert client.post("/api/v1/audit/legal-hold", json=hold, headers={"X-User-ID": "ada"}).status_code < 300
        found = [orjson.loads(one) for one in records(export_of(client, {}, archive="include"))]
        held = {one["correlation_id"] for one in found if one["legal_hold"]}
        assert held == {f"rr-{OLD:%m}-0"}
        assert {one["legal_hold_reason"] for one in found} == {None, "a case"}


async def test_earlier_logs(database_url: str, connection: Connection, tmp_path: Path) -> None:
    """After a log was continued, archived events of the closed one are not exported, or not in their order."""
    await continued(connection, database_url)
    settings = settings_of_continued(database_url, archive_url=f"file://{tmp_path}/archive")
    now = NOW + timedelta(days=150)
    async with exporter(settings, NEXT, include="all") as export:
        before = records(b"".join([piece async for piece in export()]))
        done = await run.run(settings, now, Selection(remove=True))
        assert [part.log_id for part in done.parts] == [0, 1]
        after = b"".join([piece async for piece in export()])
    assert records(after) == before
    result = verdict(after)
    assert result.counts["recomputed"] == result.counts["sealed"]
    assert [one.log for one in result.parts[0].archived] == [FIRST_LOG.name, NEXT.name]
