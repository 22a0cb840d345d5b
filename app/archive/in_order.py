"""The process that reads archived events for an export: one question on stdin, then rows in the order of the log on stdout, in portions, until
an empty one.

Files are sorted by correlation. So of a part the positions of all rows that match are read first; then the rows themselves, window by window: as
many in the order of positions as fit into memory, from each row group that has some of them. A file of which every row group may have
events for the export is compared with its digest first: what somebody has taken out of it would not be missed otherwise.
"""

import heapq
from array import array
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from app.archive.question import ALL_READ, FoundRow, PartToRead, Question, Refusal
from app.archive.reader import (
    EventFile,
    Group,
    Newest,
    Refused,
    Search,
    begin,
    found_row,
    matches,
    may_match,
    receive,
    refusal_of,
    send,
)
from app.archive.storage import archive_storage
from app.archive.windows import Places, in_portions, packed


def main() -> None:
    """Answer one question. The message before it says where the archive is."""
    questions, answers = begin()
    place, question = receive(questions), receive(questions)
    if question is None:
        return
    try:
        for portion in in_portions(_in_order(Search(archive_storage(place)), question)):
            send(answers, portion)
    except BrokenPipeError:
        return
    except Exception as error:  # noqa: BLE001 -- the top of the process
        send(answers, refusal_of(error))
    else:
        send(answers, [])


def _in_order(search: Search, question: Question) -> Iterator[FoundRow]:
    """The rows of all parts that match, in the order of their positions. A part is opened when its first position comes, since months overlap by little."""
    waiting = sorted(question.parts, key=_first, reverse=True)
    opened: list[tuple[int, int, FoundRow, Iterator[FoundRow]]] = []
    number = 0
    while waiting or opened:
        while waiting and (not opened or _first(waiting[-1]) <= opened[0][0]):
            number += 1
            rows = _rows_of_part(search, waiting.pop(), question)
            if (found := next(rows, None)) is not None:
                heapq.heappush(opened, (found.row["log_index"], number, found, rows))
        if opened:
            _, of_part, found, rows = opened[0]
            yield found
            if (following := next(rows, None)) is None:
                heapq.heappop(opened)
            else:
                heapq.heapreplace(opened, (following.row["log_index"], of_part, following, rows))


def _first(part: PartToRead) -> int:
    return part.wanted.ranges[0][0]


def _rows_of_part(search: Search, part: PartToRead, question: Question) -> Iterator[FoundRow]:
    for _, row in _matching(search, part, question).read(question.bytes_max):
        yield found_row(part, ALL_READ, row, question)


def _matching(search: Search, part: PartToRead, question: Question) -> Places:
    """The matching rows of a part, by position."""
    groups: list[Group] = []
    positions, places = array("q"), array("q")
    for file in search.files(part):
        anything = question._replace(conditions=(), arguments={})
        wanted, removed = ([one for one in file.groups if may_match(one, q, Newest(1))] for q in (question, anything))
        if wanted == removed:
            _require_as_signed(file)
        if not wanted:
            continue
        with file.open() as opened:
            for group in wanted:
                for one in matches(opened, group, question, Newest(1)):
                    positions.append(one.position)
                    places.append(packed(len(groups), one.row))
                groups.append(group)
    return Places(groups, pa.array(places, pa.int64()).take(pc.sort_indices(pa.array(positions, pa.int64()))))


def _require_as_signed(file: EventFile) -> None:
    if file.storage.copy_to(file.name, None) != (file.signed.sha256, file.signed.bytes):
        raise Refused(Refusal("damaged", f"{file.name} of the part {file.part.archive_id} is not as it was signed"))


if __name__ == "__main__":
    main()
