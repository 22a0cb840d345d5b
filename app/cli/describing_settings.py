"""`datastorage settings`: every setting in its group, its value as one would write it, and what has set it."""

import argparse
import json
from collections.abc import Iterator
from typing import Any

from pydantic import SecretStr

from app.cli import output
from app.cli.output import Output
from app.masking import masked, masked_values
from app.settings import Settings, load, origins, unknown_variables

GROUPS = {
    "database_url": "Postgres",
    "host": "Addresses and processes",
    "auth": "Who may call",
    "tls_dir": "TLS, browsers and the head of requests",
    "body_bytes_max": "Bodies and the inbox",
    "event_types_dir": "Event types and the spool",
    "checkpoint_key_file": "Keys",
    "retention_url": "Retention",
    "checkpoint_file": "The log, its copies, witnesses and timestamps",
    "verifier_events_per_second": "Verification in the background",
    "pool_connections_max": "Reads, time limits and shutdown",
    "log_level": "Logs and traces",
}
"""The first setting of each group; the others follow in the order of Settings."""
_MASK = "***"


def run(arguments: argparse.Namespace) -> None:
    """Show all settings. Whatever may be a credential is masked."""
    settings = load()
    rows = list(_rows(settings))
    with output.shown(arguments) as out:
        if out.is_json:
            out.document(rows)
        else:
            _show(out, rows)
    for told in unknown_variables():
        output.note(told)


def _rows(settings: Settings) -> Iterator[dict[str, Any]]:
    set_by, group = origins(), ""
    for name, field in Settings.model_fields.items():
        group = GROUPS.get(name, group)
        value = getattr(settings, name)
        yield {
            "group": group,
            "variable": f"DATASTORAGE_{name.upper()}",
            "value": None if value is None else as_written(value),
            "set_by": set_by.get(name),
            "description": field.description,
        }


def as_written(value: Any) -> str:
    """A value as its variable would hold it, with *** for what may be a credential."""
    if isinstance(value, SecretStr):
        return _MASK
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | dict):
        return json.dumps(masked_values(value), ensure_ascii=False)
    return masked(str(value))


def _show(out: Output, rows: list[dict[str, Any]]) -> None:
    group = ""
    for row in rows:
        if row["group"] != group:
            group = row["group"]
            out.heading(group)
        value = "  (unset)" if row["value"] is None else f"={row['value']}"
        source = "" if row["set_by"] is None else f"  [set by {row['set_by']}]"
        out.line(f"{row['variable']}{value}{source}", output.GOOD if source else "")
        out.line(f"    {row['description']}")
