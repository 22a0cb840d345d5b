"""Items as lines: one JSON object each, in the format that a sink asks for."""

from typing import Literal

import orjson

from app.events.log import Log
from app.stream.formats import cloudevents, ocsf
from app.stream.portion import Item
from app.stream.records import ndjson_line

Format = Literal["events", "cloudevents", "ocsf"]
_OPTIONS = orjson.OPT_APPEND_NEWLINE | orjson.OPT_UTC_Z | orjson.OPT_NAIVE_UTC


def format_line(item: Item, form: Format, log: Log) -> bytes:
    """The line of an item, with its end. `log` is the last log that is known."""
    if form == "events":
        return ndjson_line(item)
    rendered = cloudevents.render(item, log) if form == "cloudevents" else ocsf.render(item, log)
    return orjson.dumps(rendered, option=_OPTIONS)
