"""Imports point down: a station may import only what this table names. A new edge is added with its reason beside it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STATIONS = {path.stem if path.is_file() else path.name for path in (ROOT / "app").iterdir()} - {
    "__init__",
    "__main__",
    "__pycache__",
}

MAY_IMPORT = {
    "settings": "errors",  # a bad setting is Fatal
    "errors": "",
    "metrics": "",
    "tracing": "errors",  # an extra that is not installed is Fatal
    "logs": "tracing",
    "tables": "",
    "sql": "",
    "statedir": "",
    "auth": "settings errors metrics",
    "embedded": "statedir errors",
    "events": "errors",
    "schema": "sql errors",  # the schema's revision, checked at start
    "db": "events settings errors metrics tables sql",  # events: the binary form of an address
    "integrity": "events db tables sql settings errors metrics",
    "retention": "events ingest integrity schema db tables sql settings errors metrics",  # holds and runs are events too
    # retention: makes a missing partition; schema: a spool is replayed into the log of the database that is there
    "ingest": "events integrity retention schema db tables sql settings errors metrics tracing",
    "query": "events integrity db tables sql settings errors",
    "api": "auth events ingest query integrity retention db logs settings errors metrics sql tracing",  # logs: the access log
    "main": "api auth events ingest integrity query retention schema db logs settings statedir errors metrics",  # query: warms its statements
    "connection": "",
    "tls": "settings errors metrics",
    "serve": "connection main tls db settings errors",  # uvicorn around main
    "openapi": "main api events settings",  # the document of what main wires
    "simulate": "events",  # a client: it could be shipped alone
    "show": "",  # as simulate
    "cli": "auth serve openapi simulate show schema main events ingest query integrity retention db embedded logs settings statedir errors tracing",
}


def imported(path: Path) -> Iterator[str]:
    """Stations that the file at `path` imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{a.name}" if node.module == "app" else node.module for a in node.names]
        elif isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        yield from (name.split(".")[1] for name in names if name.startswith("app."))


@pytest.mark.parametrize("station", sorted(STATIONS))
def test_imports_point_down(station: str) -> None:
    """A station reaches for one that comes after it: the path of an event is no longer straight."""
    allowed = {station, *MAY_IMPORT[station].split()}
    path = ROOT / "app" / station
    files = path.rglob("*.py") if path.is_dir() else [path.with_suffix(".py")]
    found = {(file.name, name) for file in files for name in imported(file)}
    assert {edge for edge in found if edge[1] not in allowed} == set()


def test_table_names_only_what_exists() -> None:
    """The table speaks of stations that are gone."""
    assert set(MAY_IMPORT) == STATIONS


def test_nothing_reads_outside_the_project() -> None:
    """A file of the project depends on something that a clone does not have."""
    files = [p for d in ("app", "migrations", "tests", "bench") for p in (ROOT / d).rglob("*.py")]
    assert [p.name for p in files if p != Path(__file__) and "../shared" in p.read_text("utf-8")] == []
