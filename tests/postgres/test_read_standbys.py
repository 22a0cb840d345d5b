"""Standbys that answer reads: a primary and a streaming standby, whose replay is paused, or which is frozen or promoted."""

import asyncio
import re
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
import pytest
from pydantic import SecretStr

from app import db
from app.bookmark import NOW, Bookmark, parse
from app.db import Pool, driver_connection
from app.errors import DatabaseBusy
from app.read_standbys import ReadStandbys
from app.settings import Settings
from tests import services
from tests.services import Service, spawn, wait_until_ready
from tests.torture.postgres import LOG_NAME, Postgres, binaries
from tests.waiting import eventually

HEADER = "datastorage-bookmark"
EVENTS = "/api/v1/audit/events"
LONG_MS = 60_000
"""A bound that no test reaches."""


@dataclass
class Pair:
    """A primary, and a standby that nobody waits for."""

    primary: Postgres
    standby: Postgres
    promoted: bool = False

    async def on_standby(self, statement: str) -> Any:
        return await _run(self.standby, statement)

    async def pause(self) -> None:
        """What is committed from now on is not seen on the standby."""
        await self.on_standby("SELECT pg_wal_replay_pause()")
        await eventually(lambda: self._state("paused"))

    async def resume(self) -> None:
        await self.on_standby("SELECT pg_wal_replay_resume()")

    async def _state(self, wanted: str) -> bool | None:
        return True if await self.on_standby("SELECT pg_get_wal_replay_pause_state()") == wanted else None

    async def caught_up(self) -> None:
        """Return when the standby has all that the primary has now."""
        end = await _run(self.primary, "SELECT pg_current_wal_flush_lsn()::text")

        async def has() -> bool | None:
            return True if await self.on_standby(f"SELECT pg_last_wal_replay_lsn() >= '{end}'") else None

        await eventually(has)


async def _run(server: Postgres, statement: str) -> Any:
    connection = await asyncpg.connect(server.url)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


@pytest.fixture(scope="module")
def servers() -> Iterator[list[Postgres]]:
    """Template, primary and standby of the tests before; without the last two if one has promoted the standby."""
    with tempfile.TemporaryDirectory(prefix="read-standbys-") as made:
        Path(made).chmod(0o755)
        running = [Postgres(binaries(18), Path(made) / "template")]
        asyncio.run(running[0].initialise())
        yield running
        _end(running)


def _end(servers: list[Postgres]) -> None:
    while len(servers) > 1:
        servers.pop().close()


@pytest.fixture
async def pair(servers: list[Postgres]) -> AsyncIterator[Pair]:
    if len(servers) == 1:
        directory = servers[0].directory.with_name(f"pair-{uuid4().hex}")
        servers.append(servers[0].copy(directory / "primary"))
        await servers[1].start()
        servers.append(servers[1].standby(directory / "standby"))
        await servers[2].start()
    made = Pair(servers[1], servers[2])
    await made.caught_up()
    yield made
    made.primary.thaw()
    made.standby.thaw()
    if made.promoted:
        _end(servers)
    else:
        await made.resume()


Start = Callable[..., Service]


@pytest.fixture
def start(pair: Pair, tmp_path: Path) -> Iterator[Start]:
    """Starts the service with the standby for its reads, and returns when that is in use."""
    started: list[Service] = []

    def begin(**settings: object) -> Service:
        own = {
            "database_url": pair.primary.url,
            "read_database_url": pair.standby.url,
            "log_name": LOG_NAME,
            "read_lag_max_ms": LONG_MS,
            "read_wait_ms": 500,
            "verifier_events_per_second": 0,
        }
        started.append(spawn(own | settings, tmp_path / f"service-{len(started)}"))
        wait_until_ready(started[-1])
        return started[-1]

    yield begin
    for one in started:
        pair.primary.thaw()
        pair.standby.thaw()
        assert services.stop([one]) == [0], one.log.read_text()


@asynccontextmanager
async def asking(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=service.url, timeout=30) as client:
        await eventually(lambda: _is_used(service, 1))
        yield client


async def _is_used(service: Service, times: int) -> bool | None:
    return True if service.log.read_text().count("a standby answers reads") >= times else None


async def _is_left_out(service: Service, times: int = 1) -> bool | None:
    return True if service.log.read_text().count("a standby is left out") >= times else None


async def post(client: httpx.AsyncClient, correlation: str) -> httpx.Response:
    event = {
        "version": "1.0",
        "event_type": "orchestrator.lifecycle.started",
        "event_timestamp": datetime.now(UTC).isoformat(),
        "event_category": "orchestration",
        "event_action": "started",
        "event_outcome": "success",
        "correlation_id": correlation,
        "event_data": {"event_type": "orchestrator.lifecycle.started", "rr_name": "rr", "namespace": "payments"},
    }
    return await client.post(EVENTS, json=event)


async def count(client: httpx.AsyncClient, correlation: str, bookmark: str | None = None) -> int:
    headers = {} if bookmark is None else {HEADER: bookmark}
    answer = await client.get(EVENTS, params={"correlation_id": correlation}, headers=headers)
    assert answer.status_code == 200
    assert (HEADER in answer.headers) == (bookmark is not None)
    return len(answer.json()["data"])


async def reads(client: httpx.AsyncClient) -> dict[str, int]:
    """How many reads a standby was asked for, by what became of them."""
    text = (await client.get("/metrics")).text
    found = re.findall(r'^datastorage_standby_reads_total\{outcome="(\w+)"\} (\S+)$', text, re.MULTILINE)
    return {outcome: int(float(number)) for outcome, number in found if float(number)}


async def counted(client: httpx.AsyncClient, **expected: int) -> None:
    """Return when so many reads were counted: a busy process of several may be asked for its metrics once more."""

    async def is_so() -> bool | None:
        return True if await reads(client) == expected else None

    await eventually(is_so)


@pytest.mark.parametrize("processes", [1, 2, 4])
async def test_caller_sees_what_was_acknowledged(pair: Pair, start: Start, processes: int) -> None:
    """A list lacks an event that its caller has posted, since the standby has not replayed it; or no standby ever answers."""
    async with asking(start(processes=processes)) as client:
        one, bookmark = str(uuid4()), (await post(client, "first")).headers[HEADER]
        assert isinstance(parse(bookmark), Bookmark)
        await pair.caught_up()
        assert await count(client, "first", bookmark) >= 1
        await counted(client, answered=1)
        await pair.pause()
        bookmark = (await post(client, one)).headers[HEADER]
        assert await count(client, one, bookmark) == 1
        await counted(client, answered=1, behind=1)
        await pair.resume()
        await pair.caught_up()
        assert await count(client, one, bookmark) == 1
        await counted(client, answered=2, behind=1)


async def test_without_bookmark_the_primary_answers(pair: Pair, start: Start) -> None:
    """A client that knows nothing of bookmarks misses what it has just written, or gets headers that it does not know."""
    async with asking(start()) as client:
        await pair.pause()
        one = str(uuid4())
        await post(client, one)
        assert await count(client, one) == 1
        assert await reads(client) == {}


PATHS = (
    f"{EVENTS}?correlation_id=%s",
    "/api/v1/audit/correlations?correlation_id=%s",
    "/api/v1/audit/correlations/%s",
    "/api/v1/audit/histogram?correlation_id=%s",
    "/api/v1/audit/export?correlation_id=%s",
    "/api/v1/audit/export?format=ndjson&correlation_id=%s",
    "/api/v1/effectiveness/%s",
    "/api/v1/audit/notifications?remediation_id=%s",
    "/ui/events?correlation_id=%s",
    "/ui/correlations?correlation_id=%s",
    "/ui/correlations/%s",
)


@pytest.mark.parametrize("path", PATHS)
async def test_every_read_goes_to_a_standby_that_is_current(pair: Pair, start: Start, path: str) -> None:
    """A route is forgotten: it asks the primary always, or a standby that has not what was written since."""
    async with asking(start()) as client:
        one = str(uuid4())
        bookmark = (await post(client, one)).headers[HEADER]
        await pair.caught_up()
        answers = [await client.get(path % one, headers={HEADER: word}) for word in (bookmark, NOW)]
        assert set(await reads(client)) == {"answered"}
        await pair.pause()
        await post(client, one)
        before = await reads(client)
        answers.append(await client.get(path % one, headers={HEADER: NOW}))
        assert {answer.status_code for answer in answers} == {404 if "effectiveness" in path else 200}
        assert (await reads(client))["answered"] == before["answered"]
        assert (await reads(client))["behind"] > 0
        if not path.startswith("/ui/"):
            first, *others = [answer.headers[HEADER] for answer in answers]
            assert parse(first) >= parse(bookmark)  # type: ignore[operator]
            assert others == [NOW, NOW]


@pytest.mark.parametrize(
    "bookmark", ["0.999999999.0123456789abcdef", "9.0.0123456789abcdef", "0.0.ffffffffffffffff", "x", ""]
)
async def test_bookmark_that_nobody_gave(pair: Pair, start: Start, bookmark: str) -> None:
    """A bookmark that is made up, of the future or of another log, is an error, or has an old standby answer."""
    async with asking(start()) as client:
        await pair.pause()
        one = str(uuid4())
        await post(client, one)
        assert await count(client, one, bookmark) == 1


async def test_standby_that_is_away(pair: Pair, start: Start) -> None:
    """While the standby is frozen reads fail, the service is not ready, or each second brings a line; or it is not used again."""
    service = start()
    async with asking(service) as client:
        pair.standby.freeze()
        bookmark = (await post(client, one := str(uuid4()))).headers[HEADER]
        assert await count(client, one, bookmark) == 1
        await eventually(lambda: _is_left_out(service))
        assert await count(client, one, bookmark) == 1
        assert (await client.get("/readyz")).status_code == 200
        assert re.search(
            r"^datastorage_read_standby_left_out\{.*\} 1\.0$", (await client.get("/metrics")).text, re.MULTILINE
        )
        pair.standby.thaw()
        await eventually(lambda: _is_used(service, 2))
        before = await reads(client)
        assert await count(client, one, bookmark) == 1
        assert (await reads(client))["answered"] == before.get("answered", 0) + 1
    assert service.log.read_text().count("a standby is left out") == 1


async def test_standby_that_lags(pair: Pair, start: Start) -> None:
    """A standby that has replayed nothing for longer than the bound answers a caller who knows little, or is left out for good."""
    service = start(read_lag_max_ms=1_000)
    async with asking(service) as client:
        old = (await post(client, "old")).headers[HEADER]
        await pair.caught_up()
        await pair.pause()
        await post(client, "old")
        await eventually(lambda: _is_left_out(service))
        before = await reads(client)
        assert await count(client, "old", old) >= 2
        assert await reads(client) == before
        await pair.resume()
        await eventually(lambda: _is_used(service, 2))


async def test_promoted_standby(pair: Pair, start: Start) -> None:
    """A standby that somebody has promoted answers reads of a log of its own."""
    service = start()
    async with asking(service) as client:
        bookmark = (await post(client, "promoted")).headers[HEADER]
        await pair.caught_up()
        pair.promoted = True
        await pair.standby.promote()
        await eventually(lambda: _is_left_out(service))
        before = await reads(client)
        assert await count(client, "promoted", bookmark) == 1
        assert (await reads(client)).get("answered") == before.get("answered")


async def test_primary_that_is_away(pair: Pair, start: Start) -> None:
    """What was spooled is not seen once it is written; or a caller who brings a bookmark is not answered although a standby could."""
    async with asking(start(away_patience_ms=500)) as client:
        bookmark = (await post(client, "away")).headers[HEADER]
        await pair.caught_up()
        pair.primary.freeze()
        spooled = await post(client, "spooled")
        assert (spooled.status_code, spooled.headers[HEADER]) == (202, NOW)
        assert await count(client, "away", bookmark) == 1
        assert await reads(client) == {"answered": 1}
        pair.primary.thaw()
        await pair.pause()

        async def is_written() -> bool | None:
            return True if await count(client, "spooled", NOW) else None

        await eventually(is_written)


@asynccontextmanager
async def standbys_of(pair: Pair, **more: Any) -> AsyncIterator[ReadStandbys]:
    """The standbys of a process, once they are in use."""
    settings = Settings(
        database_url=SecretStr(pair.primary.url),
        read_database_url=SecretStr(pair.standby.url),
        read_lag_max_ms=LONG_MS,
        read_wait_ms=5_000,
        **more,
    )
    primary = db.create_engine(settings)
    standbys = ReadStandbys(settings, primary)
    worker = asyncio.create_task(standbys.follow_forever(_cold))
    try:
        await eventually(lambda: _used(standbys))
        yield standbys
    finally:
        worker.cancel()
        await asyncio.wait({worker})
        await standbys.close()
        await primary.dispose()


async def _cold(engine: object) -> None:
    del engine


async def _used(standbys: ReadStandbys) -> bool | None:
    return True if all(one.is_used for one in standbys.standbys) else None


async def test_conflict_with_recovery(pair: Pair) -> None:
    """A reader gets the error of a query that the standby has cancelled, since its rows were vacuumed on the primary."""
    await _run(pair.primary, "DROP TABLE IF EXISTS vacuumed")
    await _run(pair.primary, "CREATE TABLE vacuumed AS SELECT generate_series(1, 100) AS number")
    await pair.on_standby("ALTER SYSTEM SET max_standby_streaming_delay = 0")
    await pair.on_standby("SELECT pg_reload_conf()")
    await pair.caught_up()
    asked: list[bool] = []

    async def read(pool: Pool) -> int:
        async with (
            driver_connection(pool) as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            is_standby = await connection.fetchval("SELECT pg_is_in_recovery()")
            asked.append(is_standby)
            number: int = await connection.fetchval("SELECT count(*) FROM vacuumed")
            if is_standby:
                await _run(pair.primary, "DELETE FROM vacuumed WHERE number > 50")
                await _run(pair.primary, "VACUUM vacuumed")
                await connection.fetchval("SELECT pg_sleep(60)")
            return number

    async with standbys_of(pair) as standbys:
        assert (await standbys.read(NOW, read)).value == 50
        assert asked == [True, False]
        assert standbys.standbys[0].is_used


async def test_read_that_takes_too_long(pair: Pair) -> None:
    """A query that ends at its timeout is asked a second time, of the primary."""
    asked: list[bool] = []

    async def read(pool: Pool) -> None:
        async with driver_connection(pool) as connection:
            asked.append(await connection.fetchval("SELECT pg_is_in_recovery()"))
            await connection.fetchval("SELECT pg_sleep(60)")

    async with standbys_of(pair, statement_timeout_ms=2_000) as standbys:
        with pytest.raises(DatabaseBusy):
            await standbys.read(NOW, read)
        assert asked == [True]


LAST_FLUSH = "(log_id, first_index) = (SELECT log_id, first_index FROM log_flushes ORDER BY log_id DESC, first_index DESC LIMIT 1)"
LAST_LEAVES = f"SELECT encode(leaves, 'hex') FROM log_flushes WHERE {LAST_FLUSH}"
OTHER_LEAF = (
    f"UPDATE log_flushes SET leaves = substr(leaves, 1, length(leaves) - 32) || sha256('other') WHERE {LAST_FLUSH}"
)


async def test_export_of_another_log(pair: Pair, start: Start) -> None:
    """What a standby shows that has followed another primary leaves with a signature."""
    async with asking(start()) as client:
        assert (await post(client, f"rr-{uuid4()}")).status_code == 201
    own = await _run(pair.primary, LAST_LEAVES)
    asked: list[bool] = []
    async with standbys_of(pair) as standbys:

        async def export(pool: Pool) -> None:
            async with driver_connection(pool) as connection:
                is_standby = await connection.fetchval("SELECT pg_is_in_recovery()")
                asked.append(is_standby)
                if is_standby:
                    await pair.caught_up()
                    await pair.pause()
                    await _run(pair.primary, OTHER_LEAF)
                await standbys.confirm(pool, connection)

        await standbys.read(NOW, export)
        assert asked == [True, False]
        await _run(pair.primary, f"UPDATE log_flushes SET leaves = decode('{own}', 'hex') WHERE {LAST_FLUSH}")
