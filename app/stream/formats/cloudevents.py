"""Items of a stream as CloudEvents 1.0 (docs/cloudevents.md): what the service sends, it reads as an equal event when it is posted again."""

from typing import Any
from urllib.parse import quote

import orjson

from app.events.canonical import loads_strict
from app.events.cloudevents import ATTRIBUTE_OF_MEMBER
from app.events.log import LOG_POSITIONS, Log
from app.events.record import time_text
from app.export.file import MEMBERS
from app.stream.place import parse_place, place_text
from app.stream.portion import Absent, Checkpoint, Item, Seam, StreamedEvent
from app.stream.records import control_id, control_record

CONTROL_TYPES = "datastorage.stream."
"""What the types of items begin with that are no events; the rest is the member `stream` of their record."""
PROOF_ATTRIBUTES = {
    "log": "eventlog",
    "chain_index": "eventchainposition",
    "event_hash": "eventhash",
    "previous_event_hash": "eventprevioushash",
    "payload_salt": "eventsalt",
    "payload_commitment": "eventcommitment",
    "recorded_at": "recordedtime",
    "trace_id": "eventtraceid",
    "span_id": "eventspanid",
    "resource_name": "eventresourcename",
    "event_metadata": "eventmetadata",
}
"""By member of an exported event: the attribute from which its hash can be recomputed. Whoever posts the event cannot set it."""

_ATTRIBUTES = ATTRIBUTE_OF_MEMBER | PROOF_ATTRIBUTES
_DATE = len("2026-01-31")


def render(item: Item, log: Log) -> dict[str, Any]:
    """The CloudEvent of an item, in JSON's structured mode, for orjson. `log` is the last log that is known."""
    return _event(item) if isinstance(item, StreamedEvent) else _control(item, log)


def _event(item: StreamedEvent) -> dict[str, Any]:
    event = item.event
    rendered: dict[str, Any] = {
        "specversion": "1.0",
        "source": _source(event["log"]),
        "datacontenttype": "application/json",
    }
    empty = []
    for member, attribute in _ATTRIBUTES.items():
        value = event["event_version" if member == "version" else member]
        if value == "":  # CloudEvents have no empty attributes
            empty.append(member)
        elif value is not None:
            rendered[attribute] = value
    if empty:
        rendered["eventempty"] = " ".join(empty)
    for attribute in ("time", "recordedtime"):
        rendered[attribute] = time_text(rendered[attribute])
    for attribute in {"id", "causationid"} & rendered.keys():
        rendered[attribute] = str(rendered[attribute])
    if "eventparentdate" in rendered:  # where it is posted, it is a time
        rendered["eventparentdate"] = f"{rendered['eventparentdate']}T00:00:00Z"
    if "eventmetadata" in rendered:  # an attribute is no object
        rendered["eventmetadata"] = orjson.dumps(rendered["eventmetadata"]).decode()
    if item.place >= 0:  # a made-up event has none
        rendered["eventplace"] = place_text(item.place)
    return rendered


def _control(item: Absent | Seam | Checkpoint, log: Log) -> dict[str, Any]:
    record = control_record(item)
    return {
        "specversion": "1.0",
        "id": control_id(record),
        "source": _source(log.name_of(item[0] // LOG_POSITIONS)),
        "type": CONTROL_TYPES + record["stream"],
        "datacontenttype": "application/json",
        "eventplace": place_text(item[0]),
        "data": record,
    }


def _source(log: str) -> str:
    """A URI reference that names a log."""
    return f"/datastorage/logs/{quote(log, safe='')}"


def parse(sent: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
    """What render() has made a CloudEvent of: the members of an exported event, or a record that has `stream`; and the text of its place.

    Members that it does not have are None. LookupError, TypeError or ValueError if it is no such CloudEvent.
    """
    place = sent.get("eventplace")
    if sent["type"].startswith(CONTROL_TYPES):
        return sent["data"] | {"stream": sent["type"].removeprefix(CONTROL_TYPES)}, place
    event: dict[str, Any] = dict.fromkeys(MEMBERS) | {
        member: sent.get(attribute) for member, attribute in _ATTRIBUTES.items()
    }
    event |= dict.fromkeys(sent.get("eventempty", "").split(), "")
    event["event_version"] = event.pop("version")
    event["event_date"] = event["event_timestamp"][:_DATE]  # it has no attribute of its own
    event["log_index"] = None if place is None else parse_place(place) % LOG_POSITIONS
    if event["parent_event_date"] is not None:
        event["parent_event_date"] = event["parent_event_date"][:_DATE]
    if event["event_metadata"] is not None:
        event["event_metadata"] = loads_strict(event["event_metadata"])
    return event, place
