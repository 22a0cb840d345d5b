"""An OpenID Connect issuer: a real HTTP server with discovery and a key set, and the tokens that it signs."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

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

    def token(self, sub: str, groups: list[str], key: RSAKey | None = None, **claims: Any) -> str:
        """A token that is valid now, but for `claims`; None removes a claim."""
        now = int(time.time())
        signer = key or self.key
        all_claims = {"iss": self.url, "aud": AUDIENCE, "sub": sub, "groups": groups, "iat": now, "exp": now + 300}
        present = {name: value for name, value in (all_claims | claims).items() if value is not None}
        return jwt.encode({"alg": "RS256", "kid": signer.kid}, present, signer)

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

    def do_GET(self) -> None:
        issuer = self.issuer
        answers: dict[str, Any] = {
            "/.well-known/openid-configuration": {"issuer": issuer.url, "jwks_uri": f"{issuer.url}/keys"},
            "/keys": KeySet([issuer.key]).as_dict(private=False),
        }
        issuer.fetched += self.path == "/keys"
        issuer.requests += 1
        text = json.dumps(answers.get(self.path)).encode()
        self.send_response(503 if issuer.down else 200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the base class's name
        pass
