"""Events of the service's own and what they tell of, in one transaction of the log, on a connection of its own.

The process's writer and the other replicas lose the race to it as to any replica, and so learn of it before they write again.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import asyncpg

from app.db import CONNECTION_ERRORS, FailureKind, failure_kind
from app.errors import DatabaseAway, DatabaseFailed, Unavailable
from app.ingest.accept import Event
from app.ingest.store import FlushAction, LostRace, Store
from app.settings import Settings

DEADLINE_SECONDS = 30.0


class Busy(Unavailable):
    """Another session holds what this needs; send the request again shortly."""


@asynccontextmanager
async def acting(settings: Settings, log_name: str) -> AsyncIterator[Store]:
    """A store for one act. What goes wrong on its connection is DatabaseAway, Busy or DatabaseFailed."""
    store = Store(settings, log_name)
    try:
        yield store
    except (*CONNECTION_ERRORS, asyncpg.PostgresError) as error:
        match failure_kind(error):
            case FailureKind.AWAY:
                raise DatabaseAway from error
            case FailureKind.BUSY:
                raise Busy from error
            case _:
                raise DatabaseFailed from error
    finally:
        await store.close()


async def commit(store: Store, events: Sequence[Event], act: FlushAction) -> None:
    """Write `events` and do `act`, together or not at all, however often the race for the log is lost."""
    deadline = asyncio.get_running_loop().time() + DEADLINE_SECONDS
    while True:
        try:
            return await store.commit(events, [], deadline, act)
        except LostRace:
            store.lost()  # from now on it takes its turn, so that the next attempts cannot all be lost
            if asyncio.get_running_loop().time() > deadline:
                raise DatabaseAway from None
