"""The pages on destinations: what they have an operator write is what the service accepts."""

from pathlib import Path

import pytest
import yaml

from app.stream.sink import Sink
from app.stream.sinks import parse_sinks

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ["streams-collector.md", "streams-s3.md", "streams-syslog.md"]


def documented_sink(page: str) -> Sink:
    blocks = (DOCS / page).read_text("utf-8").split("```yaml\n")[1:]
    documents = [yaml.safe_load(block.partition("```")[0]) for block in blocks]
    (document,) = [one for one in documents if "sinks" in one]
    (sink,) = parse_sinks(document, page)
    return sink


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_every_field(page: str) -> None:
    """Whoever copies the example of a page gets an error, or finds a field only by reading the source."""
    text = (DOCS / page).read_text("utf-8")
    own = set(type(documented_sink(page)).model_fields) - set(Sink.model_fields) - {"type"}
    assert {name for name in own if f"`{name}`" not in text} == set()
