"""Syslog: what counts as delivered has been read by the receiver, message by message, whatever it does."""

import asyncio
import os
import random
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import orjson
import pytest

from app.stream.destination import Delivery, NotDelivered
from app.stream.portion import Absent
from app.stream.records import ndjson_line
from app.stream.syslog import Syslog, SyslogSink, syslog_message
from tests.certificates import Authority
from tests.destinations import rsyslog
from tests.logs import FIRST_LOG
from tests.streamed import NASTY, delivery, portion, streamed_event
from tests.waiting import eventually

needs_rsyslog = pytest.mark.skipif(
    rsyslog.PROGRAM is None and not os.environ.get("DATASTORAGE_TEST_RSYSLOG"),
    reason="there is no rsyslog (apt-get install rsyslog rsyslog-gnutls rsyslog-openssl)",
)
LONG = "ü" * 125_000


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def syslog(port: int, authority: Authority, **fields: Any) -> Syslog:
    sink = {"name": "soc", "type": "syslog", "host": "localhost", "port": port, "ca_file": authority.path}
    return SyslogSink.model_validate(sink | fields).destination()


async def until_delivered(destination: Syslog, portion: Delivery) -> None:
    """As the deliverer does: again, until it is certain."""

    async def attempt() -> bool | None:
        try:
            await destination.deliver(portion)
        except OSError:
            return None
        return True

    await eventually(attempt)


@needs_rsyslog
@pytest.mark.parametrize("driver", ["gtls", "ossl"])
async def test_rsyslog_has_every_message_in_order(tmp_path: Path, authority: Authority, driver: str) -> None:
    """The receiver's copy lacks an event, has another order, or has a text that was changed or cut on the way."""
    events = [*map(streamed_event, range(50)), streamed_event(50, {"x": NASTY}), streamed_event(51, {"x": LONG})]
    with rsyslog.rsyslog(tmp_path / "rsyslog", authority, driver) as receiver:
        destination = syslog(receiver.port, authority)
        await until_delivered(destination, delivery(*events[:50]))
        await destination.deliver(delivery(*events[50:]))
        # Nothing is waited for here: delivered means that the receiver, which has no queue, has written it.
        lines = receiver.lines()
        assert [orjson.loads(line) for line in lines] == [orjson.loads(ndjson_line(event)) for event in events]
        assert all(line.isascii() and b"\x7f" not in line for line in lines)


@needs_rsyslog
async def test_rsyslog_parses_the_header(tmp_path: Path, authority: Authority) -> None:
    """A receiver cannot route by severity, host or type, or does not recognise a resend by its place."""
    failed = streamed_event(4711, event_outcome="failure", event_type="a-type.longer.than-thirty-two.characters")
    with rsyslog.rsyslog(tmp_path / "rsyslog", authority) as receiver:
        destination = syslog(receiver.port, authority, hostname="pod-0", facility="local3")
        await until_delivered(destination, delivery(failed, Absent(4712, 4715, "unknown"), end=4715))
        event, absent = receiver.lines("parts")
    data = (
        '[datastorage@32473 place="0:4711" log="test.example/datastorage" '
        f'id="{failed.event["event_id"]}" type="{failed.event["event_type"]}" hash="{4711:064x}"]'
    )
    assert event.decode() == f"{19 * 8 + 4} 2026-01-31T13:00:04.611000Z pod-0 datastorage orchestration {data}"
    assert b"pod-0 datastorage absent [datastorage@32473 place=" in absent


def test_a_made_up_event_has_no_place() -> None:
    """`datastorage sink test` ends with a traceback, or its event looks like one of the log."""
    made_up = streamed_event(0, event_hash=None, log_index=None)._replace(place=-1)
    message = syslog_message(made_up, ndjson_line(made_up), FIRST_LOG, 13, "pod-0").decode()
    assert "place=" not in message
    assert 'hash=""' in message


@needs_rsyslog
async def test_an_rsyslog_that_is_killed_loses_nothing(tmp_path: Path, authority: Authority) -> None:
    """A portion counts as delivered that a receiver had not read when it was killed, and is never sent again."""
    chance = random.Random(24)
    with rsyslog.rsyslog(tmp_path / "rsyslog", authority) as receiver:

        async def kill_often() -> None:
            for _ in range(8):
                await asyncio.sleep(chance.uniform(0.1, 0.6))
                receiver.kill()
                receiver.start()

        destination = syslog(receiver.port, authority)
        killing = asyncio.create_task(kill_often())
        end = 0
        while not killing.done():
            await until_delivered(destination, portion(end, end + 100))
            end += 100
        await killing
        # One that is killed while it writes leaves a part of a message, and the next one begins in the same line.
        parts = b"\n".join(receiver.lines()).split(b'{"event_id":')
        whole = [b'{"event_id":' + part.rstrip() for part in parts if part.rstrip().endswith(b'"sealed":true}')]
        positions = [orjson.loads(one)["log_index"] for one in whole]
    first_times = list(dict.fromkeys(positions))
    assert first_times == list(range(end))


@needs_rsyslog
async def test_a_receiver_that_wants_a_certificate(tmp_path: Path, authority: Authority) -> None:
    """The receiver refuses the messages although their sender has what it asks for, or accepts them without."""
    for name in ("client", "other"):
        (tmp_path / name).mkdir()
        authority.write_pair(tmp_path / name, name)

    def pair(name: str) -> dict[str, Path]:
        return {"cert_file": tmp_path / name / "tls.crt", "key_file": tmp_path / name / "tls.key"}

    with rsyslog.rsyslog(tmp_path / "rsyslog", authority, client="client") as receiver:
        await until_delivered(syslog(receiver.port, authority, **pair("client")), portion(0, 1))
        for without in (syslog(receiver.port, authority), syslog(receiver.port, authority, **pair("other"))):
            with pytest.raises(OSError):
                await without.deliver(portion(1, 2))
        assert len(receiver.lines()) == 1


Behaviour = Callable[[socket.socket, ssl.SSLContext, list[bytes]], None]
"""What a receiver does with one connection; it appends what it has read."""


def reads_all(connection: socket.socket, context: ssl.SSLContext, received: list[bytes]) -> None:
    with context.wrap_socket(connection, server_side=True) as tls:
        while data := tls.recv(65536):
            received.append(data)


def reads_all_and_says_goodbye(connection: socket.socket, context: ssl.SSLContext, received: list[bytes]) -> None:
    with context.wrap_socket(connection, server_side=True) as tls:
        while data := tls.recv(65536):
            received.append(data)
        tls.unwrap()


def goes_after_a_part(connection: socket.socket, context: ssl.SSLContext, received: list[bytes]) -> None:
    with context.wrap_socket(connection, server_side=True) as tls:
        received.append(tls.recv(100))


def says_goodbye_after_a_part(connection: socket.socket, context: ssl.SSLContext, received: list[bytes]) -> None:
    with context.wrap_socket(connection, server_side=True) as tls:
        received.append(tls.recv(100))
        with suppress(OSError):
            tls.settimeout(0.05)
            tls.unwrap()


def says_goodbye_at_once(connection: socket.socket, context: ssl.SSLContext, received: list[bytes]) -> None:
    del received
    with context.wrap_socket(connection, server_side=True) as tls, suppress(OSError):
        tls.settimeout(0.001)
        tls.unwrap()


def resets(connection: socket.socket, context: ssl.SSLContext, received: list[bytes]) -> None:
    with context.wrap_socket(connection, server_side=True) as tls:
        received.append(tls.recv(65536))
        tls.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def never_begins(connection: socket.socket, context: ssl.SSLContext, received: list[bytes]) -> None:
    del context, received
    with connection:
        while connection.recv(65536):
            pass


def never_reads(connection: socket.socket, context: ssl.SSLContext, received: list[bytes]) -> None:
    del received
    with context.wrap_socket(connection, server_side=True) as tls:
        while not stopped.wait(0.05):
            if tls.fileno() < 0:
                return


def never_closes(connection: socket.socket, context: ssl.SSLContext, received: list[bytes]) -> None:
    with context.wrap_socket(connection, server_side=True, suppress_ragged_eofs=False) as tls:
        with suppress(OSError):
            while data := tls.recv(65536):
                received.append(data)
        stopped.wait(30)


stopped = threading.Event()


@contextmanager
def receiver(
    tmp_path: Path, authority: Authority, *behaviours: Behaviour, address: str = "127.0.0.1"
) -> Iterator[tuple[int, list[list[bytes]]]]:
    """Its port, and what it has read over each connection. It behaves one way in each, and the last way in all others."""
    authority.write_pair(tmp_path, "localhost")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "tls.crt", tmp_path / "tls.key")
    received: list[list[bytes]] = []
    stopped.clear()

    def serve() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            received.append([])
            with suppress(OSError):
                behaviours[min(len(received), len(behaviours)) - 1](connection, context, received[-1])

    with socket.create_server((address, 0)) as listening:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listening.getsockname()[1], received
        finally:
            stopped.set()
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


def messages(chunks: list[bytes]) -> list[bytes]:
    """Messages by their octet counts."""
    data, found = b"".join(chunks), []
    while data:
        size, _, data = data.partition(b" ")
        found.append(data[: int(size)])
        data = data[int(size) :]
    return found


@pytest.mark.parametrize("behaviour", [reads_all, reads_all_and_says_goodbye])
@pytest.mark.parametrize("size", [1, 3_000])
async def test_a_receiver_that_has_read_all(
    tmp_path: Path, authority: Authority, behaviour: Behaviour, size: int
) -> None:
    """A portion is delivered for ever since nobody understands that it has been read, or its octets are counted wrongly."""
    with receiver(tmp_path, authority, behaviour) as (port, received):
        destination = syslog(port, authority)
        await destination.deliver(portion(0, size))
        await destination.deliver(delivery(streamed_event(size, {"x": LONG})))
        await destination.close()
    first, second = received
    assert [orjson.loads(one.partition(b"] ")[2])["log_index"] for one in messages(first)] == list(range(size))
    assert orjson.loads(messages(second)[0].partition(b"] ")[2])["event_data"] == {"x": LONG}


@pytest.mark.parametrize("behaviour", [goes_after_a_part, says_goodbye_after_a_part, says_goodbye_at_once, resets])
@pytest.mark.parametrize("size", [1, 3_000])
async def test_a_receiver_that_goes_before_it_has_read_all(
    tmp_path: Path, authority: Authority, behaviour: Behaviour, size: int
) -> None:
    """A portion counts as delivered that was cut off, since the receiver's goodbye looked like an answer."""
    with receiver(tmp_path, authority, behaviour, reads_all) as (port, received):
        destination = syslog(port, authority)
        with pytest.raises(OSError):
            await destination.deliver(portion(0, size))
        await destination.deliver(portion(0, size))
    assert len(messages(received[1])) == size


@pytest.mark.parametrize("behaviour", [never_begins, never_reads, never_closes])
async def test_a_receiver_that_never_answers(tmp_path: Path, authority: Authority, behaviour: Behaviour) -> None:
    """A receiver that hangs stops its sink for ever."""
    with receiver(tmp_path, authority, behaviour) as (port, _):
        with pytest.raises(TimeoutError):
            await syslog(port, authority, timeout_ms=300).deliver(portion(0, 20_000))
        stopped.set()


async def test_cancelling_ends_the_sending(tmp_path: Path, authority: Authority) -> None:
    """A replica cannot stop while a receiver hangs."""
    with receiver(tmp_path, authority, never_reads) as (port, received):
        sending = asyncio.create_task(syslog(port, authority).deliver(portion(0, 20_000)))

        async def has_begun() -> bool | None:
            return True if received else None

        await eventually(has_begun)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        stopped.set()


async def test_another_receiver_gets_nothing(tmp_path: Path, authority: Authority) -> None:
    """Whoever answers at the address gets the events, whoever has signed for it."""
    (tmp_path / "stranger").mkdir()
    stranger = Authority(tmp_path / "stranger")
    with receiver(tmp_path, stranger, reads_all) as (port, received), pytest.raises(ssl.SSLCertVerificationError):
        await syslog(port, authority).deliver(portion(0, 1))
    assert not any(received)
    with (
        receiver(tmp_path, authority, reads_all, address="127.0.0.2") as (port, received),
        pytest.raises(ssl.SSLCertVerificationError, match="mismatch"),
    ):
        await syslog(port, authority, host="127.0.0.2").deliver(portion(0, 1))
    assert not any(received)


async def test_nobody_listens(authority: Authority) -> None:
    """A receiver that is away ends the deliverer with an error that it does not know."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    with pytest.raises(OSError):
        await syslog(port, authority).deliver(portion(0, 1))


async def test_files_that_are_no_certificates(tmp_path: Path, authority: Authority) -> None:
    """An operator is not told which files are wrong, or the terminal is asked for a password."""
    (tmp_path / "not.pem").write_text("nothing")
    for files in (
        {"ca_file": tmp_path / "not.pem"},
        {"ca_file": tmp_path / "missing"},
        {"cert_file": tmp_path / "not.pem", "key_file": tmp_path / "not.pem"},
    ):
        with pytest.raises(NotDelivered, match="ca_file, cert_file or key_file"):
            await syslog(1, authority, **files).deliver(portion(0, 1))
