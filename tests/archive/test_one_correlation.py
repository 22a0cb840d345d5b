"""The timeline and the chain of a correlation of which some events, or all, are in the archive alone."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timedelta
from itertools import product
from pathlib import Path
from time import sleep
from typing import Any

import httpx
import pytest

from app.archive import run
from app.export.bundle import DIFFERS, parse
from app.export.bundle_check import check_bundle
from app.settings import Settings
from tests.archive.archived import (
    ALL,
    NOW,
    OLD,
    OLDER,
    PUBLIC,
    Connection,
    fill,
    folder_of,
    parts_of,
    publish,
    settings_of,
)
from tests.archive.test_reading import BETWEEN, Start, change_file, client_of, hostile, purge_before
from tests.sealed import insert, plain_row, seal
from tests.services import ROOT, Service

pytestmark = pytest.mark.damaged  # the verification at the end of every test does not know purges
TIMELINE = "/api/v1/audit/correlations/rr-story"
STEPS = [
    ("orchestrator.lifecycle.created", "{}"),
    ("orchestrator.phase.transitioned", '{"from_phase": "Pending", "to_phase": "Analyzing", "n": 1e21}'),
    ("orchestrator.phase.transitioned", '{"from_phase": {"b": [1, 2.50], "a": null}, "to_phase": 7}'),
    (
        "orchestrator.approval.approved",
        '{"approved_by": null, "decided_by": {"a": true}, "message": "ok", "workflow_id": "w-1"}',
    ),
    (
        "aianalysis.approval.decision",
        '{"decision": "yes", "decided_by": "ada", "decision_message": "%s"}' % ("long " * 400),
    ),
    ("webhook.notification.acknowledged", "[1]"),
    ("orchestrator.lifecycle.completed", '"text"'),
]


def at(time: datetime, number: int, event_type: str = "x", event_data: str = '{"a": 1}') -> dict[str, Any]:
    time += timedelta(seconds=number // 2)  # some at the same time
    more = {} if number % 3 else {"severity": "info", "duration_ms": number, "error_code": "E", "actor_ip": "192.0.2.1"}
    metadata = '{"event_timestamp": "received", "n": 1.50}' if number % 4 == 0 else None
    return (
        hostile(
            number,
            event_timestamp=time,
            event_date=time.date(),
            event_type=event_type,
            event_data=event_data,
            event_metadata=metadata,
        )
        | more
    )


async def fill_story(connection: Connection) -> None:
    """A correlation of two months that are due, and of now; events of others between its own."""
    await fill(connection, rounds=1)
    for number, (time, (event_type, payload)) in enumerate(product((OLDER, OLD, NOW), STEPS)):
        await seal(connection, "rr-story", at(time, number, event_type, payload), at(time, number + 1))
        await seal(connection, "rr-other", at(time, number))
    late = at(OLDER + timedelta(days=1), 40, *STEPS[2])
    await seal(connection, "rr-story", late)  # of long ago, recorded last
    await publish(connection)


def timeline_of(client: httpx.Client, path: str = TIMELINE, **sent: Any) -> dict[str, Any]:
    return without_marks(client.get(path, params=sent))


def without_marks(answer: httpx.Response) -> dict[str, Any]:
    """A timeline without what says where it was read."""
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    for event in body["events"]:
        event.pop("archive_id", None)
    body.pop("verification", None)
    return body


WINDOWS = [(limit, offset) for limit in (1, 20) for offset in (0, 1, 13, 28, 42, 43)]


async def test_timeline(database_url: str, connection: Connection, tmp_path: Path, service: Start) -> None:
    """The timeline of a correlation has other events, another order, or other phases and decisions once some of it is in the archive alone."""
    await fill_story(connection)
    settings = settings_of(database_url, tmp_path)
    with client_of(service, settings, tmp_path) as client:
        whole = timeline_of(client)
        before = [timeline_of(client, limit=limit, offset=offset) for limit, offset in WINDOWS]
        assert (whole["event_count"], len(whole["phases"])) == (43, 8)
        await run.run(settings, NOW, ALL)
        for cutoff in (OLDER + timedelta(seconds=4), OLD + timedelta(seconds=4), BETWEEN):
            await purge_before(settings, cutoff)
            assert timeline_of(client) == whole
            assert timeline_of(client, sealed="true") == whole
            for (limit, offset), known in zip(WINDOWS, before, strict=True):
                assert timeline_of(client, limit=limit, offset=offset) == known, (cutoff, limit, offset)
        asked = ["show", "--url", str(client.base_url), "--data", "rr-story"]
        for more, count in ([], 29), (["--no-archive"], 0):
            command = [sys.executable, "-m", "app", *asked, *more]
            done = await asyncio.to_thread(
                subprocess.run, command, check=True, cwd=ROOT, capture_output=True, text=True
            )
            assert done.stdout.count("(archived") == count
            assert done.stdout.count('"to_phase": "Analyzing"') == (3 if count else 1)
        left = client.get(TIMELINE, params={"archive": "exclude"}).json()
        assert (left["event_count"], [one for one in left["events"] if "archive_id" in one]) == (14, [])
        assert timeline_of(client, sealed="false")["event_count"] == 0
        assert client.get(TIMELINE, params={"archive": "include"}).status_code == 400
        marked = client.get(TIMELINE).json()["events"]
        assert {one["archive_id"] for one in marked if "archive_id" in one} == {
            str(p.archive_id) for p in await parts_of(settings)
        }
        assert sum("archive_id" in one for one in marked) == 29
        await insert(connection, plain_row("rr-story"))
        assert timeline_of(client)["event_count"] == 44
        assert timeline_of(client, sealed="false")["event_count"] == 1
    change_file(folder_of((await parts_of(settings))[1]), "actor_id", "rr-story", "y")
    with client_of(service, settings, tmp_path) as client:
        events = client.get(TIMELINE).json()["events"]
        [changed] = [one for one in events if one.get("sealed") is False and "archive_id" in one]
        assert changed["actor_id"] == "y"
        assert timeline_of(client, sealed="true")["event_count"] == 42


def verified(client: httpx.Client, correlation_id: str = "rr-story") -> dict[str, Any]:
    answer = client.post("/api/v1/audit/verify-chain", json={"correlation_id": correlation_id})
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


async def test_chain(database_url: str, connection: Connection, tmp_path: Path, service: Start) -> None:
    """A chain of which some events are in the archive alone counts as whole although they are changed there, or as broken although it is not."""
    await fill_story(connection)
    settings = settings_of(database_url, tmp_path)
    await run.run(settings, NOW, ALL)
    with client_of(service, settings, tmp_path) as client:
        for cutoff, gone in ((OLDER + timedelta(seconds=4), 14), (BETWEEN, 29)):
            await purge_before(settings, cutoff)
            found = verified(client)
            assert (found["is_valid"], found["total_events"], found["verified_events"], found["archived_events"]) == (
                True,
                43,
                43,
                gone,
            )
            assert f"{gone} event(s) of these were read in the archive" in found["message"]
            assert client.get(TIMELINE, params={"verify": "true"}).json()["verification"]["verified_events"] == 43
        other = verified(client, "rr-other")
        assert (other["is_valid"], other["total_events"], other["archived_events"]) == (True, 21, 14)
    with client_of(service, settings.model_copy(update={"archive_url": None}), tmp_path) as client:
        found = verified(client)
        assert (found["is_valid"], found["total_events"], found["archived_events"]) == (True, 14, 29)
        assert "the archive was not read" in found["message"]
        assert "DATASTORAGE_ARCHIVE_URL" in found["message"]
    folder, copy = folder_of((await parts_of(settings))[0]), tmp_path / "copy"
    shutil.copytree(folder, copy)
    one = start(service, settings, tmp_path)
    with httpx.Client(base_url=one.url, timeout=30) as client:
        for damage, words in DAMAGED:
            damage(folder)
            end_reader(one)  # it knows the files from before
            found = verified(client)
            messages = [found["message"], *(defect["message"] for defect in found.get("tampered_events", []))]
            assert (found["is_valid"], any(words in text for text in messages)) == (False, True), (words, found)
            shutil.rmtree(folder)
            shutil.copytree(copy, folder)
        folder.rename(tmp_path / "away")
        end_reader(one)
        found = verified(client)
        assert (found["is_valid"], "the archive was not read" in found["message"]) == (True, True)


def end_reader(service: Service) -> None:
    """End the process that reads the archive for a service."""
    for process in Path(f"/proc/{service.process.pid}/task").glob("*/children"):
        for child in process.read_text().split():
            if "app.archive.reader" in Path(f"/proc/{child}/cmdline").read_text():
                os.kill(int(child), signal.SIGKILL)
                while Path(f"/proc/{child}").exists():  # until the service has noticed
                    sleep(0.01)


def start(service: Start, settings: Settings, directory: Path) -> Service:
    return service(archive_url=settings.archive_url, checkpoint_key_file=directory / "key.pem")


DAMAGED: list[tuple[Callable[[Path], object], str]] = [
    (lambda folder: change_file(folder, "actor_id", "rr-story", "y"), "differs from the log's leaf in the archive"),
    (
        lambda folder: change_file(folder, "payload_commitment", "rr-story", bytes(32)),
        "marked as erased in the archive",
    ),
    (
        lambda folder: change_file(folder, "correlation_id", "rr-story", "rr-other"),
        "1 event(s) of the chain that are archived are in no file",
    ),
    (
        lambda folder: change_file(folder, "correlation_id", "rr-other", "rr-story", -1),
        "another event is at chain position",
    ),
    (lambda folder: change_file(folder, "chain_index", "rr-story", 40), "differs from the log's leaf in the archive"),
    (lambda folder: (folder / "manifest.json").write_bytes(b"{}"), "not the one that the log records"),
]


async def test_bundle(database_url: str, connection: Connection, tmp_path: Path, service: Start) -> None:
    """A bundle lacks what is in the archive alone, or its checker finds that wrong, or it has it as if the log had something else."""
    await fill_story(connection)
    settings = settings_of(database_url, tmp_path)
    await run.run(settings, NOW, ALL)
    with client_of(service, settings, tmp_path) as client:
        whole = {redact: entries(bundle_of(client, redact_pii=redact)) for redact in ("false", "true")}
        assert len(whole["false"]) == 43
        for cutoff, redact in ((OLDER + timedelta(seconds=4), "false"), (BETWEEN, "false"), (BETWEEN, "true")):
            await purge_before(settings, cutoff)
            content = bundle_of(client, redact_pii=redact)
            bundle = parse(content).bundle
            assert entries(content) == whole[redact]
            assert (bundle.gaps, bundle.unproved, [line for line in bundle.page if DIFFERS in line]) == ([], [], [])
            checked = check_bundle(content, [PUBLIC])
            assert not checked.problems, checked.problems
        left = parse(bundle_of(client, archive="exclude")).bundle
        assert (len(left.events), sum(gap.end - gap.first for gap in left.gaps)) == (14, 29)
    folder = folder_of((await parts_of(settings))[0])
    change_file(folder, "actor_id", "rr-story", "y")
    one = start(service, settings, tmp_path)
    with httpx.Client(base_url=one.url, timeout=30) as client:
        content = bundle_of(client)
        changed = parse(content).bundle
        assert (len(changed.events), len(changed.unproved), '"actor_id":"y"' in changed.unproved[0]) == (42, 1, True)
        (folder / "events-0.parquet").unlink()
        end_reader(one)
        answer = client.get(f"{TIMELINE}/bundle")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert len(parse(bundle_of(client, archive="exclude")).bundle.events) == 14


def bundle_of(client: httpx.Client, **sent: str) -> bytes:
    """The bundle, as soon as a checkpoint covers it."""
    for _ in range(600):
        answer = client.get(f"{TIMELINE}/bundle", params=sent)
        if answer.status_code == 200:
            return answer.content
        assert answer.status_code == 503, answer.text
        sleep(0.05)
    raise AssertionError("no checkpoint covers it")


def entries(content: bytes) -> list[tuple[Any, ...]]:
    """What a bundle has of each event, but for its proof."""
    events = parse(content).bundle.events
    return [(one.log, one.position, one.leaf, one.record, one.salt, one.committed, one.redacted) for one in events]


async def test_while_it_is_removed(database_url: str, connection: Connection, tmp_path: Path, service: Start) -> None:
    """While others purge, an event is for a moment in neither place, or in both: a purge may be in the log before its rows are gone."""
    await fill_story(connection)
    settings = settings_of(database_url, tmp_path)
    await run.run(settings, NOW, ALL)
    with client_of(service, settings, tmp_path) as client:
        whole, answers, ended = timeline_of(client), 0, asyncio.Event()

        async def read_on() -> None:
            nonlocal answers
            while not ended.is_set() or answers < 10:
                answer = await asyncio.to_thread(client.get, TIMELINE)
                if answer.status_code == 503:  # too much was removed meanwhile
                    continue
                assert without_marks(answer) == whole
                found = await asyncio.to_thread(verified, client)
                assert found["is_valid"], found
                answers += 1

        reading_on = asyncio.create_task(read_on())
        try:
            for time, number in product((OLDER, OLD), range(0, 9, 2)):
                await purge_before(settings, time + timedelta(seconds=number))
            await purge_before(settings, BETWEEN)
        finally:
            ended.set()
            await reading_on
        assert answers >= 10
