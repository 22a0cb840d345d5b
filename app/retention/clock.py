"""The time by which is decided what is over: what a wrong clock says to be over would be gone for ever."""

from datetime import UTC, datetime, timedelta

from app.db import connect
from app.errors import Fatal
from app.settings import Settings

DIFFERENCE_MAX = timedelta(minutes=5)


def machine_time() -> datetime:
    """What the clock of this machine says."""
    return datetime.now(UTC)


async def agreed_time(settings: Settings) -> datetime:
    """The earlier one of the times of this machine and of Postgres. Fatal if they are further apart than DIFFERENCE_MAX.

    A purge, or an expiry, that runs on the machine of Postgres has one clock: that it is wrong nobody sees here.
    """
    if settings.retention_url is not None:
        settings = settings.model_copy(update={"database_url": settings.retention_url})
    connection = await connect(settings)
    try:
        before = machine_time()
        of_postgres: datetime = await connection.fetchval("SELECT clock_timestamp()")
        after = machine_time()
    finally:
        await connection.close()
    if not before - DIFFERENCE_MAX <= of_postgres <= after + DIFFERENCE_MAX:
        raise Fatal(
            f"The clock of this machine is at {after:%Y-%m-%dT%H:%M:%SZ}, that of Postgres at {of_postgres:%Y-%m-%dT%H:%M:%SZ}: "
            "what is over cannot be known, and nothing was changed. Set the wrong one right, and run it again."
        )
    return min(before, of_postgres)
