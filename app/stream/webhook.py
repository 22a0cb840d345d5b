"""The destination `webhook`: portions as HTTP requests, signed as Standard Webhooks fixes it."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from app.stream.destination import Destination
from app.stream.sink import HttpSink


class WebhookSink(HttpSink, frozen=True, extra="forbid"):
    """A webhook in the file of sinks."""

    type: Literal["webhook"]
    format: Literal["events", "cloudevents"] = "events"
    secret_files: tuple[Path, ...] = Field(min_length=1)
    """Each has one secret, `whsec_…`. Several while a secret rotates: each signs."""

    def destination(self) -> Destination:
        raise NotImplementedError
