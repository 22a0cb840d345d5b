"""The same server without a database: it parses, validates, links and hashes as usual, and sends nothing."""

import asyncio
from collections.abc import Sequence
from unittest.mock import patch

from app import main, rollup, serve
from app.events.log import Log
from app.ingest import partitions
from app.ingest.accept import Event
from app.ingest.link import Head, link
from app.ingest.store import Claimed, FindLog, FlushAction, SignedSize, Store
from app.presence import Presence
from app.settings import Settings, load


class NoStore(Store):
    """Commits nowhere, after one turn of the event loop."""

    def __init__(
        self, settings: Settings, of_log: Log, signed_size: SignedSize | None = None, find_log: FindLog | None = None
    ) -> None:
        super().__init__(settings, of_log, signed_size, find_log)
        self._end = (-1, 1)
        self._heads_by_correlation: dict[str, Head] = {}

    async def commit(
        self, events: Sequence[Event], claims: Sequence[Claimed], deadline: float, action: FlushAction | None = None
    ) -> None:
        del claims, deadline, action
        flush = link(events, self.log, self._end, self._heads_by_correlation)
        await asyncio.sleep(0)
        self._end = (flush.first_index, len(flush.rows))
        self._heads_by_correlation |= flush.heads

    async def close(self) -> None:
        """There is nothing to close."""


async def _find_database(*_: object) -> str:
    return "bench.example/nodatabase"


async def _nothing(*_: object) -> None:
    """Replaces a worker that would use the database."""


if __name__ == "__main__":
    with (
        patch.object(main, "Store", NoStore),
        patch.object(main, "_find_database", _find_database),
        patch.object(Presence, "watch", _nothing),
        patch.object(partitions, "create_ahead_forever", _nothing),
        patch.object(rollup, "follow_forever", _nothing),
    ):
        serve.serve(load(database_url="postgresql://nobody@127.0.0.1:1/nothing"), Presence())
