"""The table of cases: what a client sends over one connection, and which answers it gets. RFC 9112, RFC 9110 7.8 and 10.1."""

import json
from collections.abc import Callable, Iterator
from typing import NamedTuple

from tests.events import make_event

EVENTS = "/api/v1/audit/events"
HOLD = "/api/v1/audit/legal-hold"
HOLD_BODY = b'{"correlation_id":"smuggled","reason":"sent inside of a body"}'
SMUGGLED = (
    f"POST {HOLD} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(HOLD_BODY)}\r\n\r\n".encode()
    + HOLD_BODY
)
"""What is carried out if a body is ever read as a request."""
PROBE = b"OPTIONS /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
"""Sent after each case: its 405 shows that the connection went on."""
WENT_ON = 405

H2C = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAAAAMAAAAAAAQBAAAAAAUAAEAAAAYABgAA"
WEBSOCKET = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="


class Case(NamedTuple):
    """`answers` are the statuses in order. If `goes_on`, requests after the last of these are answered too.

    `via_proxy` are the answers that a proxy in front of the service gives; None where that is the proxy's own affair.
    """

    name: str
    sent: bytes
    answers: tuple[int, ...]
    goes_on: bool = True
    via_proxy: tuple[int, ...] | None = None


def event() -> bytes:
    return json.dumps(make_event()).encode()


def request(
    head: str, body: bytes = b"", *, method: str = "POST", version: str = "1.1", host: str = "Host: x\r\n"
) -> bytes:
    """A request with these lines in its head, which say how `body` is framed."""
    lines = f"Content-Type: application/json\r\n{head}\r\n" if head else ""
    path = EVENTS if method == "POST" else f"{EVENTS.removesuffix('s')}-types"  # which reads nothing from the database
    return f"{method} {path} HTTP/{version}\r\n{host}{lines}\r\n".encode() + body


def sized(head: str = "", body: bytes | None = None, **rest: str) -> bytes:
    body = event() if body is None else body
    return request("\r\n".join(filter(None, (head, f"Content-Length: {len(body)}"))), body, **rest)


def chunks(body: bytes, extension: bytes = b"", trailers: bytes = b"") -> bytes:
    half = len(body) // 2
    parts = [b"%x%b\r\n%b\r\n" % (len(part), extension, part) for part in (body[:half], body[half:])]
    return b"".join(parts) + b"0\r\n" + trailers + b"\r\n"


def chunked(head: str = "", body: bytes | None = None, **rest: str) -> bytes:
    return request("\r\n".join(filter(None, (head, "Transfer-Encoding: chunked"))), body or chunks(event()), **rest)


def plain(line: str, head: str = "Host: x\r\n") -> bytes:
    return f"{line}\r\n{head}\r\n".encode()


def cases() -> Iterator[Case]:
    """All of them, with events of their own."""
    yield from _offers()
    yield from _codings()
    yield from _lengths()
    yield from _lines()
    yield from _targets()
    yield from _expectations()
    yield from _connections()


def _offers() -> Iterator[Case]:
    """RFC 9110 7.8: an offer that is not taken is ignored."""
    offers = {"h2c": H2C, "websocket": WEBSOCKET, "another": "Connection: keep-alive, upgrade\r\nUpgrade: TLS/1.0, x"}
    makers: dict[str, Callable[..., bytes]] = {"sized": sized, "chunked": chunked}
    for offer, lines in offers.items():
        for kind, make in makers.items():
            yield Case(f"offer of {offer}, {kind}", make(lines), (201,), via_proxy=(201,))
            yield Case(f"two offers of {offer}, {kind}", make(lines) + make(lines), (201, 201), via_proxy=(201, 201))
        yield Case(f"offer of {offer}, HTTP/1.0", sized(lines, version="1.0"), (201,), goes_on=False)
        yield Case(f"offer of {offer}, GET with a request as body", sized(lines, SMUGGLED, method="GET"), (200,))
        yield Case(f"offer of {offer}, POST of a request", sized(lines, SMUGGLED), (400,), via_proxy=(400,))
        yield Case(
            f"offer of {offer}, chunked GET with a request as body",
            chunked(lines, chunks(SMUGGLED), method="GET"),
            (200,),
        )
    yield Case("offer, then an ordinary request", sized(H2C) + sized(), (201, 201), via_proxy=(201, 201))
    yield Case(
        "offer without a body", plain("GET /healthz HTTP/1.1", f"Host: x\r\n{H2C}\r\n"), (200,), via_proxy=(200,)
    )
    yield Case("offer that also closes", sized("Connection: close, upgrade\r\nUpgrade: x"), (201,), goes_on=False)
    yield Case("offer and 100-continue", sized(f"{H2C}\r\nExpect: 100-continue"), (100, 201))
    yield Case(
        "offer in a trailer", chunked("", chunks(event(), trailers=f"{H2C}\r\n".encode())), (201,), via_proxy=(201,)
    )
    yield Case("HTTP/2 by prior knowledge", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (400,), goes_on=False)


def _codings() -> Iterator[Case]:
    """RFC 9112 6.1, 6.3 and 7.1: what says how a body ends, or is refused."""
    yield Case("chunked", chunked(), (201,), via_proxy=(201,))
    yield Case("chunked, in capitals", request("Transfer-Encoding: ChunKed", chunks(event())), (201,))
    yield Case("chunk extensions", chunked("", chunks(event(), b';a=b;c="d"')), (201,), via_proxy=(201,))
    yield Case("a trailer", chunked("", chunks(event(), trailers=b"X-Sum: 1\r\n")), (201,), via_proxy=(201,))
    yield Case("a trailer is no header", chunked("", chunks(event(), trailers=b"Idempotency-Key: \xff\r\n")), (201,))
    yield Case("many trailers", chunked("", chunks(event(), trailers=b"X-Sum: 1\r\n" * 30_000)), (431,), goes_on=False)
    ways = {
        "beside chunked": (501, "Transfer-Encoding: xchunked\r\nTransfer-Encoding: chunked"),
        "after chunked": (400, "Transfer-Encoding: chunked\r\nTransfer-Encoding: xchunked"),
        "alone": (400, "Transfer-Encoding: xchunked"),
        "identity": (400, "Transfer-Encoding: identity"),
        "empty": (400, "Transfer-Encoding: "),
        "twice": (400, "Transfer-Encoding: chunked, chunked"),
        "with a parameter": (400, "Transfer-Encoding: chunked;a=b"),
        "with a tabulator of another kind": (400, "Transfer-Encoding: \x0bchunked"),
        "not last": (400, "Transfer-Encoding: chunked, gzip"),
        "gzip": (501, "Transfer-Encoding: gzip, chunked"),
        "gzip, on two lines": (501, "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked"),
        "and a length after it": (400, f"Transfer-Encoding: chunked\r\nContent-Length: {len(SMUGGLED)}"),
        "and a length before it": (400, "Content-Length: 5\r\nTransfer-Encoding: chunked"),
        "unknown, and a length": (400, f"Content-Length: {len(SMUGGLED)}\r\nTransfer-Encoding: xchunked"),
    }
    for way, (status, lines) in ways.items():
        yield Case(f"coding {way}", request(lines, b"0\r\n\r\n" + SMUGGLED), (status,), goes_on=False)
        yield Case(
            f"coding {way}, GET", request(lines, b"0\r\n\r\n" + SMUGGLED, method="GET"), (status,), goes_on=False
        )
    yield Case("chunked in HTTP/1.0", chunked(version="1.0"), (400,), goes_on=False)
    spoilt = {
        "no size": b"\r\nabc\r\n",
        "a size with a sign": b"+3\r\nabc\r\n",
        "a negative size": b"-3\r\nabc\r\n",
        "a size as in C": b"0x3\r\nabc\r\n",
        "a size beyond 64 bits": b"10000000000000003\r\nabc\r\n",
        "a space before the size": b" 3\r\nabc\r\n",
        "a space after the size": b"3 \r\nabc\r\n",
        "only LF after the size": b"3\nabc\r\n",
        "only CR after the size": b"3\rabc\r\n",
        "only LF after the data": b"3\r\nabc\n",
        "nothing after the data": b"3\r\nabc",
        "more data than its size": b"3\r\nabcd\r\n",
        "a bare LF in an extension": b"3;a\nb\r\nabc\r\n",
        "a bare CR in an extension": b"3;a\rb\r\nabc\r\n",
        "a line break in a quoted extension": b'3;a="b\r\n"\r\nabc\r\n',
    }
    for what, chunk in spoilt.items():
        yield Case(f"chunk: {what}", chunked("", chunk + b"0\r\n\r\n" + SMUGGLED), (400,), goes_on=False)
    hold = chunks(HOLD_BODY)[:-5]
    for what, end in {"no last chunk": b"x\r\n\r\n", "a bad trailer": b"0\r\nX : 1\r\n\r\n"}.items():
        sent = chunked("", hold + end).replace(EVENTS.encode(), HOLD.encode())
        yield Case(f"hold with {what}", sent, (400,), goes_on=False)
    for field in (b"Content-Length: 5", b"Transfer-Encoding: chunked", b"X : 1", b" X: 1", b"X: 1\n"):
        body = chunks(event(), trailers=field + b"\r\n")
        yield Case(f"trailer {field!r}", chunked("", body + SMUGGLED), (400,), goes_on=False)
    yield Case("only LF after the last chunk", chunked("", b"0\n\r\n" + SMUGGLED), (400,), goes_on=False)


def _lengths() -> Iterator[Case]:
    """RFC 9112 6.2 and 6.3."""
    yield Case("a length", sized(), (201,), via_proxy=(201,))
    yield Case("a length with zeros before it", request(f"Content-Length: 00{len(body := event())}", body), (201,))
    yield Case("a length with spaces around it", request(f"Content-Length:  {len(body := event())} \t", body), (201,))
    yield Case("a body with GET", sized("", SMUGGLED, method="GET"), (200,), via_proxy=(200,))
    yield Case("no length and no body", request("X: 1"), (400,))
    for value in ("5, 5", "+5", "-5", "5 5", "", "0x5", "5.0", "5e0", "9" * 30, "0" * 5000 + "5", "\u0665"):
        yield Case(f"length {value!r}", request(f"Content-Length: {value}", b"12345" + SMUGGLED), (400,), goes_on=False)
    for first, second in ((5, 5), (5, 6), (5, len(SMUGGLED) + 5)):
        lines = f"Content-Length: {first}\r\nContent-Length: {second}"
        yield Case(f"lengths {first} and {second}", request(lines, b"12345" + SMUGGLED), (400,), goes_on=False)


def _lines() -> Iterator[Case]:
    """RFC 9112 2.2, 3 and 5: lines that proxies and servers read differently."""
    yield Case("empty lines before the request", b"\r\n\r\n" + sized(), (201,), via_proxy=(201,))
    yield Case("white space around a value", sized("X-Request-ID: \t one \t"), (201,), via_proxy=(201,))
    length = f"Content-Length: {len(SMUGGLED)}"
    for name, lines in {
        "a space before the colon": length.replace(":", " :"),
        "a tabulator before the colon": length.replace(":", "\t:"),
        "a folded value": "X: 1\r\n " + length,
        "a folded empty value": length.replace(": ", ":\r\n "),
        "a space before the first header": "",
        "only LF": f"X: 1\n{length}",
        "only CR": f"X: 1\r{length}",
        "NUL in a value": f"X: \0\r\n{length}",
        "a control character in a value": f"X: \x01\r\n{length}",
        "a control character in a name": f"X\x01: 1\r\n{length}",
        "an empty name": f": 1\r\n{length}",
        "no colon": f"X\r\n{length}",
        "a space in a name": f"X Y: 1\r\n{length}",
        "a bracket in a name": f"X(: 1\r\n{length}",
    }.items():
        sent = request(lines or length, SMUGGLED)
        if not lines:
            sent = sent.replace(b"\r\nHost", b"\r\n Host")
        yield Case(f"header: {name}", sent, (400,), goes_on=False)
    yield Case(
        "only LF at the head's end", request(length, SMUGGLED).replace(b"\r\n\r\n", b"\r\n\n"), (400,), goes_on=False
    )
    for name, line in {
        "a method in small letters": "post / HTTP/1.1",
        "an unknown method": "HOLD / HTTP/1.1",
        "a tabulator after the method": "GET\t/ HTTP/1.1",
        "a space in the target": "GET /a b HTTP/1.1",
        "a space after the version": "GET / HTTP/1.1 ",
        "only LF": "GET / HTTP/1.1\nX: 1",
        "no version": "GET /",
        "HTTP/0.9": "GET / HTTP/0.9",
        "HTTP/1.2": "GET / HTTP/1.2",
        "HTTP/2.0": "GET / HTTP/2.0",
        "another protocol": "GET / HTTQ/1.1",
        "a protocol in small letters": "GET / http/1.1",
        "NUL in the target": "GET /\0 HTTP/1.1",
        "beyond ASCII in the target": "GET /\u00e4 HTTP/1.1",
        "no request": "what is this?",
        "TLS to a plain port": "\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03",
    }.items():
        yield Case(f"request line: {name}", plain(line), (400,), goes_on=False)


def _targets() -> Iterator[Case]:
    """RFC 9112 3.2: forms of the request target, and Host."""
    yield Case("absolute form", plain("GET http://x/healthz HTTP/1.1"), (200,))
    yield Case("absolute form with another Host", plain("GET http://x/healthz HTTP/1.1", "Host: y\r\n"), (200,))
    yield Case("absolute form without a path", plain("GET http://x HTTP/1.1"), (404,))
    yield Case("asterisk form", plain("OPTIONS * HTTP/1.1"), (404,))
    for name, line in {
        "asterisk form of GET": "GET * HTTP/1.1",
        "authority form of GET": "GET x:80 HTTP/1.1",
        "CONNECT": "CONNECT x:80 HTTP/1.1",
        "CONNECT to a path": f"CONNECT {HOLD} HTTP/1.1",
        "another scheme": "GET ftp://x/healthz HTTP/1.1",
        "a user in the target": "GET http://u:p@x/healthz HTTP/1.1",
        "a fragment": "GET /healthz#a HTTP/1.1",
    }.items():
        yield Case(name, plain(line) + SMUGGLED, (400,), goes_on=False)
    for name, host in {
        "no Host": "",
        "two Hosts": "Host: x\r\nHost: x\r\n",
        "two Hosts on one line": "Host: x, y\r\n",
        "Host with a path": "Host: x/y\r\n",
        "Host with a user": "Host: u@x\r\n",
        "Host with a bad port": "Host: x:y\r\n",
    }.items():
        yield Case(name, plain("GET /healthz HTTP/1.1", host) + SMUGGLED, (400,), goes_on=False)
    yield Case("no Host in HTTP/1.0", plain("GET /healthz HTTP/1.0", ""), (200,), goes_on=False)
    for host in (
        "",
        "x",
        "x:8080",
        "127.0.0.1",
        "[::1]:80",
        "[fe80::1%25eth0]",
        "xn--bcher-kva.example",
        "a_b.svc.cluster.local",
    ):
        yield Case(f"Host {host}", plain("GET /healthz HTTP/1.1", f"Host: {host}\r\n"), (200,))


def _expectations() -> Iterator[Case]:
    """RFC 9110 10.1.1: 100 only where the body will be read."""
    expects = "Expect: 100-continue"
    yield Case("100-continue", sized(expects), (100, 201), via_proxy=(100, 201))
    yield Case("100-continue, in capitals", sized("Expect: 100-Continue "), (100, 201))
    yield Case("100-continue, chunked", chunked(expects), (100, 201))
    yield Case("100-continue without a body", sized(expects, b""), (400,))
    yield Case("100-continue in HTTP/1.0", sized(expects, version="1.0"), (201,), goes_on=False)
    yield Case(
        "100-continue of what is too large", request(f"{expects}\r\nContent-Length: 6000000"), (413,), goes_on=False
    )
    # The client may leave out a body that was not asked for: what follows could be either, so nothing is read any more.
    unasked = request(f"{expects}\r\nContent-Length: {len(SMUGGLED)}").replace(EVENTS.encode(), b"/nothing")
    yield Case("100-continue of what has no route", unasked + SMUGGLED, (404,), goes_on=False)
    yield Case("another expectation", sized("Expect: 200-ok"), (417,), goes_on=False)
    yield Case("two expectations", sized(f"{expects}, x=y"), (417,), goes_on=False)
    yield Case("an empty expectation", sized("Expect: "), (201,))


def _connections() -> Iterator[Case]:
    """RFC 9112 9: how long a connection lasts, and that each request has its answer, in order."""
    yield Case(
        "three at once",
        sized() + plain("GET /nothing HTTP/1.1") + chunked(),
        (201, 404, 201),
        via_proxy=(201, 404, 201),
    )
    yield Case("HEAD", plain("HEAD /healthz HTTP/1.1") + sized(), (405, 201), via_proxy=(405, 201))
    yield Case("close", sized("Connection: close"), (201,), goes_on=False, via_proxy=(201,))
    yield Case("close, then another request", sized("Connection: close") + SMUGGLED, (201,), goes_on=False)
    yield Case("close among others", sized("Connection: x, Close"), (201,), goes_on=False)
    yield Case("HTTP/1.0", sized(version="1.0"), (201,), goes_on=False, via_proxy=(201,))
    yield Case("HTTP/1.0 that wants to stay", sized("Connection: keep-alive", version="1.0"), (201,), goes_on=False)
    yield Case("what is not HTTP comes second", sized() + b"what is this?\r\n\r\n", (201, 400), goes_on=False)
    yield Case("a spoilt body comes second", sized() + chunked("", b"x\r\n\r\n" + SMUGGLED), (201, 400), goes_on=False)
