"""Signing in and out: by token, at an issuer, and everything that has to be refused."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests import services
from tests.blackbox.test_access import write_tokens
from tests.events import make_event
from tests.issuer import Issuer, issuer
from tests.pages.browser import Reader
from tests.services import Service
from tests.waiting import until

HTML = {"Accept": "text/html"}
CLIENT = "datastorage-pages"


@pytest.fixture(scope="module")
def idp() -> Iterator[Issuer]:
    """An issuer of another site than the service's: cookies of a browser do not care for ports."""
    with issuer() as made:
        made.url = made.url.replace("127.0.0.1", "localhost")
        yield made


@pytest.fixture(scope="module")
def tokens_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokens") / "tokens.yaml"


@pytest.fixture(scope="module")
def tokens(tokens_file: Path) -> dict[str, str]:
    return write_tokens(tokens_file, **{"ops:reader": "reader", "ops:auditor": "auditor", "ops:admin": "admin"})


@pytest.fixture(scope="module")
def guarded(
    pages_database: str,
    idp: Issuer,
    tokens: dict[str, str],
    tokens_file: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Service]:
    """A service of two processes that asks who calls."""
    port = services.free_port()
    settings = idp.settings() | {
        "auth": "tokens,oidc",
        "tokens_file": tokens_file,
        "audit_reads": True,
        "ui_url": f"http://127.0.0.1:{port}",
        "ui_oidc_client_id": CLIENT,
        "ui_oidc_client_secret": "s/cret",
        "port": port,
        "processes": 2,
        "database_url": pages_database,
        "unsafe_database": True,
    }
    with services.lasting(settings, tmp_path_factory.mktemp("guarded") / "service") as service:
        headers = {"Authorization": f"Bearer {tokens['ops:admin']}"}
        assert httpx.post(f"{service.url}/api/v1/audit/events", json=make_event(), headers=headers).status_code == 201
        yield service


def sign_in(one: Reader, token: str) -> None:
    one.page.fill("input[name=token]", token)
    one.page.click("main form button")


def denials(service: Service) -> list[str]:
    """What the log of a service, which other tests use too, says of sign-ins that were refused."""
    return [line for line in service.log.read_text().splitlines() if "security_event" in line and "/ui/login" in line]


def test_by_token(reader: Callable[..., Reader], guarded: Service, tokens: dict[str, str]) -> None:
    """Who has a token cannot read the pages, or who has none can; a session does not end; a cookie is open to scripts."""
    one = reader(guarded.url, javascript=False)
    page = one.open("/ui/events?event_outcome=success")
    assert urlsplit(page.url).path == "/ui/login"
    before = len(denials(guarded))
    sign_in(one, "made-up")
    assert "Invalid or expired token" in one.text()
    [denial] = denials(guarded)[before:]
    assert '"reason":"Invalid or expired token"' in denial
    one.faults.clear()  # the browser reports the 401
    sign_in(one, tokens["ops:reader"])
    assert urlsplit(page.url)[2:4] == ("/ui/events", "event_outcome=success")
    assert page.locator("tr.event").count() > 0
    assert "ops:reader" in one.text()
    [cookie] = [cookie for cookie in one.context.cookies() if cookie["name"] == "datastorage_session"]
    assert (cookie["httpOnly"], cookie["sameSite"], cookie["path"]) == (True, "Strict", "/")
    assert tokens["ops:reader"] not in cookie["value"]
    page.click("a.twin")
    assert page.locator("pre").inner_text().startswith('{"data":[{')
    form_token = one.open("/ui/trust").locator("input[name=form_token]").first.get_attribute("value")
    assert page.locator("text=Place a hold").count() == 0
    order: dict[str, str | float | bool] = {
        "form_token": str(form_token),
        "order": "place",
        "actor_id": "ada",
        "reason": "x",
    }
    refused = one.context.request.post("/ui/holds", form=order, headers=HTML)
    assert (refused.status, "Insufficient permissions" in refused.text()) == (403, True)
    posted = one.context.request.post("/api/v1/audit/events", data=make_event())
    assert posted.status == 401, "a cookie counts where the API is read only"
    one.open("/ui/events")
    page.click("text=Sign out")
    assert urlsplit(page.url).path == "/ui/login"
    one.open("/ui/events")
    assert urlsplit(page.url).path == "/ui/login"


def test_at_the_issuer(reader: Callable[..., Reader], guarded: Service, idp: Issuer) -> None:
    """A browser that comes back from the issuer is not signed in, or is by an answer to somebody else's question."""
    one = reader(guarded.url, javascript=False)
    one.hosts.add(urlsplit(idp.url).netloc)
    page = one.open("/ui/events?event_outcome=success")
    page.click("text=Sign in at")
    page.wait_for_url("**/ui/events?event_outcome=success")
    assert "ada@example.org" in one.text()
    assert {cookie["name"] for cookie in one.context.cookies()} >= {"datastorage_session"}
    assert "datastorage_attempt" not in {cookie["name"] for cookie in one.context.cookies()}
    for claims in ({"nonce": "another"}, {"aud": "another"}, {"exp": 1}):
        idp.answer = claims
        other = reader(guarded.url, javascript=False)
        other.hosts.add(urlsplit(idp.url).netloc)
        other.open("/ui/login").click("text=Sign in at")
        assert "does not belong to this attempt" in other.text()
        assert "datastorage_session" not in {cookie["name"] for cookie in other.context.cookies()}
        other.faults.clear()
    idp.answer = {}
    with httpx.Client(base_url=guarded.url, headers=HTML) as client:
        begun = client.get("/ui/login/oidc?next=//elsewhere.example/")
        back = idp.authorize(dict(httpx.URL(begun.headers["location"]).params))
        elsewhere = httpx.get(back, headers=HTML)
        assert (elsewhere.status_code, "begin again" in elsewhere.text) == (400, True)
        signed_in = client.get(back)
        assert (signed_in.status_code, 'content="0; url=/ui"' in signed_in.text) == (200, True)
        assert client.get(back).status_code == 400, "the attempt is over"
        assert client.get("/ui/login/callback?error=access_denied").status_code == 400
        begun = client.get("/ui/login/oidc")
        back = idp.authorize(dict(httpx.URL(begun.headers["location"]).params))
        idp.down = True
        away = client.get(back)
        idp.down = False
        assert (away.status_code, "Authentication service unavailable" in away.text) == (500, True)


def test_beginning_does_not_ask_the_issuer(guarded: Service, idp: Issuer) -> None:
    """Whoever reaches the service has it send a request to the issuer as often as they like."""
    with httpx.Client(base_url=guarded.url, headers=HTML) as client:
        before = idp.requests
        for _ in range(20):
            assert client.get("/ui/login/oidc").status_code == 303
        assert idp.requests - before <= 4, "once in each process, and its keys"


def test_cookie_of_this_host_alone(guarded: Service, tokens: dict[str, str]) -> None:
    """Another host of the domain gives a browser a session of its own choice, or the cookie goes over plain HTTP."""
    audit = HTML | {"Host": "audit.example"}
    with httpx.Client(base_url=guarded.url) as client:
        form = client.get("/ui/login", headers=audit)
        found = re.search(r'name="form_token" value="(\w+)"', form.text)
        assert found is not None
        visitor = form.headers["set-cookie"].partition(";")[0]
        fields = {"form_token": found[1], "token": tokens["ops:reader"]}
        answer = client.post("/ui/login", data=fields, headers=audit | {"Cookie": visitor})
        assert answer.status_code == 303
        cookie = answer.headers["set-cookie"]
        begun = client.get("/ui/login/oidc", headers=audit).headers["set-cookie"]
    assert begun.startswith("__Host-datastorage_attempt=")
    assert "; Path=/; " in begun
    assert cookie.startswith("__Host-datastorage_session=")
    assert cookie.endswith("; HttpOnly; SameSite=Strict; Secure")
    sent = cookie.partition(";")[0]
    # A browser sends beside it what others have set, which need not be as RFC 6265 has it.
    for name, status in ((sent, 200), (f'prefs={{"a":1}}; {sent}', 200), (sent.removeprefix("__Host-"), 303)):
        assert httpx.get(f"{guarded.url}/ui/events", headers=audit | {"Cookie": name}).status_code == status


def test_forged_forms(guarded: Service, tokens: dict[str, str]) -> None:
    """Another page has a browser do something that its user did not want."""

    def post(client: httpx.Client, form_token: str, **headers: str) -> int:
        fields = {"form_token": form_token, "token": tokens["ops:reader"]}
        return client.post(
            "/ui/login", data=fields, headers=HTML | {n.replace("_", "-"): v for n, v in headers.items()}
        ).status_code

    def token_of(client: httpx.Client) -> str:
        found = re.search(r'name="form_token" value="(\w+)"', client.get("/ui/login", headers=HTML).text)
        assert found is not None
        return found[1]

    with httpx.Client(base_url=guarded.url) as client, httpx.Client(base_url=guarded.url) as other:
        own, others = token_of(client), token_of(other)
        assert post(client, "") == post(client, others) == post(client, "é") == 403
        assert post(client, own, sec_fetch_site="cross-site") == post(client, own, sec_fetch_site="same-site") == 403
        assert post(client, own, origin="http://127.0.0.1:1") == post(client, own, origin="null") == 403
        assert client.post("/ui/login", json={"form_token": own}, headers=HTML).status_code == 400
        assert post(client, own, sec_fetch_site="same-origin", origin=guarded.url) == 303
        assert client.post("/ui/logout", data={"form_token": own}, headers=HTML).status_code == 403, (
            "the session has another"
        )


def test_rebound_names(pages_service: Service) -> None:
    """A page of another site, whose name is made one of this machine, reads pages or the API, or posts; or a client's own name is refused."""
    evil, events = {"Host": "evil.example"}, f"{pages_service.url}/api/v1/audit/events"
    for header in ({"Accept-Language": "en"}, {"Sec-Fetch-Site": "same-origin"}, {"Origin": "http://evil.example"}):
        for answer in (
            httpx.get(f"{pages_service.url}/ui/events", headers=HTML | evil | header),
            httpx.get(events, headers=evil | header),
            httpx.post(events, json=make_event(), headers=evil | header),
        ):
            assert (answer.status_code, "this machine alone" in answer.text) == (400, True)
        assert httpx.get(events, headers=header).status_code == 200
    for header in ({}, {"Accept-Language": "*", "Sec-Fetch-Mode": "cors"}):  # Node's fetch
        assert httpx.get(events, headers={"Host": "datastorage:8080"} | header).status_code == 200


def test_refused_tokens_are_recorded(guarded: Service) -> None:
    """Whoever tries tokens at the form of a page is not in the log, or the token is."""
    with httpx.Client(base_url=guarded.url, headers=HTML) as client:
        found = re.search(r'name="form_token" value="(\w+)"', client.get("/ui/login").text)
        assert found is not None
        fields = {"form_token": found[1], "token": "guessed-one"}
        answer = client.post("/ui/login", data=fields, headers={"X-Request-ID": "a-guess-at-the-form"})
        assert answer.status_code == 401
    log = guarded.log.read_text()
    denials = [line for line in log.splitlines() if "security_event" in line and "a-guess-at-the-form" in line]
    assert len(denials) == 1
    assert '"authentication_failed"' in denials[0]
    assert "guessed-one" not in log


def test_sessions_that_end(guarded: Service, tokens: dict[str, str], tokens_file: Path) -> None:
    """A session outlives its token, or a cookie of another key opens one; a read of a page by an auditor is not recorded."""
    with httpx.Client(base_url=guarded.url, headers=HTML) as client:
        for cookie in ("", "x", "A" * 200, "é"):
            answer = client.get("/ui/events", headers=[(b"Cookie", f"datastorage_session={cookie}".encode())])
            assert answer.headers["location"] == "/ui/login?next=%2Fui%2Fevents"
        answer = client.get("/ui/correlations/rr%3Fa%2Fb?verify=true")
        assert answer.headers["location"] == "/ui/login?next=%2Fui%2Fcorrelations%2Frr%253Fa%252Fb%3Fverify%3Dtrue"
        form = client.get("/ui/login").text
        found = re.search(r'name="form_token" value="(\w+)"', form)
        assert found is not None
        client.post("/ui/login", data={"form_token": found[1], "token": tokens["ops:auditor"]})
        assert client.get("/ui/events?event_outcome=failure").status_code == 200
        query = "/api/v1/audit/events?event_type=datastorage.read.audited"
        [read, *_] = [
            e["event_data"]
            for e in client.get(query, headers={"Accept": "*/*"}).json()["data"]
            if "/ui/" in e["event_data"]["http_path"]
        ]
        assert (read["read_by"], read["http_path"], read["query_string"]) == (
            "ops:auditor",
            "/ui/events",
            "event_outcome=failure",
        )
        lines = [line for line in tokens_file.read_text().splitlines() if "ops:auditor" not in line]
        tokens_file.write_text("\n".join(lines) + "\n")
        answer = until(lambda: _unless_open(client.get("/ui/events")))  # until the service has read the file again
        assert answer.headers["location"] == "/ui/login?ended&next=%2Fui%2Fevents"


def _unless_open(answer: httpx.Response) -> httpx.Response | None:
    return None if answer.status_code == 200 else answer


def test_who_may_hold(reader: Callable[..., Reader], guarded: Service, tokens: dict[str, str]) -> None:
    """Who may only read is offered a form that is refused; or a form in a reader's session places a hold."""
    admin = {"Authorization": f"Bearer {tokens['ops:admin']}"}
    event = make_event()
    assert httpx.post(f"{guarded.url}/api/v1/audit/events", json=event, headers=admin).status_code == 201
    offered = {}
    for name in ("ops:reader", "ops:admin"):
        one = reader(guarded.url, javascript=False)
        page = one.open(f"/ui/correlations/{event['correlation_id']}")
        sign_in(one, tokens[name])
        offered[name] = page.get_by_text("Hold it").count()
        token = page.locator("[name=form_token]").first.get_attribute("value") or ""
        form = {"form_token": token, "correlation_id": event["correlation_id"], "order": "place", "reason": "case 12"}
        sent = one.context.request.post("/ui/holds", form=form, headers={"Origin": guarded.url}, max_redirects=0)
        assert sent.status == (303 if name == "ops:admin" else 403), sent.text()
    assert offered == {"ops:reader": 0, "ops:admin": 1}
    holds = httpx.get(f"{guarded.url}/api/v1/audit/legal-hold", headers=admin).json()["holds"]
    assert [(one["placed_by"], one["reason"]) for one in holds] == [("ops:admin", "case 12")]
