"""The chart's files that need no Helm: values, alert rules and dashboard against the service as it is."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import promql_parser
import pytest
import yaml
from prometheus_client import REGISTRY

from app.settings import CLIENT_VARIABLES, Settings
from tests.services import ROOT, Service

CHART = ROOT / "charts" / "datastorage"
VALUES = sorted(CHART.glob("values*.yaml"), key=lambda path: path.name)
FROM_PROMETHEUS = {"namespace", "pod", "job", "instance", "le"}
"""Labels that a scrape or a histogram adds."""


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text("utf-8"))


def rules() -> list[dict[str, Any]]:
    return [rule for group in read(CHART / "files" / "alerts.yaml")["groups"] for rule in group["rules"]]


def panel_expressions() -> Iterator[str]:
    dashboard = json.loads((CHART / "files" / "dashboard.json").read_bytes())
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            yield target["expr"].replace("$__rate_interval", "5m")
    for variable in dashboard["templating"]["list"]:
        if found := re.match(r"label_values\((.+), \w+\)", variable["query"]):
            yield found[1]


EXPRESSIONS = [rule["expr"] for rule in rules()] + list(panel_expressions())


def selectors(expression: str) -> list[Any]:
    """Each place in a PromQL expression that names a metric. Raises ValueError when it does not parse."""
    found: list[Any] = []

    def visit(node: Any) -> None:
        if type(node).__name__ == "VectorSelector":
            found.append(node)

    promql_parser.walk(promql_parser.parse(expression), visit)
    return found


def test_alerts_and_dashboard_name_metrics_that_exist(service: Callable[..., Service]) -> None:
    """An alert can never fire, or a panel stays empty: the service has no metric of that name."""
    text = httpx.get(f"{service().url}/metrics").text
    exist = set()
    for name, kind in re.findall(r"^# TYPE (\S+) (\w+)$", text, re.MULTILINE):
        exist |= {f"{name}_bucket", f"{name}_sum", f"{name}_count"} if kind == "histogram" else {name}
    named = {selector.name for expression in EXPRESSIONS for selector in selectors(expression)}
    assert len(named) > 15
    assert named - exist == set()


def test_alerts_and_dashboard_name_labels_that_exist() -> None:
    """An alert can never fire: it asks for a label that the metric does not have."""
    import app.metrics  # noqa: F401  declares them

    labels: dict[str, set[str]] = {}
    for collector, names in REGISTRY._collector_to_names.items():
        for name in names:
            labels[name] = set(getattr(collector, "_labelnames", ())) | FROM_PROMETHEUS
    asked = {
        (selector.name, matcher.name)
        for expression in EXPRESSIONS
        for selector in selectors(expression)
        for matcher in selector.matchers.matchers
    }
    assert {(metric, label) for metric, label in asked if label not in labels[metric]} == set()
    for rule in rules():
        grouped = {name for names in re.findall(r"by \(([^)]*)\)", rule["expr"]) for name in re.split(r",\s*", names)}
        known = set().union(*(labels[selector.name] for selector in selectors(rule["expr"])))
        used = set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
        assert grouped | used <= known, rule["alert"]
        if grouped:
            assert used <= grouped, f"{rule['alert']} shows a label that its expression sums away"


def test_every_alert_says_what_to_do() -> None:
    """Somebody is woken by an alert that docs/operations.md does not explain, or it explains one that is gone."""
    text = (ROOT / "docs" / "operations.md").read_text("utf-8")
    explained = re.findall(r"^### (Datastorage\w+)\n\n(.+)", text, re.MULTILINE)
    assert [name for name, _ in explained] == [rule["alert"] for rule in rules()]
    for rule in rules():
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert rule["annotations"]["summary"]


@pytest.mark.parametrize("path", VALUES, ids=lambda path: path.name)
def test_values_fit_their_schema(path: Path) -> None:
    """`helm install` refuses a values file of the chart's own."""
    schema = json.loads((CHART / "values.schema.json").read_bytes())
    jsonschema.Draft7Validator.check_schema(schema)
    jsonschema.Draft7Validator(schema).validate(merged(read(CHART / "values.yaml"), read(path)))


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """As Helm does it."""
    both = {key: merged(base[key], over[key]) for key in base.keys() & over.keys() if isinstance(base[key], dict)}
    return base | over | both


@pytest.mark.parametrize(
    "values",
    [
        {"settings": {"database_url": "postgresql://u:p@h/d"}},
        {"settings": {"LOG_LEVEL": "DEBUG"}},
        {"spool": {"kind": "hostPath"}},
        {"files": [{"setting": "event_types_dir", "secret": "a", "configMap": "b"}]},
        {"replicaCount": 2},
        {"clients": [{"name": "a", "role": "owner"}]},
    ],
    ids=str,
)
def test_schema_refuses_mistakes(values: dict[str, Any]) -> None:
    """A mistyped value is taken without a word, or a secret lands in a ConfigMap."""
    schema = json.loads((CHART / "values.schema.json").read_bytes())
    assert not jsonschema.Draft7Validator(schema).is_valid(merged(read(CHART / "values.yaml"), values))


def test_every_value_is_in_the_schema_and_has_a_default() -> None:
    """The schema and values.yaml know different values."""
    schema = json.loads((CHART / "values.schema.json").read_bytes())
    assert set(read(CHART / "values.yaml")) == set(schema["properties"]) - {"global"}


def test_every_setting_of_the_chart_exists() -> None:
    """A pod does not start, or ignores what its values say: the service has no setting of that name."""
    named = {name for path in VALUES for name in read(path).get("settings") or ()}
    named |= {file["setting"] for path in VALUES for file in read(path).get("files") or ()}
    for template in (CHART / "templates").iterdir():
        named |= {
            name.lower() for name in re.findall(r"DATASTORAGE_([A-Z][A-Z_]*[A-Z])\b", template.read_text("utf-8"))
        }
    assert len(named) > 5
    secret = {f"{name}_file" for name, field in Settings.model_fields.items() if "Secret" in str(field.annotation)}
    of_clients = {name.removeprefix("DATASTORAGE_").lower() for name in CLIENT_VARIABLES}
    assert named - set(Settings.model_fields) - secret - of_clients == set()


def test_no_password_in_the_chart() -> None:
    """Every installation that changes nothing has the same password."""
    for path in CHART.rglob("*.yaml"):
        for line in path.read_text("utf-8").splitlines():
            assert not re.search(r"(?i)password\w*:\s*[\"']?[a-z0-9]", line), f"{path.name}: {line}"
