"""What keeps browsers from doing harm with answers: headers on each of them, and which pages may read them (CORS)."""

from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import Response

from app.settings import Settings, split_list

Headers = list[tuple[bytes, bytes]]
_SECURITY: Headers = [
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
]
_HSTS = (b"strict-transport-security", b"max-age=31536000")
_PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, POST, PATCH, DELETE, OPTIONS",
    "Access-Control-Allow-Headers": "Accept, Authorization, Content-Type, Idempotency-Key, X-Request-ID",
    "Access-Control-Max-Age": "300",
}


class Browser:
    """The headers that an installation gives its answers."""

    def __init__(self, settings: Settings) -> None:
        origins = {origin.encode() for origin in split_list(settings.cors_origins)}
        self._any, self._origins = b"*" in origins, origins
        self._always = [(b"vary", b"Origin"), *_SECURITY]
        if settings.tls_dir is not None:
            self._always.append(_HSTS)

    def headers(self, sent: Mapping[bytes, bytes], answered: Headers) -> Headers:
        """What is added to an answer that has the headers `answered` of its own, which win."""
        names = {name for name, _ in answered}
        added = [header for header in self._always if header[0] not in names]
        if self._origins and self._allows(origin := sent.get(b"origin", b"")):
            added += [
                (b"access-control-allow-origin", origin),
                (b"access-control-expose-headers", b"Link, X-Request-ID, RateLimit, RateLimit-Policy, Retry-After"),
            ]
        return added

    def preflight(self, request: Request, sent: Mapping[bytes, bytes]) -> Response | None:
        """The answer to a preflight, without a token; an origin that is not allowed finds no header that says so."""
        if request.method != "OPTIONS" or not (sent.get(b"origin") and sent.get(b"access-control-request-method")):
            return None
        return Response(headers=_PREFLIGHT if self._allows(sent[b"origin"]) else None)

    def _allows(self, origin: bytes) -> bool:
        return bool(origin) and (self._any or origin in self._origins)
