"""Timestamps of checkpoints by a real authority, `openssl ts`: asked for hourly, stored, proved offline; wrong ones are refused."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey
from pydantic import SecretStr

from app import db
from app.errors import Fatal
from app.events.log import Log
from app.export.bundle import parse
from app.export.bundle_check import check_bundle
from app.export.bundle_read import BundleExport, BundleQuery
from app.settings import Settings
from app.tlog import authority as module
from app.tlog.authority import Authority, NotStamped
from app.tlog.keys import SigningKey
from app.tlog.note import Checkpoint, NoValidSignature, encoded_base64, sign_checkpoint
from app.tlog.signer import Signer
from app.tlog.tiles import SQL
from app.tlog.timestamp import (
    WrongTimestamp,
    new_request,
    read_certificates,
    token_in,
    verified_timestamp,
    verify_timestamp_file,
)
from app.verify.database import DatabaseResult, TrustAnchors, sequential_runner, verify_database
from app.verify.row import Defect
from app.verify.snapshot import snapshot
from app.verify.worker import Verifier
from tests.logs import FIRST_LOG
from tests.postgres.test_background import a_round
from tests.postgres.test_checkpoints import Connection, new_key, one_round
from tests.sealed import LOG, seal
from tests.timestamping import TimestampAuthority, needs_openssl, serving

pytestmark = [needs_openssl, pytest.mark.damaged]  # some tests forge what is stored

KEY = new_key(LOG)
NOTE = sign_checkpoint(Checkpoint(LOG, 7, bytes(32)), KEY.private)
Tsa = TimestampAuthority


@pytest.fixture(scope="module")
def tsa(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tsa]:
    with serving(Tsa(tmp_path_factory.mktemp("tsa") / "tsa")) as one:
        yield one


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Tsa:
    return Tsa(tmp_path_factory.mktemp("tsa") / "stranger")


@pytest.fixture(autouse=True)
def _an_honest_authority(tsa: Tsa) -> Iterator[None]:
    yield
    tsa.answer, tsa.requests = None, 0


def client(tsa: Tsa) -> Authority:
    return Authority(tsa.url, read_certificates(tsa.issuer), KEY.all_public)


async def write(connection: Connection, events: int = 1) -> None:
    await seal(connection, "rr-1", *({} for _ in range(events)))
    await one_round(connection, Signer(KEY))


async def stored(connection: Connection) -> list[Any]:
    return list(await connection.fetch("SELECT size, note, token FROM log_timestamps ORDER BY size"))


async def verify(connection: Connection, tsa: Tsa) -> DatabaseResult:
    anchors = TrustAnchors(KEY.all_public, certificates=read_certificates(tsa.issuer))
    async with connection.transaction():
        return await verify_database(connection, sequential_runner(connection), anchors)


async def in_background(connection: Connection, tsa: Tsa | None) -> set[str]:
    """The kinds of what the background verifier finds in a round."""
    certificates = () if tsa is None else read_certificates(tsa.issuer)
    await a_round(Verifier(FIRST_LOG, KEY.all_public, 50, certificates=certificates), connection)
    kinds = {row["kind"] for row in await connection.fetch("DELETE FROM verifier_findings RETURNING kind")}
    await connection.execute("DELETE FROM verifier")
    return kinds


class _Recorded:
    """What a verifier has recorded."""

    def __init__(self) -> None:
        self.subjects: set[str] = set()

    async def record(self, defects: Sequence[tuple[Defect, bool]]) -> None:
        self.subjects |= {defect.subject for defect, _ in defects}

    async def end_round(self) -> None:
        pass

    def follow(self, log: Log) -> None:
        del log


def test_a_token_is_of_a_note_and_a_request(tsa: Tsa, stranger: Tsa) -> None:
    """A token of another note, for another request or by another authority passes for one that says when a note existed."""
    trusted, request = read_certificates(tsa.issuer), new_request(NOTE)
    answer = tsa.reply(request.as_bytes())
    before = datetime.now(UTC)
    token, shown = token_in(answer, request, NOTE, trusted)
    assert abs(shown.time - before) < timedelta(minutes=1)
    assert "CN=issuer" in str(shown)
    assert verified_timestamp(token, NOTE, trusted) == shown
    assert tsa.verify(token, NOTE.encode())
    assert not tsa.verify(token, NOTE.encode() + b"\n")
    for wrong in (
        lambda: verified_timestamp(token, NOTE + "\n", trusted),
        lambda: verified_timestamp(token, NOTE, read_certificates(stranger.issuer)),
        lambda: token_in(stranger.reply(request.as_bytes()), request, NOTE, trusted),
        lambda: token_in(tsa.reply(new_request(NOTE).as_bytes()), request, NOTE, trusted),  # another nonce
        lambda: token_in(tsa.reply(new_request(NOTE + "\n").as_bytes()), request, NOTE, trusted),
        lambda: token_in(tsa.reply(b"nonsense"), request, NOTE, trusted),  # the authority answers with a refusal
    ):
        with pytest.raises(WrongTimestamp):
            wrong()


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
def test_changed_or_cut_tokens_are_refused(tsa: Tsa) -> None:
    """A byte of a token can be changed where it says something, or nonsense ends in a traceback."""
    trusted, request = read_certificates(tsa.issuer), new_request(NOTE)
    answer = tsa.reply(request.as_bytes())
    token, shown = token_in(answer, request, NOTE, trusted)
    for place in range(0, len(token), 3):
        changed = token[:place] + bytes([token[place] ^ 1]) + token[place + 1 :]
        with contextlib.suppress(WrongTimestamp):
            assert verified_timestamp(changed, NOTE, trusted).time == shown.time, place
    for cut in range(0, len(answer), 37):
        with pytest.raises(WrongTimestamp):
            token_in(answer[:cut], request, NOTE, trusted)
        with pytest.raises(WrongTimestamp):
            verified_timestamp(answer[:cut], NOTE, trusted)


async def test_one_each_hour(connection: Connection, tsa: Tsa, monkeypatch: pytest.MonkeyPatch) -> None:
    """The authority is asked each minute or by each replica, or never again; or what is stored is not what was published."""
    first, second = client(tsa), client(tsa)
    await first.run_round(connection, FIRST_LOG)
    assert tsa.requests == 0  # nothing was signed yet
    await write(connection, 3)
    for one in (first, first, second):
        await one.run_round(connection, FIRST_LOG)
    await write(connection)
    await second.run_round(connection, FIRST_LOG)
    assert tsa.requests == 1
    monkeypatch.setattr(module, "INTERVAL_SECONDS", 0.0)
    for one in (first, second):
        await one.run_round(connection, FIRST_LOG)
    assert tsa.requests == 2
    (row, other) = await stored(connection)
    assert (row["size"], other["size"]) == (3, 4)
    assert other["note"] == (await connection.fetchrow(SQL.of(FIRST_LOG)["published_checkpoint"]))["note"]
    document = json.dumps({"checkpoint": row["note"], "token": encoded_base64(row["token"])}).encode()
    trusted = read_certificates(tsa.issuer)
    checkpoint, signers, _ = verify_timestamp_file(document, KEY.all_public, trusted)
    assert (checkpoint.size, list(signers)) == (3, [KEY.public])
    with pytest.raises(NoValidSignature):
        verify_timestamp_file(document, new_key(LOG).all_public, trusted)
    result = await verify(connection, tsa)
    assert (result.defects.count, len(result.timestamps)) == (0, 2)
    monkeypatch.undo()
    following = Log(1, LOG)  # the log after a loss, signed under its own name
    note = sign_checkpoint(Checkpoint(following.name, 1, bytes(32)), KEY.private)
    await connection.execute("INSERT INTO logs VALUES (1, $1)", following.name)
    await connection.execute(SQL.of(following)["store_checkpoint"], 1, note)
    await connection.execute(SQL.of(following)["publish_checkpoint"], 1, "")
    for one in (client(tsa), client(tsa)):
        await one.run_round(connection, following)
    assert tsa.requests == 3
    verifier = Verifier(following, KEY.all_public, 50, recorded := _Recorded())
    await connection.execute("UPDATE log_timestamps SET token = '' WHERE log_id = 1")
    await a_round(verifier, connection)
    assert f"timestamp 1 of {following.name}" in recorded.subjects  # and not the one of the first log
    await connection.execute("DELETE FROM verifier_findings")
    await connection.execute("DELETE FROM verifier WHERE log_id = 1")
    await connection.execute("DELETE FROM log_timestamps WHERE log_id = 1")
    await connection.execute("DELETE FROM log_checkpoints WHERE log_id = 1")
    await connection.execute("DELETE FROM logs WHERE log_id = 1")


async def test_an_authority_that_fails_stops_nothing(connection: Connection, tsa: Tsa, stranger: Tsa) -> None:
    """A token that is wrong is stored, or an authority that is away prevents checkpoints."""
    await write(connection)
    one = client(tsa)
    asked = new_request("another note").as_bytes()
    for answer in (
        (500, b""),
        (200, b""),
        (200, b"x" * 200_000),
        (200, tsa.reply(asked)),
        (200, stranger.reply(asked)),
    ):
        tsa.answer = answer
        with pytest.raises(NotStamped):
            await one.run_round(connection, FIRST_LOG)
    with pytest.raises(NotStamped, match="cannot be asked"):
        await Authority("http://127.0.0.1:1", one.certificates, one.keys).run_round(connection, FIRST_LOG)
    assert await stored(connection) == []
    await write(connection)
    tsa.answer = None
    await one.run_round(connection, FIRST_LOG)
    assert [row["size"] for row in await stored(connection)] == [2]


async def test_stored_timestamps_are_verified(connection: Connection, tsa: Tsa, stranger: Tsa) -> None:
    """A stored token or note is changed unseen, or a row that somebody inserts prevents timestamps."""
    await write(connection, 2)
    await client(tsa).run_round(connection, FIRST_LOG)
    (row,) = await stored(connection)
    request = new_request(row["note"])
    foreign, _ = token_in(stranger.reply(request.as_bytes()), request, row["note"], read_certificates(stranger.issuer))
    rewritten = sign_checkpoint(Checkpoint(LOG, 2, bytes(32)), KEY.private)
    beyond = sign_checkpoint(Checkpoint(LOG, 9, bytes(32)), KEY.private)
    for statement, values, kind in (
        ("UPDATE log_timestamps SET token = $1", (foreign,), "forged checkpoint"),
        ("UPDATE log_timestamps SET note = note || $1", ("\u2014 x AAAAAAAA\n",), "forged checkpoint"),
        ("UPDATE log_timestamps SET size = $1", (1,), "forged checkpoint"),
        ("UPDATE log_timestamps SET note = $1", (rewritten,), "edited"),
        ("UPDATE log_timestamps SET log_id = $1", (3,), "inserted"),
        ("INSERT INTO log_timestamps VALUES (0, 9, $1, '')", (beyond,), "rolled back"),
    ):
        changing = connection.transaction(isolation="repeatable_read")
        await changing.start()
        await connection.execute(statement, *values)
        assert {defect.kind for defect in (await verify(connection, tsa)).defects.listed} == {kind}, statement
        also = {"forged checkpoint"} if values == (rewritten,) else set()  # the token is of another note
        assert await in_background(connection, tsa) == {kind} | also, statement
        # Without a certificate a token is compared with its note, but not with who signed it.
        by_a_stranger = values == (foreign,)
        assert await in_background(connection, None) == (set() if by_a_stranger else {kind} | also), statement
        await changing.rollback()
    assert await in_background(connection, tsa) == set()
    # None of them counts when the next one is due.
    await connection.execute("UPDATE log_timestamps SET token = $1", foreign)
    await connection.execute("INSERT INTO log_timestamps VALUES (0, 1, $1, $2)", row["note"], row["token"])
    await client(tsa).run_round(connection, FIRST_LOG)
    await connection.execute("DELETE FROM log_timestamps WHERE size = 1")
    assert (await verify(connection, tsa)).defects.count == 0


async def test_a_bundle_says_when(
    connection: Connection, database_url: str, tsa: Tsa, stranger: Tsa, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bundle lacks the timestamp that covers its events, vouches for a wrong one, or has one that somebody forged in the table."""
    await write(connection, 2)
    await client(tsa).run_round(connection, FIRST_LOG)
    await write(connection)
    trusted, keys = read_certificates(tsa.issuer), list(KEY.all_public)

    async def bundle(key: SigningKey = KEY) -> bytes:
        engine = db.create_engine(Settings(database_url=SecretStr(database_url), pool_connections_max=2))
        try:
            async with snapshot(engine) as reading:
                return await BundleExport(BundleQuery("rr-1"), "ada", FIRST_LOG, key).read(reading)
        finally:
            await engine.dispose()

    def sizes(content: bytes) -> list[str]:
        return [one.checkpoint.split("\n")[1] for one in parse(content).bundle.logs[0].timestamps]

    assert sizes(await bundle()) == ["2"]  # it does not cover the third event
    monkeypatch.setattr(module, "INTERVAL_SECONDS", 0.0)
    await client(tsa).run_round(connection, FIRST_LOG)
    content = await bundle()
    assert sizes(content) == ["2", "3"]
    result = check_bundle(content, keys, trusted)
    assert not result.problems
    assert "  its first 3 events existed at 20" in "\n".join(result.summary)
    assert "NOT verified" in "\n".join(check_bundle(content, keys).summary)
    problems = check_bundle(content, keys, read_certificates(stranger.issuer)).problems
    assert ["timestamps[0]" in problems[0], "timestamps[1]" in problems[1]] == [True, True]
    both = replace(KEY, cosigner=MLDSA44PrivateKey.generate())  # the timestamps are from before there was a second key
    await seal(connection, "rr-1", {})
    await one_round(connection, Signer(both))
    content = await bundle(both)
    assert check_bundle(content, list(both.all_public), trusted).problems == []
    assert check_bundle(content, [*new_key(LOG).all_public, both.all_public[1]], trusted).problems
    await connection.execute("UPDATE log_timestamps SET note = $1", NOTE.replace("7", "3", 1))
    assert parse(await bundle()).bundle.logs[0].timestamps == []


def test_settings_of_an_authority(tsa: Tsa, tmp_path: Path) -> None:
    """A service starts with an authority whose tokens it cannot verify, or a typing error passes."""
    assert Authority.create(Settings(), ()) is None
    with pytest.raises(Fatal, match="DATASTORAGE_TSA_CERTIFICATES_FILE"):
        Authority.create(Settings(tsa_url=tsa.url), ())
    (tmp_path / "empty").write_text("")
    for file in (tmp_path / "missing", tmp_path / "empty"):
        with pytest.raises(Fatal, match="Cannot read the certificates"):
            Authority.create(Settings(tsa_url=tsa.url, tsa_certificates_file=file), ())
    made = Authority.create(Settings(tsa_url=tsa.url, tsa_certificates_file=tsa.issuer), ())
    assert made is not None
    assert len(made.certificates) == 1
