"""Random single statements of a superuser on the service's tables: `verify` with a key and an outside checkpoint names each one, or
what it has changed is on the list of docs/evidence.md ("Outside the log").

Long form: `make fuzz`. `FUZZ_SEED=n FUZZ_STATEMENTS=1` repeats one statement.
"""

import asyncio
import os
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from random import randrange
from time import monotonic

import asyncpg
import pytest

from app.errors import Fatal
from app.verify.database import TrustAnchors, sequential_runner, verify_database
from tests import databases
from tests.fuzz.tables import Change, Row, Statements, Table, changes, tables_of
from tests.fuzz.world import World, build
from tests.services import ROOT

STATEMENTS = int(os.environ.get("FUZZ_STATEMENTS", "100"))
LONG = "FUZZ_STATEMENTS" in os.environ
SEED = int(os.environ.get("FUZZ_SEED", randrange(2**32) if LONG else 0))
REFUSED_MAX = 100
"""Statements in a row that Postgres refuses, or that change nothing."""
EVERYTHING = "everything"
VERBS = ("UPDATE", "DELETE", "INSERT", "TRUNCATE")

NOT_COVERED = (
    ("audit_events, sealed", "retention_days"),
    ("audit_events, sealed", "legal_hold, legal_hold_reason, legal_hold_placed_by, legal_hold_placed_at"),
    ("audit_events, sealed", "hash_algorithm"),
    ("audit_events, unsealed", EVERYTHING),
    ("chain_heads, purged", "correlation_id, length, hash"),
    ("log_flushes", "flushed_at"),
    ("log_tiles", "removed, hashes"),
    ("log_checkpoints", "signed_at, published_at, cosignatures"),
    ("log_checkpoints, older", "removed"),
    ("log_timestamps", "removed, token"),
    ("audit_retention_policies", "policy_id, legal_hold_override, created_at, updated_at"),
    ("adoptions", EVERYTHING),
    ("logs", "closed_at"),
    ("retention_operations", EVERYTHING),
    ("notification_audit, sealed", "id"),
    ("notification_audit, unsealed", EVERYTHING),
    ("claims", EVERYTHING),
    ("verifier", EVERYTHING),
    ("verifier_findings", EVERYTHING),
    ("rollups", EVERYTHING),
    ("rollup_logs", EVERYTHING),
    ("rollup_months", EVERYTHING),
    ("rollup_counts", EVERYTHING),
    ("rollup_scopes", EVERYTHING),
    ("rollup_marginals", EVERYTHING),
    ("sinks", EVERYTHING),
    ("rollup_changes", EVERYTHING),
    ("alembic_version", EVERYTHING),
    ("schema_min_writer", EVERYTHING),
)
"""The list of docs/evidence.md: rows, and what of them `verify` does not name."""

Connection = asyncpg.Connection


class Database:
    """The database of the test, as it is before each statement."""

    def __init__(
        self, world: World, connection: Connection, tables: dict[str, Table], rows: dict[str, list[Row]]
    ) -> None:
        self.tables, self.rows = tables, rows
        self._connection = connection
        self._anchors = TrustAnchors([world.key], world.outside, certificates=world.certificates)
        events = rows["audit_events"]
        self._correlations = {row["correlation_id"] for row in events}
        self._newest = max(int(row["size"] or 0) for row in rows["log_checkpoints"])

    async def attempt(self, table: Table, statement: str) -> tuple[list[Change], set[str]] | None:
        """What a statement changes and the kinds of defects that are named then; None if it changes nothing. It is rolled back."""
        attempt = self._connection.transaction()
        await attempt.start()
        try:
            await self._connection.execute(statement)
            found = changes(table, self.rows[table.name], await table.rows(self._connection))
            return (found, await self._kinds()) if found else None
        except (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError):
            return None
        finally:
            await attempt.rollback()

    async def _kinds(self) -> set[str]:
        try:
            result = await verify_database(self._connection, sequential_runner(self._connection), self._anchors)
        except Fatal:
            return {"not verified"}  # exit code 2, and says why
        except asyncpg.PostgresError as error:
            raise AssertionError("verification ended") from error
        return {defect.kind for defect in result.defects.listed}

    def describe(self, change: Change) -> list[tuple[str, str]]:
        """What the list may call a change: rows and what of them; rows in general and more exactly."""
        rows = [change.table, *(f"{change.table}, {name}" for name in self._more_exactly(change.table, change.row))]
        return [(name, what) for name in rows for what in (change.what, EVERYTHING)]

    def _more_exactly(self, table: str, row: Row) -> Iterator[str]:
        if table == "audit_events":
            yield "unsealed" if row["log_index"] is None and row["chain_index"] is None else "sealed"
        elif table == "notification_audit":
            yield "unsealed" if row["salt"] is None and row["log_id"] is None and row["log_index"] is None else "sealed"
        elif table == "chain_heads" and row["correlation_id"] not in self._correlations:
            yield "purged"
        elif table == "log_checkpoints" and int(row["size"] or 0) < self._newest:
            yield "older"

    def rows_called(self, name: str) -> tuple[Table, list[Row]]:
        """The rows that the list calls so."""
        table = self.tables[name.partition(",")[0]]
        exact = name.partition(", ")[2]
        return table, [
            row for row in self.rows[table.name] if not exact or exact in self._more_exactly(table.name, row)
        ]


@pytest.fixture(scope="module")
def world(server_url: str, template_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    url = asyncio.run(databases.create(server_url, template=template_database))
    try:
        yield asyncio.run(build(server_url, url, tmp_path_factory.mktemp("world")))
    finally:
        asyncio.run(databases.drop(server_url, url))


@pytest.fixture
async def database(world: World) -> AsyncIterator[Database]:
    async with databases.connected(world.url) as connection:
        await connection.execute("SET session_replication_role = replica; SET jit = off")
        await connection.execute("ALTER TABLE log_flushes DISABLE TRIGGER refuse_closed")  # it fires for replicas too
        tables = await tables_of(connection)
        rows = {name: await table.rows(connection) for name, table in tables.items()}
        database = Database(world, connection, tables, rows)
        async with connection.transaction():
            assert await database._kinds() == set()  # an honest log
        yield database


def listed() -> set[tuple[str, str]]:
    return {(rows, what) for rows, whats in NOT_COVERED for what in whats.split(", ")}


def test_list_of_the_documentation() -> None:
    """docs/evidence.md has another list of what is not covered than this test, or does not say what it could be used for."""
    text = (Path(ROOT) / "docs" / "evidence.md").read_text("utf-8")
    section = text.partition("## Outside the log\n")[2].partition("\n## ")[0]
    table = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")][2:]
    cells = [[cell.strip().replace("`", "") for cell in row] for row in table]
    assert {(rows, what) for rows, whats, *_ in cells for what in whats.split(", ")} == listed()
    assert all(who and what_for and limit for _, _, who, what_for, limit in cells)


async def test_nothing_is_listed_that_is_named(database: Database) -> None:
    """The list names what is covered by now."""
    for name, what in sorted(listed()):
        table, rows = database.rows_called(name)
        for number in range(REFUSED_MAX):
            statements = Statements(number, database.tables, database.rows)
            exact = statements.choice([*table.types, "inserted"]) if what == EVERYTHING else what
            made = await database.attempt(table, statements.about(table, exact, rows))
            if made is not None and not made[1] and any((name, what) in database.describe(one) for one in made[0]):
                break
        else:
            pytest.fail(f"{what} of {name} is named, or cannot be changed alone")


async def test_each_statement_is_named(database: Database) -> None:
    """A superuser changes what an auditor relies on, and `verify` neither names it nor does the list of what is not covered."""
    print(f"seed {SEED}, {STATEMENTS} statements", flush=True)
    tally, unlisted, started, allowed = Tally(), list[str](), monotonic(), listed()
    for number in range(STATEMENTS):
        statements = Statements(SEED + number, database.tables, database.rows)
        for _ in range(REFUSED_MAX):
            table, statement = statements.next()
            if (made := await database.attempt(table, statement)) is not None:
                break
        else:
            pytest.fail(f"seed {SEED + number} finds no statement that changes something")
        changed, kinds = made
        tally.add(table.name, statement, kinds)
        unknown = [one for one in changed if allowed.isdisjoint(database.describe(one))]
        if unknown and not kinds:
            unlisted.append(f"FUZZ_SEED={SEED + number}: {_described(unknown)} by\n{statement}")
        if number % 200 == 199:
            print(f"{number + 1} statements, {monotonic() - started:.0f} s", flush=True)
    print("", *tally.lines(), sep="\n")
    assert not unlisted, "\n".join(unlisted)
    assert tally.not_covered < STATEMENTS / 2


class Tally:
    """How many statements of each kind were named, on each table, and as what."""

    def __init__(self) -> None:
        self.not_covered = 0
        self._counts = defaultdict[str, Counter[tuple[str, bool]]](Counter)
        self._kinds = defaultdict[str, Counter[str]](Counter)

    def add(self, table: str, statement: str, kinds: set[str]) -> None:
        """`kinds` are those of the defects that were named."""
        self.not_covered += not kinds
        self._counts[table][statement.partition(" ")[0], bool(kinds)] += 1
        self._kinds[table].update(kinds)

    def lines(self) -> Iterator[str]:
        """A table as in docs/evidence.md."""
        yield f"| table | {' | '.join(VERBS)} | named |"
        yield "|" + "---|" * (len(VERBS) + 2)
        for table, counts in sorted(self._counts.items()):
            numbers = [(counts[verb, True], counts[verb, False]) for verb in VERBS]
            cells = [f"{named} + {others}" if named + others else "" for named, others in numbers]
            kinds = ", ".join(f"{kind} {times}" for kind, times in self._kinds[table].most_common())
            yield f"| `{table}` | {' | '.join(cells)} | {kinds} |"


def _described(changed: Sequence[Change]) -> str:
    return ", ".join(sorted({f"{one.what} of {one.table} {str(one.row)[:300]}" for one in changed})[:5])
