"""GET of a remediation's effectiveness."""

from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from app.api.archived import find_report
from app.api.body import json_response
from app.api.deadline import within_deadline
from app.api.parameters import CORRELATION_ID, WITHOUT_ARCHIVE, excludes_archive, path_correlation_id
from app.api.routes import Answer, Router
from app.errors import AuditError, DatabaseFailed
from app.query.effectiveness import answer, effectiveness

router = Router(tags=["remediation"])

AssessmentStatus = Literal[
    "Full",
    "Partial",
    "SpecDrift",
    "Expired",
    "NoExecution",
    "MetricsTimedOut",
    "AlertDecayTimeout",
    "Unrecoverable",
    "in_progress",
    "no_data",
]
Score = Annotated[float | None, Field(description="from 0 to 1; null when there is none")]


class Components(Answer):
    """What was looked at. Details are left out when there are none."""

    health_assessed: bool
    health_score: Score
    health_details: str | None = None
    alert_assessed: bool
    alert_score: Score
    alert_details: str | None = None
    metrics_assessed: bool
    metrics_score: Score
    metrics_details: str | None = None


class HashComparison(Answer):
    """The target's spec before and after. What is unknown is left out."""

    pre_remediation_spec_hash: str | None = None
    post_remediation_spec_hash: str | None = None
    hash_match: bool | None = None


class EffectivenessScore(Answer):
    """Whether a remediation worked: the weighted mean of what was assessed."""

    correlation_id: str
    score: Score
    components: Components
    hash_comparison: HashComparison
    assessment_status: AssessmentStatus
    computed_at: datetime
    sealed: Annotated[
        bool | None,
        Field(description="false: of some events that others inserted by SQL; absent if all are in the log"),
    ] = None


class NotAssessed(AuditError):
    """Nobody has assessed this remediation."""

    status = 404
    slug = "effectiveness/not-found"
    title = "Effectiveness Assessment Not Found"


class AssessmentsNotRead(DatabaseFailed):
    """The assessments could not be read; see the service's log."""

    slug = "effectiveness/query-error"


@router.get(
    f"/api/v1/effectiveness/{CORRELATION_ID}",
    response_class=Response,
    responses={200: {"model": EffectivenessScore}},
    openapi_extra={"parameters": [WITHOUT_ARCHIVE]},
)
async def get_effectiveness(request: Request, correlation_id: str) -> Response:
    """Whether a remediation worked, and what was looked at to say so."""
    correlation_id = path_correlation_id(request, correlation_id)
    with_archive = not excludes_archive(request)
    try:
        read = find_report(
            *(request, correlation_id, None, lambda pool, archived: effectiveness(pool, correlation_id, archived)),
            with_archive=with_archive,
        )
        found = await within_deadline(request, read)
    except DatabaseFailed as error:
        raise AssessmentsNotRead from (error.__cause__ or error)
    if not found.total:
        raise NotAssessed(f"There is no effectiveness assessment of {correlation_id}.", instance=request.url.path)
    return json_response(answer(correlation_id, found, f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"))
