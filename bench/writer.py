"""What the writer alone costs: CPU of its process for each event, in large flushes. This says where one log ends.

`python -m bench.writer` prints it: the events are made first, as fronts do, then fed to the writer as they arrive over the link
between processes. The CPU of Postgres is not in it.
"""

import argparse
import asyncio
import os
import statistics
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from time import process_time
from typing import Any, cast

import orjson
from pydantic import SecretStr

from app import schema
from app.embedded import EmbeddedPostgres
from app.events.canonical import parse
from app.events.catalog import Catalog
from app.events.ids import random_event_id
from app.events.log import Log
from app.ingest.accept import Acceptance, accept, check_item
from app.ingest.store import Store
from app.ingest.writer import Writer
from app.main import freeze_objects
from app.pod.messages import Messages, pack
from app.pod.pod_metrics import PodMetrics
from app.pod.writer_link import WriterLink, encode_events
from app.settings import Settings
from bench import bodies

LOG_NAME = "bench/writer"
_DEADLINE_SECONDS = 30.0


class _Link(Messages):
    """The writer's end of a connection, on which bytes arrive that were made before."""

    def __init__(self, link: WriterLink) -> None:
        super().__init__(link.on_message, lambda _: None)
        self._transport = cast("asyncio.Transport", self)
        self.answers = 0
        self.failed = 0
        self.all_answered = asyncio.Event()

    def send(self, message: object) -> None:
        error = cast("tuple[Any, ...]", message)[1]
        self.failed += error is not None
        self.answers -= 1
        if not self.answers:
            self.all_answered.set()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--events", type=int, default=20_000, help="in a round")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="datastorage-bench-") as directory,
        _postgres(Path(directory)) as postgres,
    ):
        for size in (1, 100):
            found = asyncio.run(_measure(postgres.url, options.rounds, options.events, size))
            print(f"writer, {size} events a request: {statistics.median(found):.1f} µs of CPU an event, {found}")


def _postgres(directory: Path) -> EmbeddedPostgres:
    directory.chmod(0o711)  # Postgres runs as another user than root
    return EmbeddedPostgres.start(directory / "data")


async def _measure(url: str, rounds: int, events: int, size: int) -> list[float]:
    """µs of CPU for each event, for each round."""
    await schema.upgrade(url, LOG_NAME)
    settings = Settings(database_url=SecretStr(url), spool=False, inbox_events_max=10 * events)
    writer = Writer(Store(settings, Log(0, LOG_NAME)), settings)
    writer.start()
    link = _Link(WriterLink(lambda: writer, PodMetrics(), ""))
    freeze_objects()  # as the service does: searches for garbage took a quarter of the time
    found = []
    for _ in range(rounds + 1):
        frames = _frames(events, size)
        link.answers, link.all_answered = events // size, asyncio.Event()
        started = process_time()
        for frame in frames:
            link.data_received(frame)
        await link.all_answered.wait()
        found.append(round((process_time() - started) / events * 1e6, 1))
        assert not link.failed
    await writer.close()
    return found[1:]  # the first one connects


def _frames(events: int, size: int) -> Sequence[bytes]:
    """What a front sends for so many events, `size` in each request; about a hundred requests in one frame."""
    now = datetime.now(UTC)
    catalog = Catalog()
    deadline = asyncio.get_running_loop().time() + _DEADLINE_SECONDS
    messages = []
    for number in range(events // size):
        drafts = []
        for _ in range(size):
            document = parse(orjson.dumps(bodies.event("writer")))
            drafts.append(check_item(catalog, document.value, "", plain=document.plain, depth=document.depth))
        made = accept(drafts, [random_event_id(0, os.urandom(10)) for _ in drafts], Acceptance(now, {}, LOG_NAME))
        rest = {"refusals": {}, "may_exist": size > 1, "claim": None}
        messages.append(("submit", number + 1, size, encode_events(made), rest, deadline))
    return [pack(messages[start : start + 100]) for start in range(0, len(messages), 100)]


if __name__ == "__main__":
    main()
