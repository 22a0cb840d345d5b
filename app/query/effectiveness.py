"""Whether a remediation worked, by its assessments (docs/contract.md, section 16). Pure, except for `effectiveness`.

The column event_type decides what a row is; a member of another JSON type than expected is ignored.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from app.db import Pool, driver_connection
from app.events.canonical import loads
from app.events.record import Row
from app.query.both import archived_columns
from app.sql import load

SQL = load("reports")
CATEGORY = "effectiveness"
WEIGHTS = {"health": 0.40, "alert": 0.35, "metrics": 0.25}
DRIFT = "SpecDrift"
REASONS = frozenset(
    {DRIFT, "Full", "Partial", "Expired", "NoExecution", "MetricsTimedOut", "AlertDecayTimeout", "Unrecoverable"}
)
"""The reasons that the reference's clients know; they fail on any other."""
_ROWS_AT_ONCE = 64


@dataclass(slots=True)
class Component:
    """Health, alert or metrics: whether it was assessed, and the result."""

    assessed: bool = False
    score: float | None = None
    details: str = ""


@dataclass(slots=True)
class Effectiveness:
    """The assessments of one remediation, added in the order of their times: a later one overrides, except that drift stays."""

    components: dict[str, Component] = field(default_factory=lambda: {name: Component() for name in WEIGHTS})
    hashes: dict[str, str | bool] = field(default_factory=dict)
    """pre_remediation_spec_hash, post_remediation_spec_hash and hash_match, as far as they are known."""
    reason: str = ""
    total: int = 0
    """How many assessments were added."""
    is_sealed: bool = True
    """Whether all of them are events of the log, as far as their rows say."""

    def add(self, event_type: str, payload: Any) -> None:
        """Add one assessment; the payload may be any JSON value."""
        self.total += 1
        members = payload if isinstance(payload, dict) else {}
        kind = event_type.removeprefix("effectiveness.")
        if kind == "hash.computed":
            self._add_hashes(members)
        elif kind == "assessment.completed":
            if self.reason != DRIFT:
                self.reason = text_or_empty(members.get("reason")) or self.reason
        elif kind.endswith(".assessed") and kind.removesuffix(".assessed") in self.components:
            self._add_component(self.components[kind.removesuffix(".assessed")], members)

    def _add_component(self, component: Component, members: dict[str, Any]) -> None:
        component.assessed = component.assessed or members.get("assessed") is True
        score = number_or_none(members.get("score"))
        if score is not None:
            component.score = min(max(float(score), 0.0), 1.0)
        component.details = text_or_empty(members.get("details")) or component.details

    def _add_hashes(self, members: dict[str, Any]) -> None:
        for name in ("pre_remediation_spec_hash", "post_remediation_spec_hash"):
            if value := text_or_empty(members.get(name)):
                self.hashes[name] = value
        if isinstance(match := members.get("hash_match"), bool):
            self.hashes["hash_match"] = match

    @property
    def score(self) -> float | None:
        """From 0 to 1; None when no assessed component has a score. After drift it is 0: the remediation did not last."""
        if self.reason == DRIFT:
            return 0.0
        scored = [(WEIGHTS[n], c.score) for n, c in self.components.items() if c.assessed and c.score is not None]
        if not scored:
            return None
        mean = sum(weight * score for weight, score in scored) / sum(weight for weight, _ in scored)
        return min(max(mean, 0.0), 1.0)

    @property
    def known_reason(self) -> str:
        """The reason if clients know it; otherwise empty."""
        return self.reason if self.reason in REASONS else ""

    @property
    def status(self) -> str:
        """The reason once the assessment is complete; otherwise in_progress or no_data."""
        if self.reason:
            return self.known_reason or "Partial"
        return "in_progress" if any(component.assessed for component in self.components.values()) else "no_data"


async def effectiveness(pool: Pool, correlation_id: str, archived: Sequence[Row] = ()) -> Effectiveness:
    """The assessments of one remediation added up, with those of its events that are `archived` alone; `total` is 0 without assessments."""
    result = Effectiveness()
    assessments = [row for row in archived if row["event_category"] == CATEGORY]
    statement = SQL["effectiveness_of_both" if assessments else "effectiveness"]
    more = [[], *archived_columns(assessments)] if assessments else []
    async with driver_connection(pool) as connection, connection.transaction(readonly=True):
        async for row in connection.cursor(statement, correlation_id, *more, prefetch=_ROWS_AT_ONCE):
            result.add(row["event_type"], loads(row["payload"]))
            result.is_sealed = result.is_sealed and row["sealed"]
    return result


def text_or_empty(value: Any) -> str:
    """A member of a payload that should be a text; empty for any other JSON type."""
    return value if isinstance(value, str) else ""


def number_or_none(value: Any) -> int | float | None:
    """A member of a payload that should be a number that a double can represent; None for anything else."""
    if isinstance(value, (int, float, Decimal)) and not isinstance(value, bool):
        if isinstance(value, int) and abs(value) < 2**53:
            return value
        try:
            nearest = float(value)
        except OverflowError:
            return None
        return nearest if math.isfinite(nearest) else None
    return None


def answer(correlation_id: str, result: Effectiveness, computed_at: str) -> Mapping[str, Any]:
    """The members of the answer, in the contract's order."""
    components: dict[str, Any] = {}
    for name, component in result.components.items():
        components[f"{name}_assessed"] = component.assessed
        components[f"{name}_score"] = component.score
        if component.details:
            components[f"{name}_details"] = component.details
    return {
        "correlation_id": correlation_id,
        "score": result.score,
        "components": components,
        "hash_comparison": result.hashes,
        "assessment_status": result.status,
        "computed_at": computed_at,
    } | ({} if result.is_sealed else {"sealed": False})
