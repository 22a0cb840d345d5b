"""Completes vectors: `python docs/vectors/make.py FILE…` computes every member that follows from the inputs, in place."""
# ruff: noqa: INP001 - a script beside the files that it makes

import json
import sys
from collections.abc import Callable
from datetime import date, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import orjson

from app.events.canonical import canonical, parse
from app.events.record import commitment, committed, leaf_hash, record

LOG = "example.test/datastorage"
_AS_ASYNCPG_GIVES_IT: dict[str, Callable[[Any], Any]] = {
    "event_id": UUID,
    "parent_event_id": UUID,
    "event_timestamp": datetime.fromisoformat,
    "recorded_at": datetime.fromisoformat,
    "parent_event_date": date.fromisoformat,
    "event_data": canonical,
    "event_metadata": canonical,
}


def completed(vector: dict[str, Any]) -> dict[str, Any]:
    """The vector with its derived members computed anew. Each correlation's events stand in the order of its chain."""
    ends: dict[str, str] = {}
    return vector | {"events": [_completed(event, ends) for event in vector["events"]]}


def _completed(event: dict[str, Any], ends: dict[str, str]) -> dict[str, Any]:
    row: dict[str, Any] = parse(event["row"].encode()).value
    for name, convert in _AS_ASYNCPG_GIVES_IT.items():
        if row.get(name) is not None:
            row[name] = convert(row[name])
    correlation_id = row["correlation_id"]
    positions = {name: event[name] for name in ("log_index", "chain_index")}
    salt, hidden = bytes.fromhex(event["payload_salt"]), committed(row)
    hashed = record(row | positions | {"previous_event_hash": ends.get(correlation_id)}, LOG, commitment(salt, hidden))
    ends[correlation_id] = leaf_hash(hashed).hex()
    return {
        "row": event["row"],
        "payload_salt": event["payload_salt"],
        **positions,
        "committed_jcs": hidden.decode(),
        "commitment": commitment(salt, hidden).hex(),
        "record_jcs": orjson.dumps(hashed).decode(),
        "event_hash": ends[correlation_id],
    }


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        path.write_text(json.dumps(completed(json.loads(path.read_text())), indent=1) + "\n")
