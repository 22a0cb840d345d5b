"""A witness (C2SP tlog-witness) in this process: what it must refuse it refuses, by code of its own."""

import base64
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from app.tlog import merkle
from app.tlog.note import (
    COSIGNATURE,
    Checkpoint,
    Note,
    PublicKey,
    cosigned_message,
    signature_line,
    verified_checkpoint,
)
from tests.listening import listening


class FakeWitness:
    """Remembers the largest checkpoint of one log."""

    def __init__(self, log_key: PublicKey) -> None:
        self._private = Ed25519PrivateKey.generate()
        self._log_key = log_key
        self.key = PublicKey("witness.example/w1", self._private.public_key().public_bytes_raw(), COSIGNATURE)
        self.seen = Checkpoint(log_key.name, 0, merkle.EMPTY_ROOT)
        self.answer: tuple[int, str] | None = None
        """Status and body of every answer, if it is to be no real witness."""
        self.requests = 0
        self.url = ""

    def add_checkpoint(self, body: str) -> tuple[int, str]:
        """Status and body of the answer."""
        self.requests += 1
        if self.answer is not None:
            return self.answer
        head, _, note = body.partition("\n\n")
        first, *proof = head.split("\n")
        old, checkpoint = int(first.removeprefix("old ")), verified_checkpoint(note, [self._log_key])
        if old != self.seen.size:
            return 409, f"{self.seen.size}\n"
        hashes = [base64.b64decode(line) for line in proof]
        if not merkle.verify_consistency(old, checkpoint.size, self.seen.root, checkpoint.root, hashes):
            return 422, "bad proof"
        self.seen = checkpoint
        seconds = int(time.time())
        signed = seconds.to_bytes(8) + self._private.sign(cosigned_message(Note.parse(note).text, seconds))
        return 200, signature_line(self.key.name, self.key.id + signed)


@contextmanager
def serving(witness: FakeWitness) -> Iterator[FakeWitness]:
    """The witness as an HTTP server on loopback; its url is set."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            status, text = witness.add_checkpoint(body) if self.path == "/add-checkpoint" else (404, "")
            self.send_response(status)
            self.send_header("Content-Type", "text/x.tlog.size" if status == 409 else "text/plain")
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    with listening(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as witness.url:
        yield witness
