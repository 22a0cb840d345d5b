"""A receiver of webhooks, as somebody builds one with the library of Standard Webhooks: it checks every signature, and recognises repeats."""

import base64
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import orjson
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from tests.services import free_port

Record = dict[str, Any]


def new_secret(seed: bytes = b"a") -> str:
    return "whsec_" + base64.b64encode((seed * 32)[:32]).decode()


@dataclass
class Answer:
    """What the receiver does with a request."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    """Before it answers."""
    accepts: bool | None = None
    """Whether it stores the records; None: as its status says."""


@dataclass
class Receiver:
    """What has arrived. `decide` answers each request, by its number from 0."""

    secret: str
    port: int
    decide: Callable[[int], Answer] = lambda _: Answer()
    requests: int = 0
    refused: list[str] = field(default_factory=list)
    """Requests without a valid signature."""
    ids: list[str] = field(default_factory=list)
    """Of all requests, in their order."""
    bodies: dict[str, bytes] = field(default_factory=dict)
    """By id: what was stored once."""
    conflicts: list[str] = field(default_factory=list)
    """Ids that came again with another body."""
    media_types: set[str] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook?token=hidden"

    @property
    def records(self) -> list[Record]:
        """Those of all bodies, repeats left out."""
        with self.lock:
            return [record for body in self.bodies.values() for record in records_of(body)]

    @property
    def positions(self) -> list[int]:
        """Of the events of the first log, in the order in which they arrived."""
        return [one["log_index"] for one in self.records if "log_index" in one]

    @property
    def repeats(self) -> int:
        """Requests whose id had come before."""
        return len(self.ids) - len(set(self.ids))

    @property
    def controls(self) -> list[Record]:
        """The records that are no events, but for checkpoints."""
        return [one for one in self.records if one.get("stream") not in {None, "checkpoint"}]

    def receive(self, headers: dict[str, str], body: bytes) -> Answer:
        with self.lock:
            number, self.requests = self.requests, self.requests + 1
            answer = self.decide(number)
            try:
                Webhook(self.secret).verify(body, headers)
            except WebhookVerificationError as error:
                if "JSON" not in str(error):
                    self.refused.append(str(error))
                    return Answer(401)
            except ValueError:
                pass  # the signature is valid; ndjson is no JSON, which the library parses afterwards
            accepts = answer.status < 300 if answer.accepts is None else answer.accepts
            message_id = headers["webhook-id"]
            self.ids.append(message_id)
            self.media_types.add(headers["content-type"])
            if accepts and self.bodies.setdefault(message_id, body) != body:
                self.conflicts.append(message_id)
        return answer


def records_of(body: bytes) -> list[Record]:
    if body.startswith(b"["):
        return list(orjson.loads(body))
    return [orjson.loads(line) for line in body.splitlines()]


@contextmanager
def receiver(secret: str | None = None, port: int | None = None, of: Receiver | None = None) -> Iterator[Receiver]:
    """A receiver on a free port, until the block ends; or `of` again, after it was away."""
    one = of or Receiver(secret or new_secret(), port or free_port())

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            answer = one.receive({name.lower(): value for name, value in self.headers.items()}, body)
            time.sleep(answer.seconds)
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

        def handle(self) -> None:
            with suppress(OSError):  # whoever asked has gone
                super().handle()

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

    server = Server(("127.0.0.1", one.port), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield one
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def sinks_file(directory: Path, *receivers: Receiver, **fields: Any) -> Path:
    """A file of sinks, one webhook for each receiver; `fields` are further ones of each. The secret is in a file beside it."""
    sinks = []
    for number, one in enumerate(receivers):
        secret = directory / f"secret-{number}"
        secret.write_text(one.secret)
        sinks.append(
            {"name": f"soc-{number}", "type": "webhook", "url": one.url, "secret_files": [str(secret)], "from": "start"}
            | fields
        )
    path = directory / "sinks.yaml"
    path.write_bytes(orjson.dumps({"sinks": sinks}))  # JSON is YAML
    return path


class SinkReceiver:
    """A receiver that can be killed: then nobody listens on its port. What it had stored it still has when it is back."""

    def __init__(self) -> None:
        self.one = Receiver(new_secret(), free_port())
        self._serving = ExitStack()
        self.begin()

    def file(self, directory: Path) -> Path:
        return sinks_file(directory, self.one, events_max=50)

    def begin(self) -> None:
        self._serving.enter_context(receiver(of=self.one))

    def end(self) -> None:
        self._serving.close()
