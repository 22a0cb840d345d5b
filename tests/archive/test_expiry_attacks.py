"""Attacks on the expiry of parts, which deletes the only copy of events, and what goes wrong while it runs."""

import asyncio
import re
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.engine import make_url

from app.archive import run
from app.archive.expiring import Expiries
from app.errors import DatabaseAway, Fatal
from app.retention.policies import PolicyOrder, set_policy
from app.settings import Settings
from app.tlog.orders import Policy
from tests import databases
from tests.archive.archived import (
    ALL,
    DAYS,
    NOW,
    OLD,
    OLDER,
    Connection,
    fill,
    folder_of,
    parts_of,
    problems,
    publish,
    settings_of,
    verified,
)
from tests.archive.test_expiry import EXPIRING, counts, expire, expiring, removed
from tests.logs import FIRST_LOG
from tests.sealed import seal

pytestmark = pytest.mark.damaged  # the verification at the end of every test does not know purges
OLDER_MONTH = OLDER.date().replace(day=1)


def in_another_thread(work: Any) -> None:
    """Await something while the event loop of the test waits for it."""
    thread = threading.Thread(target=asyncio.run, args=(work,))
    thread.start()
    thread.join()


async def terminate(url: str, lock: str) -> None:
    """End the session that has an advisory lock."""
    async with databases.connected(url) as connection:
        assert await connection.fetchval(
            "SELECT bool_and(pg_terminate_backend(pid, 10000)) FROM pg_locks WHERE locktype = 'advisory' "
            "AND (classid::bigint << 32 | objid::bigint) = hashtextextended($1, 0)",
            lock,
        )


async def test_the_locks_are_lost(database_url: str, connection: Connection, tmp_path: Path) -> None:
    """A run whose connection is gone, so that other runs may change the same months, deletes parts."""
    await fill(connection, rounds=1)
    settings = expiring(database_url, tmp_path)
    await removed(settings)

    def lose(step: str) -> None:
        if step == "table written":
            in_another_thread(terminate(database_url, "datastorage.archive"))

    with pytest.raises(Fatal, match="connection was lost"):
        await run.run(settings, NOW, EXPIRING, on_step=lose)
    assert await counts(connection) == (60, 0)
    assert await problems(settings) == []
    assert len((await expire(settings)).expired) == 2
    assert await counts(connection) == (0, 60)


async def test_a_policy_that_is_set_meanwhile(database_url: str, connection: Connection, tmp_path: Path) -> None:
    """A part is deleted by a policy that is not in force any more when that is recorded."""
    await fill(connection, rounds=1)
    settings = expiring(database_url, tmp_path)
    await removed(settings)
    order = PolicyOrder("eve", "why")
    set_by: list[Policy] = []

    def set_one(step: str) -> None:
        if step == "table written" and not set_by:
            set_by.append(Policy(900, ceiling_days=1000))
            in_another_thread(set_policy(settings, FIRST_LOG, "x", set_by[0], order))

    done = (await run.run(settings, NOW, EXPIRING, on_step=set_one)).expiries
    assert set_by
    assert done == Expiries()
    assert await counts(connection) == (60, 0)
    assert await problems(settings) == []


async def test_standbys_that_do_not_have_it(database_url: str, connection: Connection, tmp_path: Path) -> None:
    """Files are deleted of a part whose expiry is on the primary alone, and the standby that is promoted knows nothing of it."""
    await fill(connection, rounds=1)
    settings = expiring(database_url, tmp_path)
    await removed(settings)
    [older, _] = await parts_of(settings)

    def fail(step: str) -> None:
        if step == "expired":
            raise Fatal("for the test")

    with pytest.raises(Fatal, match="for the test"):
        await run.run(settings, NOW, EXPIRING, on_step=fail)
    with pytest.raises(DatabaseAway):
        await run.run(settings.model_copy(update={"require_synchronous_standby": True}), NOW, ALL)
    assert (folder_of(older) / "manifest.json").exists()
    await run.run(settings, NOW, ALL)
    assert not folder_of(older).exists()


@pytest.fixture
async def earlier(database_url: str, server_url: str, tmp_path: Path) -> AsyncIterator[tuple[Settings, Settings]]:
    """Settings of a Postgres for which a part has expired, and of one that is as it was before that; both have one archive."""
    settings = expiring(database_url, tmp_path)
    async with databases.connected(database_url) as connection:
        await fill(connection, rounds=1)
    await removed(settings)
    url = await databases.create(server_url, template=str(make_url(database_url).database))
    assert len((await expire(settings, month=OLDER_MONTH)).expired) == 1
    yield settings, settings_of(url, tmp_path, **DAYS)
    await databases.drop(server_url, url)


async def test_a_postgres_from_before_an_expiry(earlier: tuple[Settings, Settings]) -> None:
    """A Postgres that was restored or promoted finds files missing that it does not know to have expired: nothing goes on, or nobody is told."""
    now, before = earlier
    assert await problems(now) == []
    [gone, _] = await parts_of(before)
    found = await problems(before)
    assert [one.partition(":")[0] for one in found] == ["removed", "removed"]  # the part, and the table's metadata
    assert any("signed with the log's key, says that it has expired" in one for one in found)
    assert (await verified(before)).unknown == []
    refused = (await expire(before, month=OLDER_MONTH)).refused
    assert len(refused) == 1
    assert f"part {gone.archive_id} of {gone.month} does not expire: removed: manifest.json is missing" in refused[0]
    # What is due is archived, and the table is made anew.
    async with databases.connected(before.database_url.get_secret_value()) as connection:  # type: ignore[union-attr]
        old = {"event_timestamp": OLD, "event_date": OLD.date()}
        await seal(connection, "rr-late", old, old)
        await publish(connection)
    done = await run.run(before, NOW, ALL)
    assert [one.events for one in done.parts] == [2]
    assert [str(gone.archive_id) in one for one in done.pending] == [True]
    assert [one.partition(":")[0] for one in await problems(before)] == ["removed"]
    assert (await verified(before)).verified == 32
    # So is another part that is over.
    assert len((await expire(before, month=OLD.date().replace(day=1))).expired) == 1
    assert [one.partition(":")[0] for one in await problems(before)] == ["removed"]
    assert (await run.run(before, NOW, replace(EXPIRING, remove=True))).parts == []
    # A notice that nobody has signed, or that is of another manifest, says nothing.
    [notice] = [*folder_of(gone).parent.rglob("expired.json")]
    content = notice.read_bytes()
    for changed in (
        content.replace(b'"sig":"', b'"sig":"AAAA'),
        re.sub(rb'"signatures":.*\]', b'"signatures":[]', content),
        b"{}",
        b"",
    ):
        assert changed != content
        notice.write_bytes(changed)
        assert not any("expired" in one for one in await problems(before)), changed
    notice.write_bytes(content)
    assert any("says that it has expired" in one for one in await problems(before))
