"""What every database test ends with: all chains and the log that it wrote, recomputed."""

import asyncpg

from app.verify.correlation import verify_correlation
from app.verify.database import TrustAnchors, sequential_runner, verify_database

SUMS = """
SELECT sealed.*,
       (SELECT coalesce(sum(count), 0) FROM log_flushes) - 1 AS logged,
       (SELECT coalesce(sum(octet_length(leaves)), 0) / 32 FROM log_flushes) AS leaves,
       (SELECT coalesce(sum(length), 0) FROM chain_heads) AS chained
FROM (SELECT count(log_index) AS rows, count(DISTINCT log_index) AS positions,
             count(DISTINCT (correlation_id, chain_index)) FILTER (WHERE log_index IS NOT NULL) AS places,
             coalesce(max(log_index) + 1, 0) AS next
      FROM audit_events) sealed
"""


async def verify_everything(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    """Every chain verifies, the log has no gap and no double, and every leaf is the hash of its row."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        # Counted by Postgres alone, so that a verification that sees nothing does not pass.
        sums = dict(await connection.fetchrow(SUMS) or {})
        assert len(set(sums.values())) == 1, sums
        report = await verify_database(connection, sequential_runner(connection), TrustAnchors())
        assert report.defects.listed == [], report.defects.listed[:5]
        assert (report.events.verified, report.size) == (sums["rows"], sums["next"]), report
        for row in await connection.fetch("SELECT correlation_id FROM chain_heads"):
            chain = await verify_correlation(connection, row["correlation_id"], report.log)
            assert chain.is_valid, (row["correlation_id"], chain.head_defect, chain.sealed.defects.listed[:5])
