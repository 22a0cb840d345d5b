"""The type of sink `s3`: a bucket of an S3-compatible store. Its destination is stream/s3.py."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from app.errors import Fatal
from app.settings import is_loopback
from app.stream.destination import Destination
from app.stream.objects import PARTS_MAX, items_of_parts
from app.stream.portion import Item
from app.stream.sink import Format, Sink, Url


class S3Sink(Sink, frozen=True, extra="forbid"):
    """A bucket in the file of sinks. A portion becomes an object, so it is larger than others, and waits longer."""

    type: Literal["s3"]
    format: Format = "events"
    bucket: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$")
    prefix: str = Field("", pattern=r"^([A-Za-z0-9=_.-]*[A-Za-z0-9=_-][A-Za-z0-9=_.-]*/)*$", max_length=500)
    """Of the keys of all objects; it ends with a slash."""
    region: str = Field("us-east-1", pattern=r"^[a-z0-9-]{1,50}$")
    endpoint: Url | None = None
    """Of a store that is not Amazon's."""
    plaintext: bool = False
    """Whether the endpoint may be http:// on another machine."""
    ca_file: Path | None = None
    """PEM of who signs for the store, trusted beside those whom the system trusts."""
    access_key_file: Path | None = None
    """With secret_key_file. None: the credentials that the pod or the machine has been given."""
    secret_key_file: Path | None = None
    events_max: int = Field(10_000, ge=1, le=10_000)
    bytes_max: int = Field(16 * 1024 * 1024, ge=1024, le=64 * 1024 * 1024)
    wait_ms: int = Field(300_000, ge=0, le=3_600_000)
    timeout_ms: int = Field(60_000, ge=100, le=600_000)
    """For a request."""

    @model_validator(mode="after")
    def _is_safe(self) -> "S3Sink":
        if (self.access_key_file is None) != (self.secret_key_file is None):
            raise ValueError("access_key_file and secret_key_file: expected both or neither")
        endpoint = urlsplit(self.endpoint or "https:")
        if endpoint.scheme == "http" and not self.plaintext and not is_loopback(endpoint.hostname or ""):
            raise ValueError(
                "endpoint: expected https://, since everybody on the way could read the events; or set plaintext: true"
            )
        return self

    def destination(self) -> Destination:
        try:
            from app.stream.s3 import S3  # noqa: PLC0415 -- an extra, imported only if it is used
        except ImportError:
            raise Fatal(
                f"The sink {self.name} is of type s3, which needs more packages: pip install 'datastorage[s3]'."
            ) from None
        return S3(self)

    def items_at_once(self, items: Sequence[Item]) -> int:
        return items_of_parts(items, PARTS_MAX)

    @property
    def address(self) -> str:
        where = f" at {urlsplit(self.endpoint).netloc}" if self.endpoint else ""
        return f"s3://{self.bucket}/{self.prefix}{where}"
