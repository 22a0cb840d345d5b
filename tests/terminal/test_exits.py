"""The exit code of every command, as docs/commands.md has it: 0 as asked, 1 a defect, 2 not looked at or done, 64 called wrongly."""

import argparse
import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx

from app.cli.exits import Exit
from app.cli.parser import build
from app.ingest.spool import Spool
from app.tlog.note import PublicKey
from tests import starting
from tests.events import make_event
from tests.services import ROOT, Service, free_port
from tests.story import make_story
from tests.waiting import until

DAMAGED, WHOLE = "rr-damaged", "rr-whole"
NOBODY = "00000000-0000-4000-8000-000000000000"
AUDIT = "/api/v1/audit"

CASES: dict[str, dict[str, int]] = {
    "show": {
        f"{WHOLE}": 0,
        f"{DAMAGED}": 1,
        f"{DAMAGED} --verify": 1,
        "rr-typo": 2,
        "": 64,
        "rr-1 --zone Nowhere/At": 64,
    },
    "list": {
        "": 0,
        "--url http://127.0.0.1:{away}": 2,
        "--token-file missing": 2,
        "--since soon": 64,
        "--url ftp://x": 64,
    },
    "search": {
        "": 0,
        f"--correlation {WHOLE} --all": 0,
        "--since 2026-01-31T14:00 --until 2026-01-31T16:00 --zone Europe/Berlin": 0,
        "--url 127.0.0.1:{away}": 2,
        "--limit 0": 64,
        "--q text": 64,
        "--bogus": 64,
    },
    "event": {"{event}": 0, NOBODY: 2, "no-uuid": 64},
    "proof": {"{event}": 0, "{event} --json": 0, NOBODY: 2, "no-uuid": 64},
    "trust": {"": 0, "--json": 0, "--url 127.0.0.1:{away}": 2, "x": 64},
    "tail": {
        "--url 127.0.0.1:{away}": 2,
        "--from 0:99999999": 64,
        "--from soon": 64,
        "--unsealed --url 127.0.0.1:{away}": 64,
        "--bogus": 64,
    },
    "notifications": {"": 0, "--url 127.0.0.1:{away}": 2, "--since soon": 64},
    "histogram": {"": 0, "--url 127.0.0.1:{away}": 2, "--bucket eon": 64},
    "export": {
        f"{WHOLE} -o again.bundle": 0,
        "rr-typo -o x": 2,
        f"{WHOLE} -o missing/x": 2,
        f"{WHOLE} -o .": 64,
        WHOLE: 64,
        "--since 2h -o events.ndjson": 0,
        "--since 2h --no-archive --format csv --actor nobody -o none.csv": 0,
        "--since 2h -o missing/x": 2,
        "--since 2h -o x --url 127.0.0.1:{away}": 2,
        "--since soon -o x": 64,
        "--since 2h --archive -o x": 64,
        "--archive --zone UTC -o x": 64,
        f"{WHOLE} --since 2h -o x": 64,
        f"{WHOLE} --format csv -o x": 64,
    },
    "hold place": {f"{WHOLE} --reason case": 0, "rr-typo --reason case": 2, WHOLE: 64, "--reason case": 64},
    "hold list": {"": 0, "--released": 0, "--url 127.0.0.1:{away}": 2, "x": 64},
    "hold release": {f"{WHOLE} --reason over": 0, f"{WHOLE} --reason again": 2, "--id x --reason over": 64},
    "verify-proof": {
        "./proof --key {key}": 0,
        "./edited-proof --key {key}": 1,
        "./missing --key {key}": 2,
        "./proof --key nonsense": 2,
        "./proof": 64,
    },
    "verify-timestamp": {
        "./proof --key {key} --tsa missing": 2,
        "./missing --key {key} --tsa missing": 2,
        "./proof": 64,
    },
    "verify-export": {
        "./bundle --key {key}": 0,
        "./edited-bundle --key {key}": 1,
        "./missing --key {key}": 2,
        "./bundle --key nonsense": 2,
        "./bundle": 64,
    },
    "checkpoint-key": {"new.pem": 0, "./proof": 2, "x --algorithm rsa": 64},
    "verify": {
        WHOLE: 0,
        "": 1,
        DAMAGED: 1,
        "rr-typo": 2,
        "--key nonsense": 2,
        "--checkpoint missing": 2,
        "--processes x": 64,
    },
    "findings list": {"": 0, "--bogus": 64},
    "findings acknowledge": {f"{NOBODY} --reason r": 2, "x --reason r": 64, NOBODY: 64},
    "log key": {"": 0, "--url 127.0.0.1:{away}": 2, "x": 64},
    "log continue": {"--reason r --checkpoint missing": 2, "--reason r": 2, "--reason _": 64, "": 64},
    "retention plan": {"": 0, "x": 64},
    "retention run": {"": 0, "x": 64},
    "retention policy list": {"": 0, "--url {url}": 0, "--url 127.0.0.1:{away}": 2, "x": 64},
    "retention policy set": {"gateway --days 90 --reason r": 0, "gateway --days 0 --reason r": 64, "gateway": 64},
    "retention policy remove": {"gateway --reason r": 0, "gateway --reason again": 2, "gateway": 64},
    "archive plan": {"": 0, "--month 2026-01 --partial": 0, "--month soon": 64},
    "archive run": {"": 2, "--month soon": 64},
    "archive list": {"": 0, "x": 64},
    "archive verify": {"--key {key}": 0, "": 2, "--key nonsense": 2, "--sample --manifests": 64},
    "archive restore": {
        "--month 2026-01 --output {key} --key {key}": 2,
        "--month 2026-01 --output ./restored --key {key}": 2,
        "--month soon --output ./restored": 64,
        "--month 2026-01": 64,
    },
    "verify-archive": {"./missing --key {key}": 2, ". --key nonsense": 2, ". --key {key}": 2, ".": 64},
    "erase": {f"--event-id {NOBODY} --reason r --dry-run": 0, "--event-id x --reason r": 64, "--reason r": 64},
    "sink list": {"": 0, "x": 64},
    "sink pause": {"none": 2, "": 64},
    "sink resume": {"none": 2, "": 64},
    "sink rewind": {"none start": 2, "none 0:1000000": 64, "none soon": 64, "none": 64},
    "sink remove": {"none": 2, "": 64},
    "sink test": {"none": 64},
    "import": {"./events": 0, "./bad-events": 1, "./missing": 2, ".": 64, "": 64},
    "simulate": {"--remediations 1": 0, "--url 127.0.0.1:{away}": 2, "--remediations 0": 64},
    "try": {"": 0, "--key {other}": 1, "--url 127.0.0.1:{away} --wait 0": 2, "--wait x": 64},
    "serve": {"": 1, "--bogus": 64},
    "migrate": {"": 0, "--bogus": 64},
    "health": {"": 0, "x": 64},
    "spool list": {"{spool}": 0, "./missing": 2, "": 64},
    "spool export": {"{spool}": 0, "./missing": 2, "": 64},
    "spool replay": {"{spool}": 0, "./missing": 2, "": 64},
    "settings": {"": 0, "x": 64},
    "event-types": {"": 0, "orchestrator.lifecycle.started": 0, "no.such.type": 2, "a b": 64},
    "openapi": {"": 0, "x": 64},
    "token create": {"--name a --role reader": 0, "--name a --role nobody": 64, "": 64},
}
"""By command: the exit code for arguments. What stands in braces is replaced, `_` by a space."""
AWAY = (
    "verify",
    "findings list",
    "retention plan",
    "retention run",
    "retention policy list",
    "archive plan",
    "archive run",
    "archive list",
    "archive verify --key {key}",
    "archive restore --month 2026-01 --output ./restored --key {key}",
    f"erase --event-id {NOBODY} --reason r",
    "log continue --reason r",
    "sink list",
    "migrate",
    "spool replay {spool}",
)
"""Commands on Postgres, which say in one line that it is away."""


def leaves(parser: argparse.ArgumentParser, *names: str) -> Iterator[str]:
    """The commands that have no further ones."""
    nested = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not nested:
        yield " ".join(names)
    for action in nested:
        for name, one in action.choices.items():
            yield from leaves(one, *names, name)


def test_every_command_has_cases() -> None:
    """A new command ends with whatever code it happens to."""
    assert set(CASES) == set(leaves(build()))
    assert [name for name, cases in CASES.items() if 64 not in cases.values()] == []


def test_table_of_codes() -> None:
    """Somebody writes a script by a table that is not true any more."""
    rows = re.findall(r"^\| `(\d+)` \| (.*?) \|$", (ROOT / "docs/commands.md").read_text(), re.MULTILINE)
    assert {int(code): text for code, text in rows} == {one.value: one.text for one in Exit}


async def test_exit_codes(service: Callable[..., Service], database_url: str, connection: Any, tmp_path: Path) -> None:
    """A script takes a defect, a typing error or a service that is away for the answer that it wanted."""
    url, event, key = await asyncio.to_thread(_prepare, service, tmp_path)
    Spool(tmp_path / "spool", 1 << 30).close()
    await connection.execute("SET session_replication_role = replica")
    change = "UPDATE audit_events SET actor_id = $1 WHERE correlation_id = $2 AND actor_id = $3"
    await connection.execute(change, "eve", DAMAGED, "ada")
    known = {
        "url": url,
        "away": str(free_port()),
        "key": key,
        "other": str(PublicKey("other", bytes(32))),
        "event": event,
        "spool": str(tmp_path / "spool"),
    }
    environment = {"DATASTORAGE_PORT": url.rpartition(":")[2], "DATASTORAGE_DATABASE_URL": database_url}
    environment["DATASTORAGE_DATA_DIR"] = str(tmp_path / "state")
    environment["DATASTORAGE_ARCHIVE_URL"] = f"file://{tmp_path}/archive"
    expected = {f"{name} {text}": code for name, cases in CASES.items() for text, code in cases.items()}
    starts = {one: (_arguments(one, known, tmp_path), environment) for one in expected}
    away = environment | {"DATASTORAGE_DATABASE_URL": f"postgresql://u:hunter2@127.0.0.1:{known['away']}/d"}
    for name in AWAY:
        expected[f"{name} (away)"] = 2
        starts[f"{name} (away)"] = (_arguments(name, known, tmp_path), away)
    outcomes = await asyncio.to_thread(_run_each, starts, tmp_path)
    await connection.execute(change, "ada", DAMAGED, "eve")
    assert {name: one for name, one in outcomes.items() if one.code != expected[name]} == {}
    for name, one in outcomes.items():
        assert "Traceback" not in one.errors, one
        assert "again shortly" not in one.errors, one
        assert "hunter2" not in one.errors + one.output, one
        if expected[name] == 2:
            assert len(one.errors.strip().splitlines()) <= 2, one
            assert one.errors.startswith(("datastorage: ", "signatures of checkpoints")), one


def _prepare(service: Callable[..., Service], directory: Path) -> tuple[str, str, str]:
    """URL of a service with a whole correlation and another one, the id of an event, and the log's key; and files for the commands."""
    files = directory / "files"
    files.mkdir()
    run(files, "checkpoint-key", "log.pem")
    running = service(checkpoint_key_file=files / "log.pem", verifier_events_per_second=0)
    with httpx.Client(base_url=running.url, timeout=30) as client:
        client.post(f"{AUDIT}/events/batch", json=make_story(WHOLE)).raise_for_status()
        client.post(f"{AUDIT}/events", json=make_event(correlation_id=DAMAGED, actor_id="ada")).raise_for_status()
        event = client.get(f"{AUDIT}/events", params={"correlation_id": WHOLE}).json()["data"][0]["event_id"]
        until(lambda: client.get(f"{AUDIT}/events/{event}/proof").is_success or None)
    run(files, "proof", event, "--json", "-o", "proof", "--url", running.url)
    run(files, "export", WHOLE, "-o", "bundle", "--url", running.url)
    for name, before, after in (("proof", b'"actor_id":"', b'"actor_id":"x'), ("bundle", b"ada@", b"eve@")):
        changed = (files / name).read_bytes().replace(before, after, 1)
        (files / f"edited-{name}").write_bytes(changed)
    (files / "events").write_text(json.dumps(make_event()) + "\n")
    (files / "./bad-events").write_text("not json\n")
    return running.url, event, run(files, "log", "key", "--url", running.url)


def run(directory: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "app", *arguments]
    env = {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=directory, env=env, capture_output=True, check=True, text=True).stdout.strip()


def _arguments(text: str, known: dict[str, str], directory: Path) -> list[str]:
    words = [" " if word == "_" else word.format(**known) for word in text.split()]
    return [str(directory / "files" / word) if word.startswith("./") else word for word in words]


def _run_each(starts: dict[str, tuple[list[str], dict[str, str]]], directory: Path) -> dict[str, starting.Outcome]:
    """The outcome of each, in an empty directory of its own."""
    called = {}
    for number, (name, (arguments, environment)) in enumerate(starts.items()):
        (directory / str(number)).mkdir()
        called[name] = starting.Start(str(directory / str(number)), environment, arguments)
    return starting.run(called)
