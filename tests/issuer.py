"""An OpenID Connect issuer: a real HTTP server with discovery and a key set, and the tokens that it signs."""

import json
import threading
import time
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from secrets import token_urlsafe
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import KeySet, RSAKey

from tests.listening import listening

AUDIENCE = "datastorage"


def make_key(kid: str) -> RSAKey:
    return RSAKey.generate_key(2048, {"kid": kid, "alg": "RS256", "use": "sig"})


@dataclass
class Issuer:
    """What it signs with and publishes, and how often it was asked."""

    url: str = ""
    key: RSAKey = field(default_factory=lambda: make_key("first"))
    down: bool = False
    fetched: int = 0
    """How often its keys were fetched."""
    requests: int = 0
    """For its keys and for its discovery document."""
    answers: threading.Event = field(default_factory=threading.Event)
    """Cleared, who posts a code waits."""
    codes: int = 0
    """At it now."""
    codes_most: int = 0

    def __post_init__(self) -> None:
        self.answers.set()
        self._lock = threading.Lock()

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Around a code."""
        with self._lock:
            self.codes += 1
            self.codes_most = max(self.codes_most, self.codes)
        yield
        with self._lock:
            self.codes -= 1

    def token(self, sub: str, groups: list[str], key: RSAKey | None = None, **claims: Any) -> str:
        """A token that is valid now, but for `claims`; None removes a claim."""
        now = int(time.time())
        signer = key or self.key
        all_claims = {"iss": self.url, "aud": AUDIENCE, "sub": sub, "groups": groups, "iat": now, "exp": now + 300}
        present = {name: value for name, value in (all_claims | claims).items() if value is not None}
        return jwt.encode({"alg": "RS256", "kid": signer.kid}, present, signer)

    answer: dict[str, Any] = field(default_factory=dict)
    """Claims of the tokens of the next browser that signs in, beside those of its question."""
    signed_in: dict[str, dict[str, str]] = field(default_factory=dict)
    """By code, what the browser asked that was sent back with it."""

    def authorize(self, question: dict[str, str]) -> str:
        """Where a browser that asks to sign in is sent back to: nobody has to press a button here."""
        code = token_urlsafe(8)
        self.signed_in[code] = question
        return f"{question['redirect_uri']}?{urlencode({'code': code, 'state': question['state']})}"

    def redeem(self, form: dict[str, str]) -> dict[str, str] | None:
        """The tokens for a code, once, for who knows the verifier of its challenge; else None."""
        asked = self.signed_in.pop(form["code"], None)
        challenge = urlsafe_b64encode(sha256(form["code_verifier"].encode()).digest()).decode().rstrip("=")
        if asked is None or asked["code_challenge"] != challenge or asked["redirect_uri"] != form["redirect_uri"]:
            return None
        id_claims = {"aud": asked["client_id"], "nonce": asked["nonce"]} | self.answer
        return {
            "token_type": "Bearer",
            "access_token": self.token("ada@example.org", ["reader"]),
            "id_token": self.token("ada@example.org", [], **id_claims),
        }

    def settings(self) -> dict[str, object]:
        roles = {name: name for name in ("reader", "writer", "auditor", "admin")}
        return {
            "auth": "oidc",
            "oidc_issuer": self.url,
            "oidc_audience": AUDIENCE,
            "oidc_roles": json.dumps(roles),
        }


@contextmanager
def issuer() -> Iterator[Issuer]:
    """The issuer, until the block ends."""
    running = Issuer()
    with listening(
        ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"issuer": running}))
    ) as running.url:
        yield running


class _Handler(BaseHTTPRequestHandler):
    issuer: Issuer

    def do_POST(self) -> None:
        form = dict(parse_qsl(self.rfile.read(int(self.headers["Content-Length"])).decode()))
        with self.issuer.counted():
            self.issuer.answers.wait()
            tokens = self.issuer.redeem(form)
        self._answer(503 if self.issuer.down else 400 if tokens is None else 200, json.dumps(tokens).encode())

    def do_GET(self) -> None:
        issuer = self.issuer
        if self.path.startswith("/authorize?"):
            self.send_response(302)
            self.send_header("Location", issuer.authorize(dict(parse_qsl(urlsplit(self.path).query))))
            self.end_headers()
            return
        names = {"jwks_uri": "keys", "authorization_endpoint": "authorize", "token_endpoint": "redeem"}
        urls = {name: f"{issuer.url}/{path}" for name, path in names.items()}
        answers: dict[str, Any] = {
            "/.well-known/openid-configuration": {"issuer": issuer.url} | urls,
            "/keys": KeySet([issuer.key]).as_dict(private=False),
        }
        issuer.fetched += self.path == "/keys"
        issuer.requests += 1
        self._answer(503 if issuer.down else 200, json.dumps(answers.get(self.path)).encode())

    def _answer(self, status: int, text: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the base class's name
        pass
