"""The pages of remediations: the list, one remediation, and an auditor's question from its first click to a file that verifies."""

import re
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from tests import databases, sealed
from tests.events import make_event
from tests.pages.browser import Reader, aside
from tests.pages.conftest import picture_path, wait_for_proofs
from tests.services import ROOT, Service
from tests.story import make_row, make_story

ODD = "rr/ödd id?#%2F\u202e<b>&'\"{{7*7}}"
HOSTILE = "<script>alert(1)</script>\u202e\x1b[31m'\"<img src=x onerror=alert(2)>"
LATE = datetime.now(UTC) - timedelta(days=5)


@pytest.fixture(scope="module")
def told(pages_service: Service) -> dict[str, str]:
    """Correlations that were posted: a whole story, one with an id of odd characters, one with hostile text in every field."""
    texts = ("actor_type", "event_action", "severity", "namespace", "cluster_id", "error_code")
    hostile = make_row("hostile", "orchestrator.approval.approved", "orchestration", {}, LATE) | {
        "event_outcome": "failure",
        "actor_id": HOSTILE,
        "resource_type": HOSTILE[:80],
        "resource_id": HOSTILE,
        "error_message": HOSTILE + "x" * 10_000,
        "event_data": {
            "event_type": "orchestrator.approval.approved",
            "rr_name": HOSTILE,
            "namespace": HOSTILE,
            "rar_name": HOSTILE,
            "decision": "Approved",
            "approved_by": HOSTILE,
            "message": HOSTILE,
            HOSTILE: [18446744073709551616, 0.1, HOSTILE],
        },
        **dict.fromkeys(texts, HOSTILE[:20]),
    }
    payload = {"event_type": "orchestrator.lifecycle.started", "rr_name": "x", "namespace": "payments"}
    mismatched = make_row("mismatched", "gateway.signal.received", "gateway", payload, LATE)
    events = [*make_story("rr-story", LATE), *make_story(ODD, LATE), hostile, mismatched]
    with httpx.Client(base_url=pages_service.url) as client:
        for start in range(0, len(events), 10):
            answer = client.post("/api/v1/audit/events/batch", json=events[start : start + 10])
            assert answer.status_code == 201, answer.text
        sent = {"sent_at": (LATE + timedelta(seconds=20)).isoformat(), "status": "sent", "escalation_level": 0}
        note = {
            "remediation_id": "rr-story",
            "notification_id": "n-1",
            "recipient": "ops@example.com",
            "channel": "email",
        }
        answer = client.post("/api/v1/audit/notifications", json=note | sent | {"message_summary": "rr-story is done"})
        assert answer.status_code == 201, answer.text
        wait_for_proofs(client)
    return {"whole": "rr-story", "odd": ODD, "hostile": "hostile"}


def path_of(correlation_id: str) -> str:
    return f"/ui/correlations/{quote(correlation_id, safe='')}"


@pytest.mark.parametrize("javascript", [True, False])
def test_remediation_shows_its_story(reader: Callable[..., Reader], told: dict[str, str], javascript: bool) -> None:
    """Something that is known about a remediation is not on its page, with scripts or without."""
    one = reader(javascript=javascript)
    page = one.open(path_of(told["whole"]))
    text = page.locator("main").inner_text()
    for words in (
        *("Approved by ada@example.com", "go ahead", "The chain is whole", "all 17 events", "up to chain position 16"),
        *("ops@example.com", "rr-story is done", "Nothing of it is held", "90%"),
    ):
        assert words in text, words
    assert page.locator("svg").get_by_text("phases").count() == 1
    assert page.locator(".drawing a").count() >= 4
    types = page.locator("table.events th.type").all_inner_texts()
    assert types[0] == "gateway.signal.received"
    assert types[-1] == "effectiveness.assessment.completed"
    assert len(types) == 17
    page.get_by_text("YAML", exact=True).click()
    assert "kind: RemediationRequest" in page.locator("pre[data-copy]").inner_text()
    assert page.get_by_role("button", name="Copy").count() == (1 if javascript else 0)
    if javascript and (picture := picture_path("remediation")):
        page.evaluate("scrollTo(0, 0)")
        page.screenshot(path=picture)


def test_any_id_has_a_page(reader: Callable[..., Reader], told: dict[str, str]) -> None:
    """A remediation whose id has slashes, spaces or markup cannot be opened, from the list or from its events."""
    one = reader()
    page = one.open("/ui/correlations?limit=100")
    page.locator("table.list a", has_text="rr/ödd").click()
    assert page.title().startswith("rr/ödd id?#%2F\\u202e<b>&'\"{{7*7}}")
    assert "all 17 events" in page.locator("main").inner_text()
    for link in ("Verify now", "JSON"):
        href = page.get_by_role("link", name=link, exact=True).last.get_attribute("href")
        target = href if str(href).startswith("/") else path_of(told["odd"]) + str(href)
        assert httpx.get(one.url + str(target)).status_code == 200
    page.locator("table.events th.type a").first.click()
    page.get_by_text("Its remediation").click()
    assert "all 17 events" in page.locator("main").inner_text()


def test_ids_with_newlines(pages_service: Service) -> None:
    """An id with a newline cannot be opened; or what is shown, or released, is what belongs to the id without it."""
    with httpx.Client(base_url=pages_service.url) as client:
        for number, id_ in enumerate(("rr-lines", "rr-lines\n", "rr\nlines"), 1):
            events = [make_event() | {"correlation_id": id_} for _ in range(number)]
            assert client.post("/api/v1/audit/events/batch", json=events).status_code == 201
        for number, path in enumerate(("rr-lines", "rr-lines%0A", "rr%0Alines"), 1):
            story = client.get(f"/api/v1/audit/correlations/{path}").json()
            assert len(story["events"]) == number
            assert f"{number} event" in client.get(f"/ui/correlations/{path}", headers={"Accept": "text/html"}).text
        hold = {"correlation_id": "rr-lines", "reason": "case 12"}
        assert client.post("/api/v1/audit/legal-hold", json=hold).status_code == 200
        path, ending = "/api/v1/audit/legal-hold", {"release_reason": "x"}
        assert client.request("DELETE", f"{path}/rr-lines%0A", json=ending).status_code >= 400
        assert [one["correlation_id"] for one in client.get(path).json()["holds"]] == ["rr-lines"]
        assert client.request("DELETE", f"{path}/rr-lines", json=ending).status_code == 200


def test_a_forged_approval_is_marked(pages_service: Service, told: dict[str, str], pages_database: str) -> None:
    """An approval that somebody inserted by SQL is shown as one that the service recorded."""
    forged = {"event_type": "orchestrator.approval.approved", "event_data": '{"approved_by": "eve"}'}

    async def insert() -> None:
        async with databases.connected(pages_database) as connection:
            await sealed.insert(connection, sealed.plain_row("rr-forged", **forged))

    aside(insert)
    answers = []
    for correlation_id in (told["whole"], "rr-forged"):
        page = httpx.get(pages_service.url + path_of(correlation_id), headers={"Accept": "text/html"}).text
        answers += re.findall(r"<dt>answer</dt><dd>(.*?)</dd>", page, re.DOTALL)
    assert ["unsealed" in answer for answer in answers] == [False, True]
    assert "eve" in answers[1]


def test_what_cannot_be_rebuilt_is_said(reader: Callable[..., Reader], told: dict[str, str]) -> None:
    """A payload that is not of its event's type takes the whole page away, rather than the RemediationRequest alone."""
    page = reader(javascript=False).open(path_of("mismatched"))
    assert "cannot be read: event_data/signal_type: required, but missing" in page.inner_text("main")
    assert page.locator(".chain .judged").first.get_attribute("data-chain") == "good"
    del told


def test_unknown_remediation(reader: Callable[..., Reader], told: dict[str, str]) -> None:
    """Who misspells an id reads of an empty but valid chain, or nothing that helps."""
    page = reader().open(path_of("no/such"), status=404)
    assert "Nothing is recorded about a remediation no/such" in page.inner_text("main")
    assert page.get_by_role("link", name="Remediations").count() == 1
    del told


def test_hostile_text_is_text(reader: Callable[..., Reader], told: dict[str, str]) -> None:
    """What a client has sent acts on the page of who reads it, or cannot be seen."""
    one = reader()
    for path in (path_of(told["hostile"]), "/ui/correlations?namespace=" + quote(HOSTILE[:20])):
        page = one.open(path)
        assert "<script>" in page.inner_text("main"), path
        assert page.locator("main img, main script").count() == 0
        assert "\u202e" not in page.inner_text("body")
        assert "\x1b" not in page.inner_text("body")
        assert one.overflow() <= 0
    page = one.open(path_of(told["hostile"]))
    assert "\\u202e\\u001b[31m" in page.locator("main").inner_text()
    page.locator("table.events th.type a").first.click()
    page.wait_for_selector("#badge[data-done]")
    assert page.locator("#badge").get_attribute("data-done") == "holds", page.locator("#badge").inner_text()
    assert "18446744073709551616" in page.locator("pre.payload").inner_text()
    assert page.locator("main img, main script").count() == 0


def test_list_filters_and_pages(reader: Callable[..., Reader], told: dict[str, str]) -> None:
    """A remediation is missing in the list, or on two of its pages."""
    one, seen = reader(javascript=False), list[str]()
    page = one.open("/ui/correlations?limit=4")
    while True:
        names = page.locator("table.list th[scope=row] a").all()
        seen += [str(name.get_attribute("href")) for name in names]
        if not page.get_by_role("link", name="Older").count():
            break
        page.get_by_role("link", name="Older").click()
    listed = httpx.get(f"{one.url}/api/v1/audit/correlations?limit=100").json()["data"]
    assert seen == [path_of(entry["correlation_id"]) for entry in listed]
    page = one.open("/ui/correlations")
    page.fill("[name=namespace]", "payments")
    page.select_option("[name=event_outcome]", "failure")
    page.get_by_role("button", name="Find").click()
    assert set(page.locator("table.list td .outcome").all_inner_texts()) == {"failure"}
    twin = httpx.get(one.url + str(page.locator("a.twin").get_attribute("href"))).json()
    assert page.locator("table.list th[scope=row]").count() == len(twin["data"]) > 0
    del told


@pytest.mark.parametrize("javascript", [False])
def test_hold_by_form(reader: Callable[..., Reader], told: dict[str, str], javascript: bool) -> None:
    """A hold cannot be placed from the page, is not shown, or cannot be released; or a forged form places one."""
    one = reader(javascript=javascript)
    page = one.open(path_of(told["whole"]))
    page.get_by_text("Hold it").click()
    page.fill("[name=reason]", "case 12 <b>")
    page.get_by_role("button", name="Place a hold").click()
    held = page.locator("section", has=page.locator("h2", has_text="Legal hold"))
    assert "case 12 <b>" in held.inner_text()
    assert held.locator(".mark.held").count() == 1
    page.get_by_text("Release it").click()
    page.fill("[name=reason]", "closed")
    page.get_by_role("button", name="Release the hold").click()
    assert held.locator(".mark.held").count() == 0
    assert "released" in held.inner_text()
    form = {"correlation_id": told["whole"], "order": "place", "reason": "forged"}
    assert httpx.post(one.url + "/ui/holds", data=form).status_code == 403
    assert httpx.get(one.url + "/api/v1/audit/legal-hold").json()["total"] == 0


def test_verdict_is_never_staler_than_it_says(
    reader: Callable[..., Reader], told: dict[str, str], pages_database: str
) -> None:
    """A row is changed by SQL, and the page says that the chain is whole."""
    correlation_id, seen = told["whole"], list[str]()

    async def rename(before: str, after: str) -> None:
        async with databases.connected(pages_database) as connection:
            await connection.execute("SET session_replication_role = replica")
            await connection.execute(
                "UPDATE audit_events SET actor_id = $1 WHERE correlation_id = $2 AND actor_id = $3",
                after,
                correlation_id,
                before,
            )

    aside(lambda: rename("gateway-controller", "somebody"))
    try:
        page = reader().open(path_of(correlation_id))
        verdict = page.locator(".chain .judged").first
        assert verdict.get_attribute("data-chain") == "bad"
        seen = re.findall(r"The chain is broken|whole", page.locator(".chain").inner_text())
    finally:
        aside(lambda: rename("somebody", "gateway-controller"))
    assert seen == ["The chain is broken"]
    page = reader().open(path_of(correlation_id) + "?verify=true")
    assert page.locator(".chain .judged").first.get_attribute("data-chain") == "good"


def test_an_auditors_question(reader: Callable[..., Reader], told: dict[str, str], tmp_path: Path) -> None:
    """What happened to this deployment between two and four, who approved it, is it authentic, a file for the regulator: in three steps."""
    since, until = (
        time.strftime("%Y-%m-%dT%H:%M:%SZ") for time in (LATE - timedelta(hours=1), LATE + timedelta(hours=1))
    )
    one = reader()
    # 1. The list, by time and namespace.
    page = one.open(f"/ui/correlations?since={since}&until={until}&namespace=payments")
    # 2. The remediation: what happened, who approved, and whether it is authentic.
    page.get_by_role("link", name="rr-story", exact=True).click()
    text = page.locator("main").inner_text()
    assert "Approved by ada@example.com" in text
    assert page.locator(".chain .judged").first.get_attribute("data-chain") == "good"
    # 3. The file.
    with page.expect_download() as download:
        page.get_by_role("link", name="Bundle").click()
    assert download.value.suggested_filename == f"{told['whole']}.bundle.json"
    file, key = tmp_path / "bundle.json", tmp_path / "key"
    download.value.save_as(file)
    key.write_text(httpx.get(one.url + "/tlog/key").text.splitlines()[0])
    command = [sys.executable, "-m", "app", "verify-export", str(file), "--key", str(key)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert told["whole"] in file.read_text()
