"""What the process that reads the archive is asked, and what it answers: messages, each after its length. Needs nothing of the extra."""

import pickle
import struct
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple
from uuid import UUID

from app.events.positions import Positions

Key = tuple[int, bytes]
"""Of an event in the order of time: microseconds since 1970, and its id."""
ALL_READ: Key = (-(2**63), b"")
"""Before all events."""


_LENGTH = struct.Struct(">Q")
HEAD_BYTES = _LENGTH.size
"""Before each message."""


def framed(message: object) -> bytes:
    """A message as it is sent."""
    body = pickle.dumps(message)
    return _LENGTH.pack(len(body)) + body


def body_bytes(head: bytes) -> int:
    """How many bytes follow the HEAD_BYTES of a message. They are its pickle."""
    (size,) = _LENGTH.unpack(head)
    return int(size)


class ArchivePlace(NamedTuple):
    """Where the archive is, as the settings of these names say. The first message."""

    archive_url: str | None
    archive_s3_endpoint: str | None
    archive_s3_region: str
    archive_s3_access_key_file: Path | None
    archive_s3_secret_key_file: Path | None


class PartToRead(NamedTuple):
    """A part, and which of its events are wanted."""

    archive_id: UUID
    location: str
    """URL of its folder."""
    manifest_sha256: str
    month: str
    """As 2026-01."""
    log_id: int
    log_name: str
    wanted: Positions
    erased: Positions
    """Those that were erased since the part was written: nobody sees what the files still have of them."""


class Question(NamedTuple):
    """The events of some parts that meet `conditions`, newest first.

    app/archive/in_order.py answers the same in the order of positions, all of them; there `bytes_max` bounds what it has in memory, and times,
    rows and seconds count for nothing. app/archive/in_time.py answers the oldest ones, `rows` of them, in a few steps.
    """

    conditions: tuple[str, ...]
    """Names in app/query/filter.py's CONDITIONS."""
    arguments: Mapping[str, Any]
    """Of the conditions, as a WHERE clause would have them."""
    prefilter: str
    """Of the condition `q`: a regular expression that what stands in the archive as payload matches, if the event does."""
    after: Key | None
    """Only events before this one in time."""
    down_to: Key
    """Only this one and those after it in time."""
    rows: int
    parts: tuple[PartToRead, ...]
    seconds: float
    """For the search; then it answers what it has."""
    bytes_max: int
    """About how much the payloads of the answer may have together; one event may have more."""
    is_whole: bool = False
    """Whether rows are wanted with all columns, not only those that answers show."""
    payloads_of: frozenset[str] | None = None
    """The types of the events whose payloads are wanted; `{}` stands for those of others. None: all."""


class FoundRow(NamedTuple):
    """One event."""

    key: Key
    archive_id: UUID
    row: dict[str, Any]
    """Columns of the archive that answers show, or all of them."""
    event_hash: str
    """What the row hashes to, in hex; empty if no record can have its values."""


class Found(NamedTuple):
    """The answer."""

    rows: list[FoundRow]
    """Newest first."""
    read_to: Key
    """Events at or above this key were looked at, and are among `rows` if they match; below it nobody has looked. ALL_READ: down to the end."""


class Oldest(NamedTuple):
    """What tells the oldest events that were found, in the order of time: one column each."""

    times: "array[int]"
    """Microseconds since 1970."""
    ids: bytes
    """16 of each."""
    places: "array[int]"
    """In the logs, as place_of() has them."""

    def event_id(self, number: int) -> bytes:
        """Of the n-th event."""
        return self.ids[number * 16 : number * 16 + 16]

    def key(self, number: int) -> Key:
        """Of the n-th event."""
        return self.times[number], self.event_id(number)


class ArchivedLink(NamedTuple):
    """What an event says of its place in its chain."""

    correlation_id: str
    chain_index: int
    previous_event_hash: str
    """In hex; empty for the first one of a chain."""
    is_erased: bool
    place_before: int | None
    """Where the logs have the event before it, if that stands near it in the archive."""


class Refusal(NamedTuple):
    """Why there is no answer."""

    kind: Literal["gone", "damaged", "slow", "away"]
    """Files of a part are not there any more; they are not as the log records them; there was no time for even a month; the storage fails."""
    message: str
