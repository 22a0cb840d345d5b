"""Every page with real data: with JavaScript and without, on a wide and a narrow screen, light and dark, by eye and by screen reader."""

from collections.abc import Callable

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe

from tests.pages.browser import Reader
from tests.services import Service

PAGES = ["/ui/events", "/ui/events?event_outcome=failure&since=7d", "/ui/events?correlation_id=none"]
LOOKS = [(True, 1280, "light"), (True, 360, "dark"), (False, 1280, "dark"), (False, 360, "light")]


@pytest.mark.parametrize(("javascript", "width", "scheme"), LOOKS)
def test_every_page_fits_and_is_accessible(
    reader: Callable[..., Reader], javascript: bool, width: int, scheme: str, subtests: pytest.Subtests
) -> None:
    """A page cannot be used on a phone, in the dark, without scripts, or by who does not see it."""
    one = reader(javascript=javascript, width=width, scheme=scheme)
    for path in PAGES:
        with subtests.test(path):
            page = one.open(path)
            assert one.overflow() <= 0
            assert page.locator("h1").count() == 1
            opener = page.locator("tr.more summary").first
            if opener.count():
                opener.click()
                assert page.locator("tr.more details[open] pre").first.is_visible()
                assert one.overflow() <= 0
            if javascript:
                faults = [v for v in Axe().run(page).response["violations"] if v["impact"] in {"serious", "critical"}]
                assert [(v["id"], [n["html"] for n in v["nodes"][:3]]) for v in faults] == []


def test_twin_answers_the_same(
    reader: Callable[..., Reader], pages_service: Service, subtests: pytest.Subtests
) -> None:
    """The JSON link of a page answers another question than the page."""
    one = reader()
    for path in PAGES:
        with subtests.test(path):
            page = one.open(path)
            twin = page.locator("a.twin").get_attribute("href")
            assert twin == page.locator("link[rel=alternate]").get_attribute("href")
            answer = httpx.get(pages_service.url + str(twin)).json()
            shown = [
                id_.removeprefix("e-")
                for id_ in page.eval_on_selector_all("table.events tbody", "rows => rows.map((row) => row.id)")
            ]
            assert shown == [event["event_id"] for event in answer["data"]]


def test_browsers_and_clients(pages_service: Service) -> None:
    """A browser gets JSON, or a client that is none gets a page."""
    html = {"Accept": "text/html"}
    with httpx.Client(base_url=pages_service.url) as client:
        assert client.get("/", headers=html).headers["location"] == "/ui"
        assert client.get("/ui", headers=html).headers["location"] == "/ui/events"
        assert client.get("/").text == "404 page not found\n"
        missing = client.get("/ui/nothing", headers=html)
        assert (missing.status_code, "<h1>" in missing.text) == (404, True)
        bad = client.get("/ui/events?since=soon", headers=html)
        assert (bad.status_code, bad.headers["content-type"]) == (400, "text/html; charset=utf-8")
        assert "default-src &#39;none&#39;" not in bad.text
        assert bad.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self';")
        assert client.get("/ui/events?since=soon").headers["content-type"] == "application/problem+json"
        for name in ("x-content-type-options", "cache-control", "referrer-policy"):
            assert name in bad.headers


def test_time_is_the_readers_and_labelled(reader: Callable[..., Reader]) -> None:
    """A time without its zone; or the switch to UTC does nothing."""
    one = reader()
    page = one.open("/ui/events")
    assert "GMT+5:30" in page.locator("tr.event time").first.inner_text()
    page.click('[data-switch="zone"]')
    in_utc = page.locator("tr.event time").first
    assert in_utc.inner_text().endswith("UTC")
    assert in_utc.inner_text()[:10] == str(in_utc.get_attribute("datetime"))[:10]
    page.reload()
    assert page.locator("tr.event time").first.inner_text().endswith("UTC")
    assert reader(javascript=False).open("/ui/events").locator("tr.event time").first.inner_text().endswith("UTC")
