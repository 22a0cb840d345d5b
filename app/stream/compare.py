"""One copied event against the log's leaf and the row at its place: what differs, and on which side. Pure.

The leaf decides: it is in the tree whose root is signed. Where copy and leaf differ and each side is right by itself, the caller has to
find out what was signed (`Difference.is_open`).
"""

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Any, Literal

from app.events.canonical import canonical, loads
from app.events.log import LOG_POSITIONS, Log
from app.events.record import Row, address_text, record, stored_hash
from app.export import redact
from app.export.check import row_of
from app.export.file import COMMITTED, MEMBERS, NOT_COVERED
from app.export.row import NOT_TEXT, masked_tree
from app.stream.copied import CopiedEvent
from app.stream.place import place_text
from app.tlog.evidence import Erasures
from app.verify.row import row_defects

_JSON = ("event_data", "event_metadata")
_MASKED = frozenset(MEMBERS) - NOT_TEXT | set(_JSON)
"""What an export masks personal data in."""

Side = Literal["copy", "database", "both", "either"]
"""Who has what was not logged; `either` where nothing that was signed decides it."""
SIDES: dict[Side, str] = {
    "copy": "in the copy",
    "database": "in the database",
    "both": "in both",
    "either": "in one of them",
}
Verdict = Literal["same", "erased", "content not comparable", "different"]


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that differs between copy and database."""

    side: Side
    kind: str
    """As the kinds of verification (docs/evidence.md)."""
    message: str
    place: int | None = None
    event_id: str | None = None
    where: str | None = None
    """File and line of the copy."""
    is_open: bool = False
    """What was signed has still to decide the side."""
    row_agrees: bool = False
    """The row has what the copy has, and the leaf has not."""


def compare(  # noqa: PLR0917 -- what is compared, and with what
    copied: CopiedEvent, place: int, row: Row | None, leaf: str | None, log: Log, erased: Erasures
) -> tuple[Verdict, list[Difference]]:
    """What differs between a copied event and the row and the leaf at its place; `log` is the last log that is known.

    A missing row is none of this. ValueError or TypeError if a record cannot have the copy's members.
    """
    own_row = row_of(copied.event)
    masked = set(copied.event["redacted"] or ())
    if not isinstance(copied.event["event_hash"], str):
        raise TypeError("event_hash is no text")
    own = None if masked - COMMITTED - set(NOT_COVERED) else stored_hash(own_row, copied.event["log"], stored=False)
    about = Difference("copy", "edited", "", place, str(copied.event["event_id"]), copied.where)
    found = [*_in_copy(copied, own_row, own, row, leaf, about, masked)]
    row_found = [] if row is None else [*_in_row(own_row, row, leaf, log, erased, about, masked)]
    stated = own or copied.event["event_hash"]
    if not found and stated != leaf:
        row_agrees = row is not None and stored_hash(row, log.name_of(row.get("log_id"))) == stated
        found.append(_against_leaf(about, stated, leaf, row_agrees=row_agrees))
        row_found = [] if row_agrees else row_found  # it is the same difference
    is_committed = row is None and copied.event["payload_commitment"] is not None
    verdict: Verdict = "content not comparable" if is_committed else "same"
    if not found and row is not None and not row_found:
        names, verdict = _content(copied, own_row, row, masked)
        if names:
            found.append(replace(about, message=f"{_listed(names)} not what the database has, where it is as logged"))
    found += row_found
    return ("different" if found else verdict), found


def _in_copy(  # noqa: PLR0917 -- what is known of the copied event
    copied: CopiedEvent,
    own_row: dict[str, Any],
    own: str | None,
    row: Row | None,
    leaf: str | None,
    about: Difference,
    masked: AbstractSet[str],
) -> Iterator[Difference]:
    """What is wrong with a copied event by itself: then its hash is not that of its members."""
    if copied.place is not None and copied.place != place_text(about.place or 0):
        yield replace(about, message=f"the place beside it is {copied.place[:60]}")
    for name in copied.wrong:
        yield replace(about, message=f"{name} is not what the event has that stands beside it")
    if unknown := sorted(str(name)[:60] for name in masked - _MASKED):
        yield replace(about, message=f"redacted names {', '.join(unknown[:3])}, which no export masks")
        return
    stated = copied.event["event_hash"]
    if own is None or own == stated:
        return
    if own == leaf:
        yield replace(about, message="event_hash is not the hash of the event, which is otherwise as it was logged")
        return
    names = differing(own_row, row, masked) if row is not None else []
    what = f"{_listed(names)} not what was logged" if names else "it has not the hash that stands with it"
    yield replace(about, message=what)


def _in_row(  # noqa: PLR0917 -- as row_defects()
    own_row: dict[str, Any],
    row: Row,
    leaf: str | None,
    log: Log,
    erased: Erasures,
    about: Difference,
    masked: AbstractSet[str],
) -> Iterator[Difference]:
    """What is wrong with the row by itself."""
    for defect in row_defects(row, leaf, log, erased):
        names = differing(own_row, row, masked)
        detail = f"; the copy has another {', '.join(names)}" if names else ""
        message = defect.message.removeprefix(f"{defect.kind}: ")
        yield replace(about, side="database", kind=defect.kind, message=message + detail)


def _against_leaf(about: Difference, stated: str, leaf: str | None, *, row_agrees: bool) -> Difference:
    if leaf is None:
        return replace(about, kind="inserted", message="the log has no such position", is_open=True)
    message = f"the copy has the hash {stated}, the log has {leaf}"
    return replace(about, message=message, is_open=True, row_agrees=row_agrees)


def _content(copied: CopiedEvent, own_row: dict[str, Any], row: Row, masked: set[str]) -> tuple[list[str], Verdict]:
    """Which members of a copied event with the right hash are not the row's; the row is as it was logged.

    A hash says nothing of the content that its commitment stands for where the salt is missing: in an erased event and a redacted one.
    """
    is_erased = row.get("payload_commitment") is not None
    if (
        copied.event["payload_commitment"] is None and not masked
    ):  # the copy's hash is over all that it has, but its date
        same_date = str(own_row["event_date"]) == str(row.get("event_date"))
        return [] if same_date else ["event_date"], "erased" if is_erased else "same"
    names = differing(own_row, row, masked)
    if is_erased and names:  # nobody has any more what it was
        return [name for name in names if name not in COMMITTED], "content not comparable"
    return names, "content not comparable" if masked else "erased" if is_erased else "same"


def differing(own_row: dict[str, Any], row: Row, masked: AbstractSet[str] = frozenset()) -> list[str]:
    """The hashed members, and the date, that a copied event and a row have differently.

    Of those that are masked, the ones that are not what redaction makes of the row's, or that it would not have changed.
    """
    mine, theirs = _members(own_row, stored=False), _members(row, stored=True)
    redacted = {name: _redacted(name, theirs[name]) for name in masked & theirs.keys()}
    unchanged = {name for name, value in redacted.items() if value == theirs[name]}
    theirs |= redacted
    return sorted(name for name, value in mine.items() if value != theirs[name] or name in unchanged)


def _redacted(name: str, value: Any) -> Any:
    """A member of a row as a redacted export has it."""
    if name in _JSON and value is not None:
        return canonical(masked_tree(loads(value)))
    return redact.text(value) if isinstance(value, str) else value


def _members(row: Row, *, stored: bool) -> dict[str, Any]:
    members = record(row, "", b"") | {name: row.get(name) for name in COMMITTED}
    members["actor_ip"] = address_text(row.get("actor_ip"))
    for name in _JSON:
        if members[name] is not None and stored:
            members[name] = canonical(loads(members[name]))
    members["event_date"] = str(row.get("event_date"))
    del members["commitment"], members["log"]
    return members


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names)} {'is' if len(names) == 1 else 'are'}"


def as_json(difference: Difference) -> dict[str, Any]:
    """A difference for machines."""
    place = difference.place
    return {
        "side": difference.side,
        "kind": difference.kind,
        "message": difference.message,
        "place": None if place is None else place_text(place),
        "log_position": None if place is None else place % LOG_POSITIONS,
        "event_id": difference.event_id,
        "where": difference.where,
    }
