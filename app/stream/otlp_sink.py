"""The type of sink `otlp`: an OpenTelemetry Collector, or whoever else receives OTLP/HTTP logs. Its destination is stream/otlp.py."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from app.errors import Fatal
from app.stream.destination import Destination
from app.stream.sink import Format, HttpSink

_OWN_HEADERS = {"content-type", "content-encoding", "content-length", "transfer-encoding", "host", "connection"}
HeaderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9-]{1,100}$")]


class OtlpSink(HttpSink, frozen=True, extra="forbid"):
    """A receiver of OTLP/HTTP logs in the file of sinks."""

    type: Literal["otlp"]
    format: Format = "events"
    """Of the records' bodies."""
    header_files: dict[HeaderName, Path] = Field(default_factory=dict)
    """By name of a header, such as Authorization: the file with its value."""

    @field_validator("header_files")
    @classmethod
    def _leaves_our_own(cls, files: dict[str, Path]) -> dict[str, Path]:
        if own := [name for name in files if name.lower() in _OWN_HEADERS]:
            raise ValueError(f"{', '.join(own)}: the service sets this header itself")
        return files

    def __hash__(self) -> int:
        return hash((self.name, self.url))  # a mapping has none

    def destination(self) -> Destination:
        try:
            from app.stream.otlp import Otlp  # noqa: PLC0415 -- an extra, imported only if it is used
        except ImportError:
            raise Fatal(
                f"The sink {self.name} is of type otlp, which needs more packages: pip install 'datastorage[otlp]'."
            ) from None
        return Otlp(self)
