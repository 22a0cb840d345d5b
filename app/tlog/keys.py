"""Keys of logs: those that sign checkpoints, from settings or made for the embedded Postgres; public ones from text or file."""

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from app.errors import Fatal
from app.events.log import Log
from app.tlog.note import (
    ALGORITHM_NAMES,
    COSIGNER_NAME_BYTES_MAX,
    ML_DSA_44,
    MalformedNote,
    PublicKey,
    is_key_name,
)

if TYPE_CHECKING:  # whoever verifies offline does not wait for the settings' library
    from app.settings import Settings

ALGORITHMS: dict[str, type[Any]] = {"ed25519": Ed25519PrivateKey, "ml-dsa-44": MLDSA44PrivateKey}


@dataclass(frozen=True)
class SigningKey:
    """The log's own keys, and the public keys that it had before."""

    private: Ed25519PrivateKey
    public: PublicKey
    earlier: tuple[PublicKey, ...] = ()
    cosigner: MLDSA44PrivateKey | None = None
    """Cosigns each checkpoint, so that it holds against whoever can break Ed25519."""

    def of(self, log: Log) -> "SigningKey":
        """The same key as that of another log of the database: a key has the name of its log."""
        earlier = (PublicKey(log.name, key.public, key.algorithm) for key in self.earlier)
        return replace(self, public=PublicKey(log.name, self.public.public), earlier=tuple(earlier))

    @property
    def all_public(self) -> tuple[PublicKey, ...]:
        """Every key that may have signed a checkpoint of this log, the ones in use first."""
        if self.cosigner is None:
            return (self.public, *self.earlier)
        cosigner = PublicKey(self.public.name, self.cosigner.public_key().public_bytes_raw(), ML_DSA_44)
        return (self.public, cosigner, *self.earlier)


def signing_key(settings: "Settings", log_name: str) -> SigningKey | None:
    """The keys of the log named `log_name`; None when none is configured.

    Fatal when one cannot be read or is of another kind, or the log's name cannot be the name of a key.
    """
    private, cosigner = private_keys(settings)
    if private is None:
        return None
    if not is_key_name(log_name):
        raise Fatal(
            f"The log's name {log_name!r} has a space or a plus sign, so no checkpoint of it can be signed: unset "
            "DATASTORAGE_CHECKPOINT_KEY and DATASTORAGE_CHECKPOINT_KEY_FILE."
        )
    if cosigner is not None and len(log_name.encode()) > COSIGNER_NAME_BYTES_MAX:
        raise Fatal(
            f"The log's name has more than {COSIGNER_NAME_BYTES_MAX} bytes, so no checkpoint of it can be signed with ML-DSA: "
            "unset DATASTORAGE_CHECKPOINT_MLDSA_KEY and DATASTORAGE_CHECKPOINT_MLDSA_KEY_FILE."
        )
    public = PublicKey(log_name, private.public_key().public_bytes_raw())
    return SigningKey(private, public, tuple(_earlier_keys(settings, log_name)), cosigner)


def private_keys(settings: "Settings") -> tuple[Ed25519PrivateKey | None, MLDSA44PrivateKey | None]:
    """The key that signs checkpoints and the one that cosigns them; None for each that is not configured.

    Fatal when one cannot be read or is of another kind, or there is only the one that cosigns.
    """
    private = _private_key(settings, "checkpoint_key", "ed25519")
    cosigner = _private_key(settings, "checkpoint_mldsa_key", "ml-dsa-44")
    if cosigner is not None and private is None:
        raise Fatal(
            "There is an ML-DSA key but no Ed25519 key, which signs each checkpoint first: set DATASTORAGE_CHECKPOINT_KEY_FILE too."
        )
    return private, cosigner


def create_key_file(path: Path, algorithm: str = "ed25519") -> None:
    """Write a new key to `path`, readable by its owner only, unless the file exists. It appears whole or not at all."""
    if path.exists():
        return
    pem = ALGORITHMS[algorithm].generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
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
        if text == text_or_path and "+" not in text:
            raise Fatal(f"There is no file {text}, nor is that a public key as /tlog/key shows it.") from None
        raise Fatal(f"Not a public key as /tlog/key shows it, nor a file of such keys: {error}.") from None
    if not keys:
        raise Fatal(f"There is no public key in {text_or_path!r}.")
    return keys


def signature_lines(signers: Collection[PublicKey], keys: Collection[PublicKey]) -> Iterator[str]:
    """Which of `keys` have signed, a line each; and a line for each algorithm of `keys` with which none of them has."""
    for key in signers:
        yield f"signed with {key.label}"
    for algorithm in sorted({key.algorithm for key in keys} - {key.algorithm for key in signers}):
        yield f"NOT signed with {ALGORITHM_NAMES[algorithm]}, although a key of it was given"


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


def _private_key(settings: "Settings", setting: str, algorithm: str) -> Any:
    """The key of the setting, or of the file that `<setting>_file` names; None when neither is set.

    Fatal when it is not a key of the algorithm.
    """
    text, file = getattr(settings, setting), getattr(settings, f"{setting}_file")
    if text is None and file is None:
        return None
    name = f"DATASTORAGE_{setting.upper()}{'' if file is None else '_FILE'}"
    how_to_create = f"make one with `datastorage checkpoint-key checkpoint.pem --algorithm {algorithm}`"
    try:
        key = load_pem_private_key(file.read_bytes() if text is None else text.get_secret_value().encode(), None)
    except OSError as error:
        raise Fatal(f"Cannot read {name}: {error}; {how_to_create}.") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise Fatal(f"The key of {name} is not the PEM of a private key without a password; {how_to_create}.") from None
    if not isinstance(key, ALGORITHMS[algorithm]):
        raise Fatal(f"The key of {name} is not an {algorithm} key; {how_to_create}.")
    return key


def earlier_keys(settings: "Settings") -> tuple[PublicKey, ...]:
    """The public keys that signed before. Fatal when one is not a key."""
    return tuple(map(_earlier_key, settings.checkpoint_earlier_keys))


def _earlier_key(text: str) -> PublicKey:
    try:
        return PublicKey.parse(text)
    except MalformedNote as error:
        raise Fatal(f"DATASTORAGE_CHECKPOINT_EARLIER_KEYS has {text!r}, which is not a key: {error}.") from None


def _earlier_keys(settings: "Settings", log_name: str) -> Iterator[PublicKey]:
    for key in earlier_keys(settings):
        if key.name != log_name:
            raise Fatal(f"DATASTORAGE_CHECKPOINT_EARLIER_KEYS has a key of {key.name!r}, not of {log_name!r}.")
        yield key
