"""What a start of the service makes before it is ready: counted, since seconds are the machine's."""

import argparse
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path

from app.cli.parser import GROUPS
from app.events.catalog import EVENT_TYPES, PAYLOAD_CHECKS, _PayloadCheck
from app.events.catalog.examples import example

ROOT = Path(__file__).parents[2]
START = """
import sys
sys.argv = ["datastorage", "serve"]
from app.cli.command import build
build(*sys.argv[1:2])
from app.serve import Server
from app.api.routes import Answer, Route
from app.events.catalog import PAYLOAD_CHECKS
from app.main import create_app
from app.settings import Settings
create_app(Settings())

import app.main
slow = {"sqlalchemy.orm", "sqlalchemy.ext.asyncio", "alembic", "jsonschema", "pyarrow", "pyiceberg", "rich", "httpx", "app.embedded"}
routes = [route for module in app.main._ROUTE_MODULES for route in module.router.routes if isinstance(route, Route)]
assert len(routes) > 40
print(len(sys.modules))
print(sorted(slow & sys.modules.keys()))
print([name for name, check in PAYLOAD_CHECKS.items() if check._check is not None])
print([route.path for route in routes if route.responses])
print([answer.__name__ for answer in Answer.__subclasses__() if answer.__pydantic_complete__])
"""


def test_what_a_start_makes() -> None:
    """Something is imported, or built, that only some later request needs: each start pays for it, and each restart of a pod waits."""
    done = subprocess.run(
        [sys.executable, "-c", START], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    modules, slow, checks, described, answers = done.stdout.splitlines()
    assert int(modules) < 1_110
    assert (slow, checks, described, answers) == ("[]", "[]", "[]", "[]")


def test_groups_of_commands() -> None:
    """A command is not found by its name, since the table lacks it."""
    for group, names in GROUPS.items():
        commands = argparse.ArgumentParser().add_subparsers()
        import_module(f"app.cli.{group}").add(commands)
        assert tuple(commands.choices) == names


def test_first_checks_at_the_same_time() -> None:
    """Threads that are the first to check a type disturb each other."""
    for name in list(PAYLOAD_CHECKS)[::20]:
        check, payload = _PayloadCheck(EVENT_TYPES[name].payload), example(name)
        with ThreadPoolExecutor(8) as threads:
            assert list(threads.map(check, [payload] * 16)) == [payload] * 16
