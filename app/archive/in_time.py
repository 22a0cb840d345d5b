"""The process that reads archived events for a page of an export, which begins with the oldest ones: one question on stdin, answered in steps.

First what tells the oldest events that match: as many as are before the page and on it, since those of Postgres are between them. Then, of those
that are on the page, what links them to others; then they themselves, in the order in which they are asked for.
"""

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from time import monotonic
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc

from app.archive.question import ALL_READ, ArchivedLink, Key, Oldest, Question, Refusal
from app.archive.reader import (
    Group,
    Newest,
    Refused,
    Search,
    begin,
    found_row,
    matches,
    may_match,
    microseconds,
    receive,
    refusal_of,
    send,
)
from app.archive.storage import archive_storage
from app.archive.windows import Places, in_portions, packed
from app.events.log import place_of

EVENTS_MAX = 1_000_000
"""Before a page and on it, of which the process has the keys in memory: 40 bytes each, twice while they are sorted."""
_MORE = 65_536
"""Events that are added before the newest ones are forgotten."""
_LINK_COLUMNS = ("correlation_id", "chain_index", "log_index", "log_id", "previous_event_hash", "payload_commitment")


def main() -> None:
    """Answer one question. The message before it says where the archive is."""
    questions, answers = begin()
    place, question = receive(questions), receive(questions)
    if question is None:
        return
    try:
        _answer(questions, answers, Search(archive_storage(place)), question)
    except BrokenPipeError:
        return
    except Exception as error:  # noqa: BLE001 -- the top of the process
        send(answers, refusal_of(error))


def _answer(questions: IO[bytes], answers: IO[bytes], search: Search, question: Question) -> None:
    found = find_oldest(search, question)
    send(answers, found.oldest())
    if (chosen := receive(questions)) is None:
        return
    send(answers, links(found.places(chosen)))
    if (chosen := receive(questions)) is None:
        return
    rows = found.places(chosen).read(question.bytes_max)
    for portion in in_portions(found_row(group.file.part, ALL_READ, row, question) for group, row in rows):
        send(answers, portion)
    send(answers, [])


class Found:
    """The oldest events that were found so far, no more than `count`."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._times, self._ids = array("q"), bytearray()
        self._logged, self._rows = array("q"), array("q")
        self._groups: list[Group] = []
        self._latest: int | None = None

    def __len__(self) -> int:
        return len(self._times)

    @property
    def latest(self) -> Key | None:
        """Events after this one need not be looked at; None: any may be among the oldest."""
        return None if self._latest is None else (self._latest + 1, b"")

    def add(self, group: Group, question: Question) -> None:
        """Look at a row group. Refused if more events would be before the page than the process may have in memory."""
        self._groups.append(group)
        with group.file.open() as opened:
            for one in matches(opened, group, question, Newest(1)):
                time, event_id = one.key
                self._times.append(time)
                self._ids += event_id
                self._logged.append(place_of(group.file.part.log_id, one.position))
                self._rows.append(packed(len(self._groups) - 1, one.row))
        if len(self._times) > min(self._count, EVENTS_MAX) + _MORE:
            self._forget()

    def _forget(self) -> None:
        """Keep the oldest ones alone, in their order."""
        if len(self._times) > EVENTS_MAX and self._count > EVENTS_MAX:
            why = f"more than {EVENTS_MAX:,} events of the archive are before the end of the page"
            raise Refused(Refusal("slow", why))
        times = pa.array(self._times, pa.int64())
        ids = pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(times), [None, pa.py_buffer(bytes(self._ids))])
        order = pc.sort_indices(
            pa.table({"time": times, "id": ids}), sort_keys=[("time", "ascending"), ("id", "ascending")]
        )[: self._count]
        self._ids = bytearray(b"".join(ids.take(order).to_pylist()))
        self._times, self._logged, self._rows = (
            array("q", pa.array(column, pa.int64()).take(order).to_pylist())
            for column in (self._times, self._logged, self._rows)
        )
        if len(self._times) == self._count:
            self._latest = self._times[-1]

    def oldest(self) -> Oldest:
        """What tells them, in the order of time."""
        self._forget()
        return Oldest(self._times, bytes(self._ids), self._logged)

    def places(self, chosen: Iterable[int]) -> Places:
        """Where some of them are, by their numbers in that order."""
        return Places(self._groups, pa.array([self._rows[number] for number in chosen], pa.int64()))


def find_oldest(search: Search, question: Question) -> Found:
    """The oldest events that match, month after month. Refused if they are too many, or there is no time; else raises as Search.files()."""
    found = Found(question.rows)
    end = monotonic() + question.seconds
    month = ""
    for part in sorted(question.parts, key=lambda one: one.month):
        if part.month > month and len(found) >= question.rows:
            break  # all that comes after is newer
        month = part.month
        for file in search.files(part):
            for group in sorted(file.groups, key=_earliest):
                older = question if found.latest is None else question._replace(after=found.latest)
                if not may_match(group, older, Newest(1)):
                    continue
                if monotonic() > end:
                    raise Refused(Refusal("slow", f"there was no time to look through {part.month} of the archive"))
                found.add(group, older)
    return found


def _earliest(group: Group) -> int:
    bounds = group.bounds("event_timestamp")
    return ALL_READ[0] if bounds is None else microseconds(bounds[0])


def links(places: Places) -> list[ArchivedLink]:
    """What links each of some events to others."""
    found: dict[tuple[int, int], ArchivedLink] = {}
    wanted = sorted(places.at(number) for number in range(len(places.rows)))
    for number, rows in groupby(wanted, key=lambda one: one[0]):
        group = places.groups[number]
        found |= {(number, row): link for row, link in _links_of_group(group, [row for _, row in rows])}
    return [found[places.at(number)] for number in range(len(places.rows))]


def _links_of_group(group: Group, rows: Sequence[int]) -> Iterator[tuple[int, ArchivedLink]]:
    """By row. The events before them are looked for in the row group alone, since a correlation stands together."""
    with group.file.open() as opened:
        table = opened.read_row_group(group.number, columns=list(_LINK_COLUMNS), use_threads=False)
    some = table.take(pa.array(rows, pa.int64())).to_pylist()
    before = _chains(table, {one["correlation_id"] for one in some})
    for row, one in zip(rows, some, strict=True):
        link, index = one["previous_event_hash"], one["chain_index"]
        is_erased = one["payload_commitment"] is not None or one["log_index"] in group.file.part.erased
        place_before = before.get((one["correlation_id"], index - 1))
        yield (
            row,
            ArchivedLink(one["correlation_id"], index, "" if link is None else link.hex(), is_erased, place_before),
        )


def _chains(table: pa.Table, correlations: set[str]) -> Mapping[tuple[str, int], int]:
    """The place in the logs of each event of some correlations that a row group has, by its place in its chain."""
    is_of_one = pc.is_in(table.column("correlation_id"), value_set=pa.array(sorted(correlations), pa.string()))
    known = table.select(_LINK_COLUMNS[:4]).filter(is_of_one)
    columns: Sequence[Sequence[Any]] = [column.to_pylist() for column in known.columns]
    return {
        (correlation, index): place_of(log_id, position)
        for correlation, index, position, log_id in zip(*columns, strict=True)
    }


if __name__ == "__main__":
    main()
