"""POST of audit events of Kubernetes: what a kube-apiserver's audit webhook sends, 400 of them at a time.

The webhook tries a request that is not answered by 2xx five times more, within some 80 s, and then drops its events. So a list is
refused whole only if it is none; what cannot be stored of it is counted and logged, and the rest is stored. A list that comes again, or
overlaps with another one, is recognised event by event: ids are computed from the audit events alone.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from time import perf_counter
from typing import Any
from uuid import UUID

from starlette.requests import Request
from starlette.responses import Response

from app import metrics
from app.api.access import actor_override, authorize, authorize_large_body, caller_name, record_denial
from app.api.body import JSON, json_response, read_json_body
from app.api.post import DIRECT
from app.api.routes import Answer, Router
from app.api.service import foundation_of, recording_service
from app.errors import AuditError, BadRequest, BatchTooLarge, Forbidden
from app.events import kubernetes
from app.events.kubernetes import KubernetesEvent, Rules
from app.events.kubernetes_list import Pause, items
from app.ingest.accept import Acceptance, Draft
from app.ingest.submission import new_submission
from app.settings import Settings, comma_separated

PATH = "/api/v1/audit/kubernetes"
_SLICE_SECONDS = 0.005
_LOGGED_MAX = 5
"""Refusals of one list that are logged one by one."""
_one_list = asyncio.Lock()
"""Lists are read one at a time, in slices, so that their parsed items are never all in memory."""

log = logging.getLogger(__name__)


class KubernetesReceipt(Answer):
    """The events of the list are committed, or safe on disk while Postgres is away; those that were stored already count too."""

    stored: int
    refused: int
    message: str


class PersonRefused(Forbidden):
    """Audit events name others as actors: post them with a service account, or a token of the file, not as a person"""


async def post_kubernetes_audit(request: Request) -> Response:
    """Record the audit events of an EventList (audit.k8s.io/v1); 200 once they are committed, or safe on disk."""
    started = perf_counter()
    settings = foundation_of(request).settings
    await authorize_large_body(request)
    body = await read_json_body(request, settings.batch_bytes_max)
    now = datetime.now(UTC)
    reading = _Reading(rules_of(settings), now, caller_name(request))
    async with _one_list:
        await reading.run(body, settings.batch_events_max, request.url.path)
    del body  # up to 50 MiB
    await authorize(request)
    _refuse_person(request)
    try:
        if reading.events:
            await _submit(request, reading, now)
    finally:
        metrics.WRITE_DURATION.labels("audit_events_batch").observe(perf_counter() - started)
    reading.report()
    message = "audit events of Kubernetes recorded"
    return json_response({"stored": reading.stored, "refused": len(reading.refused), "message": message})


def rules_of(settings: Settings) -> Rules:
    """What the settings want stored."""
    return Rules(
        settings.kubernetes_audit_depth_max,
        settings.kubernetes_audit_bytes_max,
        frozenset(comma_separated(settings.kubernetes_audit_bodies_cut)),
        settings.kubernetes_audit_correlation,
        settings.kubernetes_audit_cluster_id,
        settings.kubernetes_audit_retention_days,
    )


def _refuse_person(request: Request) -> None:
    """A person is the actor of all that they post, and these events have actors of their own."""
    if actor_override(request) is not None:
        error = PersonRefused()
        record_denial(request, error, "create")
        raise error


class _Reading:
    """Reads one list, item by item."""

    def __init__(self, rules: Rules, now: datetime, caller: str) -> None:
        self._rules, self._now, self._caller = rules, now, caller
        self.events: dict[UUID, KubernetesEvent] = {}
        """By id."""
        self.refused: list[tuple[str, str]] = []
        """(kind of refusal, why)."""
        self.repeated = 0
        """Items that stand in the list before."""

    @property
    def stored(self) -> int:
        """How many items are stored once those are that are not refused."""
        return len(self.events) + self.repeated

    async def run(self, body: bytes, events_max: int, path: str) -> None:
        """Read all items. BadRequest if the body is no EventList, or has too many of them."""
        slice_end = perf_counter() + _SLICE_SECONDS
        index = 0
        for item in items(body):
            if not isinstance(item, Pause):
                if index >= events_max:
                    message = f"the list has more than {events_max} events: set --audit-webhook-batch-max-size"
                    raise BatchTooLarge(message, instance=path)
                self._add(item, f"/items/{index}")
                index += 1
            if perf_counter() > slice_end:
                await asyncio.sleep(0)
                slice_end = perf_counter() + _SLICE_SECONDS

    def _add(self, item: Any, pointer: str) -> None:
        try:
            event = kubernetes.read_audit_event(item, pointer, self._rules, self._now, self._caller)
        except BadRequest as error:
            self.refused.append(("no_audit_event", error.detail))
            return
        event_id = kubernetes.event_id(event)
        self.repeated += event_id in self.events
        self.events.setdefault(event_id, event)

    def refuse(self, rejections: Mapping[UUID, AuditError]) -> None:
        """Count what the writer has left out."""
        for event_id, error in rejections.items():
            if self.events.pop(event_id, None) is not None:
                self.refused.append((error.label, f"{event_id}: {error.detail}"))

    def report(self) -> None:
        """Count and log what is not stored, or not as it was sent."""
        for reason, number in Counter(reason for reason, _ in self.refused).items():
            metrics.KUBERNETES_REFUSED.labels(reason).inc(number)
        for reason, number in Counter(reason for event in self.events.values() for reason in event.cuts).items():
            metrics.KUBERNETES_CUT.labels(reason).inc(number)
        for reason, why in self.refused[:_LOGGED_MAX]:
            extra = {"reason": reason, "detail": why[:500], "refused_in_list": len(self.refused)}
            log.warning("an audit event of Kubernetes is not stored", extra=extra)


async def _submit(request: Request, reading: _Reading, now: datetime) -> None:
    """Have the writer store the events, in one transaction or in the spool."""
    settings = foundation_of(request).settings
    deadline = asyncio.get_running_loop().time() + settings.batch_deadline_ms / 1000
    drafts = [_draft(event) for event in reading.events.values()]
    service = await recording_service(request, deadline, drafts)
    trace_id, span_id = request.scope["state"].get("trace", (None, None))
    acceptance = Acceptance(now, {}, service.log_name, trace_id=trace_id, span_id=span_id)
    # Another send may have another date (that of its arrival) and another correlation (by the annotation): the primary key, which
    # has both, lets it in, so each id is looked up.
    acceptance = acceptance._replace(other_ids={one: (one,) for one in reading.events})
    submission = await new_submission(drafts, list(reading.events), acceptance, is_lenient=True)
    await service.writer.submit(submission, deadline)
    reading.refuse(submission.rejections or {})


def _draft(event: KubernetesEvent) -> Draft:
    # Not the item's own pointer: what needs one is refused before.
    return Draft(event.posted, "/items", event.payload, event.timestamp, None, None, None, event.actor_ip)


_EVENT_LIST: dict[str, Any] = {
    "type": "object",
    "description": "an EventList of audit.k8s.io/v1, as a kube-apiserver's audit webhook sends it",
    "required": ["kind", "apiVersion", "items"],
    "properties": {
        "kind": {"type": "string", "enum": ["EventList"]},
        "apiVersion": {"type": "string", "enum": ["audit.k8s.io/v1"]},
        "items": {"type": "array", "items": {}, "description": "audit events; what is none is counted as refused"},
    },
}
router = Router(tags=["events"])
DIRECT["POST", PATH] = post_kubernetes_audit
router.add_api_route(
    PATH,
    post_kubernetes_audit,
    methods=["POST"],
    response_class=Response,
    responses={200: {"model": KubernetesReceipt}},
    openapi_extra={"requestBody": {"required": True, "content": {JSON: {"schema": _EVENT_LIST}}}},
)
