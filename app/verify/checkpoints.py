"""Signed checkpoints held against the log: those that the database keeps, and one that was kept elsewhere. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from app.tlog.note import Checkpoint, MalformedNote, Note, PublicKey
from app.verify.row import Defect

REWRITTEN = (
    "edited: the first {size} events of the log are not those that {what} was signed for: the log was rewritten, or a backup "
    "was restored and then written to"
)


def checkpoint_of(note: str) -> Checkpoint | None:
    """What a note says of the log, whoever signed it; None when it is no checkpoint."""
    try:
        return Checkpoint.parse(Note.parse(note).text)
    except MalformedNote:
        return None


@dataclass(frozen=True, slots=True)
class LogState:
    """The log as it is: its name, its size, and its roots at some sizes. One that is not there could not be computed."""

    log: str
    size: int
    roots: Mapping[int, bytes]


def checkpoint_defect(what: str, note: str, keys: Sequence[PublicKey], found: LogState) -> Defect | None:
    """What is wrong with a checkpoint, or with the log if the checkpoint is right. `what` names it.

    Without `keys` nobody can say who signed it, and only its root counts.
    """
    checkpoint = checkpoint_of(note)
    if checkpoint is None:
        return Defect("forged checkpoint", f"forged checkpoint: {what} is no checkpoint")
    if keys and (defect := _signature_defect(what, Note.parse(note), keys)) is not None:
        return defect
    if checkpoint.origin != found.log:
        return Defect("edited", f"edited: {what} is of the log {checkpoint.origin!r}, this one is called {found.log!r}")
    if checkpoint.size > found.size:
        message = f"{what} was signed for {checkpoint.size} events, but the log has only {found.size}"
        return Defect("rolled back", f"rolled back: {message}; it is an older state, such as a backup, or was cut off")
    if found.roots.get(checkpoint.size, checkpoint.root) != checkpoint.root:
        return Defect("edited", REWRITTEN.format(size=checkpoint.size, what=what))
    return None


def _signature_defect(what: str, note: Note, keys: Sequence[PublicKey]) -> Defect | None:
    if any(note.is_signed_by(key) for key in keys):
        return None
    ids = {(key.name, key.id) for key in keys}
    if any((name, signed[:4]) in ids for name, signed in note.signatures):
        return Defect("forged checkpoint", f"forged checkpoint: {what} has a signature of the log's key that is wrong")
    signers = ", ".join(sorted({f"{name}+{signed[:4].hex()}" for name, signed in note.signatures})) or "nobody"
    wanted = ", ".join(f"{key.name}+{key.id.hex()}" for key in keys)
    return Defect("wrong key", f"wrong key: {what} is signed by {signers}, not by {wanted}")
