"""Two minutes of honest traffic; `make honest` plays a day."""

import pytest

from tests.honest.run import EVENTS_PER_SECOND, run


@pytest.mark.damaged  # purged and erased; the command itself verifies
def test_honest_traffic(server_url: str, database_url: str) -> None:
    """Late events, holds, policies, purges, erasure, exports or a change of log during the traffic look like tampering."""
    outcome = run(server_url, database_url, 1 / 30)
    assert outcome.alarms == []
    assert outcome.number(r": ([0-9,]+) positions") > 120 * EVENTS_PER_SECOND * 0.8
    assert outcome.number(r"purged: ([0-9,]+)") > 0
    assert outcome.number(r"erased: ([0-9,]+)") > 0
    acts = {
        "holds",
        "releases",
        "policies",
        "retention",
        "erase",
        "exports",
        "notifications",
        "log",
        "acknowledgements",
        "verify",
    }
    assert outcome.acts.keys() >= acts
