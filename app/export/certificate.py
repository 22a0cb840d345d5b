"""The RSA key pair that signs pages of `format=json`: the configured one, or a self-signed one that is created once."""

import asyncio
import logging
import os
import shutil
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

ALGORITHM = "SHA256withRSA"
CERTIFICATE, KEY = "tls.crt", "tls.key"
_YEARS = 10

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ExportKeyPair:
    """A private key and its certificate."""

    private: RSAPrivateKey
    certificate: x509.Certificate

    @property
    def pem(self) -> bytes:
        """The certificate as PEM."""
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate: pairs of hex digits, separated by colons."""
        return self.certificate.fingerprint(SHA256()).hex(":")

    def sign(self, digest: bytes) -> bytes:
        """The SHA256withRSA signature (PKCS #1 v1.5) of the message whose SHA-256 is `digest`."""
        return self.private.sign(digest, PKCS1v15(), Prehashed(SHA256()))


class ExportKeyStore:
    """The service's key pair for exports: read from `directory`, or created there, when it is first needed.

    Without a directory the pair that is created is stored nowhere.
    """

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._key_pair: ExportKeyPair | None = None
        self._lock = asyncio.Lock()

    def load(self) -> None:
        """Read the pair now if the directory has one, so that a bad one is found at start. OSError or ValueError if it is bad."""
        if self._directory is not None:
            self._key_pair = stored_key_pair(self._directory)

    async def key_pair(self) -> ExportKeyPair:
        """The pair, read or created at the first call. OSError or ValueError when the directory's files are not a pair."""
        async with self._lock:
            if self._key_pair is None:
                self._key_pair = await asyncio.to_thread(read_or_create_key_pair, self._directory)
            return self._key_pair


def stored_key_pair(directory: Path) -> ExportKeyPair | None:
    """The pair in `directory`; None if it has neither file. OSError or ValueError when its files are not a pair."""
    exists = any((directory / name).exists() for name in (CERTIFICATE, KEY))
    return _read_key_pair(directory) if exists else None


def read_or_create_key_pair(directory: Path | None) -> ExportKeyPair:
    """The pair in `directory`; created there if it has neither file. OSError or ValueError when its files are not a pair."""
    if directory is not None and (stored := stored_key_pair(directory)) is not None:
        return stored
    created = _create_key_pair()
    try:
        if directory is None:
            raise FileNotFoundError("there is no state directory")
        _write_key_pair(directory, created)
    except OSError as error:
        log.warning(
            "the key pair that signs exports cannot be stored, so the next start creates another",
            extra={"directory": str(directory), "error": str(error)},
        )
        return created
    return _read_key_pair(directory)


def _read_key_pair(directory: Path) -> ExportKeyPair:
    certificate = x509.load_pem_x509_certificate((directory / CERTIFICATE).read_bytes())
    private = load_pem_private_key((directory / KEY).read_bytes(), None)
    if not isinstance(private, RSAPrivateKey):
        raise ValueError(f"{directory / KEY} is not an RSA key")  # noqa: TRY004 - a file's content is wrong
    if private.public_key() != certificate.public_key():
        raise ValueError(f"{directory / CERTIFICATE} is not the certificate of {directory / KEY}")
    return ExportKeyPair(private, certificate)


def _create_key_pair() -> ExportKeyPair:
    private = generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "datastorage-export")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, private.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=365 * _YEARS))
        .sign(private, SHA256())
    )
    return ExportKeyPair(private, certificate)


def _write_key_pair(directory: Path, key_pair: ExportKeyPair) -> None:
    """Both files appear at once, by a rename: of several processes the first one wins, and the others read its pair."""
    directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    incomplete = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        for name, content in (
            (KEY, key_pair.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())),
            (CERTIFICATE, key_pair.pem),
        ):
            descriptor = os.open(incomplete / name, os.O_WRONLY | os.O_CREAT, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                os.fsync(descriptor)
        incomplete.rename(directory)
    except OSError:
        shutil.rmtree(incomplete, ignore_errors=True)
        if not (directory / CERTIFICATE).exists():  # otherwise another process was first
            raise


def detached_signature(fingerprint: str, signature: str) -> str:
    """The signature once more, as the text of `detached_signature`."""
    return (
        f"-----BEGIN SIGNATURE-----\nAlgorithm: {ALGORITHM}\nCertificate-Fingerprint: {fingerprint}\n\n"
        f"{signature}\n-----END SIGNATURE-----\n"
    )
