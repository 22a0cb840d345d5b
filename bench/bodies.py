"""Events to post: the platform's typed payloads, about 1 kB each, no two alike."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count

EVENT_TYPES = (
    "gateway.signal.received",
    "gateway.crd.created",
    "orchestrator.lifecycle.started",
    "orchestrator.lifecycle.transitioned",
    "orchestrator.approval.requested",
    "remediation.workflow_created",
    "orchestrator.lifecycle.completed",
)
_ADDRESSES = 256  # controllers of a platform that send from an address of their own
_MESSAGE = (
    "The pod was restarted eleven times within ten minutes after the rollout; memory stayed above its limit, "
    "readiness failed on two of three replicas, and the previous revision did not show the symptom. "
)

# The members of GatewayAuditPayload and of RemediationOrchestratorAuditPayload that such events carry.
_PAYLOADS = (
    b'"signal_type":"alert","signal_name":"KubePodCrashLooping","namespace":"%(namespace)s","fingerprint":"%(hash)s",'
    b'"severity":"critical","resource_kind":"Pod","resource_name":"payment-api-%(nonce)s","deduplication_status":"new",'
    b'"occurrence_count":%(number)d,"signal_labels":{"alertname":"KubePodCrashLooping","pod":"payment-api-%(nonce)s",'
    b'"container":"app","job":"kube-state-metrics"},"signal_annotations":{"summary":"Pod is crash looping",'
    b'"runbook_url":"https://runbooks.example/KubePodCrashLooping"},"original_payload":{"receiver":"kubernaut",'
    b'"status":"firing","value":%(number)d.25,"groupKey":"%(nonce)s"}',
    b'"signal_type":"alert","signal_name":"KubePodCrashLooping","namespace":"%(namespace)s","fingerprint":"%(hash)s",'
    b'"severity":"critical","resource_kind":"Pod","resource_name":"payment-api-%(nonce)s","occurrence_count":%(number)d,'
    b'"remediation_request":"%(namespace)s/rr-%(nonce)s","signal_labels":{"alertname":"KubePodCrashLooping",'
    b'"note":"%(message)s"}',
    b'"rr_name":"rr-%(nonce)s","namespace":"%(namespace)s","signal_type":"alert","signal_fingerprint":"%(hash)s",'
    b'"message":"%(message)s","timeout_config":{"global":"1h0m0s","processing":"5m0s","analyzing":"10m0s","executing":"30m0s"}',
    b'"rr_name":"rr-%(nonce)s","namespace":"%(namespace)s","from_phase":"Processing","to_phase":"Analyzing",'
    b'"transition_reason":"%(message)s","duration_ms":%(number)d,"signal_fingerprint":"%(hash)s","is_gitops_managed":true',
    b'"rr_name":"rr-%(nonce)s","namespace":"%(namespace)s","rar_name":"rar-%(nonce)s","required_by":"2031-01-31T12:30:00Z",'
    b'"workflow_id":"wf-restart-%(nonce)s","confidence_str":"0.%(number)d","decision":"Pending","reason":"%(message)s"',
    b'"rr_name":"rr-%(nonce)s","namespace":"%(namespace)s","workflow_id":"wf-restart-%(nonce)s","workflow_version":"1.4.2",'
    b'"action_type":"RestartDeployment","target_resource":"%(namespace)s/Deployment/payment-api-%(number)d",'
    b'"pre_remediation_spec_hash":"sha256:%(hash)s","message":"%(message)s"',
    b'"rr_name":"rr-%(nonce)s","namespace":"%(namespace)s","outcome":"Success","duration_ms":%(number)d,'
    b'"crd_outcome":"Remediated","workflow_id":"wf-restart-%(nonce)s","message":"%(message)s","is_crd":false',
)
_ENVELOPE = (
    b'{"version":"1.0","event_type":"%(type)s","event_timestamp":"%(timestamp)s","event_category":"%(category)s",'
    b'"event_action":"%(action)s","event_outcome":"success","actor_type":"service","actor_id":"%(category)s-controller",'
    b'"actor_ip":"%(address)s","resource_type":"RemediationRequest","resource_id":"rr-%(nonce)s",'
    b'"correlation_id":"%(correlation)s","namespace":"%(namespace)s","cluster_id":"prod-eu-1","severity":"critical",'
    b'"duration_ms":%(number)d,"event_data":{"event_type":"%(type)s",PAYLOAD}}'
)
_EVENTS = tuple(
    (event_type.encode(), _ENVELOPE.replace(b"PAYLOAD", payload))
    for event_type, payload in zip(EVENT_TYPES, _PAYLOADS, strict=True)
)


@dataclass
class Bodies:
    """A source of events that never repeats itself."""

    correlations: int
    spread: timedelta = timedelta(0)
    """How far back from now event_timestamp may lie."""
    _random: random.Random = field(default_factory=random.Random)
    _serial: Iterator[int] = field(default_factory=count)

    def __post_init__(self) -> None:
        self.prefix = f"bench-{self._random.getrandbits(32):08x}"

    def correlation_id(self) -> str:
        """One of the correlation ids in use."""
        return f"{self.prefix}-{self._random.randrange(self.correlations):06d}"

    def event(self) -> bytes:
        """The next event."""
        draw = self._random
        event_type, template = _EVENTS[next(self._serial) % len(_EVENTS)]
        moment = datetime.now(UTC) - self.spread * draw.random()
        return template % {
            b"type": event_type,
            b"timestamp": moment.isoformat(timespec="microseconds").replace("+00:00", "Z").encode(),
            b"category": b"gateway" if event_type.startswith(b"gateway") else b"orchestration",
            b"action": event_type.rpartition(b".")[2],
            b"address": b"10.244.7.%d" % draw.randrange(_ADDRESSES),
            b"nonce": b"%016x" % draw.getrandbits(64),
            b"hash": b"%064x" % draw.getrandbits(256),
            b"correlation": self.correlation_id().encode(),
            b"namespace": b"payments-%d" % draw.randrange(40),
            b"number": draw.randrange(100, 100_000),
            b"message": _MESSAGE.encode(),
        }

    def singles(self, number: int) -> list[bytes]:
        """Bodies of that many single posts."""
        return [self.event() for _ in range(number)]

    def batches(self, number: int, events: int) -> list[bytes]:
        """Bodies of that many batches of `events` each."""
        return [b"[" + b",".join(self.event() for _ in range(events)) + b"]" for _ in range(number)]

    def large(self, body_bytes: int, events: int) -> bytes:
        """One batch of about `body_bytes`, whose events carry their share of it in original_payload."""
        share = body_bytes // events - 1_200
        whole = [self._with_text(share) for _ in range(events)]
        return b"[" + b",".join(whole) + b"]"

    def _with_text(self, text_bytes: int) -> bytes:
        event = self.event()
        text = self._random.randbytes(max(text_bytes, 2) // 2).hex().encode()
        return event.replace(b'"event_data":{', b'"event_data":{"attachment":"%b",' % text, 1)
