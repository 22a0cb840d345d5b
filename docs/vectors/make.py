"""Completes vectors: `python docs/vectors/make.py FILE…` computes every derived member from the inputs, in place."""
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
from app.events.record import commitment, committed_jcs, record, record_leaf_hash

LOG = "example.test/datastorage"
_AS_ASYNCPG_RETURNS_IT: dict[str, Callable[[Any], Any]] = {
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
    heads: dict[str, str] = {}
    return vector | {"events": [_completed(event, heads) for event in vector["events"]]}


def _completed(event: dict[str, Any], heads: dict[str, str]) -> dict[str, Any]:
    row: dict[str, Any] = parse(event["row"].encode()).value
    for name, convert in _AS_ASYNCPG_RETURNS_IT.items():
        if row.get(name) is not None:
            row[name] = convert(row[name])
    correlation_id = row["correlation_id"]
    positions = {name: event[name] for name in ("log_index", "chain_index")}
    salt, committed = bytes.fromhex(event["payload_salt"]), committed_jcs(row)
    hashed = record(
        row | positions | {"previous_event_hash": heads.get(correlation_id)}, LOG, commitment(salt, committed)
    )
    heads[correlation_id] = record_leaf_hash(hashed).hex()
    return {
        "row": event["row"],
        "payload_salt": event["payload_salt"],
        **positions,
        "committed_jcs": committed.decode(),
        "commitment": commitment(salt, committed).hex(),
        "record_jcs": orjson.dumps(hashed).decode(),
        "event_hash": heads[correlation_id],
    }


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        path.write_text(json.dumps(completed(json.loads(path.read_text())), indent=1) + "\n")
