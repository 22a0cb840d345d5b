"""An auditor's questions have the same answers from the archive as the API gave from Postgres, to the row."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx

from app.settings import Settings
from tests.archive.archived import PEM, folder_of, parts_of, problems, settings_of
from tests.archive.audited import archive_all, erase_some, post_story
from tests.archive.questions import FILE, Rows, answers_of_api, answers_of_duckdb, view_and_questions
from tests.services import ROOT, Service


async def test_ten_questions(database_url: str, service: Callable[..., Service], tmp_path: Path) -> None:
    """A question that docs/archive.sql asks of the archive has another answer than its route of the API; or after an erasure."""
    (tmp_path / "key.pem").write_text(PEM)
    settings = settings_of(database_url, tmp_path)
    url = service(checkpoint_key_file=tmp_path / "key.pem").url
    with httpx.Client(base_url=url, timeout=60) as api:
        parameters = await asyncio.to_thread(post_story, api, 20)
        known = await asyncio.to_thread(answers_of_api, api, parameters)
        await erase_some(settings, known[8][0][0])
        known = await asyncio.to_thread(answers_of_api, api, parameters)
        await archive_all(settings)
        assert await _by_duckdb(settings, parameters) == known
        assert all(known.values())

        await erase_some(settings, known[9][0][0], known[4][0][0])
        known, before = await asyncio.to_thread(answers_of_api, api, parameters), known
        assert {2, 4, 9, 10} <= {number for number in known if known[number] != before[number]}
        assert (await archive_all(settings)).rewritten
        assert await _by_duckdb(settings, parameters) == known
    assert await problems(settings) == []


async def _by_duckdb(settings: Settings, parameters: Mapping[str, Any]) -> dict[int, Rows]:
    files = [f"{folder_of(part)}/events-0.parquet" for part in await parts_of(settings)]
    return {number: answer.rows for number, answer in answers_of_duckdb(files, parameters).items()}


def test_docs_show_the_questions() -> None:
    """docs/archive.md shows other SQL than is tested."""
    assert FILE.read_text("utf-8").strip() in (ROOT / "docs" / "archive.md").read_text("utf-8")
    assert [one.number for one in view_and_questions(defaultdict(str))[1]] == list(range(1, 11))
