"""The destination `syslog`: each item as a message of RFC 5424, over TLS with octet counting as RFC 5425 fixes it.

Syslog has no acknowledgement. A portion counts as delivered when the receiver has read all of it: it is sent over a connection of its
own, which is then closed in order, and the receiver has to close its side after what it has read, and not by a reset. What the
receiver does with the messages afterwards, nobody says (docs/streams.md).
"""

import asyncio
import logging
import re
import socket
import ssl
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from app.errors import Fatal
from app.events.log import LOG_POSITIONS, Log
from app.events.record import time_text
from app.stream.confirmed import connect, send_and_close
from app.stream.destination import Delivery, NotDelivered
from app.stream.formats.lines import Format, format_line
from app.stream.place import place_text
from app.stream.portion import Item, StreamedEvent
from app.stream.records import control_record
from app.stream.severity import syslog_severity
from app.stream.sink import Sink
from app.watched_file import WatchedFiles

FACILITIES = {"authpriv": 10, "audit": 13, **{f"local{n}": 16 + n for n in range(8)}}
SD_ID = "datastorage@32473"
"""32473 is the number that RFC 5612 reserves for those who have none of their own."""
_MESSAGE_ID = re.compile(r"[\x21-\x7e]{1,32}")
_SD_ESCAPED = re.compile(r'["\\\]]')
_NOT_ASCII = re.compile(r"[^\x00-\x7e]")

log = logging.getLogger(__name__)


class SyslogSink(Sink, frozen=True, extra="forbid"):
    """A receiver of syslog in the file of sinks."""

    type: Literal["syslog"]
    host: str = Field(min_length=1, max_length=253)
    port: int = Field(6514, ge=1, le=65535)
    ca_file: Path | None = None
    """PEM of who signs for the receiver; None: whom the system trusts."""
    cert_file: Path | None = None
    """PEM of the certificate that the receiver asks for; with key_file."""
    key_file: Path | None = None
    facility: Literal[
        "audit", "authpriv", "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7"
    ] = "audit"
    hostname: str | None = Field(None, pattern=r"^[\x21-\x7e]{1,255}$")
    """HOSTNAME of the messages; None: that of the machine."""
    format: Format = "events"
    wait_ms: int = Field(1_000, ge=0, le=3_600_000)
    timeout_ms: int = Field(30_000, ge=100, le=300_000)
    """Of a portion, from the connecting until the receiver has read all."""

    @model_validator(mode="after")
    def _has_whole_pair(self) -> "SyslogSink":
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file: expected both or neither")
        return self

    def destination(self) -> "Syslog":
        return Syslog(self)

    @property
    def address(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"syslog+tls://{host}:{self.port}"


class Syslog:
    """A receiver of syslog. Nothing stays open between portions."""

    def __init__(self, sink: SyslogSink) -> None:
        self._sink = sink
        self._hostname = sink.hostname or socket.gethostname() or "-"
        self._context: WatchedFiles[ssl.SSLContext] | None = None

    async def deliver(self, delivery: Delivery) -> None:
        """Return when the receiver has read all messages of the portion."""
        data = await asyncio.to_thread(self._data, delivery)
        try:
            context = await asyncio.to_thread(self._current_context)
        except OSError as error:  # ssl.SSLError is one
            raise NotDelivered(f"ca_file, cert_file or key_file cannot be used: {error}") from None
        async with asyncio.timeout(self._sink.timeout_ms / 1000):
            connection = await connect(self._sink.host, self._sink.port)
            await send_and_close(connection, context, self._sink.host, data)

    async def close(self) -> None:
        """Nothing is open."""

    def _current_context(self) -> ssl.SSLContext:
        """The context of the files as they are now. OSError if they cannot be used when they are first read."""
        if self._context is None:
            files = [
                file for file in (self._sink.ca_file, self._sink.cert_file, self._sink.key_file) if file is not None
            ]
            self._context = WatchedFiles(files, self._read_context, changed=_log_change, failed=_log_failure)
        return self._context.value()

    def _read_context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self._sink.ca_file)
        if self._sink.cert_file is not None:
            context.load_cert_chain(self._sink.cert_file, self._sink.key_file, password=_no_password)
        return context

    def _data(self, delivery: Delivery) -> bytes:
        return b"".join(self._frame(item, delivery) for item in delivery.items)

    def _frame(self, item: Item, delivery: Delivery) -> bytes:
        line = format_line(item, self._sink.format, delivery.log)
        message = syslog_message(item, line, delivery.log, FACILITIES[self._sink.facility], self._hostname)
        return b"%d %b" % (len(message), message)


def syslog_message(item: Item, line: bytes, last_log: Log, facility: int, hostname: str) -> bytes:
    """The message of an item: MSG is its line, which is JSON, without the line's end. Nothing is cut.

    MSG is ASCII, other characters being JSON escapes: so it has neither a byte order mark, which RFC 5424 wants of UTF-8, nor control
    characters, which receivers replace.
    """
    text = _NOT_ASCII.sub(_json_escape, line.decode().rstrip("\n"))
    time = "-"
    members = {"place": place_text(item[0])} if item[0] >= 0 else {}  # a made-up event has none
    members["log"] = last_log.name_of(item[0] // LOG_POSITIONS)
    if isinstance(item, StreamedEvent):
        event = item.event
        time, message_id = time_text(event["event_timestamp"]), _message_id(event)
        members |= {"id": str(event["event_id"]), "type": event["event_type"], "hash": event["event_hash"] or ""}
    else:
        message_id = control_record(item)["stream"]
    data = "".join(f' {name}="{_SD_ESCAPED.sub(_sd_escape, value)}"' for name, value in members.items())
    priority = 8 * facility + syslog_severity(item)
    return f"<{priority}>1 {time} {hostname} datastorage - {message_id} [{SD_ID}{data}] {text}".encode()


def _message_id(event: dict[str, Any]) -> str:
    """MSGID, which has at most 32 characters: the event's type, else its category. The whole type is in the structured data."""
    fitting = (name for name in (event["event_type"], event["event_category"]) if _MESSAGE_ID.fullmatch(name))
    return next(fitting, "-")


def _sd_escape(found: re.Match[str]) -> str:
    return f"\\{found[0]}"


def _json_escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code < 0x10000:
        return f"\\u{code:04x}"
    code -= 0x10000
    return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"


def _log_change(_: ssl.SSLContext) -> None:
    log.info("certificates of a syslog sink reloaded")


def _log_failure(error: Exception) -> None:
    log.warning(
        "changed certificates of a syslog sink cannot be used, the last ones stay in use", extra={"error": str(error)}
    )


def _no_password() -> str:
    raise Fatal("key_file: expected a key without a password")  # else OpenSSL asks the terminal
