"""Identity providers that hang, fail and flap, many tokens, and tokens that are revoked. The clock is the test's."""

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from app.auth import tokens
from app.auth.attempt import Attempt
from app.auth.authenticator import Authenticator
from app.auth.identity import Identity
from app.auth.kubernetes import Kubernetes
from app.errors import Fatal, Forbidden, ReviewFailed, Unauthorized
from app.settings import Settings
from tests.apiserver import ACCOUNT, ALL, ApiServer
from tests.issuer import Issuer, make_key
from tests.waiting import eventually


@dataclass
class Clock:
    """Stands still until the test moves it."""

    at: float = 1_800_000_000.0

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def clock() -> Clock:
    return Clock()


@asynccontextmanager
async def authenticator_for(clock: Clock, settings: dict[str, Any]) -> AsyncIterator[Authenticator]:
    if isinstance(roles := settings.get("oidc_roles"), str):  # as in the environment
        settings["oidc_roles"] = json.loads(roles)
    made = Authenticator(Settings(**settings), clock=clock, now=clock)
    try:
        yield made
    finally:
        await made.close()


async def test_a_revoked_token_is_out_within_the_cache_time(api: ApiServer, clock: Clock, tmp_path: Path) -> None:
    """A revoked token works for longer than the setting says, or a review is made for each request."""
    api.add("t", ACCOUNT + "one", ALL)
    async with authenticator_for(clock, api.settings(tmp_path) | {"auth_cache_ms": 10_000}) as authenticator:
        for _ in range(50):
            await authenticator.authorize(await authenticator.identify("t"), "create")
        assert api.asked == {"TokenReview": 1, "SubjectAccessReview": 1}
        del api.users["t"]
        clock.at += 9.9
        assert (await authenticator.identify("t")).identity.name == ACCOUNT + "one"
        clock.at += 0.1
        with pytest.raises(Unauthorized):
            await authenticator.identify("t")


async def test_a_revoked_verb_is_out_too(api: ApiServer, clock: Clock, tmp_path: Path) -> None:
    """A deleted role binding works for longer than the cache time."""
    api.add("t", ACCOUNT + "one", ALL)
    async with authenticator_for(clock, api.settings(tmp_path)) as authenticator:
        caller = await authenticator.identify("t")
        await authenticator.authorize(caller, "update")
        api.verbs[ACCOUNT + "one"] = frozenset({"get"})
        await authenticator.authorize(caller, "update")
        clock.at += 10
        with pytest.raises(Forbidden):
            await authenticator.authorize(await authenticator.identify("t"), "update")
        await authenticator.authorize(await authenticator.identify("t"), "get")


async def test_a_review_under_way_when_the_token_is_revoked_counts_from_its_start(
    api: ApiServer, clock: Clock, tmp_path: Path
) -> None:
    """A slow review makes its answer valid for longer."""
    api.add("t", ACCOUNT + "one", ALL)
    api.delay_seconds = 0.2
    async with authenticator_for(clock, api.settings(tmp_path)) as authenticator:
        first = asyncio.create_task(authenticator.identify("t"))
        await asyncio.to_thread(api.first_asked.wait)
        clock.at += 10
        await first
        del api.users["t"]
        with pytest.raises(Unauthorized):
            await authenticator.identify("t")


async def test_many_ask_and_one_review_is_made(api: ApiServer, clock: Clock, tmp_path: Path) -> None:
    """A thousand requests after a restart are a thousand reviews, or the first client's disconnection ends the review for all."""
    api.add("t", ACCOUNT + "one", ALL)
    api.delay_seconds = 0.2
    async with authenticator_for(clock, api.settings(tmp_path)) as authenticator:
        asking = [asyncio.create_task(authenticator.identify("t")) for _ in range(1000)]
        await asyncio.sleep(0.05)
        asking[0].cancel()  # its client disconnects
        found = await asyncio.gather(*asking, return_exceptions=True)
        assert isinstance(found[0], asyncio.CancelledError)
        assert {caller.identity.name for caller in found[1:] if not isinstance(caller, BaseException)} == {
            ACCOUNT + "one"
        }
        assert sum(isinstance(caller, BaseException) for caller in found) == 1
    assert api.asked["TokenReview"] == 1


async def test_ten_thousand_tokens(
    api: ApiServer, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens fill the memory, or made-up ones evict the valid ones."""
    asked: Counter[str] = Counter()

    async def identify(_: object, token: str) -> Identity | None:
        asked[token] += 1
        return Identity(token, None) if token.startswith("good") else None

    monkeypatch.setattr(Kubernetes, "identify", identify)
    async with authenticator_for(clock, api.settings(tmp_path) | {"auth_cache_entries_max": 5_000}) as authenticator:
        for number in range(10_000):
            await authenticator.identify(f"good-{number}")
            with pytest.raises(Unauthorized):
                await authenticator.identify(f"made-up-{number}")
        assert len(authenticator._identities) == 5_000 + 1_000
        for number in range(10_000):
            await authenticator.identify(f"good-{9_999 - number}")
        assert [asked[f"good-{number}"] for number in (0, 4_999, 5_000, 9_999)] == [2, 2, 1, 1]


@pytest.mark.parametrize("behaviour", ["hang", "fail", "drop"])
@pytest.mark.parametrize("kind", ["TokenReview", "SubjectAccessReview"])
async def test_a_provider_that_cannot_be_asked_admits_nobody(
    api: ApiServer, clock: Clock, tmp_path: Path, kind: str, behaviour: str
) -> None:
    """A failing API server admits everybody, or its failure is still cached when it has recovered."""
    api.add("t", ACCOUNT + "one", ALL)
    settings = api.settings(tmp_path) | {"auth_timeout_ms": 200}
    async with authenticator_for(clock, settings) as authenticator:
        await authenticator.authorize(await authenticator.identify("t"), "get")
        api.broken = {kind: behaviour}
        await authenticator.authorize(await authenticator.identify("t"), "get")  # still cached
        clock.at += 10  # the cached answers have expired
        for _ in range(2):
            with pytest.raises(ReviewFailed) as failed:
                await authenticator.authorize(await authenticator.identify("t"), "get")
            kinds = {"TokenReview": "Authentication", "SubjectAccessReview": "Authorization"}
            assert failed.value.detail == f"{kinds[kind]} service unavailable"
        api.broken = {}
        await authenticator.authorize(await authenticator.identify("t"), "get")


async def test_a_provider_that_flaps(api: ApiServer, clock: Clock, tmp_path: Path) -> None:
    """Between two failures an unknown token is admitted, or nobody is."""
    api.add("t", ACCOUNT + "one", ALL)
    api.broken = {"TokenReview": "flap"}
    results: list[str] = []
    async with authenticator_for(clock, api.settings(tmp_path)) as authenticator:
        for number in range(20):
            clock.at += 11
            for token in ("t", f"made-up-{number}"):
                try:
                    results.append((await authenticator.identify(token)).identity.name)
                except (Unauthorized, ReviewFailed) as error:
                    results.append(f"{token[:7]} {error.status}")
    assert set(results) <= {ACCOUNT + "one", "t 500", "made-up 401", "made-up 500"}
    assert ACCOUNT + "one" in results


async def test_an_api_server_without_a_trusted_certificate(clock: Clock, tmp_path: Path) -> None:
    """Tokens are sent to a server without a trusted certificate, or a missing authority causes a traceback."""
    (tmp_path / "token").write_text("own")
    settings = {"auth": "kubernetes", "kubernetes_ca_file": tmp_path / "no-such-file"}
    with pytest.raises(Fatal, match="DATASTORAGE_KUBERNETES_CA_FILE"):
        async with authenticator_for(clock, settings):
            pass


ODD_NAMES = ["", "a" * 256, "a\nb", "a\u202eb", 17, None]


@pytest.mark.parametrize("name", ODD_NAMES)
async def test_names_that_cannot_be_recorded(api: ApiServer, clock: Clock, tmp_path: Path, name: Any) -> None:
    """A caller's name makes the database refuse an event, or forges a line of the log."""
    api.add("t", name, ALL)
    async with authenticator_for(clock, api.settings(tmp_path)) as authenticator:
        with pytest.raises(Unauthorized):
            await authenticator.identify("t")


async def test_issuer_with_new_keys(idp: Issuer, clock: Clock) -> None:
    """After a rotation nobody is admitted, the old key works for ever, or made-up keys cause a storm of fetches."""
    clock.at = time.time()
    async with authenticator_for(clock, idp.settings() | {"auth_cache_ms": 0}) as authenticator:
        old = idp.token("jane", ["reader"])
        assert (await authenticator.identify(old)).identity.name == "jane"
        old_key, idp.key = idp.key, make_key("second")
        clock.at += 11
        new = idp.token("jane", ["reader"])
        assert (await authenticator.identify(new)).identity.verbs == frozenset({"get"})
        with pytest.raises(Unauthorized):
            await authenticator.identify(idp.token("jane", ["reader"], old_key))
        fetched = idp.fetched
        for _ in range(20):
            with pytest.raises(Unauthorized):
                await authenticator.identify(idp.token("jane", ["admin"], make_key("third") if _ == 0 else old_key))
        assert idp.fetched <= fetched + 1


async def test_issuer_that_is_down(idp: Issuer, clock: Clock) -> None:
    """A short outage of the issuer locks everybody out, or withdrawn keys work through a long one."""
    clock.at = time.time()
    async with authenticator_for(clock, idp.settings() | {"auth_cache_ms": 0}) as authenticator:
        idp.down = True
        asking = [authenticator.identify(idp.token("jane", ["reader"], jti=str(n))) for n in range(20)]
        failed = await asyncio.gather(*asking, return_exceptions=True)
        assert all(isinstance(one, ReviewFailed) for one in failed)
        assert idp.fetched == 0
        assert idp.requests == 1  # nobody waits for a second fetch
        idp.down = False
        clock.at += 1
        await authenticator.identify(idp.token("jane", ["reader"]))
        idp.down = True
        clock.at += 3_000
        await authenticator.identify(idp.token("jane", ["reader"], exp=int(clock.at) + 60))
        clock.at += 1_000
        with pytest.raises(ReviewFailed):
            await authenticator.identify(idp.token("jane", ["reader"], exp=int(clock.at) + 60))


def _with_pages(idp: Issuer) -> dict[str, Any]:
    return idp.settings() | {"ui_oidc_client_id": "pages", "ui_url": "http://localhost", "auth_timeout_ms": 20_000}


async def test_beginning_while_the_issuer_is_down(idp: Issuer, clock: Clock) -> None:
    """Whoever reaches the service has it ask an issuer that is in trouble as often as they like."""
    async with authenticator_for(clock, _with_pages(idp)) as authenticator:
        flow = authenticator.code_flow
        assert flow is not None
        idp.down = True
        for asked in (1, 2):
            begun = [flow.authorization_url(Attempt.begin()) for _ in range(20)]
            assert {type(one) for one in await asyncio.gather(*begun, return_exceptions=True)} == {ReviewFailed}
            assert idp.requests == asked
            clock.at += 1
        idp.down = False
        assert (await flow.authorization_url(Attempt.begin())).startswith(f"{idp.url}/authorize?")


async def test_made_up_codes(idp: Issuer, clock: Clock) -> None:
    """Whoever has begun to sign in has the service post made-up codes to the issuer, all at once."""
    async with authenticator_for(clock, _with_pages(idp)) as authenticator:
        flow = authenticator.code_flow
        assert flow is not None
        idp.answers.clear()
        sent = [asyncio.create_task(flow.redeem(Attempt.begin(), f"made-up-{number}")) for number in range(20)]
        try:
            await eventually(lambda: _if(idp.codes >= 4))
        finally:
            idp.answers.set()
        refused = await asyncio.gather(*sent, return_exceptions=True)
        assert {type(one) for one in refused} == {Unauthorized}
        assert idp.codes_most == 4


async def _if(is_so: bool) -> bool | None:
    return is_so or None


async def test_tokens_of_the_issuer_that_are_not_valid(idp: Issuer, clock: Clock) -> None:
    """A token for another audience, of another issuer, expired or without a signature is accepted."""
    clock.at = time.time()
    head, body, _ = idp.token("eve", ["admin"]).split(".")
    bad = [
        *(idp.token("eve", ["admin"], aud=None), idp.token("eve", ["admin"], aud=["other"])),
        *(idp.token("eve", ["admin"], nbf=int(clock.at) + 600), idp.token("eve", ["admin"], exp=int(clock.at))),
        *(idp.token("", ["admin"]), idp.token("a\nb", ["admin"]), idp.token("eve", ["admin"], make_key("first"))),
        *(f"{head}.{body}.", f"{head}.{body}.AAAA", f"{head}.{body}", "a.b.c", "...", "eyJ.eyJ.", "\xff\xfe.\xff.\xff"),
        signed_by_the_public_key(idp, body),
        encoded(b'{"alg":"none","kid":"first"}') + f".{body}.",
    ]
    async with authenticator_for(clock, idp.settings()) as authenticator:
        for token in bad:
            with pytest.raises(Unauthorized):
                await authenticator.identify(token)
        good = idp.token("eve", ["reader", "auditor"], exp=int(clock.at) + 5)
        assert (await authenticator.identify(good)).identity.audited
        clock.at += 5  # less than the cache time
        with pytest.raises(Unauthorized):
            await authenticator.identify(good)


def encoded(text: bytes) -> str:
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode()


def signed_by_the_public_key(idp: Issuer, body: str) -> str:
    """The issuer's public key is not a secret: a service that accepts it as an HMAC key accepts forged tokens."""
    signed = encoded(b'{"alg":"HS256","kid":"first"}') + "." + body
    digest = hmac.digest(idp.key.as_pem(private=False), signed.encode(), "sha256")
    return f"{signed}.{encoded(digest)}"


async def test_an_issuer_cannot_make_system_users(idp: Issuer, clock: Clock) -> None:
    """A user who can choose a display name at the issuer becomes a Kubernetes service account here."""
    clock.at = time.time()
    settings = idp.settings() | {"oidc_name_claim": "preferred_username"}
    async with authenticator_for(clock, settings) as authenticator:
        with pytest.raises(Unauthorized):
            await authenticator.identify(idp.token("1", ["admin"], preferred_username=ACCOUNT + "orchestrator"))
        assert (await authenticator.identify(idp.token("1", ["admin"], preferred_username="jane"))).identity.person


BROKEN_FILES = [
    *(
        "- {name: a",
        "name: a",
        "- a",
        "- {name: a, role: reader}",
        "- {name: '', role: reader, sha256: '" + "0" * 64 + "'}",
    ),
    *("- {name: a, role: king, sha256: '" + "0" * 64 + "'}", "- {name: a, role: reader, sha256: xyz}"),
    "- {name: a, role: reader, sha256: '" + "0" * 64 + "', expires: soon}",
    "- {name: a, role: reader, sha256: '" + "0" * 64 + "'}\n" * 2,
    "- {name: a, role: reader, sha256: '" + "0" * 64 + "', token: hunter2}",
]


@pytest.mark.parametrize("text", BROKEN_FILES)
def test_token_files_that_are_not_valid(tmp_path: Path, text: str) -> None:
    """A file with a mistake is read as something else, or its content is shown in the log."""
    path = tmp_path / "tokens.yaml"
    path.write_text(text)
    with pytest.raises(Fatal) as fatal:
        tokens.read_tokens(path)
    assert str(path) in fatal.value.detail
    assert "hunter2" not in fatal.value.detail
    assert "0" * 64 not in fatal.value.detail


NAMES = ["a", "ops:jane", 'quo"te', "żółw 🐢", "yes", "17", "{x}"]


@pytest.mark.parametrize("name", NAMES)
def test_created_tokens_are_found(tmp_path: Path, clock: Callable[[], float], name: str) -> None:
    """A token that was just created has no owner, or another one."""
    path = tmp_path / "tokens.yaml"
    path.write_text("# ours")
    for role in ("reader", "admin"):
        token, line = tokens.create_token(name, role, "2100-01-01")
        tokens.append_entry(path, line)
        digest = hashlib.sha256(token.encode()).digest()
        found = tokens.TokenFile(path, clock).find(digest)
        assert found is not None
        assert (found.name, "update" in (found.verbs or ())) == (name, role == "admin")
        assert found.expires == 4_102_444_800
        assert token not in path.read_text()
    for bad in (("a", "king", None), ("a\nb", "reader", None), ("a", "reader", "soon")):
        with pytest.raises(Fatal):
            tokens.create_token(*bad)
