"""The list of correlations and the histogram have what Postgres has, and say what they have not."""

import asyncio
import html
import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from app.archive import run
from tests.archive.archived import ALL, NOW, OLD, OLDER, Connection, fill, settings_of
from tests.archive.test_reading import BETWEEN, Start, client_of, purge_before

pytestmark = pytest.mark.damaged  # the verification at the end of every test does not know purges
LIST = "/api/v1/audit/correlations"
HISTOGRAM = "/api/v1/audit/histogram"
MONTHS = [f"{OLDER:%Y-%m}", f"{OLD:%Y-%m}"]
NOTE = "in the archive alone, and not looked at here"
LONG = {"since": (OLDER - timedelta(days=1)).isoformat()}


async def test_correlations(database_url: str, connection: Connection, tmp_path: Path, service: Start) -> None:
    """A remediation that is in the archive alone is not listed, and the list does not say so, or says so where nothing is missing."""
    await fill(connection, rounds=2)
    settings = settings_of(database_url, tmp_path)
    with client_of(service, settings, tmp_path) as client:
        await run.run(settings, NOW, ALL)
        assert "left_out" not in client.get(LIST).json()["pagination"]
        assert NOTE not in client.get("/ui/correlations").text
        await purge_before(settings, BETWEEN)
        both = {"events": 120, "months": MONTHS}
        for asked, left_out in (
            ({}, both),
            (LONG, both),
            (LONG | {"limit": 1}, both),
            ({"until": OLD.isoformat()}, both),
            ({"since": f"{OLD:%Y-%m-01}"}, both | {"events": 60, "months": MONTHS[1:]}),
            ({"event_category": "none"}, both),
            ({"limit": 1}, None),
            ({"since": "2d"}, None),
        ):
            assert client.get(LIST, params=asked).json()["pagination"].get("left_out") == left_out, asked
            assert (NOTE in client.get("/ui/correlations", params=asked).text) == (left_out is not None), asked
        page = client.get("/ui/correlations", params={"until": OLD.isoformat(), "cursor": ""}).text
        [link] = re.findall(r'href="(/ui/events\?[^"]*)">Look at', page)
        assert ">archived</span>" in client.get(html.unescape(link)).text
        assert f"left out: 120 event(s) of {', '.join(MONTHS)}" in await said(client, "list")
        assert "left out" not in await said(client, "list", "--since=2d")
    plain = service(archive_url=None)
    with httpx.Client(base_url=plain.url) as client:
        assert "DATASTORAGE_ARCHIVE_URL" in client.get("/ui/correlations").text
        assert client.get(LIST).json()["pagination"]["left_out"]["events"] == 120


async def test_histogram(database_url: str, connection: Connection, tmp_path: Path, service: Start) -> None:
    """A histogram counts nothing of months that are in the archive alone, and does not say so, or says so of other months."""
    await fill(connection, rounds=2)
    settings = settings_of(database_url, tmp_path)
    ahead = {"until": (NOW + timedelta(hours=1)).isoformat()}
    with client_of(service, settings, tmp_path) as client:
        await run.run(settings, NOW, ALL)
        answer = client.get(HISTOGRAM, params=LONG | ahead).json()
        assert (answer["events"], "left_out" in answer) == (180, False)
        await purge_before(settings, BETWEEN)
        answer = client.get(HISTOGRAM, params=LONG | ahead).json()
        assert (answer["events"], answer["left_out"]) == (60, {"events": 120, "months": MONTHS})
        until = client.get(HISTOGRAM, params=LONG | {"until": OLDER.isoformat(), "by": "outcome"}).json()
        assert until["left_out"] == {"events": 60, "months": MONTHS[:1]}
        for asked in ({}, {"since": "2d"}, LONG | {"sealed": "false"}):
            assert "left_out" not in client.get(HISTOGRAM, params=asked).json()
        assert "left out: 120 event(s)" in await said(client, "histogram", f"--since={LONG['since']}")
        assert "left out" not in await said(client, "histogram")


async def said(client: httpx.Client, *arguments: str) -> str:
    """What a command says beside its answer."""
    command = [sys.executable, "-m", "app", *arguments, "--url", str(client.base_url)]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=True)
    return done.stderr
