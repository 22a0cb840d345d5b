"""Imports point down: a station may import only what this table names. A new edge is added with its reason beside it."""

import ast
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STATIONS = {path.stem if path.is_file() else path.name for path in (ROOT / "app").iterdir()} - {
    "__init__",
    "__main__",
    "__pycache__",
}

MAY_IMPORT = {
    "go_duration": "",
    "cores": "",
    "config_file": "errors go_duration",
    "settings": "config_file errors",  # a bad setting is Fatal
    "errors": "",
    "metrics": "",
    "tracing": "errors",  # an extra that is not installed is Fatal
    "masking": "",
    "logs": "tracing masking",  # credentials in the texts of others' errors
    "tables": "",
    "sql": "",
    "state_dir": "errors",  # a user without a home is Fatal
    "terminal": "",
    "watched_file": "errors",
    "auth": "settings watched_file errors metrics",
    "embedded": "state_dir errors",
    "events": "errors",
    "database_url": "errors",
    "answering": "database_url",
    "schema": "database_url sql errors",  # the schema's revision, checked at start
    "db": "events database_url settings errors sql",  # events: the binary form of an address
    "bookmark": "",
    "workers": "db errors metrics",
    "standby": "db sql errors",  # how far standbys have what was committed or seen on a connection
    "presence": "standby database_url db workers settings errors",
    # standby: exports of a standby are signed only if synchronous ones have them; workers: the loop that asks how far each is
    "read_standbys": "bookmark standby workers database_url db sql settings errors metrics",
    "rollup": "workers db sql settings",
    "tlog": "events standby workers db sql settings errors metrics",  # standby: nothing is signed that a failover could contradict
    "verify": "events tlog workers database_url db sql settings errors metrics terminal",
    # schema: a spool is replayed into the log of the database that is there
    # tlog: what it finds wrong is an alarm, as what the checkpoint worker finds
    "ingest": "bookmark events schema tlog standby database_url db workers sql settings errors metrics tracing",
    # ingest: holds and runs are events too; tlog: what purge events among those that are purged have recorded
    "retention": "events ingest tlog schema db workers sql settings errors",
    # verify: a finding is of its defects; retention: logged actions, of which an acknowledgement is one
    "findings": "events ingest retention tlog verify workers db settings errors metrics terminal",
    "query": "events go_duration db sql tables errors",
    # verify: rows in portions of one snapshot, and the check of a chain's link; terminal: the page of a bundle is read on one
    "export": "events query verify tlog db sql tables terminal errors",
    # export: an event leaves in the same form, however it leaves; query: by the same filters
    # ingest, retention: what is archived is a logged action, which is an event; export: manifests are signed as those of exports
    # verify: a row is archived, and verified in a file, by the same rules
    # query: archived events are found by the same filters, and leave in the same form
    # standby: files are deleted only once standbys have why
    "archive": "events ingest export query retention tlog verify standby cores db settings sql errors",
    # settings: is a host loopback, and how Postgres is reached; workers: who follows is woken on a connection of its own
    # verify: a copy is compared with rows by the same rules
    # standby: nothing leaves that a failover could take away; ingest, retention: an order about a sink is a logged action
    "stream": "verify events ingest export query retention tlog standby workers db sql settings errors metrics watched_file",
    # standby: no portion of a stream leaves that a failover could take away
    # presence: what the probes show; stream: requests that follow the log; workers: and read on connections of their own
    # bookmark: what a caller knows; read_standbys: who answers him; archive: pages have what is there alone
    "api": "archive bookmark read_standbys auth events ingest tlog verify query stream export retention findings presence standby cores go_duration workers db logs settings errors metrics tracing",
    # api: a page asks what its JSON twin asks, and is admitted as that is
    # archive: what a page says if that cannot be read
    # verify: the chain of a page is verified where it is shown; retention: a hold is placed by a form
    "pages": "archive auth api events query verify retention findings db settings errors",
    # api: which requests another process answers; presence: the supervisor ends with the service's reason
    "pod": "api bookmark ingest presence cores settings errors",
    "main": "answering archive read_standbys pages pod api auth events ingest rollup stream tlog verify query export retention findings schema presence database_url db workers settings state_dir errors",
    "framing": "errors",  # what is no HTTP is answered by a problem too
    "exchange": "",
    "connection": "exchange framing errors",
    "tls": "config_file watched_file errors metrics",
    "serve": "connection main pod tls presence settings errors",  # uvicorn around main
    "openapi": "main pages api settings",  # the document of what main wires
    # all that a log needs that begins: its first event, what the last one has lost, its first checkpoint
    "continuing": "events ingest tlog verify schema db settings errors",
    "simulate": "masking",  # a client: it could be shipped alone
    # stream: a copy of it is verified
    "cli": "archive bookmark stream masking terminal auth serve openapi simulate continuing schema main events ingest tlog verify export retention findings presence database_url db embedded logs settings state_dir errors tracing",
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


def test_no_cycle() -> None:
    """Two stations need each other: neither can be understood alone."""
    remaining = {station: set(names.split()) for station, names in MAY_IMPORT.items()}
    while remaining:
        lowest = {station for station, names in remaining.items() if not names & remaining.keys()}
        assert lowest, remaining
        remaining = {station: names for station, names in remaining.items() if station not in lowest}


def test_longest_chain_of_imports() -> None:
    """One has to read through more modules than before to get from the server to the errors; a new one needs a reason."""
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in (ROOT / "app").rglob("*.py")
    }

    @cache
    def depth(module: str) -> int:
        """Modules on the longest way down from `module`, by imports at the top of files."""
        return 1 + max((depth(name) for name in imports_of(module)), default=0)

    def imports_of(module: str) -> set[str]:
        found = set()
        for node in ast.parse(modules[module].read_text("utf-8")).body:
            if isinstance(node, ast.ImportFrom) and node.module:
                names = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= {name if name in modules else node.module for name in names}
        return (found & modules.keys()) - {module}

    assert (
        max(map(depth, modules)) <= 21
    )  # a page asks what its JSON twin asks; the service has streams, which send what exports have


def test_table_names_only_what_is_used() -> None:
    """The table allows an import that nobody has any more."""
    for station, names in MAY_IMPORT.items():
        path = ROOT / "app" / station
        files = path.rglob("*.py") if path.is_dir() else [path.with_suffix(".py")]
        assert set(names.split()) <= {name for file in files for name in imported(file)}, station


def test_table_names_only_what_exists() -> None:
    """The table speaks of stations that are gone."""
    assert set(MAY_IMPORT) == STATIONS


def test_nothing_reads_outside_the_project() -> None:
    """A file of the project depends on something that a clone does not have."""
    files = [p for d in ("app", "migrations", "tests", "bench") for p in (ROOT / d).rglob("*.py")]
    assert [p.name for p in files if p != Path(__file__) and "../shared" in p.read_text("utf-8")] == []


TOP_LEVEL = {
    "app",
    "bench",
    "charts",
    "docs",
    "migrations",
    "openapi",
    "tests",
    ".ci",
    ".dockerignore",
    ".gitignore",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Dockerfile",
    "LICENSE",
    "Makefile",
    "README.md",
    "docker-compose.yml",
    "pyproject.toml",
    "requirements.lock",
    "requirements-archive.lock",
    "requirements-chart.lock",
    "requirements-dev.lock",
    "requirements-sbom.lock",
    "requirements-spark.lock",
}


def test_nothing_else_is_committed_at_the_top() -> None:
    """What a command has left there is committed with the rest: two wheels once were."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is no clone")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {path.partition("/")[0] for path in listed.split("\0") if path} == TOP_LEVEL
