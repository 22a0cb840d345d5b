"""A storage that fails at each request of a run in turn: the run says so, nothing is lost, and the next one goes on."""

from pathlib import Path
from typing import Any

import pytest
from pyiceberg.io.pyarrow import PyArrowFile

from app.archive import run
from app.archive.storage import Storage, StorageAway
from tests.archive.archived import ALL, NOW, OLD, Connection, problems, settings_of, verified
from tests.archive.test_erasure import SECRET, erase_one, everything_in, fill_with_secret

REQUESTS = {
    Storage: ("create", "open", "read", "copy_to", "names", "delete", "delete_folder"),
    PyArrowFile: ("open", "create"),
}


class Faults:
    """Counts requests, and has one of them fail."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.at = 0
        for kind, names in REQUESTS.items():
            for name in names:
                patch.setattr(kind, name, self._counted(getattr(kind, name)))

    def _counted(self, real: Any) -> Any:
        def request(*arguments: Any, **named: Any) -> Any:
            self.count += 1
            if self.count == self.at:
                raise OSError("a fault of the test")
            return real(*arguments, **named)

        return request

    def begin(self, at: int) -> None:
        self.count, self.at = 0, at


async def test_erasure(
    database_url: str, connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault while a part is written again loses rows, leaves what was erased, or lets the archive look as if somebody had changed it."""
    event_id = await fill_with_secret(connection)
    settings = settings_of(database_url, tmp_path)
    await run.run(settings, NOW, ALL)
    await erase_one(settings, event_id)
    faults = Faults(monkeypatch)
    at = outcomes = 0
    while True:
        at += 1
        faults.begin(at)
        try:
            done = await run.run(settings, NOW, ALL)
        except StorageAway:
            done = None
        made = faults.count
        faults.begin(0)
        assert await problems(settings, "manifests") == [], at
        if done is None or done.pending:
            outcomes += 1
            continue
        if made < at:
            break
        # a fault that was none: what is left to do begins anew
        await erase_one(
            settings,
            await connection.fetchval(
                "SELECT event_id FROM audit_events WHERE correlation_id LIKE $1 AND payload_commitment IS NULL LIMIT 1",
                f"rr-{OLD:%m}-%",
            ),
        )
    assert outcomes > 20
    result = await verified(settings)
    assert (result.problem_count, result.verified, result.pending, result.undeleted) == (0, 121, [], [])
    assert SECRET not in everything_in(tmp_path)
    assert await connection.fetchval("SELECT count(*) FROM archive_attempts") == 0
