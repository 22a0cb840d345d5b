"""Protection of the service, over HTTP: TLS, limits, rates, browsers, proxies, secrets."""

import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.certificates import Authority
from tests.events import make_event
from tests.services import ROOT, Service, free_port

EVENTS = "/api/v1/audit/events"


@pytest.fixture
def connect(service: Callable[..., Service]) -> Iterator[Callable[..., httpx.Client]]:
    """Starts a service with these settings; a client of it."""
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(httpx.Client(base_url=service(**settings).url, timeout=20))


def common_name(port: int, authority: Authority, **versions: ssl.TLSVersion) -> str:
    """Common name of the certificate that a new connection gets."""
    context = ssl.create_default_context(cafile=authority.path)
    for name, version in versions.items():
        setattr(context, name, version)
    with (
        socket.create_connection(("127.0.0.1", port)) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as tls,
    ):
        subject: Any = (tls.getpeercert() or {})["subject"]
        return str(dict(pair[0] for pair in subject)["commonName"])


def test_tls(service: Callable[..., Service], tmp_path: Path) -> None:
    """A renewed certificate is not used until a restart, half a renewal ends the service, or old TLS versions are accepted."""
    authority = Authority(tmp_path)
    pair = tmp_path / "pair"
    authority.write_pair(pair, "first")
    health_port = free_port()
    running = service(
        tls_dir=pair, tls_min_version="1.3", health_port=health_port, wait_for=f"http://127.0.0.1:{health_port}"
    )
    port = int(running.url.rpartition(":")[2])
    assert common_name(port, authority) == "first"
    with pytest.raises(ssl.SSLError):
        common_name(port, authority, maximum_version=ssl.TLSVersion.TLSv1_2)
    trust = ssl.create_default_context(cafile=authority.path)
    with httpx.Client(base_url=f"https://localhost:{port}", verify=trust) as client:
        answer = client.post(EVENTS, json=make_event())
        assert answer.status_code == 201
        assert "strict-transport-security" in answer.headers
        old_key = (pair / "tls.key").read_bytes()
        authority.write_pair(pair, "second")
        new_key = (pair / "tls.key").read_bytes()
        (pair / "tls.key").write_bytes(old_key)  # only one file has changed yet
        until(
            lambda: common_name(port, authority) == "first" and "the last one stays in use" in running.log.read_text()
        )
        (pair / "tls.key").write_bytes(new_key)
        until(lambda: common_name(port, authority) == "second")
        assert client.post(EVENTS, json=make_event()).status_code == 201  # an open connection stays open
    with httpx.Client() as client:
        assert client.get(f"http://127.0.0.1:{health_port}/readyz").status_code == 200  # never TLS


def until(holds: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_missing_certificate_is_reported(tmp_path: Path) -> None:
    """A service that should use TLS runs without it, or ends with a traceback."""
    settings = {"TLS_DIR": str(tmp_path), "SPOOL_DIR": str(tmp_path / "spool"), "PORT": str(free_port())}
    done = serve(settings | {"DATABASE_URL": "postgresql://u:p@127.0.0.1:1/d"})
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert "tls.crt" in done.stderr


def test_a_missing_url_is_reported(tmp_path: Path) -> None:
    """A service without a database URL waits for ever, or shows the password."""
    for url in (
        "notaurl",
        "postgresql://u:hunter2@127.0.0.1:1/a?sslmode=bogus",
        "postgresql://u:hunter2@h:p/d",
        "postgresql://u:Secr/hunter2#1@h/d",
    ):
        done = serve({"PORT": str(free_port()), "DATABASE_URL": url, "SPOOL_DIR": str(tmp_path / "spool")})
        assert (done.returncode, "Invalid configuration" in done.stderr, "hunter2" in done.stderr) == (1, True, False)


def serve(settings: dict[str, str], *arguments: str) -> "subprocess.CompletedProcess[str]":
    env = {f"DATASTORAGE_{name}": value for name, value in settings.items()} | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "app", *(arguments or ("serve",))]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)


def test_heads_are_bounded(connect: Callable[..., httpx.Client]) -> None:
    """Somebody without a token fills the memory with a request that never ends."""
    client = connect(head_bytes_max=8192, query_bytes_max=1024)
    assert client.get(EVENTS, params={"correlation_id": "a" * 1100}).status_code == 414
    answer = client.get(EVENTS, headers={"X-Long": "a" * 9000})
    assert (answer.status_code, answer.headers["content-type"]) == (431, "application/problem+json")
    with socket.create_connection((client.base_url.host, int(client.base_url.port or 0))) as raw:
        raw.settimeout(20)
        raw.sendall(b"GET /readyz HTTP/1.1\r\nHost: x\r\n")
        line = b"X-Long: " + b"a" * 1000 + b"\r\n"
        with pytest.raises(OSError, match=r"reset|roken pipe"):
            raw.sendall(line * 100_000)
    slow = b"GET /api/v1/audit/events HTTP/1.1\r\nHost: x\r\n"
    with socket.create_connection((client.base_url.host, int(client.base_url.port or 0))) as raw:
        for byte in slow:  # a slow client is no attack
            raw.sendall(bytes([byte]))
        raw.sendall(b"Connection: close\r\n\r\n")
        assert raw.recv(12) == b"HTTP/1.1 200"


def test_reads_are_limited_and_nothing_else(connect: Callable[..., httpx.Client]) -> None:
    """One reader uses up the service, or a writer or a probe is rate limited."""
    client = connect(read_rate="3/hour")
    answers = [client.get(EVENTS) for _ in range(4)]
    assert [one.status_code for one in answers] == [200, 200, 200, 429]
    assert [one.headers["ratelimit"].split(";")[1] for one in answers] == ["r=2", "r=1", "r=0", "r=0"]
    assert all(one.headers["ratelimit-policy"] == '"reads";q=3;w=3600' for one in answers)
    refused = answers[3]
    assert 0 < int(refused.headers["retry-after"]) <= 3600
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.json()["type"] == "https://kubernaut.ai/problems/rate-limit-exceeded"
    verified = client.post("/api/v1/audit/verify-chain", json={"correlation_id": "a"})
    assert verified.status_code == 429  # it reads, whatever its method
    for _ in range(10):
        event = make_event()
        assert client.post(EVENTS, json=event).status_code == 201
        assert client.post(f"{EVENTS}/batch", json=[event]).status_code == 201
        assert {client.get(path).status_code for path in ("/readyz", "/healthz", "/health", "/metrics")} == {200}
    assert 'datastorage_denials_total{reason="rate_limited"} 2.0' in client.get("/metrics").text


def test_each_caller_has_a_rate_of_its_own(connect: Callable[..., httpx.Client], tmp_path: Path) -> None:
    """One caller's reads count for another, or a caller evades the limit by another address."""
    lines, tokens = [], []
    for name in ("a", "b"):
        made = serve({}, "token", "create", "--name", name, "--role", "reader")
        tokens.append(made.stdout.strip())
        lines.append(next(line for line in made.stderr.splitlines() if line.startswith("- {")))
    (tmp_path / "tokens.yaml").write_text("\n".join(lines))
    client = connect(
        auth="tokens", tokens_file=tmp_path / "tokens.yaml", read_rate="2/hour", trusted_proxies="127.0.0.1"
    )
    for token in tokens:
        headers = [{"Authorization": f"Bearer {token}", "X-Forwarded-For": f"10.0.0.{n}"} for n in range(3)]
        assert [client.get(EVENTS, headers=one).status_code for one in headers] == [200, 200, 429]


FORWARDED = [
    ("203.0.113.7", "203.0.113.7"),
    ("10.9.9.9, 203.0.113.7", "203.0.113.7"),
    ("203.0.113.7, 10.1.2.3", "203.0.113.7"),
    ("203.0.113.7, nonsense", "127.0.0.1"),
    ("2001:db8::1", "2001:db8::1"),
]


def test_only_named_proxies_are_believed(service: Callable[..., Service]) -> None:
    """Any client chooses, by X-Forwarded-For, the address that the log shows."""
    trusting, closed = service(trusted_proxies="127.0.0.1, 10.0.0.0/8"), service()
    for running, number in ((trusting, 1), (closed, 0)):
        for sent, believed in FORWARDED:
            headers = {
                "X-Forwarded-For": sent,
                "X-Real-IP": "198.51.100.1",
                "X-Request-ID": f"from-{sent.replace(' ', '')}",
            }
            httpx.get(running.url + EVENTS, headers=headers)
            line = logged(running, headers["X-Request-ID"])
            assert line["remote_addr"] == (believed if number else "127.0.0.1")


def logged(running: Service, request_id: str) -> dict[str, Any]:
    import json

    found: list[dict[str, Any]] = []

    def look() -> bool:
        lines = [json.loads(line) for line in running.log.read_text().splitlines() if line.startswith("{")]
        found[:] = [line for line in lines if line.get("request_id") == request_id]
        return bool(found)

    until(look)
    return found[0]


def test_cors(connect: Callable[..., httpx.Client]) -> None:
    """A page of another origin reads events in an auditor's browser, or one of an allowed origin cannot."""
    named, other = {"Origin": "https://ui.example.org"}, {"Origin": "https://evil.example.org"}
    asks = {"Access-Control-Request-Method": "GET"}
    client = connect(cors_origins="https://ui.example.org, https://b.example.org")
    preflight = client.options(EVENTS, headers=named | asks)
    assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (200, named["Origin"])
    assert "DELETE" in preflight.headers["access-control-allow-methods"]
    assert client.get(EVENTS, headers=named).headers["access-control-allow-origin"] == named["Origin"]
    for answer in (client.options(EVENTS, headers=other | asks), client.get(EVENTS, headers=other), client.get(EVENTS)):
        assert answer.status_code == 200
        assert not [name for name in answer.headers if name.startswith("access-control-")]
        assert "Origin" in answer.headers["vary"]
    assert "access-control-allow-credentials" not in preflight.headers


def test_security_headers(connect: Callable[..., httpx.Client]) -> None:
    """A browser guesses the type of an answer, frames it, or caches evidence."""
    client = connect()
    for answer in (client.get(EVENTS), client.get("/nowhere"), client.post(EVENTS, json={}), client.get("/readyz")):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "server" not in answer.headers


def test_secrets_come_from_files(service: Callable[..., Service], database_url: str, tmp_path: Path) -> None:
    """A password must be in the environment, or is in the output that operators paste into tickets."""
    (tmp_path / "url").write_text(database_url + "\n")
    running = service(database_url_file=tmp_path / "url", database_url=None)
    assert httpx.post(running.url + EVENTS, json=make_event()).status_code == 201
    (tmp_path / "url").write_text("postgresql://u:hunter2@127.0.0.1:1/d")
    shown = serve({"DATABASE_URL_FILE": str(tmp_path / "url")}, "settings")
    assert "DATASTORAGE_DATABASE_URL=***  [set by DATASTORAGE_DATABASE_URL_FILE]" in shown.stdout
    assert "hunter2" not in shown.stdout + shown.stderr
    missing = serve({"DATABASE_URL_FILE": str(tmp_path / "none")}, "settings")
    assert (missing.returncode, "Failed to load secrets" in missing.stderr) == (2, True)


BAD = [
    ({"AUTH": "everybody"}, "kubernetes, oidc, tokens"),
    ({"AUTH": "none,tokens", "TOKENS_FILE": "x"}, "or none"),
    ({"AUTH": "tokens"}, "DATASTORAGE_TOKENS_FILE"),
    ({"AUTH": "tokens", "TOKENS_FILE": "/nowhere"}, "/nowhere"),
    ({"AUTH": "oidc", "OIDC_ISSUER": "https://a"}, "DATASTORAGE_OIDC_AUDIENCE"),
    ({"READ_RATE": "often"}, "600/minute"),
    ({"TRUSTED_PROXIES": "proxy.example.org"}, "DATASTORAGE_TRUSTED_PROXIES"),
    ({"HOST": "0.0.0.0"}, "DATASTORAGE_ALLOW_UNAUTHENTICATED"),
]


@pytest.mark.parametrize(("settings", "told"), BAD)
def test_bad_settings_are_told(settings: dict[str, str], told: str, tmp_path: Path) -> None:
    """A mistake in a setting leaves the service unprotected, or the operator does not learn what to change."""
    base = {"DATABASE_URL": "postgresql://u:p@127.0.0.1:1/d", "PORT": str(free_port()), "SPOOL_DIR": str(tmp_path)}
    done = serve(base | settings)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert told in done.stderr


def test_beyond_loopback_with_authentication(service: Callable[..., Service], tmp_path: Path) -> None:
    """A service with authentication does not start on an address that others reach."""
    (tmp_path / "tokens.yaml").write_text("")
    running = service(host="0.0.0.0", auth="tokens", tokens_file=tmp_path / "tokens.yaml")
    assert httpx.get(running.url + EVENTS).status_code == 401


def test_reads_of_auditors_are_events(connect: Callable[..., httpx.Client], tmp_path: Path) -> None:
    """An auditor's reads are not recorded, or those of every reader are."""
    tokens: dict[str, str] = {}
    for role in ("auditor", "reader", "admin"):
        made = serve(
            {}, "token", "create", "--name", f"{role}:jane", "--role", role, "--file", str(tmp_path / "t.yaml")
        )
        tokens[role] = made.stdout.strip()
    client = connect(auth="tokens", tokens_file=tmp_path / "t.yaml", audit_reads=True)

    def ask(role: str, path: str) -> Any:
        return client.get(path, headers={"Authorization": f"Bearer {tokens[role]}"})

    assert ask("reader", EVENTS).status_code == 200
    assert ask("auditor", EVENTS + "?correlation_id=rr-1").status_code == 200
    assert ask("auditor", "/readyz").status_code == 200
    found = ask("admin", EVENTS + "?event_type=datastorage.read.audited").json()["data"]
    assert [one["event_data"] for one in found] == [
        {
            "event_type": "datastorage.read.audited",
            "read_by": "auditor:jane",
            "http_method": "GET",
            "http_path": EVENTS,
            "query_string": "correlation_id=rr-1",
        }
    ]
    assert found[0]["actor_id"] == "auditor:jane"
    assert found[0]["correlation_id"].startswith("datastorage:read:")
