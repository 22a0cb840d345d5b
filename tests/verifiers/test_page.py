"""docs/verifier.html in a real Chromium, opened from disk."""

import base64
import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.services import ROOT
from tests.verifiers import chromium, inline
from tests.verifiers.files import Corpus, key_label

PAGE = ROOT / "docs" / "verifier.html"
VECTORS = ROOT / "docs" / "vectors"
ORDER = 2**252 + 27742317777372353535851937790883648493
WAIT = """new Promise((done, failed) => {
    document.addEventListener("verified", () => done(), {once: true});
    setTimeout(() => failed(new Error("nothing was verified")), 60000); })"""
pytestmark = pytest.mark.skipif(
    chromium.PROGRAM is None and os.environ.get("DATASTORAGE_TEST_CHROMIUM") != "required",
    reason="there is no Chromium",
)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Tab]:
    with chromium.tab(tmp_path_factory.mktemp("profile")) as tab:
        for domain in ("Page", "Network", "Runtime", "Log", "DOM"):
            tab.call(f"{domain}.enable")
        tab.call("Page.navigate", url=PAGE.as_uri())
        tab.wait_for("Page.loadEventFired")
        yield tab


def show(page: chromium.Tab, key: str, files: tuple[Path, ...]) -> tuple[list[str], str]:
    """The verdicts of the page on `files`, and its text."""
    page.evaluate(f"document.getElementById('key').value = {json.dumps(key)}")
    settled = page.begin(WAIT)
    root = page.call("DOM.getDocument")["root"]["nodeId"]
    chooser = page.call("DOM.querySelector", nodeId=root, selector="#files")["nodeId"]
    page.call("DOM.setFileInputFiles", nodeId=chooser, files=[str(file) for file in files])
    page.evaluated(settled)
    found = "[...document.querySelectorAll('article')].map((one) => one.dataset.verdict)"
    return page.evaluate(found), page.evaluate("document.getElementById('results').innerText")


def test_verdicts(page: chromium.Tab, corpus: Corpus, subtests: pytest.Subtests) -> None:
    """A good file is refused, or a tampered one accepted."""
    for case in corpus.cases:
        with subtests.test(case.name):
            verdicts, text = show(page, corpus.keys.read_text(), case.files)
            assert ("refused" not in verdicts) == case.holds, text
            assert len(verdicts) == 1 or not case.holds, text


def test_words(page: chromium.Tab, corpus: Corpus) -> None:
    """An auditor is not told what is proved, by whom, what is not, or reads another number than was logged."""
    (verdict,), text = show(page, corpus.vkey, (corpus.directory / "odd.json",))
    assert (verdict, "18446744073709551616" in text, "0.30000000000000000004" in text) == ("holds", True, True)
    assert key_label(corpus.vkey) in text
    assert hashlib.sha256((corpus.directory / "odd.json").read_bytes()).hexdigest() in text
    (verdict,), text = show(page, corpus.vkey, (corpus.directory / "all.csv",))
    assert (verdict, "Nothing was left out among the first 10 events" in text) == ("partly", True)
    assert re.search(r"1 event was put into the database by somebody else", text)
    _, text = show(page, corpus.vkey, (corpus.directory / "filtered.ndjson",))
    assert "That nothing was left out" in text
    (verdict,), text = show(page, corpus.vkey, (corpus.directory / "signed-number.ndjson",))
    assert (verdict, "position 8 does not have its hash" in text, "What is proved" in text) == ("refused", True, False)


def test_own_cryptography(page: chromium.Tab) -> None:
    """A signature that does not verify is accepted, or the other way round; a hash differs."""
    cases: list[tuple[bytes, bytes, bytes, bool]] = []
    for length in (0, 1, 63, 111, 112, 300):
        key, message = Ed25519PrivateKey.generate(), os.urandom(length)
        public, signature = key.public_key().public_bytes_raw(), key.sign(message)
        s = int.from_bytes(signature[32:], "little")
        cases += [
            (public, message, signature, True),
            (public, message + b"x", signature, False),
            (public, message, signature[:40] + bytes([signature[40] ^ 1]) + signature[41:], False),
            (public, message, bytes([signature[0] ^ 1]) + signature[1:], False),
            (public, message, signature[:32] + (s + ORDER).to_bytes(32, "little"), False),
        ]
    # RFC 8032, section 7.1, test 2; and y = p + 1, a second spelling of the neutral point, under which anything could verify.
    public = bytes.fromhex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")
    signature = bytes.fromhex(
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
    )
    neutral = (2**255 - 18).to_bytes(32, "little")
    cases += [(public, b"\x72", signature, True), (neutral, b"x", (1).to_bytes(32, "little") + bytes(32), False)]
    texts = [[part.hex() for part in case[:3]] for case in cases]
    verify = f"{json.dumps(texts)}.map((one) => D.ed25519(...one.map((text) => D.unhex(text, text.length / 2))))"
    assert page.evaluate(f"(() => {{ const D = DataStorageVerifier; return {verify}; }})()") == [
        one[3] for one in cases
    ]
    for name in ("sha256", "sha512"):
        for length in (0, 55, 56, 64, 111, 112, 128, 1000):
            message = os.urandom(length)
            hashed = f"D.hex(D.{name}(D.unhex('{message.hex()}', {length})))"
            found = page.evaluate(f"(() => {{ const D = DataStorageVerifier; return {hashed}; }})()")
            assert found == hashlib.new(name, message).hexdigest()


def test_vectors(page: chromium.Tab) -> None:
    """The page computes another hash than docs/vectors have."""
    program = """(text) => { const D = DataStorageVerifier, ends = {};
        return D.parseObject(text).get("events").map((event) => {
            const row = D.parseObject(event.get("row"));
            for (const name of ["payload_salt", "log_index", "chain_index"]) row.set(name, event.get(name));
            row.set("log", event.get("log") ?? "example.test/datastorage");
            row.set("previous_event_hash", ends[row.get("correlation_id")] ?? null);
            return ends[row.get("correlation_id")] = D.eventHash(row); }); }"""
    for path in sorted(VECTORS.glob("*.json")):
        hashes = page.evaluate(f"({program})({json.dumps(path.read_text())})")
        assert hashes == [event["event_hash"] for event in json.loads(path.read_text())["events"]], path.name


def test_checkpoint_with_a_signature_of_another_kind(page: chromium.Tab) -> None:
    """The page refuses a checkpoint that ML-DSA has signed too, or believes that signature without a look at it."""
    vector = json.loads((VECTORS / "checkpoints" / "0001-ml-dsa-44.json").read_text())
    for keys, signers in (
        ([vector["ed25519_vkey"], vector["ml_dsa_44_vkey"]], [key_label(vector["ed25519_vkey"])]),
        ([vector["ml_dsa_44_vkey"]], "refused"),
    ):
        opened = f"D.openCheckpoint({json.dumps(vector['note'])}, D.parseKeys({json.dumps(' '.join(keys))})).signers"
        program = f"try {{ return {opened}; }} catch (error) {{ if (error instanceof D.Refused) return 'refused'; throw error; }}"
        assert page.evaluate(f"(() => {{ const D = DataStorageVerifier; {program} }})()") == signers


def test_large_file_does_not_freeze_the_page(page: chromium.Tab, corpus: Corpus, tmp_path: Path) -> None:
    """A file is read at once, so that the page does not react while it is verified."""
    *records, manifest = (corpus.directory / "all.ndjson").read_bytes().splitlines(keepends=True)
    large = tmp_path / "large.ndjson"
    large.write_bytes(b"".join(records) * 150 + manifest)
    page.evaluate("window.turns = 0; window.timer = setInterval(() => turns++, 1); 0")
    (verdict,), _ = show(page, corpus.vkey, (large,))
    assert (verdict, page.evaluate("clearInterval(timer); turns") > 5) == ("refused", True)


def test_nothing_leaves(page: chromium.Tab) -> None:
    """Something is requested, by the page or by what is injected into it; or a script that nobody read may run."""
    requests = [
        event["params"]["request"]["url"] for event in page.events if event["method"] == "Network.requestWillBeSent"
    ]
    assert set(requests) == {PAGE.as_uri()}
    logged = [event for event in page.events if event["method"] in {"Log.entryAdded", "Runtime.exceptionThrown"}]
    assert logged == []
    attempts = """Promise.all([
        fetch("http://127.0.0.1:9/").then(() => "fetched", () => "refused"),
        new Promise((done) => { const image = new Image(); image.onload = () => done("loaded"); image.onerror = () => done("refused");
            image.src = "http://127.0.0.1:9/x.png"; }),
        new Promise((done) => { document.addEventListener("securitypolicyviolation", (event) => done(event.effectiveDirective), {once: true});
            const script = document.createElement("script"); script.textContent = "window.ran = 1"; document.body.append(script); }),
    ]).then((all) => [...all, window.ran ?? 0])"""
    fetched, loaded, violated, ran = page.evaluate(attempts)
    assert (fetched, loaded, ran) == ("refused", "refused", 0)
    assert violated
    blocked = [event["params"] for event in page.events if event["method"] == "Network.loadingFailed"]
    assert {one.get("blockedReason") for one in blocked} <= {"csp"}


def test_verifier_is_that_of_the_pages() -> None:
    """The page for auditors and the badge of the pages verify differently: `make verifier` was not run."""
    assert inline.inlined(PAGE.read_text("utf-8"), inline.SOURCE.read_text("utf-8")) == PAGE.read_text("utf-8")


def test_scripts_are_those_that_the_policy_names() -> None:
    """A script was edited without its hash: no browser runs it. The message has the right one."""
    text = PAGE.read_text()
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    hashes = " ".join(f"'sha256-{digest}'" for digest in digests)
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    others = "style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    assert policy[1] == f"default-src 'none'; script-src {hashes}; {others}"
    assert not re.search(r"(?:src|href|action)=|url\(|@import|innerHTML|eval\(", text)
