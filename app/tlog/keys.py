"""The key that signs checkpoints: from a file or a secret, made once for the embedded Postgres, else there is none."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from app.errors import Fatal
from app.settings import Settings
from app.tlog.note import MalformedNote, PublicKey, is_key_name

_MAKE = "make one with `openssl genpkey -algorithm ed25519 -out checkpoint.pem`"


@dataclass(frozen=True)
class SigningKey:
    """The log's own key, and the public ones that it had before."""

    private: Ed25519PrivateKey
    public: PublicKey
    earlier: tuple[PublicKey, ...] = ()

    @property
    def all_public(self) -> tuple[PublicKey, ...]:
        """Every key whose signature on a checkpoint of this log is good."""
        return (self.public, *self.earlier)


def signing_key(settings: Settings, log_name: str) -> SigningKey | None:
    """The key of the log named `log_name`; None when none is configured.

    Fatal when it cannot be read, is no Ed25519 key, or the log's name cannot be a key's.
    """
    pem = _pem(settings)
    if pem is None:
        return None
    if not is_key_name(log_name):
        raise Fatal(
            f"The log's name {log_name!r} has a space or a plus sign, so no checkpoint of it can be signed: unset "
            "DATASTORAGE_CHECKPOINT_KEY and DATASTORAGE_CHECKPOINT_KEY_FILE."
        )
    private = _loaded(pem)
    public = PublicKey(log_name, private.public_key().public_bytes_raw())
    return SigningKey(private, public, tuple(_earlier(settings, log_name)))


def make_once(path: Path) -> None:
    """A key at `path` that only its owner can read, unless one is there. It appears whole or not at all."""
    if path.exists():
        return
    pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    half = path.with_suffix(f".{os.getpid()}")
    descriptor = os.open(half, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(pem)
        file.flush()
        os.fsync(descriptor)
    half.rename(path)


def _pem(settings: Settings) -> bytes | None:
    if settings.checkpoint_key is not None:
        return settings.checkpoint_key.get_secret_value().encode()
    if settings.checkpoint_key_file is None:
        return None
    try:
        return settings.checkpoint_key_file.read_bytes()
    except OSError as error:
        raise Fatal(f"Cannot read DATASTORAGE_CHECKPOINT_KEY_FILE: {error}; {_MAKE}.") from None


def _loaded(pem: bytes) -> Ed25519PrivateKey:
    try:
        key = load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise Fatal(f"The key for checkpoints is no PEM of a private key without password; {_MAKE}.") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise Fatal(f"The key for checkpoints is no Ed25519 key; {_MAKE}.")
    return key


def _earlier(settings: Settings, log_name: str) -> Iterator[PublicKey]:
    for text in settings.checkpoint_earlier_keys:
        try:
            key = PublicKey.parse(text)
        except MalformedNote as error:
            raise Fatal(f"DATASTORAGE_CHECKPOINT_EARLIER_KEYS holds {text!r}, which is no key: {error}.") from None
        if key.name != log_name:
            raise Fatal(f"DATASTORAGE_CHECKPOINT_EARLIER_KEYS holds a key of {key.name!r}, not of {log_name!r}.")
        yield key
