"""Protection of browsers: security headers on every response, and CORS (which pages may read responses)."""

from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import Response

from app.settings import Settings, comma_separated

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
    "Access-Control-Allow-Headers": "Accept, Authorization, Content-Type, DataStorage-Bookmark, Idempotency-Key, X-Request-ID",
    "Access-Control-Max-Age": "300",
}


class BrowserHeaders:
    """The headers for browsers that this installation adds to its responses."""

    def __init__(self, settings: Settings) -> None:
        origins = {origin.encode() for origin in comma_separated(settings.cors_origins)}
        self._allows_any, self._origins = b"*" in origins, origins
        self._on_every_response = [(b"vary", b"Origin"), *_SECURITY]
        if settings.tls_dir is not None:
            self._on_every_response.append(_HSTS)

    def headers(self, request_headers: Mapping[bytes, bytes], response_headers: Headers) -> Headers:
        """The headers to add to a response with `response_headers`, which take precedence."""
        names = {name for name, _ in response_headers}
        headers = [header for header in self._on_every_response if header[0] not in names]
        if self._origins and self._allows(origin := request_headers.get(b"origin", b"")):
            headers += [
                (b"access-control-allow-origin", origin),
                (
                    b"access-control-expose-headers",
                    b"DataStorage-Bookmark, Link, X-Request-ID, RateLimit, RateLimit-Policy, Retry-After",
                ),
            ]
        return headers

    def preflight(self, request: Request, request_headers: Mapping[bytes, bytes]) -> Response | None:
        """The response to a CORS preflight, which carries no token; without CORS headers if its origin is not allowed.

        None if the request is not a preflight.
        """
        if request.method != "OPTIONS" or not (
            request_headers.get(b"origin") and request_headers.get(b"access-control-request-method")
        ):
            return None
        return Response(headers=_PREFLIGHT if self._allows(request_headers[b"origin"]) else None)

    def _allows(self, origin: bytes) -> bool:
        return bool(origin) and (self._allows_any or origin in self._origins)
