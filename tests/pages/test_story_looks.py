"""The pages of remediations and events by eye and by screen reader: wide and narrow, light and dark, with JavaScript and without."""

from collections.abc import Callable

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe

from tests.pages.browser import Reader
from tests.pages.conftest import wait_for_proofs
from tests.services import Service

LOOKS = [(True, 1280, "light"), (True, 360, "dark"), (False, 1280, "dark"), (False, 360, "light")]


@pytest.fixture(scope="module")
def paths(pages_service: Service) -> list[str]:
    """The list, the page of a remediation that failed and of one that was approved, and of events with each outcome."""
    with httpx.Client(base_url=pages_service.url) as client:
        wait_for_proofs(client)
        failed = client.get("/api/v1/audit/events", params={"event_outcome": "failure"}).json()["data"][0]
        types = {"event_type": "orchestrator.approval.approved"}
        approved = client.get("/api/v1/audit/events", params=types).json()["data"][0]
    correlations = [f"/ui/correlations/{one['correlation_id']}" for one in (failed, approved)]
    return ["/ui/correlations", *correlations, *(f"/ui/events/{one['event_id']}" for one in (failed, approved))]


@pytest.mark.parametrize("look", LOOKS)
def test_every_page_fits_and_is_accessible(
    reader: Callable[..., Reader],
    paths: list[str],
    look: tuple[bool, int, str],
    subtests: pytest.Subtests,
) -> None:
    """A page cannot be used on a phone, in the dark, without scripts, or by who does not see it."""
    javascript, width, scheme = look
    one = reader(javascript=javascript, width=width, scheme=scheme)
    for path in paths:
        with subtests.test(path):
            page = one.open(path)
            if javascript and "/events/" in path:
                page.wait_for_selector("#badge[data-done=holds]")
            page.eval_on_selector_all("main .panel details", "all => all.forEach((one) => { one.open = true; })")
            assert one.overflow() <= 0
            assert page.locator("h1").count() == 1
            if javascript:
                faults = [v for v in Axe().run(page).response["violations"] if v["impact"] in {"serious", "critical"}]
                assert [(v["id"], [n["html"] for n in v["nodes"][:3]]) for v in faults] == []
