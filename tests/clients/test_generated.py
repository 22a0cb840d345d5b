"""A Python client, generated from the OpenAPI document as the service serves it. Those for Go are in tests/go_client."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx

from app.openapi import document
from tests.events import make_event
from tests.services import Service

USE = """
import json, sys
from generated.api.events import post_event
from generated.api.query import list_events
from generated.client import Client
from generated.models import PostedEvent

client = Client(base_url=sys.argv[1])
event = PostedEvent.from_dict(json.loads(sys.argv[2]))
created = post_event.sync_detailed(client=client, body=event)
assert created.status_code == 201, created.content
(found,) = list_events.sync(client=client, correlation_id=event.correlation_id).data
assert found.event_id == created.parsed.event_id
"""


def test_a_client_is_generated_from_what_is_served(service: Callable[..., Service], tmp_path: Path) -> None:
    """The served document differs from the committed one, or generators leave out what it says of posts."""
    url = service().url
    served = httpx.get(f"{url}/openapi.json").content
    assert json.loads(served) == json.loads(document())
    file = tmp_path / "served.json"
    file.write_bytes(served)
    config = tmp_path / "config.yaml"
    config.write_text("post_hooks: []")
    generator = [str(Path(sys.executable).parent / "openapi-python-client"), "generate", "--meta", "none"]
    files = ["--path", str(file), "--config", str(config), "--output-path", str(tmp_path / "generated")]
    subprocess.run([*generator, *files], check=True, capture_output=True)
    subprocess.run([sys.executable, "-c", USE, url, json.dumps(make_event())], cwd=tmp_path, check=True)
