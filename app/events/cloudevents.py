"""CloudEvents 1.0 as another envelope: which ADR-034 member each attribute becomes (docs/cloudevents.md has the table).

The result is an item as a controller would post it; it goes through the same checks as every other item. The `cloudevents`
package is not used: it parses numbers as doubles, which would alter payloads (docs/decisions/0009).
"""

import re
from base64 import b64decode
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Annotated, Any, Literal, NotRequired
from urllib.parse import unquote_to_bytes
from uuid import NAMESPACE_URL, uuid5

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from app.errors import BadRequest
from app.events.canonical import Document, kind_of, parse
from app.events.catalog import Catalog, CustomType
from app.events.envelope import (
    ZERO_TIME,
    Category,
    DateTime,
    Filled,
    Int32,
    Name20,
    Name50,
    Name100,
    Name253,
    Name255,
    Outcome,
    parse_uuid,
)
from app.events.explain import MISSING, bad_fields, escape, excerpt, explain, rename_pointers
from app.events.foreign import Default

STRUCTURED = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"
_ENVELOPE_VERSION = "1.0"
_ACTOR_MAX = 255

_NAME = re.compile(r"[a-z0-9]+")
_SCHEME = r"[a-z][a-z0-9+.-]*:"
_CHARACTERS = r"(?:[\w.~:/?@!$&'()*+,;=\[\]-]|%[0-9a-f]{2})*"
_REST = rf"{_CHARACTERS}(?:#{_CHARACTERS})?"
_WORD = r"[\w!#$%&'*+.^`|~-]+"
_PARAMETER = rf'[ \t]*;[ \t]*{_WORD}=(?:{_WORD}|"(?:[^"\\]|\\.)*")'
_SYNTAX = {
    name: (re.compile(pattern, re.ASCII | re.IGNORECASE), expected)
    for name, pattern, expected in (
        ("source", rf"(?:{_SCHEME}|(?![^/?#]*:)){_REST}", "a URI reference (RFC 3986)"),
        ("dataschema", _SCHEME + _REST, "a URI with its scheme (RFC 3986)"),
        ("datacontenttype", rf"{_WORD}/{_WORD}(?:{_PARAMETER})*", "a media type (RFC 2046)"),
    )
}
"""The form of attributes whose values are no events' members here, or more than text."""
_JSON_TYPE = re.compile(r"(?:application|text)/(?:[^;]+\+)?json", re.IGNORECASE)

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
    subject: NotRequired[Annotated[Name255, Filled, Field(description="becomes the resource_id")]]
    authtype: NotRequired[Annotated[Name50, Filled, Field(description="becomes the actor_type")]]
    authid: NotRequired[Annotated[Name255, Filled, Field(description="becomes the actor_id")]]
    causationid: NotRequired[Annotated[str, Filled, Field(description="id of the event that caused this one")]]
    eventversion: NotRequired[Annotated[str, Filled, Field(max_length=10, description="absent: 1.0")]]
    eventactorip: NotRequired[Annotated[str, Filled, Field(max_length=45, description="becomes the actor_ip")]]
    eventresourcetype: NotRequired[Annotated[Name100, Filled, Field(description="becomes the resource_type")]]
    eventnamespace: NotRequired[Annotated[Name253, Filled]]
    eventcluster: NotRequired[Annotated[Name255, Filled, Field(description="becomes the cluster_id")]]
    eventseverity: NotRequired[Annotated[Name20, Filled]]
    eventdurationms: NotRequired[Int32]
    eventerrorcode: NotRequired[Annotated[Name50, Filled]]
    eventerrormessage: NotRequired[Annotated[str, Filled]]
    eventretentiondays: NotRequired[Annotated[int, Field(le=2555)]]
    eventsensitive: NotRequired[bool]
    eventparentdate: NotRequired[Annotated[DateTime, Field(description="becomes the parent_event_date")]]
    dataschema: NotRequired[Annotated[str, Filled, Field(description="a URI; checked and dropped")]]
    datacontenttype: NotRequired[Annotated[str, Filled, Field(description="a media type; checked and dropped")]]
    data: NotRequired[
        Annotated[dict[str, Any], Field(description="the payload, event_data; required without data_base64")]
    ]
    data_base64: NotRequired[Annotated[str, Field(description="the payload as JSON in base64, instead of data")]]


_VALIDATE = TypeAdapter(CloudEvent).validator.validate_python
_MINIMAL = {"id": "x", "source": "/x", "type": "x", "time": ZERO_TIME, "correlationid": "x", "eventoutcome": "success"}


def _attribute_check(name: str) -> Callable[[Any], object]:
    return lambda value: _VALIDATE({"specversion": "1.0", **_MINIMAL, name: value})


ATTRIBUTE_OF_MEMBER = {
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
    "version": "eventversion",
    "actor_ip": "eventactorip",
    "resource_type": "eventresourcetype",
    "namespace": "eventnamespace",
    "cluster_id": "eventcluster",
    "severity": "eventseverity",
    "duration_ms": "eventdurationms",
    "error_code": "eventerrorcode",
    "error_message": "eventerrormessage",
    "retention_days": "eventretentiondays",
    "is_sensitive": "eventsensitive",
    "parent_event_date": "eventparentdate",
}
"""By member of the ADR-034 envelope: the attribute that it comes from."""
ATTRIBUTE_CHECKS = {
    name: _attribute_check(name)
    for name in {*ATTRIBUTE_OF_MEMBER.values()}
    - {"id", "type", "data", "eventdurationms", "eventretentiondays", "eventsensitive"}
}
"""By attribute that an event of the operator's types may have by default: what raises ValidationError for a wrong value."""
_OF_TEXT: dict[str, Callable[[str], Any]] = {
    "eventdurationms": int,
    "eventretentiondays": int,
    "eventsensitive": {"true": True, "false": False}.__getitem__,
}
"""Attributes that are no text: what they are by the text of their headers."""
_POINTER = re.compile(r"((?:/\d+)?)/(\w+)(.*)", re.DOTALL)


class CloudEventReader:
    """Converts the CloudEvents of one request: in structured mode, or with `headers` in binary mode."""

    def __init__(self, catalog: Catalog, headers: Headers | None = None) -> None:
        self._catalog = catalog
        self._headers = headers
        self._in_base64: set[str] = set()
        """Pointers of the events whose payload came as data_base64."""
        self._misnamed: set[str] = set()
        """Pointers of attributes with names that CloudEvents do not have: they stand as they were sent."""

    def item(self, sent: Document, pointer: str) -> tuple[Document, dict[str, str]]:
        """The ADR-034 item at `pointer`, and by pointer the faults of the CloudEvent that the ADR-034 checks would not find."""
        faults: dict[str, str] = {}
        payload = Document(None, plain=True, depth=0)
        if self._headers is not None:
            event = _attributes_of_headers(self._headers, faults) | {"data": sent.value}
        elif isinstance(sent.value, dict):
            event = {name: attribute for name, attribute in sent.value.items() if attribute is not None}
            if "data_base64" in event and (decoded := _decode_data(event, faults)):
                self._in_base64.add(pointer)
                event["data"], payload = decoded.value, decoded
        else:
            raise bad_fields({pointer: f"expected a CloudEvent, which is an object, got {kind_of(sent.value)}"})
        defaults = self._defaults_of(event)
        event = {name: value for name, one in defaults.items() if (value := one.of(event)) is not None} | event
        self._check(event, pointer, faults)
        for name in defaults.keys() - event.keys():
            if faults.get(f"/{name}") == MISSING:
                faults[f"/{name}"] = f"{MISSING}, and nothing at {' or '.join(defaults[name].pointers)} stands for it"
        item = {member: event[name] for member, name in ATTRIBUTE_OF_MEMBER.items() if name in event}
        self._complete(item, event, faults)
        # One level more: in binary mode the body is the payload alone.
        document = Document(item, sent.plain and payload.plain, max(sent.depth, payload.depth) + 1)
        return document, {pointer + path: message for path, message in faults.items()}

    def _defaults_of(self, event: dict[str, Any]) -> Mapping[str, Default]:
        """What the operator's file says of the event's type, if it is one of the operator's."""
        kind = event.get("type")
        registered = self._catalog.types.get(kind) if isinstance(kind, str) else None
        return registered.defaults if isinstance(registered, CustomType) else {}

    def _check(self, event: dict[str, Any], pointer: str, faults: dict[str, str]) -> None:
        """Add the faults of names and values of attributes, those that are dropped too."""
        for name in event.keys() - ({"data"} if self._headers is not None else {"data", "data_base64"}):
            if _NAME.fullmatch(name) is None:
                path = f"/{escape(name)}"
                self._misnamed.add(pointer + path)
                faults[path] = "expected an attribute whose name has only lower-case letters and digits"
        try:
            _VALIDATE(event)
        except ValidationError as error:
            for path, message in explain(error, "").items():
                faults.setdefault(path, message)
        for name, (pattern, expected) in _SYNTAX.items():
            value = event.get(name, "")
            if isinstance(value, str) and value and pattern.fullmatch(value) is None:
                faults[f"/{name}"] = f"expected {expected}, got {excerpt(value)}"
        if not {"data", "data_base64"} & event.keys():
            faults["/data"] = MISSING

    def _complete(self, item: dict[str, Any], event: dict[str, Any], faults: dict[str, str]) -> None:
        """Set the members that are not simply an attribute under another name."""
        item.setdefault("version", _ENVELOPE_VERSION)
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
        attribute = member if pointer in self._misnamed else ATTRIBUTE_OF_MEMBER.get(member, member)
        if self._headers is not None:
            return str(rest) if attribute == "data" else f"ce-{attribute}{rest}"
        if attribute == "data" and index in self._in_base64:
            attribute = "data_base64"
        return f"{index}/{attribute}{rest}"


def is_binary(headers: Headers) -> bool:
    """Whether these headers declare that the body is the data of a CloudEvent."""
    return any(name == b"ce-specversion" for name, _ in headers)


def is_json(media_type: str) -> bool:
    """Whether data of this media type is JSON; it is where none is declared (CloudEvents' HTTP binding, section 3.1.1)."""
    return not media_type or _JSON_TYPE.fullmatch(media_type.partition(";")[0].strip()) is not None


def _decode_data(event: dict[str, Any], faults: dict[str, str]) -> Document | None:
    """The JSON in the event's data_base64. None, and a fault, if it is not that."""
    text, media_type = event["data_base64"], event.get("datacontenttype", "")
    fault = ""
    if "data" in event:
        fault = "expected data or data_base64, got both"
    elif isinstance(media_type, str) and not is_json(media_type):
        fault = f"expected data whose datacontenttype is JSON, got {excerpt(media_type)}"
    elif isinstance(text, str):
        try:
            return parse(b64decode(text, validate=True))
        except ValueError:
            fault = f"expected base64, got {excerpt(text)}"
        except BadRequest as error:
            fault = f"expected JSON in base64: {error.detail}"
    if fault:
        faults["/data_base64"] = fault
    return None


def _attributes_of_headers(headers: Headers, faults: dict[str, str]) -> dict[str, Any]:
    """The attributes in headers: percent-encoded UTF-8, possibly quoted (CloudEvents' HTTP binding, section 3.1.3.2)."""
    attributes: dict[str, Any] = {}
    for header, value in headers:
        if header.startswith(b"ce-"):
            name = header[3:].decode("latin-1")
            if name == "data":
                faults["/data"] = "expected the data here, not in the header ce-data"
            quoted = len(value) > 1 and value[:1] == value[-1:] == b'"'
            raw = re.sub(rb"\\(.)", rb"\1", value[1:-1]) if quoted else value
            try:
                attributes[name] = unquote_to_bytes(raw).decode()
            except UnicodeDecodeError:
                faults[f"/{name}"] = "expected percent-encoded UTF-8"
            else:
                if "\0" in attributes[name]:
                    faults[f"/{name}"] = "expected text without NUL characters"
    for name in _OF_TEXT.keys() & attributes.keys():
        with suppress(ValueError, KeyError):  # what is neither is refused as the text that it is
            attributes[name] = _OF_TEXT[name](attributes[name])
    return attributes


def _event_id(source: Any, text: Any) -> Any:
    """`text` itself if it is a UUID, else a UUIDv5 of source and id, which together are unique (CloudEvents 1.0)."""
    with suppress(BadRequest, TypeError):
        parse_uuid(text, "")
        return text
    return str(uuid5(NAMESPACE_URL, f"{source}#{text}"))
