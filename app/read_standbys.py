"""Standbys that answer reads (DATASTORAGE_READ_DATABASE_URL), so that the primary has more time for what is written.

An answer never shows less than its caller was acknowledged. Who wants a standby to answer says what he knows, by a bookmark: the connection that is
borrowed is asked whether its server has that very event, and a read that it cannot answer goes to the primary. So does each that fails
there, for a conflict with recovery or for whatever reason: nobody sees it. NOW is what the primary has when the read begins.

Once a second the primary is asked where its log ends. A standby that has not, after `read_lag_max_ms`, what the primary had,
that cannot be reached, or that is none, is left out until it has caught up. While the primary is away nobody knows how far it is, so
standbys go on answering those who bring a bookmark.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Generic, NamedTuple, NoReturn, TypeVar

import asyncpg
from pydantic import SecretStr

from app import database_url, metrics, standby
from app.bookmark import Bookmark, Wanted
from app.db import CheckedPool, Connection, Engine, Pool, create_engine, driver_connection
from app.errors import AuditError, DatabaseAway, DatabaseBusy, DatabaseFailed
from app.settings import Settings
from app.sql import load
from app.workers import run_forever

SQL = load("read_standbys")
_ROUND_SECONDS = 1.0
_CONNECT_MS_MAX = 1_000
_ANSWER_SECONDS = 1.0
"""For the few words by which a server says how far it is; one that takes longer is away."""
_PAUSE_SECONDS, _PAUSE_SECONDS_MAX = 0.001, 0.02
_OWN_TIMEOUT = "57014"
"""SQLSTATE of a statement that has taken too long: it would on the primary too."""

_T = TypeVar("_T")
_Question = TypeVar("_Question")
Read = Callable[[Pool], Awaitable[_T]]

log = logging.getLogger(__name__)


class StandbyLags(DatabaseAway):
    """The standby has not what the answer has to show."""


class Answer(NamedTuple, Generic[_T]):
    """What a read has returned."""

    value: _T
    seen: Bookmark | None
    """What the server had when it was read; None if nobody asked."""


class End(NamedTuple):
    """Where the primary's log ended."""

    bookmark: Bookmark
    written: int
    """Bytes of its WAL on disk."""


@dataclass(eq=False)
class ReadStandby:
    """One URL. Behind it may be several servers, so each connection is asked for itself."""

    name: str
    """Host and port of each server that the URL names."""
    engine: Engine
    is_used: bool = False
    is_known: bool = False
    """Whether it was said what has become of it since the start."""


@dataclass
class _Visit:
    """One use of a connection: what its server has to have, and what it had."""

    wanted: Sequence[Bookmark]
    replayed: int
    patience_seconds: float
    is_admitted: bool = False
    seen: list[Bookmark] = field(default_factory=list)

    async def check(self, connection: Connection) -> None:
        """Return when the server has what is wanted. StandbyLags if it has not in time."""
        clock = asyncio.get_running_loop().time
        deadline, pause = clock() + self.patience_seconds, _PAUSE_SECONDS
        async with asyncio.timeout(self.patience_seconds + _ANSWER_SECONDS):
            while True:
                row = await connection.fetchrow(SQL["progress"], *_positions(self.wanted))
                assert row is not None
                if row["replayed"] is None:
                    raise NoStandby
                has_log = all(leaf == one.leaf for leaf, one in zip(row["leaves"], self.wanted, strict=True))
                if has_log and row["replayed"] >= self.replayed:
                    self.is_admitted = True
                    return
                if clock() > deadline:
                    raise StandbyLags
                await asyncio.sleep(pause)
                pause = min(2 * pause, _PAUSE_SECONDS_MAX)

    async def note(self, connection: Connection) -> None:
        """Read what the server has now, which is no less than what was read from it."""
        self.seen.append((await _end_of_log(connection))[0])


class NoStandby(StandbyLags):
    """The server is no standby: it was promoted, or never was one."""


def _positions(wanted: Sequence[Bookmark]) -> tuple[list[int], list[int]]:
    return [one.log_id for one in wanted], [one.log_index for one in wanted]


async def _end_of_log(connection: Connection) -> tuple[Bookmark, int | None]:
    row = await connection.fetchrow(SQL["end_of_log"])
    if row is None:
        raise DatabaseFailed("The log has no beginning.")
    return Bookmark(row["log_id"], row["log_index"], row["leaf"]), row["written"]


async def _nothing(connection: Connection) -> None:
    del connection


class ReadStandbys:
    """The standbys of this process, and who of them answers."""

    def __init__(self, settings: Settings, primary: Engine) -> None:
        self._settings, self._primary = settings, primary
        self._patience_seconds = settings.read_wait_ms / 1000
        self._lag_seconds_max = settings.read_lag_max_ms / 1000
        self._ends = deque[tuple[float, End]]()
        """Where the primary's log ended, with the event loop's time; of those older than the bound only the last."""
        self._turns = count()
        self.standbys = [_standby(settings, url) for url in settings.read_database_urls]

    async def read(self, wanted: Wanted, read: Read[_T]) -> Answer[_T]:
        """What `read` returns of a standby that has what is `wanted`, else of the primary. Raises what it raises there.

        `read` may be called twice, and must not have done anything before it has failed.
        """
        if wanted is None:
            return Answer(await read(self._primary), None)
        if (chosen := self._next()) is not None:
            visit = None
            try:
                visit = await self._visit(wanted)
                value = await read(CheckedPool(chosen.engine, visit.check, visit.note))
            except (DatabaseAway, DatabaseBusy, DatabaseFailed) as error:
                if _is_too_long(error):
                    raise
                self._on_failure(chosen, visit, error)
            else:
                metrics.STANDBY_READS.labels(outcome="answered").inc()
                return Answer(value, max(visit.seen, default=None))
        visit = _Visit((), 0, 0)
        value = await read(CheckedPool(self._primary, _nothing, visit.note))
        return Answer(value, max(visit.seen, default=None))

    def shared(
        self, read: Callable[[Pool, _Question], Awaitable[_T]]
    ) -> Callable[[tuple[_Question, Wanted]], Awaitable[Answer[_T]]]:
        """`read` as a reading of questions with what their answer has to show."""

        async def read_shared(asked: tuple[_Question, Wanted]) -> Answer[_T]:
            question, wanted = asked
            return await self.read(wanted, lambda pool: read(pool, question))

        return read_shared

    async def confirm(self, pool: Pool, connection: Connection) -> None:
        """Return if what a snapshot on `connection` of `pool` shows may leave with a signature: it is in the primary's log.

        With the setting `require_synchronous_standby` such standbys have it too. Raises StandbyLags or StandbyMissing.
        """
        on_standbys = self._settings.require_synchronous_standby
        if not isinstance(pool, CheckedPool) or pool.engine is self._primary:
            if on_standbys:
                await standby.confirm_soon(connection)
            return
        end, _ = await _end_of_log(connection)
        async with driver_connection(self._primary) as primary:
            row = await primary.fetchrow(SQL["progress"], *_positions([end]))
            if row is None or row["leaves"] != [end.leaf]:
                raise StandbyLags("the standby has another log than the primary")
            if on_standbys:
                await standby.confirm_soon(primary)

    async def follow_forever(self, warm: Callable[[Engine], Awaitable[None]]) -> NoReturn:
        """Ask the primary and every standby how far they are, once a second. `warm` prepares a standby's connections before its first read."""
        await run_forever(
            "read-standbys",
            partial(self._round, warm),
            pause_seconds=_ROUND_SECONDS,
            failure="standbys could not be asked how far they are",
        )

    async def close(self) -> None:
        """Close all connections."""
        for one in self.standbys:
            await one.engine.dispose()

    def _next(self) -> ReadStandby | None:
        used = [one for one in self.standbys if one.is_used]
        return used[next(self._turns) % len(used)] if used else None

    async def _visit(self, wanted: Bookmark | str) -> _Visit:
        if not isinstance(wanted, Bookmark):
            end = await self._end_of_primary()
            return _Visit([end.bookmark], end.written, self._patience_seconds)
        oldest = self._oldest_end()
        if oldest is None:
            return _Visit([wanted], 0, self._patience_seconds)
        return _Visit([wanted, oldest.bookmark], oldest.written, self._patience_seconds)

    async def _end_of_primary(self) -> End:
        async with driver_connection(self._primary) as connection:
            bookmark, written = await _end_of_log(connection)
        if written is None:
            raise DatabaseAway("The server that is written to is a standby.")
        return End(bookmark, written)

    def _oldest_end(self) -> End | None:
        """What every standby in use has: where the log ended when the bound's time had not begun."""
        due = asyncio.get_running_loop().time() - self._lag_seconds_max
        while len(self._ends) > 1 and self._ends[1][0] <= due:
            self._ends.popleft()
        return self._ends[0][1] if self._ends else None

    def _on_failure(self, chosen: ReadStandby, visit: _Visit | None, error: AuditError) -> None:
        outcome = {DatabaseBusy: "conflict", DatabaseFailed: "failed", StandbyLags: "behind"}.get(type(error), "away")
        metrics.STANDBY_READS.labels(outcome=outcome).inc()
        if visit is not None and not visit.is_admitted and type(error) is not StandbyLags:
            self._leave_out(chosen, error)

    async def _round(self, warm: Callable[[Engine], Awaitable[None]]) -> None:
        try:
            end = await self._end_of_primary()
        except AuditError:  # the writer and the watch report it
            pass
        else:
            self._ends.append((asyncio.get_running_loop().time(), end))
        await asyncio.gather(*(self._ask(one, warm) for one in self.standbys))

    async def _ask(self, one: ReadStandby, warm: Callable[[Engine], Awaitable[None]]) -> None:
        """Leave a standby out, or use it."""
        oldest = self._oldest_end()
        visit = _Visit([], 0, 0) if oldest is None else _Visit([oldest.bookmark], oldest.written, 0)
        try:
            async with driver_connection(CheckedPool(one.engine, visit.check, _nothing)):
                pass
            if not one.is_used:
                await warm(one.engine)
        except AuditError as error:
            self._leave_out(one, error)
        else:
            self._use(one)

    def _leave_out(self, one: ReadStandby, error: AuditError) -> None:
        if one.is_used or not one.is_known:
            why = _LAGS if type(error) is StandbyLags else database_url.reason(error.__cause__ or error)
            log.warning("a standby is left out: the primary answers instead", extra={"server": one.name, "error": why})
        one.is_used, one.is_known = False, True
        metrics.STANDBY_LEFT_OUT.labels(standby=one.name).set(1)

    def _use(self, one: ReadStandby) -> None:
        if not one.is_used:
            log.warning("a standby answers reads", extra={"server": one.name})
        one.is_used = one.is_known = True
        metrics.STANDBY_LEFT_OUT.labels(standby=one.name).set(0)


_LAGS = "it has not what the primary had before DATASTORAGE_READ_LAG_MAX_MS"


def _is_too_long(error: AuditError) -> bool:
    cause = error.__cause__
    return isinstance(cause, asyncpg.PostgresError) and cause.sqlstate == _OWN_TIMEOUT


def _standby(settings: Settings, url: str) -> ReadStandby:
    connect_ms = min(settings.connect_timeout_ms, _CONNECT_MS_MAX)
    own = settings.model_copy(update={"database_url": SecretStr(url), "connect_timeout_ms": connect_ms})
    hosts = database_url.parse(url).hosts
    return ReadStandby(", ".join(f"{host}:{port}" for host, port in hosts), create_engine(own))
