"""Reports about one remediation of which some events, or all, are in the archive alone."""

import asyncio
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from app.archive import run
from app.archive.session import Selection
from tests.archive.archived import (
    ALL,
    DAYS,
    NOW,
    OLD,
    OLDER,
    Connection,
    fill,
    folder_of,
    parts_of,
    publish,
    settings_of,
)
from tests.archive.test_one_correlation import end_reader, start
from tests.archive.test_reading import BETWEEN, Start, change_file, client_of, purge_before
from tests.sealed import seal
from tests.services import ROOT
from tests.story import make_story

pytestmark = pytest.mark.damaged  # the verification at the end of every test does not know purges
RECONSTRUCTION = "/api/v1/audit/remediation-requests/rr-story/reconstruct"
EFFECTIVENESS = "/api/v1/effectiveness/rr-story"
_COLUMNS = (
    "event_type",
    "event_category",
    "event_action",
    "event_outcome",
    "actor_type",
    "actor_id",
    "namespace",
    "cluster_id",
)


async def fill_story(connection: Connection) -> None:
    """A remediation of two months, of whose events some have the same time and type, so that their payloads decide which is later."""
    await fill(connection, rounds=1)
    story = make_story("rr-story")
    for number, item in enumerate(story):
        time = (OLDER if number < len(story) - 4 else OLD) + timedelta(seconds=number)
        columns = {name: item[name] for name in _COLUMNS} | {"event_timestamp": time, "event_date": time.date()}
        await seal(connection, "rr-story", columns | {"event_data": orjson.dumps(item["event_data"]).decode()})
        if item["event_type"] == "effectiveness.health.assessed":
            others = [
                item["event_data"] | {"score": score, "details": text}
                for score, text in ((0.25, "é"), (1e-7, "z"), (0.5, "Z"))
            ]
            await seal(
                connection, "rr-story", *(columns | {"event_data": orjson.dumps(one).decode()} for one in others)
            )
        if item["event_type"] == "workflowexecution.execution.started":
            other = item["event_data"] | {"execution_name": "another"}
            await seal(
                connection, "rr-story", columns | {"event_data": orjson.dumps(other).decode(), "namespace": None}
            )
    await publish(connection)


def report(client: httpx.Client, path: str, **sent: str) -> dict[str, Any]:
    """Without the times at which it was made."""
    answer = client.get(path, params=sent)
    body: dict[str, Any] = answer.json() | {"status": answer.status_code}
    for name in ("computed_at", "reconstructed_at", "request_id", "instance"):
        body.pop(name, None)
    text = body.get("remediation_request_yaml", "")
    body["remediation_request_yaml"] = [
        line for line in text.splitlines() if "name: rr-reconstructed" not in line and "reconstructed-at" not in line
    ]
    return body


async def test_as_before(database_url: str, connection: Connection, tmp_path: Path, service: Start) -> None:
    """A report says something else once events are in the archive alone, or does not say that it cannot read them."""
    await fill_story(connection)
    settings = settings_of(database_url, tmp_path)
    with client_of(service, settings, tmp_path) as client:
        await run.run(settings, NOW, ALL)
        paths = (RECONSTRUCTION, EFFECTIVENESS)
        whole = [report(client, path) for path in paths]
        assert [one["status"] for one in whole] == [200, 200], whole
        assert whole[0]["validation"]["completeness"] == 100
        for cutoff in (OLDER + timedelta(seconds=9), OLDER + timedelta(seconds=14), OLD, BETWEEN):
            await purge_before(settings, cutoff)
            assert [report(client, path) for path in paths] == whole, cutoff
        assert [client.post(RECONSTRUCTION).json()["validation"]] == [whole[0]["validation"]]
        assert [report(client, path, archive="exclude")["status"] for path in paths] == [404, 404]
        assert [report(client, path, archive="x")["status"] for path in paths] == [400, 400]
    change_file(folder_of((await parts_of(settings))[0]), "actor_id", "rr-story", "y")
    one = start(service, settings, tmp_path)
    with httpx.Client(base_url=one.url, timeout=30) as client:
        assert client.get(RECONSTRUCTION).json()["sealed"] is False
        assert "sealed" not in client.get(EFFECTIVENESS).json()
        (folder_of((await parts_of(settings))[0]) / "events-0.parquet").unlink()
        end_reader(one)
        assert [client.get(path).status_code for path in paths] == [503, 503]


def panels(page: str) -> str:
    """What a page says of approval, phases, decisions and effectiveness."""
    return page[page.index('id="approvals"') : page.index('id="notified"')]


async def test_pages(database_url: str, connection: Connection, tmp_path: Path, service: Start) -> None:
    """A page in the browser lacks what is in the archive alone, and does not say so."""
    await fill_story(connection)
    settings = settings_of(database_url, tmp_path, **DAYS)
    with client_of(service, settings, tmp_path) as client:
        await run.run(settings, NOW, ALL)
        before = client.get("/ui/correlations/rr-story").text
        await purge_before(settings, BETWEEN)
        since = {"since": OLD.isoformat(), "correlation_id": "rr-story"}
        left_out = client.get("/ui/events", params=since).text
        assert "in the archive alone, and not looked at here" in left_out
        assert "archive=include" in left_out
        whole = client.get("/ui/events", params=since | {"archive": "include"})
        marks = whole.text.count(">archived</span>")  # in the row, and where that opens
        assert (whole.status_code, marks) == (200, 2 * 4)
        assert "not looked at here" not in whole.text
        assert "not looked at here" not in client.get("/ui/events").text
        assert "not looked at here" not in client.get("/ui/events", params={"since": "2d"}).text
        by_itself = client.get("/ui/events", params={"until": OLD.isoformat()}).text
        assert (">archived</span>" in by_itself, "not looked at here" in by_itself) == (True, False)
        page = client.get("/ui/correlations/rr-story").text
        assert panels(page) == panels(before)
        assert page.count(">archived</span>") == 2 * 21
        assert "rr-reconstructed-rr-story" in page
        assert "correlation_id=rr-story&amp;archive=include&amp;format=ndjson" in page
        await run.run(settings, NOW, Selection(expire=True))
        removals = client.get("/api/v1/audit/trust").json()["removals"]
        expired = [one for one in removals if one["event_type"] == "datastorage.archive.expired"]
        assert [one["month"] for one in expired] == [f"{OLD:%Y-%m}", f"{OLDER:%Y-%m}"]
        text = client.get("/ui/trust").text
        assert f"of {OLD:%Y-%m} of the archive" in text
        command = [sys.executable, "-m", "app", "trust", "--url", str(client.base_url)]
        done = await asyncio.to_thread(subprocess.run, command, cwd=ROOT, capture_output=True, text=True)
        assert expired[0]["archive_id"] in done.stdout


async def test_while_it_is_removed(database_url: str, connection: Connection, tmp_path: Path, service: Start) -> None:
    """While others purge, a report lacks events that are in neither place for it."""
    await fill_story(connection)
    settings = settings_of(database_url, tmp_path)
    await run.run(settings, NOW, ALL)
    with client_of(service, settings, tmp_path) as client:
        whole = {path: report(client, path) for path in (RECONSTRUCTION, EFFECTIVENESS)}
        answers, ended = 0, asyncio.Event()

        async def read_on() -> None:
            nonlocal answers
            while not ended.is_set() or answers < 10:
                for path, known in whole.items():
                    found = await asyncio.to_thread(report, client, path)
                    assert found == known or found["status"] == 503, found
                    answers += found == known

        reading_on = asyncio.create_task(read_on())
        try:
            for seconds in range(1, 16, 2):
                await purge_before(settings, OLDER + timedelta(seconds=seconds))
            await purge_before(settings, BETWEEN)
        finally:
            ended.set()
            await reading_on
        assert answers >= 10
