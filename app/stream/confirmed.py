"""Sending over TLS to a receiver that answers nothing, such that it is known afterwards whether it has read everything.

A connection is closed in order: close_notify and the end of the data are sent, and the receiver closes its side after them. If it has
ended, was killed, or has closed the connection by itself before it has read everything, its kernel resets the connection instead, or
never confirms the last bytes. Then the data may have arrived or not.
"""

import asyncio
import fcntl
import socket
import ssl
import struct
import sys
import termios
import threading
from contextlib import suppress


async def connect(host: str, port: int) -> socket.socket:
    """A connection to the first address of the host that accepts one. OSError of the last address, if none does."""
    loop = asyncio.get_running_loop()
    failure = OSError(f"{host} has no address")
    for family, kind, protocol, _, address in await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        connection = socket.socket(family, kind, protocol)
        try:
            connection.setblocking(False)
            await loop.sock_connect(connection, address)
        except OSError as error:
            connection.close()
            failure = error
        except BaseException:
            connection.close()
            raise
        else:
            return connection
    raise failure


async def send_and_close(connection: socket.socket, context: ssl.SSLContext, host: str, data: bytes) -> None:
    """Send `data` and close the connection, and return when the receiver has read all of it. OSError when that is not certain.

    `context` decides whether `host` is the right one. To be called with a timeout: the receiver may take as long as it likes.
    """
    connection.setblocking(True)
    with context.wrap_socket(connection, server_hostname=host, do_handshake_on_connect=False) as tls:
        stop = threading.Event()
        sending = asyncio.ensure_future(asyncio.to_thread(_send, tls, data, stop))
        try:
            await asyncio.shield(sending)
        except asyncio.CancelledError:
            stop.set()
            with suppress(OSError):
                socket.socket.shutdown(tls, socket.SHUT_RDWR)  # wakes the thread, whatever it waits for
            await asyncio.wait([sending])
            sending.exception()
            raise


def _send(tls: ssl.SSLSocket, data: bytes, stop: threading.Event) -> None:
    tls.do_handshake()
    tls.sendall(data)
    try:
        tls.unwrap()
    except OSError as error:
        # Receivers that answer no close_notify close the connection at once, after they have read ours.
        if not isinstance(error, ssl.SSLEOFError) and error.errno:
            raise
    socket.socket.shutdown(tls, socket.SHUT_WR)
    while socket.socket.recv(tls, 4096):
        pass
    pause = 0.001
    # What arrives after the receiver has closed its side, its kernel does not confirm: it resets the connection.
    while _unconfirmed(tls) and not stop.wait(pause):
        pause = min(2 * pause, 0.1)
    if error_number := tls.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        raise OSError(error_number, "the receiver has reset the connection")


def _unconfirmed(tls: ssl.SSLSocket) -> int:
    """Bytes, the end of the data being one, that the receiver's kernel has not confirmed."""
    if sys.platform != "linux":
        return 0
    return int(struct.unpack("i", fcntl.ioctl(tls, termios.TIOCOUTQ, b"\0" * 4))[0])
