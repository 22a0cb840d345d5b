"""The checkpoints of a copy against the log: what was signed decides on which side a difference is."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from app.db import LONG_FETCH_SECONDS, Connection
from app.events.log import Log
from app.stream.compare import Difference, Side
from app.stream.copy_logs import KnownLogs
from app.stream.copy_result import CopyResult
from app.tlog.continued import keys_of
from app.tlog.note import Checkpoint, PublicKey
from app.verify.checkpoints import LogState, checkpoint_defect, parse_checkpoint, signers
from app.verify.snapshot import SQL as VERIFY_SQL
from app.verify.tree import read_tree

_CHECKPOINTS_MAX = 10_000
"""Of the copy, each compared with the log. If there are more, every other one is."""


@dataclass(slots=True)
class _Signed:
    """What is signed of one log."""

    agreed: int = 0
    """The largest signed size at which the log is what was signed."""
    contradicted: int = 0
    """The largest signed size at which it is not."""


class CopiedCheckpoints:
    """Those of the copy, and once they are compared, what they and those of the database say of the logs."""

    def __init__(self, connection: Connection, logs: KnownLogs, keys: Sequence[PublicKey], result: CopyResult) -> None:
        self._connection, self._logs, self._keys, self._result = connection, logs, keys, result
        self._checkpoints: dict[tuple[str, int, bytes], tuple[str, str]] = {}
        """By log, size and root: where it stands, and its note."""
        self._of_manifests: set[tuple[str, int, bytes]] = set()
        """Those of them that only manifests of exports have, which were signed when the export was made: it need not have all of their events."""
        self._signed: dict[int, _Signed] = {}
        """By id of the log."""

    def add(self, where: str, text: object, *, is_of_manifest: bool = False) -> Checkpoint | None:
        """Add one that stands in the copy; None if it is none."""
        self._result.checkpoints += 1
        checkpoint = parse_checkpoint(text) if isinstance(text, str) else None
        if checkpoint is None or not isinstance(text, str):
            self._result.report("copy", "forged checkpoint", "it is not a checkpoint", where)
            return None
        key = checkpoint.origin, checkpoint.size, checkpoint.root
        if not is_of_manifest:
            self._of_manifests.discard(key)
        elif key not in self._checkpoints:
            self._of_manifests.add(key)
        self._checkpoints.setdefault(key, (where, text))
        if len(self._checkpoints) > _CHECKPOINTS_MAX:
            self._checkpoints = dict(list(self._checkpoints.items())[1::2])  # the last one stays
            self._of_manifests &= self._checkpoints.keys()
        return checkpoint

    def names(self) -> set[str]:
        """The logs that they are of."""
        return {name for name, _, _ in self._checkpoints}

    async def compare(self, undecided: Sequence[Difference]) -> None:
        """Compare them with the log's leaves; and where a difference is undecided, those of the database too."""
        for name in sorted(self.names()):
            if self._logs.named(name) is None:
                where = next(where for (origin, _, _), (where, _) in self._checkpoints.items() if origin == name)
                message = f"a checkpoint is of the log {name[:200]!r}, which the database has not"
                self._result.report("either", "inserted", message, where)
        for log in self._logs.all():
            copied = {key: value for key, value in self._checkpoints.items() if key[0] == log.name}
            stored: list[str] = []
            if any(one.place is not None and log.has(one.place) for one in undecided):
                rows = await self._connection.fetch(
                    VERIFY_SQL.of(log)["stored_checkpoints"], timeout=LONG_FETCH_SECONDS
                )
                stored = [row["note"] for row in rows]
            if not copied and not stored:
                continue
            parsed = [checkpoint for note in stored if (checkpoint := parse_checkpoint(note)) is not None]
            sizes = {size for _, size, _ in copied} | {one.size for one in parsed}
            tree = await read_tree(self._connection, log, sizes, self._logs.sizes[log.id])
            state = LogState(log.name, self._logs.sizes[log.id], tree.roots)
            for where, note in copied.values():
                self._compare(log, state, where, note)
            for note in stored:
                self._learn(log, state, note)

    def _compare(self, log: Log, state: LogState, where: str, note: str) -> None:
        keys, checkpoint = keys_of(log, self._keys), parse_checkpoint(note)
        assert checkpoint is not None
        self._result.signatures.update(key.label for key in signers(note, keys))
        self._result.compared_checkpoints += checkpoint.size in state.roots or checkpoint.size > state.size
        defect = checkpoint_defect("the copy's checkpoint", note, keys, state)
        seam = self._logs.seam(log)
        if (
            defect is not None
            and defect.kind in {"edited", "rolled back"}
            and seam is not None
            and seam.admits(checkpoint)
        ):
            self._result.counts["admitted checkpoints"] += 1
            return
        self._learn(log, state, note)
        if defect is None:
            if (checkpoint.origin, checkpoint.size, checkpoint.root) not in self._of_manifests:
                self._extend_signed(log, checkpoint)
            return
        is_signed = bool(keys) and defect.kind in {"edited", "rolled back"}
        side: Side = "database" if is_signed else "copy" if keys else "either"
        message = defect.message.removeprefix(f"{defect.kind}: ")
        self._result.report(side, defect.kind, message, where, log.place(checkpoint.size))

    def _extend_signed(self, log: Log, checkpoint: Checkpoint) -> None:
        """A copy with a checkpoint has all events that it covers, from its first one on."""
        if self._result.first is not None and checkpoint.size:
            self._result.extend(self._result.first, log.place(checkpoint.size))

    def _learn(self, log: Log, state: LogState, note: str) -> None:
        """What a checkpoint that one of the keys has signed says of the log."""
        keys, checkpoint = keys_of(log, self._keys), parse_checkpoint(note)
        if checkpoint is None or checkpoint.origin != log.name or not keys:
            return
        defect = checkpoint_defect("", note, keys, state)
        known = self._signed.setdefault(log.id, _Signed())
        if defect is None and checkpoint.size in state.roots:
            known.agreed = max(known.agreed, checkpoint.size)
        elif defect is not None and defect.kind in {"edited", "rolled back"}:
            known.contradicted = max(known.contradicted, checkpoint.size)

    def decided(self, one: Difference) -> Difference:
        """A difference with the side that what was signed decides."""
        log = None if one.place is None else self._logs.at(one.place)
        if log is None or one.place is None:
            return replace(one, side="either")
        position, known = one.place - log.place(0), self._signed.get(log.id, _Signed())
        if position < known.agreed:
            return replace(
                one, side="both" if one.row_agrees else "copy", message=f"{one.message}, which is as it was signed"
            )
        if position < known.contradicted:
            one = replace(one, kind="removed" if one.kind == "inserted" else one.kind)
            return replace(one, side="database", message=f"{one.message}, which is not what was signed")
        if one.row_agrees:
            return replace(one, side="database", message=f"{one.message}; the row has the copy's")
        return replace(one, side="either", message=f"{one.message}; no signed checkpoint decides which one was logged")
