"""Random single statements on tables, of any column of any row, and what each of them has changed."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from random import Random

import asyncpg

Connection = asyncpg.Connection
Row = dict[str, str | None]
"""The values of a row as Postgres prints them, by column."""

TABLES = """
SELECT c.relname AS table, a.attname AS column, format_type(a.atttypid, NULL) AS type,
    coalesce(a.attnum = ANY(k.conkey), false) AS is_key
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_constraint k ON k.conrelid = c.oid AND k.contype = 'p'
WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relnamespace = current_schema()::regnamespace
ORDER BY c.relname, a.attnum
"""
EVIDENCE = (
    *("audit_events", "chain_heads", "logs"),
    *("log_checkpoints", "log_flushes", "log_signers", "log_tiles", "log_timestamps"),
)
NUMBERS = ("0", "-1", "1", "2147483647", "-2147483648", "9223372036854775807", "-9223372036854775808")
OTHER_VALUES = {
    "bigint": NUMBERS,
    "integer": NUMBERS[:5],
    "smallint": ("0", "1", "-1", "32767"),
    "boolean": ("true", "false"),
    "uuid": ("00000000-0000-0000-0000-000000000000", "0195c3a0-7d2e-7b1c-9f0a-2f6f1d3b5a72"),
    "timestamp with time zone": ("infinity", "-infinity", "0001-01-01Z", "2026-01-31T12:00:00Z", "4714-11-24 BC"),
    "date": ("infinity", "-infinity", "2026-01-31"),
    "inet": ("10.0.0.1", "10.0.0.0/8", "::1", "::ffff:10.0.0.7"),
    "jsonb": ("{}", "[]", "null", "7", '{"event_type": "datastorage.event.erased"}', '{"a": 1e400}', '{"a": ""}'),
    "bytea": ("\\x", "\\x00", "\\x" + "00" * 16, "\\x" + "00" * 32),
    "text[]": ("{}", "{x}"),
    "uuid[]": ("{}",),
    "oid": ("0", "1"),
}
TEXTS = ("", "x", "erased", "sha256-unkeyed", "datastorage:hold:x", "é" * 9, "0" * 64, "success", "\n")


@dataclass(frozen=True)
class Table:
    """One table of the service; its columns' types by their names."""

    name: str
    types: dict[str, str]
    key: tuple[str, ...]

    async def rows(self, connection: Connection) -> list[Row]:
        """Its rows in the order in which they were written."""
        columns = ", ".join(f'"{name}"::text' for name in self.types)
        order = "log_index NULLS LAST, event_timestamp, event_id" if self.name == "audit_events" else "ctid"
        return [dict(row) for row in await connection.fetch(f"SELECT {columns} FROM {self.name} ORDER BY {order}")]


async def tables_of(connection: Connection) -> dict[str, Table]:
    """All tables of the schema by their names."""
    columns = await connection.fetch(TABLES)
    names = dict.fromkeys(row["table"] for row in columns)
    of_table = {name: [row for row in columns if row["table"] == name] for name in names}
    return {
        name: Table(name, {c["column"]: c["type"] for c in rows}, tuple(c["column"] for c in rows if c["is_key"]))
        for name, rows in of_table.items()
    }


@dataclass(frozen=True)
class Change:
    """One thing that is another one after a statement: a column of a row, or the row."""

    table: str
    row: Row
    """Before, or the one that was inserted."""
    what: str
    """A column, `inserted` or `removed`."""


def changes(table: Table, before: Sequence[Row], after: Sequence[Row]) -> list[Change]:
    """What is different. Equal values are no difference, however they are written; rows are compared by their key."""
    key = table.key or tuple(table.types)
    old, new = ({repr([row[name] for name in key]): row for row in rows} for rows in (before, after))
    removed = [row for name, row in old.items() if name not in new]
    inserted = [row for name, row in new.items() if name not in old]
    pairs = [(row, new[name]) for name, row in old.items() if name in new]
    for row in list(removed):  # only its key is another one
        moved = next((one for one in inserted if all(one[name] == row[name] for name in row if name not in key)), None)
        if moved is not None and table.key:
            pairs.append((row, moved))
            removed.remove(row)
            inserted.remove(moved)
    return [
        *(Change(table.name, row, "removed") for row in removed),
        *(Change(table.name, row, "inserted") for row in inserted),
        *(
            Change(table.name, row, name)
            for row, other in pairs
            for name, value in row.items()
            if not _is_equal(table.types[name], name, value, other[name])
        ),
    ]


def _is_equal(kind: str, column: str, one: str | None, other: str | None) -> bool:
    """Whether two values are the same one for the record (docs/design.md, 4.1 and 4.3)."""
    if one == other or (column == "previous_event_hash" and (one or "") == (other or "")):
        return True
    if kind != "jsonb":
        return False
    left, right = (json.loads(text or "null", parse_float=Decimal, parse_int=Decimal) for text in (one, other))
    return bool(left == right)


class Statements:
    """Random statements, the same ones for the same seed and rows."""

    def __init__(self, seed: int, tables: Mapping[str, Table], rows: Mapping[str, Sequence[Row]]) -> None:
        self._random = Random(seed)
        self._tables = tables
        self._rows = rows

    def next(self) -> tuple[Table, str]:
        """A statement and the table that it is about; half of all are about events, and many of the others about evidence."""
        others = [name for name in self._tables if name not in EVIDENCE]
        names = self._random.choices((("audit_events",), EVIDENCE, others), (50, 30, 20))[0]
        table = self._tables[self._random.choice(names)]
        if not self._rows[table.name]:
            return table, self._insert(table)
        makers: list[tuple[int, Callable[[Table], str]]] = [
            (50, self._update),
            (8, self._swap_some),
            (10, self._update_many),
            (10, self._delete),
            (5, self._delete_many),
            (12, self._insert),
            (2, lambda one: f"TRUNCATE {one.name}"),
        ]
        make = self._random.choices([maker for _, maker in makers], [weight for weight, _ in makers])[0]
        return table, make(table)

    def choice(self, of: Sequence[str]) -> str:
        """One of these, at random."""
        return self._random.choice(of)

    def about(self, table: Table, what: str, rows: Sequence[Row]) -> str:
        """A statement that changes `what` (as in Change) of some of these rows, and nothing else if the database lets it."""
        if what == "inserted" or not rows:
            return self._insert(table, rows)
        row = self._random.choice(rows)
        if what == "removed":
            return f"DELETE FROM {table.name} WHERE {_is(table, row)}"
        if len(rows) > 1 and self._random.random() < 0.3:
            return self._swap(table, (what,), self._random.sample(rows, 2))
        return f"UPDATE {table.name} SET {self._assignment(table, what, row)} WHERE {_is(table, row)}"

    def _update(self, table: Table) -> str:
        row = self._random.choice(self._rows[table.name])
        columns = self._random.sample(list(table.types), min(len(table.types), self._random.choice((1, 1, 1, 2, 3))))
        values = ", ".join(self._assignment(table, column, row) for column in columns)
        return f"UPDATE {table.name} SET {values} WHERE {_is(table, row)}"

    def _swap_some(self, table: Table) -> str:
        rows = [self._random.choice(self._rows[table.name]) for _ in range(2)]
        number = min(len(table.types), self._random.choice((1, 1, 2, 4)))
        return self._swap(table, self._random.sample(list(table.types), number), rows)

    @staticmethod
    def _swap(table: Table, columns: Sequence[str], rows: Sequence[Row]) -> str:
        one, other = rows
        values = ", ".join(
            f'"{name}" = CASE WHEN {_is(table, one)} THEN {_literal(table, name, other[name])}'
            f" ELSE {_literal(table, name, one[name])} END"
            for name in columns
        )
        return f"UPDATE {table.name} SET {values} WHERE {_is(table, one)} OR {_is(table, other)}"

    def _update_many(self, table: Table) -> str:
        column = self._random.choice(list(table.types))
        if table.types[column] in {"bigint", "integer", "smallint"} and self._random.random() < 0.5:
            value = f'"{column}" = "{column}" + {self._random.choice((1, -1, 256))}'
        else:
            value = self._assignment(table, column, self._random.choice(self._rows[table.name]))
        return f"UPDATE {table.name} SET {value} WHERE {self._predicate(table)}"

    def _delete(self, table: Table) -> str:
        return f"DELETE FROM {table.name} WHERE {_is(table, self._random.choice(self._rows[table.name]))}"

    def _delete_many(self, table: Table) -> str:
        return f"DELETE FROM {table.name} WHERE {self._predicate(table)}"

    def _insert(self, table: Table, rows: Sequence[Row] | None = None) -> str:
        """A copy of a row, of one of `rows` if there are any, with some other values, and a key of its own most of the time."""
        rows = rows or self._rows[table.name]
        row = self._random.choice(rows) if rows else dict.fromkeys(table.types)
        changed = set(self._random.sample(list(table.types), self._random.randint(0, min(3, len(table.types)))))
        changed |= {name for name in table.key if self._random.random() < 0.5}
        changed |= set() if rows else table.types.keys()
        if table.name == "audit_events" and self._random.random() < 0.3:  # as others insert
            ours = ("log_id", "log_index", "chain_index", "payload_salt", "payload_commitment", "event_hash")
            row = row | dict.fromkeys(ours) | {"event_id": self._uuid()}
        values = {
            name: self._value(table, name, row) if name in changed else _literal(table, name, row[name])
            for name in table.types
        }
        columns = ", ".join(f'"{name}"' for name in values)
        return f"INSERT INTO {table.name} ({columns}) VALUES ({', '.join(values.values())})"

    def _predicate(self, table: Table) -> str:
        column = self._random.choice(list(table.types))
        value = self._random.choice(self._rows[table.name])[column]
        if value is None:
            return f'"{column}" IS NULL'
        operator = self._random.choice(("=", "<", ">", "<>", "<=", ">="))
        return f'"{column}" {operator} {_literal(table, column, value)}'

    def _assignment(self, table: Table, column: str, row: Row) -> str:
        return f'"{column}" = {self._value(table, column, row)}'

    def _value(self, table: Table, column: str, row: Row) -> str:
        """Another value for a column of `row`: that of another row, none, a constant, or nearly the same."""
        kind, value = table.types[column], row[column]
        match self._random.randrange(8):
            case 0:
                return "NULL"
            case 1 | 2 if self._rows[table.name]:
                return _literal(table, column, self._random.choice(self._rows[table.name])[column])
            case 3 | 4:
                return _literal(table, column, self._random.choice(OTHER_VALUES.get(kind, TEXTS)))
        return _literal(table, column, self._near(kind, value))

    def _near(self, kind: str, value: str | None) -> str:
        change = self._random.choice((1, -1, 2, 7, -30))
        match kind:
            case "bigint" | "integer" | "smallint" | "oid":
                return str(int(value or 0) + change)
            case "boolean":
                return "false" if value == "true" else "true"
            case "uuid":
                return self._uuid()
            case "timestamp with time zone" if value and value[0] != "-" and "inf" not in value:
                return f"{value}|{change} {self._random.choice(('microseconds', 'seconds', 'days'))}"
            case "date" if value and "inf" not in value:
                return f"{value}|{change} days"
            case "bytea" if value and len(value) > 2:
                place = self._random.randrange(2, len(value))
                return value[:place] + ("1" if value[place] == "0" else "0") + value[place + 1 :]
            case "jsonb" if value and value.startswith("{"):
                document = json.loads(value)
                name = self._random.choice([*document, "added"])
                if self._random.random() < 0.3:
                    document.pop(name, None)
                else:
                    document[name] = self._random.choice((None, 0, 1, "", "erased", [], {}, [0], 1.5, True))
                return json.dumps(document)
            case "character varying" | "text" if value:
                place = self._random.randrange(len(value))
                return self._random.choice(
                    (value[:place] + "0" + value[place + 1 :], value[:place], value + " ", value.upper())
                )
        return self._random.choice(OTHER_VALUES.get(kind, TEXTS))

    def _uuid(self) -> str:
        return f"{self._random.getrandbits(128):032x}"


def _is(table: Table, row: Row) -> str:
    return " AND ".join(
        f'"{name}" IS NOT DISTINCT FROM {_literal(table, name, row[name])}' for name in table.key or table.types
    )


def _literal(table: Table, column: str, value: str | None) -> str:
    """`value` in SQL; of a time also as `time|interval`."""
    if value is None:
        return f"NULL::{table.types[column]}"
    time, bar, interval = value.rpartition("|")
    if bar and table.types[column] in {"date", "timestamp with time zone"}:
        return f"('{time}'::{table.types[column]} + interval '{interval}')::{table.types[column]}"
    return "'{}'::{}".format(value.replace("'", "''"), table.types[column])
