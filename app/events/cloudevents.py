"""CloudEvents 1.0 as another envelope: which ADR-034 member each attribute becomes (docs/cloudevents.md has the table).

The result is an item as a controller would post it; it goes through the same checks as every other item. The `cloudevents`
package is not used: it parses numbers as doubles, which would alter payloads (docs/decisions/0009).
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Any, Literal, NotRequired
from urllib.parse import unquote_to_bytes
from uuid import NAMESPACE_URL, uuid5

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from app.errors import BadRequest
from app.events.canonical import kind_of
from app.events.catalog import Catalog
from app.events.envelope import Category, DateTime, Filled, Name50, Name100, Name255, Outcome, parse_uuid
from app.events.explain import bad_fields, explain, rename_pointers

STRUCTURED = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"
_ENVELOPE_VERSION = "1.0"
_ACTOR_MAX = 255

Headers = Sequence[tuple[bytes, bytes]]


@with_config(ConfigDict(strict=True, extra="ignore"))
class CloudEvent(TypedDict):
    """A CloudEvent that can be kept as an audit event. Further attributes are accepted and dropped."""

    specversion: Literal["1.0"]
    id: Annotated[str, Filled, Field(description="a UUID becomes the event_id; else UUIDv5 of source and id does")]
    source: Annotated[str, Filled, Field(description="becomes the actor_id where authid does not say who acted")]
    type: Annotated[Name100, Filled, Field(description="becomes the event_type, of the payload too if it has none")]
    time: DateTime
    correlationid: Annotated[Name255, Filled]
    eventoutcome: Outcome
    eventcategory: NotRequired[Annotated[Category, Field(description="absent: as the catalog has it for the type")]]
    eventaction: NotRequired[Annotated[Name50, Filled, Field(description="absent: the last part of the type")]]
    subject: NotRequired[Annotated[Name255, Field(description="becomes the resource_id")]]
    authtype: NotRequired[Annotated[Name50, Field(description="becomes the actor_type")]]
    authid: NotRequired[Annotated[Name255, Field(description="becomes the actor_id")]]
    causationid: NotRequired[Annotated[str, Filled, Field(description="id of the event that caused this one")]]
    data: Annotated[dict[str, Any], Field(description="the payload, event_data")]


_VALIDATE = TypeAdapter(CloudEvent).validator.validate_python
_ATTRIBUTE_OF_MEMBER = {
    "event_id": "id",
    "event_type": "type",
    "event_timestamp": "time",
    "event_category": "eventcategory",
    "event_action": "eventaction",
    "event_outcome": "eventoutcome",
    "correlation_id": "correlationid",
    "parent_event_id": "causationid",
    "resource_id": "subject",
    "actor_type": "authtype",
    "actor_id": "authid",
    "event_data": "data",
}
"""By member of the ADR-034 envelope: the attribute that it comes from."""
_POINTER = re.compile(r"((?:/\d+)?)/(\w+)(.*)", re.DOTALL)


class CloudEventReader:
    """Converts the CloudEvents of one request: in structured mode, or with `headers` in binary mode."""

    def __init__(self, catalog: Catalog, headers: Headers | None = None) -> None:
        self._catalog = catalog
        self._headers = headers

    def item(self, value: Any, pointer: str) -> tuple[dict[str, Any], dict[str, str]]:
        """The ADR-034 item at `pointer`, and by pointer the faults of the CloudEvent that the ADR-034 checks would not find."""
        faults: dict[str, str] = {}
        if self._headers is not None:
            event = _attributes_of_headers(self._headers, faults) | {"data": value}
        elif isinstance(value, dict):
            event = {name: attribute for name, attribute in value.items() if attribute is not None}
        else:
            raise bad_fields({pointer: f"expected a CloudEvent, which is an object, got {kind_of(value)}"})
        if "data_base64" in event:
            faults["/data_base64"] = "expected the payload as a JSON object in data"
        try:
            _VALIDATE(event)
        except ValidationError as error:
            faults = explain(error, "") | faults
        item = {member: event[name] for member, name in _ATTRIBUTE_OF_MEMBER.items() if name in event}
        self._complete(item, event, faults)
        return item, {pointer + path: message for path, message in faults.items()}

    def _complete(self, item: dict[str, Any], event: dict[str, Any], faults: dict[str, str]) -> None:
        """Set the members that are not simply an attribute under another name."""
        item["version"] = _ENVELOPE_VERSION
        source, kind, payload = event.get("source"), event.get("type"), event.get("data")
        for member in ("event_id", "parent_event_id"):
            if member in item:
                item[member] = _event_id(source, item[member])
        if isinstance(source, str):
            item.setdefault("actor_id", source[:_ACTOR_MAX])
            if len(source) > _ACTOR_MAX and "authid" not in event:
                faults["/source"] = (
                    f"expected at most {_ACTOR_MAX} characters, or the attribute authid, got {len(source)}"
                )
        if isinstance(kind, str):
            item.setdefault("event_action", kind.rpartition(".")[2])
            if kind in self._catalog.types and (category := self._catalog.types[kind].category):
                item.setdefault("event_category", category)
            if kind in self._catalog.typed and isinstance(payload, dict) and "event_type" not in payload:
                item["event_data"] = {"event_type": kind} | payload

    def with_pointers_as_sent(self, error: BadRequest) -> BadRequest:
        """`error` with pointers into the CloudEvent that the client sent, or names of its headers."""
        return rename_pointers(error, self._pointer_as_sent)

    def _pointer_as_sent(self, pointer: str) -> str:
        match = _POINTER.fullmatch(pointer)
        if match is None:
            return pointer
        index, member, rest = match.groups()
        attribute = _ATTRIBUTE_OF_MEMBER.get(member, member)
        if self._headers is None:
            return f"{index}/{attribute}{rest}"
        return str(rest) if attribute == "data" else f"ce-{attribute}"


def is_binary(headers: Headers) -> bool:
    """Whether these headers declare that the body is the data of a CloudEvent."""
    return any(name == b"ce-specversion" for name, _ in headers)


def _attributes_of_headers(headers: Headers, faults: dict[str, str]) -> dict[str, Any]:
    """The attributes in headers: percent-encoded UTF-8, possibly quoted (CloudEvents' HTTP binding, section 3.1.3.2)."""
    attributes = {}
    for header, value in headers:
        if header.startswith(b"ce-"):
            name = header[3:].decode("latin-1")
            quoted = len(value) > 1 and value[:1] == value[-1:] == b'"'
            raw = re.sub(rb"\\(.)", rb"\1", value[1:-1]) if quoted else value
            try:
                attributes[name] = unquote_to_bytes(raw).decode()
            except UnicodeDecodeError:
                faults[f"/{name}"] = "expected percent-encoded UTF-8"
            else:
                if "\0" in attributes[name]:
                    faults[f"/{name}"] = "expected text without NUL characters"
    return attributes


def _event_id(source: Any, text: Any) -> Any:
    """`text` itself if it is a UUID, else a UUIDv5 of source and id, which together are unique (CloudEvents 1.0)."""
    with suppress(BadRequest, TypeError):
        parse_uuid(text, "")
        return text
    return str(uuid5(NAMESPACE_URL, f"{source}#{text}"))
