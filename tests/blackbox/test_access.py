"""Who may do what, over HTTP: every route, every role, every kind of token; and the text of refusals."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.apiserver import ACCOUNT, ALL, ApiServer
from tests.events import NOTIFICATION, make_event
from tests.issuer import Issuer, make_key
from tests.kubernetes.audit import event_list
from tests.services import ROOT, Service

EVENTS, BATCH, VERIFY = "/api/v1/audit/events", "/api/v1/audit/events/batch", "/api/v1/audit/verify-chain"
READ, WRITE, HOLD = {"reader", "writer", "auditor", "admin"}, {"writer", "admin"}, {"admin"}
OPEN = READ | {"nobody", "none"}
EVENT_ID = "01a20e0c-7ce0-710e-bfce-35434f8305e9"
HISTORY = "targetKind=Deployment&targetName=api&targetNamespace=payments&currentSpecHash=sha256:1"


def route(
    method: str, path: str, allowed: set[str], status: int = 200, *, sent: Any = None, query: str = "", **ids: str
) -> tuple[tuple[str, str], tuple[set[str], int, str, Any]]:
    return (method, path), (allowed, status, path.format(**ids) + query, sent)


# Written by hand: who may call, and what a valid request of theirs is answered.
MATRIX = dict(
    [
        route("POST", EVENTS, WRITE, 201, sent=make_event),
        route("GET", EVENTS, READ),
        route("POST", BATCH, WRITE, 201, sent=lambda: [make_event()]),
        route("POST", "/v1/logs", WRITE, sent=dict),
        route("POST", "/api/v1/audit/kubernetes", WRITE, sent=event_list),
        route("POST", "/api/v1/audit/import", set(), 207, sent=lambda: [make_event()]),  # of the importer alone
        route("GET", EVENTS + "/{event_id}", READ, 404, event_id=EVENT_ID),
        route("GET", "/api/v1/audit/histogram", READ),
        route("GET", "/api/v1/audit/stream", READ, 400, query="?from=0:99999999"),  # else it would not end
        route("GET", "/api/v1/audit/event-types", READ),
        route("GET", "/api/v1/audit/event-types/{name}", READ, name="orchestrator.lifecycle.started"),
        route("GET", "/api/v1/audit/correlations", READ),
        route("GET", "/api/v1/audit/correlations/{correlation_id}", READ, 404, correlation_id="rr-nobody"),
        route("GET", "/api/v1/audit/correlations/{correlation_id}/bundle", READ, 404, correlation_id="rr-nobody"),
        route("POST", "/api/v1/audit/notifications", WRITE, 201, sent=lambda: NOTIFICATION | {"notification_id": str(time.time_ns())}),
        route("GET", "/api/v1/audit/notifications", READ),
        route("POST", VERIFY, WRITE, sent=lambda: {"correlation_id": "rr-nobody"}),
        route("POST", "/api/v1/audit/remediation-requests/{correlation_id}/reconstruct", WRITE, 404, correlation_id="rr-nobody"),
        route("GET", "/api/v1/audit/remediation-requests/{correlation_id}/reconstruct", READ, 404, correlation_id="rr-nobody"),
        route("GET", "/api/v1/effectiveness/{correlation_id}", READ, 404, correlation_id="rr-nobody"),
        route("GET", "/api/v1/remediation-history/context", READ, query=f"?{HISTORY}"),
        route("GET", "/api/v1/audit/legal-hold", READ),
        route("POST", "/api/v1/audit/legal-hold", HOLD, 404, sent=lambda: {"correlation_id": "rr-nobody", "reason": "case 7"}),
        route("DELETE", "/api/v1/audit/legal-hold", HOLD, 404, sent=lambda: {"hold_id": EVENT_ID, "release_reason": "closed"}),
        route("DELETE", "/api/v1/audit/legal-hold/{correlation_id}", HOLD, 404, correlation_id="rr-nobody", sent=lambda: {"release_reason": "closed"}),
        route("GET", "/api/v1/audit/findings", READ),
        route("POST", "/api/v1/audit/findings/{finding_id}/acknowledgement", HOLD, 404, finding_id=EVENT_ID, sent=lambda: {"reason": "case 7"}),
        route("GET", "/api/v1/audit/retention-policies", READ),
        route("PUT", "/api/v1/audit/retention-policies/{event_category}", HOLD, event_category="gateway", sent=lambda: {"retention_days": 2555, "reason": "case 7"}),
        route("DELETE", "/api/v1/audit/retention-policies/{event_category}", HOLD, 404, event_category="nothing", sent=lambda: {"reason": "case 7"}),
        route("GET", "/api/v1/audit/trust", READ),
        route("GET", "/api/v1/audit/export", READ),
        route("GET", "/api/v1/audit/export/certificate", READ),
        route("GET", "/api/v1/audit/consistency", READ, 400),
        route("GET", "/api/v1/audit/events/{event_id}/proof", READ, 404, event_id=EVENT_ID),
        *(route("GET", path, OPEN, 404) for path in ("/tlog/checkpoint", "/tlog/key", "/tlog/timestamp")),
        route("GET", "/tlog/tile/{tile}", OPEN, 404, tile="0/999"),
        *(route("GET", path, OPEN) for path in ("/healthz", "/readyz", "/health", "/health/live", "/metrics")),
    ]
)  # fmt: skip


@pytest.fixture
def connect(service: Callable[..., Service]) -> Iterator[Callable[..., httpx.Client]]:
    """Starts a service with these settings; a client of it."""
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(httpx.Client(base_url=service(**settings).url, timeout=20))


@pytest.fixture
def kubernetes(connect: Callable[..., httpx.Client], api: ApiServer, tmp_path: Path) -> httpx.Client:
    """A service that asks the fake API server, and caches no answer."""
    return connect(**api.settings(tmp_path), auth_cache_ms=0)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def write_tokens(path: Path, **roles: str) -> dict[str, str]:
    """Tokens of these names and roles, created by the command line."""
    tokens = {}
    for name, text in roles.items():
        role, _, expires = text.partition(" ")
        command = [sys.executable, "-m", "app", "token", "create", "--name", name, "--role", role, "--file", str(path)]
        command += ["--expires", expires] if expires else []
        tokens[name] = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    return tokens


def test_permission_matrix(connect: Callable[..., httpx.Client], api: ApiServer, idp: Issuer, tmp_path: Path) -> None:
    """A role can do what it must not, or cannot do what it may; or nobody decided who may call a new route."""
    path = tmp_path / "tokens.yaml"
    of_file = write_tokens(
        path, **{f"ops:{r}": r for r in sorted(READ)}, old="admin 2026-01-01", new="reader 2126-01-01T00:00:00Z"
    )
    for name, verbs in (("reader", {"get"}), ("writer", {"get", "create"}), ("admin", set(ALL)), ("nobody", set())):
        api.add(f"kube-{name}", ACCOUNT + name, frozenset(verbs))
    settings = api.settings(tmp_path) | idp.settings() | {"auth": "tokens,oidc,kubernetes", "tokens_file": path}
    client = connect(**settings)
    document = client.get("/openapi.json").json()
    documented = {(m.upper(), p) for p, operations in document["paths"].items() for m in operations}
    assert documented == set(MATRIX)

    callers = [(role, of_file[f"ops:{role}"]) for role in READ] + [("reader", of_file["new"])]
    callers += [(role, idp.token(f"{role}@example.org", [role])) for role in READ]
    callers += [("nobody", idp.token("nobody", ["unknown"])), ("writer", idp.token("w", ["unknown", "writer"]))]
    callers += [(name, f"kube-{name}") for name in ("reader", "writer", "admin", "nobody")]
    nobodies: list[str | None] = [None, "made-up", of_file["old"], idp.token("a", ["admin"], exp=1)]
    nobodies += [idp.token("a", ["admin"], make_key("first")), idp.token("a", ["admin"], aud="another")]
    nobodies += [idp.token("a", ["admin"], iss="https://another"), idp.token("a", ["admin"], exp=None)]
    wrong = []
    for method, template in documented:
        allowed, expected, url, sent = MATRIX[method, template]
        for role, token in [*callers, *(("none", token) for token in nobodies)]:
            headers = {} if token is None else bearer(token)
            answer = client.request(method, url, json=sent and sent(), headers=headers)
            status = expected if role in allowed else 401 if role == "none" else 403
            if template.endswith("/kubernetes") and role in allowed and token is not None and token.count(".") == 2:
                status = 403  # a person, who would name others as actors
            fits = answer.status_code == status or (status == 0 and answer.status_code not in {401, 403})
            if not fits:
                wrong.append((method, template, role, token, answer.status_code, status, answer.text[:200]))
    assert wrong == []
    for path_only in ("/api/v1/unknown", "/api/v1/workflows", "/api/v1/audit/events/"):
        assert client.get(path_only).status_code == 401
        assert client.get(path_only, headers=bearer("kube-nobody")).status_code == 403
        assert client.get(path_only, headers=bearer("kube-reader")).status_code == 404
    assert client.delete(EVENTS).status_code == 401
    assert client.delete(EVENTS, headers=bearer("kube-reader")).status_code == 405
    assert client.get("/elsewhere").status_code == 404


DENIALS = [
    (None, 401, "Unauthorized", "Missing Authorization header"),
    ("", 401, "Unauthorized", "Missing Authorization header"),
    ("Basic dTpw", 401, "Unauthorized", "Invalid Authorization header format"),
    ("bearer kube-all", 401, "Unauthorized", "Invalid Authorization header format"),
    ("Bearer", 401, "Unauthorized", "Invalid Authorization header format"),
    ("Bearer made-up", 401, "Unauthorized", "Invalid or expired token"),
    ("Bearer  kube-all", 401, "Unauthorized", "Invalid or expired token"),
    ("Bearer kube-nobody", 403, "Forbidden", "Insufficient permissions"),
]


def test_what_stands_before_whom(kubernetes: httpx.Client, api: ApiServer) -> None:
    """Refusals come in another order than the reference's: the body's size before the token, the rules of bodies after the permission."""
    assert kubernetes.post(EVENTS, content=b" " * (5 * 2**20 + 1)).status_code == 413
    for path in ("/api/v2/x", "/api/", "/api/v1x"):
        assert (answer := kubernetes.get(path)).status_code == 404
        assert answer.text == "404 page not found\n"
    api.add("kube-reader", ACCOUNT + "reader", frozenset({"get"}))
    hold = "/api/v1/audit/legal-hold"
    for method, path, body in (
        ("POST", hold, {"correlation_id": "", "reason": "r"}),
        ("POST", hold, {"correlation_id": "x", "reason": ""}),
        ("DELETE", f"{hold}/x", {"release_reason": ""}),
        ("POST", VERIFY, {"correlation_id": ""}),
        ("POST", "/api/v1/audit/notifications", NOTIFICATION | {"remediation_id": " "}),
    ):
        refused = kubernetes.request(method, path, json=body, headers=bearer("kube-reader"))
        assert (refused.status_code, refused.json()["type"]) == (403, "about:blank"), path


@pytest.mark.every_pod
def test_denials_word_for_word(kubernetes: httpx.Client, api: ApiServer) -> None:
    """A client of the reference gets another text, or is admitted."""
    api.add("kube-all", ACCOUNT + "all", ALL)
    api.add("kube-nobody", ACCOUNT + "nobody", frozenset())
    for header, status, title, detail in DENIALS:
        answer = kubernetes.post(EVENTS, json=make_event(), headers={} if header is None else {"Authorization": header})
        problem = {"detail": detail, "status": status, "title": title, "type": "about:blank"}
        assert (header, answer.text) == (header, json.dumps(problem, separators=(",", ":")) + "\n")
        assert answer.status_code == status
        assert answer.headers["content-type"] == "application/problem+json"
        assert "www-authenticate" not in answer.headers
    for kind, detail in (("TokenReview", "Authentication"), ("SubjectAccessReview", "Authorization")):
        for behaviour in ("fail", "drop", "nonsense"):
            api.broken = {kind: behaviour}
            answer = kubernetes.get(EVENTS, headers=bearer("kube-all"))
            if behaviour == "nonsense":  # an answer that does not say yes is no yes
                assert answer.status_code == (401 if kind == "TokenReview" else 403)
                continue
            assert (answer.status_code, answer.json()["title"]) == (500, "Internal Server Error")
            assert answer.json()["detail"] == f"{detail} service unavailable"
            assert answer.json()["type"] == "about:blank"
    api.broken = {}
    assert kubernetes.get(EVENTS, headers=bearer("kube-all")).status_code == 200


def test_empty_bearer_token(kubernetes: httpx.Client) -> None:
    """`Bearer ` without a token is admitted, or causes an error."""
    with socket.create_connection((kubernetes.base_url.host, int(kubernetes.base_url.port or 0))) as raw:
        raw.sendall(
            b"GET /api/v1/audit/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer \r\nConnection: close\r\n\r\n"
        )
        answer = b"".join(iter(lambda: raw.recv(65536), b"")).decode()
    assert answer.startswith("HTTP/1.1 401 ")
    assert '"Empty Bearer token"' in answer or '"Invalid Authorization header format"' in answer


def test_order_of_checks(kubernetes: httpx.Client, api: ApiServer) -> None:
    """A caller who may not even read learns what is wrong with a body, or one who may only read is refused too early."""
    api.add("kube-reader", ACCOUNT + "reader", frozenset({"get"}))
    api.add("kube-nobody", ACCOUNT + "nobody", frozenset())
    for path, valid in ((EVENTS, make_event()), (BATCH, [make_event()]), (VERIFY, {"correlation_id": "a"})):
        for token, of_invalid, of_valid in (
            ("made-up", 401, 401),
            ("kube-nobody", 403, 403),
            ("kube-reader", 400, 403),
        ):
            assert kubernetes.post(path, json=17, headers=bearer(token)).status_code == of_invalid
            assert kubernetes.post(path, json=valid, headers=bearer(token)).status_code == of_valid
    found = kubernetes.get(EVENTS, headers=bearer("kube-reader")).json()
    assert found["data"] == []


def test_what_kubernetes_is_asked(kubernetes: httpx.Client, api: ApiServer) -> None:
    """The API server is asked another question than the contract says, or does not get the caller's groups."""
    groups, extra = ["system:authenticated", "sre"], {"scopes.example.org/x": ["a", "b"]}
    api.add("kube-sre", "jane@example.org", ALL, groups=groups, extra=extra, uid="u-1")
    assert kubernetes.post(EVENTS, json=make_event(), headers=bearer("kube-sre")).status_code == 201
    token_review, *access_reviews = api.specs
    assert token_review == {"token": "kube-sre"}
    assert [spec["resourceAttributes"]["verb"] for spec in access_reviews] == ["get", "create"]
    for spec in access_reviews:
        assert (spec["user"], spec["groups"], spec["extra"]) == ("jane@example.org", groups, extra)
    assert api.authorizations == {"Bearer own-token"}


def test_actor(connect: Callable[..., httpx.Client], api: ApiServer, idp: Issuer, tmp_path: Path) -> None:
    """A person writes under another name, or a service account or file token loses the actor that it names."""
    path = tmp_path / "tokens.yaml"
    of_file = write_tokens(path, **{"system:someone": "admin"})
    api.add("kube-account", ACCOUNT + "orchestrator", ALL)
    api.add("kube-person", "jane@example.org", ALL)
    settings = api.settings(tmp_path) | idp.settings() | {"auth": "tokens,oidc,kubernetes", "tokens_file": path}
    client = connect(**settings)
    body_actor = ("service", "remediationorchestrator-controller")
    spoofed = {"X-Auth-Request-User": "root", "Impersonate-User": "root", "X-User-ID": "root", "X-Remote-User": "root"}
    for token, actor in (
        ("kube-account", body_actor),
        ("kube-person", ("user", "jane@example.org")),
        (of_file["system:someone"], body_actor),
        (idp.token("joe@example.org", ["admin"]), ("user", "joe@example.org")),
        (idp.token(ACCOUNT + "gateway", ["admin"]), body_actor),
    ):
        headers = bearer(token) | spoofed
        event, correlation = make_event(), str(time.time_ns())
        one = client.post(EVENTS, json=event | {"correlation_id": correlation}, headers=headers)
        batch = [make_event(correlation_id=correlation), make_event(correlation_id=correlation)]
        assert (one.status_code, client.post(BATCH, json=batch, headers=headers).status_code) == (201, 201)
        found = client.get(f"{EVENTS}?correlation_id={correlation}", headers=headers).json()["data"]
        assert [(e["actor_type"], e["actor_id"]) for e in found] == [actor] * 3


def test_the_caller_is_in_the_ids(connect: Callable[..., httpx.Client], tmp_path: Path) -> None:
    """One caller's batch counts as another's resend, or a caller's own resend is stored twice."""
    path = tmp_path / "tokens.yaml"
    tokens = write_tokens(path, one="writer", two="writer")
    client = connect(auth="tokens", tokens_file=path)
    batch = [make_event(), make_event()]
    ids = [client.post(BATCH, json=batch, headers=bearer(tokens[n])).json()["event_ids"] for n in ("one", "two", "one")]
    assert ids[0] == ids[2]
    assert not set(ids[0]) & set(ids[1])
    for name in ("one", "two"):
        answer = client.post(EVENTS, json=make_event(), headers=bearer(tokens[name]) | {"Idempotency-Key": "same"})
        assert answer.status_code == 201  # another caller's key is another key


def test_tokens_are_read_again(service: Callable[..., Service], tmp_path: Path) -> None:
    """A token that was removed from the file still works, a new one does not, or a broken file locks everybody out."""
    path = tmp_path / "tokens.yaml"
    first = write_tokens(path, first="reader")["first"]
    running = service(auth="tokens", tokens_file=path)
    with httpx.Client(base_url=running.url, timeout=20) as client:
        assert get(client, first) == 200
        path.write_text("- {name: broken")
        wait_until(lambda: get(client, first) != 200 or "the last ones stay valid" in running.log.read_text())
        assert get(client, first) == 200
        path.unlink()
        second = write_tokens(path, second="reader")["second"]
        wait_until(lambda: get(client, second) == 200)
        assert get(client, first) == 401


def get(client: httpx.Client, token: str) -> int:
    return client.get(EVENTS, headers=bearer(token)).status_code


def wait_until(holds: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_denials_are_written_down(service: Callable[..., Service], api: ApiServer, tmp_path: Path) -> None:
    """A refused caller leaves no trace, or the log contains a token."""
    api.add("kube-secret", ACCOUNT + "reader", frozenset({"get"}))
    running = service(**api.settings(tmp_path))
    with httpx.Client(base_url=running.url) as client:
        client.get(EVENTS, headers=bearer("wrong-secret"))
        client.post(EVENTS, json=make_event(), headers=bearer("kube-secret"))
        api.broken = {"TokenReview": "fail"}
        client.get(EVENTS, headers=bearer("other-secret"))
        metrics = client.get("/metrics").text
    lines = [json.loads(line) for line in running.log.read_text().splitlines() if line.startswith("{")]
    denials = [line for line in lines if line.get("message") == "security_event"]
    about = {"method", "path", "remote_addr", "resource", "resource_name", "verb", "user", "status_code", "reason"}
    assert all(about | {"event_type"} <= set(one) for one in denials)
    told = [(one["event_type"], one["user"], one["status_code"], one["verb"]) for one in denials]
    assert told == [
        ("authentication_failed", "", 401, "get"),
        ("authorization_denied", ACCOUNT + "reader", 403, "create"),
        ("review_failed", "", 500, "get"),
    ]
    assert "-secret" not in running.log.read_text()
    for reason in ("authentication_failed", "authorization_denied", "review_failed"):
        assert f'datastorage_denials_total{{reason="{reason}"}} 1.0' in metrics
    assert 'datastorage_auth_failures_total{judge="TokenReview"} 1.0' in metrics
