"""`datastorage verify --copy`: a copy of the log against the database, and on which side it was changed."""

import argparse
import asyncio
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from app.cli.exits import Exit
from app.errors import Usage
from app.terminal import visible

if TYPE_CHECKING:  # a command imports what it needs only when it runs
    from app.settings import Settings
    from app.stream.copy_result import CopyResult

_PROGRESS_SECONDS = 1.0


def run(arguments: argparse.Namespace) -> Exit:
    """Compare and print; Usage if other arguments do not go with --copy."""
    from app.cli.database import settings_with_database

    if arguments.correlation is not None or arguments.checkpoint is not None or arguments.tsa is not None:
        raise Usage("--copy compares a whole copy: leave out the correlation, --checkpoint and --tsa.")
    result = asyncio.run(_check(arguments, settings_with_database()))
    if arguments.json:
        print(_document(result))
    else:
        for line in _lines(result):
            print(visible(line))
    return Exit.DEFECT if result.count else Exit.AS_ASKED


async def _check(arguments: argparse.Namespace, settings: "Settings") -> "CopyResult":
    from app.stream.copied import read_copy
    from app.stream.copy_check import check_copy
    from app.tlog.keys import read_public_keys, signing_key
    from app.verify.processes import connect_for_verification
    from app.verify.snapshot import SQL

    connection = await connect_for_verification(settings)
    try:
        if arguments.key is not None:
            keys = tuple(read_public_keys(arguments.key))
        else:
            own = signing_key(settings, await connection.fetchval(SQL["log_name"]) or "")
            keys = () if own is None else own.all_public
        if not keys:
            sys.stderr.write("signatures of checkpoints are not checked: name the log's key with --key\n")
        copy = read_copy(arguments.copy, keys)
        return await check_copy(connection, copy, keys, is_filtered=arguments.filtered, show=_Progress())
    finally:
        connection.terminate()
        if sys.stderr.isatty():
            sys.stderr.write("\r\x1b[K")


class _Progress:
    """Shows on a terminal how far it is."""

    def __init__(self) -> None:
        self._shown_at = 0.0

    def __call__(self, events: int) -> None:
        if sys.stderr.isatty() and time.monotonic() - self._shown_at > _PROGRESS_SECONDS:
            self._shown_at = time.monotonic()
            sys.stderr.write(f"\r{events:,} events of the copy\x1b[K")


def _lines(result: "CopyResult") -> Iterator[str]:
    from app.stream.compare import SIDES
    from app.stream.place import place_text
    from app.verify.row import DEFECTS_MAX

    for one in result.differences:
        about = {"position": None if one.place is None else place_text(one.place), "event": one.event_id}
        where = ", ".join(
            [f"{name} {value}" for name, value in about.items() if value] + ([one.where] if one.where else [])
        )
        yield f"{SIDES[one.side]}: {one.kind}: {one.message}" + (f" ({where})" if where else "")
    if result.count > DEFECTS_MAX:
        yield f"... and {result.count - DEFECTS_MAX:,} more differences"
    counts = result.counts
    yield f"{result.events:,} events in the copy, {counts['same']:,} are the same in the database"
    if result.first is not None:
        yield f"from {place_text(result.first)} up to, not including, {place_text(result.end)}"
    for name, meaning in _MEANINGS.items():
        if counts[name]:
            yield f"{counts[name]:,} {meaning}"
    if result.checkpoints:
        signed = "".join(f", {count} signed with {label}" for label, count in result.signatures.items())
        yield f"{result.checkpoints:,} checkpoints in the copy, {result.compared_checkpoints:,} compared with the log{signed}"
    if result.count:
        yield "DIFFERENCES: " + ", ".join(f"{count:,} {SIDES[side]}" for side, count in sorted(result.by_side.items()))
    else:
        yield "no differences"


_MEANINGS = {
    "purged": "were purged since, as recorded in the log",
    "erased": "were erased, as recorded in the log: their records are compared, what was erased is not",
    "content not comparable": "have the record that was logged; what their commitments stand for was redacted, or erased since",
    "lost": "were lost, as the continued log admits",
    "unsealed": "have no position in the log, so they were not compared",
    "left out": "events of the database that a stream has only where they are asked for (self events) are not in the copy",
    "not in the copy": "other events of the database are not in the copy, which is a filtered one",
    "filtered": "manifests of filtered exports: whether events are missing between those of their parts was not looked for",
    "filter not signed": "filters of exports do not count, since no key has signed them: name it with --key, or say --filtered",
    "cut off": "lines have no end, as where a connection broke: they do not count",
    "admitted checkpoints": "of the copy's checkpoints contradict a closed log, as its continuation admits",
}


def _document(result: "CopyResult") -> str:
    import orjson

    from app.stream.compare import as_json
    from app.stream.place import place_text

    document = {
        "is_same": not result.count,
        "events": result.events,
        "counts": {name.replace(" ", "_"): count for name, count in result.counts.items()},
        "from": None if result.first is None else place_text(result.first),
        "end": None if result.first is None else place_text(result.end),
        "checkpoints": result.checkpoints,
        "compared_checkpoints": result.compared_checkpoints,
        "signatures": result.signatures,
        "is_filtered": result.is_filtered,
        "differences_by_side": result.by_side,
        "differences": [as_json(one) for one in result.differences],
    }
    return orjson.dumps(document).decode()
