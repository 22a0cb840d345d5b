"""A timestamp authority (RFC 3161): `openssl ts` behind HTTP on loopback."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.listening import listening

_CONFIG = """
[tsa]
default_tsa = here
[here]
serial = {directory}/serial
crypto_device = builtin
signer_cert = {directory}/tsa.crt
certs = {directory}/ca.crt
signer_key = {directory}/tsa.key
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = sha256
accuracy = secs:1
ess_cert_id_alg = sha256
"""
_EXTENSIONS = "extendedKeyUsage = critical, timeStamping\nkeyUsage = critical, digitalSignature\n"
_NEW_KEY = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="the authority is openssl ts")


class TimestampAuthority:
    """Answers requests in its directory; what it answers can be replaced."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir()
        (directory / "serial").write_text("01\n")
        (directory / "extensions").write_text(_EXTENSIONS)
        (directory / "config").write_text(_CONFIG.format(directory=directory))
        self.issuer = directory / "ca.crt"
        """The certificate that verifies its tokens."""
        self.requests = 0
        self.answer: tuple[int, bytes] | None = None
        """Status and body of every answer, if it is to be no real authority."""
        self.url = ""
        self._run(f"req -x509 {_NEW_KEY} -days 30 -subj /CN=issuer -keyout ca.key -out ca.crt")
        self._run(f"req {_NEW_KEY} -subj /CN=authority -keyout tsa.key -out tsa.csr")
        self._run("x509 -req -in tsa.csr -CA ca.crt -CAkey ca.key -days 30 -extfile extensions -out tsa.crt")

    def reply(self, request: bytes) -> bytes:
        """The answer to a request, both in DER."""
        (self.directory / "query").write_bytes(request)
        self._run("ts -reply -config config -queryfile query -out answer")
        return (self.directory / "answer").read_bytes()

    def verify(self, token: bytes, stamped: bytes) -> bool:
        """Whether openssl says that the token is of these bytes."""
        (self.directory / "token").write_bytes(token)
        (self.directory / "stamped").write_bytes(stamped)
        command = ["openssl", *["ts", "-verify", "-token_in", "-in", "token", "-data", "stamped", "-CAfile", "ca.crt"]]
        return subprocess.run(command, cwd=self.directory, capture_output=True, check=False).returncode == 0

    def _run(self, arguments: str) -> None:
        subprocess.run(["openssl", *arguments.split()], cwd=self.directory, capture_output=True, check=True)


@contextmanager
def serving(authority: TimestampAuthority) -> Iterator[TimestampAuthority]:
    """The authority as an HTTP server on loopback; its url is set."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            authority.requests += 1
            request = self.rfile.read(int(self.headers["Content-Length"]))
            assert self.headers["Content-Type"] == "application/timestamp-query"
            status, body = authority.answer or (200, authority.reply(request))
            self.send_response(status)
            self.send_header("Content-Type", "application/timestamp-reply")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with listening(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as authority.url:
        yield authority
