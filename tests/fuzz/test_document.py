"""Requests that schemathesis generates from the OpenAPI document, to the running service, with every check that it has.

Long form: `make fuzz`. KNOWN lists the answers that schemathesis reports as wrong because of what the document cannot express.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from itertools import islice
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import requests
import schemathesis
from google.rpc.status_pb2 import Status
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from schemathesis.checks import CHECKS, load_all_checks
from schemathesis.core.failures import FailureGroup
from schemathesis.core.result import Ok

from tests import log_records
from tests.services import ROOT, Service

REQUESTS = int(os.environ.get("FUZZ_REQUESTS", "100"))
LONG = "FUZZ_REQUESTS" in os.environ
POSITIVE, NEGATIVE = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE
# Why a request that fits the document is refused: a part of its answer, and the section of docs/contract.md.
REFUSED = {
    "expected a time at most": "6.4: not more than 60 minutes ahead, not more than 7 days old",
    "expected a second of 00 to 59": "6.4: second 60 passes the schema but fails decoding",
    "expected a date and time that exist": "6.4: a time that no calendar has",
    "expected a date within": "29: what the column cannot hold is 400, here the first and the last day of the calendar",
    "without NUL characters": "29: NUL is 400",
    "there is no parent": "6.6: a parent that is not stored",
    "expected an IPv4 or IPv6 address": "29: bad inet is 400",
    "expected a known event type": "6.2: unknown inner event_type; in a CloudEvent the data's own",
    "event_data has no event_type": "29: no inner event_type, and no free-form name outside; in a CloudEvent",
    "/eventcategory: required": "6.1: event_category; a CloudEvent may leave it out where the catalog has one",
    "expected data or data_base64, got both": "29 and cloudevents.md: a CloudEvent has one of them",
    "/data: required": "29 and cloudevents.md: the data of a CloudEvent is the event's payload",
    "expected a URI": "29 and cloudevents.md: dataschema and source, as CloudEvents 1.0 says",
    "expected a media type": "29 and cloudevents.md: datacontenttype, as CloudEvents 1.0 says",
    "whose name has only lower-case": "29 and cloudevents.md: names of attributes, as CloudEvents 1.0 says",
    "expected base64": "29 and cloudevents.md: data_base64 is base64, which the document says in words",
    "expected JSON in base64": "29 and cloudevents.md: data_base64 that is JSON is accepted",
    "the batch is empty": "7: a text without lines, which the document does not exclude",
    "its sender has not set": "14: a sent_at of the year 1 is one that was not set",
    "line 1: ": "7: a line holds one event, which the document does not say of text",
    "significant digits": "29: numbers are kept exactly, so there is a bound to them (docs/design.md, section 4)",
    "invalid time format": "8: forms of since and until",
    "buckets from since to until": "docs/design.md, section 7: a histogram has a bound to its buckets",
    "belong together": "8: detail_key and detail_value, both or neither",
    "expected the next_cursor": "8, and docs/design.md, section 7: a cursor is what an earlier answer gave",
    "expected an RFC 3339 date-time": "12: so are start_time and end_time of format=json; of the others, and as since, they have more forms",
    "belongs together with since": "8, and docs/queries.md: free text needs a bound",
    "expected the name of a time zone": "8, and docs/queries.md: zone is a name of the IANA database",
    "there is no such parameter": "8: strict=true",
    "which is the same filter": "8, and docs/queries.md: since is start_time, until is end_time",
    "not together with order=log": "8, and docs/queries.md: by log only the cursor goes on",
    "not together with offset": "8, and docs/design.md, section 7: cursor with offset is 400",
    "expected more than": "17: the far window is longer than the near one, and none is empty",
    "expected a duration": "17: as Go reads durations, which end after 292 years",
    "expected one selector": "13 and evidence.md: a hold is of exactly one kind",
    "or actor_id, or resource, or time": "13 and evidence.md: a hold is of exactly one kind",
    "is not before the one in from": "evidence.md: a hold's time ends after it begins",
    "is empty: ": "13: empty reasons and correlations have problem types of their own",
    "of the last manifest of an export": "evidence.md: after goes on with an export that was cut",
    "belongs to format=json": "evidence.md: only format=json has pages",
    "expected at least the": "evidence.md: the bounds of a policy do not contradict each other",
    "expected a category of 1 to": "evidence.md: of policies; Python knows more blanks than the document's pattern",
    "expected why, got nothing": "the same",
    "got only white space": "the same",
    "expected LOG:POSITION": "docs/streams.md: where a stream begins",
    "is beyond the end of the log": "docs/streams.md: where a stream begins",
    "/logRecords/": "29 and docs/receivers.md: 400 if none of the log records can be stored",
    "expected a text that is not blank": "14: no blank ids; Python knows more blanks than the document's pattern",
}
# Why a request that does not fit the document is accepted: what happened to its parameter, and the section.
ACCEPTED = {
    "empty parameter": "8: empty = ignored",
    "repeated parameter": "8: when repeated the first value counts",
    "list of one value": "8, and docs/queries.md: a list is a parameter that is repeated, so one value is a list of one",
    "parameter under other names": "8: unknown parameters are ignored; so is an object, which is sent as its members",
}
ELSEWHERE = {
    "key sent before": "an Idempotency-Key that came before with another body is 422, or runs still (409)",
    "verdicts": "7 and 29: a lenient batch and an import are answered 207, and each item by itself",
    "protobuf": "29 and docs/receivers.md: what the test makes of this media type is as OpenTelemetry has it",
    "longer than is read": "29: 414, which refuses it before its parameters are read",
    "newline in a path": "1: no route has one, so it is an unknown path, which is answered in text",
    "no HTTP": "2: the connection refuses what is not HTTP",
}
KNOWN = REFUSED | ACCEPTED | ELSEWHERE
_SINGLE, _LOGS = "POST /api/v1/audit/events", "POST /v1/logs"
_ATTRIBUTE = re.compile("[a-z0-9]+")
_BOUND_BY_CLOUDEVENTS = ("data_base64", "dataschema", "datacontenttype")


_TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
_SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | _TEXT | st.binary(max_size=9)
_VALUES = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3), max_leaves=9
)
_RECORDS = st.builds(
    lambda body, attributes, members: log_records.record(body, attributes=attributes, **members),
    st.just(log_records.BODY) | _VALUES,
    st.dictionaries(st.sampled_from(("audit.actor_id", "audit.severity", "audit.event_outcome")) | _TEXT, _VALUES),
    st.fixed_dictionaries(
        {},
        optional={
            "event_name": _TEXT,
            "time_unix_nano": st.integers(0, 2**64 - 1),
            "severity_number": st.integers(-(2**31), 2**31 - 1),
            "trace_id": st.binary(max_size=17),
        },
    ),
)
_REQUESTS = st.lists(_RECORDS, max_size=3).map(lambda records: log_records.request(*records))


def _one_record() -> ExportLogsServiceRequest:
    return log_records.request(log_records.record())


schemathesis.openapi.media_type(  # of which the document only says that it is binary
    log_records.PROTOBUF, (st.builds(_one_record) | _REQUESTS).map(lambda sent: sent.SerializeToString())
)


@schemathesis.serializer("application/x-ndjson", "application/ndjson", "application/jsonl")
def lines(_: schemathesis.SerializationContext, text: object) -> bytes:
    """A batch with one event a line, of which the document only says that it is text."""
    return str(text).encode("utf-8", "replace")


def explanation(response: Any) -> str:
    """What is wrong as the answer says it: a problem's type and detail, or the message of OTLP's status, in either encoding."""
    if response.status_code < 400:
        return ""
    if response.headers.get("content-type") == [log_records.PROTOBUF]:
        return str(Status.FromString(response.content).message)
    try:
        answer = response.json()
    except ValueError:
        return str(response.text)
    return str(answer["message"] if "message" in answer else f"{answer['type']} {answer['detail']}")


def reasons(failure: Any, response: requests.Response) -> Iterator[str]:
    """The lines of KNOWN that explain this failure; an unknown one is reported."""
    kind = type(failure).__name__
    said = explanation(response)
    if "malformed-request" in said:
        yield "no HTTP"
    elif kind == "RejectedPositiveData" and response.status_code == 400:
        for message in said.split("; /"):
            yield next((line for line in REFUSED if line in "/" + message), f"unknown: {message}")
    elif kind == "RejectedPositiveData" and "idempotency-key" in said:
        yield "key sent before"
    elif kind == "UndefinedContentType" and "%0A" in str(response.request.url):
        yield "newline in a path"
    elif kind == "AcceptedNegativeData" and response.status_code in {207, 414}:
        yield "verdicts" if response.status_code == 207 else "longer than is read"
    elif kind == "AcceptedNegativeData" and f"custom media type: {log_records.PROTOBUF}" in failure.message:
        yield "protobuf"
    elif kind == "AcceptedNegativeData" and " in query" in failure.message:
        sent = parse_qs(urlsplit(str(response.request.url)).query, keep_blank_values=True)
        for name, was in re.findall(r"at /properties/(\w+)(?: \(was (\w+))?", failure.message):
            yield _why_accepted(sent.get(name), was) or f"unknown: {failure.message}"
    else:
        yield f"unknown: {kind} {failure.message}"


def _why_accepted(values: list[str] | None, was: str) -> str | None:
    """Why a parameter with these values is accepted although the document forbids it; `was` is its type there, if it is that."""
    if values is None:
        return "parameter under other names"
    if values[0] == "":
        return "empty parameter"
    if was == "array" and len(values) == 1:
        return "list of one value"
    return "repeated parameter" if len(values) > 1 else None


def tame(case: Any) -> None:
    """Correct what the document cannot express, so that its events reach the database, and give it a key that was never sent."""
    if case.headers and "Idempotency-Key" in case.headers:
        case.headers["Idempotency-Key"] = str(uuid4())
    if case.operation.label == _LOGS and isinstance(case.body, dict):
        case.body = log_records.as_json(_one_record())
    for event in case.body if isinstance(case.body, list) else [case.body]:
        if not isinstance(event, dict):
            continue
        if "time" in event and "specversion" in event:
            event["time"] = datetime.now(UTC).isoformat()
        if "event_timestamp" in event:
            event["event_timestamp"] = datetime.now(UTC).isoformat()
        for name in ("actor_ip", "event_id", "parent_event_id", "causationid"):
            event.pop(name, None)
        if "specversion" in event:
            for name in [name for name in event if name in _BOUND_BY_CLOUDEVENTS or not _ATTRIBUTE.fullmatch(name)]:
                del event[name]
            event |= {
                "source": "/fuzz",
                "id": str(uuid4()),
                "type": "gateway.config.reloaded",
                "data": {"component": "c", **event.get("data", {})},
            }


class Run:
    """Requests sent so far, their answers, and what schemathesis reports about them."""

    def __init__(self, session: requests.Session) -> None:
        load_all_checks()
        self._checks = CHECKS.get_all()
        self._session = session
        self.answers: Counter[tuple[str, str, int]] = Counter()
        self.found: Counter[str] = Counter()
        self.unknown: dict[str, str] = {}

    def send(self, case: Any, mode: str) -> None:
        response = case.call(session=self._session)
        self.answers[case.operation.label, mode, response.status_code] += 1
        assert response.status_code < 500, f"{case.as_curl_command()}\n{explanation(response)}"
        try:
            case.validate_response(response, checks=self._checks)
        except FailureGroup as group:
            for failure in group.exceptions:
                for reason in reasons(failure, response):
                    self.found[reason] += 1
                    if reason not in KNOWN:
                        self.unknown[reason] = (
                            f"{case.as_curl_command()}\n{response.status_code} {explanation(response)}"
                        )

    def report(self) -> None:
        for (label, mode, status), number in sorted(self.answers.items()):
            print(f"{number:6} {label} {mode} {status}")
        for reason, number in self.found.most_common():
            print(f"{number:6} {reason} ({KNOWN.get(reason, '?')})")
        print(
            f"{self.answers.total()} requests, {sum(self.found.values())} known failures, {len(self.unknown)} unknown"
        )


def test_document_holds(service: Callable[..., Service]) -> None:
    """A request that the document allows is refused, one that it forbids is accepted, or an answer differs from it."""
    schema = schemathesis.openapi.from_path(ROOT / "openapi" / "datastorage.json")
    schema.config.update(base_url=service(access_log=False).url)
    schema.config.max_stream_events = 1  # a stream has no end
    operations = [found.ok() for found in schema.get_all_operations() if isinstance(found, Ok)]
    with requests.Session() as session:
        run = Run(session)
        for operation in operations:
            cases = schema.iter_coverage_cases(
                operation, generation_modes=[POSITIVE, NEGATIVE], generation_config=schema.config.generation
            )
            for case in islice(cases, None if LONG else REQUESTS // 20):
                if case.meta is not None and case.meta.generation.mode is POSITIVE:
                    tame(case)
                run.send(case, "coverage")
            for mode in (POSITIVE, NEGATIVE):
                more = 4 if operation.label == _SINGLE else 1  # half of which are tamed, and some of these accepted
                _many(operation, mode, more * REQUESTS // len(operations), run.send)
            print(f"{operation.label}: {run.answers.total()} requests so far", flush=True)
    run.report()
    assert run.unknown == {}
    assert run.answers[_SINGLE, "positive", 201] > 0


def _many(operation: Any, mode: Any, number: int, send: Callable[[Any, str], None]) -> None:
    @settings(
        max_examples=number,
        deadline=None,
        database=None,
        derandomize=not LONG,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode), tamed=st.booleans())
    def run(case: Any, tamed: bool) -> None:
        if tamed and mode is POSITIVE:
            tame(case)
        send(case, mode.name.lower())

    with suppress(Unsatisfiable):  # no path parameter is invalid where any text is valid
        run()
