"""GET of the earlier remediations of a resource."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from starlette.requests import Request
from starlette.responses import Response

from app.api.body import json_response
from app.api.deadline import within_deadline
from app.api.parameters import query_parameters
from app.api.reads import reads_of
from app.api.routes import Answer, Router
from app.errors import BadRequest, DatabaseFailed
from app.events.explain import bad_fields
from app.go_duration import duration_text, parse_window
from app.query.remediation_history import FAR_MEMBERS, Target, history, regression

router = Router(tags=["remediation"])

HashMatch = Literal["preRemediation", "postRemediation", "none"]
Reason = Literal[
    "Full",
    "Partial",
    "SpecDrift",
    "Expired",
    "NoExecution",
    "MetricsTimedOut",
    "AlertDecayTimeout",
    "Unrecoverable",
]


class HealthOfPods(Answer):
    """How the pods were after the remediation."""

    podRunning: bool | None = None
    readinessPass: bool | None = None
    restartDelta: int | None = None
    crashLoops: bool | None = None
    oomKilled: bool | None = None
    pendingCount: int | None = None


class Deltas(Answer):
    """Measurements from before and after the remediation."""

    cpuBefore: float | None = None
    cpuAfter: float | None = None
    memoryBefore: float | None = None
    memoryAfter: float | None = None
    latencyP95BeforeMs: float | None = None
    latencyP95AfterMs: float | None = None
    errorRateBefore: float | None = None
    errorRateAfter: float | None = None
    throughputBeforeRps: float | None = None
    throughputAfterRps: float | None = None
    nodeNotReadyBefore: float | None = None
    nodeNotReadyAfter: float | None = None
    nodeMemoryPressureBefore: float | None = None
    nodeMemoryPressureAfter: float | None = None
    nodeDiskPressureBefore: float | None = None
    nodeDiskPressureAfter: float | None = None
    pvPhaseFailedBefore: float | None = None
    pvPhaseFailedAfter: float | None = None
    pvPhasePendingBefore: float | None = None
    pvPhasePendingAfter: float | None = None
    pvUsageRatioBefore: float | None = None
    pvUsageRatioAfter: float | None = None


class FarEntry(Answer):
    """One earlier remediation. What is unknown is left out."""

    remediationUID: str
    completedAt: datetime
    signalType: str | None = None
    actionType: str | None = None
    outcome: str | None = None
    effectivenessScore: float | None = None
    signalResolved: bool | None = None
    hashMatch: HashMatch
    assessmentReason: Reason | None = None


class NearEntry(FarEntry):
    """One remediation of the last time, with all that was seen after it."""

    signalFingerprint: str | None = None
    preRemediationSpecHash: str | None = None
    postRemediationSpecHash: str | None = None
    healthChecks: HealthOfPods | None = None
    metricDeltas: Deltas | None = None
    sideEffects: list[str]


class Near(Answer):
    """The last time, oldest remediation first."""

    window: str
    chain: list[NearEntry]


class Far(Answer):
    """The time before that."""

    window: str
    chain: list[FarEntry]


class RemediationHistory(Answer):
    """Earlier remediations of one resource that left it as it is now, or began from what it is now."""

    targetResource: str
    currentSpecHash: str
    regressionDetected: bool
    tier1: Near
    tier2: Far


class MissingParameter(BadRequest):
    """A required parameter is empty."""

    slug = "missing-parameter"
    title = "Missing Required Parameter"


class InvalidParameter(BadRequest):
    """A window is no time span."""

    slug = "invalid-parameter"
    title = "Invalid Parameter"


class HistoryNotRead(DatabaseFailed):
    """The history could not be read; see the service's log."""

    slug = "query-error"


_REQUIRED = {
    "targetKind": "kind of the resource",
    "targetName": "its name",
    "targetNamespace": "its namespace; empty for a resource without one",
    "currentSpecHash": "hash of the spec that it has now",
}
_WINDOWS = {"tier1Window": ("24h", "the near tier"), "tier2Window": ("2160h", "both tiers")}
_OPTIONAL = {"clusterId": "only what happened in this cluster"} | {
    name: f"time span of {what}, such as 7d or 24h0m0s" for name, (_, what) in _WINDOWS.items()
}
_FILLED = {"type": "string", "minLength": 1}
_SPAN = {"type": "string", "pattern": r"^([0-9]+d|([0-9]+(\.[0-9]+)?(ns|us|ms|s|m|h))+)?$"}
_SCHEMAS = {name: _FILLED for name in _REQUIRED if name != "targetNamespace"} | dict.fromkeys(_WINDOWS, _SPAN)
_PARAMETERS = [
    {"name": name, "in": "query", "description": description, "schema": _SCHEMAS.get(name, {"type": "string"})}
    | ({"required": True} if name in _REQUIRED else {})
    for name, description in (_REQUIRED | _OPTIONAL).items()
]


@router.get(
    "/api/v1/remediation-history/context",
    response_class=Response,
    responses={200: {"model": RemediationHistory}},
    openapi_extra={"parameters": _PARAMETERS},
)
async def get_remediation_history(request: Request) -> Response:
    """What was done to a resource before, and whether it helped."""
    target, near, far = parse_query(request.scope["query_string"])
    now = datetime.now(UTC)
    bounds = (now, now - _timedelta(near), now - _timedelta(far))
    try:
        near_chain, far_chain = await within_deadline(
            request, reads_of(request)(lambda pool: history(pool, target, bounds))
        )
    except DatabaseFailed as error:
        raise HistoryNotRead from (error.__cause__ or error)
    return json_response(
        {
            "targetResource": target.resource,
            "currentSpecHash": target.spec_hash,
            "regressionDetected": regression(near_chain, far_chain),
            "tier1": {"window": duration_text(near), "chain": near_chain},
            "tier2": {"window": duration_text(far), "chain": _far_entries(far_chain)},
        }
    )


def parse_query(query_string: bytes) -> tuple[Target, int, int]:
    """(target, near window, far window) of a query string, the windows in nanoseconds."""
    sent = query_parameters(query_string, _REQUIRED | _OPTIONAL)
    if absent := [name for name in _REQUIRED if name not in sent]:
        raise bad_fields(dict.fromkeys(absent, "required, but missing"))
    if empty := [name for name in _REQUIRED if not sent[name] and name != "targetNamespace"]:
        raise MissingParameter(f"{', '.join(empty)}: expected a value, got an empty one")
    near, far = (_window(name, sent.get(name) or default) for name, (default, _) in _WINDOWS.items())
    if far <= near:
        raise InvalidParameter(
            f"tier2Window: expected more than tier1Window, which is {duration_text(near)}, got {duration_text(far)}"
        )
    target = Target(
        sent["targetKind"],
        sent["targetName"],
        sent["targetNamespace"],
        sent["currentSpecHash"],
        sent.get("clusterId") or None,
    )
    return target, near, far


def _window(name: str, value: str) -> int:
    try:
        window = parse_window(value)
    except ValueError as error:
        raise InvalidParameter(f"{name}: {error}, or a number of days such as 7d") from None
    if window <= 0:
        raise InvalidParameter(f"{name}: expected more than nothing, got {value[:60]!r}")
    return window


def _timedelta(nanoseconds: int) -> timedelta:
    """At most 292 years, since Go's durations have 64 bits: subtracted from today, that is a year that Python knows."""
    return timedelta(microseconds=nanoseconds // 1000)


def _far_entries(chain: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{name: entry[name] for name in FAR_MEMBERS if name in entry} for entry in chain]
