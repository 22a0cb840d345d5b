"""Keys of logs: the one that signs checkpoints, from a setting or made for the embedded Postgres; public ones from text or file."""

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

_HOW_TO_CREATE = "make one with `openssl genpkey -algorithm ed25519 -out checkpoint.pem`"


@dataclass(frozen=True)
class SigningKey:
    """The log's own key, and the public keys that it had before."""

    private: Ed25519PrivateKey
    public: PublicKey
    earlier: tuple[PublicKey, ...] = ()

    @property
    def all_public(self) -> tuple[PublicKey, ...]:
        """Every key that may have signed a checkpoint of this log."""
        return (self.public, *self.earlier)


def signing_key(settings: Settings, log_name: str) -> SigningKey | None:
    """The key of the log named `log_name`; None when none is configured.

    Fatal when it cannot be read, is not an Ed25519 key, or the log's name cannot be the name of a key.
    """
    private = private_key(settings)
    if private is None:
        return None
    if not is_key_name(log_name):
        raise Fatal(
            f"The log's name {log_name!r} has a space or a plus sign, so no checkpoint of it can be signed: unset "
            "DATASTORAGE_CHECKPOINT_KEY and DATASTORAGE_CHECKPOINT_KEY_FILE."
        )
    public = PublicKey(log_name, private.public_key().public_bytes_raw())
    return SigningKey(private, public, tuple(_earlier_keys(settings, log_name)))


def private_key(settings: Settings) -> Ed25519PrivateKey | None:
    """The key that signs checkpoints; None when none is configured. Fatal when it cannot be read or is not an Ed25519 key."""
    pem = _read_pem(settings)
    return None if pem is None else _private_key(pem)


def create_key_file(path: Path) -> None:
    """Write a new key to `path`, readable by its owner only, unless the file exists. It appears whole or not at all."""
    if path.exists():
        return
    pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    temporary = path.with_suffix(f".{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(pem)
        file.flush()
        os.fsync(descriptor)
    temporary.rename(path)


def read_public_keys(text_or_path: str) -> list[PublicKey]:
    """The public keys (vkeys with white space between) in a text, or in the file that it names: one at least.

    Fatal, naming what is wrong, when the file cannot be read or one is not a key.
    """
    text = read_key_text(text_or_path)
    try:
        keys = [PublicKey.parse(vkey) for vkey in text.split()]
    except MalformedNote as error:
        raise Fatal(f"Not a public key as /tlog/key shows it, nor a file of such keys: {error}.") from None
    if not keys:
        raise Fatal(f"There is no public key in {text_or_path!r}.")
    return keys


def read_key_text(text_or_path: str) -> str:
    """The text of the file of this name if there is one, else the text itself. Fatal when the file cannot be read."""
    try:
        is_file = Path(text_or_path).is_file()
    except OSError:  # too long to be the name of a file
        is_file = False
    if not is_file:
        return text_or_path
    try:
        return Path(text_or_path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Fatal(f"Cannot read the key in {text_or_path}: {error}.") from None


def _read_pem(settings: Settings) -> bytes | None:
    if settings.checkpoint_key is not None:
        return settings.checkpoint_key.get_secret_value().encode()
    if settings.checkpoint_key_file is None:
        return None
    try:
        return settings.checkpoint_key_file.read_bytes()
    except OSError as error:
        raise Fatal(f"Cannot read DATASTORAGE_CHECKPOINT_KEY_FILE: {error}; {_HOW_TO_CREATE}.") from None


def _private_key(pem: bytes) -> Ed25519PrivateKey:
    try:
        key = load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise Fatal(
            f"The key for checkpoints is not the PEM of a private key without a password; {_HOW_TO_CREATE}."
        ) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise Fatal(f"The key for checkpoints is not an Ed25519 key; {_HOW_TO_CREATE}.")
    return key


def earlier_keys(settings: Settings) -> tuple[PublicKey, ...]:
    """The public keys that signed before. Fatal when one is not a key."""
    return tuple(map(_earlier_key, settings.checkpoint_earlier_keys))


def _earlier_key(text: str) -> PublicKey:
    try:
        return PublicKey.parse(text)
    except MalformedNote as error:
        raise Fatal(f"DATASTORAGE_CHECKPOINT_EARLIER_KEYS has {text!r}, which is not a key: {error}.") from None


def _earlier_keys(settings: Settings, log_name: str) -> Iterator[PublicKey]:
    for key in earlier_keys(settings):
        if key.name != log_name:
            raise Fatal(f"DATASTORAGE_CHECKPOINT_EARLIER_KEYS has a key of {key.name!r}, not of {log_name!r}.")
        yield key
