"""Every page with real data: with JavaScript and without, on a wide and a narrow screen, light and dark, by eye and by screen reader."""

import html
import re
from collections.abc import Callable
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

from tests.events import make_event, make_freeform
from tests.pages.browser import ZONE, Reader
from tests.pages.conftest import picture_path
from tests.services import Service

EVENTS = [
    "/ui/events",
    "/ui/events?event_outcome=failure&since=7d",
    "/ui/events?correlation_id=none",
    "/ui/events?order=log&q=restart",
]
PAGES = [
    *EVENTS,
    "/ui/trust",
    "/ui/event-types?q=approval",
    "/ui/event-types/orchestrator.approval.approved",
    "/ui/api",
    "/ui/nothing",
]


@pytest.mark.parametrize(  # any two of these in each way that they can go together
    ("scheme", "width", "javascript"),
    [("light", 1280, True), ("dark", 360, True), ("light", 360, False), ("dark", 1280, False)],
)
def test_every_page_fits_and_is_accessible(
    reader: Callable[..., Reader], javascript: bool, width: int, scheme: str, subtests: pytest.Subtests
) -> None:
    """A page cannot be used on a phone, in the dark, without scripts, or by who does not see it."""
    one = reader(javascript=javascript, width=width, scheme=scheme)
    looked_at = one if javascript else reader(width=width, scheme=scheme)  # axe itself is a script
    if not javascript:
        looked_at.without_scripts()
    for path in PAGES:
        with subtests.test(path):
            page = one.open(path, 404 if path == "/ui/nothing" else 200)
            assert one.overflow() <= 0
            assert page.locator("h1").count() == 1
            take_picture(page, path, width, scheme)
            opener = page.locator("tr.more summary").first
            if opener.count():
                opener.click()
                assert page.locator("tr.more details[open] pre").first.is_visible()
                assert one.overflow() <= 0
            if path != "/ui/api" or (javascript and width == 1280):  # the longest by far
                if not javascript:
                    page = looked_at.open(path, 404 if path == "/ui/nothing" else 200)
                found = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
                faults = [v for v in found if v["impact"] in {"serious", "critical"}]
                assert [(v["id"], [n["html"] for n in v["nodes"][:3]]) for v in faults] == []


_FOCUSED = """() => {
    const one = document.activeElement, look = getComputedStyle(one), box = one.getBoundingClientRect();
    const bar = one.querySelector(".reach");  // of a chart, which has a frame instead
    const shown = bar ? getComputedStyle(bar).stroke !== "none" : look.outlineStyle !== "none" && parseFloat(look.outlineWidth) > 0;
    const control = [...document.querySelectorAll("a[href], button, input, select, textarea, summary")].indexOf(one);
    return {control, shown, visible: box.width > 0 && box.height > 0, name: one.outerHTML.slice(0, 120)};
}"""
_CONTROLS = """() => [...document.querySelectorAll("a[href], button, input, select, textarea, summary")].map((one, n) => [n, one])
    .filter(([n, one]) => one.checkVisibility({visibilityProperty: true}) && !one.disabled && one.type !== "hidden")
    .map(([n, one]) => [n, one.outerHTML.slice(0, 120)])"""


@pytest.mark.parametrize("javascript", [True, False])
@pytest.mark.parametrize("path", ["/ui/events", "/ui/trust", "/ui/event-types?q=approval"])
def test_every_control_by_keyboard(reader: Callable[..., Reader], path: str, javascript: bool) -> None:
    """A link, a field or a row cannot be reached by Tab, or nobody sees that it was."""
    one = reader()
    if not javascript:
        one.without_scripts()
    page = one.open(path)
    controls = dict(page.evaluate(_CONTROLS))
    reached: dict[int, str] = {}
    for _ in range(2 * len(controls)):
        page.keyboard.press("Tab")
        focused = page.evaluate(_FOCUSED)
        if focused["control"] in reached:
            break
        if focused["control"] >= 0:
            assert focused["shown"], f"no outline: {focused['name']}"
            assert focused["visible"], f"nothing to see: {focused['name']}"
            reached[focused["control"]] = focused["name"]
    assert [name for number, name in controls.items() if number not in reached] == []
    assert list(reached) == sorted(reached)  # in the order in which they stand


def test_a_search_by_keyboard(reader: Callable[..., Reader]) -> None:
    """Somebody without a mouse cannot search, or cannot open a row."""
    page = reader().open("/ui/events")
    page.locator("input[name=q]").first.focus()
    page.keyboard.type("restart")
    page.keyboard.press("Enter")
    page.wait_for_url("**q=restart**")
    page.locator("tr.more summary").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("tr.more details[open] pre").first.is_visible()


def take_picture(page: Page, path: str, width: int, scheme: str) -> None:
    """Write the picture of a page for the README, if it is asked for."""
    name = path.removeprefix("/ui/").partition("?")[0].replace("/", "-")
    file = picture_path(f"{name}-{width}" if width != 1280 else name)
    if (
        file is not None
        and "?" not in path
        and name in {"events", "trust"}
        and (width, scheme) in {(1280, "light"), (360, "dark")}
    ):
        file.parent.mkdir(exist_ok=True)
        height = 520 if name == "events" and width == 1280 else 800  # each is below 150 kB
        page.screenshot(path=file, clip={"x": 0, "y": 0, "width": width, "height": height})


def test_twin_answers_the_same(
    reader: Callable[..., Reader], pages_service: Service, subtests: pytest.Subtests
) -> None:
    """The JSON link of a page answers another question than the page."""
    one = reader()
    for path in EVENTS:
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


def test_paths_that_are_no_files(pages_service: Service) -> None:
    """A file of the pages is something that a path can make of it: the sources, or an error of the service."""
    with httpx.Client(base_url=pages_service.url) as client:
        for name in ("a" * 300 + ".css", "a%00.css", "..%2frendering.py", "%2e%2e", "..", "pages.css%0a", "pages.css/"):
            assert client.get(f"/ui/static/x/{name}").status_code == 404, name


def test_large_payloads_in_a_table(reader: Callable[..., Reader], pages_service: Service) -> None:
    """A table carries payloads to their ends; or its row does not say that there is more."""
    event = make_event()
    event["event_data"]["large"] = {f"k{number}": "x" for number in range(10_000)}
    answer = httpx.post(f"{pages_service.url}/api/v1/audit/events", json=event).json()
    page = reader(javascript=False).open(f"/ui/events?correlation_id={event['correlation_id']}")
    payload = page.locator(f"#e-{answer['event_id']} pre").text_content() or ""
    assert 20_000 < len(payload) < 20_100
    assert payload.endswith("more characters)")


def test_time_is_the_readers_and_labelled(reader: Callable[..., Reader]) -> None:
    """A time without its zone; or the switch to UTC does nothing."""
    one = reader()
    page = one.open("/ui/events")
    assert "GMT+" in page.locator("tr.event time").first.inner_text()
    page.click('[data-switch="zone"]')
    in_utc = page.locator("tr.event time").first
    assert in_utc.inner_text().endswith("UTC")
    assert in_utc.inner_text()[:10] == str(in_utc.get_attribute("datetime"))[:10]
    page.reload()
    assert page.locator("tr.event time").first.inner_text().endswith("UTC")
    assert reader(javascript=False).open("/ui/events").locator("tr.event time").first.inner_text().endswith("UTC")


def test_filters_are_links(reader: Callable[..., Reader]) -> None:
    """What is searched for is not in the address; a bar of the histogram is no link into its time; a text has no bound; paging loses filters."""
    one = reader()
    page = one.open("/ui/events?limit=20")
    page.fill("input[name=event_type_in]", "orchestrator.*")
    page.select_option("select[name=event_outcome]", "success")
    page.click("form.filters button")
    assert query_of(page) == {"event_type_in": ["orchestrator.*"], "event_outcome": ["success"]}
    types = page.locator("tr.event th.type").all_inner_texts()
    assert {name.startswith("orchestrator.") for name in types} == {True}
    assert set(page.locator("tr.event .outcome").all_inner_texts()) == {"success"}
    shown = set(page.eval_on_selector_all("table.events tbody", "rows => rows.map((row) => row.id)"))
    page.click("a[rel=next]")
    older = set(page.eval_on_selector_all("table.events tbody", "rows => rows.map((row) => row.id)"))
    assert older
    assert not shown & older
    assert set(query_of(page)) == {"event_type_in", "event_outcome", "cursor"}
    page.click("text=Newest")
    page.click('a[aria-label^="without event_outcome"]')
    assert query_of(page) == {"event_type_in": ["orchestrator.*"]}
    bar = page.locator(".chart a").last
    number = int(str(bar.get_attribute("aria-label")).partition(" ")[0])
    bar.click()
    assert set(query_of(page)) == {"event_type_in", "since", "until"}
    assert page.locator(".title .aside").inner_text().startswith(f"{number} event")
    page.goto("/ui/events?q=RESTART-deployment")
    assert "since 7d" in page.locator(".chosen").inner_text()
    assert all("restart-deployment" in text for text in page.locator("tr.more pre").all_text_contents())


def test_questions_that_links_go_on(pages_service: Service) -> None:
    """A bar's link names a time twice; a text is looked for after the time that was asked for; a limit of any length is an error of the service."""
    with httpx.Client(base_url=pages_service.url) as client:
        chart = client.get("/ui/events?start_time=2d").text
        bars = re.findall(r'<a href="(/ui/events\?[^"]*)" aria-label="\d+ events', chart)
        assert bars
        assert client.get(html.unescape(bars[-1])).status_code == 200
        assert "since=2020-01-01T00%3A00%3A00" in client.get("/ui/events?q=x&until=2020-01-08T00:00:00Z").text
        assert client.get(f"/ui/events?limit={'9' * 5000}").status_code == 400


def test_local_times_are_asked_for(reader: Callable[..., Reader]) -> None:
    """A reader writes the time on their clock, and is answered for another hour."""
    one = reader()
    page = one.open("/ui/events")
    page.fill("input[name=since]", "2026-11-24 14:00")
    page.click("form.filters button")
    assert query_of(page) == {"since": ["2026-11-24 14:00"], "zone": [ZONE]}
    assert page.locator(".chart, .empty").first.is_visible()
    assert "2026-11-24T14:00:00" in str(page.locator("a.twin").get_attribute("href")).replace("%3A", ":")


def query_of(page: Page) -> dict[str, list[str]]:
    return parse_qs(urlsplit(page.url).query)


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "'; alert(3); //",
    "javascript:alert(4)",
    "{{ 7 * 7 }}{% raw %}",
    "\x1b[31mred\x1b]0;title\x07",
    "\u202egpj.exe\u202c\u2066x\u2069\u200f\u200b\ufeff",
    "&lt;b&gt; &amp; ]]> --> </textarea></pre></table>",
    "é 😀 ",
    "x" * 10_000,
]
LIMITS = {
    "event_action": 50,
    "actor_type": 50,
    "resource_type": 100,
    "namespace": 253,
    "severity": 20,
    "error_code": 50,
    "error_message": 10_000,
}
TEXTS = (
    "correlation_id",
    "actor_id",
    "actor_type",
    "resource_type",
    "resource_id",
    "namespace",
    "cluster_id",
    "event_action",
    "severity",
    "error_code",
    "error_message",
)


def test_hostile_strings_are_text(
    reader: Callable[..., Reader], pages_service: Service, subtests: pytest.Subtests
) -> None:
    """What somebody wrote into an event runs, hides, or turns the page around."""
    for number, text in enumerate(HOSTILE):
        members = {name: text[: LIMITS.get(name, 255)] for name in TEXTS} | {"correlation_id": f"{number} {text}"[:255]}
        payload = {"from_phase": text, text[:200]: [text], "big": 123456789012345678901234567890}
        event = make_freeform(payload=payload, **members)
        assert (answer := httpx.post(f"{pages_service.url}/api/v1/audit/events", json=event)).status_code == 201, (
            answer.text
        )
    for javascript in (True, False):
        one = reader(javascript=javascript)
        for number, text in enumerate(HOSTILE):
            with subtests.test(number=number, javascript=javascript):
                correlation_id = f"{number} {text}"[:255]
                page = one.open(f"/ui/events?{urlencode({'correlation_id': correlation_id, 'limit': 5})}")
                assert page.locator("tr.event").count() == 1
                page.click("tr.more summary")
                shown = page.inner_text("tr.more")
                assert not [c for c in shown if c in "\x1b\x07\u202e\u202c\u2066\u2069\u200f\u200b\ufeff"]
                for visible in as_shown(text[:255]), "123456789012345678901234567890":
                    assert "".join(visible.split()) in "".join(shown.split())
                assert page.evaluate("[document.title, document.images.length]") == ["Events · DataStorage", 0]
                assert page.evaluate(
                    "[...document.scripts].map((one) => one.getAttribute('src').split('/').pop())"
                ) == [
                    "pages.js",
                    "live.js",
                ]
                assert one.overflow() <= 0


def as_shown(text: str) -> str:
    """The text with escapes for what nobody would see."""
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)
