"""An export of a database whose log was continued after a loss: the file has the events of both logs, and what proves each."""

import io
from dataclasses import replace
from typing import Any, Literal
from uuid import uuid4

import asyncpg
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

from app.api.export import require_same_log
from app.db import create_engine
from app.errors import AuditError
from app.export.check import check
from app.export.file import RecordReader, manifest_record
from app.export.manifest import ExportPosition, Manifest, sign_manifest
from app.export.parts import Export, ResumeToken
from app.export.result import CheckResult
from app.export.select import ExportQuery
from app.tlog.copies import CheckpointCopies
from app.tlog.keys import SigningKey
from app.tlog.note import PublicKey
from app.tlog.signer import Alarms, Signer
from app.tlog.witness import Witnesses
from app.tlog.worker import CheckpointWorker
from app.verify.snapshot import snapshot
from tests.logs import FIRST_LOG
from tests.postgres.log import LOG, write
from tests.postgres.test_checkpoints import no_heartbeat
from tests.postgres.test_continue import KEY, NEXT, continued, settings_of
from tests.postgres.test_export import nothing

pytestmark = pytest.mark.damaged  # events are lost on purpose

Connection = asyncpg.Connection


@pytest.mark.parametrize("form", ["ndjson", "csv"])
async def test_an_export_over_the_seam(
    connection: Connection, database_url: str, form: Literal["ndjson", "csv"], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An export leaves out what is left of the log before the loss, or what vouches for it, or a changed file of both logs verifies."""
    await continued(connection, database_url)
    next_key, engine = KEY.of(NEXT), create_engine(settings_of(database_url))
    own, both = [next_key.public], [KEY.public, next_key.public]

    async def export(token: str | None = None, **query: Any) -> bytes:
        after = None if token is None else ResumeToken.parse(token)
        one = Export(ExportQuery(format=form, **query), "ada", NEXT, next_key, after)
        async with snapshot(engine) as snapped:
            return b"".join([chunk async for chunk in one.stream(snapped, nothing)])

    def verdict(*files: bytes, keys: list[PublicKey] = both) -> CheckResult:
        return check([io.BytesIO(file) for file in files], keys)

    try:
        whole = await export(include="self")
        found = verdict(whole)
        assert found.problems == []
        assert (found.counts["sealed"], found.counts["recomputed"]) == (9, 9)
        [manifest] = found.parts
        assert [(one.log, one.log_size, one.first_position, one.last_position) for one in manifest.earlier_logs] == [
            (LOG, 6, 0, 5)
        ]
        assert (manifest.log, manifest.log_size, manifest.first_position, manifest.last_position) == (
            NEXT.name,
            3,
            0,
            2,
        )
        assert manifest.through == ExportPosition(2, log=NEXT.name)
        assert (manifest.earlier_logs[0].checkpoint or "").startswith(f"{LOG}\n3\n")
        assert [line.partition(":")[0] for line in found.checkpoint_result.split("\n")] == [
            f"log '{LOG}'",
            f"log '{NEXT.name}'",
        ]
        assert "first 6 events" in found.checkpoint_result
        assert "first 3 events" in found.checkpoint_result
        assert verdict(whole, keys=own).problems == []
        assert "first 6 events" in verdict(whole, keys=own).checkpoint_result  # through the seam
        assert verdict(whole, keys=[KEY.public]).problems  # whose log is closed

        filtered = verdict(await export(correlation_id="rr-1"))
        assert filtered.problems == []
        assert (filtered.counts["sealed"], filtered.counts["gaps"]) == (4, 0)  # one chain

        monkeypatch.setattr("app.export.parts.PART_BYTES", 1)
        monkeypatch.setattr("app.export.select._ROWS_AT_ONCE", 2)
        parted = verdict(first := await export(include="self"))
        assert (parted.problems, len(parted.parts)) == ([], 6)
        for part in parted.parts[:-1]:
            assert part.next is not None
            assert (token := ResumeToken.parse(part.next)).after == part.through
            assert token.log_id == NEXT.id
            rest = await export(part.next, include="self")
            assert verdict(_up_to(first, part.part), rest).problems == [], part.part

        for name, change in {
            "checkpoint": lambda one: replace(one, checkpoint=manifest.checkpoint),
            "size": lambda one: replace(one, log_size=5),
            "other size": lambda one: replace(one, log_size=7),
            "name": lambda one: replace(one, log="other"),
            "first": lambda one: replace(one, first_position=1),
            "last": lambda one: replace(one, last_position=None),
            "seam": lambda one: replace(one, seam=(one.seam or {}) | {"salt": "00"}),
            "not opened": lambda one: replace(one, seam=(one.seam or {}) | {"salt": None, "committed": None}),
        }.items():
            changed = replace(manifest, earlier_logs=tuple(map(change, manifest.earlier_logs)))
            assert verdict(_with_manifest(whole, changed, next_key)).problems, name
        assert verdict(_with_manifest(whole, replace(manifest, earlier_logs=()), next_key)).problems
        assert verdict(_with_manifest(whole, manifest, next_key)).problems == []
        assert verdict(_with_manifest(whole, replace(manifest, through=ExportPosition(2)), next_key)).problems
        exchanged = _records(whole)
        start = 0 if form == "ndjson" else 1
        exchanged[start:-1] = [*exchanged[start + 6 : -1], *exchanged[start : start + 6]]
        assert any("order" in problem for problem in verdict(b"".join(exchanged)).problems)
    finally:
        await engine.dispose()


async def test_a_closed_log_from_before_the_second_key(connection: Connection, database_url: str) -> None:
    """With both keys a file is refused whose closed log was never signed with the second one, although the next log proves it."""
    await continued(connection, database_url)
    both = replace(KEY, cosigner=MLDSA44PrivateKey.generate())
    await write(database_url, {})
    worker = CheckpointWorker(
        FIRST_LOG, Signer(both), Witnesses([]), CheckpointCopies(None, None), Alarms(), 0, key=both
    )
    await worker.run_round(connection, no_heartbeat)
    next_key, engine = both.of(NEXT), create_engine(settings_of(database_url))
    try:
        async with snapshot(engine) as snapped:
            one = Export(ExportQuery(format="ndjson", include="self"), "ada", NEXT, next_key)
            whole = b"".join([chunk async for chunk in one.stream(snapped, nothing)])
    finally:
        await engine.dispose()
    keys = [*both.all_public, *next_key.all_public]
    found = check([io.BytesIO(whole)], keys)
    assert found.problems == []
    assert "first 6 events" in found.checkpoint_result
    [manifest] = found.parts
    [closed] = manifest.earlier_logs
    unproved = _with_manifest(whole, replace(manifest, earlier_logs=(replace(closed, seam=None),)), next_key)
    assert any("not signed with ML-DSA-44" in problem for problem in check([io.BytesIO(unproved)], keys).problems)
    strange = replace(both, private=Ed25519PrivateKey.generate(), public=PublicKey(LOG, bytes(32)))
    assert check([io.BytesIO(whole)], [*strange.all_public, *next_key.all_public]).problems


def test_an_export_that_began_before_the_log_was_continued() -> None:
    """Its next part is of another log, and says so nowhere."""
    token = ResumeToken(export_id=uuid4(), log_size=3, part=2, previous="0" * 64, after=ExportPosition(1))
    require_same_log(ResumeToken.parse(str(token)), FIRST_LOG)
    require_same_log(None, NEXT)
    require_same_log(token.model_copy(update={"log_id": 1}), NEXT)
    with pytest.raises(AuditError, match="begin a new one"):
        require_same_log(token, NEXT)


def _records(file: bytes) -> list[bytes]:
    return list(RecordReader(io.BytesIO(file)))


def _up_to(file: bytes, part: int) -> bytes:
    """The file up to the manifest of a part."""
    reader, taken, manifests = RecordReader(io.BytesIO(file)), [], 0
    for record in reader:
        taken.append(record)
        manifests += reader.is_manifest(record)
        if manifests == part:
            break
    return b"".join(taken)


def _with_manifest(file: bytes, manifest: Manifest, key: SigningKey) -> bytes:
    """The records of a file of one part, and another manifest, signed as the service would."""
    *records, _ = _records(file)
    return b"".join([*records, manifest_record(manifest.format, sign_manifest(manifest, key))])
