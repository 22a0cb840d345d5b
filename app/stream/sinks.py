"""The file of sinks, which DATASTORAGE_SINKS names: YAML, checked whole before any of it counts (docs/streams.md)."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, Field, ValidationError

from app.errors import Fatal
from app.stream.otlp_sink import OtlpSink
from app.stream.s3_sink import S3Sink
from app.stream.sink import Sink
from app.stream.syslog import SyslogSink
from app.stream.webhook import WebhookSink

# A type of sink is one module with a subclass of Sink, and its name here.
AnySink = Annotated[OtlpSink | S3Sink | SyslogSink | WebhookSink, Field(discriminator="type")]


class _File(BaseModel, frozen=True, extra="forbid"):
    sinks: tuple[AnySink, ...] = ()


def read_sinks(path: Path) -> Sequence[Sink]:
    """The sinks of the file at `path`. Fatal names each field that is wrong, what was expected, and never a value."""
    try:
        document = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise Fatal(f"Cannot read the file of sinks: {error}") from None
    except yaml.YAMLError as error:
        raise Fatal(f"The file of sinks {path} is not YAML: {_yaml_fault(error)}") from None
    return parse_sinks({} if document is None else document, str(path))


def parse_sinks(document: Any, file: str) -> Sequence[Sink]:
    """The sinks of a document that was read from `file`, which messages name. Fatal as read_sinks()."""
    try:
        sinks = _File.model_validate(document).sinks
    except ValidationError as error:
        raise Fatal(f"The file of sinks {file} is not valid: {'; '.join(_faults(error))}") from None
    if repeated := [name for name, count in Counter(sink.name for sink in sinks).items() if count > 1]:
        raise Fatal(f"The file of sinks {file} is not valid: sinks have the same name: {', '.join(repeated)}")
    return sinks


def _faults(error: ValidationError) -> list[str]:
    return [f"{_path(fault['loc'])}: {_message(fault)}" for fault in error.errors(include_input=False)]


def _path(location: tuple[int | str, ...]) -> str:
    """As `sinks[1].url`. The type of a sink, which is a part of the location in a union, is left out."""
    steps = [step for number, step in enumerate(location) if number != 2 or location[0] != "sinks"]
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).lstrip(".") or "file"


def _message(fault: Any) -> str:
    if fault["type"] == "extra_forbidden":
        return "there is no such field"
    return str(fault["msg"]).removeprefix("Value error, ")


def _yaml_fault(error: yaml.YAMLError) -> str:
    """Where and what, without the lines around it."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return "it cannot be parsed"
