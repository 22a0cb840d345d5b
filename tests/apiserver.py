"""A Kubernetes API server that only reviews: a real HTTP server, in this process, that can also hang, fail and flap."""

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.listening import listening

ACCOUNT = "system:serviceaccount:datastorage-e2e:"
ALL = frozenset({"get", "create", "update"})


@dataclass
class ApiServer:
    """What it knows, which reviews it got, and how it behaves."""

    url: str = ""
    users: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By token: what TokenReview answers about the user."""
    verbs: dict[str, frozenset[str]] = field(default_factory=dict)
    """By user name: what the user may do."""
    broken: dict[str, str] = field(default_factory=dict)
    """By kind of review: `hang`, `fail`, `drop`, `flap` (every third one fails), `nonsense`."""
    asked: Counter[str] = field(default_factory=Counter)
    specs: list[dict[str, Any]] = field(default_factory=list)
    authorizations: set[str] = field(default_factory=set)
    first_asked: threading.Event = field(default_factory=threading.Event)
    delay_seconds: float = 0.0
    released: threading.Event = field(default_factory=threading.Event)

    def add(self, token: str, name: str, verbs: frozenset[str], **more: Any) -> None:
        self.users[token] = {"username": name, **more}
        self.verbs[name] = verbs

    def review(self, kind: str, spec: dict[str, Any]) -> dict[str, Any]:
        if kind == "TokenReview":
            user = self.users.get(spec["token"])
            return {"authenticated": True, "user": user} if user else {"user": {}, "error": "invalid bearer token"}
        attributes = spec["resourceAttributes"]
        expected = {"resource": "services", "name": "data-storage-service", "group": "", "namespace": "audit"}
        assert {k: v for k, v in attributes.items() if k != "verb"} == expected
        return {"allowed": attributes["verb"] in self.verbs[spec["user"]]}

    def settings(self, directory: Path) -> dict[str, object]:
        """The settings of a service that asks this server."""
        (directory / "own-token").write_text("own-token\n")
        return {
            "auth": "kubernetes",
            "kubernetes_url": self.url,
            "kubernetes_token_file": directory / "own-token",
            "kubernetes_ca_file": certificate_authority(),
            "kubernetes_namespace": "audit",
        }


def certificate_authority() -> str:
    """Any file of certificates: this server speaks plain HTTP."""
    import certifi

    return certifi.where()


@contextmanager
def api_server() -> Iterator[ApiServer]:
    """The server, until the block ends."""
    server = ApiServer()
    with listening(_Listener(("127.0.0.1", 0), type("Handler", (_Handler,), {"server_state": server}))) as server.url:
        try:
            yield server
        finally:
            server.released.set()


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one packet an answer: the kernel waits 40 ms between two
    server_state: ApiServer

    def do_POST(self) -> None:
        state = self.server_state
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        kind = body["kind"]
        assert self.path == f"/apis/{body['apiVersion']}/{kind.lower()}s"
        state.asked[kind] += 1
        state.first_asked.set()
        state.specs.append(body["spec"])
        state.authorizations.add(self.headers["Authorization"])
        time.sleep(state.delay_seconds)
        behaviour = state.broken.get(kind, "")
        if behaviour == "hang":
            state.released.wait()
        if behaviour in {"hang", "drop"}:
            self.close_connection = True
            return
        failing = behaviour == "fail" or (behaviour == "flap" and state.asked[kind] % 3 == 1)
        answer: Any = (
            {"kind": "Status", "code": 500} if failing else body | {"status": state.review(kind, body["spec"])}
        )
        if behaviour == "nonsense":
            answer = {"status": {"authenticated": "true", "allowed": "true", "user": "root"}}
        text = json.dumps(answer).encode()
        self.send_response(500 if failing else 201)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the base class's name
        pass
