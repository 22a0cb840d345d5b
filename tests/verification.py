"""What every database test ends with: all chains and the log that it wrote, recomputed."""

import asyncpg

from app.integrity.verify import SQL, verify_chain, verify_log

SUMS = """
SELECT (SELECT count(*) FROM audit_events WHERE log_index IS NOT NULL) AS rows,
       (SELECT count(DISTINCT log_index) FROM audit_events) AS positions,
       (SELECT count(DISTINCT (correlation_id, chain_index)) FROM audit_events WHERE log_index IS NOT NULL) AS places,
       (SELECT coalesce(max(log_index) + 1, 0) FROM audit_events) AS next,
       (SELECT coalesce(sum(count), 0) - 1 FROM log_flushes) AS logged,
       (SELECT coalesce(sum(octet_length(leaves)), 0) / 32 FROM log_flushes) AS leaves,
       (SELECT coalesce(sum(length), 0) FROM chain_heads) AS chained
"""


async def verify_everything(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    """Every chain verifies, the log has no gap and no double, and every leaf is the hash of its row."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        # Counted by Postgres alone, so that a verification that sees nothing does not pass.
        sums = dict(await connection.fetchrow(SUMS) or {})
        assert len(set(sums.values())) == 1, sums
        log = await connection.fetchval("SELECT name FROM logs WHERE log_id = 0")
        verified = 0
        for row in await connection.fetch(SQL["correlations"]):
            report = await verify_chain(connection, row["correlation_id"], log)
            assert report.is_valid, (row["correlation_id"], report.head_defect, report.sealed.defects.listed[:5])
            verified += report.sealed.verified
        assert verified == sums["rows"]
        assert [defect async for defect in verify_log(connection)] == []
