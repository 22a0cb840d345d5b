"""The badge of an event: green where everything holds, and red, with the step that does not, for whatever somebody changes."""

import base64
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, Route

from tests import databases
from tests.events import make_event
from tests.pages.browser import Reader, aside
from tests.pages.conftest import picture_path, wait_for_proofs
from tests.services import ROOT, Service
from tests.story import INSERT, make_row, make_story

pytestmark = pytest.mark.damaged  # the verification at the end does not know erasures
CORRELATION = "rr-badge"
LATE = datetime.now(UTC) - timedelta(hours=3)


@pytest.fixture(scope="module")
def event_id(pages_service: Service) -> str:
    """The id of an approval, which has a checkpoint."""
    with httpx.Client(base_url=pages_service.url) as client:
        assert client.post("/api/v1/audit/events/batch", json=make_story(CORRELATION, LATE)).status_code == 201
        found = client.get(
            "/api/v1/audit/events",
            params={"correlation_id": CORRELATION, "event_type": "orchestrator.approval.approved"},
        )
        event_id = str(found.json()["data"][0]["event_id"])
        wait_for_proofs(client)
    return event_id


def badge(page: Page) -> tuple[str, dict[str, str]]:
    """The verdict of the badge of an event's page, and the state of each of its steps."""
    page.wait_for_selector("#badge[data-done]")
    states = page.eval_on_selector_all(".step", "steps => steps.map((step) => [step.dataset.step, step.dataset.state])")
    return str(page.get_attribute("#badge", "data-done")), dict(states)


def failed(states: dict[str, str]) -> list[str]:
    return [step for step, state in states.items() if state == "fails"]


def change(database: str, statement: str, *arguments: object) -> None:
    """Run a statement as who may do everything, without triggers."""

    async def run() -> None:
        async with databases.connected(database) as connection:
            await connection.execute("SET session_replication_role = replica")
            await connection.execute(statement, *arguments)

    aside(run)


def test_green(reader: Callable[..., Reader], event_id: str) -> None:
    """The badge of an event that nobody has touched is not green."""
    page = reader().open(f"/ui/events/{event_id}")
    verdict, states = badge(page)
    assert (verdict, set(states.values()), len(states)) == ("holds", {"holds"}, 7), page.inner_text("#badge")
    page.locator(".step", has_text="Path to the root").locator("summary").click()
    assert "root computed here" in page.inner_text("#badge")
    assert "ada@example.com" in page.inner_text("main")
    if picture := picture_path("event"):
        page.screenshot(path=picture)


def test_green_for_a_long_payload(reader: Callable[..., Reader], pages_service: Service) -> None:
    """A payload that is not indented, as it is long in bytes, is no proved one."""
    event = make_event()
    event["event_data"]["large"] = ["é"] * 45_000  # 225,000 bytes, 180,000 characters
    answer = httpx.post(f"{pages_service.url}/api/v1/audit/events", json=event).json()
    with httpx.Client(base_url=pages_service.url) as client:
        wait_for_proofs(client)
    page = reader().open(f"/ui/events/{answer['event_id']}")
    verdict, states = badge(page)
    assert (verdict, failed(states)) == ("holds", [])
    assert "\n" not in (page.locator("pre.payload").text_content() or "\n")


def test_without_javascript(reader: Callable[..., Reader], event_id: str) -> None:
    """Without scripts the badge looks as if something had been proved, or does not say how to do it otherwise."""
    one = reader(javascript=False)
    page = one.open(f"/ui/events/{event_id}")
    assert "Not computed" in page.inner_text("#badge")
    page.get_by_text("Prove it without this page").click()
    assert f"curl -s '{one.url}/api/v1/audit/events/{event_id}/proof?open=true' -o proof.json" in page.inner_text(
        "#badge pre"
    )
    assert "datastorage verify-proof proof.json --key KEY" in page.inner_text("#badge pre")


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("event_data", '{"approved_by": "mallory"}'),
        ("actor_id", "mallory"),
        ("event_hash", "0" * 64),
        ("payload_salt", "00" * 16),
    ],
)
def test_red_after_a_change_by_sql(
    reader: Callable[..., Reader], pages_database: str, event_id: str, column: str, value: str
) -> None:
    """Somebody with all rights on the database changes a row, and the badge does not see it, or not where."""
    types = {"event_data": "::text::jsonb", "recorded_at": "::text::timestamptz", "payload_salt": "::text"}
    written = f"decode($1{types[column]}, 'hex')" if column == "payload_salt" else f"$1{types.get(column, '::text')}"

    async def before() -> Any:
        async with databases.connected(pages_database) as connection:
            return await connection.fetchval(
                "SELECT row_to_json(e)::text FROM audit_events e WHERE event_id = $1", event_id
            )

    row = aside(before)
    change(pages_database, f"UPDATE audit_events SET {column} = {written} WHERE event_id = $2", value, event_id)
    try:
        one = reader()
        page = one.open(f"/ui/events/{event_id}")
        verdict, states = badge(page)
        text = page.inner_text("#badge")
        one.forgive_refusals()
    finally:
        restored = f"(SELECT {column} FROM json_populate_record(NULL::audit_events, $1::json))"
        change(pages_database, f"UPDATE audit_events SET {column} = {restored} WHERE event_id = $2", row, event_id)
    assert verdict == "fails", text
    assert "Record and leaf" in failed(states), text
    assert "This does not hold" in text


def test_red_after_row_and_hash_were_changed(reader: Callable[..., Reader], pages_database: str, event_id: str) -> None:
    """Who changes a row and computes its hash again is believed, although the log has another leaf."""
    one = reader()
    page = one.open(f"/ui/events/{event_id}")
    badge(page)
    hash_before = page.get_attribute("#badge", "data-hash")
    change(pages_database, "UPDATE audit_events SET actor_id = 'mallory' WHERE event_id = $1", event_id)
    try:
        page = one.open(f"/ui/events/{event_id}")
        badge(page)
        computed = page.locator(".step", has_text="Record and leaf").locator("dd").first.text_content()
        change(pages_database, "UPDATE audit_events SET event_hash = $1 WHERE event_id = $2", computed, event_id)
        page = one.open(f"/ui/events/{event_id}")
        verdict, states = badge(page)
    finally:
        change(
            pages_database,
            "UPDATE audit_events SET actor_id = 'orchestration-controller', event_hash = $1 WHERE event_id = $2",
            hash_before,
            event_id,
        )
    one.forgive_refusals()
    assert (verdict, failed(states)) == ("fails", ["Record and leaf", "Path to the root"])


@pytest.mark.parametrize(
    ("before", "after", "step"),
    [
        # words of the page alone; a payload as it is shown; a member that is left out, or hidden; all that the page has, but not the proof
        ('data-member="actor_id">orchestration-controller', 'data-member="actor_id">mallory', "What this page shows"),
        ('"approved_by": "ada@example.com"', '"approved_by": "mallory@example.com"', "What this page shows"),
        ('data-member="resource_id"', 'data-other="resource_id"', "What this page shows"),
        ('data-member="resource_id"', 'hidden data-member="resource_id"', "What this page shows"),
        ("ada@example.com", "eve@example.com", "Commitment"),
        ("prod-eu-1", "prod-eu-2", "Record and leaf"),
    ],
)
def test_red_for_a_page_that_shows_other_words(
    reader: Callable[..., Reader], event_id: str, before: str, after: str, step: str
) -> None:
    """A server shows other words than it can prove, and the badge is green."""
    one, changed = reader(), list[int]()

    def forge(route: Route) -> None:
        answer = route.fetch()
        text = answer.text()
        for pair in ((before, after), (before.replace('"', "&#34;"), after.replace('"', "&#34;"))):
            changed.append(text.count(pair[0]))
            text = text.replace(*pair)
        route.fulfill(response=answer, body=text)

    one.context.route(f"**/ui/events/{event_id}", forge)
    page = one.open(f"/ui/events/{event_id}")
    verdict, states = badge(page)
    assert sum(changed) > 0
    assert verdict == "fails", page.inner_text("#badge")
    assert failed(states)[0] == step, page.inner_text("#badge")


@pytest.mark.parametrize(
    ("change_proof", "step"),
    [
        (lambda text: text.replace("index ", "index 1", 1), "Path to the root"),
        (lambda text: "\n".join((lines := text.split("\n"))[:3] + lines[4:]), "Path to the root"),
        (lambda text: text[:-8] + "AAAAAA=\n", "Signed checkpoint"),
    ],
)
def test_red_for_a_proof_that_does_not_hold(
    reader: Callable[..., Reader], event_id: str, change_proof: Callable[[str], str], step: str
) -> None:
    """A proof with another position, without one of its hashes, or with another signature is believed."""
    one = reader()

    def forge(route: Route) -> None:
        answer = route.fetch()
        document = answer.json()
        lines = document["proof"].split("\n")
        document["proof"] = change_proof("\n".join(line for line in lines if not _is_mldsa(line)))
        route.fulfill(response=answer, body=json.dumps(document))

    one.context.route("**/proof?open=true", forge)
    verdict, states = badge(one.open(f"/ui/events/{event_id}"))
    assert verdict == "fails"
    assert step in failed(states)


def test_red_for_the_proof_of_another_event(
    reader: Callable[..., Reader], event_id: str, pages_service: Service
) -> None:
    """A proof that holds, of another event of the same log, is believed."""
    events = httpx.get(f"{pages_service.url}/api/v1/audit/events", params={"correlation_id": CORRELATION}).json()[
        "data"
    ]
    other = next(event["event_id"] for event in events if event["event_id"] != event_id)
    one = reader()
    one.context.route(
        "**/proof?open=true",
        lambda route: route.fulfill(response=route.fetch(url=route.request.url.replace(event_id, other))),
    )
    verdict, states = badge(one.open(f"/ui/events/{event_id}"))
    assert (verdict, failed(states)) == ("fails", ["Record and leaf"])


def _is_mldsa(line: str) -> bool:
    return line.startswith("\u2014 ") and len(line) > 400


def test_changed_key_is_shouted(reader: Callable[..., Reader], event_id: str, pages_service: Service) -> None:
    """The key of the log is another one than yesterday, and nobody is told; or who has compared it cannot go on."""
    one = reader()
    page = one.open(f"/ui/events/{event_id}")
    assert badge(page)[0] == "holds"
    assert page.locator("#badge .alarm").count() == 0
    key = httpx.get(pages_service.url + "/tlog/key").text.splitlines()[0]
    page.evaluate(
        """(key) => { const name = Object.keys(localStorage).find((one) => one.startsWith("datastorage key"));
            localStorage.setItem(name, JSON.stringify({keys: [key], since: "2026-01-01T00:00:00.000Z", isPasted: false})); }""",
        _vkey_of_other_key(),
    )
    page.reload()
    verdict, states = badge(page)
    assert (verdict, states["Key"], states["Signed checkpoint"]) == ("fails", "fails", "fails")
    assert "The key of this log has changed" in page.get_by_role("alert").inner_text()
    page.get_by_role("button", name="trust the new key").click()
    page.wait_for_selector("#badge[data-done=holds]")
    page.reload()
    assert badge(page)[0] == "holds"
    page.get_by_text("Another key").click()
    page.fill("#badge textarea", key)
    page.get_by_role("button", name="Trust this key").click()
    page.wait_for_function("document.querySelector('#badge output').textContent !== ''")
    assert "trusts this key" in page.inner_text("#badge output")
    page.reload()
    assert badge(page)[0] == "holds"
    assert "You gave this browser the key" in page.inner_text("#badge")


def _vkey_of_other_key() -> str:
    name, key = b"test.example/datastorage", b"\x01" + os.urandom(32)
    id_ = hashlib.sha256(name + b"\n" + key).hexdigest()[:8]
    return f"{name.decode()}+{id_}+{base64.b64encode(key).decode()}"


def test_unsealed_event_is_not_proved(reader: Callable[..., Reader], pages_database: str) -> None:
    """A row that somebody inserted by SQL looks proved, or its page ends in an error."""
    row = make_row("rr-unsealed", "gateway.signal.received", "gateway", {"event_type": "gateway.signal.received"}, LATE)

    async def insert() -> str:
        async with databases.connected(pages_database) as connection:
            await connection.execute(INSERT, json.dumps([row]))
            return str(
                await connection.fetchval("SELECT event_id FROM audit_events WHERE correlation_id = 'rr-unsealed'")
            )

    one = reader()
    page = one.open(f"/ui/events/{aside(insert)}")
    page.wait_for_selector("#badge[data-done]")
    one.forgive_refusals()
    assert page.get_attribute("#badge", "data-done") != "holds"
    assert "unsealed" in page.inner_text("main")
    assert "Proved" not in page.inner_text("#badge [data-verdict]")


def test_no_such_event(reader: Callable[..., Reader], event_id: str) -> None:
    """A mistyped id ends in an error that does not help."""
    one = reader()
    for other in ("01a227a6-0000-4000-8000-000000000000", "approval"):
        page = one.open(f"/ui/events/{other}", status=404)
        assert f"There is no event {other}" in page.inner_text("main")
    del event_id


def test_erased_event_is_proved_without_its_payload(
    reader: Callable[..., Reader], pages_service: Service, pages_database: str
) -> None:
    """What was erased is shown, or its badge is red although the rules were followed, or green as if all had been compared."""
    with httpx.Client(base_url=pages_service.url) as client:
        story = make_story("rr-erased", LATE)[:1]
        created = client.post("/api/v1/audit/events", json=story[0])
        erased_id = created.json()["event_id"]
        wait_for_proofs(client)
    command = [sys.executable, "-m", "app", "erase", "--event-id", erased_id, "--reason", "asked for"]
    env = os.environ | {"DATASTORAGE_DATABASE_URL": pages_database}
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    page = reader().open(f"/ui/events/{erased_id}")
    verdict, states = badge(page)
    assert (verdict, states["Payload and salt"], states["Commitment"]) == ("holds", "open", "open"), page.inner_text(
        "#badge"
    )
    assert "payload and actor were erased" in page.inner_text("#badge [data-verdict]")
    assert "gateway-controller" not in page.inner_text("main")
    assert "erased" in page.inner_text("main .note")
