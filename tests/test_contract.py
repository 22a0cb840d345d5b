"""What is written down beside the code says what the code does."""

import re
from pathlib import Path

from app.events.describe import markdown
from app.openapi import document
from app.settings import Settings

ROOT = Path(__file__).parent.parent


def test_openapi_is_up_to_date() -> None:
    """openapi/datastorage.json is not what the application serves: run `make openapi`."""
    assert (ROOT / "openapi" / "datastorage.json").read_bytes() == document()


def test_event_types_are_up_to_date() -> None:
    """docs/events.md is not what the catalog says: run `make openapi`."""
    assert (ROOT / "docs" / "events.md").read_text("utf-8") == markdown()


def test_every_setting_is_described() -> None:
    """An operator finds a setting and not what it means."""
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_no_machine_and_no_registry_in_any_file() -> None:
    """A path of somebody's machine or a registry's address stands in a file."""
    forbidden = re.compile(r"/work/|/root/|/home/\w|pypi\.org|files\.pythonhosted|proxy\.golang|registry\.npmjs")
    folders = ("app", "bench", "charts", "docs", "migrations", "openapi", "tests", ".ci")
    files = [p for d in folders for p in (ROOT / d).rglob("*") if p.is_file() and p.suffix != ".pyc"]
    files += [p for p in ROOT.iterdir() if p.is_file() and p.suffix != ".pyc" and p.name != ".git"]  # as in a worktree
    found = [p.name for p in files if p != Path(__file__) and forbidden.search(p.read_text("utf-8", "replace"))]
    assert found == []
