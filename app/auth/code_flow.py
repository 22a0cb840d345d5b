"""How a browser signs in at the OpenID Connect issuer: the authorization code flow with PKCE (OpenID Connect Core 3.1, RFC 7636).

What has to come back is in an `Attempt`, which the browser carries sealed; this service remembers nothing.
"""

import asyncio
import logging
from base64 import urlsafe_b64encode
from collections.abc import Callable
from hashlib import sha256
from urllib.parse import quote_plus, urlencode

import httpx

from app import metrics
from app.auth.attempt import Attempt
from app.auth.oidc import Oidc
from app.errors import ReviewFailed, Unauthorized
from app.settings import Settings

CALLBACK = "/ui/login/callback"
_KNOWN_SECONDS = 60.0
_AWAY_SECONDS = 1.0
"""How long nobody has the issuer asked for its discovery document again after that has failed."""
_AT_ONCE = 4
"""Codes that are at the issuer at a time: whoever has begun to sign in can send made-up ones as often as they like."""
_BROKEN = (httpx.HTTPError, httpx.InvalidURL, ValueError, LookupError, TypeError, TimeoutError)

log = logging.getLogger(__name__)


class CodeFlow:
    """Signs browsers in as the client of the settings. `clock` measures the age of what the issuer has said, in seconds."""

    def __init__(self, settings: Settings, oidc: Oidc, clock: Callable[[], float]) -> None:
        assert settings.ui_oidc_client_id is not None
        self._settings = settings
        self._oidc = oidc
        self._clock = clock
        self._client_id = settings.ui_oidc_client_id
        self._redirect_uri = f"{settings.ui_url}{CALLBACK}"
        self._endpoints: dict[str, tuple[str, float]] = {}
        """URLs of the issuer, each with the time until which it is not asked for again."""
        self._discovering = asyncio.Lock()
        self._away_until = float("-inf")
        self._turns = asyncio.Semaphore(_AT_ONCE)

    async def authorization_url(self, attempt: Attempt) -> str:
        """Where the browser goes. ReviewFailed while the issuer does not answer."""
        challenge = urlsafe_b64encode(sha256(attempt.verifier.encode()).digest()).decode().rstrip("=")
        question = {
            "response_type": "code",
            "client_id": self._client_id,
            "redirect_uri": self._redirect_uri,
            "scope": self._settings.ui_oidc_scopes,
            "state": attempt.state,
            "nonce": attempt.nonce,
            "code_challenge": challenge,
            "code_challenge_method": "S256",
        }
        url = await self._endpoint("authorization_endpoint")
        return f"{url}{'&' if '?' in url else '?'}{urlencode(question)}"

    async def redeem(self, attempt: Attempt, code: str) -> str:
        """The token that the issuer gives for `code`: one that access control takes.

        Unauthorized if the issuer refuses the code, or its tokens are not for this attempt or not for this service; ReviewFailed while it
        does not answer.
        """
        fields = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self._redirect_uri,
            "code_verifier": attempt.verifier,
            "client_id": self._client_id,
        }
        secret = self._settings.ui_oidc_client_secret
        # RFC 6749, 2.3.1: both are encoded as in a form before they become a password.
        password = None if secret is None else quote_plus(secret.get_secret_value())
        credentials = None if password is None else (quote_plus(self._client_id), password)
        url = await self._endpoint("token_endpoint")
        try:
            async with asyncio.timeout(self._settings.auth_timeout_ms / 1000), self._turns:
                answer = await self._oidc.redeem(url, fields, credentials)
                id_token, access_token = str(answer["id_token"]), str(answer.get("access_token", ""))
        except httpx.HTTPStatusError as error:
            if error.response.is_server_error:
                raise _failed(error) from None
            log.warning("the issuer refused a code", extra={"status": error.response.status_code})
            raise Unauthorized("The issuer refused to sign you in: try it again.") from None
        except _BROKEN as error:
            raise _failed(error) from None
        claims = await self._oidc.claims(id_token, self._client_id)
        if claims is None or claims.get("nonce") != attempt.nonce:
            raise Unauthorized("The issuer's answer does not belong to this attempt to sign in: try it again.")
        for token in (access_token, id_token):
            if self._oidc.names_issuer(token) and await self._oidc.identify(token) is not None:
                return token
        raise Unauthorized(
            "The issuer's tokens are not for this service: their aud has to be DATASTORAGE_OIDC_AUDIENCE."
        )

    async def _endpoint(self, member: str) -> str:
        """A URL of the issuer's discovery document, which is not read for everybody who begins: nobody has said yet who they are.

        ReviewFailed when it cannot be read.
        """
        async with self._discovering:
            url, until = self._endpoints.get(member, ("", float("-inf")))
            if self._clock() < until:
                return url
            if self._clock() < self._away_until:
                raise ReviewFailed
            try:
                async with asyncio.timeout(self._settings.auth_timeout_ms / 1000):
                    url = await self._oidc.discover(member)
            except _BROKEN as error:
                self._away_until = self._clock() + _AWAY_SECONDS
                raise _failed(error) from None
            self._endpoints[member] = url, self._clock() + _KNOWN_SECONDS
            return url


def _failed(error: Exception) -> ReviewFailed:
    metrics.AUTH_FAILURES.labels("oidc").inc()
    log.warning("the issuer cannot be asked to sign a browser in", extra={"error": repr(error)})
    return ReviewFailed()
