"""What commands do on a real terminal: width, colours, pager, Ctrl-C, resize, encodings; and in a pipe."""

import asyncio
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from tests.events import make_event
from tests.services import ROOT, Service
from tests.story import make_story
from tests.terminal.screen import screen

AUDIT = "/api/v1/audit"
HOSTILE = "\x1b[31mred\x07\x9b2J \u202egnp.exe \u2066x <script>alert(1)</script>"
SHOWN = r"\x1b[31mred\x07\x9b2J \u202egnp.exe \u2066x"
BARE = {"PYTHONPATH": str(ROOT), "LANG": "C.UTF-8"}


def piped(url: str, directory: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "app", *arguments, "--url", url]
    return subprocess.run(command, cwd=directory, env=BARE | environment, capture_output=True, check=False)


def fill(url: str) -> None:
    hostile = {"actor_id": HOSTILE, "resource_id": HOSTILE, "namespace": "zürich 東京", "error_message": HOSTILE}
    data = make_event()["event_data"] | {"transition_reason": HOSTILE}
    with httpx.Client(base_url=url, timeout=30) as client:
        client.post(f"{AUDIT}/events/batch", json=make_story("rr-1")).raise_for_status()
        event = make_event(correlation_id=f"rr-{HOSTILE}", event_data=data, **hostile)
        client.post(f"{AUDIT}/events", json=event).raise_for_status()


def test_on_a_terminal(service: Callable[..., Service], tmp_path: Path) -> None:
    """A terminal obeys what stands in an event, a line is longer than the terminal, or what is shown depends on it in a pipe."""
    running = service()
    url = running.url + "/"
    fill(running.url)
    for columns in (60, 140):
        with screen(["search", "--url", url], tmp_path, columns) as shown:
            assert shown.code() == 0
            assert max(len(line.rpartition("\r")[2]) for line in shown.text.splitlines()) <= columns
            assert "\x1b[31m" in shown.raw or "\x1b[32m" in shown.raw
            assert "\x1b[31mred" not in shown.raw
            assert not {"\x07", "\x9b", "\u202e", "\u2066"} & set(shown.raw)
            whole = re.findall(r"^id +[0-9a-f-]{36}\b", shown.text, re.MULTILINE)
            assert len(whole) == (18 if columns == 60 else 0), "in pieces where a table is too narrow for them"
    with screen(["show", f"rr-{HOSTILE}", "--data", "--url", url], tmp_path, 200, NO_COLOR="1") as shown:
        assert shown.code() == 0
        assert re.search(r"\x1b\[[0-9;]*3[0-9]m", shown.raw) is None
        assert SHOWN in shown.text
        assert shown.text.index(f"rr-{SHOWN}") < shown.text.index("Events")
    _pager(url, tmp_path)
    _ctrl_c_and_resize(running, tmp_path)
    _pipes(running.url.removeprefix("http://"), tmp_path)


def _pager(url: str, directory: Path) -> None:
    """What fits not on the screen goes through the user's pager, and an end of that one is no error."""
    pager = directory / "pager.py"
    pager.write_text(
        "import sys\nfor n, line in enumerate(sys.stdin):\n    print('paged', line, end='')\n    if n == 3: break\n"
    )
    with screen(["show", "rr-1", "--url", url], directory, PAGER=f"{sys.executable} {pager}") as shown:
        assert shown.code() == 0
        assert shown.text.count("paged") == 4
        assert "Traceback" not in shown.text
    with screen(["show", "rr-1", "--url", url], directory, PAGER="true") as shown:  # gone before the first line
        assert (shown.code(), "Traceback" in shown.text) == (0, False)


def _ctrl_c_and_resize(running: Service, directory: Path) -> None:
    """The service hangs meanwhile, so that the command is still waiting."""
    running.process.send_signal(signal.SIGSTOP)
    with (
        screen(["list", "--url", running.url], directory) as interrupted,
        screen(["list", "--url", running.url], directory, 200) as resized,
    ):
        for one in (interrupted, resized):
            one.wait_for("asking")
        interrupted.type("\x03")
        assert (interrupted.code(), "Traceback" in interrupted.text) == (130, False)
        resized.resize(50, 20)
        running.process.send_signal(signal.SIGCONT)
        assert resized.code() == 0
        answer = resized.text.rpartition("\r")[2]
        assert "newest" in answer
        assert max(map(len, answer.splitlines())) <= 50


def _pipes(url: str, directory: Path) -> None:
    """Without a scheme in the URL."""
    wide, narrow = (piped(url, directory, "search", COLUMNS=columns) for columns in ("200", "20"))
    assert (wide.returncode, wide.stderr) == (0, b"")
    assert wide.stdout == narrow.stdout
    assert b"\x1b" not in wide.stdout
    head, *rows = wide.stdout.decode().splitlines()
    assert head.split() == ["happened", "type", "outcome", "actor", "resource", "correlation", "id"]
    assert len(rows) == 18
    assert SHOWN in "\n".join(rows)
    for locale in ({"LC_ALL": "C"}, {"PYTHONIOENCODING": "ascii"}):
        plain = piped(url, directory, "search", **locale)
        assert (plain.returncode, plain.stdout.isascii(), plain.stderr) == (0, True, b"")
    as_json = piped(url, directory, "search", "--json", "--correlation", f"rr-{HOSTILE}")
    assert b"\\u001b[31mred\\u0007\\u009b2J \\u202egnp" in as_json.stdout
    for long in ("event-types --markdown", "openapi"):
        command = f"{sys.executable} -m app {long} | head -n 1; echo ${{PIPESTATUS[0]}}"
        cut = subprocess.run(
            ["bash", "-c", command], cwd=directory, env=BARE, capture_output=True, text=True, check=False
        )
        assert (cut.stderr, cut.stdout.splitlines()[-1]) == ("", "141"), long


def test_first_words(service: Callable[..., Service], tmp_path: Path) -> None:
    """What somebody new types first ends in words that do not say how to go on, or in a table that is mostly empty."""
    url = service().url
    fill(url)
    trust = piped(url, tmp_path, "trust").stdout.decode()
    for words in (
        "last checkpoint",
        "nobody: no checkpoint is signed",
        "Open findings\nnone",
        "restored, expired\nnothing",
    ):
        assert words in trust, words
    bars = piped(url, tmp_path, "histogram", "--since", "3650d", "--bucket", "month")
    counted = [int(line.split()[2]) for line in bars.stdout.decode().splitlines()[1:]]
    assert (sum(counted), 0 in counted, b"18 events from" in bars.stderr) == (18, False, True), bars
    for arguments, hint in (
        (["search", "--resource", "Deployment/api"], b"--resource-type"),
        (["search", "--q", "api"], b"--since or --correlation"),
        (["show", "rr-none"], b"datastorage list --resource"),
    ):
        assert hint in piped(url, tmp_path, *arguments).stderr, arguments
    for line, hint in (("verify-proof x --key no.vkey", b"no file no.vkey"), ("findings", b"list, acknowledge")):
        command = [sys.executable, "-m", "app", *line.split()]
        assert hint in subprocess.run(command, cwd=tmp_path, env=BARE, capture_output=True, check=False).stderr, line


def test_who_approved_it(service: Callable[..., Service], tmp_path: Path) -> None:
    """An auditor needs more than three commands from the question to a file that a regulator can verify alone."""
    key = tmp_path / "log.pem"
    subprocess.run([sys.executable, "-m", "app", "checkpoint-key", key], cwd=tmp_path, env=BARE, check=True)
    url = service(checkpoint_key_file=key).url
    fill(url)
    published = piped(url, tmp_path, "log", "key").stdout.decode().strip()  # long before
    found = piped(url, tmp_path, "show", "rr-1", "--zone", "Europe/Berlin")
    assert found.returncode == 0
    assert re.search(r"Approved +ada@example\.com .*go ahead", found.stdout.decode())
    assert "verified now" in found.stdout.decode()
    exported = piped(url, tmp_path, "export", "rr-1", "-o", "rr-1.bundle")
    assert exported.returncode == 0, exported.stderr
    proved = subprocess.run(
        [sys.executable, "-m", "app", "verify-export", "rr-1.bundle", "--key", published],
        cwd=tmp_path,
        env=BARE,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (proved.returncode, proved.stdout.splitlines()[0]) == (0, "the bundle is complete and unchanged")
    assert "ada@example.com" in (tmp_path / "rr-1.bundle").read_text()


async def test_honest_verdict(service: Callable[..., Service], connection: Any, tmp_path: Path) -> None:
    """An old verdict is shown as one of now, or an actor that was changed by SQL as verified."""
    running = await asyncio.to_thread(service, verifier_events_per_second=5000)
    await asyncio.to_thread(fill, running.url)
    async with asyncio.timeout(60):
        while not await connection.fetchval("SELECT completed_end >= 18 FROM verifier"):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    await connection.execute("SET session_replication_role = replica")
    change = "UPDATE audit_events SET actor_id = $1 WHERE correlation_id = 'rr-1' AND actor_id = $2"
    await connection.execute(change, "eve", "gateway-controller")
    shown = await asyncio.to_thread(piped, running.url, tmp_path, "show", "rr-1")
    await connection.execute(change, "gateway-controller", "eve")
    assert shown.returncode == 1
    [verdict] = [line for line in shown.stdout.decode().splitlines() if "verified now" in line]
    assert "the chain is broken" in verdict
    assert "no defect" not in verdict


MODULES = r"""
import sys
from app.cli import main
sys.argv = ["datastorage", *{arguments!r}]
try:
    main()
except SystemExit:
    pass
loaded = {{name.partition(".")[0] for name in sys.modules}}
print(len(sys.modules), *sorted(loaded & {{"fastapi", "starlette", "sqlalchemy", "asyncpg", "pydantic", "uvicorn", "alembic", "rich"}}))
"""


def test_what_a_start_imports(tmp_path: Path) -> None:
    """`--help`, or a command that asks a service, waits for libraries of the service."""
    for arguments, most in (
        (["--help"], 250),
        (["--version"], 300),
        (["list", "--url", "http://127.0.0.1:9"], 520),
        (["show", "rr-1", "--url", "http://127.0.0.1:9"], 520),
        (["search", "--url", "http://127.0.0.1:9"], 520),
        (["verify-proof", "missing", "--key", "k"], 400),
    ):
        done = subprocess.run(
            [sys.executable, "-c", MODULES.format(arguments=arguments)],
            cwd=tmp_path,
            env=BARE,
            capture_output=True,
            text=True,
            check=True,
        )
        count, *libraries = done.stdout.splitlines()[-1].split()
        assert libraries == [], arguments
        assert int(count) <= most, (arguments, count)


def test_no_service(tmp_path: Path) -> None:
    """Nobody is told that no service answers, or everybody the password in its URL."""
    away = piped("http://u:hunter2@127.0.0.1:9/", tmp_path, "list")
    assert (away.returncode, away.stdout) == (2, b"")
    assert (len(away.stderr.splitlines()), b"hunter2" in away.stderr) == (1, False)
