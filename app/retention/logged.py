"""Logged actions: a change of rows and the self events that record it, in one transaction of the log.

They use a store with a connection of its own. For the writer of this process and of other replicas it is one more replica: they
lose the race to it, and so read the holds again before they write.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from app import schema
from app.db import DATABASE_ERRORS, Connection, FailureKind, failure_kind
from app.errors import DatabaseAway, DatabaseFailed, Unavailable
from app.events.log import Log
from app.ingest.accept import Event
from app.ingest.store import FlushAction, LostRace, Store
from app.settings import Settings
from app.tlog.continued import find_log

DEADLINE_SECONDS = 30.0


class LockTimeout(Unavailable):
    """Another session has locked what this needs; send the request again shortly."""

    label = "Busy"


@asynccontextmanager
async def action_store(settings: Settings, log: Log) -> AsyncIterator[Store]:
    """A store for one action. Errors of its connection are raised as DatabaseAway, LockTimeout or DatabaseFailed."""
    store = Store(settings, log, find_log=find_log(settings))
    try:
        yield store
    except DATABASE_ERRORS as error:
        match failure_kind(error):
            case FailureKind.AWAY:
                raise DatabaseAway from error
            case FailureKind.BUSY:
                raise LockTimeout from error
            case _:
                raise DatabaseFailed from error
    finally:
        await store.close()


async def read_open_log(connection: Connection, settings: Settings) -> Log:
    """The log that events are written to. Fatal if the schema does not fit, or the log has another name than the settings say."""
    first = Log(0, await schema.check_and_read_log_name(connection, settings.log_name))
    return await find_log(settings)(connection, first)


async def commit_action(store: Store, events: Sequence[Event], action: FlushAction) -> None:
    """Write `events` and run `action`, together or not at all. Retried while the race for the log is lost.

    Raises what `action` raises, what Store.commit() raises, and DatabaseAway after 30 seconds.
    """
    deadline = asyncio.get_running_loop().time() + DEADLINE_SECONDS
    while True:
        try:
            return await store.commit(events, [], deadline, action)
        except LostRace:
            store.reset_after_lost_race()  # from now on it locks the log first, so that the retries cannot all be lost
            if asyncio.get_running_loop().time() > deadline:
                raise DatabaseAway from None
