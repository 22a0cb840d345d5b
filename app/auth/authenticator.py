"""Identifies callers by the configured identity providers, asks which verbs they have, and caches the answers for a short time."""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from app.auth.identity import Identity
from app.auth.review_cache import ReviewCache
from app.auth.tokens import TokenFile
from app.errors import Forbidden, ReviewFailed, Unauthorized
from app.settings import Settings

if TYPE_CHECKING:
    from app.auth.code_flow import CodeFlow
    from app.auth.kubernetes import Kubernetes
    from app.auth.oidc import Oidc

Clock = Callable[[], float]


@dataclass(slots=True)
class Caller:
    """An authenticated caller, and the digest of the token that it has shown."""

    identity: Identity
    digest: bytes = field(repr=False)


class Authenticator:
    """Identifies and authorizes callers. `clock` measures the age of cached answers, `now` is Unix time for what expires."""

    def __init__(self, settings: Settings, *, clock: Clock = time.monotonic, now: Clock = time.time) -> None:
        modes = settings.auth_modes
        seconds, entries_max = settings.auth_cache_ms / 1000, settings.auth_cache_entries_max
        self.is_disabled = modes == {"none"}
        self._now = now
        self._identities = ReviewCache[bytes, Identity | Literal[False]](seconds, entries_max, clock)
        self._permissions = ReviewCache[tuple[bytes, str], bool](seconds, 2 * entries_max, clock)
        self._tokens = _token_file(settings, clock) if "tokens" in modes else None
        self._oidc = _oidc(settings, now) if "oidc" in modes else None
        self._kubernetes = _kubernetes(settings) if "kubernetes" in modes else None
        self.code_flow = _code_flow(settings, self._oidc, clock) if self._oidc and settings.ui_oidc_client_id else None
        """How browsers sign in at the issuer; None where they cannot."""

    async def close(self) -> None:
        for provider in (self._oidc, self._kubernetes):
            if provider is not None:
                await provider.close()

    async def identify(self, token: str) -> Caller:
        """The owner of `token`. Unauthorized if it has none; ReviewFailed while the provider cannot be asked."""
        digest = hashlib.sha256(token.encode()).digest()
        identity = (self._tokens and self._tokens.find(digest)) or self._identities.get(digest)
        if identity is None:
            identity = await self._identities.get_or_review(digest, lambda: self._review_token(token))
        if not identity or self._now() >= identity.expires:
            raise Unauthorized
        return Caller(identity, digest)

    async def authorize(self, caller: Caller, verb: str) -> None:
        """Forbidden unless `caller` has `verb`; ReviewFailed while the provider cannot be asked."""
        identity = caller.identity
        if identity.verbs is not None:
            is_allowed = verb in identity.verbs
        else:
            question = caller.digest, verb
            cached = self._permissions.get(question)
            is_allowed = await self._review_verb(question, identity) if cached is None else cached
        if not is_allowed:
            raise Forbidden

    async def _review_token(self, token: str) -> Identity | Literal[False]:
        if self._oidc is not None and self._oidc.names_issuer(token):
            return await self._oidc.identify(token) or False
        if self._kubernetes is not None:
            return await self._kubernetes.identify(token) or False
        return False

    async def _review_verb(self, question: tuple[bytes, str], identity: Identity) -> bool:
        kubernetes = self._kubernetes
        assert kubernetes is not None
        try:
            return await self._permissions.get_or_review(question, lambda: kubernetes.allows(identity, question[1]))
        except ReviewFailed as error:
            raise ReviewFailed("Authorization service unavailable") from error.__cause__


def _token_file(settings: Settings, clock: Clock) -> TokenFile:
    assert settings.tokens_file is not None, "the settings have been validated"
    return TokenFile(settings.tokens_file, clock)


# The libraries of a provider are imported only if it is configured: that costs a third of a second and 20 MB.
def _oidc(settings: Settings, now: Clock) -> "Oidc":
    from app.auth.oidc import Oidc  # noqa: PLC0415 -- see above

    return Oidc(settings, now)


def _code_flow(settings: Settings, oidc: "Oidc", clock: Clock) -> "CodeFlow":
    from app.auth.code_flow import CodeFlow  # noqa: PLC0415 -- see above

    return CodeFlow(settings, oidc, clock)


def _kubernetes(settings: Settings) -> "Kubernetes":
    from app.auth.kubernetes import Kubernetes  # noqa: PLC0415 -- see above

    return Kubernetes(settings)
