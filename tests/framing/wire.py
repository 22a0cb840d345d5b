"""Bytes over a socket: sends some, and reads every answer until the server closes the connection."""

import socket
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

PATIENCE_SECONDS = 30


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


def answers_to(port: int, sent: bytes, *, methods: tuple[str, ...] = (), half_closes: bool = False) -> list[Answer]:
    """Every answer on a new connection over which this was sent. Fails on bytes that are none.

    `methods` are those of the first requests, where one is HEAD.
    """
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS) as raw:
        raw.sendall(sent)
        if half_closes:
            raw.shutdown(socket.SHUT_WR)
        with raw.makefile("rb") as file:
            return list(_answers(file, list(methods)))


def _answers(file: BinaryIO, methods: list[str]) -> Iterator[Answer]:
    while line := file.readline():
        version, status, _ = line.decode("latin-1").split(" ", 2)
        assert version == "HTTP/1.1", line
        headers = dict(_headers(file))
        body = b""
        if int(status) >= 200 and (methods.pop(0) if methods else "") != "HEAD":
            body = b"".join(_chunks(file)) if "transfer-encoding" in headers else _sized(file, headers)
        yield Answer(int(status), headers, body)


def _headers(file: BinaryIO) -> Iterator[tuple[str, str]]:
    while (line := file.readline()) != b"\r\n":
        assert line.endswith(b"\r\n"), line
        name, _, value = line.decode("latin-1").partition(":")
        yield name.lower(), value.strip()


def _sized(file: BinaryIO, headers: dict[str, str]) -> bytes:
    if "content-length" not in headers:
        assert headers.get("connection") == "close", headers
        return file.read()
    body = file.read(int(headers["content-length"]))
    assert len(body) == int(headers["content-length"])
    return body


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    while size := int(file.readline(), 16):
        yield file.read(size)
        assert file.readline() == b"\r\n"
    assert file.readline() == b"\r\n"
