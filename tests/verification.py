"""What every database test ends with: all chains and the log it wrote, recomputed."""

import asyncpg

from app.integrity.verify import SQL, verify_correlation, verify_log


async def verify_everything(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    """Every chain verifies, the log has no gap and no double, and every leaf is the hash of its row."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        log = await connection.fetchval("SELECT name FROM logs")
        for row in await connection.fetch(SQL["correlations"]):
            report = await verify_correlation(connection, row["correlation_id"], log)
            assert report.is_valid, (row["correlation_id"], report.head_finding, report.sealed.findings)
        assert [finding async for finding in verify_log(connection)] == []
        counted = await connection.fetchval("SELECT coalesce(sum(count), 0) - 1 FROM log_flushes")
        sealed = await connection.fetchval("SELECT count(*) FROM audit_events WHERE log_index IS NOT NULL")
        assert counted == sealed == await connection.fetchval("SELECT coalesce(sum(length), 0) FROM chain_heads")
