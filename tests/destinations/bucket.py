"""A small S3-compatible store that says what it is told to say, and a real one (moto)."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

import boto3
import httpx

from tests.services import free_port
from tests.waiting import until

BUCKET = "audit"


@dataclass
class Reply:
    """What is answered to one request. Without a status the connection is closed."""

    status: int | None
    body: bytes = b""
    stores: bool = False
    hangs: bool = False


@dataclass
class Bucket:
    """What is stored, by key."""

    replies: list[Reply] = field(default_factory=list)
    """To the next requests; all others are answered as S3 does."""
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    authorizations: list[str] = field(default_factory=list)
    stopped: Event = field(default_factory=Event)
    endpoint: str = ""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store: Bucket

    def do_PUT(self) -> None:
        self._answer(self.rfile.read(int(self.headers["content-length"])))

    def do_GET(self) -> None:
        self._answer(b"")

    def _answer(self, body: bytes) -> None:
        store, key = self.store, self.path.removeprefix(f"/{BUCKET}/")
        store.requests.append((self.command, key))
        store.authorizations.append(self.headers["authorization"])
        reply = store.replies.pop(0) if store.replies else None
        if reply is None or reply.stores:
            status, content = self._as_s3(key, body)
        if reply is not None:
            status, content = reply.status or 0, reply.body
            if reply.hangs:
                store.stopped.wait(60)
            if reply.status is None or reply.hangs:
                self.close_connection = True
                return
        self.send_response(status)
        headers = {"content-length": str(len(content)), "etag": '"1"', "last-modified": "Sat, 31 Jan 2026 12:00:00 GMT"}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def _as_s3(self, key: str, body: bytes) -> tuple[int, bytes]:
        objects = self.store.objects
        if self.command == "GET":
            return (200, objects[key]) if key in objects else (404, b"")
        if key in objects and self.headers["if-none-match"] == "*":
            return 412, b"<Error><Code>PreconditionFailed</Code></Error>"
        objects[key] = body
        return 200, b""

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def bucket(*replies: Reply) -> Iterator[Bucket]:
    """One that gives these answers first."""
    store = Bucket(list(replies))
    handler = type("Handler", (_Handler,), {"store": store})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        store.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        thread = Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield store
        finally:
            store.stopped.set()
            server.shutdown()
            thread.join()


@contextmanager
def moto(directory: Path) -> Iterator[str]:
    """The endpoint of a server of moto, which has the bucket."""
    port = free_port()
    program = Path(sys.executable).parent / "moto_server"
    with (directory / "moto").open("wb") as output:
        process = subprocess.Popen([program, "-H", "127.0.0.1", "-p", str(port)], stdout=output, stderr=output)
    try:
        endpoint = f"http://127.0.0.1:{port}"

        def created() -> bool | None:
            assert process.poll() is None, (directory / "moto").read_text()
            try:
                return httpx.put(f"{endpoint}/{BUCKET}").is_success or None
            except httpx.HTTPError:
                return None

        until(created)
        yield endpoint
    finally:
        process.terminate()
        process.wait(20)


def stored(endpoint: str) -> dict[str, bytes]:
    """What a real store has, by key, as Amazon's own library reads it."""
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id="access-key",
        aws_secret_access_key="secret-key",
    )
    keys = [one["Key"] for one in client.list_objects_v2(Bucket=BUCKET)["Contents"]]
    return {key: client.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in keys}
