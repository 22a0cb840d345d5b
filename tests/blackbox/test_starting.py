"""A service that cannot start: the reason in one line, exit code 1, and nothing left running."""

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from app.tlog.note import PublicKey
from tests import starting
from tests.certificates import Authority
from tests.databases import scratch
from tests.services import free_port

NOWHERE = "postgresql://u:hunter2@127.0.0.1:9/d"
FAULTS = {
    "port taken": (
        {"port": "{taken}"},
        "Cannot listen on 127.0.0.1:{taken} (Address already in use): stop what uses it",
    ),
    "IPv6 port taken": (
        {"port": "{taken6}", "host": "::1"},
        "Cannot listen on [::1]:{taken6} (Address already in use)",
    ),
    "second address taken": ({"port": "{taken6}", "host": "127.0.0.3,[::1]"}, "Cannot listen on [::1]:{taken6} ("),
    "health port taken": ({"health_port": "{taken}"}, "or set DATASTORAGE_HEALTH_PORT."),
    "metrics port taken": ({"metrics_port": "{taken}"}, "or set DATASTORAGE_METRICS_PORT."),
    "address of another machine": ({"host": "192.0.2.1", "allow_unauthenticated": "1"}, "set DATASTORAGE_HOST"),
    "name of no machine": ({"host": "nowhere.invalid", "allow_unauthenticated": "1"}, "nowhere.invalid"),
    "no address": ({"host": " , "}, "Invalid configuration: host: "),
    "open to all": ({"host": "127.0.0.1,::"}, "Host :: is reachable from outside"),
    "no port": ({"port": "0"}, "Invalid configuration: port: "),
    "no configuration file": ({"CONFIG_PATH": "missing.yaml"}, "Failed to load configuration file missing.yaml"),
    "bad configuration file": (
        {"CONFIG_PATH": "file"},
        "Failed to load configuration file file: mapping values are not",
    ),
    "no secret": ({"checkpoint_key_file": "", "hash_key_file": "missing"}, "Failed to load secrets: "),
    "no tokens": ({"auth": "tokens", "tokens_file": "missing"}, "Cannot read the tokens of missing: No such file"),
    "bad tokens": ({"auth": "tokens", "tokens_file": "file"}, "file"),
    "no certificate of Kubernetes": ({"auth": "kubernetes", "kubernetes_ca_file": "missing"}, "missing"),
    "no rate": ({"read_rate": "fast"}, "DATASTORAGE_READ_RATE: expected a rate such as 600/minute"),
    "no event types": ({"event_types_dir": "missing"}, "Cannot read DATASTORAGE_EVENT_TYPES_DIR: "),
    "bad event type": ({"event_types_dir": "types"}, "types/bad.json"),
    "no certificate": ({"tls_dir": "missing"}, "Cannot serve with missing/tls.crt"),
    "certificate of another key": ({"tls_dir": "pair"}, "Cannot serve with pair/tls.crt and pair/tls.key"),
    "no proxy": ({"trusted_proxies": "10.0.0.0/99"}, "10.0.0.0/99"),
    "no checkpoint key": ({"checkpoint_key_file": "missing"}, "cannot read DATASTORAGE_CHECKPOINT_KEY_FILE: "),
    "bad checkpoint key": (
        {"checkpoint_key_file": "file"},
        "The key of DATASTORAGE_CHECKPOINT_KEY_FILE is not the PEM",
    ),
    "bad earlier key": ({"checkpoint_earlier_keys": '["nobody"]'}, "'nobody', which is not a key"),
    "bad witness": ({"witnesses": '["nobody"]'}, "nobody"),
    "bad export pair": ({"signer_cert_dir": "pair"}, "The key pair that signs exports cannot be read from pair: "),
    "spool in use": ({"spool_dir": "used"}, "Another DataStorage uses the spool used: stop it"),
    "spool is a file": ({"spool_dir": "file"}, "The spool file cannot be used (File exists)"),
    "damaged spool": ({"spool_dir": "damaged"}, "The spool damaged cannot be read"),
}
EMBEDDED_FAULTS = {
    "state is a file": ({"data_dir": "file"}, "The embedded Postgres cannot use "),
    "state in use": ({"data_dir": "used"}, "Another DataStorage (process unknown) runs on "),
    "other Postgres": ({"data_dir": "old"}, "was written by Postgres 9"),
}
CASES = [(name, database) for name in FAULTS for database in ("embedded", "external")]
CASES += [(name, "embedded") for name in EMBEDDED_FAULTS]


@pytest.fixture(scope="module")
def outcomes() -> Iterator[dict[tuple[str, str], tuple[starting.Outcome, str]]]:
    """Of each case what came out, and what was expected in it."""
    with scratch() as directory, ExitStack() as resources:
        taken, taken6 = (
            resources.enter_context(socket.create_server((host, 0), family=family)).getsockname()[1]
            for host, family in (("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6))
        )
        ports = {"taken": taken, "taken6": taken6}
        starts, expected = {}, {}
        for number, (name, database) in enumerate(CASES):
            place = directory / str(number)
            settings, message = (FAULTS | EMBEDDED_FAULTS)[name]
            starts[f"{name} {database}"] = starting.Start(
                str(_furnished(place, resources)), _environment(settings, ports, database)
            )
            expected[name, database] = message.format(**ports)
        done = starting.run(starts)
        for number, case in enumerate(CASES):
            assert not any((directory / str(number)).glob("**/postgres.log")), f"Postgres was started: {case}"
        yield {case: (done[" ".join(case)], expected[case]) for case in CASES}


def _environment(settings: dict[str, str], ports: dict[str, int], database: str) -> dict[str, str]:
    base = {"port": str(free_port()), "data_dir": "state"} | (
        {"database_url": NOWHERE} if database == "external" else {}
    )
    named = {name: value.format(**ports) for name, value in (base | settings).items() if value}
    return {name if name.isupper() else f"DATASTORAGE_{name.upper()}": value for name, value in named.items()}


def _furnished(place: Path, resources: ExitStack) -> Path:
    """A directory with everything that the faults name."""
    place.mkdir()
    place.chmod(0o755)
    for name in ("pair", "other", "types", "used", "damaged", "old/postgres"):
        (place / name).mkdir(parents=True)
    (place / "file").write_text("neither YAML: nor a key: [\n")
    (place / "types/bad.json").write_text("[]")
    (place / "damaged/spool.sqlite3").write_bytes(b"no database" * 1000)
    (place / "old/postgres/PG_VERSION").write_text("9\n")
    authority = Authority(place)
    authority.write_pair(place / "pair", "one")
    authority.write_pair(place / "other", "other")
    (place / "other/tls.key").rename(place / "pair/tls.key")
    for lock in ("lock", "owner.lock"):
        descriptor = os.open(place / "used" / lock, os.O_RDWR | os.O_CREAT)
        resources.callback(os.close, descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    return place


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_the_reason_is_one_line(case: tuple[str, str], outcomes: Any) -> None:
    """A start that fails says that it serves, exits with 0, starts a Postgres for nothing, or shows a traceback."""
    outcome, expected = outcomes[case]
    assert outcome.code == 1
    assert outcome.errors.startswith("datastorage: ")
    assert expected in outcome.errors
    assert outcome.errors.count("\n") == 1, outcome.errors
    assert "hunter2" not in outcome.errors + outcome.output
    assert "Traceback" not in outcome.output


def test_fault_that_only_the_database_shows() -> None:
    """When the start fails after Postgres is there, the welcome is printed, the exit code is 0, or Postgres goes on running."""
    with scratch() as directory:
        (directory / "cwd").mkdir()
        key = PublicKey("elsewhere.example", bytes(32))
        settings = {"checkpoint_earlier_keys": json.dumps([str(key)]), "data_dir": str(directory / "state")}
        settings["PGSERVICE"] = "of another server"  # else it would be refused before
        start = starting.Start(str(directory / "cwd"), _environment(settings, {}, "embedded"))
        outcome = starting.run({"": start})[""]
        assert not (directory / "state/postgres/postmaster.pid").exists()
    assert outcome.code == 1
    first, _, last = outcome.errors.partition("\n")
    assert first == "Starting the service's own Postgres ...", outcome.errors
    assert last.startswith("datastorage: DATASTORAGE_CHECKPOINT_EARLIER_KEYS has a key of 'elsewhere.example', not of ")
