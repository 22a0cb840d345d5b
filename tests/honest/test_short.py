"""Two minutes of honest traffic; `make honest` plays a day."""

import pytest

from tests.honest.run import EVENTS_PER_SECOND, run


@pytest.mark.damaged  # purged and erased: verified by the command itself
async def test_honest_traffic(database_url: str) -> None:
    """Late events, holds, purges, erasure or exports beside the traffic look like tampering."""
    told = run(database_url, 1 / 30)
    assert told.alarms == []
    assert told.number(r": ([0-9,]+) positions") > 120 * EVENTS_PER_SECOND * 0.8
    assert told.number(r"purged: ([0-9,]+)") > 0
    assert told.number(r"erased: ([0-9,]+)") > 0
    assert told.acts.keys() >= {"holds", "releases", "retention", "erase", "exports", "verify"}
