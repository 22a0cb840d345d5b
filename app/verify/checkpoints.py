"""Signed checkpoints against the log: those that the database has, and one from outside. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from app.tlog.note import Checkpoint, MalformedNote, Note, PublicKey
from app.verify.row import Defect

REWRITTEN = (
    "edited: the first {size} events of the log are not those that {name} was signed for: the log was rewritten, or a backup "
    "was restored and then written to"
)


def parse_checkpoint(note: str) -> Checkpoint | None:
    """The checkpoint in a note, without a check of its signatures; None when the note is not a checkpoint."""
    try:
        return Checkpoint.parse(Note.parse(note).text)
    except MalformedNote:
        return None


def signed_sizes(notes: Iterable[str], keys: Sequence[PublicKey]) -> list[int]:
    """The sizes of those checkpoints that one of `keys` signed; without keys, of all."""
    parsed = [(note, checkpoint) for note in notes if (checkpoint := parse_checkpoint(note)) is not None]
    return [one.size for note, one in parsed if not keys or signers(note, keys)]


def signers(note: str, keys: Iterable[PublicKey]) -> list[PublicKey]:
    """Those of `keys` that signed a checkpoint; none when the note is malformed."""
    return [] if parse_checkpoint(note) is None else [key for key in keys if Note.parse(note).is_signed_by(key)]


@dataclass(frozen=True, slots=True)
class LogState:
    """The log as it is stored: its name, its size, and its roots by size, as far as they could be computed."""

    log_name: str
    size: int
    roots: Mapping[int, bytes]


def checkpoint_defect(
    name: str, note: str, keys: Sequence[PublicKey], state: LogState, stored_size: int | None = None
) -> Defect | None:
    """What is wrong with a checkpoint, or with the log if the checkpoint is right; messages call the checkpoint `name`.

    Without `keys` the signature is not checked, only the root. `stored_size` is the size in the database's column, if it has one.
    """
    checkpoint = parse_checkpoint(note)
    if checkpoint is None:
        return Defect("forged checkpoint", f"forged checkpoint: {name} is not a checkpoint")
    if keys and (defect := _signature_defect(name, Note.parse(note), keys)) is not None:
        return defect
    if checkpoint.origin != state.log_name:
        return Defect(
            "edited", f"edited: {name} is of the log {checkpoint.origin!r}, this one is called {state.log_name!r}"
        )
    if checkpoint.size > state.size:
        message = f"{name} was signed for {checkpoint.size} events, but the log has only {state.size}"
        return Defect(
            "rolled back", f"rolled back: {message}; the database is a restored backup, or the log was truncated"
        )
    if state.roots.get(checkpoint.size, checkpoint.root) != checkpoint.root:
        return Defect("edited", REWRITTEN.format(size=checkpoint.size, name=name))
    if stored_size not in {None, checkpoint.size}:
        return Defect("forged checkpoint", f"forged checkpoint: {name} was signed for {checkpoint.size} events")
    return None


def _signature_defect(name: str, note: Note, keys: Sequence[PublicKey]) -> Defect | None:
    named = [key for key in keys if note.names_key(key)]
    if named and all(note.is_signed_by(key) for key in named):
        return None
    if named:
        return Defect("forged checkpoint", f"forged checkpoint: {name} has a signature of the log's key that is wrong")
    signers = ", ".join(sorted({f"{signer}+{signed[:4].hex()}" for signer, signed in note.signatures})) or "nobody"
    wanted = ", ".join(f"{key.name}+{key.id.hex()}" for key in keys)
    return Defect("wrong key", f"wrong key: {name} is signed by {signers}, not by {wanted}")
