"""The RSA pair that signs a page of `format=json`: the one that is configured, else a self-signed one, made once and kept."""

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

CERTIFICATE, KEY = "tls.crt", "tls.key"
_YEARS = 10

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pair:
    """A key and the certificate of it."""

    private: RSAPrivateKey
    certificate: x509.Certificate

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate in pairs of hex digits."""
        return self.certificate.fingerprint(SHA256()).hex(":")

    def sign(self, digest: bytes) -> bytes:
        """SHA256withRSA of what has this SHA-256."""
        return self.private.sign(digest, PKCS1v15(), Prehashed(SHA256()))


def pair_in(directory: Path) -> Pair | None:
    """The pair in `directory`, None if there is none. OSError or ValueError when what is there is no pair."""
    return _kept(directory) if any((directory / name).exists() for name in (CERTIFICATE, KEY)) else None


def pair(directory: Path) -> Pair:
    """The pair in `directory`, made there if there is none. OSError or ValueError when what is there is no pair."""
    if (found := pair_in(directory)) is not None:
        return found
    made = _made()
    try:
        _keep(directory, made)
    except OSError as error:
        log.warning(
            "the pair that signs exports cannot be kept, so the next start makes another",
            extra={"directory": str(directory), "error": str(error)},
        )
        return made
    return _kept(directory)


def _kept(directory: Path) -> Pair:
    certificate = x509.load_pem_x509_certificate((directory / CERTIFICATE).read_bytes())
    private = load_pem_private_key((directory / KEY).read_bytes(), None)
    if not isinstance(private, RSAPrivateKey):
        raise ValueError(f"{directory / KEY} is no RSA key")  # noqa: TRY004 - a file's content is wrong
    if private.public_key() != certificate.public_key():
        raise ValueError(f"{directory / CERTIFICATE} is not the certificate of {directory / KEY}")
    return Pair(private, certificate)


def _made() -> Pair:
    private = generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "datastorage-export")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, private.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=365 * _YEARS))
        .sign(private, SHA256())
    )
    return Pair(private, certificate)


def _keep(directory: Path, made: Pair) -> None:
    """Both files appear at once, so that of several processes the first wins and the others read its pair."""
    directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    half = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        for name, content in (
            (KEY, made.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())),
            (CERTIFICATE, made.pem),
        ):
            descriptor = os.open(half / name, os.O_WRONLY | os.O_CREAT, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                os.fsync(descriptor)
        half.rename(directory)
    except OSError:
        shutil.rmtree(half, ignore_errors=True)
        if not (directory / CERTIFICATE).exists():  # else another process was first
            raise
