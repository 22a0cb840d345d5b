"""A headless Chromium, driven by its DevTools protocol over two pipes; no package is needed for that."""

import contextlib
import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")


class Tab:
    """One page; `events` are all that the browser has reported of it."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._in, self._out = to_browser, from_browser
        self._numbers, self._rest, self._answers = itertools.count(1), b"", dict[int, dict[str, Any]]()
        self._session: dict[str, str] = {}
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = {
            "sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"],
        }

    def send(self, method: str, **parameters: Any) -> int:
        """Begin a call; its number."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters} | self._session
        os.write(self._in, json.dumps(message).encode() + b"\0")
        return number

    def result(self, number: int) -> Any:
        """What the call with this number has answered."""
        while number not in self._answers:
            message = self._next()
            if "id" in message:
                self._answers[message["id"]] = message
            else:
                self.events.append(message)
        answer = self._answers.pop(number)
        assert "error" not in answer, answer
        return answer["result"]

    def call(self, method: str, **parameters: Any) -> Any:
        return self.result(self.send(method, **parameters))

    def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page; a promise is awaited."""
        return self.evaluated(self.begin(expression))

    def begin(self, expression: str) -> int:
        return self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)

    def evaluated(self, number: int) -> Any:
        answer = self.result(number)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait_for(self, method: str) -> None:
        while all(event.get("method") != method for event in self.events):
            self.events.append(self._next())

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            part = os.read(self._out, 1 << 16)
            assert part, "the browser has ended"
            self._rest += part
        first, self._rest = self._rest.split(b"\0", 1)
        message: dict[str, Any] = json.loads(first)
        return message


@contextlib.contextmanager
def tab(profile: Path) -> Iterator[Tab]:
    """A page of a browser of its own, which ends with the block."""
    their_in, to_browser = os.pipe()
    from_browser, their_out = os.pipe()
    # The protocol's pipes are the file descriptors 3 and 4, whatever ours are called.
    script = f'exec "$0" "$@" 3<&{their_in} 4>&{their_out}'
    command = ["bash", "-c", script, str(PROGRAM), *FLAGS, "--remote-debugging-pipe", f"--user-data-dir={profile}"]
    browser = subprocess.Popen(command, pass_fds=(their_in, their_out), stderr=subprocess.DEVNULL)
    os.close(their_in)
    os.close(their_out)
    try:
        one = Tab(to_browser, from_browser)
        yield one
    finally:
        browser.terminate()
        browser.wait(20)
        os.close(to_browser)
        os.close(from_browser)
