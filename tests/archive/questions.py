"""An auditor's ten questions: docs/archive.sql, its answers by DuckDB, and those of the API, each as rows of plain values."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import partial
from time import perf_counter
from typing import Any

import duckdb
import httpx

from app.events.canonical import canonical, loads
from tests.services import ROOT
from tests.waiting import until

FILE = ROOT / "docs" / "archive.sql"
_QUESTION = re.compile(r"^-- (\d+)\. (.*)$", re.MULTILINE)
_PARAMETER = re.compile(r":(\w+)")

Rows = list[tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Question:
    """One statement of the file, with the values of its parameters."""

    number: int
    title: str
    sql: str
    """With `:name` where a parameter is."""
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """The rows of one question, and how long they took."""

    seconds: float
    rows: Rows


def view_and_questions(parameters: Mapping[str, Any]) -> tuple[str, list[Question]]:
    """The statement that makes the view, and the questions about it."""
    view, *parts = _QUESTION.split(FILE.read_text("utf-8"))
    questions = []
    for number, title, text in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        sql = text.strip().removesuffix(";")
        named = {name: parameters[name] for name in _PARAMETER.findall(sql)}
        questions.append(Question(int(number), title, sql, named))
    return view.strip().removesuffix(";"), questions


def answers_of_api(api: httpx.Client, parameters: Mapping[str, Any]) -> dict[int, Rows]:
    """The answer to each question, as the service gives it by its routes, in the order of the SQL."""
    ask = partial(_events, api)
    since, end = parameters["since"].isoformat(), parameters["until"].isoformat()
    decided = ask(event_type_in=["orchestrator.approval.approved", "orchestrator.approval.rejected"])
    return {
        1: _columns(
            ask(correlation_id=parameters["correlation_id"], order="log"),
            *("event_timestamp", "event_type", "event_outcome", "actor_id", "event_data"),
        ),
        2: [
            (*row, _first(event["event_data"], "approved_by", "rejected_by", "decided_by"))
            for event, row in zip(
                decided, _columns(decided, "event_timestamp", "correlation_id", "event_type"), strict=True
            )
        ],
        3: _columns(
            ask(event_outcome="failure", since=since, until=end),
            *("event_id", "event_timestamp", "event_type", "resource_id", "error_message"),
        ),
        4: _columns(
            ask(resource_id=parameters["resource_id"]),
            *("event_id", "event_timestamp", "event_type", "event_action", "actor_type", "actor_id"),
            "previous_event_hash",
        ),
        5: list(_days(api, since, end)),
        6: list(_scores(api, ask(event_type_in=["effectiveness.*"]))),
        7: sorted(_correlations(api)),
        8: _columns(
            ask(detail_key="workflow_id", detail_value=parameters["workflow_id"]),
            *("event_id", "correlation_id", "version", "namespace", "cluster_id", "event_data"),
        ),
        9: _columns(
            ask(q=parameters["text"], since=since), *("event_id", "event_timestamp", "severity", "duration_ms")
        ),
        10: _columns(
            list(_erased(api, ask(event_type="datastorage.event.erased"))),
            *("event_id", "event_timestamp", "event_type", "actor_id", "resource_id", "event_data"),
        ),
    }


def answers_of_duckdb(files: Sequence[str], parameters: Mapping[str, Any]) -> dict[int, Answer]:
    """The answer to each question, from files of the archive."""
    view, questions = view_and_questions(parameters)
    answers = {}
    with duckdb.connect() as engine:
        engine.execute("SET TimeZone = 'UTC'")
        engine.execute("CREATE MACRO get_json_object(value, path) AS json_extract_string(value, path)")
        engine.read_parquet(list(files)).create_view("archived_events")
        engine.execute(view)
        for question in questions:
            started = perf_counter()
            found = engine.execute(_PARAMETER.sub(r"$\1", question.sql), question.parameters).fetchall()
            rows = [tuple(map(_plain, row)) for row in found]
            answers[question.number] = Answer(perf_counter() - started, rows)
    return answers


def _plain(value: Any) -> Any:
    """A value as JSON has it; times in UTC, with microseconds."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return value.isoformat() if isinstance(value, date) else value


def _events(api: httpx.Client, **filters: Any) -> list[dict[str, Any]]:
    """All events that match, in the order of their times, or of the log."""
    events: list[dict[str, Any]] = []
    query = {"strict": "true", "limit": "1000"} | filters
    while True:
        answer = api.get("/api/v1/audit/events", params=query)
        answer.raise_for_status()
        page = loads(answer.content)
        events += page["data"]
        if not page["pagination"]["has_more"]:
            return events[::-1]
        query["cursor"] = page["pagination"]["next_cursor"]


def _columns(events: Sequence[Mapping[str, Any]], *names: str) -> Rows:
    """What the events say under these names, None where the API leaves it out; a payload as the archive has it."""
    return [tuple(_value(name, event.get(name)) for name in names) for event in events]


def _value(name: str, value: Any) -> Any:
    if name == "event_timestamp":
        return _plain(datetime.fromisoformat(value))
    return canonical(value).decode() if name == "event_data" else value


def _first(payload: Mapping[str, Any], *names: str) -> Any:
    return next((payload[name] for name in names if name in payload), None)


def _days(api: httpx.Client, since: str, end: str) -> Iterator[tuple[Any, ...]]:
    def exact() -> Any:
        """None while there was not time for all buckets."""
        query = {"by": "outcome", "bucket": "day", "since": since, "until": end}
        answer = api.get("/api/v1/audit/histogram", params=query)
        answer.raise_for_status()
        return answer.json() if answer.json()["exact"] else None

    for bucket in until(exact)["buckets"]:
        day = _plain(datetime.fromisoformat(bucket["start"]))
        yield from ((day, outcome, events) for outcome, events in sorted((bucket.get("groups") or {}).items()))


def _scores(api: httpx.Client, assessments: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Any, ...]]:
    for correlation_id in sorted({event["correlation_id"] for event in assessments}):
        answer = api.get(f"/api/v1/effectiveness/{correlation_id}")
        answer.raise_for_status()
        score = answer.json()["score"]
        yield correlation_id, None if score is None else round(score, 6)


def _correlations(api: httpx.Client) -> Iterator[tuple[Any, ...]]:
    query = {"limit": "1000"}
    while True:
        answer = api.get("/api/v1/audit/correlations", params=query)
        answer.raise_for_status()
        for one in answer.json()["data"]:
            times = (one[name]["event_timestamp"] for name in ("first_event", "last_event"))
            yield one["correlation_id"], one["event_count"], *(_plain(datetime.fromisoformat(time)) for time in times)
        if not answer.json()["pagination"]["has_more"]:
            return
        query["cursor"] = answer.json()["pagination"]["next_cursor"]


def _erased(api: httpx.Client, erasures: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The events that erasures name, in the order of their times."""
    ids = [event_id for erasure in erasures for event_id in erasure["event_data"]["event_ids"]]
    found = []
    for event_id in ids:
        answer = api.get(f"/api/v1/audit/events/{event_id}")
        answer.raise_for_status()
        found.append(loads(answer.content))
    return sorted(found, key=lambda event: (event["event_timestamp"], event["event_id"]))
