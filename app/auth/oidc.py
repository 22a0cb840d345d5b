"""JSON Web Tokens of one OpenID Connect issuer, verified by the keys that it publishes (OpenID Connect Discovery, RFC 7517)."""

import asyncio
import base64
import binascii
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import httpx
import orjson
from joserfc import jwt
from joserfc.errors import InvalidKeyIdError, JoseError
from joserfc.jwk import KeySet

from app import metrics
from app.auth.identity import SERVICE_ACCOUNT, Identity, identity_with_roles, is_usable_name
from app.errors import ReviewFailed
from app.settings import Settings

# Signatures by a private key only: the key set is public.
ALGORITHMS = [
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512", "EdDSA", "Ed25519"),
]
_REFRESH_SECONDS = 300
_USABLE_SECONDS = 3_600
"""How long fetched keys are used while the issuer does not answer."""
_FETCH_AGAIN_SECONDS = 10
"""The shortest time between two fetches for tokens with unknown keys: anybody can make such tokens up."""
_FIRST_FETCH_AGAIN_SECONDS = 1
"""The same while there are no keys at all. Requests that waited for a failed fetch do not begin the next one: they would
wait one fetch after the other."""
_LEEWAY_SECONDS = 5

log = logging.getLogger(__name__)


class Oidc:
    """Verifies the tokens of one issuer. Its keys are fetched when they are needed."""

    def __init__(self, settings: Settings, clock: Callable[[], float]) -> None:
        assert settings.oidc_issuer is not None
        assert settings.oidc_audience is not None
        self._audience = settings.oidc_audience
        self._settings = settings
        self._issuer = settings.oidc_issuer
        self._client = httpx.AsyncClient(timeout=settings.auth_timeout_ms / 1000)
        self._clock = clock
        """Unix time."""
        self._keys: KeySet | None = None
        self._fetched_at = self._tried_at = float("-inf")
        self._fetch_lock = asyncio.Lock()

    async def close(self) -> None:
        await self._client.aclose()

    def names_issuer(self, token: str) -> bool:
        """Whether the token claims to be from this issuer. Nothing is verified yet."""
        try:
            _, payload, _ = token.split(".")
            claims = orjson.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        except (ValueError, binascii.Error):
            return False
        return isinstance(claims, dict) and claims.get("iss") == self._issuer

    async def identify(self, token: str) -> Identity | None:
        """The owner of `token`, or None if it is not valid. ReviewFailed while the issuer's keys cannot be fetched."""
        claims = await self.claims(token, self._audience)
        return None if claims is None else self._identity(claims)

    async def claims(self, token: str, audience: str) -> dict[str, Any] | None:
        """The claims of a token of this issuer that is valid now and meant for `audience`, or None. ReviewFailed as in identify()."""
        claims = None
        keys = await self._current_keys()
        try:
            claims = self._claims(token, keys, audience)
        except InvalidKeyIdError:  # the key may be new
            keys = await self._current_keys(outdated=keys)
            with suppress(InvalidKeyIdError):
                claims = self._claims(token, keys, audience)
        return claims

    def _claims(self, token: str, keys: KeySet, audience: str) -> dict[str, Any] | None:
        """The claims of a token that is valid now, or None. InvalidKeyIdError when its key is not among `keys`."""
        try:
            decoded = jwt.decode(token, keys, algorithms=ALGORITHMS)
            self._registry(audience).validate(decoded.claims)
        except InvalidKeyIdError:
            raise
        except (JoseError, ValueError, TypeError) as error:
            log.info("a token of the issuer is not valid", extra={"reason": getattr(error, "error", "malformed")})
            return None
        return decoded.claims

    def _registry(self, audience: str) -> jwt.JWTClaimsRegistry:
        return jwt.JWTClaimsRegistry(
            now=lambda: int(self._clock()),
            leeway=_LEEWAY_SECONDS,
            iss={"essential": True, "value": self._issuer},
            aud={"essential": True, "value": audience},
            exp={"essential": True},
        )

    def _identity(self, claims: dict[str, Any]) -> Identity | None:
        settings = self._settings
        name = claims.get(settings.oidc_name_claim)
        if not is_usable_name(name) or (name.startswith("system:") and settings.oidc_name_claim != "sub"):
            log.warning("a token of the issuer has no name that can be used", extra={"claim": settings.oidc_name_claim})
            return None
        claimed: Any = claims
        for part in settings.oidc_roles_claim.split("."):
            claimed = claimed.get(part) if isinstance(claimed, dict) else None
        values = claimed if isinstance(claimed, list) else [claimed]
        roles = frozenset(settings.oidc_roles[v] for v in values if isinstance(v, str) and v in settings.oidc_roles)
        return identity_with_roles(name, roles, person=not name.startswith(SERVICE_ACCOUNT), expires=claims["exp"])

    async def _current_keys(self, outdated: KeySet | None = None) -> KeySet:
        """The issuer's keys; fetched again if they are old or `outdated`, but not too often. ReviewFailed without any."""
        async with self._fetch_lock:
            now = self._clock()
            is_due = self._keys is outdated or now - self._fetched_at >= _REFRESH_SECONDS
            pause = _FIRST_FETCH_AGAIN_SECONDS if self._keys is None else _FETCH_AGAIN_SECONDS
            if is_due and now - self._tried_at >= pause:
                await self._fetch(now)
                self._tried_at = self._clock()
            if self._keys is None or now - self._fetched_at >= _USABLE_SECONDS:
                raise ReviewFailed
            return self._keys

    async def _fetch(self, now: float) -> None:
        try:
            async with asyncio.timeout(self._settings.auth_timeout_ms / 1000):
                url = self._settings.oidc_jwks_url or await self.discover("jwks_uri")
                keys = KeySet.import_key_set(await self._get(url))
        except (
            httpx.HTTPError,
            httpx.InvalidURL,
            JoseError,
            ValueError,
            LookupError,
            TypeError,
            TimeoutError,
        ) as error:
            metrics.AUTH_FAILURES.labels("oidc").inc()
            log.warning("the issuer's keys cannot be fetched", extra={"error": repr(error)})
            return
        self._keys, self._fetched_at = keys, now

    async def discover(self, member: str) -> str:
        """The URL of this name in the issuer's discovery document. ValueError for one that is not the issuer's; what httpx raises."""
        document = await self._get(self._issuer.rstrip("/") + "/.well-known/openid-configuration")
        if document["issuer"] != self._issuer:
            raise ValueError(f"the discovery document of {self._issuer} names another issuer")
        url = str(document[member])
        if urlsplit(url).scheme != urlsplit(self._issuer).scheme:
            raise ValueError(f"{url} has another scheme than {self._issuer}")
        return url

    async def redeem(self, url: str, fields: dict[str, str], credentials: tuple[str, str] | None) -> Any:
        """What the issuer answers to a form that is posted to it, as JSON; what httpx raises, also for a refusal."""
        response = await self._client.post(url, data=fields, auth=credentials or httpx.USE_CLIENT_DEFAULT)
        response.raise_for_status()
        return orjson.loads(response.content)

    async def _get(self, url: str) -> Any:
        response = await self._client.get(url)
        response.raise_for_status()
        return orjson.loads(response.content)
