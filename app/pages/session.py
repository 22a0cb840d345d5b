"""Sessions of browsers without any state on the server: the cookie is the caller's token, sealed with the pod's key.

A session lasts as long as its token is valid, since every request shows the token to access control as any client does, and at most
SESSION_SECONDS. Forms carry a token that is bound to the session, or without authentication to a cookie of the browser.
"""

import hmac
import json
import os
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from hashlib import sha256
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pydantic import SecretStr
from starlette.requests import Request, cookie_parser
from starlette.types import Scope

from app.errors import Forbidden, Unauthorized

SESSION_SECONDS = 12 * 3600
ATTEMPT_SECONDS = 600
SESSION, VISITOR, ATTEMPT = "datastorage_session", "datastorage_visitor", "datastorage_attempt"
_NONCE_BYTES = 12
_COOKIE_BYTES_MAX = 3_900  # with its name and attributes browsers take 4,096
_POD_KEY = os.urandom(32)
"""Made when the pod's first process imports this module; the others are forked from it."""


class ForgedForm(Forbidden):
    """The form was not sent by a page of this service, or its session has ended: open the page again and repeat it."""


class Sealer:
    """Seals small texts so that only who has the key can read or make them."""

    def __init__(self, key: bytes) -> None:
        self._aead = AESGCM(sha256(b"datastorage session\0" + key).digest())
        self._form_key = sha256(b"datastorage form\0" + key).digest()

    def seal(self, purpose: str, value: dict[str, str], seconds: float) -> str:
        """`value` as text for a cookie named `purpose`, valid for `seconds`."""
        nonce = os.urandom(_NONCE_BYTES)
        content = json.dumps([time.time() + seconds, value]).encode()
        return urlsafe_b64encode(nonce + self._aead.encrypt(nonce, content, purpose.encode())).decode().rstrip("=")

    def unseal(self, purpose: str, text: str) -> dict[str, str] | None:
        """What was sealed for this purpose; None if it is over, or was not sealed with this key."""
        try:
            sealed = urlsafe_b64decode(text + "=" * (-len(text) % 4))
            content = self._aead.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], purpose.encode())
        except (ValueError, InvalidTag):
            return None
        until, value = json.loads(content)
        return value if time.time() < until else None

    def form_token(self, bound_to: str) -> str:
        """What a form carries in the session, or the browser, whose cookie has this text."""
        return hmac.new(self._form_key, bound_to.encode(), sha256).hexdigest()


class Opened(NamedTuple):
    """A session whose cookie was opened: its text, and the bearer token in it."""

    cookie: str
    token: str


def sealer(key: SecretStr | None) -> Sealer:
    """The sealer of this pod, or of all pods that have the same key."""
    return Sealer(_POD_KEY if key is None else key.get_secret_value().encode())


def cookies(scope: Scope) -> dict[str, str]:
    """The cookies of a request, whatever others stand beside them."""
    sent = b"; ".join(value for name, value in scope["headers"] if name == b"cookie").decode("latin-1")
    return cookie_parser(sent)


def token_of(scope: Scope) -> str | None:
    """The bearer token of the request's session, which `Browsers` has opened; None without one."""
    opened: Opened | None = scope["state"].get("session")
    return None if opened is None else opened.token


def seal_session(request: Request, token: str, expires: float) -> str:
    """The header Set-Cookie that begins a session with this token, which is valid until `expires` (Unix time, or infinity)."""
    seconds = min(SESSION_SECONDS, expires - time.time())
    sealed = request.scope["state"]["sealer"].seal(SESSION, {"token": token}, seconds)
    if len(sealed) > _COOKIE_BYTES_MAX:
        raise Unauthorized("The token is too long for a browser's cookie: ask for one with fewer groups.")
    return set_cookie(request.scope, session_cookie(request.scope), sealed, seconds=int(seconds))


def session_cookie(scope: Scope) -> str:
    """The name of the session's cookie."""
    return _of_this_host(scope, SESSION)


def _of_this_host(scope: Scope, name: str) -> str:
    """A cookie's name. With __Host- no other host of the domain can set it, which a browser takes from HTTPS and for the path / alone."""
    return name if scope["state"].get("is_plain_loopback") else f"__Host-{name}"


def seal_attempt(request: Request, attempt: dict[str, str]) -> str:
    """The header Set-Cookie with an attempt to sign in at an issuer. Lax: it has to come back when the issuer sends the browser back."""
    sealed = request.scope["state"]["sealer"].seal(ATTEMPT, attempt, ATTEMPT_SECONDS)
    name = _of_this_host(request.scope, ATTEMPT)
    return set_cookie(request.scope, name, sealed, seconds=ATTEMPT_SECONDS, same_site="Lax")


def opened_attempt(request: Request) -> dict[str, str] | None:
    """The attempt that this browser has begun; None without one."""
    sealer: Sealer = request.scope["state"]["sealer"]
    return sealer.unseal(ATTEMPT, cookies(request.scope).get(_of_this_host(request.scope, ATTEMPT), ""))


def forget_attempt(request: Request) -> str:
    """The header Set-Cookie that ends an attempt."""
    return set_cookie(request.scope, _of_this_host(request.scope, ATTEMPT), "", seconds=0, same_site="Lax")


def form_token(request: Request) -> tuple[str, str | None]:
    """What the forms of a page for this browser carry, and the Set-Cookie that the page needs for it, if any."""
    state = request.scope["state"]
    if (opened := state.get("session")) is not None:
        return state["sealer"].form_token(opened.cookie), None
    if visitor := cookies(request.scope).get(VISITOR):
        return state["sealer"].form_token(visitor), None
    visitor = os.urandom(16).hex()
    return state["sealer"].form_token(visitor), set_cookie(request.scope, VISITOR, visitor, path="/ui")


def is_form_token(request: Request, sent: str) -> bool:
    """Whether a form was made for this browser and its session."""
    state = request.scope["state"]
    opened = state.get("session")
    bound_to = cookies(request.scope).get(VISITOR) if opened is None else opened.cookie
    return bool(bound_to) and hmac.compare_digest(state["sealer"].form_token(bound_to).encode(), sent.encode())


def set_cookie(
    scope: Scope, name: str, value: str, *, path: str = "/", seconds: int | None = None, same_site: str = "Strict"
) -> str:
    """The header Set-Cookie: no script reads it, and only HTTPS carries it unless the service itself speaks plain HTTP on loopback."""
    age = "" if seconds is None else f"; Max-Age={seconds}"
    secure = "" if scope["state"].get("is_plain_loopback") else "; Secure"
    return f"{name}={value}; Path={path}{age}; HttpOnly; SameSite={same_site}{secure}"
