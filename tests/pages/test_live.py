"""The live mode of the page of events: what the log gets is put on top while somebody looks."""

from collections.abc import Callable

import httpx
from playwright.sync_api import Page

from tests.events import make_event
from tests.pages.browser import Reader
from tests.services import Service

OPENED = "tr.more details[open] .facts"


def post(service: Service, **members: object) -> str:
    answer = httpx.post(f"{service.url}/api/v1/audit/events", json=make_event(**members), timeout=60)
    assert answer.status_code == 201
    return str(answer.json()["event_id"])


def first_row(page: Page) -> str | None:
    return page.locator("table.events tbody").first.get_attribute("id")


def wait_for_row(page: Page, event_id: str) -> None:
    page.locator(f"#e-{event_id}").wait_for(timeout=30_000)


def test_what_comes_is_put_on_top(reader: Callable[..., Reader], pages_service: Service) -> None:
    """The page shows nothing new, or at the bottom, or obeys what stands in an event; what came before the switch is missing."""
    one = reader()
    page = one.open("/ui/events")
    early = post(pages_service)
    page.get_by_role("button", name="Live").click()
    wait_for_row(page, early)
    text = "<img src=x onerror=alert(1)>"
    late = post(pages_service, actor_id=text, event_outcome="failure")
    wait_for_row(page, late)
    assert first_row(page) == f"e-{late}"
    row = page.locator(f"#e-{late}")
    assert text in row.inner_text()
    assert row.locator("time abbr").first.inner_text() != "UTC"  # in the reader's zone, as the rows below
    row.locator("summary").click()
    assert row.locator(OPENED).is_visible()
    assert "2 events have come" in page.locator(".live").inner_text()
    assert one.faults == []


def test_paused_and_gone_on(reader: Callable[..., Reader], pages_service: Service) -> None:
    """Rows move away while somebody reads them, or what came in the pause is left out."""
    page = reader().open("/ui/events")
    page.get_by_role("button", name="Live").click()
    wait_for_row(page, post(pages_service))
    page.get_by_role("button", name="Pause").click()
    before = first_row(page)
    in_pause = post(pages_service)
    page.get_by_text("paused").wait_for()
    assert first_row(page) == before
    page.get_by_role("button", name="Go on").click()
    wait_for_row(page, in_pause)
    assert page.locator(f"#e-{in_pause}").count() == 1


def test_only_what_the_page_asks_for(reader: Callable[..., Reader], pages_service: Service) -> None:
    """The filters of the page do not hold for what comes; or a page without events cannot show the first one."""
    page = reader().open("/ui/events?correlation_id=rr-live-page")
    assert page.locator("table.events").count() == 0
    page.get_by_role("button", name="Live").click()
    post(pages_service)
    wanted = post(pages_service, correlation_id="rr-live-page")
    wait_for_row(page, wanted)
    assert page.locator("table.events tbody").count() == 1


def test_the_connection_is_lost(reader: Callable[..., Reader], pages_service: Service) -> None:
    """Somebody looks at a page that gets nothing any more, and believes that nothing happens."""
    one = reader()
    page = one.open("/ui/events")
    one.context.set_offline(True)
    page.get_by_role("button", name="Live").click()
    page.get_by_text("the connection was lost").wait_for()
    one.context.set_offline(False)
    wait_for_row(page, post(pages_service))
    one.forgive_refusals()


def test_where_there_is_nothing_to_follow(reader: Callable[..., Reader]) -> None:
    """Without scripts, or on a page of the past, a switch is there that does nothing."""
    page = reader(javascript=False).open("/ui/events")
    assert not page.locator(".live").is_visible()
    for query in ("until=2026-01-31", "sealed=false"):
        assert reader().open(f"/ui/events?{query}").locator(".live").count() == 0
