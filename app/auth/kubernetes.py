"""Callers that the Kubernetes API server knows: TokenReview identifies them, SubjectAccessReview authorizes them."""

import asyncio
import logging
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from app import metrics
from app.auth.identity import SERVICE_ACCOUNT, Identity, is_usable_name
from app.errors import Fatal, ReviewFailed
from app.settings import Settings, comma_separated

_TRIES = 2
"""A review changes nothing, so it is sent again when its connection broke."""
_CONNECTIONS = 32

log = logging.getLogger(__name__)


class Kubernetes:
    """Asks the API server, authenticated by this pod's own service account."""

    def __init__(self, settings: Settings) -> None:
        self._url = settings.kubernetes_url.rstrip("/")
        self._token_file = settings.kubernetes_token_file
        self._timeout_seconds = settings.auth_timeout_ms / 1000
        self._audiences = comma_separated(settings.kubernetes_audiences)
        self._namespace = settings.kubernetes_namespace or _own_namespace(settings.kubernetes_token_file)
        self._service = settings.kubernetes_service
        self._client = httpx.AsyncClient(
            verify=_tls_context(settings),
            timeout=self._timeout_seconds,
            limits=httpx.Limits(max_connections=_CONNECTIONS, max_keepalive_connections=_CONNECTIONS),
            trust_env=False,  # callers' tokens go to the API server only, never to a proxy
        )

    async def close(self) -> None:
        await self._client.aclose()

    async def identify(self, token: str) -> Identity | None:
        """The owner of `token`, or None if the API server does not know it. Raises ReviewFailed."""
        spec: dict[str, Any] = {"token": token}
        if self._audiences:
            spec["audiences"] = self._audiences
        status = await self._review("authentication.k8s.io", "TokenReview", spec)
        user = status.get("user")
        if status.get("authenticated") is not True:
            return None
        # A server that does not support audiences answers without them, although the token may be for another service.
        if self._audiences and not set(self._audiences) & set(status.get("audiences") or ()):
            return None
        if not isinstance(user, dict) or not is_usable_name(name := user.get("username")):
            log.warning("the API server knows a token, but its user name cannot be used")
            return None
        subject = {k: v for k, v in user.items() if k in {"uid", "groups", "extra"} and v}
        return Identity(name, None, person=not name.startswith(SERVICE_ACCOUNT), subject=subject)

    async def allows(self, identity: Identity, verb: str) -> bool:
        """Whether the API server allows `identity` the `verb` on this service. Raises ReviewFailed."""
        attributes = {"namespace": self._namespace, "verb": verb, "group": ""}
        attributes |= {"resource": "services", "name": self._service}
        spec = {"resourceAttributes": attributes, "user": identity.name, **identity.subject}
        status = await self._review("authorization.k8s.io", "SubjectAccessReview", spec)
        return status.get("allowed") is True and status.get("denied") is not True

    async def _review(self, group: str, kind: str, spec: Mapping[str, Any]) -> dict[str, Any]:
        """The status of a review. ReviewFailed if there is none, or none of the expected form."""
        try:
            async with asyncio.timeout(self._timeout_seconds):
                answer = await self._post(f"{self._url}/apis/{group}/v1/{kind.lower()}s", group, kind, spec)
            answer.raise_for_status()
            status: dict[str, Any] = dict(answer.json()["status"])
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError, LookupError, TypeError) as error:
            metrics.AUTH_FAILURES.labels(kind).inc()
            raise ReviewFailed from error
        return status

    async def _post(self, url: str, group: str, kind: str, spec: Mapping[str, Any]) -> httpx.Response:
        # Read each time: the kubelet changes it about once an hour.
        own_token = self._token_file.read_text("utf-8").strip()
        body = {"apiVersion": f"{group}/v1", "kind": kind, "spec": spec}
        for tries_left in reversed(range(_TRIES)):
            try:
                return await self._client.post(url, json=body, headers={"Authorization": f"Bearer {own_token}"})
            except httpx.TransportError:
                if not tries_left:
                    raise
        raise AssertionError


def _tls_context(settings: Settings) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=settings.kubernetes_ca_file)
    except OSError as error:
        raise Fatal(
            f"Cannot read the certificate authority of the API server, {settings.kubernetes_ca_file}: {error}. Outside of a "
            "pod, name it in DATASTORAGE_KUBERNETES_CA_FILE."
        ) from None


def _own_namespace(token_file: Path) -> str:
    try:
        return token_file.with_name("namespace").read_text("utf-8").strip() or "default"
    except OSError:
        return "default"
