"""Has the log record what is found: at once for the first of a kind in a round, at the end of the round for the rest.

Bounded whatever is found: a few events for each kind and round, none for what a finding already has, none beyond OPEN_MAX.
A defect that somebody has acknowledged is recorded again only after it was not there for a time.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from uuid import UUID, uuid5

from app.errors import Conflict
from app.events.log import Log
from app.findings.finding import Finding, Group, Subject, subject_of
from app.findings.register import Register
from app.ingest.store import RowRefused
from app.tlog.alarm import LogAlarm, PendingAlarms
from app.verify.row import Defect, Kind

EVENTS_PER_ROUND = 3
"""Of each kind; one more at the round's end."""
OPEN_MAX = 50
"""Of each kind: who damages one thing again and again hides nothing of another kind."""
_KINDS: dict[str, Kind] = {
    "rewritten": "edited",
    "rolled_back": "rolled back",
    "forged_checkpoint": "forged checkpoint",
    "wrong_key": "wrong key",
    "inserted": "inserted",
    "incomplete": "removed",
    "damaged": "edited",
    "unsealed": "inserted",
    "witness_ahead": "rolled back",
    "witness_conflict": "edited",
}

Write = Callable[[Finding, UUID | None], Awaitable[None]]
"""Has the writer write the event of a finding, under this id, so that replicas write it once; None for a random one."""

log = logging.getLogger(__name__)


class Recorder:
    """Records the findings of one process. Its rounds are those of the background verifier."""

    def __init__(self, register: Register, write: Write) -> None:
        self._register = register
        self._write = write
        self._one = asyncio.Lock()
        self._pending: dict[str, Group] = {}
        """By kind, what was found in this round and is not recorded yet."""
        self._events = Counter[str]()
        """By kind, how many events this round has written."""
        self._alarms: set[LogAlarm] | None = None
        """Those of the last round of the checkpoint worker that are recorded; None before its first."""

    async def record(self, defects: Sequence[tuple[Defect, bool]]) -> None:
        """Record defects, each with whether it has come since the round before.

        Raises what the writer and Register.read() raise; then the same call is to be repeated.
        """
        if not defects:
            return
        async with self._one:
            await self._register.read()
            for defect, has_come in defects:
                subject, group = subject_of(defect), self._pending.get(defect.kind)
                if self._is_known(defect.kind, subject, has_come=has_come) or (group and group.covers(subject)):
                    continue
                self._pending.setdefault(defect.kind, Group(defect.kind)).add(defect, subject)
            await self._write_pending([kind for kind in self._pending if self._events[kind] < EVENTS_PER_ROUND])

    def follow(self, log: Log) -> None:
        """Record findings as those of `log` from now on, which continues the one before."""
        self._register.log = log

    async def end_round(self) -> None:
        """Record what is left of a round. Raises as record()."""
        async with self._one:
            await self._write_pending(list(self._pending))
            self._events.clear()

    async def record_alarms(self, alarms: Sequence[LogAlarm]) -> None:
        """Record the alarms with which a round of the checkpoint worker has ended. Raises as record().

        One that is there in the first round may have been there before this process, so that its acknowledgement counts.
        """
        before = self._alarms
        recorded = {alarm for alarm in alarms if before and alarm.same in {one.same for one in before}}
        new = [alarm for alarm in alarms if alarm not in recorded]
        if new:
            async with self._one:
                await self._register.read()
                for alarm in new:
                    defect = Defect(_KINDS[alarm.name], alarm.detail, subject=alarm.subject)
                    if not self._is_known(defect.kind, alarm.subject, has_come=before is not None):
                        group = Group(defect.kind, alarm.name)
                        group.add(defect, alarm.subject)
                        await self._write_group(group)
        self._alarms = set(alarms)

    async def record_pending(self, pending: PendingAlarms) -> None:
        """Record what the writer has found wrong, those of one name together. Raises as record(); then they stay pending.

        An alarm is raised each time that its cause is met, so an acknowledged one is not recorded again.
        """
        alarms = pending.listed
        if not alarms:
            return
        async with self._one:
            await self._register.read()
            groups: dict[str, Group] = {}
            for alarm in alarms:
                kind = _KINDS[alarm.name]
                if not self._is_known(kind, alarm.subject, has_come=False):
                    defect = Defect(kind, alarm.detail, subject=alarm.subject)
                    groups.setdefault(alarm.name, Group(kind, alarm.name)).add(defect, alarm.subject)
            for group in groups.values():
                await self._write_group(group)
        pending.remove(alarms)

    def _is_known(self, kind: str, subject: Subject, *, has_come: bool) -> bool:
        if self._register.is_open(kind, subject):
            return True
        return not has_come and self._register.acknowledged(kind, subject) is not None

    async def _write_pending(self, kinds: Iterable[str]) -> None:
        for kind in kinds:
            await self._write_group(self._pending[kind])
            del self._pending[kind]
            self._events[kind] += 1

    async def _write_group(self, group: Group) -> None:
        if sum(one.kind == group.kind for one in self._register.open) >= OPEN_MAX:
            log.critical(
                "more is found than is recorded: acknowledge findings, and what is still there is recorded",
                extra={"kind": group.kind, "defects": group.count, "reason": group.detail},
            )
            return
        first: Subject = group.ranges[0][0] if group.ranges else next(iter(group.subjects))
        finding = group.finding(self._register.log, self._register.acknowledged(group.kind, first))
        try:
            await self._write(finding, uuid5(finding.id, "recorded"))
        except (Conflict, RowRefused):  # somebody has computed the id too, and put a row under it
            await self._write(finding, None)
        self._register.add([finding])
        extra = {"finding_id": str(finding.id), "kind": finding.kind, "defects": finding.defect_count}
        log.critical("a finding is recorded in the log", extra=extra | {"reason": finding.detail})
