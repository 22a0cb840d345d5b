"""The acknowledgement of a finding: an event of the log that says who has seen it, and what it was."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

from app.db import Connection
from app.errors import NotFound
from app.events.log import Log
from app.findings.finding import Acknowledgement, Finding
from app.findings.register import read_findings
from app.ingest.link import Flush
from app.ingest.self_events import self_event
from app.retention.logged import action_store, commit_action
from app.settings import Settings
from app.tlog.evidence import ACKNOWLEDGED


async def acknowledge(settings: Settings, log: Log, finding_id: UUID, by: str, reason: str) -> Finding:
    """End a finding, and return it. NotFound if none with this id stands. Raises as commit_action().

    Of two at once one is written: whoever comes later finds in the transaction of his own event that the finding stands no longer.
    """

    async def require_open(connection: Connection, flush: Flush) -> None:
        before = flush.log.place(flush.first_index)
        _open_one(await read_findings(connection, flush.log, finding_id, before), finding_id)

    async with action_store(settings, log) as store:
        connection = await store.connection()
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            found = _open_one(await read_findings(connection, store.log, finding_id), finding_id)
        payload = {"event_type": ACKNOWLEDGED, "finding_id": str(finding_id), "acknowledged_by": by, "reason": reason}
        await commit_action(store, [self_event(log.first_name, payload, about=finding_id, actor_id=by)], require_open)
    return replace(found, acknowledgement=Acknowledgement(by, reason, datetime.now(UTC)))


def _open_one(findings: Sequence[Finding], finding_id: UUID) -> Finding:
    for finding in findings:
        if finding.id == finding_id and finding.acknowledgement is None:
            return finding
    raise NotFound(f"There is no finding {finding_id} that nobody has acknowledged.")
