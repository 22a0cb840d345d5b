"""Whether a remediation worked, as its assessments tell it (contract section 16). Pure but for `effectiveness`.

Rows are routed by their event_type column; members of another JSON type than expected say nothing.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine

from app.db import driver_connection
from app.events.canonical import loads
from app.sql import load

SQL = load("reports")["effectiveness"]
WEIGHTS = {"health": 0.40, "alert": 0.35, "metrics": 0.25}
DRIFT = "SpecDrift"
REASONS = frozenset(
    {DRIFT, "Full", "Partial", "Expired", "NoExecution", "MetricsTimedOut", "AlertDecayTimeout", "Unrecoverable"}
)
"""What the reference's clients know; they fail on another."""
_ROWS_AT_ONCE = 64


@dataclass(slots=True)
class Component:
    """Health, alert or metrics: whether anybody looked, and what was seen."""

    assessed: bool = False
    score: float | None = None
    details: str = ""


@dataclass(slots=True)
class Effectiveness:
    """The assessments of one remediation, taken in the order of their times: the last word counts, but drift stays."""

    components: dict[str, Component] = field(default_factory=lambda: {name: Component() for name in WEIGHTS})
    hashes: dict[str, str | bool] = field(default_factory=dict)
    """pre_remediation_spec_hash, post_remediation_spec_hash and hash_match, as far as they are known."""
    reason: str = ""
    total: int = 0
    """Rows taken."""

    def take(self, event_type: str, payload: Any) -> None:
        """Read one assessment, whatever it is made of."""
        self.total += 1
        said = payload if isinstance(payload, dict) else {}
        kind = event_type.removeprefix("effectiveness.")
        if kind == "hash.computed":
            self._take_hashes(said)
        elif kind == "assessment.completed":
            if self.reason != DRIFT:
                self.reason = text(said.get("reason")) or self.reason
        elif kind.endswith(".assessed") and kind.removesuffix(".assessed") in self.components:
            self._take_component(self.components[kind.removesuffix(".assessed")], said)

    def _take_component(self, component: Component, said: dict[str, Any]) -> None:
        component.assessed = component.assessed or said.get("assessed") is True
        score = number(said.get("score"))
        if score is not None:
            component.score = min(max(float(score), 0.0), 1.0)
        component.details = text(said.get("details")) or component.details

    def _take_hashes(self, said: dict[str, Any]) -> None:
        for name in ("pre_remediation_spec_hash", "post_remediation_spec_hash"):
            if value := text(said.get(name)):
                self.hashes[name] = value
        if isinstance(match := said.get("hash_match"), bool):
            self.hashes["hash_match"] = match

    @property
    def score(self) -> float | None:
        """Between 0 and 1; None when nothing that was assessed has a score. What has drifted did not work."""
        if self.reason == DRIFT:
            return 0.0
        scored = [(WEIGHTS[n], c.score) for n, c in self.components.items() if c.assessed and c.score is not None]
        if not scored:
            return None
        mean = sum(weight * score for weight, score in scored) / sum(weight for weight, _ in scored)
        return min(max(mean, 0.0), 1.0)

    @property
    def known_reason(self) -> str:
        """The reason if clients know it, else an empty text."""
        return self.reason if self.reason in REASONS else ""

    @property
    def status(self) -> str:
        """How far the assessment is."""
        if self.reason:
            return self.known_reason or "Partial"
        return "in_progress" if any(component.assessed for component in self.components.values()) else "no_data"


async def effectiveness(engine: AsyncEngine, correlation_id: str) -> Effectiveness:
    """What the assessments of one remediation say; `total` is 0 when there is none."""
    found = Effectiveness()
    async with driver_connection(engine) as connection, connection.transaction(readonly=True):
        async for row in connection.cursor(SQL, correlation_id, prefetch=_ROWS_AT_ONCE):
            found.take(row["event_type"], loads(row["payload"]))
    return found


def text(value: Any) -> str:
    """A text of a payload; empty for anything else."""
    return value if isinstance(value, str) else ""


def number(value: Any) -> int | float | None:
    """A number of a payload that a reader can hold; None for anything else."""
    if isinstance(value, (int, float, Decimal)) and not isinstance(value, bool):
        if isinstance(value, int) and abs(value) < 2**53:
            return value
        try:
            nearest = float(value)
        except OverflowError:
            return None
        return nearest if math.isfinite(nearest) else None
    return None


def answer(correlation_id: str, found: Effectiveness, computed_at: str) -> Mapping[str, Any]:
    """What is answered, in the contract's order."""
    components: dict[str, Any] = {}
    for name, component in found.components.items():
        components[f"{name}_assessed"] = component.assessed
        components[f"{name}_score"] = component.score
        if component.details:
            components[f"{name}_details"] = component.details
    return {
        "correlation_id": correlation_id,
        "score": found.score,
        "components": components,
        "hash_comparison": found.hashes,
        "assessment_status": found.status,
        "computed_at": computed_at,
    }
