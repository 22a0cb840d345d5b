"""What every sink has in the file of sinks, whatever its type: name, filter, where it begins, and how much goes at once."""

from abc import abstractmethod
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, model_validator

from app.query.filter import EventFilter
from app.settings import is_loopback
from app.stream.destination import Destination
from app.stream.place import parse_place
from app.stream.portion import Item

NAME = r"^[a-z0-9-]{1,63}$"
Format = Literal["events", "cloudevents", "ocsf"]


def _start(value: Any) -> Any:
    if isinstance(value, int):
        raise ValueError("expected a place in quotes: YAML reads 1:17 as a number")  # noqa: TRY004 -- pydantic explains these only
    if isinstance(value, str) and value not in {"start", "now"}:
        parse_place(value)
    return value


def _without_credentials(url: str) -> str:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise ValueError("expected a URL, such as https://receiver.example/audit") from None
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("expected a URL that begins with https:// or http:// and names a host")
    if parts.username is not None or parts.password is not None:
        raise ValueError("expected a URL without a user or password: secrets are read from files only")
    return url


def _can_match(events: EventFilter) -> EventFilter:
    """What the API would refuse, or answer with nothing, is refused here too: it would deliver nothing for ever."""
    if events.sealed is False:
        raise ValueError("sealed: expected true or nothing: events that others inserted by SQL are in no log")
    if (events.detail_key is None) != (events.detail_value is None):
        raise ValueError("detail_key and detail_value: expected both or neither")
    if events.zone is not None:
        raise ValueError("zone: expected none: since and until have an offset")
    times: list[tuple[str, datetime | None]] = [("since", events.since), ("until", events.until)]
    if wrong := [name for name, time in times if time is not None and time.tzinfo is None]:
        raise ValueError(f"{wrong[0]}: expected a time with an offset, such as 2026-01-31T12:00:00Z")
    if "\\u0000" in events.model_dump_json():
        raise ValueError("expected texts without NUL, which no event has")
    return events


def _times_as_text(value: Any) -> Any:
    for name in ("since", "until"):
        if isinstance(value, dict) and (isinstance(time := value.get(name), int | float) or str(time).isdecimal()):
            raise ValueError(f"{name}: expected a time with an offset, such as 2026-01-31T12:00:00Z")
    return value


Filter = Annotated[EventFilter, BeforeValidator(_times_as_text), AfterValidator(_can_match)]
"""Without a bound `q` is accepted, unlike on a page: each event is read once, when it comes."""
Start = Annotated[str, BeforeValidator(_start)]
"""`start`, `now`, or the text of a place."""
Url = Annotated[str, AfterValidator(_without_credentials)]


class Sink(BaseModel, frozen=True, extra="forbid"):
    """One entry of the file. A type of sink adds its own fields, and `type: Literal[…]`."""

    name: str = Field(pattern=NAME)
    filter: Filter = EventFilter(include="all")
    start: Start = Field("now", alias="from")
    """Where a sink begins that has no cursor yet."""
    events_max: int = Field(500, ge=1, le=10_000)
    """Of a portion."""
    bytes_max: int = Field(1024 * 1024, ge=1024, le=64 * 1024 * 1024)
    """Of the payloads of a portion; a single event may have more."""
    events_per_second: int | None = Field(None, ge=1)
    wait_ms: int = Field(0, ge=0, le=3_600_000)
    """How long a portion that is not full waits for more events."""

    @abstractmethod
    def destination(self) -> Destination:
        """The destination, which opens nothing yet. What its library needs is imported here. Fatal if an extra is not installed."""

    def items_at_once(self, items: Sequence[Item]) -> int:
        """How many of the first items of a portion go at once, whatever `events_max` says."""
        return len(items)

    @property
    @abstractmethod
    def address(self) -> str:
        """Where it delivers to, as people are shown it: without path, query and credentials."""


class HttpSink(Sink, frozen=True, extra="forbid"):
    """A sink whose destination is reached by HTTP."""

    url: Url
    plaintext: bool = False
    """Whether the URL may be http:// to another machine."""
    ca_file: Path | None = None
    """PEM of who signs for the destination; None: whom the system trusts."""
    timeout_ms: int = Field(10_000, ge=100, le=300_000)

    @property
    def address(self) -> str:
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}"

    @model_validator(mode="after")
    def _is_encrypted(self) -> "HttpSink":
        parts = urlsplit(self.url)
        if parts.scheme == "http" and not self.plaintext and not is_loopback(parts.hostname or ""):
            raise ValueError(
                "url: expected https://, since everybody on the way could read the events; or set plaintext: true"
            )
        return self
