"""Events of the workflow catalog's search, by which an agent finds the workflows that apply to its case."""

from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from app.events.catalog.value_types import Confidence, Int32, Int64, Uuid
from app.events.envelope import Category

CATEGORY: Category = "workflow"


class DetectedLabels(TypedDict):
    """What was found out about the affected workload, which a workflow must get on with."""

    failedDetections: NotRequired[
        list[
            Literal[
                "gitOpsManaged",
                "gitOpsTool",
                "pdbProtected",
                "hpaEnabled",
                "stateful",
                "helmManaged",
                "networkIsolated",
                "serviceMesh",
                "resourceQuotaConstrained",
                "virtualMachine",
                "liveMigratable",
                "cdiManaged",
                "storageBackend",
            ]
        ]
    ]
    gitOpsManaged: NotRequired[bool]
    gitOpsTool: NotRequired[Literal["argocd", "flux", "*"]]
    pdbProtected: NotRequired[bool]
    hpaEnabled: NotRequired[bool]
    stateful: NotRequired[bool]
    helmManaged: NotRequired[bool]
    networkIsolated: NotRequired[bool]
    serviceMesh: NotRequired[Literal["istio", "linkerd", "*"]]
    resourceQuotaConstrained: NotRequired[bool]
    virtualMachine: NotRequired[bool]
    liveMigratable: NotRequired[bool]
    cdiManaged: NotRequired[bool]
    storageBackend: NotRequired[Literal["odf-ceph", "lvms", "local", "*"]]


class SearchFilters(TypedDict):
    """The situation for which workflows were sought."""

    severity: Literal["critical", "high", "warning", "info"]
    component: str
    environment: str
    priority: Literal["P0", "P1", "P2", "P3"]
    customLabels: NotRequired[dict[str, list[str]]]
    detectedLabels: NotRequired[DetectedLabels]
    status: NotRequired[list[Literal["Active", "Disabled", "Deprecated", "Archived"]]]


class SearchQuery(TypedDict):
    """What was asked of the catalog, and how many answers were wanted."""

    top_k: Int32
    min_score: NotRequired[float]
    filters: NotRequired[SearchFilters]


class Scoring(TypedDict):
    """How well a workflow fits the question."""

    confidence: Confidence


class FoundWorkflow(TypedDict):
    """One workflow of an answer, at its rank."""

    workflow_id: Uuid
    title: str
    rank: Int32
    scoring: Scoring
    owner: NotRequired[str]
    maintainer: NotRequired[str]
    description: NotRequired[str]
    labels: NotRequired[dict[str, Any]]


class SearchResults(TypedDict):
    """The workflows that were found, and how many of them were handed over."""

    total_found: Int32
    returned: Int32
    workflows: list[FoundWorkflow]


class SearchMetadata(TypedDict):
    """What the search cost."""

    duration_ms: Int64


class WorkflowDiscoveryPayload(TypedDict):
    """The catalog answered an agent: kinds of action, workflows of a kind, one workflow, or the check of a choice.

    Shows which workflows were on the table, so that a choice can be judged by its alternatives.
    """

    event_type: Literal[
        "workflow.catalog.actions_listed",
        "workflow.catalog.workflows_listed",
        "workflow.catalog.workflow_retrieved",
        "workflow.catalog.selection_validated",
    ]
    query: SearchQuery
    results: SearchResults
    search_metadata: SearchMetadata
