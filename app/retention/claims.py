"""Deletes the claims of Idempotency-Keys that have expired. Claims of event ids never expire."""

from app.db import Engine, fetch
from app.sql import load
from app.workers import run_forever

ROUND_SECONDS = 3600.0

SQL = load("retention")


async def delete_expired_forever(engine: Engine) -> None:
    """Now and every hour; a bounded number each time, so that no transaction is long."""

    async def do_round() -> None:
        await fetch(engine, SQL["delete_expired_claims"])

    await run_forever("claims", do_round, pause_seconds=ROUND_SECONDS, failure="expired claims could not be deleted")
