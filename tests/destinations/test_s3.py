"""Objects of a bucket: what has a manifest is whole, a repeat writes the same, and every position is in one of them."""

import gzip
import hashlib
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest

from app.stream.destination import Delivery, NotDelivered
from app.stream.objects import items_of_parts, object_key, parts
from app.stream.portion import Absent, Checkpoint, Item, Seam
from app.stream.records import ndjson_line
from app.stream.s3 import S3
from app.stream.s3_sink import S3Sink
from tests.destinations.bucket import BUCKET, Reply, bucket, moto, stored
from tests.logs import FIRST_LOG
from tests.streamed import BEGIN, NASTY, delivery, portion, streamed_event

ID = "5d41402abc4b2a76b9719d911017c592"


def s3(endpoint: str, tmp_path: Path, **fields: Any) -> S3:
    for name in ("access", "secret"):
        if not (tmp_path / name).exists():
            (tmp_path / name).write_text(f"{name}-key\n")
    keys = {"access_key_file": tmp_path / "access", "secret_key_file": tmp_path / "secret"}
    sink = {"name": "archive", "type": "s3", "bucket": BUCKET, "endpoint": endpoint} | keys | fields
    destination = S3Sink.model_validate(sink).destination()
    assert isinstance(destination, S3)
    return destination


def named(portion: Delivery, portion_id: str = ID) -> Delivery:
    return replace(portion, id=portion_id)


def manifests(objects: dict[str, bytes], prefix: str = "") -> list[dict[str, Any]]:
    """All manifests in the order of their keys, each held to its object."""
    found = [orjson.loads(objects[key]) for key in sorted(objects) if key.startswith(f"{prefix}manifests/")]
    for one in found:
        body = objects[prefix + one["object"]]
        assert (len(body), hashlib.sha256(body).hexdigest()) == (one["bytes"], one["sha256"])
        assert gzip.decompress(body).count(b"\n") == one["lines"]
    return found


def lines(objects: dict[str, bytes], prefix: str = "") -> list[dict[str, Any]]:
    """The lines of all objects that have a manifest."""
    bodies = (objects[prefix + one["object"]] for one in manifests(objects, prefix))
    return [orjson.loads(line) for body in bodies for line in gzip.decompress(body).splitlines()]


async def test_a_portion_is_an_object_for_each_hour(tmp_path: Path) -> None:
    """A reader does not find the events of an hour, or a portion is not what its manifest says."""
    late = streamed_event(205, {"x": NASTY}, recorded_at=BEGIN)  # written after others that were recorded later
    items: list[Item] = [*map(streamed_event, range(205)), late, Checkpoint(200, "note\n")]
    with bucket() as store:
        await s3(store.endpoint, tmp_path, prefix="a/b/").deliver(named(delivery(*items, first=0, end=206)))
    assert set(store.objects) == {
        "a/b/2026/01/31/12/0-000000000000-000000000099-5d41402abc4b.ndjson.gz",
        "a/b/2026/01/31/13/0-000000000100-000000000205-5d41402abc4b.ndjson.gz",
        "a/b/manifests/0-000000000000-5d41402abc4b.json",
        "a/b/manifests/0-000000000100-5d41402abc4b.json",
    }
    first, second = manifests(store.objects, "a/b/")
    assert (first["first"], first["next"], first["events"]) == ("0:0", "0:100", 100)
    assert (second["first"], second["next"], second["events"]) == ("0:100", "0:206", 106)
    assert (first["sink"], first["log"], first["format"]) == ("soc", FIRST_LOG.name, "events")
    assert second["checkpoint"] == "note\n"
    assert lines(store.objects, "a/b/") == [orjson.loads(ndjson_line(item)) for item in items]


async def test_what_is_no_event(tmp_path: Path) -> None:
    """A gap is not told, or a checkpoint without events ends the delivery."""
    next_log = FIRST_LOG.next
    seam = Seam(next_log.place(0), next_log.name, FIRST_LOG.name, 5)
    deliveries = [
        delivery(Absent(0, 5, "purged"), end=5),
        delivery(Checkpoint(5, "note"), first=5, end=5),
        delivery(seam, first=5, end=next_log.place(0)),
        delivery(
            Absent(5, 8, "unknown"), streamed_event(8), Absent(9, 11, "lost"), Checkpoint(3, "note"), first=5, end=11
        ),
    ]
    with bucket() as store:
        destination = s3(store.endpoint, tmp_path)
        for number, one in enumerate(deliveries):
            await destination.deliver(named(one, f"{number:012}"))
    assert set(store.objects) == {
        "others/0-000000000000-000000000004-000000000000.ndjson.gz",
        "manifests/0-000000000000-000000000000.json",
        "others/0-000000000005-000000000005-000000000001.ndjson.gz",
        "manifests/0-000000000005-000000000001.json",
        "others/1-000000000000-000000000000-000000000002.ndjson.gz",
        "manifests/0-000000000005-000000000002.json",
        "2026/01/31/12/0-000000000005-000000000010-000000000003.ndjson.gz",
        "manifests/0-000000000005-000000000003.json",
    }


async def test_a_repeat_writes_the_same(tmp_path: Path) -> None:
    """A crash before the cursor has moved leaves positions in two objects, or changes one that somebody has read."""
    with bucket() as store:
        for _ in range(2):  # another process each time
            await s3(store.endpoint, tmp_path).deliver(named(portion(0, 10)))
        before = dict(store.objects)
        held = streamed_event(0, legal_hold=True)
        again = delivery(held, *map(streamed_event, range(1, 10)))
        await s3(store.endpoint, tmp_path).deliver(named(again))
    assert store.objects == before
    assert len(manifests(store.objects)) == 1


async def test_a_manifest_is_of_what_is_stored(tmp_path: Path) -> None:
    """A crash between object and manifest, and a hold since: the manifest has the digest of what nobody has."""
    with bucket(Reply(200, stores=True), Reply(500)) as store:
        destination = s3(store.endpoint, tmp_path)
        with pytest.raises(NotDelivered):
            await destination.deliver(named(portion(0, 10)))
        held = streamed_event(0, legal_hold=True)
        await destination.deliver(named(delivery(held, *map(streamed_event, range(1, 10)))))
    assert len(manifests(store.objects)) == 1


@pytest.mark.parametrize("kept", ["", "manifests/"])
async def test_what_somebody_else_has_stored(tmp_path: Path, kept: str) -> None:
    """Another log's object, or half of one, has the key of a portion: it counts as delivered, and nobody has it."""
    with bucket() as store:
        destination = s3(store.endpoint, tmp_path)
        other = delivery(*(streamed_event(n, event_hash="f" * 64) for n in range(10)))
        await destination.deliver(named(other))
        for key in [key for key in store.objects if kept and not key.startswith(kept)]:
            del store.objects[key]
        with pytest.raises(NotDelivered, match="is stored already"):
            await destination.deliver(named(portion(0, 10)))
        for key in store.objects:
            store.objects[key] = b"no gzip"
        with pytest.raises(NotDelivered, match="is stored already"):
            await destination.deliver(named(portion(0, 10)))


async def test_a_cursor_that_was_moved_writes_again(tmp_path: Path) -> None:
    """Whoever rewinds a sink, after its filter or format has changed, gets nothing, or loses what was there."""
    with bucket() as store:
        await s3(store.endpoint, tmp_path).deliver(named(portion(0, 10)))
        await s3(store.endpoint, tmp_path, format="ocsf").deliver(named(portion(0, 10), "f" * 32))
    assert [one["format"] for one in manifests(store.objects)] == ["events", "ocsf"]


async def test_made_up_events_are_no_part_of_the_log(tmp_path: Path) -> None:
    """`datastorage sink test` leaves an object that a reader takes for the log's."""
    made_up = streamed_event(0, event_hash=None, log_index=None)._replace(place=-1)
    with bucket() as store:
        await s3(store.endpoint, tmp_path).deliver(
            Delivery("s", [made_up], -1, -1, FIRST_LOG, is_test=True, id="test-1")
        )
    assert set(store.objects) == {"test/test-1.ndjson.gz"}


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (
            Reply(403, b"<Error><Code>AccessDenied</Code><Message>secret words</Message></Error>"),
            "403 Forbidden (AccessDenied)",
        ),
        (Reply(404, b"<Error><Code>NoSuchBucket</Code></Error>"), "404 Not Found (NoSuchBucket)"),
        (Reply(503, b"<Error><Code>SlowDown</Code></Error>"), "503 Service Unavailable (SlowDown)"),
        (Reply(500), "500 Internal Server Error"),
        (Reply(301, b"<Error><Code>PermanentRedirect</Code></Error>"), "region"),
        (Reply(None), "the store"),
        (Reply(200, hangs=True), "no answer in time"),
    ],
)
async def test_not_stored(tmp_path: Path, reply: Reply, reason: str) -> None:
    """A portion counts as delivered that was refused, or the reason shows requests, credentials or addresses."""
    with bucket(reply) as store:
        destination = s3(store.endpoint, tmp_path, timeout_ms=1_000 if reply.hangs else 60_000)
        with pytest.raises(NotDelivered) as refused:
            await destination.deliver(named(portion(0, 3)))
        assert reason in refused.value.reason
        assert not [word for word in ("secret", "127.0.0.1", "ndjson", "\n") if word in refused.value.reason]
        if not reply.hangs:
            await destination.deliver(named(portion(0, 3)))
            assert [line["log_index"] for line in lines(store.objects)] == [0, 1, 2]


async def test_every_position_once_in_spite_of_lies(tmp_path: Path) -> None:
    """A store that has stored an object and says that it has not, or that cuts the connection, gets it twice or not at all."""
    lies = [
        *(Reply(500, stores=True), Reply(None, stores=True), Reply(503), Reply(None)),
        *(Reply(200, stores=True), Reply(500, stores=True), Reply(None), Reply(504, stores=True)),
    ]
    with bucket(*lies) as store:
        destination = s3(store.endpoint, tmp_path)
        for number, first in enumerate(range(0, 150, 30)):
            while True:
                try:
                    await destination.deliver(named(portion(first, first + 30), f"{number:032}"))
                except NotDelivered:
                    continue
                break
    assert [line["log_index"] for line in lines(store.objects)] == list(range(150))


async def test_credentials_that_change(tmp_path: Path) -> None:
    """A key that was rotated is used until the next restart, or a missing one ends the deliverer."""
    with bucket() as store:
        destination = s3(store.endpoint, tmp_path)
        await destination.deliver(named(portion(0, 1)))
        (tmp_path / "access").write_text("rotated-key\n")
        destination._current_store()
        assert destination._store is not None
        destination._store._checked_at -= 10  # as if time had passed
        await destination.deliver(named(portion(1, 2)))
        missing = s3(store.endpoint, tmp_path, access_key_file=tmp_path / "missing")
        with pytest.raises(NotDelivered, match="access_key_file"):
            await missing.deliver(named(portion(2, 3)))
    assert ["rotated" in one for one in store.authorizations] == [False, False, True, True]


async def test_a_store_that_is_away(tmp_path: Path) -> None:
    """A store that is away ends the deliverer with an error that it does not know."""
    with bucket() as store:
        endpoint = store.endpoint
    with pytest.raises(NotDelivered, match="cannot be reached"):
        await s3(endpoint, tmp_path).deliver(named(portion(0, 1)))


async def test_a_real_store(tmp_path: Path) -> None:
    """A real store refuses what we send: signatures, checksums, conditions, or large objects."""
    huge = delivery(*(streamed_event(n, {"x": "ü" * 125_000}) for n in range(100, 140)))
    with moto(tmp_path) as endpoint:
        destination = s3(endpoint, tmp_path, prefix="log/")
        for _ in range(2):
            await destination.deliver(named(portion(0, 100)))
            await destination.deliver(named(huge))
        objects = stored(endpoint)
    assert len(objects) == 4
    assert [line["log_index"] for line in lines(objects, "log/")] == list(range(140))


def test_a_portion_has_so_many_objects() -> None:
    """A portion of a quiet year becomes thousands of objects, and never ends in time."""
    items = [streamed_event(n, recorded_at=BEGIN + timedelta(hours=n // 2)) for n in range(300)]
    count = items_of_parts(items, 100)
    assert count == 200
    assert len(list(parts(delivery(*items[:count])))) == 100
    assert items_of_parts(items[:200], 100) == items_of_parts(items[:200], 1000) == 200
    assert items_of_parts(items, 1) == 2


def test_hours_are_those_of_recording() -> None:
    """An object is filed under the hour of what its events say of themselves, which anybody can set."""
    event = streamed_event(0, event_timestamp=BEGIN - timedelta(days=3))
    assert "2026/01/31/12" in event_key(event)


def event_key(event: Any) -> str:
    one = named(delivery(event))
    return object_key(next(parts(one)), one)
