"""What the tests of this directory share. A file that needs another one of these defines its own under the same name."""

from collections.abc import AsyncIterator

import asyncpg
import pytest
from pydantic import SecretStr

from app import db
from app.db import Engine
from app.query import histogram, rows, total
from app.settings import Settings
from tests.sealed import seal

Connection = asyncpg.Connection


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads take as long as they take: on a busy machine a second may be over before a few rows are read. Tests of these limits set them."""
    for module, names in (
        (rows, ("SCAN_SECONDS", "_AT_ONCE_SECONDS")),
        (total, ("COUNT_SECONDS",)),
        (histogram, ("COUNT_SECONDS",)),
    ):
        for name in names:
            monkeypatch.setattr(module, name, 600.0)


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[Engine]:
    """A pool of two connections."""
    engine = db.create_engine(Settings(database_url=SecretStr(database_url), pool_connections_max=2))
    yield engine
    await engine.dispose()


@pytest.fixture
async def owner(connection: Connection) -> Connection:
    """Whom no trigger stops, on a log of 20 events in two chains."""
    await connection.execute("SET session_replication_role = replica")
    for turn in range(4):
        await seal(connection, f"rr-{turn % 2}", *({} for _ in range(5)))
    return connection
