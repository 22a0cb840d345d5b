"""The logs of the database that a copy is compared with: how long each is, what is in it, and why what is not there is missing."""

from collections.abc import Iterator, Sequence

import asyncpg

from app.db import LONG_FETCH_SECONDS, Connection
from app.errors import Fatal
from app.events.log import LOG_POSITIONS, Log
from app.events.positions import Positions
from app.sql import load
from app.stream.place import place_text
from app.tlog.continued import Seam, keys_of, newest_log, read_seam
from app.tlog.evidence import NO_EVIDENCE, PURGED, read_evidence, read_self_events
from app.tlog.note import PublicKey
from app.tlog.tiles import HashesMissing
from app.tlog.tiles import log_size as tiled_log_size
from app.verify.extent import log_size
from app.verify.snapshot import SQL as VERIFY_SQL

SQL = load("stream")
_POSITIONS_AT_ONCE = 50_000


class KnownLogs:
    """The logs of the database, as far as they are known: they may grow while the copy is read."""

    def __init__(self, connection: Connection, keys: Sequence[PublicKey]) -> None:
        self.evidence = NO_EVIDENCE
        """What is known to be purged, erased and lost."""
        self.sizes: dict[int, int] = {}
        """By id of the log."""
        self._connection = connection
        self._keys = keys
        self._seams: dict[int, Seam | None] = {}
        """By id of the log: how it was closed."""
        self._evidence_at: tuple[Log, int] | None = None
        """The log, and how long it was, when that was read."""

    async def begin(self) -> None:
        """Read which logs there are. Fatal if there is none."""
        name = await self._connection.fetchval(VERIFY_SQL["log_name"])
        if name is None:
            raise Fatal("The table logs has no row for log 0: run `datastorage verify`.")
        self.last = Log(0, name)
        """The one that events are written to."""
        await self.read_sizes()

    async def read_sizes(self) -> None:
        """The logs that there are now, and how long each is."""
        self.last = await newest_log(self._connection, self.last, self._keys)
        self.sizes = {}
        for log in self.all():
            seam = None if log.is_open else await read_seam(self._connection, Log(log.id + 1, log.first_name))
            if seam is None:
                rows = await self._connection.fetch(VERIFY_SQL.of(log)["stored_checkpoints"])
                self.sizes[log.id] = await log_size(
                    self._connection, log, [row["note"] for row in rows], keys_of(log, self._keys)
                )
            else:
                self.sizes[log.id] = seam.size
            self._seams[log.id] = seam

    async def find_new(self) -> None:
        """Read the sizes again if another log was begun."""
        if await newest_log(self._connection, self.last, self._keys) != self.last:
            await self.read_sizes()

    def all(self) -> Sequence[Log]:
        """The last log and those before it."""
        return [*self.last.and_earlier()]

    def named(self, name: object) -> Log | None:
        """The log of this name; None if the database has none."""
        return next((log for log in self.all() if log.name == name), None)

    def at(self, place: int) -> Log | None:
        """The log that this place is of; None if the database has none."""
        return next((log for log in self.all() if log.has(place)), None)

    def end_of(self, log: Log) -> int:
        """The place behind the last one of a log."""
        return log.place(self.sizes[log.id])

    def has(self, first: int, end: int) -> bool:
        """Whether a log has all the places from `first` up to, not including, `end`."""
        log = self.at(first)
        return log is not None and first < end <= self.end_of(log)

    def seam(self, log: Log) -> Seam | None:
        """How a log was closed; None if it was not."""
        return self._seams[log.id]

    def is_admitted(self, place: int) -> bool:
        """Whether a closed log admits that what was at this place is not what it had signed."""
        log = self.at(place)
        seam = None if log is None else self.seam(log)
        return seam is not None and log is not None and place - log.place(0) >= seam.agreed_size < seam.signed_size

    def why_absent(self, place: int) -> str | None:
        """Why a place has no row: purged or lost, as the log records; None if it does not."""
        if place in self.evidence.purged:
            return "purged"
        return "lost" if place in self.evidence.lost or self.is_admitted(place) else None

    async def rows_at(self, places: set[int]) -> dict[int, list[asyncpg.Record]]:
        """The rows that say that they are at these places, by place."""
        found: dict[int, list[asyncpg.Record]] = {}
        for log in self.all():
            positions = [place - log.place(0) for place in places if log.has(place)]
            if positions:
                for row in await self._connection.fetch(SQL.of(log)["rows_at"], positions, timeout=LONG_FETCH_SECONDS):
                    found.setdefault(log.place(row["log_index"]), []).append(row)
        return found

    async def explain(self, places: Sequence[int], rows: dict[int, list[asyncpg.Record]]) -> None:
        """Read what was purged and erased if what is known of it does not explain the rows at these places, and the log has grown since."""
        known = self.evidence
        marked = (place for place, there in rows.items() for row in there if row["payload_commitment"] is not None)
        if any(place not in rows and place not in known.missing for place in places) or any(
            place not in known.erased for place in marked
        ):
            at = self.last, await self._length()
            if at != self._evidence_at:
                await self.read_evidence()
                self._evidence_at = at

    async def read_evidence(self) -> None:
        """Read what was purged, erased and lost up to now."""
        self.evidence = await read_evidence(self._connection, self.last)

    async def _length(self) -> int:
        """How long the last log is; -1 if that cannot be said, since it has no flush."""
        try:
            return await tiled_log_size(self._connection, self.last)
        except HashesMissing:
            return -1

    async def once_purged(self) -> Positions:
        """All that a purge has named, also what was restored then."""
        ranges = []
        async for payload, row in read_self_events(self._connection, self.last, [PURGED]):
            start = int(payload.get("log_id", 0)) * LOG_POSITIONS
            named = Positions.parse(str(payload.get("positions"))).within(0, LOG_POSITIONS)
            ranges += [(start + a, start + b) for a, b in named]
            del row
        return Positions(ranges)

    async def present(self, log: Log, first: int, end: int) -> set[int]:
        """The places between two places of a log at which there is a row."""
        base = log.place(0)
        rows = await self._connection.fetch(SQL.of(log)["positions_between"], first - base, end - base)
        return {base + row["log_index"] for row in rows}

    def windows(self, first: int | None, end: int) -> Iterator[tuple[int, int, Log]]:
        """A range of places, a part of a log at a time."""
        if first is None:
            return
        for log in self.all():
            from_here, up_to = max(first, log.place(0)), min(end, self.end_of(log))
            for start in range(from_here, up_to, _POSITIONS_AT_ONCE):
                yield start, min(up_to, start + _POSITIONS_AT_ONCE), log


def between(first: int, end: int) -> str:
    """The places from `first` up to, not including, `end`, as people are told of them."""
    return place_text(first) if end == first + 1 else f"{place_text(first)} to {place_text(end - 1)}"
