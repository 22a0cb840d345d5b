"""RFC 3161 timestamps of checkpoints: a token in which an authority outside has signed when a note existed. No I/O but of a file.

What is stamped is the published note with all of its signatures, so that these are proved to be as old as the tree.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256, sha384, sha512
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cryptography import x509

from app.errors import Fatal
from app.tlog.note import Checkpoint, MalformedNote, PublicKey, decoded_base64, verified_signatures
from app.tlog.proof import parse_object

if TYPE_CHECKING:
    from rfc3161_client import TimeStampRequest, TimeStampResponse

_DIGESTS = {
    "2.16.840.1.101.3.4.2.1": sha256,
    "2.16.840.1.101.3.4.2.2": sha384,
    "2.16.840.1.101.3.4.2.3": sha512,
}
"""By object identifier, the digests that a token may be of."""
_GRANTED = b"\x30\x03\x02\x01\x00"
"""PKIStatusInfo: granted."""
_SEQUENCE, _CERTIFICATES = 0x30, 0xA0


class WrongTimestamp(ValueError):
    """A token that does not show that the note existed at a time; the message says why."""


@dataclass(frozen=True, slots=True)
class Timestamp:
    """What a token shows."""

    time: datetime
    """The authority's clock, in UTC."""
    authority: str
    """The subject of the certificate that signed it."""

    def __str__(self) -> str:
        return f"existed at {self.time:%Y-%m-%dT%H:%M:%SZ}, as {self.authority} has signed"


def read_certificates(path: Path) -> list[x509.Certificate]:
    """The certificates in a PEM file: of authorities, or of those that issue theirs. Fatal when there is none."""
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except (OSError, ValueError) as error:
        raise Fatal(
            f"Cannot read the certificates of a timestamp authority, as PEM, from {path}: {error or 'there is none'}."
        ) from None


def new_request(note: str) -> "TimeStampRequest":
    """What an authority is asked: the SHA-256 of the note, a random nonce, and to send its certificate along."""
    from rfc3161_client import HashAlgorithm, TimestampRequestBuilder  # noqa: PLC0415 -- few services have an authority

    return TimestampRequestBuilder(note.encode(), HashAlgorithm.SHA256).build()


def token_in(
    answer: bytes, request: "TimeStampRequest", note: str, trusted: Sequence[x509.Certificate]
) -> tuple[bytes, Timestamp]:
    """The token (DER) in an authority's answer to a request, and what it shows of the note.

    WrongTimestamp when it was not granted, is of another note or request, or by nobody of whom a certificate is `trusted`.
    """
    try:
        status, *tokens = _elements(answer, next(_elements(answer)))
        if not tokens:
            raise WrongTimestamp(f"the authority refused: {answer[status.start : status.end][:200]!r}")
        token = answer[tokens[0].start : tokens[0].end]
    except (IndexError, StopIteration):
        raise WrongTimestamp("the answer is not a TimeStampResp (RFC 3161)") from None
    shown = _verified(token, note, trusted, request.nonce)
    return token, shown


def verified_timestamp(token: bytes, note: str, trusted: Sequence[x509.Certificate]) -> Timestamp:
    """What a token shows of a note. WrongTimestamp when it is of another note, or by nobody of whom a certificate is `trusted`."""
    return _verified(token, note, trusted, None)


def require_timestamp(token: bytes, note: str, trusted: Sequence[x509.Certificate]) -> None:
    """WrongTimestamp unless a token is of a note, and by somebody of whom a certificate is `trusted`, if any is."""
    if trusted:
        verified_timestamp(token, note, trusted)
        return
    try:
        imprint = _parsed(token).tst_info.message_imprint
        digest = _DIGESTS.get(imprint.hash_algorithm.dotted_string)
        is_of_note = digest is not None and digest(note.encode()).digest() == imprint.message
    except ValueError as error:
        raise WrongTimestamp(f"this is not a TimeStampToken (RFC 3161) in DER: {error!r}") from None
    if not is_of_note:
        raise WrongTimestamp("it is a token of something else")


def _verified(token: bytes, note: str, trusted: Sequence[x509.Certificate], nonce: int | None) -> Timestamp:
    from rfc3161_client import VerificationError, VerifierBuilder  # noqa: PLC0415 -- as above

    response = _parsed(token)
    try:
        VerifierBuilder(roots=list(trusted), nonce=nonce).build().verify_message(response, note.encode())
    except (VerificationError, ValueError, x509.InvalidVersion) as error:
        raise WrongTimestamp(str(error)) from None
    (signer,) = response.signed_data.signer_infos
    issuer = ", ".join(part.rfc4514_string() for part in signer.issuer.rdns)
    return Timestamp(response.tst_info.gen_time, f"certificate {signer.serial_number:x} of {issuer}")


def _parsed(token: bytes) -> "TimeStampResponse":
    """The answer that the token would be granted in. WrongTimestamp when it is not a token in DER."""
    from rfc3161_client import decode_timestamp_response  # noqa: PLC0415 -- as above

    try:
        return decode_timestamp_response(_sequence(_GRANTED + _with_certificates_in_order(token)))
    except (ValueError, IndexError, StopIteration) as error:
        raise WrongTimestamp(f"this is not a TimeStampToken (RFC 3161) in DER: {error!r}") from None


def verify_timestamp_file(
    content: bytes, keys: Sequence[PublicKey], trusted: Sequence[x509.Certificate]
) -> tuple[Checkpoint, Sequence[PublicKey], Timestamp]:
    """The checkpoint of the JSON document that /tlog/timestamp gives, who signed it, and what its token shows.

    MalformedNote, NoValidSignature or WrongTimestamp if it is wrong.
    """
    document = parse_object(content, "the document")
    note, token = document.get("checkpoint"), document.get("token")
    if not isinstance(note, str) or not isinstance(token, str):
        raise MalformedNote("the document has no members checkpoint and token")
    checkpoint, signers = verified_signatures(note, keys)
    return checkpoint, signers, verified_timestamp(decoded_base64(token, "the token"), note, trusted)


class _Element(NamedTuple):
    """Where an element of DER begins, and its content begins and ends."""

    start: int
    content: int
    end: int


def _elements(der: bytes, parent: _Element | None = None) -> Iterator[_Element]:
    """The elements in another one, or in the whole text. IndexError when it is cut off."""
    start, end = (0, len(der)) if parent is None else (parent.content, parent.end)
    while start < end:
        content, length = start + 2, der[start + 1]
        if length > 0x80:
            content += length - 0x80
            length = int.from_bytes(der[start + 2 : content])
        yield _Element(start, content, content + length)
        start = content + length


def _sequence(content: bytes) -> bytes:
    """A SEQUENCE in DER; of any length above 127, which a token has."""
    length = len(content).to_bytes(-(-len(content).bit_length() // 8))
    return bytes([_SEQUENCE, 0x80 + len(length)]) + length + content


def _with_certificates_in_order(token: bytes) -> bytes:
    """The token with its certificates as DER sorts a set. No signature covers their order, and OpenSSL writes another."""
    _, explicit = _elements(token, next(_elements(token)))
    for one in _elements(token, next(_elements(token, explicit))):
        if token[one.start] == _CERTIFICATES:
            parts = sorted(token[part.start : part.end] for part in _elements(token, one))
            return token[: one.content] + b"".join(parts) + token[one.end :]
    return token
