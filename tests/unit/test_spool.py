"""The spool when its disk fails, and when it works again."""

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import orjson
import pytest
from pydantic import SecretStr

from app.errors import Fatal
from app.events.catalog import Catalog
from app.ingest.accept import Acceptance, accept, check_item, single_id
from app.ingest.spool import Spool, SpoolFailed, SpoolFull
from app.ingest.spool_codec import decode, encode
from app.ingest.spool_file import FILE_NAME
from app.ingest.store import Store
from app.ingest.submission import Submission, conflict, new_submission
from app.ingest.writer import Writer
from app.settings import Settings
from tests.events import make_event
from tests.logs import FIRST_LOG

LOG = "test.example/datastorage"
CATALOG = Catalog()


@pytest.fixture
async def spool(tmp_path: Path) -> AsyncIterator[Spool]:
    one = Spool(tmp_path / "spool", 1 << 30)
    yield one
    one.close()


async def submission(**members: Any) -> Submission:
    return await submission_of([make_event(**members)])


async def submission_of(events: list[dict[str, Any]], *, is_lenient: bool = False) -> Submission:
    drafts = [check_item(CATALOG, one, "", plain=False, depth=4) for one in events]
    acceptance = Acceptance(datetime.now(UTC), {}, LOG)
    return await new_submission(drafts, [single_id(one) for one in drafts], acceptance, is_lenient=is_lenient)


async def fail_once(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One append that meets an I/O error after it has written its row."""
    transact = spool._file._transact

    def failing(work: Any) -> Any:
        transact(work)
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(spool._file, "_transact", failing)
    refused = await submission()
    await spool.append([refused])
    assert isinstance(refused.outcome.exception(), SpoolFailed)
    monkeypatch.setattr(spool._file, "_transact", transact)


async def test_mended_while_postgres_is_away(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that failed once costs every event until Postgres is back, or what it refused is replayed."""
    settings = Settings(database_url=SecretStr("postgresql://127.0.0.1:1/nothing"))
    writer = Writer(Store(settings, FIRST_LOG), settings, spool)
    earlier = await submission()
    await spool.append([earlier])
    await fail_once(spool, monkeypatch)
    early = await submission()
    await spool.append([early])
    assert isinstance(early.outcome.exception(), SpoolFailed)
    await writer.on_presence("it is away")
    later = await submission()
    await spool.append([later])
    assert later.outcome.result()
    waiting = await spool.next(100, 1 << 20, LOG)
    assert [one.events[0].id for one in waiting] == [earlier.events[0].id, later.events[0].id]
    assert (spool.depth.requests, spool.depth.events) == (2, 2)


async def test_refused_while_it_is_appended(spool: Spool) -> None:
    """A request that its flush refuses while it is spooled near its deadline is replayed, although 409 says that nothing of it is stored."""
    held = threading.Event()
    spool._thread.submit(held.wait)
    refused, other = await submission(event_id=str(uuid4())), await submission()
    appending = asyncio.create_task(spool.append([refused, other]))
    await asyncio.sleep(0)
    replaying = asyncio.create_task(spool.next(100, 1 << 20, LOG))
    await asyncio.sleep(0)
    refused.fail(conflict(refused.events[0].id))
    held.set()
    await appending
    assert other.outcome.result()
    assert [one.events[0].id for one in await replaying] == [other.events[0].id]
    assert (spool.depth.requests, spool.depth.events, spool.depth.quarantined) == (1, 1, 0)
    assert spool._file.read_depth()[0].requests == 1


@pytest.mark.parametrize("is_lenient", [False, True])
async def test_another_request_has_an_event_of_one_that_is_refused(
    spool: Spool, is_lenient: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event is acknowledged as one that waits already, in a request of the same append that its flush refuses; then it is nowhere.

    Or an item that is refused meanwhile is replayed.
    """
    shared, bad = make_event(event_id=str(uuid4())), make_event(event_id=str(uuid4()))
    both, single = await submission_of([shared, bad], is_lenient=is_lenient), await submission_of([shared])
    append = spool._file.append

    def refused_afterwards(requests: Any) -> Any:
        added = append(requests)
        both.reject({UUID(bad["event_id"]): conflict(UUID(bad["event_id"]))})
        return added

    monkeypatch.setattr(spool._file, "append", refused_afterwards)
    await spool.append([both, single])
    assert single.outcome.result()
    assert (both.outcome.exception() is None) == is_lenient
    waiting = [event.id for one in await spool.next(100, 1 << 20, LOG) for event in one.events]
    assert waiting == [UUID(shared["event_id"])]
    assert (spool.depth.requests, spool.depth.events) == (1, 1)


async def test_nothing_is_read_before_it_is_mended(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replay reads what an unfinished transaction has left, and stores events that were refused."""
    await fail_once(spool, monkeypatch)
    with pytest.raises(SpoolFailed):
        await spool.next(100, 1 << 20, LOG)


async def test_counted_once_when_mended_during_replay(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mending counts the file between a removal and its count: later events overtake, or what waits is never replayed."""
    for correlation_id in ("rr-1", "rr-2"):
        await spool.append([await submission(correlation_id=correlation_id)])
    first, _ = await spool.next(100, 1 << 20, LOG)
    await fail_once(spool, monkeypatch)
    await asyncio.gather(spool.mend(), spool.remove([first]))
    assert (spool.depth.requests, spool.depth.events) == (1, 1)
    assert (spool.waits(["rr-1"]), spool.waits(["rr-2"])) == (False, True)


async def test_disk_without_an_answer_is_full(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A spool whose directory is gone ends the writer, and every request waits for ever."""

    def gone(_: Path) -> Any:
        raise FileNotFoundError

    monkeypatch.setattr("app.ingest.spool.shutil.disk_usage", gone)
    refused = await submission()
    await spool.append([refused])
    assert isinstance(refused.outcome.exception(), SpoolFull)
    assert not spool.can_append


async def test_trace_of_the_caller_survives_the_spool() -> None:
    """An event that waited for Postgres has lost the trace in which it was sent, or one of an older spool cannot be read."""
    one = check_item(CATALOG, make_event(), "", plain=False, depth=4)
    [event] = accept([one], [single_id(one)], Acceptance(datetime.now(UTC), {}, LOG, None, "a" * 32, "b" * 16))
    [decoded] = decode(encode([event]), LOG)
    assert decoded == event
    older = orjson.loads(encode([event]))
    del older[0]["trace_id"], older[0]["span_id"]
    assert decode(orjson.dumps(older), LOG)[0].record["trace_id"] is None


async def test_spool_belongs_to_one_log(tmp_path: Path) -> None:
    """Events of one log are replayed into another, or an empty spool cannot be used with another database."""
    spool = Spool(tmp_path / "spool", 1 << 30)
    assert spool.log_name is None
    for name in (LOG, "other.example/log", LOG):
        await spool.belong_to(name)
    await spool.append([await submission()])
    with pytest.raises(Fatal, match=r"holds events for the log 'test.example/datastorage', but .* 'other.example/log'"):
        await spool.belong_to("other.example/log")
    spool.close()
    again = Spool(tmp_path / "spool", 1 << 30)
    assert (again.log_name, again.depth.events) == (LOG, 1)
    again.close()


async def test_spool_of_an_earlier_version(tmp_path: Path) -> None:
    """A spool that was written before spools knew their log cannot be opened, or its events are held back."""
    spool = Spool(tmp_path / "spool", 1 << 30)
    await spool.append([await submission()])
    spool.close()
    with closing(sqlite3.connect(tmp_path / "spool" / FILE_NAME)) as file:
        file.execute("DROP TABLE log")
    spool = Spool(tmp_path / "spool", 1 << 30)
    assert (spool.log_name, spool.depth.events) == (None, 1)
    await spool.belong_to(LOG)
    assert spool.log_name == LOG
    spool.close()


async def test_failing_disk_does_not_prevent_a_start(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service with Postgres does not start because the spool's disk fails, although it does not need the spool now."""
    await fail_once(spool, monkeypatch)
    await spool.belong_to(LOG)
    assert spool.log_name is None
    await spool.mend()
    await spool.belong_to(LOG)
    assert spool.log_name == LOG
