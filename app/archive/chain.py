"""The chain of one correlation, verified across Postgres and the archive."""

from collections.abc import Sequence

from app.archive.reading import ArchiveDamaged, ArchiveReader
from app.db import Pool
from app.errors import Unavailable
from app.events.log import Log
from app.events.record import Row
from app.query.timeline import gone_events
from app.verify.correlation import CorrelationResult, verify_correlation
from app.verify.row import Defect
from app.verify.snapshot import snapshot

_TRIES = 3


async def verify_whole(
    pool: Pool, reader: ArchiveReader, log: Log, correlation_id: str, *, hmac_key: bytes | None, seconds: float
) -> CorrelationResult:
    """Verify the chain of one correlation, with its events that are in the archive alone. If these cannot be read, or not in so many seconds,
    the result is about Postgres, and says why (`archive_unread`).
    """
    whole = _Whole(pool, reader, log, correlation_id, hmac_key)
    for _ in range(_TRIES):
        stored = await whole.verify()
        if not stored.gone_total:
            return stored
        if (missing := reader.what_is_missing) is not None:
            stored.archive_unread = missing
            return stored
        result, is_settled = await whole.verify_with_archive(stored, seconds)
        if is_settled:
            break
    return result


class _Whole:
    def __init__(
        self, pool: Pool, reader: ArchiveReader, log: Log, correlation_id: str, hmac_key: bytes | None
    ) -> None:
        self._pool, self._reader, self._log = pool, reader, log
        self._correlation_id, self._hmac_key = correlation_id, hmac_key

    async def verify(self, archived: Sequence[Row] = ()) -> CorrelationResult:
        async with snapshot(self._pool) as connection:
            return await verify_correlation(connection, self._correlation_id, self._log, self._hmac_key, archived)

    async def verify_with_archive(self, before: CorrelationResult, seconds: float) -> tuple[CorrelationResult, bool]:
        """The result with the archive, where Postgres alone gave `before`; and whether a run of the archive has removed nothing meanwhile."""
        gone = await gone_events(self._pool, self._correlation_id)
        try:
            found = await self._reader.of_correlation(
                self._pool, self._log, self._correlation_id, gone, payloads_of=frozenset(), seconds=seconds
            )
        except ArchiveDamaged as error:
            before.head_defect = before.head_defect or Defect("edited", f"edited: {error.detail}")
            return before, True
        except Unavailable as error:
            before.archive_unread = error.detail
            return before, True
        result = await self.verify([one.row for one in found])
        is_settled = (await gone_events(self._pool, self._correlation_id)).count == gone.count
        if is_settled and result.archived_total:
            message = f"removed: {result.archived_total} event(s) of the chain that are archived are in no file of the archive"
            result.head_defect = result.head_defect or Defect("removed", message)
        result.archived_read = len(found)
        return result, is_settled
