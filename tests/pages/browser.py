"""A Chromium for tests of pages, and what each page of it has to leave alone."""

import asyncio
import shutil
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import urlsplit

from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Dialog, Error, Page, Request, sync_playwright

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ZONE = "Australia/Adelaide"
"""Of the reader: half an hour beside whole zones, so that it cannot be mistaken for UTC."""

_Result = TypeVar("_Result")


@contextmanager
def chromium() -> Iterator[Browser]:
    """The system's Chromium without a window. While it runs, this thread has a running event loop: see `aside`."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=PROGRAM, args=["--no-sandbox", "--disable-gpu"])
        try:
            yield browser
        finally:
            browser.close()


def aside(work: Callable[[], Coroutine[Any, Any, _Result]]) -> _Result:
    """The result of a coroutine function, run in a thread of its own."""
    results: list[_Result] = []
    thread = threading.Thread(target=lambda: results.append(asyncio.run(work())))
    thread.start()
    thread.join()
    return results[0]


class Reader:
    """One reader with a browser of their own: cookies, screen, colours. What their pages did that none may do is in `faults`."""

    def __init__(self, browser: Browser, url: str, *, javascript: bool, width: int, scheme: Any) -> None:
        self.url = url
        self.faults: list[str] = []
        self.hosts = {urlsplit(url).netloc}
        """Where its requests may go."""
        self.context: BrowserContext = browser.new_context(
            base_url=url,
            viewport={"width": width, "height": 800},
            color_scheme=scheme,
            java_script_enabled=javascript,
            timezone_id=ZONE,
            accept_downloads=True,
        )
        self.context.on("request", self._check_host)
        self.page: Page = self.context.new_page()
        self.page.on("console", self._note_error)
        self.page.on("pageerror", self._note_exception)
        self.page.on("dialog", self._refuse_dialog)

    def open(self, path: str, status: int = 200) -> Page:
        """The page at `path`, which has to answer with this status."""
        answer = self.page.goto(path)
        assert answer is not None
        assert answer.status == status, (path, answer.status, self.page.content())
        if status >= 400:  # the browser itself reports those
            self.forgive_refusals()
        return self.page

    def text(self) -> str:
        return self.page.inner_text("body")

    def forgive_refusals(self) -> None:
        """Forget that the browser has reported answers with an error status: this test has asked for them."""
        self.faults = [fault for fault in self.faults if not fault.startswith("Failed to load resource")]

    def without_scripts(self) -> None:
        """From the next page on its own scripts do nothing, as for a reader without JavaScript; what a test evaluates still runs."""
        self.context.route("**/*.js", lambda route: route.fulfill(body="", content_type="text/javascript"))

    def overflow(self) -> int:
        """How many pixels the page is wider than its screen."""
        return int(self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))

    def _note_error(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.faults.append(message.text)

    def _note_exception(self, error: Error) -> None:
        self.faults.append(str(error))

    def _refuse_dialog(self, dialog: Dialog) -> None:
        self.faults.append(f"a dialog: {dialog.message}")
        dialog.dismiss()

    def _check_host(self, request: Request) -> None:
        url = request.url
        if not url.startswith(("data:", "blob:", "about:")) and urlsplit(url).netloc not in self.hosts:
            self.faults.append(f"a request left the host: {url}")
