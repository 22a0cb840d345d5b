"""The verification of a large log, by several processes."""

import pytest
from pydantic import SecretStr

from app.settings import Settings
from app.verify.database import TrustAnchors, verify_database
from app.verify.processes import connect_for_verification, process_pool
from app.verify.snapshot import SQL
from tests import databases
from tests.postgres.log import write


@pytest.mark.damaged
async def test_processes_see_one_snapshot(database_url: str) -> None:
    """Of a large log some defects are not found, or what is written meanwhile is taken for one."""
    await write(database_url, *({"correlation_id": f"rr-{number}"} for number in range(3)))
    async with databases.connected(database_url) as owner:
        await owner.execute("SET session_replication_role = replica")
        await owner.execute("UPDATE audit_events SET event_action = 'another' WHERE log_index = 1")
        settings = Settings(database_url=SecretStr(database_url))
        connection = await connect_for_verification(settings)
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            with process_pool(settings, await connection.fetchval(SQL["export_snapshot"]), 2) as pool:
                await owner.execute("UPDATE audit_events SET event_action = 'another' WHERE log_index = 2")
                result = await verify_database(connection, pool.run, TrustAnchors())
        await connection.close()
    assert [(one.kind, one.position) for one in result.defects.listed] == [("edited", 1)]
    assert (result.events.verified, result.events.total) == (2, 3)
    assert pool.cpu_seconds
