"""An attempt to sign in at an OpenID Connect issuer, which a browser carries there and back."""

from secrets import token_urlsafe
from typing import NamedTuple, Self


class Attempt(NamedTuple):
    """One attempt of one browser: `state` comes back with the code, `nonce` in the ID token, and `verifier` proves who asked."""

    state: str
    nonce: str
    verifier: str

    @classmethod
    def begin(cls) -> Self:
        return cls(token_urlsafe(24), token_urlsafe(24), token_urlsafe(48))
