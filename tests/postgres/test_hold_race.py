"""A hold and a purge at the same time, in every possible order (each third one, unless RACE_ORDERS=full) of the statements of the two sessions.

Each session stops before every statement that reads or changes what the other one also uses, until the schedule continues it.
While a session waits for a lock of the other one, the other one continues. After the end of a schedule, neither stops any more.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from itertools import combinations, count, islice
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from pydantic import SecretStr

from app import db
from app.errors import NotFound, Unavailable
from app.ingest.store import SQL as INGEST_STATEMENTS
from app.ingest.store import Store
from app.retention import holds, purge, removal
from app.retention.holds import SQL as STATEMENTS
from app.retention.holds import HoldOrder, Selector
from app.retention.logged import action_store
from app.retention.policy import Month, Terms
from app.retention.removal import RetentionSession
from app.settings import Settings
from tests.logs import FIRST_LOG
from tests.postgres import log

pytestmark = pytest.mark.damaged  # the verification at the end of every test does not know purges
NOW = datetime.now(UTC)
SESSION: ContextVar[str] = ContextVar("session", default="")
INSIDE: ContextVar[bool] = ContextVar("inside", default=False)
Connection = Any


class Stage:
    """The two sessions, and which of them may continue."""

    def __init__(self, gates: dict[str, set[str]], control: Connection) -> None:
        self.gates = gates
        self.control = control
        self.waiting: dict[str, asyncio.Future[None]] = {}
        self.tasks: dict[str, asyncio.Task[Any]] = {}
        self.free = False

    async def gate(self, statement: str) -> None:
        name = SESSION.get()
        if (
            name
            and not self.free
            and (statement.rstrip(";") in self.gates[name] or statement.startswith("ALTER TABLE"))
        ):
            self.waiting[name] = asyncio.get_running_loop().create_future()
            await self.waiting[name]

    async def settled(self, name: str) -> bool:
        """Wait until the session stops at a gate, ends, or waits for a lock. Whether it is at a gate."""
        while name not in self.waiting and not self.tasks[name].done():
            if await self.control.fetchval(LOCKED):
                return False
            await asyncio.sleep(0.001)
        return name in self.waiting

    async def play(self, sessions: dict[str, Callable[[], Awaitable[Any]]], schedule: str) -> dict[str, Any]:
        for name, work in sessions.items():
            self.tasks[name] = asyncio.create_task(self._session(name, work))
        for name in sessions:
            await self.settled(name)
        for chosen in schedule:
            (other,) = set(sessions) - {chosen}
            name = chosen if await self.settled(chosen) else other
            if await self.settled(name):
                self.waiting.pop(name).set_result(None)
                await asyncio.sleep(0)
                await self.settled(name)
        self.free = True
        for future in self.waiting.values():
            future.set_result(None)
        self.waiting.clear()
        return {name: (await asyncio.gather(task, return_exceptions=True))[0] for name, task in self.tasks.items()}

    async def _session(self, name: str, work: Callable[[], Awaitable[Any]]) -> Any:
        SESSION.set(name)
        return await work()


LOCKED = """
SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' AND state = 'active')
"""
STAGE: list[Stage] = []


@pytest.fixture(autouse=True)
def gated(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every statement of a session passes its gate."""
    execute, fetching = asyncpg.Connection.execute, asyncpg.Connection._execute  # type: ignore[attr-defined]  # no stub

    async def gated_execute(self: Connection, query: str, *args: Any, **more: Any) -> Any:
        if STAGE:
            await STAGE[-1].gate(query)
        token = INSIDE.set(True)
        try:
            return await execute(self, query, *args, **more)
        finally:
            INSIDE.reset(token)

    async def gated_fetching(self: Connection, query: str, *args: Any, **more: Any) -> Any:
        if STAGE and not INSIDE.get():
            await STAGE[-1].gate(query)
        return await fetching(self, query, *args, **more)

    monkeypatch.setattr(asyncpg.Connection, "execute", gated_execute)
    monkeypatch.setattr(asyncpg.Connection, "_execute", gated_fetching)
    yield
    STAGE.clear()


def orders(first: int, second: int) -> Iterator[str]:
    """Every order of `first` statements of the hold (h) and `second` statements of the purge (p)."""
    for places in combinations(range(first + second), first):
        yield "".join("h" if place in places else "p" for place in range(first + second))


class Case:
    """One event that is due, in a month of its own, and the hold and the purge that compete for it."""

    def __init__(self, url: str, number: int) -> None:
        self.settings = Settings(database_url=SecretStr(url))
        self.url = url
        self.correlation = f"rr-{number}"
        self.at = datetime(2000 + number // 12 % 18, number % 12 + 1, 10, 12, tzinfo=UTC)
        self.month = Month(f"audit_events_{self.at:%Y_%m}")

    async def event(self) -> UUID:
        (event_id,) = await log.write(
            self.url, {"correlation_id": self.correlation, "event_timestamp": self.at.isoformat(), "retention_days": 10}
        )
        return event_id

    async def hold(self) -> Any:
        return await holds.place(
            self.settings, FIRST_LOG, Selector(correlation_id=self.correlation), HoldOrder("eve", "why")
        )

    async def purge_rows(self) -> int:
        connection = await db.connect(self.settings, statement_timeout="0", lock_timeout="10s")
        async with action_store(self.settings, FIRST_LOG) as store:
            session = await self._session(store, connection)
            deleted = await purge._pass(session, uuid4(), self.month, after=-1)
        await connection.close()
        return deleted

    async def purge_month(self) -> bool:
        connection = await db.connect(self.settings, statement_timeout="0", lock_timeout="10s")
        async with action_store(self.settings, FIRST_LOG) as store:
            removed = await removal.remove_month(await self._session(store, connection), self.month)
        await connection.close()
        return removed

    @staticmethod
    async def _session(store: Store, connection: Connection) -> RetentionSession:
        """A run that has read the holds: not in the race, since what changes later is noticed in the flush."""
        session, name = RetentionSession(store, connection, Terms(NOW, 8, 2555), 2**62), SESSION.set("")
        await session.refresh()
        SESSION.reset(name)
        return session


# The statements before which each session stops; STEPS is how often that is when it runs alone. A statement between two gates reads
# nothing that the other session writes, except the end of the log, whose change the flush detects. RACE_ORDERS=full stops there, too.
FULL = os.environ.get("RACE_ORDERS") == "full"
INGEST, SQL = INGEST_STATEMENTS.of(FIRST_LOG), STATEMENTS.of(FIRST_LOG)
HOLD_GATES = {SQL["mark_rows"], INGEST["flush"], "COMMIT"} | ({SQL["log_size"], INGEST["tail"]} if FULL else set())
ROW_GATES = {SQL["due_events"], INGEST["flush"], SQL["purge"], "COMMIT"} | ({INGEST["tail"]} if FULL else set())
MONTH_GATES = {INGEST["flush"], "COMMIT", SQL["drop_month"]} | ({SQL["month_unchanged"]} if FULL else set())
STEPS = {"rows": (7, 5), "month": (7, 5)} if FULL else {"rows": (5, 4), "month": (5, 4)}


@pytest.mark.parametrize("kind", ["rows", "month"])
async def test_no_held_event_is_ever_gone(database_url: str, connection: Connection, kind: str) -> None:
    """An event that a hold covers was purged, or one is gone without a purge, or a purge names one that is still stored."""
    outcomes = {"held": 0, "purged": 0}
    for number, schedule in zip(count(), islice(orders(*STEPS[kind]), None, None, 1 if FULL else 3), strict=False):
        case = Case(database_url, number)
        event_id = await case.event()
        stage = Stage({"h": HOLD_GATES, "p": ROW_GATES if kind == "rows" else MONTH_GATES}, connection)
        STAGE.append(stage)
        work = case.purge_rows if kind == "rows" else case.purge_month
        answers = await stage.play({"h": case.hold, "p": work}, schedule)
        STAGE.clear()
        found = await connection.fetchrow(
            "SELECT legal_hold, log_index <@ purged_positions(NULL) AS purged FROM audit_events WHERE event_id = $1",
            event_id,
        )
        assert not isinstance(answers["p"], BaseException), (schedule, answers)
        if isinstance(answers["h"], holds.Placement):
            assert found is not None, schedule
            assert (found["legal_hold"], found["purged"]) == (True, False), (schedule, answers)
            assert answers["h"].events == 1, schedule
            assert not answers["p"], schedule
            outcomes["held"] += 1
        else:
            assert isinstance(answers["h"], NotFound | Unavailable), (schedule, answers)
            if found is None:
                assert answers["p"], schedule
                outcomes["purged"] += 1
        await _clear(connection, case)
    assert all(outcomes.values()), outcomes


async def _clear(connection: Connection, case: Case) -> None:
    """Drop the month, so that the next case does not plan over hundreds of them."""
    async with connection.transaction():
        await connection.execute("SET LOCAL session_replication_role = replica")
        await connection.execute(f"DROP TABLE IF EXISTS {case.month.name}")
        await connection.execute("DELETE FROM holds")


async def test_retention_waits_for_a_hold_that_is_being_placed(database_url: str, connection: Connection) -> None:
    """The harness makes no session wait, so that the test above tries no order at all."""
    case = Case(database_url, 0)
    event_id = await case.event()
    stage = Stage({"h": HOLD_GATES, "p": ROW_GATES}, connection)
    STAGE.append(stage)
    answers = await stage.play({"h": case.hold, "p": case.purge_rows}, "hhhhhhhhh" + "p" * 9)
    assert (answers["h"].events, answers["p"]) == (1, 0)
    assert await connection.fetchval("SELECT legal_hold FROM audit_events WHERE event_id = $1", event_id)
    other = Case(database_url, 1)
    await other.event()
    stage = Stage({"h": HOLD_GATES, "p": ROW_GATES}, connection)
    STAGE.append(stage)
    answers = await stage.play({"h": other.hold, "p": other.purge_rows}, "p" * 9 + "h" * 9)
    assert answers["p"] == 1
    assert isinstance(answers["h"], NotFound)
    assert timedelta(0) < NOW - other.at
