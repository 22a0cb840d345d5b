"""The schema as other programs know it, and as this service needs it."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import httpx
import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Table
from sqlalchemy.dialects import postgresql

import app.sql
from app import schema, tables
from app.errors import Fatal
from app.ingest.spool_file import FILE_NAME
from tests import starting
from tests.events import make_event
from tests.services import Service, free_port

# docs/contract.md, section 25, and ours from recorded_at on: name, type, whether NULL is refused, default.
COLUMNS = """
event_id                uuid                      required  gen_random_uuid()
event_version           character varying(10)     required  '1.0'::character varying
event_timestamp         timestamp with time zone  required  now()
event_date              date                      required  -
event_type              character varying(100)    required  -
event_category          character varying(50)     required  -
event_action            character varying(50)     required  -
event_outcome           character varying(20)     required  -
actor_type              character varying(50)     required  -
actor_id                character varying(255)    required  -
actor_ip                inet                      optional  -
resource_type           character varying(100)    required  -
resource_id             character varying(255)    required  -
resource_name           character varying(255)    optional  -
correlation_id          character varying(255)    required  -
parent_event_id         uuid                      optional  -
parent_event_date       date                      optional  -
trace_id                character varying(255)    optional  -
span_id                 character varying(255)    optional  -
namespace               character varying(253)    optional  -
cluster_id              character varying(255)    optional  -
event_data              jsonb                     required  -
event_metadata          jsonb                     optional  -
severity                character varying(20)     optional  -
duration_ms             integer                   optional  -
error_code              character varying(50)     optional  -
error_message           text                      optional  -
retention_days          integer                   optional  2555
is_sensitive            boolean                   optional  false
event_hash              text                      optional  -
previous_event_hash     text                      optional  -
legal_hold              boolean                   optional  false
legal_hold_reason       text                      optional  -
legal_hold_placed_by    text                      optional  -
legal_hold_placed_at    timestamp with time zone  optional  -
hash_algorithm          character varying(20)     required  'sha256-unkeyed'::character varying
recorded_at             timestamp with time zone  required  now()
log_id                  smallint                  optional  -
log_index               bigint                    optional  -
chain_index             bigint                    optional  -
payload_salt            bytea                     optional  -
payload_commitment      bytea                     optional  -
"""

COLUMNS_QUERY = """
SELECT attname, format_type(atttypid, atttypmod), CASE WHEN attnotnull THEN 'required' ELSE 'optional' END,
       coalesce(pg_get_expr(adbin, adrelid), '-')
FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum
"""

INSERT = """
INSERT INTO audit_events (event_date, event_timestamp, event_type, event_category, event_action, event_outcome,
                          actor_type, actor_id, resource_type, resource_id, correlation_id, event_data)
VALUES ((now() AT TIME ZONE 'UTC')::date, now(), 'test.legal_hold.x', 'no such category', '', '', '', '', '', '', 'rr-1', '{}')
RETURNING event_id
"""

RELEASED = "0013_pre_scopes"
"""The schema of the release before, whose replicas write while it is migrated."""
WRITTEN = """
SELECT string_agg(oid::regclass::text, ', ') FROM pg_class
WHERE relkind IN ('r', 'p') AND relnamespace = 'public'::regnamespace
    AND relname NOT IN ('alembic_version', 'rollup_counts', 'rollup_scopes')
"""
"""Of the last two the worker of the roll-up alone writes, under a lock that the migration takes first."""


@pytest.fixture
async def empty_url(server_url: str) -> AsyncIterator[str]:
    """A database without schema."""
    name = f"empty_{uuid4().hex}"
    server = await asyncpg.connect(server_url)
    try:
        await server.execute(f"CREATE DATABASE {name} TEMPLATE template0")
        yield urlsplit(server_url)._replace(path=f"/{name}").geturl()
        await server.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await server.close()


@pytest.fixture
async def row(connection: asyncpg.Connection) -> object:
    """The id of an event that another program inserted by SQL, with everything left out that may be."""
    return await connection.fetchval(INSERT)


async def test_columns_are_the_contracts(connection: asyncpg.Connection) -> None:
    """A program that reads or writes audit_events by SQL fails on a column's name, type, default or NOT NULL."""
    found = [" ".join(column) for column in await connection.fetch(COLUMNS_QUERY, "audit_events")]
    assert found == [" ".join(line.split()) for line in COLUMNS.strip().splitlines()]


@pytest.mark.parametrize("table", tables.metadata.tables.values(), ids=str)
async def test_tables_are_the_schemas(connection: asyncpg.Connection, table: Table) -> None:
    """A query built from app/tables.py names a column that does not exist, or assumes another type."""
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]  # untyped there
    ours = [
        (c.name, c.type.compile(dialect).lower().replace("varchar", "character varying"), not c.nullable)
        for c in table.columns
    ]
    found = await connection.fetch(COLUMNS_QUERY, table.name)
    assert ours == [(name, kind, required == "required") for name, kind, required, _ in found]


async def test_retention_is_the_only_check(connection: asyncpg.Connection) -> None:
    """Rows that other programs insert or update are refused for a value."""
    checks = await connection.fetch(
        "SELECT DISTINCT pg_get_constraintdef(oid) FROM pg_constraint WHERE contype = 'c' AND conrelid::regclass::text LIKE 'audit_events%'"
    )
    assert [tuple(check) for check in checks] == [("CHECK (((retention_days >= 1) AND (retention_days <= 2555)))",)]
    with pytest.raises(asyncpg.CheckViolationError):
        await connection.execute(
            INSERT.replace("event_data)", "event_data, retention_days)").replace("'{}'", "'{}', 0")
        )


async def test_no_extension(connection: asyncpg.Connection) -> None:
    """The schema cannot be made on a server where extensions are not allowed."""
    assert await connection.fetchval("SELECT array_agg(extname::text) FROM pg_extension") == ["plpgsql"]


async def test_first_rows(connection: asyncpg.Connection) -> None:
    """The first flush finds nothing to follow, or the retention policies are missing."""
    assert tuple(await connection.fetchrow("SELECT log_id, first_index, count, leaves FROM log_flushes") or ()) == (
        0,
        -1,
        1,
        b"",
    )
    policies = await connection.fetch("SELECT event_category FROM audit_retention_policies WHERE retention_days = 2555")
    assert {category for (category,) in policies} == {
        "gateway",
        "workflow",
        "remediation",
        "analysis",
        "notification",
        "apifrontend",
    }


async def test_lock_id(connection: asyncpg.Connection) -> None:
    """Programs that write by the platform's older rules lock another number than each other."""
    found = await connection.fetchrow("SELECT audit_event_lock_id('rr-1'), audit_event_lock_id('rr-ü')")
    assert tuple(found or ()) == (-6182309414078830845, 7639790182801786105)


ALLOWED = {
    "hash": "UPDATE audit_events SET event_hash = repeat('x', 74), previous_event_hash = '?'",
    "retention": "UPDATE audit_events SET retention_days = 1",
    "uncommitted columns": "UPDATE audit_events SET severity = 'low', namespace = 'n', event_timestamp = now(), duration_ms = 1",
    "same values": "UPDATE audit_events SET event_data = '{}', event_type = event_type",
    "hold": "UPDATE audit_events SET legal_hold = true, legal_hold_reason = 'r', legal_hold_placed_by = 'p', legal_hold_placed_at = now()",
    "no hold": "UPDATE audit_events SET legal_hold = NULL",
    "delete": "DELETE FROM audit_events WHERE correlation_id = 'rr-1'",
}


@pytest.mark.damaged
@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("statement", ALLOWED.values(), ids=ALLOWED)
async def test_allowed(connection: asyncpg.Connection, row: object, statement: str, sealed: bool) -> None:
    """The platform's own tests and tools can no longer do what they do by SQL, to their rows or to ours."""
    if sealed and statement == ALLOWED["uncommitted columns"]:
        pytest.skip("guarded on sealed rows")
    if sealed:
        await connection.execute(
            "UPDATE audit_events SET log_id = 0, log_index = 0, chain_index = 0 WHERE event_id = $1", row
        )
    assert await connection.execute(statement) in {"UPDATE 1", "DELETE 1"}


IMMUTABLE = (
    ("event_data", """'{"a": 1}'"""),
    *((name, "'other'") for name in ("event_type", "event_outcome", "actor_id", "actor_type", "correlation_id")),
    *((name, "'other'") for name in ("event_action", "resource_type", "resource_id", "event_category")),
)


@pytest.mark.parametrize(("column", "value"), IMMUTABLE)
async def test_immutable(connection: asyncpg.Connection, row: object, column: str, value: str) -> None:
    """The content of an event can be changed by a plain UPDATE."""
    with pytest.raises(asyncpg.CheckViolationError) as refused:
        await connection.execute(f"UPDATE audit_events SET {column} = {value} WHERE event_id = $1", row)
    assert str(refused.value) == f"AU-9: {column} of audit event {row} cannot be modified"


SEALED = {
    **dict.fromkeys(
        ("event_version", "namespace", "cluster_id", "severity", "error_code", "trace_id", "span_id"), "'x'"
    ),
    **dict.fromkeys(("resource_name", "error_message"), "'x'"),
    **dict.fromkeys(("event_timestamp", "recorded_at"), "now() + interval '1 s'"),
    **dict.fromkeys(("event_id", "parent_event_id"), "gen_random_uuid()"),
    **dict.fromkeys(("payload_salt", "payload_commitment"), "'\\x00'"),
    **dict.fromkeys(("log_id", "log_index", "chain_index", "duration_ms"), "7"),
    "parent_event_date": "'2026-01-01'",
    "is_sensitive": "true",
    "actor_ip": "'10.0.0.1'",
    "event_metadata": "'{}'",
}


@pytest.mark.damaged
@pytest.mark.parametrize("column", SEALED)
async def test_sealed_row_is_immutable(connection: asyncpg.Connection, row: object, column: str) -> None:
    """A member of the record or of the commitment can be changed by a plain UPDATE, or by one that pretends to erase."""
    await connection.execute("UPDATE audit_events SET log_id = 0, log_index = 0, chain_index = 0, payload_salt = ''")
    for variable in ("", str(row)):
        await connection.execute("SELECT set_config('datastorage.erasure', $1, false)", variable)
        changing = f"{column} = {SEALED[column]}"
        if variable and column != "payload_commitment":
            changing += ", payload_commitment = NULL"
        if variable and column == "payload_commitment":
            break  # as erasure itself does, as the owner
        with pytest.raises(
            asyncpg.CheckViolationError, match=f"AU-9: {column} of audit event {row} cannot be modified"
        ):
            await connection.execute(f"UPDATE audit_events SET {changing}")


async def test_held_row_stays(connection: asyncpg.Connection, row: object) -> None:
    """A row under legal hold can be deleted, or loses its hold without a release."""
    await connection.execute("UPDATE audit_events SET legal_hold = true")
    with pytest.raises(asyncpg.ForeignKeyViolationError, match=r"^Cannot delete audit event with legal hold.*rr-1"):
        await connection.execute("DELETE FROM audit_events")
    for dropped in ("false", "NULL"):
        with pytest.raises(asyncpg.CheckViolationError, match="SOC2"):
            await connection.execute(f"UPDATE audit_events SET legal_hold = {dropped} WHERE event_id = $1", row)


@pytest.mark.damaged
async def test_released_row_goes(connection: asyncpg.Connection, row: object) -> None:
    """An authorized release is refused, or leaves the row undeletable, or lasts longer than its transaction."""
    await connection.execute("UPDATE audit_events SET legal_hold = true WHERE event_id = $1", row)
    async with connection.transaction():
        await connection.execute("SET LOCAL kubernaut.legal_hold_release = 'authorized'")
        await connection.execute("UPDATE audit_events SET legal_hold = false")
    await connection.execute("UPDATE audit_events SET legal_hold = true")
    with pytest.raises(asyncpg.CheckViolationError, match="SOC2"):
        await connection.execute("UPDATE audit_events SET legal_hold = false")
    async with connection.transaction():
        await connection.execute("SET LOCAL kubernaut.legal_hold_release = 'authorized'")
        await connection.execute("UPDATE audit_events SET legal_hold = false")
    assert await connection.execute("DELETE FROM audit_events") == "DELETE 1"


@pytest.mark.damaged
async def test_parent_stays(connection: asyncpg.Connection, row: object) -> None:
    """Deleting an event leaves children behind whose parent is gone."""
    child = await connection.fetchval(
        INSERT.replace("event_data)", "event_data, parent_event_id)").replace("'{}'", f"'{{}}', '{row}'")
    )
    with pytest.raises(asyncpg.ForeignKeyViolationError, match="foreign key"):
        await connection.execute("DELETE FROM audit_events WHERE event_id = $1", row)
    await connection.execute("DELETE FROM audit_events WHERE event_id = $1", child)
    assert await connection.execute("DELETE FROM audit_events WHERE event_id = $1", row) == "DELETE 1"


async def test_event_date(connection: asyncpg.Connection) -> None:
    """An INSERT without event_date passes, or one with another day of the month is not corrected."""
    with pytest.raises(asyncpg.CheckViolationError, match="no partition"):
        await connection.execute(INSERT.replace("(now() AT TIME ZONE 'UTC')::date", "NULL"))
    other_day = INSERT.replace(
        "(now() AT TIME ZONE 'UTC')::date, now()",
        "'2026-03-07', '2026-03-31 23:30-02:00'::timestamptz - interval '3 h'",
    )
    await connection.execute("SELECT ensure_partitions('2026-03-01', '2026-03-01')")
    event_id = await connection.fetchval(other_day)
    stored = await connection.fetchval("SELECT event_date::text FROM audit_events WHERE event_id = $1", event_id)
    assert stored == "2026-03-31"


@pytest.mark.parametrize(
    ("won", "written", "expected", "outcome"), [(1, 2, 2, True), (1, 1, 2, "DS001"), (0, 0, 2, False), (1, 0, 0, True)]
)
async def test_flush_guard(
    connection: asyncpg.Connection, won: int, written: int, expected: int, outcome: object
) -> None:
    """A flush commits without all its chain heads, or a lost race looks like an error."""
    try:
        answer: object = await connection.fetchval("SELECT flush_guard($1, $2, $3)", won, written, expected)
    except asyncpg.PostgresError as error:
        answer = error.sqlstate
    assert answer == outcome


@pytest.mark.parametrize("member", ["target_resource", "pre_remediation_spec_hash", "post_remediation_spec_hash"])
async def test_member_index(connection: asyncpg.Connection, member: str) -> None:
    """A filter on a member of event_data reads every event."""
    await connection.execute("SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off")
    await connection.execute(
        f"PREPARE q(text) AS SELECT 1 FROM audit_events WHERE left(event_data->>'{member}', 200) = left($1, 200)"
    )
    plan = "\n".join(line for (line,) in await connection.fetch("EXPLAIN EXECUTE q('x')"))
    assert "Index Scan" in plan
    assert "Seq Scan" not in plan


async def test_long_member(connection: asyncpg.Connection) -> None:
    """A valid event fails because one of its values is too long for an index."""
    data = (
        "jsonb_build_object('target_resource', (SELECT string_agg(md5(i::text), '') FROM generate_series(1, 9000) i))"
    )
    assert await connection.fetchval(INSERT.replace("'{}'", data))


STATEMENTS = {
    f"{file.stem}.{name}": statement
    for file in Path(app.sql.__file__).parent.glob("*.sql")
    for name, statement in app.sql.load(file.stem).items()
}


@pytest.mark.parametrize("statement", STATEMENTS.values(), ids=STATEMENTS)
async def test_statement_fits(connection: asyncpg.Connection, statement: str) -> None:
    """A statement of app/sql does not fit the schema."""
    await connection.prepare(statement)


async def test_migrations() -> None:
    """Start-up accepts an old schema as current, since HEAD was not changed with the last migration."""
    config = Config()
    config.set_main_option("script_location", str(schema.MIGRATIONS))
    script = ScriptDirectory.from_config(config)
    assert script.get_current_head() == schema.HEAD
    for migration in script.walk_revisions():
        # Revisions are compared as text, and Alembic's column for them holds 32 characters.
        assert migration.revision == Path(migration.path).stem
        assert len(migration.revision) <= 32


async def test_migrates_beside_writers(empty_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A migration waits for the writers of the release before, which go on, and then all of them wait behind it for its lock."""
    with monkeypatch.context() as patch:
        patch.setattr(schema, "HEAD", RELEASED)
        await schema.upgrade(empty_url, "log.test")
    writing = await asyncpg.connect(empty_url)
    try:
        async with writing.transaction():
            names = await writing.fetchval(WRITTEN)
            await writing.execute(f"LOCK TABLE {names} IN ROW EXCLUSIVE MODE")
            await schema.upgrade(empty_url)  # Fatal after lock_timeout
        assert await writing.fetchval("SELECT version_num FROM alembic_version") == schema.HEAD
    finally:
        await writing.close()


async def test_upgrades_take_turns(empty_url: str) -> None:
    """Two replicas that start together on an empty database collide, or a later start waits or fails."""
    await asyncio.gather(*(schema.upgrade(empty_url, "log.test") for _ in range(3)))
    await schema.upgrade(empty_url, "log.test")
    connection = await asyncpg.connect(empty_url)
    assert await schema.check_and_read_log_name(connection, None) == "log.test"
    assert await connection.fetchval("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0
    await connection.close()


async def test_start_is_quick(database_url: str) -> None:
    """Every start pays half a second for loading Alembic, although there is nothing to migrate."""
    code = "import asyncio, sys; from app import schema; asyncio.run(schema.upgrade(sys.argv[1])); print('alembic' in sys.modules)"
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, database_url, stdout=asyncio.subprocess.PIPE
    )
    assert (await child.communicate())[0] == b"False\n"


async def test_foreign_table(empty_url: str) -> None:
    """A database that another program uses is changed, or the message does not say what is in the way."""
    connection = await asyncpg.connect(empty_url)
    await connection.execute("CREATE TABLE claims ()")
    with pytest.raises(Fatal, match='relation "claims" already exists'):
        await schema.upgrade(empty_url)
    assert await connection.fetchval("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == 1
    with pytest.raises(Fatal, match="no schema yet: run `datastorage migrate`"):
        await schema.check_and_read_log_name(connection, None)
    await connection.close()


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        ("0000_earlier", "service is newer than the schema.*run `datastorage migrate`"),
        ("9999_pre_later", "older than the schema.*upgrade the service"),
    ],
)
async def test_other_revision(connection: asyncpg.Connection, stored: str, words: str) -> None:
    """The service serves on a schema that it does not know, or does not say what to do."""
    await connection.execute("UPDATE alembic_version SET version_num = $1", stored)
    await connection.execute("UPDATE schema_min_writer SET revision = $1", stored)
    with pytest.raises(Fatal, match=words):
        await schema.check_and_read_log_name(connection, None)


async def test_newer_schema_is_left_alone(connection: asyncpg.Connection, database_url: str) -> None:
    """An old replica that starts with --migrate works on the schema of a newer one."""
    await connection.execute("UPDATE alembic_version SET version_num = '9999_pre_later'")
    await connection.execute("UPDATE schema_min_writer SET revision = '9999_pre_later'")
    with pytest.raises(Fatal, match="upgrade the service"):
        await schema.upgrade(database_url)


WRITERS = {
    *(
        "serve",
        "serve --migrate",
        "migrate",
        "retention run",
        "erase --correlation-id x --reason r",
        "log continue --reason r",
    ),
    *(
        "retention policy set gateway --days 9 --reason r",
        "retention policy remove gateway --reason r",
        "sink pause soc",
    ),
    *("findings acknowledge {id} --reason r", "spool replay {spool}"),
}
"""Every command that writes to the database itself."""


def outcomes_of_writers(database_url: str, directory: Path) -> dict[str, starting.Outcome]:
    """What each of WRITERS ends with on this database."""
    (directory / "spool").mkdir()
    (directory / "spool" / FILE_NAME).touch()
    starts = {}
    for number, words in enumerate(sorted(WRITERS)):
        place = directory / str(number)
        place.mkdir()
        arguments = [word.format(id=uuid4(), spool=directory / "spool") for word in words.split()]
        environment = {"DATASTORAGE_DATABASE_URL": database_url, "DATASTORAGE_UNSAFE_DATABASE": "true"}
        environment |= {"DATASTORAGE_PORT": str(free_port()), "DATASTORAGE_SPOOL_DIR": str(place / "spool")}
        starts[words] = starting.Start(str(place), environment, arguments)
    return starting.run(starts)


async def test_commands_of_too_old_a_release(connection: asyncpg.Connection, database_url: str, tmp_path: Path) -> None:
    """A command of a release that must not write to the schema writes to it, or does not say why it does not."""
    await connection.execute("UPDATE alembic_version SET version_num = '9999_pre_later'")
    await connection.execute("UPDATE schema_min_writer SET revision = '9999_pre_later'")
    for words, outcome in (await asyncio.to_thread(outcomes_of_writers, database_url, tmp_path)).items():
        assert outcome.code != 0, words
        said = outcome.errors + outcome.output
        assert f"it knows {schema.HEAD}, found 9999_pre_later): upgrade the service" in said, (words, said)


async def test_migrate_on_a_later_schema(connection: asyncpg.Connection, database_url: str, tmp_path: Path) -> None:
    """`migrate` of a release that is rolled back to names its own revision as the schema's."""
    await connection.execute("UPDATE alembic_version SET version_num = '9999_pre_later'")
    start = starting.Start(str(tmp_path), {"DATASTORAGE_DATABASE_URL": database_url}, ["migrate"])
    outcome = (await asyncio.to_thread(starting.run, {"migrate": start}))["migrate"]
    assert outcome.code == 0, outcome.errors
    assert outcome.output.startswith(f"The schema is at 9999_pre_later, later than this release knows ({schema.HEAD})")


async def test_newer_schema_that_takes_this_release(
    connection: asyncpg.Connection, database_url: str, service: Callable[..., Service]
) -> None:
    """While an upgrade is rolled out, an old replica that restarts is refused, or migrates back."""
    await connection.execute("UPDATE alembic_version SET version_num = '9999_pre_later'")
    await schema.upgrade(database_url)
    assert await connection.fetchval("SELECT version_num FROM alembic_version") == "9999_pre_later"
    running = await asyncio.to_thread(service, migrate=True)
    async with httpx.AsyncClient(base_url=running.url) as client:
        assert (await client.post("/api/v1/audit/events", json=make_event())).status_code == 201


async def test_log_name(connection: asyncpg.Connection) -> None:
    """Events are hashed under two names in one log."""
    name = await schema.check_and_read_log_name(connection, None)
    assert name == "test.example/datastorage"
    assert await schema.check_and_read_log_name(connection, name) == name
    with pytest.raises(Fatal, match=r"'other'.*hashed under 'test.example/"):
        await schema.check_and_read_log_name(connection, "other")
