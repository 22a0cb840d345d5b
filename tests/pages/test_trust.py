"""The page of what the log's trust rests on: what it says, and what may be ordered from it."""

import re
from collections.abc import Callable

import httpx
import pytest
from playwright.sync_api import Page

from app.api.trust import CLAIMS
from tests import databases, waiting
from tests.events import make_event
from tests.pages.browser import Reader, aside
from tests.services import ROOT, Service

pytestmark = pytest.mark.damaged
TRUST = "/api/v1/audit/trust"


def test_claims_are_those_of_the_documentation() -> None:
    """The page claims more than docs/evidence.md, or less."""
    section = (
        (ROOT / "docs" / "evidence.md").read_text("utf-8").partition("## What is claimed\n")[2].partition("\n## ")[0]
    )
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")][2:]
    assert [tuple(cell.strip() for cell in row) for row in rows] == list(CLAIMS)


@pytest.mark.parametrize("javascript", [True, False])
def test_holds_by_form(reader: Callable[..., Reader], pages_service: Service, javascript: bool) -> None:
    """A hold on an actor cannot be placed or released from the page, or is placed without a reason or on nothing."""
    actor = f"ada <b>@example.org {javascript}"
    event = make_event(actor_id=actor)
    assert httpx.post(f"{pages_service.url}/api/v1/audit/events", json=event).status_code == 201
    one = reader(javascript=javascript)
    page = one.open("/ui/trust")
    page.click("text=Place a hold")
    page.fill("input[name=actor_id]", actor)
    page.fill("form[action='/ui/holds'] textarea", "case <7>")
    page.click("text=Place the hold")
    row = page.locator("tr", has_text="case <7>")
    assert "ada <b>@example.org" in row.inner_text()
    [hold] = httpx.get(pages_service.url + TRUST).json()["holds"]
    assert (hold["actor_id"], hold["reason"], hold["placed_by"], hold["events_affected"]) == (
        actor,
        "case <7>",
        "anonymous",
        1,
    )
    row.locator("summary").click()
    row.locator("textarea").fill("closed")
    row.get_by_role("button", name="Release").click()
    assert "No hold is in force" in page.inner_text("main")
    assert httpx.get(pages_service.url + TRUST).json()["holds"] == []
    token = page.locator("input[name=form_token]").first.get_attribute("value")
    for fields in (
        {"actor_id": actor},
        {"reason": "x"},
        {"actor_id": "a", "correlation_id": "b", "reason": "x"},
        {"actor_id": "a\0", "reason": "x"},
        {"actor_id": "a", "reason": "\0"},
        {"correlation_id": "a" * 256, "reason": "x"},
    ):
        sent: dict[str, str | float | bool] = {"form_token": str(token), "order": "place", **fields}
        answer = one.context.request.post("/ui/holds", form=sent, headers={"Accept": "text/html"})
        assert (answer.status, "text/html" in answer.headers["content-type"]) == (400, True)


def test_finding_is_shown_and_acknowledged(
    reader: Callable[..., Reader], pages_service: Service, pages_database: str
) -> None:
    """Tampering is found, and nobody who looks at the page sees it; or it cannot be acknowledged there."""
    event = make_event()
    posted = httpx.post(f"{pages_service.url}/api/v1/audit/events", json=event).json()

    async def tamper() -> None:
        async with databases.connected(pages_database) as connection:
            await connection.execute("SET session_replication_role = replica")
            await connection.execute(
                "UPDATE audit_events SET actor_id = 'mallory' WHERE event_id = $1", posted["event_id"]
            )

    aside(tamper)
    one = reader()

    def opened() -> Page | None:
        page = one.open("/ui/trust")
        return page if page.locator("article.bad").count() else None

    page = waiting.until(opened)
    finding = page.locator("article.bad").first
    assert re.search(r"open\s+edited: ", finding.inner_text())
    assert event["correlation_id"] in finding.inner_text()
    finding.locator("summary").click()
    finding.locator("textarea").fill("a drill")
    finding.get_by_role("button", name="Acknowledge").click()
    assert page.locator("article.bad").count() == 0
    page.click("text=Acknowledged: the last 1")
    assert "a drill" in page.locator("article").first.inner_text()
    trust = httpx.get(pages_service.url + TRUST).json()
    assert [one["reason"] for one in trust["acknowledged_findings"]] == ["a drill"]
    assert trust["open_findings"] == []
    assert trust["verifier"]["round"] >= 1
