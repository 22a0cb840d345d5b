"""What a request's head says about where the request ends and whom it is for; what is in doubt is refused (RFC 9112).

The parser has refused malformed lines already, and a Content-Length that is repeated or stands beside Transfer-Encoding.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from httptools import HttpParserInvalidURLError, parse_url

from app.errors import AuditError

_LENGTH_DIGITS_MAX = 19
_HOST = re.compile(rb"(?:[\w.~!$&'()*+,;=%-]*|\[[\w.:~%-]+\])(?::\d*)?")


class Malformed(AuditError):
    """This is not a request of HTTP/1.1."""

    status = 400
    slug = "malformed-request"
    title = "Malformed Request"


class UnknownCoding(AuditError):
    """Transfer-Encoding: this service knows chunked only."""

    status = 501
    slug = "unknown-transfer-coding"
    title = "Not Implemented"


class UnknownExpectation(AuditError):
    """Expect: this service knows 100-continue only."""

    status = 417
    slug = "unknown-expectation"
    title = "Expectation Failed"


class Target(NamedTuple):
    """What the request line asks for."""

    path: bytes
    query: bytes


def fields_by_name(headers: Sequence[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """The values by name; those of a repeated name together, as one list."""
    fields: dict[bytes, bytes] = dict(headers)
    if len(fields) < len(headers):
        fields = {}
        for name, value in headers:
            fields[name] = fields[name] + b", " + value if name in fields else value
    return fields


def read_target(method: bytes, url: bytes) -> Target:
    """Path and query of a request target in any of its forms. Raises Malformed."""
    if method == b"CONNECT":
        raise Malformed("CONNECT: this service is no proxy.")
    if b"#" in url:
        raise Malformed("A request target has no fragment.")
    if url.startswith(b"/"):
        path, _, query = url.partition(b"?")
        return Target(path, query)
    if url == b"*" and method == b"OPTIONS":
        return Target(url, b"")
    try:
        parsed = parse_url(url)
    except HttpParserInvalidURLError:
        parsed = None
    if parsed is None or parsed.schema not in {b"http", b"https"} or not parsed.host or parsed.userinfo:
        raise Malformed("The request target is neither a path nor the URL of one.")
    return Target(parsed.path or b"/", parsed.query or b"")


def check_host(host: bytes | None, version: str) -> None:
    """Malformed unless there is one valid Host; in HTTP/1.0 there may be none."""
    if (version == "1.1") if host is None else not _HOST.fullmatch(host):
        raise Malformed("Host: expected one host, with or without a port.")


def check_length(length: bytes) -> None:
    """Malformed if it has more digits than any size needs: zeros, which the parser takes, but others may not."""
    if len(length) > _LENGTH_DIGITS_MAX:
        raise Malformed("Content-Length: too many digits.")


def check_coding(coding: bytes, version: str) -> None:
    """Malformed or UnknownCoding unless the body is chunked and nothing else."""
    codings = [one.strip().lower() for one in coding.split(b",")]
    if version == "1.0":
        raise Malformed("Transfer-Encoding: HTTP/1.0 has none.")
    if codings[-1] != b"chunked" or b"chunked" in codings[:-1]:
        raise Malformed("Transfer-Encoding: chunked has to be the last coding, once.")
    if len(codings) > 1:
        raise UnknownCoding


def expects_continue(fields: Mapping[bytes, bytes], version: str) -> bool:
    """True if the client waits for an answer 100 before it sends the body. Raises UnknownExpectation."""
    expectations = {one.strip().lower() for one in fields[b"expect"].split(b",")} - {b""}
    if version == "1.0" or not expectations:
        return False
    if expectations != {b"100-continue"}:
        raise UnknownExpectation
    return b"transfer-encoding" in fields or fields.get(b"content-length", b"0").strip(b"0") != b""


def replayed_head(fields: Mapping[bytes, bytes]) -> bytes:
    """The head of a request whose body is framed as that of a request with these fields."""
    framing = [(name, fields[name]) for name in (b"content-length", b"transfer-encoding") if name in fields]
    return b"POST / HTTP/1.1\r\n%b\r\n" % b"".join(b"%b: %b\r\n" % field for field in framing)
