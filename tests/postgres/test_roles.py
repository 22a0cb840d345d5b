"""The roles of migrations/sql/roles.sql: the service's role can serve and nothing else; retention's can purge and erase."""

from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
from pydantic import SecretStr

from app import schema
from app.events.catalog import Catalog
from app.query import rows as page_rows
from app.query import total as totals
from app.query.filter import EventQuery
from app.retention import erase, purge
from app.retention.erase import Erasure
from app.rollup import count_portion
from app.settings import Settings
from tests.events import make_event
from tests.postgres.log import write
from tests.services import ROOT, Service

SCRIPT = (Path(ROOT) / "migrations" / "sql" / "roles.sql").read_text("utf-8")
ROLES = ("datastorage_service", "datastorage_retention", "datastorage_owner")


@pytest.fixture
async def roles(database_url: str, connection: Any) -> AsyncIterator[Callable[[str], str]]:
    """The database's URL with one of the roles. Roles belong to the whole server, so they are dropped at the end."""
    if not await connection.fetchval("SELECT rolsuper FROM pg_roles WHERE rolname = current_user"):
        pytest.skip("only a superuser can make roles and act as them")
    await connection.execute(SCRIPT)
    await connection.execute(SCRIPT)  # as after every migration
    joint = "&" if "?" in database_url else "?"
    yield lambda role: f"{database_url}{joint}options=-c%20role={role}"
    for role in ROLES:
        await connection.execute(f"REASSIGN OWNED BY {role} TO CURRENT_USER; DROP OWNED BY {role}")
    await connection.execute(f"DROP ROLE {', '.join(ROLES)}")


FORBIDDEN = (
    "UPDATE audit_events SET event_hash = ''",
    "UPDATE audit_events SET retention_days = 1",
    "DELETE FROM audit_events",
    "TRUNCATE audit_events",
    "DROP TABLE audit_events",
    "ALTER TABLE audit_events DISABLE TRIGGER ALL",
    "ALTER TABLE audit_events DETACH PARTITION {month}",
    "SELECT count(*) FROM {month}",
    "DELETE FROM {month}",
    "SET session_replication_role = replica",
    "DELETE FROM log_flushes",
    "UPDATE log_flushes SET leaves = ''",
    "DELETE FROM chain_heads",
    "DELETE FROM holds",
    "UPDATE logs SET name = 'x'",
    "UPDATE audit_retention_policies SET retention_days = 1",
    "SELECT erase_events('{{}}', '{{}}', '{{}}')",
    "CREATE TABLE mine (a int)",
    "DROP FUNCTION holds_check() CASCADE",
)


async def test_service_role_serves(
    roles: Callable[[str], str], service: Callable[..., Service], connection: Any
) -> None:
    """The service does not work with a role that owns nothing, or logs that it is not guarded."""
    one = service(database_url=roles("datastorage_service"))
    with httpx.Client(base_url=one.url, timeout=30) as client:
        _use(client)
    assert "can delete or alter events" not in one.log.read_text()
    assert await connection.fetchval("SELECT count(*) FROM audit_events") == 103


def _use(client: httpx.Client) -> None:
    events = [make_event(correlation_id="rr-1") for _ in range(100)]
    assert client.post("/api/v1/audit/events/batch", json=events).status_code == 201
    assert client.post("/api/v1/audit/events", json=make_event(correlation_id="rr-1")).status_code == 201
    placed = client.post("/api/v1/audit/legal-hold", json={"correlation_id": "rr-1", "reason": "r"})
    assert placed.json()["events_affected"] == 101, placed.text
    released = client.request("DELETE", "/api/v1/audit/legal-hold/rr-1", json={"release_reason": "r"})
    assert released.json()["events_released"] == 101, released.text
    verified = client.post("/api/v1/audit/verify-chain", json={"correlation_id": "rr-1"})
    assert verified.json()["is_valid"] is True


async def test_service_role_can_do_no_harm(roles: Callable[[str], str]) -> None:
    """Somebody with the service's password can change or remove an event, or what guards it."""
    connection = await asyncpg.connect(roles("datastorage_service"))
    assert await connection.fetchval("SELECT current_user") == "datastorage_service"
    assert await schema.role_warning(connection) is None
    month = f"audit_events_{datetime.now(UTC):%Y_%m}"
    for statement in FORBIDDEN:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(statement.format(month=month))
    assert await connection.fetchval("SELECT ensure_partitions('2031-01-01', '2031-01-01')") == 1
    await connection.close()


async def test_service_role_counts(roles: Callable[[str], str], database_url: str, connection: Any) -> None:
    """The roll-up needs more rights than the service has; or lists fail until roles.sql was run after the migration."""
    await write(database_url, {}, {})
    service = await asyncpg.connect(roles("datastorage_service"))
    while await count_portion(service):
        pass
    assert await totals.from_rollup(service, EventQuery()) == 2
    for table in ("rollup_changes", "rollup_marginals"):
        await connection.execute(f"REVOKE ALL ON {table} FROM datastorage_service")
        assert await totals.from_rollup(service, EventQuery()) is None
        assert await totals.total(service, EventQuery()) == (2, True)
        assert (await page_rows.rows_of_page(service, EventQuery(offset=20_000))).rows == []
    await service.close()


async def test_months_are_made_before_roles_are_run_again(roles: Callable[[str], str], connection: Any) -> None:
    """Somebody else than the owner migrates, and until roles.sql was run again no late event finds its month."""
    for name in (
        "rollup_logs",
        "rollup_months",
        "rollup_counts",
        "rollup_scopes",
        "rollup_changes",
        "rollup_tables",
        "rollup_log_progress",
    ):
        await connection.execute(
            f"ALTER TABLE {name} OWNER TO CURRENT_USER; REVOKE ALL ON {name} FROM datastorage_owner"
        )
    for name in ("audit_events_record_change()", "log_flushes_record_loss()"):
        await connection.execute(f"ALTER FUNCTION {name} OWNER TO CURRENT_USER")
    migration = (Path(ROOT) / "migrations" / "sql" / "0006_rollup.sql").read_text("utf-8")
    _, begin, grants = migration.rpartition("DO $$")
    await connection.execute(begin + grants.partition("$$;")[0] + "$$")
    service = await asyncpg.connect(roles("datastorage_service"))
    assert await service.fetchval("SELECT ensure_partitions('2019-01-01', '2019-01-01')") == 1
    await service.close()


async def test_nobody_borrows_what_runs_as_the_owner(roles: Callable[[str], str]) -> None:
    """A role hangs a trigger function of the owner's on a table of its own, and changes what others count."""
    service = await asyncpg.connect(roles("datastorage_service"))
    await service.execute("CREATE TEMP TABLE mine (log_index bigint)")
    for function in (
        *("audit_events_record_change", "log_flushes_record_loss"),
        *("rollup_counts_add_up", "rollup_scopes_add_up"),
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await service.execute(
                f"CREATE TRIGGER t AFTER DELETE ON mine FOR EACH STATEMENT EXECUTE FUNCTION {function}()"
            )
    await service.close()


@pytest.mark.damaged
async def test_retention_role(roles: Callable[[str], str], database_url: str, connection: Any) -> None:
    """Purge and erasure do not work with the role that is meant for them."""
    old = datetime.now(UTC).replace(day=1) - timedelta(days=70)
    whole = {"event_timestamp": old.isoformat(), "retention_days": 10}
    single = {"event_timestamp": (old + timedelta(days=32)).isoformat()}
    await write(database_url, whole, single, single | {"retention_days": 10}, {"actor_id": "ada"})
    settings = Settings(
        database_url=SecretStr("postgresql://nobody@localhost/none"),
        retention_url=SecretStr(roles("datastorage_retention")),
    )
    done = await purge.run(settings, datetime.now(UTC))
    assert (done.rows_deleted, len(done.dropped)) == (2, 1)
    erased = await erase.erase(settings, Catalog(), Erasure("r", "eve", actor_id="ada"), dry_run=False)
    assert len(erased.events) == 1
    assert await connection.fetchval("SELECT count(payload_commitment) FROM audit_events") == 1


async def test_single_role_is_reported(database_url: str, service: Callable[..., Service], connection: Any) -> None:
    """An installation with one role for everything does not work, or the log does not say what it does not guard."""
    assert "disable their triggers" in (await schema.role_warning(connection) or "")
    one = service(database_url=database_url)
    assert "can delete or alter events" in one.log.read_text()
